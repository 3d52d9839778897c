"""Locks: one holder at a time, also where holders remove their file; who only looks is in nobody's way."""

from __future__ import annotations

import multiprocessing
import os
import threading
from pathlib import Path

import pytest

from vit_dist.core.errors import RunError
from vit_dist.core.locks import LockHeldError, held, holder_of
from vit_dist.core.run.directory import RunDir
from vit_dist.data.pack.dest import claimed

ROUNDS = 150


def test_a_lock_says_who_holds_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    assert holder_of(lock) is None
    with held(lock, "me\n"):
        assert holder_of(lock) == "me"
        with pytest.raises(LockHeldError, match="me"), held(lock, "another"):
            raise AssertionError
        assert holder_of(lock) == "me"
    assert holder_of(lock) is None
    assert lock.exists()
    with held(lock, remove=True):
        assert holder_of(lock) == ""
    assert not lock.exists()


@pytest.mark.parametrize("place", ["nowhere/lock", "file/lock"])
def test_what_is_not_there_is_held_by_nobody(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    assert holder_of(tmp_path / place) is None
    assert not (tmp_path / "nowhere").exists()


def _enter(lock: Path, inside: Path, how: str, failures: multiprocessing.Queue[str]) -> None:
    """Take the lock again and again; two at once would both want to make `inside`."""
    entered = 0
    while entered < ROUNDS:
        try:
            with claimed(str(lock.parent), "all") if how == "claimed" else held(lock, "x", remove=how == "remove"):
                try:
                    os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
                except FileExistsError:
                    failures.put("two hold the lock")
                    return
                entered += 1
                inside.unlink()
        except (LockHeldError, RunError):
            continue


@pytest.mark.parametrize("how", ["remove", "keep", "claimed"])
def test_of_many_who_take_and_remove_a_lock_one_holds_it(tmp_path: Path, how: str) -> None:
    context = multiprocessing.get_context("fork")
    failures: multiprocessing.Queue[str] = context.Queue()
    (tmp_path / "set").mkdir()
    arguments = (tmp_path / "set" / "lock", tmp_path / "inside", how, failures)
    processes = [context.Process(target=_enter, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert failures.empty()


def test_an_attempt_that_starts_while_others_look_is_never_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    with run.locked():
        pass
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            run.is_free()

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for thread in lookers:
        thread.start()
    try:
        for _ in range(ROUNDS):
            with run.locked():
                assert not run.is_free()
                assert f"process {os.getpid()}" in (run.path / "lock").read_text()
    finally:
        done.set()
        for thread in lookers:
            thread.join()


def test_looking_makes_nothing_and_leaves_the_holders_name(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.is_free()
    assert not run.path.exists()
    with run.locked():
        before = (run.path / "lock").read_text()
    assert run.is_free()
    assert (run.path / "lock").read_text() == before
