"""A study trained on this machine, really: runs side by side, stopped, resumed, evaluated."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import forks
from tests.conftest import command
from vit_dist.core.exit_codes import TERMINATED
from vit_dist.core.run import history
from vit_dist.core.run.directory import RunDir

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


@contextlib.contextmanager
def trained(
    words: list[str], runs: list[RunDir], attempt: int, popen: type[subprocess.Popen[str]] = forks.Popen
) -> Iterator[subprocess.Popen[str]]:
    """A study on its way, each of whose runs is in this attempt."""
    with popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            deadline = time.monotonic() + 240
            while [one and one.attempt for run in runs for one in [history.read(run.path).status]] != [attempt] * len(
                runs
            ):
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield process
        finally:
            process.kill()


def descendants(pid: int) -> list[int]:
    """Every process below this one, in whatever session."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for path in threads for child in path.read_text().split()]
    return [one for child in children for one in (child, *descendants(child))]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.timeout(600)
def test_runs_side_by_side_die_and_stop_with_their_study_resume_and_are_evaluated(
    tmp_path: Path, small_set: str, small_val: str
) -> None:
    (tmp_path / "base.yaml").write_text(RECIPE.replace("TRAIN", small_set).replace("VAL", small_val))
    (tmp_path / "pair.yaml").write_text(STUDY.replace("RECIPE", str(tmp_path / "base.yaml")))
    words = command("study", "run", str(tmp_path / "pair.yaml"), "--runs", str(tmp_path), "--jobs", "2")
    runs = [RunDir(tmp_path / "pair" / f"{name}-100-s0") for name in ("vit-test", "bit-test")]

    with trained(words, runs, 1, subprocess.Popen) as killed:
        below = descendants(killed.pid)
        assert len(below) == 4  # a launcher and a rank a run
        killed.kill()
        killed.wait()
        deadline = time.monotonic() + 10
        while left := [pid for pid in below if alive(pid)]:
            assert time.monotonic() < deadline, f"{left} live on"
            time.sleep(0.05)
    assert "done" not in [status.status for run in runs if (status := history.read(run.path).status)]

    with trained(words, runs, 2) as first:
        first.send_signal(signal.SIGTERM)
        text, _ = first.communicate(timeout=240)
    assert first.returncode == TERMINATED, text
    assert text.count("resumes from an earlier attempt") == 2
    assert "was stopped at step" in text
    assert "resume with: vit-dist study run" in text
    before = [history.read(run.path).status for run in runs]
    assert [s and s.status for s in before] == ["stopped", "stopped"], text
    assert all(s and s.step < 60 for s in before)

    again = forks.run(words, capture_output=True, text=True, timeout=400, env=dict(os.environ), check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "resumes from an earlier attempt (stopped)" in again.stdout
    for run in runs:
        status = history.read(run.path).status
        assert status is not None
        assert (status.status, status.step, status.attempt) == ("done", 60, 3)
        (line,) = (run.path / "history-evaluations.jsonl").read_text().splitlines()
        entry = json.loads(line)
        assert entry["step"] == 60
        assert 0.25 < entry["values"]["fewshot/small_3shot"] <= 1

    third = forks.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert third.stdout.count("done before") == 2
    assert "evaluating" not in third.stdout
