"""Writers of small files are killed at every look at the file system and inside every write; see killed_writers.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.places import ROOT


def test_what_is_read_after_a_kill_or_on_a_full_disk_is_the_old_or_the_new(tmp_path: Path) -> None:
    words = [sys.executable, str(Path(__file__).with_name("killed_writers.py")), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    kills = json.loads(done.stdout)
    assert len(kills) == 13
    for name, counts in kills.items():
        assert counts["looks"] >= 1, name
        assert counts["bytes"] >= 3, name
        assert counts["refused"] >= 3, name
