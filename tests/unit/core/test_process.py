"""How processes of ours handle signals, and wait."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import subprocess
import sys
import time

import pytest

from vit_dist.core.process import STOP_SIGNALS, ended_by_stop_signals, handling, heavy_imports, wait_until


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


def test_no_garbage_is_looked_for_during_heavy_imports_nor_among_what_they_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = gc.get_freeze_count()
    try:
        with heavy_imports():
            with heavy_imports():
                made = [[] for _ in range(1000)]  # type: ignore[var-annotated]
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() == before, "nothing was imported"
        monkeypatch.delitem(sys.modules, "colorsys", raising=False)
        with heavy_imports():
            importlib.import_module("colorsys")
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


_WAITS_IN_C = """
import ctypes, signal
from vit_dist.core.process import STOP_SIGNALS, ended_by_stop_signals

signal.pthread_sigmask(signal.SIG_BLOCK, {blocked})
with ended_by_stop_signals(lambda name: print("heard", name, flush=True)):
    print("ready", flush=True)
    {wait}
"""


@pytest.mark.parametrize("blocked", ["()", "STOP_SIGNALS"])
@pytest.mark.parametrize("wait", ["ctypes.CDLL(None).pause()", "while True: pass", "signal.pause()"])
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_stop_signal_ends_a_process_that_hears_nothing_else(blocked: str, wait: str, number: signal.Signals) -> None:
    script = _WAITS_IN_C.format(blocked=blocked, wait=wait)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        name = "Ctrl-C (SIGINT)" if number == signal.SIGINT else number.name
        assert process.stdout.read() == f"heard {name}\n"
        assert process.wait() == 128 + number


def test_a_stop_signal_that_comes_after_it_waits_for_its_handler() -> None:
    heard: list[int] = []
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        with ended_by_stop_signals(lambda _: None):
            pass
        # To this thread: others of the test run may let it in.
        signal.raise_signal(signal.SIGUSR2)
        with handling([signal.SIGUSR2], lambda number, _: heard.append(number)):
            assert heard == []
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            assert heard == [signal.SIGUSR2]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
