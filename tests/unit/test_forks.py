"""What is forked in place of a command is to its parent, and to itself, as the command: tests/forks.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import forks
from tests.conftest import command

FORMS = {
    "place": "import os, sys; print(os.getcwd(), os.environ['WORD'], 'HOME' in os.environ, sys.argv, __name__)",
    "parent": "import os; print(os.getppid(), os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid())",
    "input": "import sys; print(sys.stdin.read().upper()); print('aside', file=sys.stderr)",
    "code": "import sys; sys.exit(7)",
    "words": "import sys; print('said before'); sys.exit('no such thing')",
    "error": "raise ValueError('it is wrong')",
    "killed": "import os; os.kill(os.getpid(), 9)",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "interrupted": "import signal; signal.raise_signal(signal.SIGINT)",
    "signals": "import signal; print(*map(signal.getsignal, (1, 2, 13, 15, 25)), signal.pthread_sigmask(0, []))",
    "files": "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:3], os.isatty(1))",
    "streams": "from sys import *; print(stdout.encoding, stdout.errors, stderr.errors, stdout.line_buffering)",
    "collector": "import gc; print(gc.isenabled())",
}


def outcome(popen: Any, words: list[str], cwd: Path, **options: Any) -> tuple[int, str, str]:
    environment = {**{name: value for name, value in os.environ.items() if name != "HOME"}, "WORD": "größer = 1"}
    with popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=cwd,
        text=True,
        **options,
    ) as process:
        out, err = process.communicate("some input", timeout=100)
        # Of a traceback the places differ.
        return process.returncode, out, err.splitlines()[-1] if err else ""


@pytest.mark.parametrize("name", FORMS)
def test_a_forked_process_is_what_a_started_one_is(name: str, tmp_path: Path) -> None:
    words = [sys.executable, "-c", FORMS[name], "an argument", "--option"]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        forked = outcome(forks.Popen, words, tmp_path, start_new_session=name == "parent")
        started = outcome(subprocess.Popen, words, tmp_path, start_new_session=name == "parent")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    assert forked == started


@pytest.mark.parametrize("words", [["--version"], ["no-such-verb"], ["train"], ["study", "status", "no-such-study"]])
def test_a_forked_command_answers_as_a_started_one(words: list[str], tmp_path: Path) -> None:
    forked, started = (outcome(popen, command(*words), tmp_path) for popen in (forks.Popen, subprocess.Popen))
    assert forked == started


def test_where_an_interpreter_would_start_otherwise_it_is_started(tmp_path: Path) -> None:
    words = [sys.executable, "-c", "import sys; print('torch' in sys.modules)"]
    for changed, expected in (({}, "True"), ({"PYTHONUTF8": "1"}, "False"), ({"LC_ALL": "C"}, "False")):
        environment = {**os.environ, **changed}
        with forks.Popen(words, stdout=subprocess.PIPE, env=environment, text=True) as process:
            assert process.communicate(timeout=100)[0].strip() == expected, changed
