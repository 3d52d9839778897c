"""What a study comes to before it is trained: durations, costs, states, job arrays; and several runs at once."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.histories import speak
from vit_dist.cli.study import main
from vit_dist.config.load import config_dirs
from vit_dist.config.schema import Recipe, dump
from vit_dist.core.devices import find_device
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.run import history
from vit_dist.core.run.directory import RunDir
from vit_dist.core.units import Flops, format_flops
from vit_dist.data.manifest import read_manifest
from vit_dist.models.costs import model_cost, training_flops
from vit_dist.study.cost import (
    Throughput,
    estimate_costs,
    measured_throughput,
    rates,
)
from vit_dist.study.grid import Cell, load_study, plan
from vit_dist.study.local import cell_state, evaluated, run_cells
from vit_dist.study.sets import DatasetSize, SetsOfCells, look_at_sets

RECIPE = """
global_batch: 64
horizon: 10 epochs
model: vit-test
data: {num_classes: 10, image_size: 28, augment: none, val: nowhere}
optim: {name: adamw, lr: 5e-4}
schedule: {name: cosine}
engine: {name: plain}
"""
STUDY = """
name: tiny
recipe: RECIPE
models: [vit-demo, bit-demo, hybrid-demo]
subsets: [2k, 500]
seeds: [0, 1]
"""


@pytest.fixture
def study_file(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(RECIPE)
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.replace("RECIPE", str(tmp_path / "base.yaml")))
    return path


def cells_of(path: Path, *overrides: str) -> list[Cell]:
    return plan(load_study(str(path), overrides))


NOTHING = SetsOfCells({}, {})


def known(samples: int, num_bytes: int) -> SetsOfCells:
    return SetsOfCells({"set": DatasetSize(samples, num_bytes, 10)}, {})


def macs(recipe: Recipe) -> int:
    cost = model_cost(recipe.model, num_classes=recipe.data.num_classes, image_size=recipe.data.image_size)
    assert cost is not None
    return cost.macs


# The grid


def test_a_list_of_models_is_a_family_each(study_file: Path) -> None:
    cells = cells_of(study_file, "families={small: {model: vit-test, optim.lr: 1e-4}}")
    assert list(dict.fromkeys(c.family for c in cells)) == ["vit-demo", "bit-demo", "hybrid-demo", "small"]
    assert cells[0].recipe.model.name == "vit-demo"
    assert len({c.name for c in cells}) == len({c.hash for c in cells}) == 16


@pytest.mark.parametrize("remote", ["s3://bucket/copies", "s3://bucket/copies/", "/shared/copies", "file:///copies"])
def test_each_cell_s_copies_lie_in_a_folder_of_its_own(study_file: Path, remote: str) -> None:
    without, cells = cells_of(study_file), cells_of(study_file, f"checkpoint.remote={remote}")
    assert [c.recipe.checkpoint.remote for c in cells] == [f"{remote.rstrip('/')}/{c.name}" for c in cells]
    # Where copies lie is not of a run's identity.
    assert [c.hash for c in cells] == [c.hash for c in without]


def test_cells_are_the_recipes_that_would_be_resolved_one_by_one(study_file: Path) -> None:
    from vit_dist.config.load import load_recipe, recipe_hash

    for cell in cells_of(study_file, "cells=[{when: {subset: 500, seed: 1}, set: {optim.lr: 1e-2}}]"):
        lr = 1e-2 if (cell.subset, cell.seed) == (500, 1) else 5e-4
        words = [f"model={cell.family}", f"seed={cell.seed}", f"data.subset={cell.subset}", f"optim.lr={lr}"]
        assert cell.hash == recipe_hash(load_recipe(str(study_file.parent / "base.yaml"), words))


def test_equal_compute_gives_each_model_the_examples_that_it_can_pay_for(study_file: Path) -> None:
    cells = cells_of(study_file, "duration={equal: compute, length: 2 TFLOPs}")
    for cell in cells:
        examples = cell.recipe.horizon.examples(global_batch=64, epoch_examples=0)
        assert training_flops(macs(cell.recipe), int(examples)) == pytest.approx(2e12, rel=1e-4)
    assert len({str(cell.recipe.horizon) for cell in cells}) == 3


@pytest.mark.parametrize(
    ("duration", "message"),
    [
        ("{equal: compute, length: 40 epochs}", "equal compute need a length in FLOPs, such as '100 exaFLOPs'"),
        ("{equal: epochs, length: 2 TFLOPs}", "equal epochs need a length in epochs"),
        ("{equal: compute, length: 0 TFLOPs}", "trains nothing"),
        ("{equal: compute, length: many FLOPs}", "expected an amount of compute such as '800 exaFLOPs'"),
        ("{equal: money, length: 2 TFLOPs}", "equal: must be 'epochs', 'examples' or 'compute'"),
    ],
)
def test_a_duration_that_does_not_fit_its_rule_is_refused(study_file: Path, duration: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_study(str(study_file), [f"duration={duration}"])
    assert message in str(error.value)


def test_compute_has_units() -> None:
    for text, flops in (("800 exaFLOPs", 8e20), ("5 PFLOPs", 5e15), ("1e15 flops", 1e15), ("1.5 teraFLOPs", 1.5e12)):
        assert float(Flops.parse(text).value) == flops
    assert [format_flops(x) for x in (8e20, 3.2e15, 999.9e12, 5)] == [
        "800 exaFLOPs",
        "3.2 PFLOPs",
        "1 PFLOPs",
        "5 FLOPs",
    ]


def test_evaluations_are_checked_when_the_study_is_planned(study_file: Path) -> None:
    (cell, *_) = cells_of(study_file, "evaluations=[{name: fewshot, set: x, shots: [5]}]")
    assert [e.name for e in cell.evaluations] == ["fewshot"]
    assert [e.name for e in cell.recipe.evaluators] == ["classification"]
    with pytest.raises(
        ConfigError, match=r"evaluations as: evaluators\[0\].shot: unknown key; did you mean 'evaluators\[0\].shots'"
    ):
        cells_of(study_file, "evaluations=[{name: fewshot, set: x, shot: [5]}]")


# Costs


def test_a_cell_costs_its_examples_its_flops_and_its_bytes(study_file: Path) -> None:
    small, large = known(10_000, 10_000_000), known(10_000, 10 << 30)
    cells = cells_of(study_file, "data.train=set")
    (first, *_) = estimate_costs(cells, small)
    assert (first.examples, first.steps, first.epochs) == (78 * 64, 78, 78 * 64 / 500)
    assert first.flops == training_flops(macs(first.cell.recipe), 78 * 64)
    assert first.num_bytes == 500_000  # is read once and kept
    (first, *_) = estimate_costs(cells, large)
    assert first.num_bytes == (10 << 30) * 78 * 64 // 10_000
    (first, *_) = estimate_costs(cells, NOTHING)
    assert (first.num_bytes, first.steps) == (None, 78)
    (whole, *_) = estimate_costs(cells_of(study_file, "subsets=[all]"), NOTHING)
    assert (whole.examples, whole.flops) == (None, None)


def test_what_will_not_fit_is_said(study_file: Path) -> None:
    words = ("subsets=[500,20k]", "schedule.warmup=80 steps", "models=[ViT-H/14]", "data.image_size=224")
    cells = cells_of(study_file, *words, "data.train=set")
    sizes = known(10_000, 1)
    estimates = estimate_costs(cells, sizes, devices=3, device=find_device("v100"))
    small, large = estimates[0].problems, estimates[-1].problems
    assert "the set has only 10,000 examples" in large
    assert any("warmup=80 steps is 80 steps, longer than the whole run of 78 steps" in one for one in small)
    assert any('give "schedule.warmup=7 steps" too, a tenth of the run' in one for one in small)
    assert "global_batch=64 is not divisible by 3 devices" in small
    assert not any("has only" in text for text in small)
    cells = cells_of(
        study_file,
        "models=[ViT-G/14]",
        "data.image_size=224",
        "engine={name: deepspeed, zero_stage: 1}",
        "precision=bf16",
        "schedule.warmup=0 steps",
    )
    (short, *_) = estimate_costs(cells, NOTHING, devices=1, device=find_device("v100"))
    assert "weights, gradients and optimizer need" in short.problems[0]
    assert estimate_costs(cells, NOTHING, devices=64, device=find_device("v100"))[0].problems == ()


@pytest.mark.parametrize(("stage", "bytes_each"), [(1, 2 + 6 + 12 / 8), (2, 2 + (4 + 12) / 8), (3, (2 + 4 + 12) / 8)])
def test_zero_shards_more_from_stage_to_stage(study_file: Path, stage: int, bytes_each: float) -> None:
    words = (f"engine={{name: deepspeed, zero_stage: {stage}, reduce_bucket: 1000}}", "precision=bf16")
    (cell, *_) = cells_of(study_file, *words, "models=[ViT-B/16]", "data.image_size=224")
    device = find_device("h100")

    def fits(memory_bytes: float) -> bool:
        (estimate,) = estimate_costs([cell], NOTHING, devices=8, device=replace(device, memory_bytes=memory_bytes))
        return not any("weights, gradients and optimizer need" in problem for problem in estimate.problems)

    cost = model_cost(cell.recipe.model, num_classes=10, image_size=224)
    assert cost is not None
    # What the optimizer keeps for each weight counts: SGD's one moment is 4 bytes less.
    needed = cost.params * bytes_each + (4000 if stage > 1 else 0)
    assert fits(needed + 1)
    assert not fits(needed - 1)
    (cell, *_) = cells_of(study_file, *words, "models=[ViT-B/16]", "data.image_size=224", "optim={name: sgd, lr: 0.1}")
    assert fits(needed - cost.params * 4 / 8 + 1)
    # An average of the weights is in shards, as a moment is.
    averaged = (*words, "models=[ViT-B/16]", "data.image_size=224", "ema={}")
    (cell, *_) = cells_of(study_file, *averaged)
    assert fits(needed + cost.params * 4 / 8 + 1)
    assert not fits(needed + cost.params * 4 / 8 - 1)


def test_what_of_a_schedule_or_an_average_does_not_fit_a_cell_is_said(study_file: Path) -> None:
    words = ("subsets=[500]", "schedule={name: step, warmup: 0 steps, drops: [200 epochs]}", "ema={start: 80 steps}")
    (estimate, *_) = estimate_costs(cells_of(study_file, *words), NOTHING, devices=2, device=None)
    late, dropped = estimate.problems
    assert "ema.start=80 steps is step 80, beyond the last of the run's 78 steps" in late
    assert re.search(r"schedule\.drops\[0\] at step [\d,]+ is beyond the last of the run's 78 steps", dropped)
    assert "schedule.drops[0]=200 epochs" in dropped


@pytest.mark.parametrize(
    ("settings", "bytes_each"),
    [
        ("", 2 + 12 / 8),
        ("reshard_after_forward: true", (4 + 12) / 8),
        ("max_micro_batch: 4", 2 + 4 + 12 / 8),
        ("max_micro_batch: 8", 2 + 12 / 8),
        ("max_micro_batch: 4, reduce_dtype: bf16", 2 + (4 + 12) / 8),
        ("max_micro_batch: 4, reshard_after_forward: true", (4 + 12) / 8),
    ],
)
def test_fsdp_is_planned_by_what_stays_whole(study_file: Path, settings: str, bytes_each: float) -> None:
    words = (f"engine={{name: fsdp, {settings}}}", "precision=bf16", "models=[ViT-B/16]", "data.image_size=224")
    (cell, *_) = cells_of(study_file, *words)
    cost = model_cost(cell.recipe.model, num_classes=10, image_size=224)
    assert cost is not None

    def problems(memory_bytes: float) -> str:
        device = replace(find_device("h100"), memory_bytes=memory_bytes)
        return " ".join(estimate_costs([cell], NOTHING, devices=8, device=device)[0].problems)

    assert "weights, gradients and optimizer need" not in problems(cost.params * bytes_each + 1)
    refusal = problems(cost.params * bytes_each - 1)
    assert "weights, gradients and optimizer need" in refusal
    assert "zero_stage" not in refusal
    assert ("engine.reshard_after_forward=true" in refusal) is ("reshard" not in settings)


def finish(cell: Cell, run_dir: Path, seconds: float, ranks: int = 2) -> None:
    """Files of a run that is done, as training leaves them."""
    files = RunDir(run_dir)
    files.write_json("run.json", {"recipe_hash": cell.hash})
    speak(run_dir, "done", 78, 4992, ranks=ranks, goodput={"train": seconds - 1, "start": 1.0, "down": 99.0})


def test_sizes_are_those_of_the_manifests_and_unknown_where_there_is_none(
    study_file: Path, tmp_path: Path, small_set: str
) -> None:
    manifest = read_manifest(small_set)
    named = cells_of(study_file, f"data.train={small_set}")
    assert look_at_sets(named).sizes == {small_set: DatasetSize(manifest.num_samples, int(manifest.sizes.sum()), 4)}
    idle = cells_of(study_file, f"data.train={small_set}", "data.num_classes=1000", "data.spare_outputs=true")
    remarks = {one.remark for one in estimate_costs(idle, look_at_sets(idle))}
    assert all("but the training set has 4 classes" in remark for remark in remarks)
    assert look_at_sets(cells_of(study_file)).sizes == {}
    assert look_at_sets(cells_of(study_file, f"data.train={tmp_path}/nowhere")).sizes == {}


def test_the_throughput_of_finished_runs_is_what_hours_are_counted_by(study_file: Path, tmp_path: Path) -> None:
    estimates = estimate_costs(cells_of(study_file), NOTHING)
    assert measured_throughput(estimates, tmp_path) == {}
    finish(estimates[0].cell, tmp_path / estimates[0].cell.name, seconds=10.0)
    measured = measured_throughput(estimates, tmp_path)
    assert estimates[0].flops is not None
    assert [*measured] == ["bf16"]
    assert measured["bf16"].runs == 1
    assert measured["bf16"].sustained == pytest.approx(estimates[0].flops / (10.0 * 2))
    longer = estimate_costs(cells_of(study_file, "horizon=20 epochs"), NOTHING)
    assert measured_throughput(longer, tmp_path) == {}  # what lies there is another recipe's


@pytest.mark.parametrize(
    ("device", "precision", "peak"),
    [
        ("a100", "bf16", 312e12),
        ("a100", "tf32", 156e12),
        ("a100", "fp32", 19.5e12),
        ("h100", "fp32", 66.9e12),
        ("l40s", "tf32", 183e12),
        ("v100", "fp32", 15.7e12),
        ("v100", "tf32", None),
        ("b200", "fp32", None),
    ],
)
def test_hours_are_counted_by_the_peak_of_the_recipes_own_precision(
    study_file: Path, device: str, precision: str, peak: float | None
) -> None:
    estimates = estimate_costs(cells_of(study_file, f"precision={precision}"), NOTHING)
    by = rates(estimates, {}, find_device(device), 0.5)
    assert estimates[0].flops is not None
    expected = None if peak is None else pytest.approx(estimates[0].flops / (peak * 0.5) / 3600)
    assert by.hours(estimates[0]) == expected
    assert f"in {precision}" in by.sources[precision]


def test_what_was_measured_in_one_precision_says_nothing_of_another(study_file: Path) -> None:
    text = study_file.read_text() + "cells: [{when: {family: bit-demo}, set: {precision: fp32}}]\n"
    study_file.write_text(text)
    estimates = estimate_costs(cells_of(study_file), NOTHING)
    by = rates(estimates, {"bf16": Throughput(1e9, 3)}, find_device("a100"), 0.4)
    assert by.sustained == {"bf16": 1e9, "fp32": 19.5e12 * 0.4}
    assert "bf16 measured: 1 GFLOP/s a device over 3 finished runs" in by.sources["bf16"]


def test_plan_shows_costs_states_and_problems_and_writes_them(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "140")
    cell = cells_of(study_file)[0]
    finish(cell, Path("runs/tiny") / cell.name, seconds=10.0)
    assert main(["plan", str(study_file), "schedule.warmup=0 steps"]) == 0
    assert main(["plan", str(study_file), "--json", "plan.json"]) == 0
    shown = capsys.readouterr().out
    assert "3 families x 2 sizes x 2 seeds = 12 runs" in shown
    assert "1/2 done" in shown
    assert "measured:" in shown
    assert "over 1 finished run" in shown
    assert "left:  11 runs" in shown
    records = json.loads(Path("plan.json").read_text())
    assert main(["plan", str(study_file), "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == records
    assert len(records) == 12
    assert records[0]["state"] == "done"
    assert records[0]["flops"] == training_flops(macs(cell.recipe), 4992)
    assert sum(r["device_hours"] for r in records) > 0
    assert main(["plan", str(study_file), "--device", "h100", "--utilisation", "50%", "--devices", "3"]) == 0
    shown = capsys.readouterr().out
    assert "assumed: 50% of an h100's 989 TFLOP/s" in shown
    assert "will not fit" in shown
    monkeypatch.setenv("COLUMNS", "40")
    for words in (["plan", str(study_file)], ["plan", str(study_file), "--cells"], ["status", str(study_file)]):
        assert main(words) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown  # a table is wider than the window before a number is cut
    assert "hybrid-demo-2000-s1" in shown
    with pytest.raises(ConfigError, match="--device 'h10' is not known; did you mean 'h100'"):
        main(["plan", str(study_file), "--device", "h10"])


def test_a_thousand_cells_are_planned_in_seconds_without_torch(study_file: Path, tmp_path: Path) -> None:
    code = (
        "import sys, time; began = time.process_time(); from vit_dist.cli.study import main;"
        f"main(['plan', {str(study_file)!r}, 'models=[vit-demo,bit-demo,ViT-L/16,R50x1,R152x2]', 'data.image_size=224',"
        f"'subsets=[' + ','.join(str(i * 500) for i in range(1, 21)) + ']', 'seeds=[0,1,2,3,4,5,6,7,8,9]']);"
        "print('torch' in sys.modules, time.process_time() - began)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "= 1,000 runs" in done.stdout
    torch, seconds = done.stdout.split()[-2:]
    assert torch == "False"
    # Of the processor, some 1.5 where nothing else runs: caches shared with other work cost it half as much again.
    assert float(seconds) < 4.0, seconds


# States


def test_a_run_with_a_recent_heartbeat_runs_and_one_without_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = RunDir(tmp_path)
    files.write_json("run.json", {"recipe_hash": "x"})
    # On another machine, which cannot be asked whether its process lives.
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    speak(tmp_path, "running", 3, 192)
    monkeypatch.undo()
    assert (cell_state(tmp_path).state, cell_state(tmp_path).step) == ("running", 3)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    assert cell_state(tmp_path).state == "started"
    monkeypatch.setattr(time, "time", lambda: now + 950)
    speak(tmp_path, "running", 3, 192, goodput={"train": 900.0})
    monkeypatch.setattr(time, "time", lambda: now + 1000)
    assert cell_state(tmp_path).state == "running"


def test_status_is_a_matrix_with_a_mark_for_each_seed(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONIOENCODING", "utf-8")
    cells = {cell.name: cell for cell in cells_of(study_file)}
    done, failed, other = (cells[f"vit-demo-{name}"] for name in ("500-s0", "500-s1", "2000-s0"))
    finish(done, Path("runs/tiny") / done.name, seconds=10.0)
    finish(failed, Path("runs/tiny") / failed.name, seconds=10.0)
    speak(Path("runs/tiny") / failed.name, "failed", 7, 448, "the disk is full")
    RunDir(Path("runs/tiny") / other.name).write_json("run.json", {"recipe_hash": "another"})
    assert main(["status", str(study_file)]) == 0
    shown = capsys.readouterr().out
    assert "1 of 12 runs done" in shown
    row = next(line for line in shown.splitlines() if "vit-demo " in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] in (["vit-demo", "●✗", "!·"], ["vit-demo", "DF", "!-"])
    assert "vit-demo-500-s1, step 7 of 78 (9%): the disk is full" in shown
    assert f"vit-demo-2000-s0: another there, {other.hash} here" in shown
    assert main(["status", str(study_file), "--json", "-"]) == 0
    states = {r["run"]: r["state"] for r in json.loads(capsys.readouterr().out)}
    assert (states[done.name], states[failed.name], states[other.name]) == ("done", "failed", "other recipe")


# Several at once


class Pair:
    """An attempt that ends only once another one runs beside it."""

    def __init__(self, failing: str = "") -> None:
        self.failing, self.names = failing, set[str]()
        self._meet = threading.Barrier(2, timeout=5)

    def __call__(self, recipe: Recipe, run_dir: Path) -> int:
        self._meet.wait()
        self.names.add(recipe.name)
        failed = recipe.name == self.failing
        speak(run_dir, "failed" if failed else "done", 1, 1, "told to" if failed else "")
        return 1 if failed else 0


def test_runs_go_side_by_side_and_each_once(study_file: Path, tmp_path: Path) -> None:
    cells, pair, lines = cells_of(study_file), Pair(), list[str]()
    run_cells(cells, tmp_path / "runs", pair, lines.append, resume_command="AGAIN", jobs=2)
    assert pair.names == {cell.name for cell in cells}
    assert sum(": done in " in line for line in lines) == 12


def test_beside_a_run_that_fails_the_others_end_and_none_is_begun(study_file: Path, tmp_path: Path) -> None:
    cells = cells_of(study_file)
    pair = Pair(failing=cells[0].name)
    with pytest.raises(RunError, match=f"{cells[0].name} failed with exit code 1: told to"):
        run_cells(cells, tmp_path / "runs", pair, lambda _: None, resume_command="AGAIN", jobs=2, keep_going=False)
    assert {cells[0].name, cells[1].name} <= pair.names
    assert len(pair.names) <= 4


def test_a_run_side_by_side_that_is_refused_says_why_and_stands_as_failed(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    words = ["seeds=[0]", "subsets=[500]", "models=[vit-demo]", "schedule.warmup=0 steps", "data.train=nowhere"]
    reason = r"data\.train: nowhere/manifest\.json: no such file.* \(log: runs/tiny/vit-demo-500-s0/train\.log\)"
    with pytest.raises(RunError, match=f"failed with exit code 1: {reason}"):
        main(["run", str(study_file), *words, "--jobs", "2", "--anyway"])
    capsys.readouterr()
    assert main(["status", str(study_file), *words]) == 0
    shown = capsys.readouterr().out
    assert re.search(f"failed +vit-demo-500-s0, step 0 of 78 .*{reason}", shown)
    assert "not begun" not in shown


def test_a_run_that_is_done_is_evaluated_once(study_file: Path, tmp_path: Path) -> None:
    cells = cells_of(study_file, "evaluations=[{name: fewshot, set: x, shots: [5]}]", "seeds=[0]")
    seen: list[str] = []

    def attempt(recipe: Recipe, run_dir: Path) -> int:
        speak(run_dir, "done", 1, 1)
        return 0

    def evaluate(cell: Cell, run_dir: Path) -> int:
        seen.append(cell.name)
        history.evaluated(run_dir, [dump(e) for e in cell.evaluations], 1, {})
        return 0

    for _ in range(2):
        run_cells(cells, tmp_path, attempt, lambda _: None, resume_command="AGAIN", evaluate=evaluate)
    assert seen == [cell.name for cell in cells]
    other = cells_of(study_file, "evaluations=[{name: fewshot, set: x, shots: [10]}]", "seeds=[0]")
    assert not evaluated(other[0], tmp_path / other[0].name)


# Arrays of jobs


def study_jobs(study_file: Path, directory: Path, *overrides: str, **fields: Any) -> Any:
    from launcher.slurm.cluster import load_cluster
    from launcher.submit.study import StudyJobs

    cells = tuple(cells_of(study_file, *overrides))
    return StudyJobs(load_cluster("dev"), directory, cells, **fields)


def test_arrays_hold_what_is_left_in_pieces_that_slurm_allows(study_file: Path, tmp_path: Path) -> None:
    from launcher.submit.study import arrays, todo

    jobs = study_jobs(study_file, tmp_path / "tiny", "evaluations=[{name: fewshot, set: x, shots: [5]}]", throttle=3)
    first, second, *_ = jobs.cells
    for cell in (first, second):
        finish(cell, jobs.run_dir(cell), seconds=10.0)
    history.evaluated(jobs.run_dir(first), [dump(e) for e in first.evaluations], 78, {})
    left = todo(jobs)
    assert (left.done, left.evaluate, len(left.train)) == ((first,), (second,), 10)
    found = arrays(jobs, left, tmp_path / "jobs", largest=4, code=tmp_path)
    assert [(a.name, len(a.cells)) for a in found] == [("train-0", 4), ("train-1", 4), ("train-2", 2), ("evaluate", 1)]
    assert [cell for a in found[:3] for cell in a.cells] == list(left.train)
    assert "#SBATCH --array=0-3%3\n" in found[0].train
    assert "#SBATCH --array=0-1%3\n" in found[2].train
    assert str(tmp_path / "jobs" / "train-2.list") in found[2].train
    assert not found[3].train
    assert ["#SBATCH --array=0-3%3\n" in a.evaluate for a in found] == [True, True, False, False]
    assert all("evaluate" in a.evaluate and '"name": "fewshot"' in a.evaluate for a in found)


def test_a_secret_in_an_evaluation_does_not_reach_a_script(study_file: Path, tmp_path: Path) -> None:
    from launcher.submit.study import arrays, todo

    url = "https://bucket.example/m.json?X-Amz-Signature=0123456789abcdef"
    evaluation = f"evaluations=[{{name: fewshot, set: x, train: '{url}'}}]"
    jobs = study_jobs(study_file, tmp_path / "tiny", evaluation)
    with pytest.raises(ConfigError, match="holds a secret") as error:
        arrays(jobs, todo(jobs), tmp_path / "jobs", largest=1000, code=tmp_path)
    assert "0123456789abcdef" not in str(error.value)


def test_ranks_that_do_not_divide_the_batch_are_refused(study_file: Path, tmp_path: Path) -> None:
    from launcher.submit.study import todo

    with pytest.raises(ConfigError, match="global_batch=64 is not divisible by 3 ranks"):
        todo(study_jobs(study_file, tmp_path / "tiny", nodes=3))


@pytest.mark.parametrize("path", sorted((config_dirs()[0] / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_can_be_planned(path: Path) -> None:
    study = load_study(str(path))
    cells = plan(study)
    assert study.name == path.stem
    assert len(cells) == len(study.families) * len(study.subsets) * len(study.seeds)
    assert all(estimate.flops and not estimate.problems for estimate in estimate_costs(cells, NOTHING))
