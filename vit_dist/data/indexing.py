"""A manifest and sample indexes for tars that somebody else wrote; not a byte of them is copied or changed. No torch.

Each tar is read once, and must agree with what files beside it say of it (data/tars.py). For each an index and a cache
entry, with what was seen, are written beside the manifest, so that a second run reads only the tars that are new or
have changed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from vit_dist.core.errors import DataError
from vit_dist.core.files import (
    destination,
    exists,
    explained,
    file_system,
    identity,
    is_remote,
    join_url,
    local_path,
    parent_url,
    read_bytes,
    redact,
    split_url,
    url_name,
    write_bytes,
)
from vit_dist.core.progress import Progress
from vit_dist.core.small_files import (
    Check,
    DamagedError,
    is_count,
    is_flag,
    is_mapping,
    is_name,
    is_text,
    parse_json,
    required,
)
from vit_dist.core.units import counted
from vit_dist.data import workers
from vit_dist.data.classes import names_beside
from vit_dist.data.grammar import GRAMMAR, MAX_CLASSES, check_pairs
from vit_dist.data.index import encode_index
from vit_dist.data.labels import LabelRule
from vit_dist.data.manifest import Shard, ShardManifest, checksum, decode_shard, write_index, write_manifest
from vit_dist.data.ranges import file_size
from vit_dist.data.scan import scan_tar
from vit_dist.data.tarheader import BLOCK
from vit_dist.data.tars import TarToIndex, find_tars


def _is_left_out(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, list) and len(one) == 3 and is_text(one[0]) and is_count(one[1]) and is_text(one[2])
        for one in value
    )


# Of a LabelRule: where a sample's labels stand. The names of its classes stand in the manifest.
RULE_FIELDS = ("member", "field", "image")
_ENTRY: dict[str, tuple[Check, str]] = {
    "tar": (is_name, "the URL of a tar"),
    "stamp": (is_text, "a text"),
    "rule": (is_text, "a text"),
    "shard": (is_mapping, "an object"),
    "left_out": (_is_left_out, "a list of a key, an offset and a reason each"),
    "ignored": (is_count, "a whole number from 0"),
    "max_labels": (is_count, "a whole number from 0"),
    "pairs": (is_flag, "true or false"),
    "max_label": (lambda v: v == -1 or (is_count(v) and v < MAX_CLASSES), f"a whole number from -1 to {MAX_CLASSES:,}"),
    "max_label_key": (is_text, "a text"),
}


@dataclass(frozen=True)
class IndexResult:
    """The manifest; how many tars were read anew; samples left out as (tar, key, offset, reason)."""

    manifest: ShardManifest
    num_read: int
    left_out: tuple[tuple[str, str, int, str], ...]
    ignored: int


@dataclass(frozen=True)
class _Job:
    folder: str
    rule: LabelRule
    leave_out: bool
    replaces: bool


def index_tars(
    urls: Sequence[str],
    out: str,
    *,
    split_name: str = "",
    shuffled: bool = False,
    rule: LabelRule | None = None,
    num_classes: int | None = None,
    name: str = "",
    leave_out: bool = False,
    num_workers: int = 1,
    quiet: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> IndexResult:
    """Index tars and write their manifest.

    Args:
        urls: see `find_tars`.
        out: URL of the manifest; the indexes go into a directory of its name beside it.
        split_name: of the split, where names of tars speak of several.
        shuffled: the tars' samples are known to lie in random order.
        rule: where labels stand.
        num_classes: of the label space; None: names of classes in the rule, or the largest label + 1.
        name: of the dataset; '' takes the manifest's.
        leave_out: leave samples without image or label out instead of refusing their tar.
        num_workers: processes.
        quiet: show no progress.
        say: called with lines for people.

    Raises:
        DataError: a tar is missing, damaged, or does not hold what a file beside it says; a label is outside the
            classes.
    """
    rule = rule or LabelRule()
    if num_classes is not None and (leave_out or rule.classes):
        # Else a label outside is found when all is read, so that another number needs no second reading.
        rule = replace(rule, num_classes=num_classes)
    out = destination(out, "--out")
    if not out.endswith(".json"):
        out = join_url(out, "manifest.json")
    tars = find_tars(urls, split_name)
    base, stem = parent_url(out), url_name(out).removesuffix(".json")
    job = _Job(join_url(base, f"{stem}.index"), rule, leave_out, exists(out))
    entries, num_read = _cached_or_read(job, tars, num_workers, quiet, say)
    limit = num_classes if num_classes is not None else len(rule.classes) or None
    _check_entries(tars, entries, limit, redact(out))
    named = names_beside((tar.url for tar in tars), urls, rule)
    # Of a set of which some tars are indexed, the last classes may have no example in them.
    seen = max(len(named), 1 + max((entry["max_label"] for entry in entries), default=-1))
    manifest = ShardManifest(
        base=base,
        name=name or stem,
        shards=tuple(
            Shard(**{**entry["shard"], "url": _relative(tar.url, base)})
            for tar, entry in zip(tars, entries, strict=True)
        ),
        shuffled=shuffled,
        num_classes=limit if limit is not None else seen,
        classes=named,
        max_labels=max((1, *(entry["max_labels"] for entry in entries))),
    )
    if not manifest.num_samples:
        raise DataError(
            f"{redact(out)}: {counted(len(tars), 'tar holds', 'tars hold')} no samples with an image and a label"
        )
    write_manifest(manifest, out)
    left_out = [(tar.url, *sample) for tar, entry in zip(tars, entries, strict=True) for sample in entry["left_out"]]
    return IndexResult(manifest, num_read, tuple(left_out), sum(entry["ignored"] for entry in entries))


def _cached_or_read(
    job: _Job, tars: list[TarToIndex], num_workers: int, quiet: bool, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], int]:
    """The cache entry of each tar, of an earlier run or from reading it now; and how many were read."""
    # Entries made under another rule of labels say nothing about this one.
    rule_id = hashlib.sha256(repr((GRAMMAR, job.rule, job.leave_out)).encode()).hexdigest()[:16]
    sizes = {tar.url: _checked_size(tar) for tar in tars}
    entries: dict[int, dict[str, Any]] = {}
    for i, tar in enumerate(tars):
        entry = _read_entry(job, i, tar, sizes[tar.url], rule_id)
        if entry is not None:
            entries[i] = entry
    if entries:
        there = counted(len(tars), "tar is", "tars are")
        say(f"resuming: {len(entries):,} of {there} indexed already and not changed since")
    missing = [i for i in range(len(tars)) if i not in entries]
    with Progress("indexing", len(missing), "tar", quiet=quiet) as progress:
        for i, entry in _index_all(job, tars, missing, sizes, num_workers):
            entry["rule"] = rule_id
            entry["labels"] = {
                **{name: getattr(job.rule, name) for name in RULE_FIELDS},
                "named": bool(job.rule.classes),
            }
            write_bytes(_entry_url(job, i, tars[i].url), json.dumps(entry).encode())
            entries[i] = entry
            progress.advance(1, sizes[tars[i].url])
    return [entries[i] for i in range(len(tars))], len(missing)


def _check_entries(tars: list[TarToIndex], entries: list[dict[str, Any]], limit: int | None, where: str) -> None:
    """Compare what tars hold with what files beside them say, and with the number of classes, where that is known."""
    for tar, entry in zip(tars, entries, strict=True):
        _check_count(tar, entry["shard"]["num_samples"] + len(entry["left_out"]))
        if limit is not None and entry["max_label"] >= limit:
            raise DataError(
                f"{redact(tar.url)}: sample {entry['max_label_key']!r} has label {entry['max_label']}, but there are "
                f"{counted(limit, 'class', 'classes')}; mend it, or give --num-classes"
            )
    count = sum(entry["shard"]["num_samples"] for entry in entries)
    check_pairs(where, count if all(entry["pairs"] for entry in entries) else 0, limit)


def _checked_size(tar: TarToIndex) -> int:
    size = file_size(tar.url)
    if tar.num_bytes is not None and tar.num_bytes != size:
        raise DataError(
            f"{redact(tar.url)}: has {size:,} bytes, {tar.source} says {tar.num_bytes:,}: one was changed after "
            f"the other; copy the tar again, or index it without that list"
        )
    return size


def _check_count(tar: TarToIndex, count: int) -> None:
    if tar.num_samples is not None and tar.num_samples != count:
        raise DataError(
            f"{redact(tar.url)}: holds {count:,} samples, {tar.source} says {tar.num_samples:,}: one was changed "
            f"after the other; copy the tar again, or mend or remove that file"
        )


def _relative(url: str, base: str) -> str:
    """`url` as the manifest in `base` says it: relative where it lies below, absolute elsewhere."""
    if base and url.startswith(f"{base}/"):
        return url[len(base) + 1 :]
    if split_url(url)[0] or url.startswith("/"):
        return url
    return url if not base else str(local_path(url).absolute())


def _file_name(i: int, url: str) -> str:
    return f"{i:06d}-{url_name(url).removesuffix('.tar')}"


def _entry_url(job: _Job, i: int, url: str) -> str:
    return join_url(job.folder, f"{_file_name(i, url)}.json")


def _stamp(url: str) -> str:
    """What changes when a file is written again: the time on a disk, the store's tag."""
    if not is_remote(url):
        return str(local_path(url).stat().st_mtime_ns)
    with explained(url, "read"):
        system, path = file_system(url)
        info = system.info(path)
    return str(info.get("ETag") or info.get("LastModified") or "")


def _read_entry(job: _Job, i: int, tar: TarToIndex, size: int, rule_id: str) -> dict[str, Any] | None:
    url = _entry_url(job, i, tar.url)
    if not exists(url):
        return None
    try:
        entry = decode_entry(read_bytes(url))
        same = (entry["shard"]["num_bytes"], entry["rule"]) == (size, rule_id)
        # However it is spelled: a URL may be signed anew.
        same = same and identity(entry["tar"]) == identity(tar.url) and entry["stamp"] == _stamp(tar.url)
        index = join_url(parent_url(job.folder), entry["shard"]["index_url"])
        return entry if same and exists(index) else None
    except DamagedError:
        # The tar is read again.
        return None


def decode_entry(content: bytes) -> dict[str, Any]:
    """A cache entry out of its file.

    Raises:
        DamagedError: it is not what was written.
    """
    entry: dict[str, Any] = parse_json(content)
    for name, (check, wanted) in _ENTRY.items():
        required(entry, name, check, wanted)
    # The tar's own URL stands in the entry, the manifest's way of saying it is found anew each time.
    decode_shard({**entry["shard"], "url": entry["tar"]})
    if len(entry["left_out"]) > entry["shard"]["num_bytes"] // BLOCK or entry["max_labels"] > max(
        1, entry["max_label"] + 1
    ):
        raise DamagedError("left_out or max_labels: more than the tar can hold")
    return entry


def _index_one(job: _Job, i: int, url: str) -> dict[str, Any]:
    # Before the tar is read: one that is changed meanwhile is read again the next time.
    stamp = _stamp(url)
    scan = scan_tar(url, job.rule, leave_out=job.leave_out)
    content = encode_index(scan.index)
    index_url = f"{job.folder.rpartition('/')[2]}/{_file_name(i, url)}.idx.npz"
    index_url = write_index(parent_url(job.folder), index_url, content, replaces=job.replaces)
    labels, weights, ends = scan.index.labels, scan.index.label_weights, scan.index.label_ends.tolist()
    lengths = [b - a for a, b in zip([0, *ends], ends, strict=False)]
    largest = int(labels.argmax()) if len(labels) else -1
    owner = next((s for s, end in enumerate(ends) if end > largest), 0)
    shard = Shard("", scan.index.num_samples, scan.num_bytes, scan.checksum, index_url, checksum(content))
    return {
        "tar": url,
        "stamp": stamp,
        "shard": asdict(shard),
        "left_out": scan.left_out,
        "ignored": scan.ignored,
        "max_labels": max(lengths, default=0),
        "pairs": set(lengths) <= {2} and largest >= 0 and int(labels[largest]) == 1 and bool(np.all(weights == 1)),
        "max_label": int(labels[largest]) if len(labels) else -1,
        "max_label_key": scan.index.key(owner) if len(labels) else "",
    }


def _index_all(
    job: _Job, tars: list[TarToIndex], missing: list[int], sizes: dict[str, int], num_workers: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    num_bytes = sum(sizes[tars[i].url] for i in missing)
    processes = workers.num_processes(num_workers, len(missing), num_bytes=num_bytes)
    if processes == 1:
        for i in missing:
            yield i, _index_one(job, i, tars[i].url)
        return
    tasks = ((i, tars[i].url) for i in missing)
    for (i, _), entry in workers.run(_index_task, tasks, processes, values={"job": job}):
        yield i, entry


def _index_task(task: tuple[int, str]) -> dict[str, Any]:
    return _index_one(workers.shared("job"), *task)
