"""Which checkpoint of which run a branch begins from, by RUN@STEP, and the recipe that it makes with what is changed.

No torch, but where copies in a store are listed: what cannot be is refused before that is imported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.status.find import find_run
from vit_dist.config.blame import Sources
from vit_dist.config.branch_keys import check_given
from vit_dist.config.load import parse_overrides, read_recipe_file, resolve
from vit_dist.config.plugins import anchored
from vit_dist.config.safe_yaml import parse_yaml
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import CheckpointError, ConfigError, DataError, MissingError
from vit_dist.core.files import folder_url, is_remote, join_url, local_path, read_bytes, redact, url_name
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import MARKER, committed, lacks, marker_in_place, step_name, step_of
from vit_dist.core.run.lineage import checkpoint_digest
from vit_dist.core.text import read_text
from vit_dist.core.units import parse_count

_SHOWN = 8
_NAME = 60
"""So many characters of a trunk's name are kept in a branch's."""


@dataclass(frozen=True)
class BranchPoint:
    """A checkpoint that a branch begins from.

    Attributes:
        checkpoint: path or URL of it.
        run: name of its run, for people.
        marker: of the checkpoint.
        raw: the recipe of its run, as plain data.
        source: where that stands.
        files: the same as files, for messages that name lines; () of a URL.
    """

    checkpoint: str
    run: str
    marker: Mapping[str, Any]
    raw: Mapping[str, Any]
    source: str
    files: tuple[Path, ...] = ()

    @property
    def step(self) -> int:
        """After which the branch begins."""
        return int(self.marker["state"]["step"])


def find_point(text: str, roots: Sequence[Path]) -> BranchPoint:
    """The checkpoint that RUN@STEP means.

    Args:
        text: RUN is a directory, a name, a job's number as other verbs take them, or the path or URL of copies that
            `checkpoint.remote` keeps; STEP a number, `latest` or `best`.
        roots: where runs are looked for by name.

    Raises:
        ConfigError: no such run, no such step (names the nearest), or no best one.
        CheckpointError: its marker is damaged.
        DataError: a store cannot be read.
    """
    run, at, step = text.rpartition("@")
    if not at or not run or not step or "/" in step:
        raise ConfigError(
            f"{redact(text)!r}: give RUN@STEP: a run, and the step of one of its checkpoints, latest or best"
        )
    if is_remote(run):
        # Here, since it brings in torch.
        from vit_dist.train.checkpoint.remote import remote_steps

        base, found, recipe = folder_url(run), remote_steps(run), None
        name = url_name(base)
    else:
        path = find_run(str(local_path(run)), roots)
        root = path / names.CHECKPOINTS
        # Copies in a folder lie beside run.json.
        root = root if root.is_dir() or not committed(path) else path
        base, found, recipe = str(root.absolute()), [one.name for one in committed(root)], path / names.RECIPE
        name = path.resolve().name
    if not found:
        raise ConfigError(f"{redact(run)}: no checkpoint in it to branch from; train it first, or ask it for one")
    raw, source, files = _recipe(run, recipe)
    chosen = _chosen(redact(run), step, base, found, raw)
    place = join_url(base, chosen)
    return BranchPoint(place, name, read_trunk_marker(place), raw, source, files)


def _recipe(run: str, path: Path | None) -> tuple[dict[str, Any], str, tuple[Path, ...]]:
    """The recipe of a run as plain data, where it stands, and in which files."""
    if path is not None:
        if not path.is_file():
            raise ConfigError(f"{path.parent}: holds no {names.RECIPE}, so what it has trained is not known")
        files: list[Path] = []
        return read_recipe_file(path, files=files), str(path), tuple(files)
    url = join_url(folder_url(run), names.RECIPE)
    try:
        raw = parse_yaml(read_text(url), redact(url))
    except MissingError:
        raise ConfigError(f"{redact(url)}: is not there, so what the run has trained is not known") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{redact(url)}: expected a mapping of keys at the top, got {type(raw).__name__}")
    return anchored(raw, Path.cwd()), redact(url), ()


def _chosen(run: str, step: str, base: str, found: Sequence[str], raw: Mapping[str, Any]) -> str:
    """The name of the checkpoint that STEP means, among those that there are, the newest first."""
    if step == "latest":
        return found[0]
    if step == "best":
        return _best(run, base, found, raw)
    try:
        wanted = parse_count(step)
    except ValueError:
        raise ConfigError(f"{run}@{step}: {step!r} is no step; give a number, latest or best") from None
    if step_name(wanted) in found:
        return step_name(wanted)
    steps = sorted(number for name in found if (number := step_of(name)) is not None)
    near = [max((s for s in steps if s < wanted), default=None), min((s for s in steps if s > wanted), default=None)]
    nearest = " and ".join(f"{one:,}" for one in near if one is not None)
    others = f"; there are {len(steps)}" if len(steps) > _SHOWN else f"; there are {', '.join(f'{s:,}' for s in steps)}"
    raise ConfigError(
        f"{run}@{step}: no checkpoint of step {wanted:,}; nearest: {nearest}{others if len(steps) > 1 else ''}. "
        f"`vit-dist checkpoint` asks a run for one, checkpoint.keep_every keeps more of them"
    )


def _best(run: str, base: str, found: Sequence[str], raw: Mapping[str, Any]) -> str:
    section = raw.get("checkpoint")
    tag = str(section.get("keep_best") or "") if isinstance(section, dict) else ""
    if not tag:
        raise ConfigError(f"{run}@best: its checkpoint.keep_best names no metric; give a step, or latest")
    rule = resolve(raw, where=run).metric(tag, "checkpoint.keep_best")
    values: list[tuple[str, float]] = []
    for name in found:
        try:
            measured = read_trunk_marker(join_url(base, name)).get("metrics", {})
        except CheckpointError:
            continue
        if tag in measured:
            value = float(measured[tag])
            values.append((name, math.nan if rule.problem(value) else value))
    best = rule.best([value for _, value in values])
    if best is None:
        raise ConfigError(f"{run}@best: {tag} was measured at none of its {len(found)} checkpoints; give a step")
    return values[best][0]


def read_trunk_marker(checkpoint: str, unmade: str = "") -> dict[str, Any]:
    """The marker of a checkpoint at a path or URL, with all that a run needs to go on from it.

    Args:
        checkpoint: path or URL.
        unmade: the run that is to make it, where that may not have done so yet.

    Raises:
        CheckpointError: it is not there, or damaged.
        DataError: the store cannot be read.
    """
    try:
        content = read_bytes(join_url(folder_url(checkpoint), MARKER))
    except MissingError:
        if unmade:
            raise CheckpointError(
                f"branch.checkpoint: {redact(checkpoint)}: not there; its trunk {unmade} makes it: train that first"
            ) from None
        raise CheckpointError(
            f"branch.checkpoint: {redact(checkpoint)}: no checkpoint there any more; give branch.checkpoint=PATH of a "
            f"copy of it, or branch at a step that is there"
        ) from None
    marker, problem = marker_in_place(content, url_name(folder_url(checkpoint)))
    problem = problem or lacks(marker)
    if problem:
        raise CheckpointError(f"{redact(checkpoint)}: {problem}")
    return marker


def branch_recipe(point: BranchPoint, overrides: Sequence[str]) -> tuple[Recipe, Sources, list[str]]:
    """The recipe of a branch, where its values come from, and what of the trunk's it has left, in words.

    Args:
        point: from which it begins.
        overrides: 'key=value' texts.

    Raises:
        ConfigError: what a recipe cannot say, or a branch cannot be given.
    """
    given = parse_overrides(overrides)
    check_given([text.partition("=")[0].strip() for text in overrides])
    raw: dict[str, Any] = {key: value for key, value in point.raw.items() if key not in ("init", "branch", "finetune")}
    step, left = point.step, list[str]()
    raw["branch"] = {
        "checkpoint": point.checkpoint,
        "run": point.run,
        "step": step,
        "digest": checkpoint_digest(point.marker),
    }
    raw["name"] = f"{str(raw.get('name', 'run'))[:_NAME]}-from-{step}"
    if raw.get("study") and "study" not in given:
        left.append(f"it is no cell of the study {raw['study']} (study=NAME makes it count there)")
        raw["study"] = ""
    saves = raw.get("checkpoint")
    if isinstance(saves, dict) and saves.get("remote") and "remote" not in (given.get("checkpoint") or {}):
        left.append("checkpoint.remote is the trunk's: no copies are kept (checkpoint.remote=URL gives it its own)")
        raw["checkpoint"] = {**saves, "remote": ""}
    sources = Sources(point.source, overrides, point.files)
    try:
        return resolve(raw, overrides, where=sources), sources, left
    except DataError as error:
        raise ConfigError(str(error)) from None
