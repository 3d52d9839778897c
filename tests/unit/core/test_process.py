"""How processes of ours handle signals, and wait."""

from __future__ import annotations

import gc
import os
import signal
import time

import pytest

from vit_dist.core.process import handling, heavy_imports, wait_until


def test_signals_reach_the_handler_while_it_stands_and_those_of_before_come_back() -> None:
    outer, inner = list[int](), list[int]()
    with handling([signal.SIGUSR1, signal.SIGUSR2], lambda number, _: outer.append(number)):
        with handling([signal.SIGUSR1], lambda number, _: inner.append(number)):
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
        os.kill(os.getpid(), signal.SIGUSR1)
    assert (inner, outer) == ([signal.SIGUSR1], [signal.SIGUSR2, signal.SIGUSR1])


def test_handlers_are_restored_after_an_error() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with pytest.raises(RuntimeError), handling([signal.SIGUSR1], lambda *_: None):
        raise RuntimeError
    assert signal.getsignal(signal.SIGUSR1) is before


def test_no_garbage_is_looked_for_during_heavy_imports_nor_among_what_they_made() -> None:
    before = gc.get_freeze_count()
    try:
        with heavy_imports():
            with heavy_imports():
                made = [[] for _ in range(1000)]  # type: ignore[var-annotated]
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(made)
        with pytest.raises(ImportError), heavy_imports():
            import vit_dist.nothing  # noqa: F401
        assert gc.isenabled()
    finally:
        gc.unfreeze()


def test_waiting_ends_when_it_holds_or_when_the_time_is_over() -> None:
    answers = iter([False, False, True])
    assert wait_until(lambda: next(answers), timeout_s=60, poll_s=0.001)
    assert next(answers, None) is None
    began = time.monotonic()
    assert not wait_until(lambda: False, timeout_s=0.05, poll_s=0.01)
    assert time.monotonic() - began >= 0.05
    assert wait_until(lambda: True, timeout_s=0.0, poll_s=1.0)
