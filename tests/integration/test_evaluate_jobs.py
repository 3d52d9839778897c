"""Evaluations of a trained run: any checkpoint, any number of processes; as jobs and arrays on a real Slurm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.slurm.cluster import wait_for
from vit_dist.cli.models.options import model_config
from vit_dist.core.events.reader import read_run
from vit_dist.core.run.log import VAL_TOP1
from vit_dist.models.weights.files import write_weights
from vit_dist.train.checkpoint.weights import fresh_weights

pytestmark = pytest.mark.distributed

RECIPE = """
global_batch: 12
horizon: 8 steps
precision: fp32
model: vit-test
data: {num_classes: 4, image_size: 28, augment: none}
optim: {name: adamw, lr: 1e-3}
schedule: {name: constant, warmup: 0 steps}
engine: plain
checkpoint: {every: 4 steps}
log: {every: 1 step}
"""


def trained(folder: Path, data: str, val: str, vit_dist: Callable[..., Any]) -> Path:
    (folder / "recipe.yaml").write_text(RECIPE)
    run = folder / "runs" / "one"
    done = vit_dist(
        "train", str(folder / "recipe.yaml"), f"data.train={data}", f"data.val={val}", "--run-dir", str(run)
    )
    assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slurm
def test_a_run_is_evaluated_here_and_by_slurm_with_the_same_result(
    slurm: Any, tmp_path: Path, small_set: str, small_val: str, vit_dist: Callable[..., Any]
) -> None:
    run = trained(tmp_path, small_set, small_val, vit_dist)
    logged = read_run(str(run / "tb")).scalars[VAL_TOP1]

    older = run / "checkpoints" / "step-0000000004"
    out = tmp_path / "out.json"
    done = vit_dist("evaluate", str(older), "--out", str(out))
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert (told["step"], sorted(told["values"])) == (4, ["val/loss", "val/top1"])

    # An array over a list, on other numbers of processes than the run was trained on.
    names = tmp_path / "list"
    names.write_text(f"{run}\n")
    words = ["--list", str(names), "--cluster", "dev", "--nodes", "2", "--max-parallel", "1"]
    done = vit_dist("evaluate", *words, f"data.val={small_val}")
    assert done.returncode == 0, done.stderr
    assert "an array of 1 run" in done.stdout

    def logs() -> str:
        return "\n".join(p.read_text() for p in tmp_path.glob("list.evaluate/*.log*"))

    def found() -> list[dict[str, Any]]:
        record = run / "history-evaluations.jsonl"
        lines = record.read_text().splitlines() if record.exists() else []
        return [entry for entry in map(json.loads, lines) if entry["step"] == 8]

    wait_for("the evaluation", found, 200, logs)
    wait_for("no job", lambda: not slurm.run("squeue", "-h").stdout.strip(), 60)
    (entry,) = found()
    assert entry["values"][VAL_TOP1] == pytest.approx(float(logged.values[-1]), abs=1e-6)
    # A study still reads the run as one that is done, with its last value at its last step.
    after = read_run(str(run / "tb")).scalars[VAL_TOP1]
    assert after.steps[-1] == logged.steps[-1] == 8


@pytest.mark.slurm
def test_weights_are_evaluated_by_slurm_as_they_are_here(
    slurm: Any, tmp_path: Path, small_set: str, small_val: str, vit_dist: Callable[..., Any]
) -> None:
    weights = tmp_path / "w.safetensors"
    write_weights(fresh_weights(model_config("vit-test"), 4, 28, 3), weights)
    knn = json.dumps({"name": "knn", "set": "small", "train": small_set, "test": small_val})
    asked = [str(weights), "--evaluator", "classification", "--evaluator", knn, f"data.val={small_val}"]
    here = tmp_path / "here.json"
    done = vit_dist("evaluate", *asked, "--out", str(here))
    assert done.returncode == 0, done.stderr

    there = tmp_path / "there.json"
    done = vit_dist("evaluate", *asked, "--out", str(there), "--cluster", "dev", "--nodes", "2")
    assert done.returncode == 0, done.stderr
    assert f"values will be in {there}" in done.stdout

    def logs() -> str:
        return "\n".join(p.read_text() for p in tmp_path.glob("there.evaluate/*.log*"))

    wait_for("no job", lambda: not slurm.run("squeue", "-h").stdout.strip(), 200, logs)
    assert there.is_file(), logs()
    expected, found = (json.loads(out.read_text())["values"] for out in (here, there))
    assert found == pytest.approx(expected, abs=1e-6)
    assert {"val/top1", "val/loss", "knn/small_20nn"} == found.keys()


def test_a_dry_run_prints_a_script_and_needs_no_slurm(vit_dist: Callable[..., Any], tmp_path: Path) -> None:
    run = tmp_path / "it's a run"
    run.mkdir()
    (run / "recipe.yaml").write_text(RECIPE)
    words = ["evaluate", str(run), "--cluster", "dgx-h100", "--devices", "2", "--dry-run"]
    done = vit_dist(*words, PATH="/usr/bin:/bin", SLURM_CONF="/nowhere")
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --gpus-per-node=2" in done.stdout
    checked = subprocess.run(["bash", "-n"], input=done.stdout, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert list(run.iterdir()) == [run / "recipe.yaml"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--nodes", "2"], "--nodes: means something with --cluster only"),
        (["--cluster", "dev", "--nproc", "2"], "a process a device"),
        (["--cluster", "dev", "--after", "12; rm x"], "not the number of a Slurm job"),
        (["--cluster", "dev", "--nodes", "0"], "at least 1 is needed"),
        (["--cluster", "dev"], "no run is in this directory"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str, tmp_path: Path) -> None:
    from vit_dist.cli.evaluate import main
    from vit_dist.core.errors import ConfigError

    with pytest.raises(ConfigError, match=message):
        main([str(tmp_path), *words])
