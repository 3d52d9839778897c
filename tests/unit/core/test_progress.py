"""The line that says how far something is: what it shows in a log, of commands and of runs that resume."""

from __future__ import annotations

import pytest

from vit_dist.core import progress
from vit_dist.core.progress import Progress


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    return clock


def test_a_command_shows_rate_and_time_left_every_ten_seconds_and_ends_with_a_summary(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("packing", 100, "image") as line:
        for _ in range(3):
            now[0] += 5
            line.advance(10, 1 << 20)
    assert capsys.readouterr().err.splitlines() == [
        "packing: 20 of 100 images (20%), 2 images/s, 204.8 KiB/s, 40s left",
        "packing: 30 images (3.0 MiB) in 15s, 2 images/s, 204.8 KiB/s",
    ]


def test_a_run_that_resumes_shows_its_metrics_and_counts_the_time_left_by_its_own_steps(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("  training", 1000, "step", done=900, summary=False) as line:
        now[0] += 1
        line.update(901, metrics={"loss": 2.0})
        now[0] += 19
        line.update(920, metrics={"epoch": 1.5, "loss": 1.23456})
        line.update(920, metrics={"top1": 0.5}, force=True)
    assert capsys.readouterr().err.splitlines() == [
        "  training: 920 of 1,000 steps (92%), epoch 1.5  loss 1.235, 1m20s left",
        "  training: 920 of 1,000 steps (92%), top1 0.5, 1m20s left",
    ]


def test_where_others_show_it_nothing_is_shown(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("packing", 10, "image", quiet=True) as line:
        now[0] += 60
        line.advance(10)
    assert capsys.readouterr().err == ""
