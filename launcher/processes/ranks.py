"""One attempt of a run on this machine: N rank processes under one parent that lets none outlive the others."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from vit_dist.config.load import recipe_yaml
from vit_dist.config.plugins import with_copies
from vit_dist.config.schema import Recipe
from vit_dist.core.exit_codes import PEER_LOST, SUPERSEDED, of_return_code, signal_of
from vit_dist.core.files import write_bytes
from vit_dist.core.log import log
from vit_dist.core.process import cli_command, parent_death_signal
from vit_dist.core.run import names
from vit_dist.core.run.directory import RunDir

_POLL_S = 0.05
_GRACE_S = 3.0


def run_local(recipe: Recipe, run_dir: Path, *, nproc: int) -> int:
    """One attempt of a run in `nproc` processes; goes on from the run's newest checkpoint.

    Returns:
        0 where the run is done or was stopped on request (status.json says which), else the exit code of the rank
        that failed first.
    """
    RunDir(run_dir).check_free()
    resolved = run_dir / names.RECIPE
    if not resolved.exists():  # else the run is another attempt of what stands there, or is refused by the ranks
        write_bytes(str(resolved), recipe_yaml(with_copies(recipe, run_dir)).encode())
    with tempfile.TemporaryDirectory(prefix="vit-dist-") as scratch:
        asked = Path(scratch) / names.RECIPE
        asked.write_text(recipe_yaml(recipe))
        code = run_ranks(["train", str(asked), "--run-dir", str(run_dir)], nproc=nproc, scratch=Path(scratch))
    _close_status(RunDir(run_dir), code)
    return code


def run_ranks(arguments: Sequence[str], *, nproc: int, scratch: Path) -> int:
    """Run `vit-dist ARGUMENTS` as `nproc` ranks of one world on this machine; the first failure ends them all.

    SIGTERM, SIGUSR2 and SIGINT are passed on: the ranks then stop cleanly. A second SIGINT kills them.

    Args:
        arguments: of the command.
        nproc: how many ranks.
        scratch: a directory in which the ranks agree on who prints a shared error.

    Returns:
        0, or the exit code of the rank that failed first (128 + n where it died of signal n).
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    command = cli_command(*arguments)
    ranks = [
        subprocess.Popen(
            command, env=_rank_environment(os.environ, rank, nproc, address, scratch), stdin=subprocess.DEVNULL
        )
        for rank in range(nproc)
    ]
    try:
        with _passing_signals_to(ranks):
            return _wait(ranks)
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
            process.wait()


def _rank_environment(
    environ: Mapping[str, str], rank: int, nproc: int, address: Mapping[str, str], scratch: Path
) -> dict[str, str]:
    threads = str(max(1, len(os.sched_getaffinity(0)) // nproc))
    return {
        "OMP_NUM_THREADS": threads,  # more threads than cores make the ranks wait for each other
        "GLOO_SOCKET_IFNAME": "lo",  # the host's name need not resolve on a laptop or in a container
        **environ,
        **address,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(nproc),
        **parent_death_signal(),
        "VIT_DIST_SCRATCH": str(scratch),
    }


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(ranks: Sequence[subprocess.Popen[bytes]]) -> int:
    while True:
        codes = [process.poll() for process in ranks]
        failed = [(rank, code) for rank, code in enumerate(codes) if code not in (None, 0)]
        if failed:
            # Ranks that met the same error get a moment to say so; those that wait for a dead peer would wait long.
            deadline = time.monotonic() + _GRACE_S
            while time.monotonic() < deadline and any(p.poll() is None for p in ranks):
                time.sleep(_POLL_S)
            ended = {rank: p.returncode for rank, p in enumerate(ranks) if p.returncode not in (None, 0)}
            # One that ended since another is gone is not the cause.
            rank = next((r for r, c in {**dict(failed), **ended}.items() if c != PEER_LOST), failed[0][0])
            code = ended[rank]
            if code < 0:
                log(f"rank {rank} was killed by {signal.Signals(-code).name}; the other ranks were ended")
                return of_return_code(code)
            return code
        if all(code == 0 for code in codes):
            return 0
        time.sleep(_POLL_S)


@contextlib.contextmanager
def _passing_signals_to(ranks: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    interrupts, passed = 0, {int(signal.SIGINT): int(signal.SIGTERM)}

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal interrupts
        interrupts += number == signal.SIGINT
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL if interrupts > 1 else passed.get(number, number))

    old = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _close_status(directory: RunDir, code: int) -> None:
    """A rank that was killed could not say so: what still claims to run has failed, unless somebody else runs it."""
    status, number = directory.status(), signal_of(code)
    # Of a superseded attempt status.json is the later one's.
    if code and code != SUPERSEDED and status is not None and status.status == "running" and directory.is_free():
        reason = (
            f"a rank was killed by signal {number}" if number is not None else f"a rank ended with exit code {code}"
        )
        directory.write_status(
            "failed",
            status.step,
            status.examples,
            reason,
            attempt=status.attempt,
            goodput=status.goodput,
            total_steps=status.total_steps,
            metrics=status.metrics,
        )
