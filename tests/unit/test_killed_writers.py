"""Writers are killed at every look at the file system and inside every write, and meet full and read-only disks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

_RUN, _SETS = 16, 8


@pytest.mark.parametrize(
    ("group", "writers", "looks", "sizes"),
    [
        ("run", _RUN, 6, 8),
        ("sets", _SETS, 2, 2),
        pytest.param("run", _RUN, 0, 0, marks=pytest.mark.drill),
        pytest.param("sets", _SETS, 0, 60, marks=[pytest.mark.drill, pytest.mark.timeout(3000)]),
    ],
)
def test_what_is_read_after_a_kill_or_on_a_full_disk_is_the_old_or_the_new(
    tmp_path: Path, group: str, writers: int, looks: int, sizes: int
) -> None:
    words = [sys.executable, "-m", "tests.writers", group, str(tmp_path), str(looks), str(sizes)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    trials = json.loads(done.stdout)
    assert len(trials) == writers
    for name, trial in trials.items():
        assert trial["looks"] >= 1, name
        assert trial["bytes"] >= 1, name
        assert trial["refused"] >= 1, name
    # Mounting needs root, and a container may forbid it to root too: then it was tried by none.
    assert len({trial["read_only"] for trial in trials.values()}) == 1
