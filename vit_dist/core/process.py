"""Processes of ours: how they are started, signalled and waited for, and that none outlives the one that started it.

Each link of a chain (study, launcher, rank) is tied to the one before it, so that a SIGKILL at any of them takes all
that are below. What a shell, nohup, tmux or srun has started is tied to nobody.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from vit_dist.core.exit_codes import of_signal

CLI_MODULE = "vit_dist.cli.main"
NODE_PROBE_MODULE = "vit_dist.train.health.node_probe"
HOST_GUARD_MODULE = "launcher.supervise.host_guard"
ADDRESS_MODULE = "launcher.slurm.addresses"
DECODE_MODULE = "vit_dist.data.decode_server"
"""Modules that are started by name, `python -m`: no import says so."""

_LISTEN_S = 0.1
_PARENT_VARIABLE = "VIT_DIST_PARENT"
_PR_SET_PDEATHSIG = 1
_PF_EXITING = 0x4


def code_root() -> Path:
    """The directory that holds the packages vit_dist and launcher: a checkout's top, a snapshot, or site-packages."""
    return Path(__file__).resolve().parent.parent.parent


def cli_command(*arguments: str, safe_path: bool = False) -> list[str]:
    """The command line of `vit-dist` with these arguments, for this interpreter.

    Args:
        safe_path: leave the current directory out of the search path of modules, for jobs that may start anywhere.
    """
    return [sys.executable, *(["-P"] if safe_path else []), "-m", CLI_MODULE, *arguments]


def wait_until(ready: Callable[[], bool], timeout_s: float, poll_s: float) -> bool:
    """Poll until something holds. Returns False where it does not within the time."""
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() >= deadline:
            return False
        time.sleep(poll_s)
    return True


def lives(pid: int) -> bool:
    """Whether a process of this machine is there and not on its way out: killed, though not yet gone. Linux only."""
    try:
        status = Path(f"/proc/{pid}/status").read_bytes().decode("ascii", "replace")
        flags = int(_stat(pid)[6])
    except (OSError, ValueError, IndexError):
        return False
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    pending = int(fields.get("SigPnd", "0"), 16) | int(fields.get("ShdPnd", "0"), 16)
    killed = pending & (1 << (signal.SIGKILL - 1))
    return not (killed or flags & _PF_EXITING or fields.get("State", "Z").strip()[:1] in "ZX")


def is_stopped(pid: int) -> bool:
    """Whether a process of this machine was stopped by a signal or a debugger. Linux only."""
    try:
        return _stat(pid)[0] in {"T", "t"}
    except (OSError, IndexError):
        return False


def _stat(pid: int) -> list[str]:
    """Of a process: state, ppid, pgrp, session, tty, tpgid, flags and more, behind its name, which may be any bytes."""
    return Path(f"/proc/{pid}/stat").read_bytes().decode("ascii", "replace").rpartition(")")[2].split()


@contextlib.contextmanager
def heavy_imports() -> Iterator[None]:
    """Around imports of torch and the like: no garbage is looked for meanwhile, nor among what they made ever after.

    The collector would go through a million objects of modules, classes and functions again and again and find
    nothing: a fifth of the CPU time of a rank's imports, and later a pause of a tenth of a second in some step.
    """
    enabled, known = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        # Where all was imported before, there is nothing new that lives for good.
        if len(sys.modules) > known:
            gc.freeze()
        if enabled:
            gc.enable()


@contextlib.contextmanager
def handling(numbers: Sequence[int], handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """While this lasts the handler is called for these signals; then those of before are back.

    Python lets the main thread alone install handlers, and runs them there, between two of its instructions: a handler
    takes no lock, since the code that it interrupts may hold it.

    Raises:
        ValueError: this is not the main thread.
    """
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""Ask a rank to save and stop."""


def signal_text(number: int) -> str:
    """A signal for people: 'Ctrl-C (SIGINT)', 'SIGTERM'."""
    name = signal.Signals(number).name
    return f"Ctrl-C ({name})" if number == signal.SIGINT else name


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """While this lasts stop signals wait, also in processes that are started: until those say who listens to them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def ended_by_stop_signals(say: Callable[[str], None]) -> Iterator[None]:
    """While this lasts a stop signal ends the process at once, with exit code 128 + n: there is nothing to save yet.

    Also where the main thread waits in a library, where no handler of Python's would run. The signals stay blocked
    after it as they were before: one that comes in between waits for whoever lets them in.

    Args:
        say: is told what it was, as `signal_text` has it, in a thread, before the process ends.
    """
    # Python lets no other thread set handlers either: there signals are the business of the embedding program.
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    over = threading.Event()

    def listen() -> None:
        while not over.is_set():
            received = signal.sigtimedwait(STOP_SIGNALS, _LISTEN_S)
            # Once, under load, it came back with a number that is no signal's: nothing that was asked for.
            if received is not None and received.si_signo in STOP_SIGNALS:
                number = received.si_signo
                say(signal_text(number))
                # Without clean-up: the main thread may never come back from where it is.
                os._exit(of_signal(number))

    listener = threading.Thread(target=listen, name="stop signals", daemon=True)
    listener.start()
    try:
        yield
    finally:
        over.set()
        listener.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def parent_death_signal() -> dict[str, str]:
    """Environment for a `vit-dist` process that is to be killed when this one is gone.

    Linux kills it at the end of the *thread* that starts it: that thread has to wait for it.
    """
    return {_PARENT_VARIABLE: str(os.getpid())}


def die_with_parent() -> None:
    """Tie this process to its parent, where that asked for it; what this one starts is not meant. Linux only."""
    parent = os.environ.pop(_PARENT_VARIABLE, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    die_with(int(parent))


def die_with(parent: int) -> None:
    """Let the kernel kill this process when the thread of `parent` that started it ends. Linux only."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
