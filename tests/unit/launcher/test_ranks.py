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
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import RunError
from vit_dist.core.exit_codes import of_signal
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import MARKER, step_name
from vit_dist.core.run.history import Progress

RANK = """
import os, signal, sys, time
# Whoever starts ranks holds stop signals back in them until they listen.
signal.pthread_sigmask(signal.SIG_UNBLOCK, range(1, 32))
signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), {dies_of}))
signal.signal(signal.SIGUSR2, lambda *_: sys.exit(3))
open({there!r}, "w").close()
time.sleep(60)
"""


def rank(monkeypatch: pytest.MonkeyPatch, there: Path, dies_of: int = signal.SIGKILL) -> None:
    text = RANK.format(there=str(there), dies_of=int(dies_of))
    monkeypatch.setattr(ranks, "cli_command", lambda *_: [sys.executable, "-c", text])


SAVING_RANK = """
import signal, sys, time
from pathlib import Path
from vit_dist.core.run import history
from vit_dist.core.run.history import Progress

run = Path({run!r})
number, _, _ = history.take(run, ranks=1, saved=0)
history.training(run, number, 0)

def stop(*_):
    history.end(run, {status!r}, Progress(attempt=number, time=1.0, step=7), reason="a signal", saved=7)
    sys.exit(0)

for one in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT):
    signal.signal(one, stop)
open({there!r}, "w").close()
signal.pthread_sigmask(signal.SIG_UNBLOCK, range(1, 32))
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "status", "code", "told"),
    [
        (
            signal.SIGINT,
            "stopped",
            130,
            "Ctrl-C (SIGINT): the ranks save what they have trained, and stop; Ctrl-C once more ends them",
        ),
        (
            signal.SIGTERM,
            "stopped",
            143,
            "SIGTERM: the ranks save what they have trained, and stop; Ctrl-C twice ends them",
        ),
        (signal.SIGUSR2, "stopped", 140, "SIGUSR2: the ranks save what they have trained, and stop"),
        (signal.SIGINT, "done", 0, "Ctrl-C (SIGINT): the ranks save what they have trained, and stop"),
        (signal.SIGTERM, "done", 0, "SIGTERM: the ranks save what they have trained, and stop"),
        (signal.SIGUSR2, "failed", 140, "SIGUSR2: the ranks save what they have trained, and stop"),
    ],
)
def test_the_code_says_what_asked_although_it_was_saved_unless_the_run_is_done(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: int,
    status: str,
    code: int,
    told: str,
) -> None:
    run_dir, there = tmp_path / "run", tmp_path / "there"
    text = SAVING_RANK.format(run=str(run_dir), there=str(there), status=status)
    monkeypatch.setattr(ranks, "cli_command", lambda *_: [sys.executable, "-c", text])
    ask(there, number)
    assert ranks.run_local(load_recipe("demo"), run_dir, nproc=1) == code
    assert told in capsys.readouterr().err


def test_a_second_interrupt_ends_ranks_that_would_save_for_long(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    there, said = tmp_path / "there", list[str]()

    def hear(text: str, *_: object) -> None:
        said.append(text)
        if len(said) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    # Held back, it hears nothing: as one that is in a library.
    text = f"import time; open({str(there)!r}, 'w').close(); time.sleep(60)"
    monkeypatch.setattr(ranks, "cli_command", lambda *_: [sys.executable, "-c", text])
    monkeypatch.setattr(ranks, "log", hear)
    ask(there, signal.SIGINT)
    assert ranks.run_local(load_recipe("demo"), tmp_path / "run", nproc=1) == 130
    assert [text.partition(":")[0] for text in said] == ["  Ctrl-C (SIGINT)", "  Ctrl-C (SIGINT) again"]
    assert "without saving" in said[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR2])
def test_a_signal_that_comes_while_ranks_are_started_lets_no_other_be_started(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    started = []

    def command(*_: object) -> list[str]:
        return [sys.executable, "-c", f"import time; open({str(tmp_path)!r} + '/begun', 'w').close(); time.sleep(60)"]

    def environment(*_: object) -> dict[str, str]:
        started.append(1)
        os.kill(os.getpid(), number)
        return dict(os.environ)

    monkeypatch.setattr(ranks, "cli_command", command)
    monkeypatch.setattr(ranks, "_rank_environment", environment)
    assert ranks.run_local(load_recipe("demo"), tmp_path / "run", nproc=4) == of_signal(number)
    assert len(started) == 1


@pytest.mark.parametrize(("code", "cause"), [(130, "stopped"), (143, "stopped"), (140, "stopped"), (0, "stopped")])
def test_an_attempt_that_saved_when_it_was_asked_counts_as_stopped_in_the_history(
    tmp_path: Path, code: int, cause: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def attempt(*_: object) -> int:
        number, _token, _state = history.take(tmp_path, ranks=1, saved=0)
        history.training(tmp_path, number, 0)
        history.end(tmp_path, "stopped", Progress(attempt=number, time=9.0, step=7), reason="SIGTERM", saved=7)
        return code

    assert supervise_local(None, tmp_path, attempt, give_up_after=3) == code  # type: ignore[arg-type]
    last = history.read(tmp_path).last
    assert last is not None
    assert (last.cause, last.action) == (cause, "none")
    assert "stopped: SIGTERM" in capsys.readouterr().err


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
    assert run_ranks(["train"], nproc=1, folder=tmp_path) == code


def test_a_rank_that_dies_unasked_tells_its_own_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ranks, "cli_command", lambda *_: [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert run_ranks(["train"], nproc=1, folder=tmp_path) == of_signal(signal.SIGKILL)


def test_no_other_attempt_is_begun_after_one_that_was_asked_to_stop(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rank(monkeypatch, tmp_path / "there")
    begun = []

    def attempt(*_: object) -> int:
        begun.append(1)
        ask(tmp_path / "there", signal.SIGTERM)
        return run_ranks(["train"], nproc=1, folder=tmp_path)

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
