"""The doctor's checks of the recipe's data: credentials, manifests, and how fast shards are read for what is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator

from launcher.doctor.finding import Finding, Subject
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import AwayError, MissingError, VitDistError
from vit_dist.core.events.reader import read_run
from vit_dist.core.files import is_remote, is_s3
from vit_dist.core.run import names
from vit_dist.core.run.copies import check_place
from vit_dist.core.run.log import TRAIN_EXAMPLES_PER_S
from vit_dist.core.store_refusals import NO_BUCKET
from vit_dist.core.units import counted, format_bytes, format_rate
from vit_dist.data.readrate import measure, places
from vit_dist.data.sets import open_training_set
from vit_dist.data.validation import open_validation_set

_AREA = "Data"
_MEASURED_S = 2.0
_MARGIN = 1.3
"""A reader that is only just fast enough keeps training waiting now and then."""


def data(subject: Subject) -> Iterator[Finding]:
    """Everything about the recipe's sets; without a recipe, only the credentials that S3 would be asked with."""
    recipe = subject.recipe
    if recipe is None:
        yield from _credentials(needed=False)
        yield Finding(_AREA, "ok", "no recipe was named, so no dataset was looked at")
        return
    remote = {url for url in _urls(recipe) if is_s3(url)}
    if remote:
        yield from _credentials(needed=True)
    try:
        opened = open_training_set(recipe)
    except VitDistError as error:
        missing = "pack or index the set, or name it with data.train=URL"
        yield Finding(_AREA, "fail", str(error), _advice(error, missing))
        return
    mean = opened.num_bytes / max(1, opened.num_samples)
    yield Finding(
        _AREA,
        "ok",
        f"training set {opened.name}: {counted(opened.num_samples, 'example')}, {format_bytes(opened.num_bytes)}, "
        f"{format_bytes(mean)} an example",
    )
    if recipe.data.val:
        try:
            val = open_validation_set(recipe, opened)
            assert val is not None
            yield Finding(_AREA, "ok", f"validation set {val.name}: {counted(val.num_samples, 'example')}")
        except VitDistError as error:
            other = "name another with data.val=URL, or none with data.val=''"
            yield Finding(_AREA, "fail", str(error), _advice(error, other))
    yield from _rate(subject, [place for part in opened.parts for place in places(part.manifest)], mean)
    if recipe.checkpoint.remote:
        yield from _copies(recipe.checkpoint.remote)


_NO_SHARDS = "the manifest is there and its shards are not: copy them to where it is, or index them anew"


def _advice(error: VitDistError, missing: str) -> str:
    """What to do about a set that cannot be had; '' where the error's text says it already.

    Args:
        error: of the set.
        missing: what to do where it is not there, or none is named.
    """
    if isinstance(error, AwayError):
        endpoint = "AWS_ENDPOINT_URL_S3 (another store than Amazon's), "
        return f"the store was not reached: look at its address, {endpoint}the network and the proxies of this machine"
    # Anything else that is wrong with a set, such as damage, comes with what to do about it.
    return missing if isinstance(error, MissingError) and NO_BUCKET not in str(error) else ""


def _urls(recipe: Recipe) -> list[str]:
    mixture = recipe.data.mixture or {}
    sets = [recipe.data.train, recipe.data.val, *(component.train for component in mixture.values())]
    return [url for url in [*sets, recipe.checkpoint.remote] if url]


def _credentials(*, needed: bool) -> Iterator[Finding]:
    """Where S3's credentials come from; never what they are."""
    # Else the search ends at the metadata service of a cloud machine, which elsewhere takes long not to answer.
    for name, value in (("AWS_METADATA_SERVICE_TIMEOUT", "1"), ("AWS_METADATA_SERVICE_NUM_ATTEMPTS", "1")):
        os.environ.setdefault(name, value)
    try:
        import botocore.session

        session = botocore.session.get_session()
        # On a machine that needs none, nobody is asked over the network.
        if not needed:
            resolver = session.get_component("credential_provider")
            for name in ("iam-role", "container-role", "sso", "login"):
                if any(name == p.METHOD for p in resolver.providers):
                    resolver.remove(name)
        credentials = session.get_credentials()
        method = credentials.method if credentials else ""
    # A profile that does not exist, a config file that cannot be read, ...
    except Exception as error:
        yield Finding(
            _AREA,
            "fail" if needed else "warn",
            f"S3 credentials: {type(error).__name__}: {error}",
            "look at AWS_PROFILE, ~/.aws/config and ~/.aws/credentials",
        )
        return
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    where = f", for {endpoint}" if endpoint else ""
    if method:
        yield Finding(_AREA, "ok", f"S3 credentials from {method}{where}")
    else:
        yield Finding(
            _AREA,
            "warn" if needed else "ok",
            f"no S3 credentials{where}",
            "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role" if needed else "",
        )


def _rate(subject: Subject, files: list[tuple[str, int]], mean: float) -> Iterator[Finding]:
    rate = measure(files, seconds=_MEASURED_S)
    where = "the store" if is_remote(files[0][0]) else "this disk"
    if rate.error:
        yield Finding(_AREA, "fail", f"shards cannot be read: {rate.error}", _advice(rate.error, _NO_SHARDS))
        return
    feeds = rate.bytes_per_s / mean
    measured = (
        f"{where} gives this machine {format_bytes(rate.bytes_per_s)}/s, which is {format_rate(feeds)} examples/s "
        f"(first bytes after {rate.first_s * 1000:.0f} ms)"
    )
    wanted, source = _wanted(subject)
    if wanted is None:
        yield Finding(_AREA, "ok", measured, "compare it with what training takes: --images-per-s N")
        return
    short = feeds < wanted * _MARGIN
    yield Finding(
        _AREA,
        "fail" if feeds < wanted else "warn" if short else "ok",
        f"{measured}; training takes {format_rate(wanted)} examples/s ({source})",
        "training would wait for data: read from nearer by, from more nodes, or pack smaller images (--resize-shorter)"
        if short
        else "",
    )


def _wanted(subject: Subject) -> tuple[float | None, str]:
    """Examples a second that training takes, and how that is known."""
    if subject.images_per_s is not None:
        return subject.images_per_s, "--images-per-s"
    if subject.run_dir is not None and (subject.run_dir / names.EVENTS).is_dir():
        try:
            series = read_run(str(subject.run_dir / names.EVENTS), [TRAIN_EXAMPLES_PER_S]).scalars.get(
                TRAIN_EXAMPLES_PER_S
            )
        except VitDistError:
            series = None
        if series is not None and len(series.values):
            return float(max(series.values)), f"the most that {subject.run_dir} reached"
    return None, ""


def _copies(url: str) -> Iterator[Finding]:
    try:
        check_place(url)
    except VitDistError as error:
        other = "a run that cannot list its copies does not start; name another place with checkpoint.remote=URL"
        yield Finding(_AREA, "fail", f"checkpoint.remote: {error}", _advice(error, other))
    else:
        yield Finding(_AREA, "ok", f"checkpoint.remote {url} answers")
