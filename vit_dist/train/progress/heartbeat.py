"""The heartbeat: alive.json every two seconds, from a thread of rank 0, whatever the loop is waiting for.

It says how far the attempt is and where its time went, so that after a crash all but the last two seconds are known to
be lost, however rarely the run logs. And it looks whether a later attempt has superseded this one, so that an orphaned
one leaves soon and not at its next checkpoint only.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from vit_dist.core.errors import VitDistError

EVERY_S = 2.0


class Heartbeat:
    """Beats from its making until it is closed, or until the attempt is superseded.

    Args:
        superseded_by: the later attempt that owns the directory, in words, or ''.
        beat: writes the heartbeat.
    """

    def __init__(self, superseded_by: Callable[[], str], beat: Callable[[], None]) -> None:
        self._superseded_by, self._beat = superseded_by, beat
        self.superseded = ""
        self._closed = threading.Event()
        threading.Thread(target=self._work, name="heartbeat", daemon=True).start()

    def close(self) -> None:
        """Beat no more."""
        self._closed.set()

    def _work(self) -> None:
        while not self._closed.is_set() and not self.superseded:
            # A disk that is away or full may be back at the next beat; training decides about it at a checkpoint.
            with contextlib.suppress(VitDistError):
                # Looked up before each beat: a process that was suspended wakes up here, and must not write over the
                # heartbeat of the attempt that has superseded it meanwhile.
                self.superseded = self._superseded_by()
                if not self.superseded:
                    self._beat()
            self._closed.wait(EVERY_S)
