"""From event files to observations, and from these to the tables and the first figure of a report."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.scaling.logged_runs import info, log_run
from vit_dist.core.errors import DataError
from vit_dist.core.events.reader import read_run
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.run import log as runlog
from vit_dist.core.run.log import RunStatus, run_info, run_status, write_start, write_status
from vit_dist.scaling.collect import collect
from vit_dist.scaling.compute import total_exaflops
from vit_dist.scaling.report.write import write_report
from vit_dist.scaling.summary import by_series, means


def test_what_the_trainer_says_comes_back_exactly(tmp_path: Path) -> None:
    begun = info(seed=2**60 + 1, num_params=300_000_001, base_lr=0.1 + 0.2)
    ended = RunStatus(status="stopped", step=7, examples=300_000_001, reason="SIGTERM")
    writer = EventWriter(tmp_path)
    write_start(writer, begun, "name: a\nmodel:\n  name: vit\n")
    write_status(writer, ended)
    writer.close()
    log = read_run(str(tmp_path))
    assert run_info(log) == begun
    assert run_status(log) == ended
    assert log.last_text(runlog.RECIPE) == "    name: a\n    model:\n      name: vit\n"


def test_a_log_of_a_newer_schema_is_left_out_with_the_reason(tmp_path: Path) -> None:
    log_run(tmp_path, schema_version=99)
    (left_out,) = collect(str(tmp_path)).excluded
    assert "schema 99" in left_out.reason


def test_a_finished_run_is_one_observation_with_its_last_and_best_value(tmp_path: Path) -> None:
    log_run(tmp_path, top1={3: 0.25, 6: 0.75, 10: 0.5})
    (one,) = collect(str(tmp_path)).observations
    assert (one.family, one.subset, one.seed, one.value) == ("vit", 500, 0, 0.5)
    assert (one.best, one.best_step, one.step, one.examples_seen) == (0.75, 6, 10, 640)
    assert (one.num_params, one.macs, one.status, one.directory) == (210_000, 3_200_000, "done", "vit-500-s0/tb")


def test_runs_that_are_no_observations_are_listed_with_the_reason(tmp_path: Path) -> None:
    log_run(tmp_path, seed=0)
    log_run(tmp_path, seed=1, status=None)
    log_run(tmp_path, seed=2, status="failed", step=4)
    log_run(tmp_path, seed=3, status="stopped", step=4)
    log_run(tmp_path, seed=4, top1={5: 0.4, 10: float("nan")})
    log_run(tmp_path, seed=5, top1={})
    log_run(tmp_path, seed=6, top1={5: 0.4})
    log_run(tmp_path, seed=7, study="other")
    plain = EventWriter(tmp_path / "plain")
    plain.scalars(1, {"val/top1": 0.9})
    plain.close()
    (tmp_path / "zero").mkdir()
    (tmp_path / "zero" / "events.out.tfevents.1.x").touch()
    found = collect(str(tmp_path), study="tiny")
    assert [one.seed for one in found.observations] == [0]
    reasons = {one.run: one.reason for one in found.excluded}
    expected = {
        "vit-500-s1": "unfinished",
        "vit-500-s2": "failed at step 4 of 10 (why)",
        "vit-500-s3": "stopped at step 4 of 10",
        "vit-500-s4": "diverged: val/top1 is nan",
        "vit-500-s5": "has no values of val/top1",
        "vit-500-s6": "last measured at step 5, not at its end, 10",
        "vit-500-s7": "of another study: other",
        "plain": "says nothing of its run",
        "zero": "says nothing of its run",
    }
    assert reasons.keys() == expected.keys()
    for run, reason in expected.items():
        assert reason in reasons[run]
    assert found.remarks == ("zero/events.out.tfevents.1.x: is empty",)


def test_a_value_is_the_one_that_was_logged_not_its_single_precision_shadow(tmp_path: Path) -> None:
    log_run(tmp_path, top1={5: 0.7, 10: 0.64})
    (one,) = collect(str(tmp_path)).observations
    assert (one.value, one.best) == (0.64, 0.7)


def test_logs_of_several_studies_need_a_name(tmp_path: Path) -> None:
    log_run(tmp_path, seed=0)
    log_run(tmp_path, seed=1, study="other")
    with pytest.raises(DataError, match=r"2 studies: 'other' \(1 run, such as .*; 'tiny'"):
        collect(str(tmp_path))
    assert [one.seed for one in collect(str(tmp_path), study="other").observations] == [1]


def test_of_two_runs_of_one_cell_the_one_that_finished_last_counts(tmp_path: Path) -> None:
    log_run(tmp_path, folder="b", top1={10: 0.25})
    log_run(tmp_path, folder="a", top1={10: 0.5}, recipe_hash="other")
    log_run(tmp_path, folder="c", top1={10: 0.75}, status=None)
    found = collect(str(tmp_path))
    assert [one.value for one in found.observations] == [0.5]
    assert (
        "duplicate: a/tb is the same cell with another recipe"
        in {e.directory: e.reason for e in found.excluded}["b/tb"]
    )


def test_a_run_that_was_killed_and_resumed_counts_once_with_what_came_last(tmp_path: Path) -> None:
    log_run(tmp_path, top1={4: 0.1, 5: 0.9}, status="stopped", step=5)
    second = EventWriter(tmp_path / "vit-500-s0" / "tb", purge_step=5)
    write_start(second, info(world_size=4), "name: x\n")
    second.scalars(5, {"val/top1": 0.25})
    second.scalars(10, {"val/top1": 0.5})
    write_status(second, RunStatus(status="done", step=10, examples=640))
    second.close()
    (one,) = collect(str(tmp_path)).observations
    assert (one.value, one.best, one.world_size) == (0.5, 0.5, 4)


def test_a_truncated_log_is_unfinished_and_remarked(tmp_path: Path) -> None:
    log_run(tmp_path, seed=0)
    path = log_run(tmp_path, seed=1)
    path.write_bytes(path.read_bytes()[:-3])
    found = collect(str(tmp_path))
    assert [e.run for e in found.excluded] == ["vit-500-s1"]
    assert "cut short" in found.remarks[0]


def test_a_directory_without_logs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no TensorBoard event files"):
        collect(str(tmp_path))


# The report


def fill(root: Path) -> None:
    for family, base in (("vit", 0.5), ("bit", 0.6)):
        for subset in (500, 2000):
            for seed in (0, 1):
                value = base + subset / 20_000 + seed / 64
                log_run(root, family, subset, seed, top1={10: value})


def test_means_are_over_seeds_and_one_seed_has_no_deviation(tmp_path: Path) -> None:
    log_run(tmp_path, seed=0, top1={10: 0.25})
    log_run(tmp_path, seed=1, top1={10: 0.75})
    log_run(tmp_path, subset=2000, top1={10: 0.5})
    small, large = means(collect(str(tmp_path)).observations)
    assert (small.mean, small.num_seeds, small.lowest, small.highest) == (0.5, 2, 0.25, 0.75)
    assert small.std == pytest.approx(0.5 / 2**0.5)
    assert (large.mean, large.std, large.num_seeds) == (0.5, None, 1)


def test_the_same_logs_give_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    fill(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "x")
    first = write_report(collect(str(tmp_path / "x")), tmp_path / "one")
    (tmp_path / "x").rename(tmp_path / "y")
    second = write_report(collect(str(tmp_path / "y")), tmp_path / "two", cached=False)
    assert [path.name for path in first.all] == [path.name for path in second.all]
    for mine, theirs in zip(first.all, second.all, strict=True):
        assert mine.read_bytes() == theirs.read_bytes(), mine.name
        assert mine.stat().st_size > 20
    assert first.figures[0].read_bytes().startswith(b"\x89PNG")


def test_the_tables_hold_every_run_and_every_mean(tmp_path: Path) -> None:
    fill(tmp_path / "logs")
    log_run(tmp_path / "logs", seed=9, status=None)
    files = write_report(collect(str(tmp_path / "logs")), tmp_path / "out")
    with (tmp_path / "out" / "observations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert "finished" not in rows[0]  # a time of day is no part of a result
    assert {(r["family"], r["subset"], r["seed"]) for r in rows} == {
        (f, n, s) for f in ("vit", "bit") for n in ("500", "2000") for s in "01"
    }
    with (tmp_path / "out" / "means.csv").open() as file:
        mean = {(r["family"], r["subset"]): float(r["mean"]) for r in csv.DictReader(file)}
    for key, value in mean.items():
        group = [float(r["value"]) for r in rows if (r["family"], r["subset"]) == key]
        assert value == pytest.approx(sum(group) / len(group))
    assert "unfinished" in (tmp_path / "out" / "excluded.csv").read_text()
    assert all(path.is_file() for path in files.all)


def test_the_figure_has_a_log_axis_its_sizes_its_families_and_its_seeds(tmp_path: Path) -> None:
    from vit_dist.scaling.report.figure_style import style
    from vit_dist.scaling.report.figures import examples_figure
    from vit_dist.scaling.results import analyse

    fill(tmp_path)
    with style():
        drawing = examples_figure(analyse(collect(str(tmp_path))))
        (axes,) = drawing.figure.axes
        drawing.figure.draw_without_rendering()
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["500", "2k"]
    assert "top-1" in axes.get_ylabel()
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in axes.lines}
    assert lines["vit"].ravel().round(9).tolist() == [500, 53.28125, 2000, 60.78125]
    assert lines["bit"].ravel().round(9).tolist() == [500, 63.28125, 2000, 70.78125]
    assert "2 seeds" in drawing.caption
    assert "garments" in drawing.caption
    bars = np.asarray(axes.collections[0].get_paths()[0].vertices)[:, 1]
    assert bars[1] - bars[0] == pytest.approx(2 * 100 * (1 / 64) / 2**0.5, rel=1e-4)


def test_one_size_and_one_seed_can_be_drawn_too(tmp_path: Path) -> None:
    log_run(tmp_path / "logs")
    assert write_report(collect(str(tmp_path / "logs")), tmp_path / "out").html.is_file()


def test_a_report_of_nothing_says_why_and_writes_nothing(tmp_path: Path) -> None:
    log_run(tmp_path / "logs", status=None)
    with pytest.raises(DataError, match=r"no finished run.*1 run: unfinished"):
        write_report(collect(str(tmp_path / "logs")), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_compute_of_a_trunk_is_part_of_each_branch_and_counts_once_in_all(tmp_path: Path) -> None:
    def trunk(recipe_hash: str) -> list[dict[str, Any]]:
        return [
            {"run": "t", "recipe_hash": recipe_hash, "step": 5, "examples": 320, "digest": "d", "macs_per_image": 1000}
        ]

    # 3,200,000 multiply-adds an image, 640 examples, of which the trunk's 320 have cost 1,000 each.
    log_run(tmp_path, seed=0, folder="trunk", recipe_hash="of-trunk", macs_per_image=1000)
    log_run(tmp_path, seed=0, folder="low", recipe_hash="low", lineage=trunk("of-trunk"))
    log_run(tmp_path, seed=1, folder="high", recipe_hash="high", lineage=trunk("gone"))
    log_run(tmp_path, seed=2, folder="higher", recipe_hash="higher", lineage=trunk("gone"))
    found = {one.directory.removesuffix("/tb"): one for one in collect(str(tmp_path)).observations}
    assert {name: one.trunk for name, one in found.items()} == {
        "trunk": "",
        "low": "t@5",
        "high": "t@5",
        "higher": "t@5",
    }
    lines = {label: [one.run for one in members] for label, members in by_series(found.values()).items()}
    assert {label: len(runs) for label, runs in lines.items()} == {"vit": 1, "vit, branched": 3}
    assert list(by_series([found["low"], found["high"]])) == ["vit"]
    own, before = 6 * 3_200_000 * 320 / 1e18, 6 * 1000 * 320 / 1e18
    assert found["low"].exaflops == pytest.approx(own + before)
    assert found["low"].exaflops_at(320) == pytest.approx(before)
    assert total_exaflops([found["trunk"], found["low"]]) == pytest.approx(2 * before + own)
    assert total_exaflops([found["low"]]) == pytest.approx(before + own)
    assert total_exaflops(list(found.values())) == pytest.approx(2 * before + before + 3 * own)
