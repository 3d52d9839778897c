"""Law 4 under fire: random kills of any process at any instant, saves included, on every engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drills.kills import ENGINES, drill
from tests.places import ROOT

pytestmark = pytest.mark.distributed

REPORTS = ROOT / "runs" / "drills"


def test_a_kill_at_the_start_and_one_in_a_save_change_nothing(tmp_path: Path, small_set: str, small_val: str) -> None:
    # Of this engine alone: laws/test_resume.py kills the others, the drill below kills all of them twenty times.
    report = drill(tmp_path, small_set, small_val, "zero-2", kills=2, seed=42)
    print(report.text())
    assert [kill.phase for kill in report.kills] == ["start", "saving"]


@pytest.mark.drill
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_random_kills_change_nothing(tmp_path: Path, small_set: str, small_val: str, engine: str) -> None:
    report = drill(tmp_path, small_set, small_val, engine, kills=20, seed=2026)
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"{engine}.txt").write_text(report.text())
    print(report.text())
