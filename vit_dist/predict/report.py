"""Predictions as a table, as CSV and as JSON, and accuracy class by class. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vit_dist.core.tables import columns, csv_text, to_lines
from vit_dist.core.units import counted

_WORST = 20


class Predicted(Protocol):
    """What is read of a prediction: see `run.Prediction`."""

    @property
    def image(self) -> str:
        """What it is called."""

    @property
    def top(self) -> tuple[tuple[int, float], ...]:
        """Classes and probabilities."""

    @property
    def labels(self) -> tuple[int, ...]:
        """Known classes."""

    @property
    def problem(self) -> str:
        """Why it could not be read."""

    @property
    def is_right(self) -> bool | None:
        """Whether the first class is a label."""


class Named(Protocol):
    """What is read of a model: see `classifier.Classifier`."""

    def name(self, number: int) -> str:
        """Of a class."""


@dataclass(frozen=True)
class Accuracy:
    """How many images with a known class there are, and of how many the first, or one of the top classes, is right.

    Attributes:
        by_class: number of a class -> images of it, and how many of them are right. An image of several counts in each.
        num_top: classes that were looked at for `in_top`.
    """

    images: int
    right: int
    in_top: int
    num_top: int
    by_class: Mapping[int, tuple[int, int]]

    @property
    def top1(self) -> float:
        """Fraction of the images whose most probable class is one of theirs."""
        return self.right / self.images

    def as_text(self) -> str:
        """In one line."""
        more = f", top-{self.num_top} {self.in_top / self.images:.4f}" if self.num_top > 1 else ""
        return f"top-1 {self.top1:.4f} ({self.right:,} of {counted(self.images, 'image')} of a known class{more})"


def accuracy(predictions: Sequence[Predicted]) -> Accuracy | None:
    """Over the images whose class is known and that could be read; None where there are none."""
    known = [p for p in predictions if p.is_right is not None]
    if not known:
        return None
    by_class: dict[int, tuple[int, int]] = {}
    for one in known:
        for label in one.labels:
            images, right = by_class.get(label, (0, 0))
            by_class[label] = (images + 1, right + bool(one.is_right))
    in_top = sum(any(number in p.labels for number, _ in p.top) for p in known)
    right = sum(bool(p.is_right) for p in known)
    return Accuracy(len(known), right, in_top, max(len(p.top) for p in known), dict(sorted(by_class.items())))


def table(predictions: Sequence[Predicted], model: Named) -> list[str]:
    """A line an image: what it is known to be, what it is taken for, and what else it may be."""
    rows = []
    for one in predictions:
        known = ", ".join(map(model.name, one.labels))
        if one.problem:
            rows.append((one.image, known, "", "", "", f"cannot be read: {one.problem}"))
            continue
        (first, chance), *others = one.top
        mark = {True: "right", False: "WRONG", None: ""}[one.is_right]
        rest = ", ".join(f"{model.name(number)} {value:.3f}" for number, value in others)
        rows.append((one.image, known, model.name(first), f"{chance:.3f}", mark, rest))
    heads = ("image", "known as", "prediction", "probability", "", "then")
    return to_lines(columns(rows, heads, right={"probability"}))


def class_table(found: Accuracy, model: Named, most: int = _WORST) -> list[str]:
    """A line a class, the least accurate first; of more than `most` the rest is counted."""
    ranked = sorted(found.by_class.items(), key=lambda entry: (entry[1][1] / entry[1][0], entry[0]))
    rows = [
        (model.name(n), f"{images:,}", f"{right:,}", f"{right / images:.4f}") for n, (images, right) in ranked[:most]
    ]
    lines = to_lines(columns(rows, ("class", "images", "right", "top-1"), right={"images", "right", "top-1"}))
    left = len(ranked) - most
    return [*lines, f"... and {counted(left, 'class')} that do better; --json has all"] if left > 0 else lines


def as_csv(predictions: Sequence[Predicted], model: Named, top: int) -> str:
    """A row an image: its name, the known classes, whether the first prediction is right, classes and probabilities."""
    heads = [
        "image",
        "known",
        "right",
        *(f"{what}_{i}" for i in range(1, top + 1) for what in ("class", "probability")),
    ]
    rows: list[list[object]] = [[*heads, "problem"]]
    for one in predictions:
        cells: list[object] = [cell for number, value in one.top for cell in (model.name(number), value)]
        cells += [None] * (2 * top - len(cells))
        right = None if one.is_right is None else int(one.is_right)
        rows.append([one.image, "|".join(map(model.name, one.labels)), right, *cells, one.problem])
    return csv_text(rows)


def as_json(predictions: Sequence[Predicted], model: Named, about: Mapping[str, Any]) -> str:
    """All there is: what the model is, each image, accuracy and that of each class."""
    found = accuracy(predictions)
    images: list[dict[str, Any]] = []
    for one in predictions:
        entry: dict[str, Any] = {"image": one.image}
        if one.labels:
            entry["known"] = [{"class": model.name(n), "number": n} for n in one.labels]
        if one.problem:
            images.append({**entry, "problem": one.problem})
            continue
        ranked = [{"class": model.name(n), "number": n, "probability": value} for n, value in one.top]
        images.append({**entry, **({} if one.is_right is None else {"right": one.is_right}), "predictions": ranked})
    told: dict[str, Any] = {**about, "images": images}
    if found is not None:
        by_class = [
            {"class": model.name(n), "number": n, "images": count, "right": right}
            for n, (count, right) in found.by_class.items()
        ]
        told["accuracy"] = {
            "images": found.images,
            "right": found.right,
            "top1": found.top1,
            f"top{found.num_top}": found.in_top / found.images,
            "classes": by_class,
        }
    return json.dumps(told, indent=1) + "\n"
