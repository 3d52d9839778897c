"""Which class of ILSVRC2012 has which number. No torch.

The rule: a class is its WordNet id, such as n01440764, and classes are numbered from 0 in the sorted order of these
ids: as a folder with a directory a class is, and as published models count them. The devkit has another order, its
ILSVRC2012_ID from 1, in which the ground truth of the validation set is written: it is translated by the devkit's own
table. A list of the ids (--classes) gives them another order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from vit_dist.core.errors import DataError
from vit_dist.data.pack.published.files import Files, Place, lines, matlab, shown

WNID = re.compile(r"n\d{8}")
_TABLES = "meta.mat of the devkit (ILSVRC2012_devkit_t12.tar.gz), or map_clsloc.txt"


def ids_of_devkit(files: Files) -> tuple[Mapping[int, str], Place] | None:
    """ILSVRC2012_ID -> WordNet id, of the classes that images have, and where it stands; None where nothing says it.

    Raises:
        DataError: a table is damaged.
    """
    for name, read in (("meta.mat", _of_matlab), ("map_clsloc.txt", _of_text)):
        place = files.find(name)
        if place is not None:
            found = read(place)
            if not found or len(set(found.values())) != len(found):
                raise DataError(f"{place.where}: names no classes, or one twice; fetch it again")
            return found, place
    return None


def _of_matlab(place: Place) -> dict[int, str]:
    """synsets, a struct a class: inner nodes of WordNet's tree, which no image has, have children."""
    synsets = np.atleast_1d(matlab(place, "synsets")["synsets"])
    fields = synsets.dtype.names or ()
    lacking = [name for name in ("ILSVRC2012_ID", "WNID", "num_children") if name not in fields]
    if lacking:
        raise DataError(f"{place.where}: synsets has no {', '.join(lacking)}; is it of ILSVRC2012?")
    found = {}
    for row in synsets:
        if int(row["num_children"]) == 0:
            found[int(row["ILSVRC2012_ID"])] = _checked(str(row["WNID"]), place.where)
    return found


def _of_text(place: Place) -> dict[int, str]:
    """A line a class: WordNet id, ILSVRC2012_ID, a name."""
    found = {}
    for number, line in enumerate(lines(place), 1):
        words = line.split()
        if len(words) < 2 or not words[1].isdecimal():
            raise DataError(f"{place.where}:{number}: expected 'n02119789 1 NAME', got {line[:60]!r}")
        found[int(words[1])] = _checked(words[0], f"{place.where}:{number}")
    return found


def _checked(wnid: str, where: str) -> str:
    if not WNID.fullmatch(wnid):
        raise DataError(f"{where}: {wnid[:60]!r} is no WordNet id such as n01440764")
    return wnid


def classes_of(files: Files, given: Sequence[str]) -> tuple[str, ...]:
    """The classes in the order of their numbers: those given, else those of the devkit or of a list; () for none.

    Raises:
        DataError: a table is damaged.
    """
    if given:
        return tuple(given)
    devkit = ids_of_devkit(files)
    if devkit is not None:
        return tuple(sorted(devkit[0].values()))
    place = files.find("LOC_synset_mapping.txt")
    if place is None:
        return ()
    return tuple(sorted(_checked(line.split()[0], place.where) for line in lines(place) if line))


def truth_of(files: Files, given: Sequence[str]) -> tuple[dict[int, str], tuple[str, ...], Place]:
    """The class of each validation image by its number from 1; all classes in order; where the truth stands.

    Raises:
        DataError: no ground truth, or one that nothing translates; a label that is none.
    """
    solution = files.find("LOC_val_solution.csv")
    place = files.find("ILSVRC2012_validation_ground_truth.txt")
    if place is None and solution is None:
        raise DataError(
            f"{files.where}: ILSVRC2012_validation_ground_truth.txt is missing, which says the images' classes; it is "
            f"in ILSVRC2012_devkit_t12.tar.gz (LOC_val_solution.csv serves too): put it beside the images"
        )
    if place is None:
        assert solution is not None
        truth = _of_kaggle(solution)
        place = solution
    else:
        truth = _of_ids(files, place)
    classes = classes_of(files, given) or tuple(sorted(set(truth.values())))
    unknown = sorted(set(truth.values()) - set(classes))
    if unknown:
        raise DataError(
            f"{place.where}: {len(unknown):,} classes that are not among the {len(classes):,} of the list: "
            f"{shown(unknown)}; --classes takes WordNet ids, one a line, in the order of their numbers"
        )
    return truth, classes, place


def _of_ids(files: Files, place: Place) -> dict[int, str]:
    labels = lines(place)
    if labels and all(WNID.fullmatch(label) for label in labels):
        return dict(enumerate(labels, 1))
    devkit = ids_of_devkit(files)
    if devkit is None:
        raise DataError(
            f"{place.where}: its labels are the devkit's numbers, which are not in the order of the training set's "
            f"classes; put {_TABLES}, beside it"
        )
    ids, table = devkit
    for number, label in enumerate(labels, 1):
        if not label.isdecimal() or int(label) not in ids:
            raise DataError(
                f"{place.where}:{number}: label {label[:40]!r} is out of range: {table.where} has the "
                f"{len(ids):,} classes {min(ids)} to {max(ids)}"
            )
    return {number: ids[int(label)] for number, label in enumerate(labels, 1)}


def _of_kaggle(place: Place) -> dict[int, str]:
    """ImageId,PredictionString: ILSVRC2012_val_00000001,n01440764 1 2 3 4"""
    truth = {}
    for number, line in enumerate(lines(place)[1:], 2):
        match = re.match(r"ILSVRC2012_val_(\d{8}),(n\d{8})\b", line)
        if match is None:
            raise DataError(
                f"{place.where}:{number}: expected 'ILSVRC2012_val_00000001,n01440764 ...', got {line[:60]!r}"
            )
        truth[int(match[1])] = match[2]
    return truth
