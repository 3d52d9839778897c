"""Every rank of a run on this machine leaves a log, and `vit-dist logs` finds it and the error that came first."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.laws.test_resume import recipe_file

pytestmark = pytest.mark.distributed


def test_ranks_leave_logs_with_time_and_rank_and_the_first_error_is_found(
    vit_dist: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, small_set: str, small_val: str
) -> None:
    recipe, run = str(recipe_file(tmp_path, small_set, small_val)), tmp_path / "run"
    words = ("train", recipe, "engine.name=plain", "--run-dir", str(run), "--nproc", "2")
    done = vit_dist(*words, "horizon=2 steps")
    assert done.returncode == 0, done.stderr
    # What people see has no time in it.
    assert re.search(r"^  model: vit-test", done.stderr, re.MULTILINE)
    folder = run / "logs" / "attempt-0001"
    assert re.search(r"^\S+Z rank 0 INFO   engine: plain", (folder / "rank-0.log").read_text(), re.MULTILINE)
    # Refused by the ranks, for want of a checkpoint that is whole. One of them prints it, each writes it down.
    for part in (run / "checkpoints").glob("step-*/*.safetensors"):
        os.truncate(part, 100)
    failed = vit_dist(*words, "horizon=2 steps")
    assert failed.returncode == 1
    assert failed.stderr.count("checkpoints is intact") == 1
    assert vit_dist("logs", str(run), "--attempt", "1").stdout.count("model: vit-test") == 1
    first = vit_dist("logs", str(run), "--first-error")
    assert first.returncode == 0, first.stderr
    assert "checkpoints is intact" in first.stdout
    # Both wrote it down; whose clock was earlier is chance.
    assert re.search(r"logs/attempt-0002/rank-[01]\.log:\d", first.stderr)
