"""Lists of keys that are not read any more: what their lines mean, and what a run that has begun holds to. No torch.

A line is a key, or the name of a set of a mixture, a tab and a key, as `vit-dist data order` prints them. A key means
every sample of that name, in all shards. From which position on a key counts is fixed when it is first given, so that
what lies before replays as it was.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np

from vit_dist.core.errors import ConfigError
from vit_dist.core.files import redact
from vit_dist.core.log import WARNING, log
from vit_dist.core.text import read_text
from vit_dist.core.units import counted
from vit_dist.data.index import IndexedSample, build_index
from vit_dist.data.members import IMAGE_EXTENSIONS
from vit_dist.data.pack.items import safe_key
from vit_dist.data.sets import Part, Parts
from vit_dist.data.subset import key_hashes

_SHOWN = 5


class TakenDown(NamedTuple):
    """One line of a list, as a stream that goes on holds to it.

    Attributes:
        line: as it was given.
        position: the first one at which its samples are left out.
        ordinals: of its samples in the training set; none where it has no such key.
    """

    line: str
    position: int
    ordinals: tuple[int, ...]


def dump_taken(taken: Iterable[TakenDown]) -> list[list[Any]]:
    """As plain data."""
    return [[line, position, list(ordinals)] for line, position, ordinals in taken]


def load_taken(raw: Iterable[Sequence[Any]]) -> tuple[TakenDown, ...]:
    """Read what `dump_taken` wrote."""
    return tuple(TakenDown(line, position, tuple(ordinals)) for line, position, ordinals in raw)


def left_out(taken: Iterable[TakenDown]) -> dict[int, int]:
    """Ordinals that are left out, each with the first position at which it is."""
    found: dict[int, int] = {}
    for one in taken:
        for ordinal in one.ordinals:
            found[ordinal] = min(one.position, found.get(ordinal, one.position))
    return found


def summary(taken: Sequence[TakenDown]) -> dict[str, Any]:
    """For the log: how many keys, how many samples of them, and how many keys from each position on."""
    since: dict[str, int] = {}
    for one in taken:
        since[str(one.position)] = since.get(str(one.position), 0) + 1
    return {"keys": len(taken), "examples": len(left_out(taken)), "keys_since_position": since}


def read_lines(url: str) -> tuple[str, ...]:
    """The lines of a list, each once, without empty ones; () for ''.

    Raises:
        DataError: it cannot be read, or is not text.
    """
    # Not splitlines, which cuts at more than ends of lines: keys may hold any letter.
    lines = (line.removesuffix("\r") for line in read_text(url).split("\n")) if url else ()
    return tuple(dict.fromkeys(line for line in lines if line.strip()))


def hold(url: str, lines: tuple[str, ...]) -> None:
    """Take these for the lines of a list from now on, in this process."""
    _held[url] = lines


def held_lines(url: str) -> tuple[str, ...]:
    """The lines of a list: those that are held, or else those that are there now, which are held then."""
    if url not in _held:
        _held[url] = read_lines(url)
    return _held[url]


_held: dict[str, tuple[str, ...]] = {}


def taken_in(url: str, parts: Parts) -> Mapping[str, tuple[int, ...]]:
    """What the lines of a list mean in some sets: see `find`. Looked up once, and kept."""
    if not url:
        return {}
    # Not by the parts themselves: arrays have no hash.
    lines = held_lines(url)
    key = (lines, *((part.name, part.first_ordinal, part.manifest.fingerprint) for part in parts))
    if key not in _looked_up:
        _looked_up[key] = find(lines, parts)
    return _looked_up[key]


_looked_up: dict[tuple[object, ...], Mapping[str, tuple[int, ...]]] = {}


def find(lines: Sequence[str], parts: Parts) -> dict[str, tuple[int, ...]]:
    """The samples that lines name: their ordinals among all parts, ascending; () for a line that names none.

    Reads the indexes of all shards, unless there are no lines.

    Raises:
        DataError: an index cannot be read.
    """
    found: dict[str, list[int]] = {line: [] for line in lines}
    for part in parts if lines else ():
        wanted = {key: line for line in lines for key in _keys(line, part)}
        for key, ordinal in _samples(wanted, part) if wanted else ():
            # A bare key and one with the set's name may both mean it.
            for line in {key, f"{part.name}\t{key}"} & found.keys():
                found[line].append(ordinal)
    return {line: tuple(sorted(ordinals)) for line, ordinals in found.items()}


def _keys(line: str, part: Part) -> list[str]:
    """The key that a line means in a part; none where it is of another one."""
    name, tab, key = line.partition("\t")
    return [line] if not tab else [key] if name == part.name else []


def _samples(wanted: Iterable[str], part: Part) -> Iterable[tuple[str, int]]:
    """The samples with these keys in all shards of a part's manifest: key and ordinal each."""
    keys = sorted(set(wanted))
    hashes = np.unique(key_hashes(build_index([IndexedSample(key, 0, 0, 0, ()) for key in keys], 0), 0))
    known = set(keys)
    for shard in range(len(part.manifest.shards)):
        index = part.manifest.read_index(shard)
        # Hashes find the few among the many; two keys may share one.
        for sample in np.flatnonzero(np.isin(key_hashes(index, 0), hashes)).tolist():
            key = index.key(sample)
            if key in known:
                yield key, part.ordinal(shard, sample)


def spelt(lines: Sequence[str], *sets: Parts) -> dict[str, str]:
    """Of lines that name no sample: those that do in another spelling, each with that.

    A key is the name of a file without its extension, with %XX for what is not plain (`safe_key`); people write the
    file's own name. Reads the indexes of all shards, unless there are no lines.

    Raises:
        DataError: an index cannot be read.
    """
    forms = {line: _spellings(line) for line in lines}
    wanted = list(dict.fromkeys(form for tried in forms.values() for form in tried))
    known = {form for parts in sets for form, ordinals in find(wanted, parts).items() if ordinals}
    first = {line: next((form for form in tried if form in known), "") for line, tried in forms.items()}
    return {line: form for line, form in first.items() if form}


def _spellings(line: str) -> list[str]:
    """Lines by which the sample may be known that a line was meant for, the likeliest first."""
    name, tab, key = line.rpartition("\t")
    found = []
    # A name may hold a tab itself.
    for prefix, text in ((name + tab, key), ("", line)):
        plain = text.strip().removeprefix("./")
        stem, _, extension = plain.rpartition(".")
        for one in (text, plain, *([stem] if extension.lower() in IMAGE_EXTENSIONS else [])):
            # Two systems of files write an umlaut in two ways. Tars that others have made hold names as they are.
            composed = (one, unicodedata.normalize("NFC", one), unicodedata.normalize("NFD", one))
            found += [prefix + form for form in (*map(safe_key, composed), *composed, unquote(one))]
    return [form for form in dict.fromkeys(found) if form != line]


def hint(line: str, meant: Mapping[str, str]) -> str:
    """ ", did you mean ...?" of a line that `spelt` has found, else ''."""
    return f", did you mean {meant[line]!r}?" if line in meant else ""


def new_lines(
    known: Sequence[TakenDown], url: str, parts: Parts, *, beside: Parts | None = None
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """What the lines of a list mean that are new, and which of them name nothing at all.

    Args:
        known: what was left out before.
        url: of the list; '': none.
        parts: of the training set.
        beside: further sets in which a key may be, such as that of validation.

    Returns:
        The samples of each new line, see `find`; those of no set.

    Raises:
        ConfigError: the list lacks something that was left out before, leaves nothing to train on, or names samples in
            another spelling than that of keys.
        DataError: it cannot be read, or an index.
    """
    lines = held_lines(url)
    refuse_forgetting(known, url)
    before = {one.line for one in known}
    new = [line for line in lines if line not in before]
    if not new:
        return {}, []
    # Asked before an attempt begins, and by it: indexes of a large set take minutes.
    asked = (url, lines, tuple(known), _which(parts), _which(beside or ()))
    if asked not in _meant:
        _meant[asked] = _meaning(new, known, url, parts, beside)
    return _meant[asked]


_meant: dict[tuple[object, ...], tuple[dict[str, tuple[int, ...]], list[str]]] = {}


def _which(parts: Iterable[Part]) -> tuple[object, ...]:
    # Not by the parts themselves: arrays have no hash.
    return tuple((part.name, part.first_ordinal, part.manifest.fingerprint, part.subset.num_samples) for part in parts)


def _meaning(
    new: Sequence[str], known: Sequence[TakenDown], url: str, parts: Parts, beside: Parts | None
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    found = find(new, parts)
    elsewhere = find([line for line in new if not found[line]], beside) if beside is not None else {}
    unknown = [line for line in new if not found[line] and not elsewhere.get(line)]
    meant = spelt(unknown, parts, *([beside] if beside is not None else []))
    if meant:
        # Kept as keys of no sample they would let the images be trained on.
        shown = "; ".join(f"{line!r}{hint(line, meant)}" for line in list(meant)[:_SHOWN])
        raise ConfigError(
            f"data.takedown={redact(url)}: {len(meant)} of {counted(len(new), 'new key names', 'new keys name')} "
            f"images of this run in another spelling: {shown}{' ...' if len(meant) > _SHOWN else ''} Keys are names of "
            f"files without extension, with %XX for what is not plain; write them so, as `vit-dist data order` prints "
            f"them"
        )
    ordinals = left_out((*known, *(TakenDown(line, 0, found[line]) for line in new)))
    for part in parts:
        last, wanted = part.first_ordinal + part.manifest.num_samples, part.subset.num_samples
        own = [ordinal for ordinal in ordinals if part.first_ordinal <= ordinal < last]
        if len(own) >= wanted and sum(part.place(ordinal) is not None for ordinal in own) == wanted:
            raise ConfigError(
                f"data.takedown={redact(url)}: names every sample of the set {part.name or part.manifest.name!r}; "
                f"nothing is left to read"
            )
    return found, unknown


def extended(
    known: Sequence[TakenDown], url: str, parts: Parts, position: int, *, beside: Parts | None = None
) -> tuple[TakenDown, ...]:
    """What is left out from now on: what was before, and the lines of the list that are new.

    Args:
        known: before.
        url: of the list; '': none.
        parts: of the training set.
        position: from which the new ones count.
        beside: further sets in which a key may be, such as that of validation.

    Raises:
        ConfigError, DataError: as `new_lines`.
    """
    new, unknown = new_lines(known, url, parts, beside=beside)
    if not new:
        return tuple(known)
    if unknown:
        log(
            f"  data.takedown={redact(url)}: {len(unknown)} of {counted(len(new), 'new key is', 'new keys are')} in no "
            f"set of this run: {_shown(unknown)}; what names nothing is kept, and leaves nothing out. "
            "`vit-dist data order` prints keys",
            WARNING,
        )
    examples = sum(map(len, new.values()))
    log(
        f"  takedown: {counted(len(new), 'key')}, {counted(examples, 'sample')} of the training set, "
        f"from position {position:,} on"
    )
    return (*known, *(TakenDown(line, position, ordinals) for line, ordinals in new.items()))


def refuse_forgetting(known: Sequence[TakenDown], url: str) -> None:
    """Refuse a list that lacks what was left out before.

    Raises:
        ConfigError: it does.
    """
    lines = set(held_lines(url))
    lost = [one for one in known if one.line not in lines]
    if lost:
        given = f"data.takedown={redact(url)} lacks" if url else "no data.takedown is given that has"
        raise ConfigError(
            f"{given} {len(lost)} of the {counted(len(known), 'key')} that were taken down before, from position "
            f"{lost[0].position:,} on: {_shown([one.line for one in lost])}; what was taken down is not read again. "
            f"Give a list with these lines too"
        )


def _shown(lines: Sequence[str]) -> str:
    more = ", ..." if len(lines) > _SHOWN else ""
    return ", ".join(repr(line) for line in lines[:_SHOWN]) + more
