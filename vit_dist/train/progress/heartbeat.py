"""A sign of life every two seconds, from a thread of the first rank, whatever the loop is waiting for.

It says where the attempt's time went, so that after a crash all but the last two seconds are known to be lost, however
rarely the run logs. And it looks whether a later attempt has taken the run over, so that an orphaned one leaves soon
and not at its next checkpoint only.
"""

from __future__ import annotations

import contextlib
import threading

from vit_dist.core.errors import VitDistError
from vit_dist.core.run.directory import RunDir
from vit_dist.train.progress.goodput import Goodput

EVERY_S = 2.0


class Heartbeat:
    """Beats from its making until it is closed, or until the run is another attempt's.

    Args:
        directory: of the run.
        attempt: the how-manieth of the run.
        token: of the attempt; see RunDir.take_over.
        goodput: what is told.
    """

    def __init__(self, directory: RunDir, attempt: int, token: str, goodput: Goodput) -> None:
        self._directory, self._attempt, self._token = directory, attempt, token
        self.goodput = goodput
        self.taken_over = ""
        self._closed = threading.Event()
        threading.Thread(target=self._work, name="pulse", daemon=True).start()

    def close(self) -> None:
        """Beat no more."""
        self._closed.set()

    def _work(self) -> None:
        while not self._closed.is_set() and not self.taken_over:
            with contextlib.suppress(VitDistError, OSError):  # a disk that is away or full has the next beat to be back
                self.taken_over = self._directory.superseded_by(self._token)
                if not self.taken_over:
                    self._directory.write_alive(self._attempt, self.goodput.sums())
            self._closed.wait(EVERY_S)
