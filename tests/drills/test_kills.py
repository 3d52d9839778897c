"""Law 4 under fire: random kills of any process at any instant, saves included, on every engine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launcher.processes.kill_test import Attempt
from tests import forks
from tests.conftest import command
from tests.drills.kills import ENGINES, drill
from tests.places import ROOT

pytestmark = pytest.mark.distributed


REPORTS = ROOT / "runs" / "drills"


def forked(attempt: Attempt) -> subprocess.Popen[str]:
    words = command("train", str(attempt.recipe), "--run-dir", str(attempt.run_dir), "--nproc", str(attempt.nproc))
    return forks.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def test_a_kill_at_the_start_and_one_in_a_save_change_nothing(tmp_path: Path, small_set: str, small_val: str) -> None:
    # Of this engine alone: laws/test_resume.py kills the others, the drill below kills all of them twenty times, and
    # whole commands, whose imports are killed too.
    report = drill(tmp_path, small_set, small_val, "zero-2", kills=2, seed=42, start=forked)
    print(report.text())
    assert [kill.phase for kill in report.kills] == ["start", "saving"]


@pytest.mark.drill
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_random_kills_change_nothing(tmp_path: Path, small_set: str, small_val: str, engine: str) -> None:
    report = drill(tmp_path, small_set, small_val, engine, kills=20, seed=2026)
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"{engine}.txt").write_text(report.text())
    print(report.text())
