"""Which tars URLs name, and what files beside them say of their samples. No torch.

Used are the shard list of `wids`, and the sample counts of open_clip's `sizes.json`, timm's `_info.json`, img2dataset's
`*_stats.json` and DALI's wds2idx files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vit_dist.core.errors import DataError
from vit_dist.core.files import is_remote, join_url, parent_url, read_bytes, redact, url_name
from vit_dist.core.small_files import DamagedError, checked, is_count, is_name, is_text, or_none, parse_json, required
from vit_dist.data.names import is_directory, named, names_in, refuse_twice
from vit_dist.data.splits import choose_urls


@dataclass(frozen=True)
class TarToIndex:
    """One tar: its URL, and the samples and bytes that a file beside it says it has, with that file's name."""

    url: str
    num_samples: int | None = None
    num_bytes: int | None = None
    source: str = ""


def find_tars(urls: Sequence[str], split_name: str = "") -> list[TarToIndex]:
    """The tars that URLs name, in their order.

    A URL is a tar, a pattern with {000..123} or {a,b}, one with * or ?, a directory (its *.tar), or the JSON shard list
    of `wids`; see names.py. Hidden files (`._0.tar`) are left out, as shells do.

    Args:
        urls: as the user wrote them.
        split_name: of the split, where names of tars speak of several.

    Raises:
        DataError: nothing there, or a tar named twice.
        ConfigError: a directory or pattern with tars of several splits.
    """
    tars: list[TarToIndex] = []
    for given in urls:
        found = [tar for url in named(given) for tar in _resolve(url)]
        # Braces and lists name each tar; a directory or a * takes what is there.
        if split_name or (len(found) > 1 and "{" not in given and not url_name(given).endswith(".json")):
            chosen = set(choose_urls(given, [tar.url for tar in found], split_name))
            found = [tar for tar in found if tar.url in chosen]
        tars += found
    refuse_twice([tar.url for tar in tars])
    return _with_counts(tars)


def _resolve(url: str) -> list[TarToIndex]:
    if url_name(url).endswith(".json"):
        return _from_wids(url)
    if is_tar_name(url_name(url)) and is_remote(url):
        return [TarToIndex(url)]
    if is_directory(url):
        tars = [n for n in names_in(url) if is_tar_name(n)]
        if not tars:
            raise DataError(f"{redact(url)}: no .tar files in this directory")
        return [TarToIndex(join_url(url, n)) for n in tars]
    return [TarToIndex(url)]


def is_tar_name(name: str) -> bool:
    """Whether a file's name ends like a tar's, in letters of any case."""
    return name.lower().endswith(".tar")


def _from_wids(url: str) -> list[TarToIndex]:
    where = redact(url)
    try:
        raw = checked(parse_json(read_bytes(url)), {"base": or_none(is_text)})
        listed = required(raw, "shardlist", lambda value: isinstance(value, list), "a list of shards")
        base = raw.get("base") or parent_url(url)
        tars = [_listed(number, record, base, f"{where} (wids)") for number, record in enumerate(listed)]
    except DamagedError as error:
        raise DataError(f"{where}: not a shard list of wids, or damaged: {error}") from None
    if not tars:
        raise DataError(f"{where}: a shard list without shards")
    return tars


def _listed(number: int, record: Any, base: str, source: str) -> TarToIndex:
    try:
        url = required(record, "url", is_name, "the URL of a tar")
        checked(record, dict.fromkeys(("nsamples", "filesize"), or_none(is_count)))
    except DamagedError as error:
        raise DamagedError(f"shardlist[{number}].{error}") from None
    return TarToIndex(join_url(base, url), record.get("nsamples"), record.get("filesize"), source)


def _with_counts(tars: list[TarToIndex]) -> list[TarToIndex]:
    """Fill in the sample counts of files beside the tars."""
    folders: dict[str, dict[str, tuple[int, str]]] = {}
    filled = []
    for tar in tars:
        folder, name = parent_url(tar.url), url_name(tar.url)
        if folder not in folders:
            folders[folder] = _known_counts(folder)
        count, source = folders[folder].get(name, (None, ""))
        if tar.num_samples is None and count is not None:
            tar = TarToIndex(tar.url, count, tar.num_bytes, source)
        filled.append(tar)
    return filled


def _known_counts(folder: str) -> dict[str, tuple[int, str]]:
    try:
        names = set(names_in(folder or "."))
    except DataError:
        # https:// has no listing; there is nothing beside the tars then.
        return {}
    counts: dict[str, tuple[int, str]] = {}
    for name in sorted(names):
        if name in {"sizes.json", "_info.json", "info.json"} or name.endswith("_stats.json"):
            counts.update(_counts_in_json(join_url(folder, name), name))
        elif name.endswith(".idx") and f"{name[:-4]}.tar" in names:
            first = read_bytes(join_url(folder, name))[:100].split(b"\n")[0].split()
            if len(first) == 2 and first[0].startswith(b"v1") and first[1].isdigit():
                counts[f"{name[:-4]}.tar"] = (int(first[1]), f"{name} (wds2idx)")
    return counts


def _counts_in_json(url: str, name: str) -> Iterator[tuple[str, tuple[int, str]]]:
    try:
        raw = parse_json(read_bytes(url))
        if name.endswith("_stats.json"):  # img2dataset
            yield name.replace("_stats.json", ".tar"), (_count(raw["successes"]), name)
        elif name == "sizes.json":  # open_clip
            for tar, count in raw.items():
                yield tar, (_count(count), name)
        else:  # timm
            for split in raw.get("splits", {}).values():
                lengths = split.get("shard_lengths") or []
                for tar, count in zip(split.get("filenames", []), lengths, strict=False):
                    yield str(tar), (_count(count), name)
    except (ValueError, KeyError, TypeError, AttributeError):
        # Some other file of this name.
        return


def _count(value: Any) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if not is_count(value):
        raise ValueError(f"{value!r} counts no samples")
    return int(value)
