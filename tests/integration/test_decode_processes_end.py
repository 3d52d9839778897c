"""Decode processes end with their rank, however it ends, and leave neither memory nor words behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT
from vit_dist.core.process import lives, wait_until

pytestmark = pytest.mark.distributed


def begun(manifest: str, how: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A rank in a group of its own, as a terminal makes one, and its server, keeper and decode processes."""
    rank = subprocess.Popen(
        [sys.executable, "-W", "always::ResourceWarning", "-m", "tests.integration.decode_rank", manifest, how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert rank.stdout is not None
    said = rank.stdout.readline().split()
    if not said:
        pytest.fail(rank.communicate()[1])
    pid, *others = map(int, said)
    assert pid == rank.pid
    assert len(others) == 4
    return rank, others


def test_a_rank_that_is_killed_takes_them_along_and_ctrl_c_does_not(small_set: str) -> None:
    shared = set(Path("/dev/shm").iterdir())
    rank, others = begun(small_set, "run")
    try:
        assert rank.stdout is not None
        assert rank.stdout.readline() == "listens\n"
        for _ in range(2):
            os.killpg(rank.pid, signal.SIGINT)
            assert rank.stdout.readline() == "went on\n"
        assert all(map(lives, others))
        rank.kill()
        # What it was sent to say is all that was said.
        assert rank.communicate(timeout=60) == ("", "")
        assert wait_until(lambda: not any(map(lives, others)), 20, 0.05)
        assert set(Path("/dev/shm").iterdir()) <= shared
    finally:
        rank.kill()
        rank.communicate()


@pytest.mark.parametrize(("how", "code"), [("leave", 0), ("fail", 1)])
def test_a_rank_may_leave_without_closing_its_stream(small_set: str, how: str, code: int) -> None:
    rank, others = begun(small_set, how)
    out, error = rank.communicate(timeout=120)
    assert rank.returncode == code
    assert out == ""
    assert (error == "") == (how == "leave")
    assert "resource_tracker" not in error
    assert "Warning" not in error
    assert wait_until(lambda: not any(map(lives, others)), 20, 0.05)
