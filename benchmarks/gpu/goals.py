"""What the figures should be: goals and predictions, from goals.csv. No torch."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vit_dist.core.devices import device_of


@dataclass(frozen=True)
class Expectation:
    """A line of goals.csv: what is expected of a figure. `*` and `?` stand for other characters.

    Attributes:
        device: of vit_dist.core.devices, where it depends on the device; else ''.
        stage, case, what, figure: which figure.
        goal: '>=1150' or '<=0.02'; '' where there is none.
        predicted: a number or a range, before any GPU had run it; '' where nothing was.
    """

    device: str
    stage: str
    case: str
    what: str
    figure: str
    goal: str
    predicted: str

    def is_of(self, line: Mapping[str, Any], figure: str) -> bool:
        """Whether it says something of this figure of a line of results.jsonl."""
        places = ((line["stage"], self.stage), (line["case"], self.case), (line.get("what", ""), self.what))
        return all(fnmatchcase(text, pattern) for text, pattern in (*places, (figure, self.figure)))

    def is_met(self, value: float) -> bool:
        """Whether a value meets the goal."""
        limit = float(self.goal[2:])
        return value >= limit if self.goal.startswith(">=") else value <= limit


def expectations(device: str) -> list[Expectation]:
    """Those that hold for a device, by the name that its driver gives it."""
    with Path(__file__).with_name("goals.csv").open(newline="") as file:
        listed = [Expectation(**row) for row in csv.DictReader(file)]
    known = device_of(device)
    return [e for e in listed if not e.device or (known is not None and known.name == e.device)]


def beside(line: Mapping[str, Any], expected: Sequence[Expectation]) -> tuple[str, str]:
    """The goals and the predictions of a line's figures, for people: ('images_per_s >=1150: missed', '950')."""
    goals, predictions = [], []
    for figure, value in line.get("figures", {}).items():
        for one in expected:
            if not one.is_of(line, figure):
                continue
            if one.goal:
                met = one.is_met(value)
                goals.append(f"{figure} {one.goal}: {'met' if met else '**missed**'}")
            if one.predicted:
                predictions.append(f"{figure} {one.predicted}")
    return "; ".join(goals), "; ".join(predictions)


def not_measured(lines: Sequence[Mapping[str, Any]], expected: Sequence[Expectation]) -> list[str]:
    """The goals of which no line has the figure."""
    lacking = []
    for one in expected:
        if one.goal and not any(one.is_of(line, figure) for line in lines for figure in line.get("figures", {})):
            words = (one.stage, one.case.strip("*"), one.what, one.figure)
            lacking.append(f"{' '.join(word for word in words if word)} {one.goal}")
    return lacking
