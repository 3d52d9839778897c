"""A decode process that does not come back, in a run: its record and its logs name process, image and rank."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.decoding import descendants
from tests.laws.test_recovery import LONG, end_all, start_ranks, wait_until_running
from tests.laws.test_resume import recipe_file
from vit_dist.core.exit_codes import HUNG, PEER_LOST
from vit_dist.core.process import lives, wait_until
from vit_dist.core.run import history

pytestmark = pytest.mark.distributed


def decoder(rank: int) -> int:
    """The only process below a rank's server and keeper, once it is there."""
    found: list[int] = []

    def look() -> bool:
        found[:] = [pid for pid in descendants(rank) if not list(descendants(pid))]
        return len(found) == 1 and len(list(descendants(rank))) == 3

    assert wait_until(look, 120, 0.1)
    return found[0]


def test_the_rank_that_waits_for_a_decoder_is_named_with_it(tmp_path: Path, small_set: str, small_val: str) -> None:
    run = tmp_path / "run"
    ranks = start_ranks(
        recipe_file(tmp_path, small_set, small_val), run, *LONG, "guards.hang=8s", "data.decode_workers=1"
    )
    try:
        pid = decoder(ranks[1].pid)
        step = wait_until_running(run).step
        # Processes have taken over by then.
        time.sleep(2)
        wait_until_running(run, step + 20)
        os.kill(pid, signal.SIGSTOP)
        codes = [rank.wait(90) for rank in ranks]
    finally:
        outputs = end_all(ranks)
    assert codes[1] == HUNG, outputs
    assert codes[0] in {HUNG, PEER_LOST}
    stopped = rf"decode process 0 \(pid {pid}\) has been stopped by a signal"
    assert re.search(rf"rank 1 has hung for .* It waits for data: {stopped}", outputs[1])
    status = history.read(run).status
    assert status is not None
    assert status.status == "failed"
    assert re.search(rf"Training waits for data on rank 1: {stopped}.*kill -CONT {pid}", status.reason)
    assert re.search(stopped, (run / "stacks" / "rank-00001.txt").read_text())
    assert wait_until(lambda: not lives(pid), 20, 0.1)
