"""Every fuzz target for its share of an hour, with other inputs each time; VIT_DIST_FUZZ_SECONDS says how long in all.

`python -m pytest tests/drills/test_fuzz.py -m drill -s`. A failure is told with the input and hypothesis's line that
reproduces it; `.hypothesis` keeps it, so that the target fails at once when it is run again.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pytest

from tests.places import ROOT

pytestmark = [pytest.mark.drill, pytest.mark.timeout(0)]

SECONDS = float(os.environ.get("VIT_DIST_FUZZ_SECONDS", "3600"))
_TARGETS = "tests/unit/fuzz"
_ENDLESS = "1000000000"


def run(*arguments: str, examples: str, seconds: float | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--timeout", "0", *arguments],
        cwd=ROOT,
        env={**os.environ, "VIT_DIST_FUZZ_EXAMPLES": examples},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )


def targets() -> list[str]:
    """Ids of the tests that hypothesis drives."""
    listed = run("--collect-only", "-m", "hypothesis", _TARGETS, examples="1")
    return [line.strip() for line in listed.stdout.splitlines() if "::" in line]


def test_every_fuzz_target_holds_for_its_share_of_the_time() -> None:
    found = targets()
    assert len(found) > 15, found
    share, failed = SECONDS / len(found), {}
    for target in found:
        begun = time.monotonic()
        with contextlib.suppress(subprocess.TimeoutExpired):
            run(target, examples=_ENDLESS, seconds=share)
        # What was found is kept, also where its time ended before it was told: it is tried first.
        done = run(target, examples="1")
        print(f"{'ok' if done.returncode == 0 else 'FAILED':6} {time.monotonic() - begun:5.0f} s  {target}", flush=True)
        if done.returncode:
            failed[target] = done.stdout[-6000:] + done.stderr[-1000:]
    assert not failed, "\n\n".join(f"{target}\n{output}" for target, output in failed.items())
