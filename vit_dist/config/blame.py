"""Who gave a key that is wrong: an override on the command line, or a line of a file; and which key was meant.

Asked when something is wrong, and not before. No torch.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import yaml

from vit_dist.config.safe_yaml import BoundedLoader
from vit_dist.core.errors import DataError, did_you_mean
from vit_dist.core.text import read_text
from vit_dist.core.urls import redact

ON_THE_COMMAND_LINE = "on the command line"
"""How the place of an override ends."""
_SHOWN = 80
_WRITTEN = "finetune.chosen."
"""Keys that a command writes, and nobody else gives."""
_NEAR, _NEAR_ELSEWHERE = 0.75, 0.82
"""How much a name has to be like one beside it, so that the same name elsewhere is not meant; and like one there."""
_OF_OTHERS = {
    "batch": "global_batch",
    "batch_size": "global_batch",
    "epochs": "horizon",
    "learning_rate": "optim.lr",
    "max_steps": "horizon",
    "steps": "horizon",
}
"""What other programs call a key of a recipe."""


class Sources:
    """Where what was read comes from.

    Args:
        where: what was read, where nothing more is known of a key: a file, a cell of a study.
        overrides: 'key=value' texts of the command line, which win; of two the later.
        files: in which keys may stand, the one that wins first.
        sections: files that hold what a section lacks, such as that of a dataset's name for 'data'.
    """

    def __init__(
        self,
        where: str,
        overrides: Iterable[str] = (),
        files: Sequence[Path] = (),
        sections: Mapping[str, Path] | None = None,
    ) -> None:
        self._where, self._overrides, self._files = where, tuple(overrides), tuple(files)
        self._sections = dict(sections or {})

    def of(self, path: str) -> str:
        """Where the value of a dotted path was given: 'optim.lr=x on the command line', 'r.yaml, line 3', 'r.yaml'."""
        parts = _parts(path)
        best, given = 0, ""
        for text in self._overrides:
            key = _parts(text.partition("=")[0])
            # Whoever names another plug-in takes the place of the whole section.
            if len(key) == 2 and key[1] == "name" and key != parts:
                key = key[:1]
            # A key, what lies in it, or the section that it lies in.
            shared = _shared(key, parts)
            if shared in (len(key), len(parts)) and shared and len(key) >= best:
                best, given = len(key), text
        if given:
            short = redact(given if len(given) <= _SHOWN else f"{given[: _SHOWN - 3]}...")
            return f"{short} {ON_THE_COMMAND_LINE}"
        depth, place = 0, self._where
        for file in self._files:
            lines = _lines(file)
            known = max((n for n in range(1, len(parts) + 1) if parts[:n] in lines), default=0)
            if known > depth:
                depth, place = known, f"{file}, line {lines[parts[:known]]}"
        file_below = self._sections.get(parts[0])
        if depth < len(parts) and file_below is not None and parts[1:] in (lines := _lines(file_below)):
            place = f"{file_below}, line {lines[parts[1:]]}"
        return place

    def blame(self, problem: str) -> str:
        """A problem, 'path: what is wrong with it', with where it comes from before it."""
        path, colon, _ = problem.partition(": ")
        return f"{self.of(path) if colon and ' ' not in path else self._where}: {problem}"


def _parts(path: str) -> tuple[str, ...]:
    return tuple(re.sub(r"\[(\w+)\]", r".\1", path.strip()).split("."))


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


def _lines(file: Path) -> dict[tuple[str, ...], int]:
    """Keys of a YAML file, each with its line, counted from 1; none where it cannot be read any more."""
    found: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node | None, path: tuple[str, ...]) -> None:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here = (*path, *_parts(str(key.value)))
                found[here] = key.start_mark.line + 1
                walk(value, here)
        elif isinstance(node, yaml.SequenceNode):
            for i, value in enumerate(node.value):
                found[*path, str(i)] = value.start_mark.line + 1
                walk(value, (*path, str(i)))

    try:
        walk(BoundedLoader(read_text(file)).get_single_node(), ())
    except (DataError, yaml.YAMLError):
        return {}
    return found


def key_hint(path: str, beside: Iterable[str], everywhere: Iterable[str]) -> str:
    """A hint for a key that does not exist: the same name elsewhere, the nearest beside it, or the nearest elsewhere.

    All are named in full, as an override or `config --explain` takes them.

    Args:
        path: dotted, as it was given.
        beside: the names that there are in its section.
        everywhere: dotted paths of all keys.
    """
    name, beside = _parts(path)[-1], list(beside)
    everywhere = [known for known in everywhere if not known.startswith(_WRITTEN)]
    like = difflib.get_close_matches(name.lower(), [one.lower() for one in beside], n=1, cutoff=_NEAR)
    by_name: dict[str, list[str]] = {}
    for known in dict.fromkeys(everywhere):
        by_name.setdefault(known.replace("[]", "").rpartition(".")[2].lower(), []).append(known)
    same = [known for known in by_name.get(name.lower(), []) if known != path]
    if not same and (not like or _ratio(name, like[0]) < _NEAR_ELSEWHERE):
        near = difflib.get_close_matches(name.lower(), by_name, n=1, cutoff=_NEAR_ELSEWHERE)
        other = _OF_OTHERS.get(name.lower(), "")
        same = [other] if other in everywhere else by_name[near[0]] if near else []
    # The nearest to the top first: a part of a mixture has keys of the whole set, too.
    same.sort(key=lambda known: known.count("."))
    section = path.removesuffix(name)
    if same and like:
        # One beside it that is like it, and one elsewhere that is more so, or has that very name.
        nearer = same if _ratio(name, same[0].rpartition(".")[2]) > _ratio(name, like[0]) else []
        found = next(one for one in beside if one.lower() == like[0])
        return _meant([section + found, *nearer])
    if same:
        return _meant(same)
    near_by = did_you_mean(name, beside)
    found_by = re.fullmatch(r"; did you mean '(.*)'\?", near_by)
    return _meant([section + found_by[1]]) if found_by else near_by


def _meant(keys: Sequence[str]) -> str:
    return f"; did you mean {' or '.join(repr(key) for key in keys[:3])}?"


def _ratio(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, other.lower(), one.lower()).ratio()
