"""Branches of one trunk are joined over their horizons: in a figure of their own, and in that of compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.unit.scaling.logged_runs import log_run
from vit_dist.scaling.collect import collect
from vit_dist.scaling.report.figures_branches import horizons_figure
from vit_dist.scaling.report.figures_compute import compute_figure
from vit_dist.scaling.results import Results, analyse
from vit_dist.scaling.summary import by_trunk

# {steps at its end: top-1} of the branches of each trunk; each left it 5 steps before its end.
TRUNKS = {"t0": {20: 0.5, 40: 0.6, 80: 0.7}, "t1": {20: 0.4, 40: 0.5}}


def lineage(name: str, step: int) -> list[dict[str, object]]:
    return [
        {
            "run": name,
            "recipe_hash": f"of-{name}",
            "step": step,
            "examples": step * 64,
            "digest": f"{name}-{step}",
            "macs_per_image": 1000,
        }
    ]


@pytest.fixture
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VIT_DIST_CACHE", str(tmp_path / "cache"))
    for seed, (name, ends) in enumerate(TRUNKS.items()):
        course = {10: 0.1, 40: 0.3, 80: 0.45}
        log_run(tmp_path / "logs", seed=seed, folder=name, recipe_hash=f"of-{name}", top1=course, step=80)
        for end, value in ends.items():
            branch(tmp_path / "logs", name, seed, end, value)
    return tmp_path / "logs"


def branch(logs: Path, name: str, seed: int, end: int, value: float, folder: str = "") -> None:
    log_run(
        logs, seed=seed, folder=f"{name}-{end}{folder}", recipe_hash=f"{name}{end}{folder}", step=end,
        top1={end: value}, planned_examples=end * 64, lineage=lineage(name, end - 5 - len(folder)),
    )  # fmt: skip


def points(line: Any) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in line.get_xydata()]


def results(logs: Path) -> Results:
    return analyse(collect(str(logs)))


def test_a_line_joins_the_branches_of_one_trunk_and_is_called_after_it(logs: Path) -> None:
    branch(logs, "t0", 0, 40, 0.55, "-worse")
    drawing = horizons_figure(results(logs))
    assert drawing is not None
    (axes,) = drawing.figure.axes
    drawn = {line.get_label(): dict(points(line)) for line in axes.lines if line.get_linestyle() == "-"}
    assert drawn == {
        name: {end * 64.0: pytest.approx(100 * value) for end, value in ends.items()} for name, ends in TRUNKS.items()
    }
    # The trunks on their way, from where the first branch ends; what was measured before that says nothing here.
    dotted = [[x for x, _ in points(line)] for line in axes.lines if line.get_linestyle() == ":"]
    assert dotted == [[40 * 64.0, 80 * 64.0]] * 2
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["t0", "t1"]
    assert drawing.caption == (
        "6 branches of 2 trunks, each where it has ended; a line joins those of one trunk, after which it is called. "
        "Of several with one horizon it goes through the best; open marks are the others. "
        "Dotted: the trunk itself, while it trained."
    )


def test_the_figure_of_compute_joins_them_too(logs: Path) -> None:
    drawing = compute_figure(results(logs))
    assert drawing is not None
    joined = [[len(points(line)) for line in axes.lines if line.get_linewidth() == 0.8] for axes in drawing.figure.axes]
    assert joined == [[3, 2], [3, 2]]
    assert "Thin grey lines join the branches of one trunk." in drawing.caption


def test_without_branches_of_several_horizons_nothing_is_joined(tmp_path: Path) -> None:
    log_run(tmp_path)
    branch(tmp_path, "t", 1, 20, 0.5)
    branch(tmp_path, "t", 2, 20, 0.6, "-again")
    found = results(tmp_path)
    assert len(found.collection.observations) == 3
    assert horizons_figure(found) is None
    drawing = compute_figure(found)
    assert drawing is not None
    assert "trunk" not in drawing.caption


def test_trunks_of_one_name_are_told_apart_and_of_many_a_colour_has_one_name(tmp_path: Path) -> None:
    for seed in range(9):
        for end in (20, 40):
            branch(tmp_path, f"s{seed}", seed, end, 0.5)
    drawing = horizons_figure(results(tmp_path))
    assert drawing is not None
    assert [text.get_text() for text in drawing.figure.legends[0].get_texts()] == ["s0 and 8 others"]
    log_run(
        tmp_path,
        folder="a",
        recipe_hash="a",
        step=20,
        top1={20: 0.5},
        lineage=[{**lineage("s0", 5)[0], "recipe_hash": "x"}],
    )
    log_run(
        tmp_path,
        folder="b",
        recipe_hash="b",
        step=40,
        top1={40: 0.5},
        lineage=[{**lineage("s0", 9)[0], "recipe_hash": "x"}],
    )
    assert {label for label in by_trunk(collect(str(tmp_path)).observations) if "s0" in label} == {"s0, of-s0", "s0, x"}
