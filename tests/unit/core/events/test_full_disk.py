"""An event file on a disk that takes no more: no part of an event, none lost, none twice."""

from __future__ import annotations

import contextlib
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from vit_dist.core.errors import RunError
from vit_dist.core.events import writer as module
from vit_dist.core.events.reader import read_run
from vit_dist.core.events.writer import EventWriter


@contextlib.contextmanager
def room_for(num_bytes: int) -> Iterator[None]:
    """Files may have so many bytes and no more, as on a full disk."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def log(writer: EventWriter, *steps: int) -> None:
    for step in steps:
        writer.scalars(step, {"loss": float(step)})


def steps(directory: Path) -> list[int]:
    found = read_run(str(directory))
    # A file to which a full disk let nothing come is said to be empty, and harms no other.
    assert all(problem.endswith("is empty") for problem in found.problems)
    return found.scalars["loss"].steps.tolist() if "loss" in found.scalars else []


def size(directory: Path) -> int:
    return max(path.stat().st_size for path in directory.iterdir())


@pytest.mark.parametrize("room", [0, 1, 11, 20, 40])
def test_what_a_full_disk_did_not_take_is_written_once_it_does(
    tmp_path: Path, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = EventWriter(tmp_path, patient=True)
    log(writer, 1, 2)
    with room_for(size(tmp_path) + room):
        log(writer, 3, 4, 5)
        told = capsys.readouterr().err
        whole = steps(tmp_path)
        assert whole == [1, 2, 3, 4, 5][: len(whole)]
        assert len(whole) < 5
        with pytest.raises(RunError, match=f"{writer.path}: the log cannot be written: the file would be larger"):
            writer.flush()
    assert told.count("cannot be written") == 1
    log(writer, 6)
    assert "is written again" in capsys.readouterr().err
    writer.flush()
    writer.close()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_writer_that_is_not_patient_says_so_at_once_and_leaves_whole_events(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    log(writer, 1)
    with room_for(size(tmp_path) + 9), pytest.raises(RunError, match="the log cannot be written: the file would be"):
        log(writer, 2)
    writer.close()
    assert steps(tmp_path) == [1]


def test_a_log_that_cannot_begin_says_so(tmp_path: Path) -> None:
    with room_for(0), pytest.raises(RunError, match=rf"{tmp_path}/.*the log cannot be written: the file would be"):
        EventWriter(tmp_path)


def test_what_waits_has_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_WAITING", 200)
    writer = EventWriter(tmp_path, patient=True)
    with room_for(size(tmp_path)), pytest.raises(RunError, match="the log cannot be written"):
        log(writer, *range(1, 20))
    writer.close()


@pytest.mark.parametrize("written_later", [False, True])
@pytest.mark.parametrize("purge_step", [None, 3])
def test_what_could_not_be_written_goes_on_with_the_checkpoint(
    tmp_path: Path, purge_step: int | None, *, written_later: bool
) -> None:
    first = EventWriter(tmp_path)
    log(first, 1, 2, *((3, 5) if purge_step else ()))
    first.close()
    # Of this one the file takes nothing, nor that it voids what the first says from step 3 on.
    with room_for(0):
        second = EventWriter(tmp_path, purge_step=purge_step, patient=True)
        second.text("vit_dist/run", "{}")
        log(second, 3, 4)
        kept = second.unwritten()
    if written_later:
        # The disk has room again; then the process is killed, before another checkpoint.
        log(second, 5)
    second.close()
    third = EventWriter(tmp_path, purge_step=5, patient=True, unwritten=kept)
    log(third, 5, 6)
    third.close()
    assert steps(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_nothing_is_kept_of_a_log_that_is_whole_nor_read_from_what_is_no_log(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path, purge_step=1)
    log(writer, 1)
    assert writer.unwritten() is None
    writer.close()
    broken = ({}, [], "x", {"purge_step": 0, "events": []}, {"purge_step": 2, "events": ["?"]}, {"purge_step": 2})
    for unwritten in broken:
        EventWriter(tmp_path, purge_step=2, unwritten=unwritten).close()
    assert steps(tmp_path) == [1]


def test_of_a_step_that_is_half_written_all_goes_on(tmp_path: Path) -> None:
    first = EventWriter(tmp_path, patient=True)
    log(first, 1, 2)
    first.scalars(2, {"rate": 0.5})
    with room_for(size(tmp_path)):
        first.scalars(2, {"top1": 0.25})
        kept = first.unwritten()
    first.close()
    second = EventWriter(tmp_path, purge_step=3, patient=True, unwritten=kept)
    log(second, 3)
    second.close()
    found = read_run(str(tmp_path)).scalars
    assert {tag: series.steps.tolist() for tag, series in found.items()} == {
        "loss": [1, 2, 3],
        "rate": [2],
        "top1": [2],
    }


@pytest.mark.parametrize("room", [0, 60, 100, 150, 200])
def test_what_was_kept_is_kept_again(tmp_path: Path, room: int) -> None:
    first = EventWriter(tmp_path / "a", patient=True)
    log(first, 1)
    with room_for(0):
        log(first, 2, 3)
        kept = first.unwritten()
    first.close()
    with room_for(room):
        second = EventWriter(tmp_path / "a", purge_step=4, patient=True, unwritten=kept)
        log(second, 4)
        kept = second.unwritten()
    second.close()
    third = EventWriter(tmp_path / "a", purge_step=5, patient=True, unwritten=kept)
    log(third, 5)
    third.close()
    assert steps(tmp_path / "a") == [1, 2, 3, 4, 5]
