"""A study trained on this machine, really: runs side by side, stopped, gone on with, evaluated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import command
from vit_dist.core.rundir import RunDir

pytestmark = pytest.mark.distributed

RECIPE = """
global_batch: 8
horizon: 60 steps
precision: fp32
model: vit-test
data: {num_classes: 4, train: "TRAIN", val: "VAL", image_size: 28, augment: none}
optim: {name: adamw, lr: 3e-3}
schedule: {name: cosine, warmup: 2 steps}
engine: {name: plain}
checkpoint: {every: 20 steps}
log: {every: 5 steps}
"""
STUDY = """
name: pair
recipe: RECIPE
models: [vit-test, bit-test]
subsets: [100]
evaluations: [{name: fewshot, set: small, shots: [3]}]
"""


@pytest.mark.timeout(600)
def test_runs_side_by_side_stop_together_go_on_and_are_evaluated(
    tmp_path: Path, small_set: str, small_val: str
) -> None:
    (tmp_path / "base.yaml").write_text(RECIPE.replace("TRAIN", small_set).replace("VAL", small_val))
    (tmp_path / "pair.yaml").write_text(STUDY.replace("RECIPE", str(tmp_path / "base.yaml")))
    words = command("study", "run", str(tmp_path / "pair.yaml"), "--runs", str(tmp_path), "--jobs", "2")
    runs = [RunDir(tmp_path / "pair" / f"{name}-100-s0") for name in ("vit-test", "bit-test")]

    first = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        deadline = time.monotonic() + 240
        while not all((run.path / "owner.json").exists() for run in runs):
            assert first.poll() is None, first.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        first.send_signal(signal.SIGTERM)
        text, _ = first.communicate(timeout=240)
    finally:
        first.kill()
    assert first.returncode == 130, text
    assert "was stopped at step" in text
    assert "to go on: vit-dist study run" in text
    before = [run.status() for run in runs]
    assert [s and s.status for s in before] == ["stopped", "stopped"], text
    assert all(s and s.step < 60 for s in before)

    again = subprocess.run(words, capture_output=True, text=True, timeout=400, env=dict(os.environ), check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "goes on from an earlier attempt (stopped)" in again.stdout
    for run in runs:
        status = run.status()
        assert status is not None
        assert (status.status, status.step, status.attempt) == ("done", 60, 2)
        (entry,) = json.loads((run.path / "evaluated.json").read_text())["evaluations"]
        assert entry["step"] == 60
        assert 0.25 < entry["values"]["fewshot/small_3shot"] <= 1

    third = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert third.stdout.count("done before") == 2
    assert "evaluating" not in third.stdout
