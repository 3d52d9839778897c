"""The splits (train, validation, test) that names of files and folders speak of. No torch.

The names are those of the Hugging Face hub (https://huggingface.co/docs/hub/datasets-file-names-and-splits) and of
torchvision's folders.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence

from vit_dist.core.errors import ConfigError, did_you_mean
from vit_dist.core.files import redact, url_name

ALL = "all"
"""As --split-name: whatever the names say, take everything."""
_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
# train, train2017, training_set, test_images, split=val, val-split
_FOLDER = re.compile(
    rf"(?:split\s*[=_-]\s*)?({'|'.join(sorted(_WORDS, reverse=True))})[ _.-]?(?:set|split|data|images?|imgs?|\d+)?"
)
# What the hub writes: train-00000-of-00002, test-00000-of-00001-0123456789abcdef
_NUMBERED = re.compile(r"(.+?)-\d{5,}-of-\d{5,}(?:-[0-9a-f]+)?")


def split_of_folder(name: str) -> str:
    """'train', 'validation' or 'test' where a folder is named like a split; else ''."""
    match = _FOLDER.fullmatch(name.lower())
    return _WORDS[match[1]] if match else ""


def split_of_file(path: str) -> tuple[str, str]:
    """The split that the path of a file speaks of: as written, and as 'train', 'validation' or 'test'; each may be ''.

    Args:
        path: below the folder that was named, so that the folder's own name says nothing.
    """
    *folders, name = path.split("/")
    stem = name.rpartition(".")[0] or name
    numbered = _NUMBERED.fullmatch(stem)
    written = numbered[1] if numbered else ""
    for text in (written or stem, *reversed(folders)):
        words = [w for w in re.findall(r"[a-z]+", text.lower()) if w in _WORDS]
        if words:
            return written or words[-1], _WORDS[words[-1]]
    return written, ""


def choose_files(where: str, paths: Sequence[str], wanted: str) -> list[str]:
    """Those of some files that belong to one split: the one that is wanted, or the only one.

    Args:
        where: the folder that holds them, for people.
        paths: of the files, below it.
        wanted: as --split-name.

    Raises:
        ConfigError: they belong to several, and none is wanted; or there is none of this name.
    """
    if wanted == ALL:
        return list(paths)
    splits = {path: split_of_file(path) for path in paths}
    kinds = {kind or written for written, kind in splits.values()}
    if not wanted:
        if len(kinds) > 1 and any(kind for _, kind in splits.values()):
            raise _several(where, (kind or written for written, kind in splits.values()), "files")
        return list(paths)
    lowered = wanted.lower()
    exact = [path for path, (written, _) in splits.items() if written.lower() == lowered]
    chosen = exact or [p for p, (_, kind) in splits.items() if kind and kind == _WORDS.get(lowered)]
    if not chosen:
        raise _unknown(where, wanted, (written for written, _ in splits.values()))
    return chosen


def choose_urls(where: str, urls: Sequence[str], wanted: str) -> list[str]:
    """As `choose_files`, of the URLs of files that one folder or pattern named."""
    # Of texts, not of paths: they may be URLs.
    start = len(os.path.commonprefix(list(urls)).rpartition("/")[0])  # noqa: RUF071
    paths = {url[start:].lstrip("/") if len(urls) > 1 else url_name(url): url for url in urls}
    return [paths[path] for path in choose_files(where, list(paths), wanted)]


def choose_folder(where: str, splits: Iterable[str], wanted: str) -> str:
    """The name of the folder of one split: the one that is wanted, or the only one.

    Args:
        where: the folder that holds them, for people.
        splits: names of folders, all of which are named like splits.
        wanted: as --split-name.

    Raises:
        ConfigError: there are several, and none is wanted; or there is none, or more than one, of this name.
    """
    names = list(splits)
    if not wanted:
        if len(names) > 1:
            raise _several(where, names, "directories")
        return names[0]
    lowered = wanted.lower()
    exact = [name for name in names if name.lower() in {lowered, f"split={lowered}"}]
    chosen = exact or [name for name in names if split_of_folder(name) == _WORDS.get(lowered)]
    if len(chosen) != 1:
        raise _unknown(where, wanted, chosen or names)
    return chosen[0]


def splits_among(directories: Sequence[str], inside: Callable[[str], tuple[list[str], bool]]) -> list[str]:
    """Which directories hold splits rather than images of a class; [] where they are classes.

    A class may well be called 'test'. Directories are splits where all are named so, or where train and another one
    hold directories of the same names, and the others do not.

    Args:
        directories: their names.
        inside: of one of them, names of the directories in it, and whether images lie in it directly.
    """
    named = [name for name in directories if split_of_folder(name)]
    kinds = {split_of_folder(name) for name in named}
    if not named:
        return []
    if len(named) == len(directories):
        if len(kinds) > 1:
            return named
        # One alone, or train and training: what lies in a class is images.
        return [] if any(inside(name)[1] for name in named) else named
    if len(kinds) < 2 or "train" not in kinds:
        return []
    held = [inside(name) for name in named]
    if any(images or not below for below, images in held):
        return []
    common = set.intersection(*(set(below) for below, _ in held))
    others = (set(inside(name)[0]) for name in directories if name not in named)
    return named if common and not any(common & below for below in others) else []


def _several(where: str, kinds: Iterable[str], what: str) -> ConfigError:
    counts: dict[str, int] = {}
    for kind in kinds:
        counts[kind] = counts.get(kind, 0) + 1
    shown = [f"{kind} ({n})" if what == "files" else kind for kind, n in sorted(counts.items()) if kind]
    if "" in counts:
        shown.append(f"{counts['']} {what} whose names say nothing")
    classes = (
        f", or all of them with --split-name {ALL}" if what == "files" else " (are these classes? --format folder)"
    )
    if what == "directories":
        # A set each, with the classes numbered alike where both have all of them.
        names = [name for name in dict.fromkeys(kinds) if name]
        source = shlex.quote(redact(where))
        commands = "; ".join(
            f"vit-dist data pack {source} DEST/{shlex.quote(n)} --split-name {shlex.quote(n)}" for n in names[:4]
        )
        return ConfigError(
            f"{redact(where)}: holds several splits: {', '.join(shown)}. Taken together, what is kept for evaluation "
            f"would be trained on; pack each into a set of its own{classes}: {commands}"
        )
    return ConfigError(
        f"{redact(where)}: holds several splits: {', '.join(shown)}. Taken together, what is kept for evaluation "
        f"would be trained on; choose one with --split-name{classes}"
    )


def _unknown(where: str, wanted: str, names: Iterable[str]) -> ConfigError:
    known = sorted({name for name in names if name})
    if not known:
        return ConfigError(f"--split-name {wanted!r}: nothing in {redact(where)} is named like a split")
    return ConfigError(f"--split-name {wanted!r}: not one split of {redact(where)}{did_you_mean(wanted, known)}")
