"""Law 4 under fire: random kills of any process at any instant, saves included, on every engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drills.kills import ENGINES, drill
from tests.places import ROOT

pytestmark = pytest.mark.distributed

REPORTS = ROOT / "runs" / "drills"


@pytest.mark.parametrize("engine", ENGINES)
def test_three_seeded_kills_change_nothing(tmp_path: Path, small_set: str, small_val: str, engine: str) -> None:
    report = drill(tmp_path, small_set, small_val, engine, kills=3, seed=3)
    print(report.text())


@pytest.mark.drill
@pytest.mark.parametrize("engine", ENGINES)
def test_twenty_random_kills_change_nothing(tmp_path: Path, small_set: str, small_val: str, engine: str) -> None:
    report = drill(tmp_path, small_set, small_val, engine, kills=20, seed=2026)
    REPORTS.mkdir(parents=True, exist_ok=True)
    (REPORTS / f"{engine}.txt").write_text(report.text())
    print(report.text())
