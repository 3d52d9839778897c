"""Ranks that were asked to stop and die over it: no failure of theirs, and nothing is started in their place."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from launcher.processes import ranks
from launcher.processes.ranks import run_ranks
from launcher.supervise.local import supervise_local
from vit_dist.core.errors import RunError
from vit_dist.core.exit_codes import of_signal
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import MARKER, step_name

RANK = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), {dies_of}))
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(3))
open({there!r}, "w").close()
time.sleep(60)
"""


def rank(monkeypatch: pytest.MonkeyPatch, there: Path, dies_of: int = signal.SIGKILL) -> None:
    text = RANK.format(there=str(there), dies_of=int(dies_of))
    monkeypatch.setattr(ranks, "cli_command", lambda *_: [sys.executable, "-c", text])


def ask(there: Path, *numbers: int) -> None:
    """Send signals to this process, once the rank is there."""

    def send() -> None:
        while not there.exists():
            time.sleep(0.01)
        for number in numbers:
            os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize(
    ("numbers", "code"),
    [
        ((signal.SIGTERM,), of_signal(signal.SIGTERM)),
        ((signal.SIGINT,), of_signal(signal.SIGINT)),
        ((signal.SIGUSR2,), of_signal(signal.SIGUSR2)),
    ],
)
def test_the_exit_code_is_that_of_the_signal_that_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, numbers: tuple[int, ...], code: int
) -> None:
    rank(monkeypatch, tmp_path / "there")
    ask(tmp_path / "there", *numbers)
    assert run_ranks(["train"], nproc=1, scratch=tmp_path) == code


def test_a_rank_that_dies_unasked_tells_its_own_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ranks, "cli_command", lambda *_: [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert run_ranks(["train"], nproc=1, scratch=tmp_path) == of_signal(signal.SIGKILL)


def test_no_other_attempt_is_begun_after_one_that_was_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rank(monkeypatch, tmp_path / "there")
    begun = []

    def attempt(*_: object) -> int:
        begun.append(1)
        ask(tmp_path / "there", signal.SIGTERM)
        return run_ranks(["train"], nproc=1, scratch=tmp_path)

    run_dir = tmp_path / "run"
    run_dir.mkdir()
    code = supervise_local(None, run_dir, attempt, give_up_after=3, pause_s=0.0)  # type: ignore[arg-type]
    last = history.read(run_dir).last
    assert (code, len(begun)) == (of_signal(signal.SIGTERM), 1)
    assert last is not None
    assert last.action == "none"


def test_a_checkpoint_that_was_only_brought_back_is_no_progress(tmp_path: Path) -> None:
    begun = []

    def attempt(*_: object) -> int:
        begun.append(1)
        number, _token, _state = history.take(tmp_path, ranks=1, saved=0)
        saved = tmp_path / "checkpoints" / step_name(18)
        saved.mkdir(parents=True, exist_ok=True)
        (saved / MARKER).write_text("{}")
        history.training(tmp_path, number, 18)
        return 1

    with pytest.raises(RunError, match="2 attempts in a row have saved no new step"):
        supervise_local(None, tmp_path, attempt, give_up_after=2, pause_s=0.0)  # type: ignore[arg-type]
    assert len(begun) == 2
