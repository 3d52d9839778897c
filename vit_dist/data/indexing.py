"""A manifest and sample indexes for tars that somebody else wrote; not a byte of them is copied or changed. No torch.

Each tar is read once. What lies beside the tars and tells of them is used: the shard list of `wids`; sample counts of
open_clip's `sizes.json`, timm's `_info.json`, img2dataset's `*_stats.json` and DALI's wds2idx files, which must agree
with what the tar holds. For each tar an index and a note of what was found are written beside the manifest, so that
a second run reads only the tars that are new or have changed.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vit_dist.core.errors import DataError
from vit_dist.core.files import (
    exists,
    explained,
    file_system,
    is_remote,
    join_url,
    local_path,
    parent_url,
    read_bytes,
    redact,
    write_bytes,
)
from vit_dist.core.progress import Progress
from vit_dist.data import workers
from vit_dist.data.index import encode_index
from vit_dist.data.labels import LabelRule
from vit_dist.data.manifest import Shard, ShardManifest, checksum, write_manifest
from vit_dist.data.scan import file_size, scan_tar


@dataclass(frozen=True)
class TarToIndex:
    """One tar: its URL, and the samples and bytes that some list says it has, with the list's name."""

    url: str
    num_samples: int | None = None
    num_bytes: int | None = None
    told_by: str = ""


@dataclass(frozen=True)
class IndexResult:
    """The manifest; how many tars were read anew; samples left out as (tar, key, offset, reason)."""

    manifest: ShardManifest
    num_read: int
    left_out: tuple[tuple[str, str, int, str], ...]
    ignored: int


def find_tars(urls: Sequence[str]) -> list[TarToIndex]:
    """The tars that URLs name, in their order.

    A URL is a tar, a pattern with {000..123} or {a,b}, one with * or ?, a directory (its *.tar), or the JSON shard list
    of `wids`.

    Raises:
        DataError: nothing there, or a tar named twice.
    """
    found: list[TarToIndex] = []
    for given in urls:
        for url in expand_braces(given):
            found += _resolve(url)
    seen: set[str] = set()
    for tar in found:
        if tar.url in seen:
            raise DataError(f"{redact(tar.url)}: named twice; each tar may stand once in a manifest")
        seen.add(tar.url)
    return _with_counts(found)


def expand_braces(text: str) -> list[str]:
    """Every text that a pattern with {000..123} or {a,b} stands for.

    Raises:
        DataError: the braces do not fit together.
    """
    from braceexpand import braceexpand

    try:
        return list(braceexpand(text)) if "{" in text else [text]
    except ValueError as error:
        raise DataError(f"{redact(text)}: {error}; write ranges as {{00000..01023}}") from None


def _resolve(url: str) -> list[TarToIndex]:
    name = url.rstrip("/").rpartition("/")[2]
    if name.endswith(".json"):
        return _from_wids(url)
    if any(c in name for c in "*?["):
        folder = parent_url(url)
        tars = [n for n in _names(folder or ".") if fnmatch.fnmatchcase(n, name)]
        if not tars:
            raise DataError(f"{redact(url)}: no file fits this pattern")
        return [TarToIndex(join_url(folder, n)) for n in tars]
    if _is_directory(url):
        tars = [n for n in _names(url) if n.endswith(".tar")]
        if not tars:
            raise DataError(f"{redact(url)}: no .tar files in this directory")
        return [TarToIndex(join_url(url, n)) for n in tars]
    return [TarToIndex(url)]


def _is_directory(url: str) -> bool:
    with explained(url, "listed"):
        if not is_remote(url):
            return local_path(url).is_dir()
        if url.endswith(".tar"):
            return False
        system, path = file_system(url)
        return bool(system.isdir(path))


def _names(folder: str) -> list[str]:
    with explained(folder, "listed"):
        if not is_remote(folder):
            return sorted(p.name for p in local_path(folder).iterdir())
        system, path = file_system(folder)
        return sorted(e.rstrip("/").rpartition("/")[2] for e in system.ls(path, detail=False))


def _from_wids(url: str) -> list[TarToIndex]:
    where = redact(url)
    try:
        raw = json.loads(read_bytes(url))
        shards = raw["shardlist"]
        base = raw.get("base") or parent_url(url)
        tars = [
            TarToIndex(join_url(base, s["url"]), s.get("nsamples"), s.get("filesize"), f"{where} (wids)")
            for s in shards
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}: not a shard list of wids: {type(error).__name__}: {error}") from None
    if not tars:
        raise DataError(f"{where}: a shard list without shards")
    return tars


def _with_counts(tars: list[TarToIndex]) -> list[TarToIndex]:
    """Fill in sample counts that files beside the tars tell."""
    folders: dict[str, dict[str, tuple[int, str]]] = {}
    filled = []
    for tar in tars:
        folder, _, name = tar.url.rpartition("/")
        if folder not in folders:
            folders[folder] = _told_counts(folder)
        count, told_by = folders[folder].get(name, (None, ""))
        if tar.num_samples is None and count is not None:
            tar = TarToIndex(tar.url, count, tar.num_bytes, told_by)
        filled.append(tar)
    return filled


def _told_counts(folder: str) -> dict[str, tuple[int, str]]:
    try:
        names = set(_names(folder or "."))
    except DataError:  # https:// has no listing; there is nothing beside the tars then
        return {}
    told: dict[str, tuple[int, str]] = {}
    for name in sorted(names):
        if name in {"sizes.json", "_info.json", "info.json"} or name.endswith("_stats.json"):
            told.update(_told_by_json(join_url(folder, name), name))
        elif name.endswith(".idx") and f"{name[:-4]}.tar" in names:
            first = read_bytes(join_url(folder, name))[:100].split(b"\n")[0].split()
            if len(first) == 2 and first[0].startswith(b"v1") and first[1].isdigit():
                told[f"{name[:-4]}.tar"] = (int(first[1]), f"{name} (wds2idx)")
    return told


def _told_by_json(url: str, name: str) -> Iterator[tuple[str, tuple[int, str]]]:
    try:
        raw = json.loads(read_bytes(url))
        if name.endswith("_stats.json"):  # img2dataset
            yield name.replace("_stats.json", ".tar"), (int(raw["successes"]), name)
        elif name == "sizes.json":  # open_clip
            for tar, count in raw.items():
                yield tar, (int(count), name)
        else:  # timm
            for split in raw.get("splits", {}).values():
                lengths = split.get("shard_lengths") or []
                for tar, count in zip(split.get("filenames", []), lengths, strict=False):
                    yield tar, (int(count), name)
    except (ValueError, KeyError, TypeError, AttributeError):
        return  # some other file of this name


@dataclass(frozen=True)
class _Job:
    folder: str
    rule: LabelRule
    leave_out: bool


def index_tars(
    urls: Sequence[str],
    out: str,
    *,
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
        shuffled: the tars' samples are known to lie in random order.
        rule: where labels stand.
        num_classes: of the label space; None: names of classes in the rule, or the largest label + 1.
        name: of the dataset; '' takes the manifest's.
        leave_out: leave samples without image or label out instead of refusing their tar.
        num_workers: processes.
        quiet: show no progress.
        say: called with lines for people.

    Raises:
        DataError: a tar is missing, damaged, or does not hold what is told of it; a label is outside the classes.
    """
    rule = rule or LabelRule()
    if not out.endswith(".json"):
        out = join_url(out, "manifest.json")
    tars = find_tars(urls)
    base, stem = parent_url(out), out.rpartition("/")[2].removesuffix(".json")
    job = _Job(join_url(base, f"{stem}.index"), rule, leave_out)
    notes, num_read = _notes(job, tars, num_workers, quiet, say)
    limit = num_classes if num_classes is not None else len(rule.classes) or None
    for tar, note in zip(tars, notes, strict=True):
        _check_note(tar, note, limit)
    manifest = ShardManifest(
        base=base,
        name=name or stem,
        shards=tuple(
            Shard(**{**n["shard"], "url": _relative(tar.url, base)}) for tar, n in zip(tars, notes, strict=True)
        ),
        shuffled=shuffled,
        num_classes=limit if limit is not None else max((n["max_label"] for n in notes), default=-1) + 1,
        classes=rule.classes,
        max_labels=max((1, *(n["max_labels"] for n in notes))),
    )
    if not manifest.num_samples:
        raise DataError(f"{redact(out)}: the {len(tars)} tars hold no samples with an image and a label")
    write_manifest(manifest, out)
    left_out = [(tar.url, *sample) for tar, n in zip(tars, notes, strict=True) for sample in n["left_out"]]
    return IndexResult(manifest, num_read, tuple(left_out), sum(n["ignored"] for n in notes))


def _notes(
    job: _Job, tars: list[TarToIndex], num_workers: int, quiet: bool, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], int]:
    """What is known of each tar, from an earlier run or by reading it now; and how many were read."""
    rule_id = hashlib.sha256(repr((job.rule, job.leave_out)).encode()).hexdigest()[:16]
    sizes = {tar.url: _checked_size(tar) for tar in tars}
    notes: dict[int, dict[str, Any]] = {}
    for i, tar in enumerate(tars):
        note = _read_note(job, i, tar, sizes[tar.url], rule_id)
        if note is not None:
            notes[i] = note
    if notes:
        say(f"going on: {len(notes):,} of {len(tars):,} tars are indexed already and have not changed")
    missing = [i for i in range(len(tars)) if i not in notes]
    with Progress("indexing", sum(sizes[tars[i].url] for i in missing) >> 20, "MiB", quiet=quiet) as progress:
        done = 0
        for i, note in _index_all(job, tars, missing, sizes, num_workers):
            note["rule"] = rule_id
            write_bytes(_note_url(job, i, tars[i].url), json.dumps(note).encode())
            notes[i] = note
            done += sizes[tars[i].url]
            progress.update(done >> 20)
    return [notes[i] for i in range(len(tars))], len(missing)


def _check_note(tar: TarToIndex, note: dict[str, Any], limit: int | None) -> None:
    """Hold what was found in a tar to what is told of it, and to the number of classes, where that is known."""
    _check_count(tar, note["shard"]["num_samples"] + len(note["left_out"]))
    if limit is not None and note["max_label"] >= limit:
        raise DataError(
            f"{redact(tar.url)}: sample {note['max_label_key']!r} has label {note['max_label']}, but there are "
            f"{limit} classes; mend it, or give --num-classes"
        )


def _checked_size(tar: TarToIndex) -> int:
    size = file_size(tar.url)
    if tar.num_bytes is not None and tar.num_bytes != size:
        raise DataError(
            f"{redact(tar.url)}: has {size:,} bytes, {tar.told_by} says {tar.num_bytes:,}: one was changed after the "
            f"other; copy the tar again, or index it without that list"
        )
    return size


def _check_count(tar: TarToIndex, found: int) -> None:
    if tar.num_samples is not None and tar.num_samples != found:
        raise DataError(
            f"{redact(tar.url)}: holds {found:,} samples, {tar.told_by} says {tar.num_samples:,}: one was changed "
            f"after the other; copy the tar again, or mend or remove that file"
        )


def _relative(url: str, base: str) -> str:
    """`url` as the manifest in `base` says it: relative where it lies below, absolute elsewhere."""
    if base and url.startswith(f"{base}/"):
        return url[len(base) + 1 :]
    if "://" in url or url.startswith("/"):
        return url
    return url if not base else str(local_path(url).absolute())


def _file_name(i: int, url: str) -> str:
    return f"{i:06d}-{url.rpartition('/')[2].partition('?')[0].removesuffix('.tar')}"


def _note_url(job: _Job, i: int, url: str) -> str:
    return join_url(job.folder, f"{_file_name(i, url)}.json")


def _stamp(url: str) -> str:
    """What changes when a file is written again: the time on a disk, the store's tag."""
    if not is_remote(url):
        return str(local_path(url).stat().st_mtime_ns)
    with explained(url, "read"):
        system, path = file_system(url)
        info = system.info(path)
    return str(info.get("ETag") or info.get("LastModified") or "")


def _read_note(job: _Job, i: int, tar: TarToIndex, size: int, rule_id: str) -> dict[str, Any] | None:
    url = _note_url(job, i, tar.url)
    if not exists(url):
        return None
    try:
        note: dict[str, Any] = json.loads(read_bytes(url))
        same = (note["tar"], note["shard"]["num_bytes"], note["rule"]) == (tar.url, size, rule_id)
        same = same and note["stamp"] == _stamp(tar.url)
        index = join_url(parent_url(job.folder), note["shard"]["index_url"])
        return note if same and exists(index) else None
    except (ValueError, KeyError, TypeError):
        return None


def _index_one(job: _Job, i: int, url: str) -> dict[str, Any]:
    stamp = _stamp(url)
    scan = scan_tar(url, job.rule, leave_out=job.leave_out)
    content = encode_index(scan.index)
    index_url = f"{job.folder.rpartition('/')[2]}/{_file_name(i, url)}.idx.npz"
    write_bytes(join_url(parent_url(job.folder), index_url), content)
    labels, ends = scan.index.labels, scan.index.label_ends.tolist()
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
    for (i, _), note in workers.run(_index_task, tasks, processes, values={"job": job}):
        yield i, note


def _index_task(task: tuple[int, str]) -> dict[str, Any]:
    return _index_one(workers.shared("job"), *task)
