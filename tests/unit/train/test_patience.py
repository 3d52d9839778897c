"""All time-outs follow from guards.hang, and the one that says most comes first; the flight recorder is on."""

from __future__ import annotations

import math
import os
import pickle
from pathlib import Path

import pytest

from vit_dist.train.health import flight_recorder
from vit_dist.train.health.patience import DEFAULT, patience

NAMES = (
    "TORCH_FR_BUFFER_SIZE",
    "TORCH_NCCL_TRACE_BUFFER_SIZE",
    "TORCH_NCCL_DUMP_ON_TIMEOUT",
    "TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC",
    "TORCH_FR_DUMP_TEMP_FILE",
    "TORCH_NCCL_DEBUG_INFO_TEMP_FILE",
)


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without any of the recorder's variables, now and after the test."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize("hang", [0.5, 4.0, 600.0, 36_000.0])
def test_the_watchdog_speaks_before_a_collective_gives_up(hang: float) -> None:
    limits = patience(hang)
    assert limits.hang_s == hang
    assert limits.other_work_s == 10 * hang
    assert limits.collective.total_seconds() == 10 * hang + 60
    assert limits.join_s == min(10 * hang, 600)


def test_without_a_watchdog_nothing_is_given_up_but_coming_together() -> None:
    limits = patience(0)
    assert (limits.other_work_s, limits.join_s) == (math.inf, 600)
    assert limits.collective.days >= 7
    # Milliseconds in 32 bits, as torch counts them in places; also for a time-out that nobody lives to see.
    for long in (limits, patience(1e12)):
        assert limits.collective.total_seconds() * 1000 < 2**31
        assert long.collective.total_seconds() * 1000 < 2**31


def test_the_flight_recorder_is_on_and_writes_into_the_run(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    flight_recorder.configure(tmp_path / "stacks", DEFAULT)
    path = str(tmp_path / "stacks" / "nccl_trace_rank_")
    # Of the older names none: torch warns on every rank where it finds one.
    expected = ["2000", None, "1", "6060", path, None]
    assert [os.environ.get(name) for name in NAMES] == expected


def test_what_a_person_has_set_holds_under_either_name(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "7")
    environment.setenv("TORCH_FR_DUMP_TEMP_FILE", "/mine")
    environment.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    flight_recorder.configure(tmp_path, DEFAULT)
    assert os.environ["TORCH_NCCL_TRACE_BUFFER_SIZE"] == "7"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == "/mine"
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"
    assert not {"TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE"} & set(os.environ)


def test_a_record_can_be_read_and_one_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    flight_recorder.write_record(tmp_path, 3)
    record = pickle.loads((tmp_path / "nccl_trace_rank_3").read_bytes())
    assert {"entries", "pg_config"} <= set(record) or "version" in record
    flight_recorder.write_record(tmp_path / "not-there", 3)
