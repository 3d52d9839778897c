"""Law 5: logs are enough: every curve and table of a study is rebuilt from event files alone."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.laws.test_resume import finish, recipe_file, start
from vit_dist.core.run import history
from vit_dist.scaling.collect import collect
from vit_dist.scaling.report.write import write_report

pytestmark = pytest.mark.distributed

SUBSETS = (100, 200)


def test_every_curve_and_table_of_a_study_is_rebuilt_from_its_event_files_alone(
    tmp_path: Path, small_set: str, small_val: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_DIST_CACHE", str(tmp_path / "cache"))
    runs, bare = tmp_path / "runs", tmp_path / "bare"
    recipe = recipe_file(tmp_path, small_set, small_val)
    for subset in SUBSETS:
        cell = [f"name=vit-{subset}-s0", "study=law-5", "family=vit", f"data.subset={subset}", "engine.name=plain"]
        finish(start(recipe, runs / f"vit-{subset}-s0", *cell, nproc=1))
    measured = {subset: history.read(runs / f"vit-{subset}-s0").status for subset in SUBSETS}
    written = write_report(collect(str(runs)), tmp_path / "report", cached=False)

    logs = list(runs.rglob("events.out.tfevents.*"))
    for path in logs:
        copy = bare / path.relative_to(runs)
        copy.parent.mkdir(parents=True)
        shutil.move(path, copy)
    shutil.rmtree(runs)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
    rebuilt = write_report(collect(str(bare)), tmp_path / "again", cached=False)

    assert [path.name for path in rebuilt.all] == [path.name for path in written.all]
    for before, after in zip(written.all, rebuilt.all, strict=True):
        assert before.read_bytes() == after.read_bytes(), before.name
    # Not only the same, but right: the values are those that the runs themselves wrote elsewhere.
    with (tmp_path / "again" / "observations.csv").open() as file:
        rows = {int(row["subset"]): row for row in csv.DictReader(file)}
    assert sorted(rows) == list(SUBSETS)
    for subset, status in measured.items():
        assert status is not None
        assert {"train/loss", "val/loss"} <= set(status.metrics)
        assert float(rows[subset]["value"]) == pytest.approx(status.metrics["val/top1"], rel=1e-6)
        assert (int(rows[subset]["step"]), int(rows[subset]["examples_seen"])) == (status.step, status.examples)
    assert json.loads(rebuilt.json.read_text())["study"] == "law-5"
