"""Where two sets meet: a class is the one of the same name, whatever number each set gives it. No torch.

Sets without names have nothing but numbers: those are taken as they are, within the number of classes.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import exists, join_url, parent_url, redact
from vit_dist.data.grammar import class_name
from vit_dist.data.labels import LabelRule
from vit_dist.data.manifest import ShardManifest, read_manifest

_SHOWN = 5
_PACK_ALIKE = (
    "pack or index both with the names of all classes in one file, as `vit-dist data index --classes FILE` does"
)


@dataclass(frozen=True)
class Classes:
    """The classes of a set, of a head, or of weights.

    Attributes:
        what: whose they are, for messages.
        num_classes: how many.
        names: by number, as far as they have any.
    """

    what: str
    num_classes: int
    names: Mapping[int, str]

    @classmethod
    def listed(cls, what: str, num_classes: int, names: Sequence[str]) -> Classes:
        """Classes whose names stand in the order of their numbers; '' where there is none."""
        return cls(what, num_classes, {i: class_name(name) for i, name in enumerate(names) if name})

    @classmethod
    def of(cls, manifest: ShardManifest, what: str = "the set") -> Classes:
        """The classes of a manifest."""
        return cls.listed(f"{what} {manifest.name!r}", manifest.num_classes, manifest.classes)

    def listing(self) -> tuple[str, ...]:
        """The names in the order of their numbers, '' where there is none; () where there are none at all."""
        return tuple(self.names.get(i, "") for i in range(max(self.names) + 1)) if self.names else ()


def numbers_in(own: Classes, other: Classes, remedy: str = _PACK_ALIKE) -> tuple[int, ...] | None:
    """The other's number of each class of a set; None where the set's own numbers may stay.

    Args:
        own: the classes that are to be found.
        other: those among which they are found.
        remedy: what to do where they cannot be.

    Raises:
        ConfigError: names that the other does not have, or numbers that it does not know.
    """
    if not (own.names and other.names):
        _check_numbers(own, other, remedy)
        return None
    if all(other.names.get(i) == name for i, name in own.names.items()):
        _check_numbers(own, other, remedy)
        return None
    places = {name: number for number, name in other.names.items()}
    if any(name not in places for name in own.names.values()):
        _refuse(own, other, remedy)
    for classes in (own, other):
        name, times = Counter(classes.names.values()).most_common(1)[0]
        if times > 1:
            raise ConfigError(f"{classes.what} has {times} classes of the name {name!r}, so none can be found by it")
    if len(own.names) < own.num_classes:
        raise ConfigError(
            f"{own.what} names {len(own.names):,} of its {own.num_classes:,} classes and numbers them unlike "
            f"{other.what}, so that its others cannot be found there; {remedy}"
        )
    return tuple(places[own.names[i]] for i in range(own.num_classes))


def rows_in(own: Classes, names: Sequence[str], what: str, remedy: str) -> Sequence[int] | None:
    """Which rows of a head are the classes of a set; None where all rows are, in their order.

    Args:
        own: the classes of the set.
        names: of the head's classes; none where it does not say.
        what: the head, in words for errors.
        remedy: what to do where they cannot be found.

    Raises:
        ConfigError: as `numbers_in`.
    """
    found = numbers_in(own, Classes.listed(what, len(names), tuple(names)), remedy)
    if found is None and len(own.names) == own.num_classes < len(names):
        return range(own.num_classes)
    return found


def counted_as(manifest: ShardManifest, other: Classes, what: str = "the set", remedy: str = "") -> ShardManifest:
    """The manifest with labels as another set counts them: itself where the two agree.

    Raises:
        ConfigError: as `numbers_in`, or it has no labels.
    """
    if not manifest.num_classes:
        raise ConfigError(
            f"{what} {manifest.name!r} has no labels; index its tars by `vit-dist data index --labels EXT`"
        )
    numbers = numbers_in(Classes.of(manifest, what), other, remedy or _PACK_ALIKE)
    return manifest if numbers is None else manifest.renumbered(numbers, other.num_classes, other.listing())


def lay_out(
    sets: Mapping[str, tuple[ShardManifest, int]], num_classes: int
) -> tuple[dict[str, ShardManifest], dict[int, str]]:
    """The sets of a mixture with labels as their common head counts them, and the head's names by number.

    The set with the most names says what the numbers mean; sets with a label_offset lie where it says; the classes of
    all others are found among these by name.

    Args:
        sets: manifests and label offsets by the names of the parts.
        num_classes: of the head.

    Raises:
        ConfigError: two sets give one number to different classes, and no name tells where they belong.
    """
    own = {part: Classes.of(manifest, f"data.mixture.{part}: the set") for part, (manifest, _) in sets.items()}
    at_zero = sorted((p for p in sets if not sets[p][1]), key=lambda p: -len(own[p].names))
    names: dict[int, str] = dict(own[at_zero[0]].names) if at_zero else {}
    placed = {part: manifest for part, (manifest, _) in sets.items()}
    for part, (_, offset) in sets.items():
        for number, name in own[part].names.items() if offset else ():
            taken = names.setdefault(number + offset, name)
            if taken != name:
                raise ConfigError(
                    f"{own[part].what} with label_offset={offset} calls class {number + offset} {name!r}, another "
                    f"set calls it {taken!r}; give it a label_offset beyond the other sets' classes, or none"
                )
    head = Classes("the rest of the mixture", num_classes, names)
    remedy = f"{_PACK_ALIKE}, or give the set a label_offset, which makes its classes others than those of the rest"
    for part in at_zero[1:]:
        placed[part] = counted_as(placed[part], head, f"data.mixture.{part}: the set", remedy)
    return placed, names


def _check_numbers(own: Classes, other: Classes, remedy: str) -> None:
    """Whether a set's numbers can be taken as they are."""
    if own.num_classes > other.num_classes:
        raise ConfigError(
            f"{own.what} has {own.num_classes:,} classes, {other.what} {other.num_classes:,}: the labels from "
            f"{other.num_classes:,} on mean nothing there; {remedy}"
        )
    if bool(own.names) == bool(other.names):
        return
    named, bare = (own, other) if own.names else (other, own)
    for number, name in named.names.items():
        if name.isdecimal() and name.isascii() and int(name) != number:
            raise ConfigError(
                f"{named.what} calls class {number} {name!r}, {bare.what} gives numbers without names: is its class "
                f"{name} the one of this name, or number {name}? Index both anew by `vit-dist data index "
                f"--classes FILE`, whose names are no numbers"
            )


def _refuse(own: Classes, other: Classes, remedy: str) -> NoReturn:
    there, here = set(other.names.values()), set(own.names.values())
    unknown = [name for name in own.names.values() if name not in there]
    rest = [name for name in other.names.values() if name not in here]
    beside = f"; {other.what} has {_shown(rest)}, which it has not" if rest else ""
    clash = next((i for i, name in own.names.items() if other.names.get(i, name) != name), None)
    example = "" if clash is None else f" (class {clash} is {own.names[clash]!r} here, {other.names[clash]!r} there)"
    raise ConfigError(
        f"{own.what} has {_shown(unknown)}, which {other.what} has not{beside}{example}; no class is taken for another "
        f"one of its number: {remedy}"
    )


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = ", ..." if len(names) > _SHOWN else ""
    classes = "class" if len(names) == 1 else f"{len(names):,} classes"
    return f"the {classes} {', '.join(map(repr, names[:_SHOWN]))}{more}"


def names_beside(tars: Iterable[str], lists: Iterable[str], rule: LabelRule) -> tuple[str, ...]:
    """The names of the classes of tars: those that are given, or those of manifests that list the tars; else ().

    Args:
        tars: URLs of tars, beside which a `manifest.json` may lie.
        lists: other URLs, of which some are manifests.
        rule: where labels are read; elsewhere than packing writes them they are others than the manifests name.

    Raises:
        ConfigError: two manifests call one class differently.
    """
    if rule.classes or rule.field or rule.member not in {"auto", "cls"}:
        return rule.classes
    wanted = set(tars)
    places = [join_url(folder, "manifest.json") for folder in dict.fromkeys(parent_url(url) for url in wanted)]
    found: list[Classes] = []
    for url in dict.fromkeys([*sorted(places), *(url for url in lists if url.endswith(".json"))]):
        # No manifest there, a list of wids, or a store without listings.
        with contextlib.suppress(DataError):
            manifest = read_manifest(url) if exists(url) else None
            if manifest is not None and wanted & {manifest.shard_url(i) for i in range(len(manifest.shards))}:
                found.append(Classes.of(manifest, f"{redact(url)}: the set"))
    named = sorted((classes for classes in found if classes.names), key=lambda classes: -len(classes.names))
    for classes in named[1:]:
        clash = next((i for i, name in classes.names.items() if named[0].names.get(i) != name), None)
        if clash is not None:
            raise ConfigError(
                f"{classes.what} calls class {clash} {classes.names[clash]!r}, {named[0].what} "
                f"{named[0].names.get(clash, 'otherwise')!r}: index or pack each on its own and train on a mixture, "
                f"which finds classes by their names, or give `vit-dist data index` or `data pack` --classes FILE"
            )
    return named[0].listing() if named else ()
