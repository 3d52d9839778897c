"""Waiting for batches: what a long wait is for is said while it lasts, and it may have an end. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from vit_dist.core.errors import DataTimeoutError
from vit_dist.core.log import WARNING, log
from vit_dist.core.units import format_seconds

T = TypeVar("T")

TELL_EVERY_S = 30.0
"""A wait of so long is told of."""
LOG_EVERY_S = 600.0
"""What is told is logged at first, and then so often."""
_SLICE_S = 1.0


def told_to_nobody(_: str) -> None:
    """The default of whoever may be told."""


class Waits:
    """Waits for the batches of one stream.

    Args:
        cause: what is waited for, given for how long, in words (data/doing.py).
        timeout_s: of one batch; 0: none.
        told: called with the cause of a long wait, each time that it is asked for, and with '' once the wait is over.
    """

    def __init__(
        self, cause: Callable[[float], str], timeout_s: float = 0.0, told: Callable[[str], None] = told_to_nobody
    ) -> None:
        self._cause, self._timeout_s, self._told = cause, timeout_s, told
        self._waited: float | None = None
        self._tell_at = self._log_at = TELL_EVERY_S

    def begin(self) -> None:
        """From now on a batch is waited for."""
        self._waited, self._tell_at, self._log_at = 0.0, TELL_EVERY_S, TELL_EVERY_S

    def end(self) -> None:
        """It is here, or there is none."""
        self._waited = None
        if self._tell_at > TELL_EVERY_S:
            self._told("")

    def now(self) -> str:
        """What is waited for at this moment, asked by another thread; '' where nothing is."""
        waited = self._waited
        return self._cause(waited) if waited is not None else ""

    def result(self, future: Future[T]) -> T:
        """The result of a part of the batch.

        Raises:
            DataTimeoutError: the batch has taken too long.
        """
        while True:
            began = time.monotonic()
            asked = min(_SLICE_S, self._timeout_s / 4) if self._timeout_s else _SLICE_S
            try:
                return future.result(asked)
            except TimeoutError:
                # Or this is how its reading failed.
                if future.done():
                    return future.result()
            # Not the time in which all of this process was stopped.
            self._late(min(time.monotonic() - began, 2 * asked))

    def _late(self, by_s: float) -> None:
        waited = self._waited = (self._waited or 0.0) + by_s
        if self._timeout_s and waited >= self._timeout_s:
            raise DataTimeoutError(f"no batch within timeout={self._timeout_s:g} seconds: {self._cause(waited)}")
        if waited >= self._tell_at:
            self._tell_at, cause = self._tell_at + TELL_EVERY_S, self._cause(waited)
            if waited >= self._log_at:
                self._log_at += LOG_EVERY_S
                log(f"  no batch for {format_seconds(waited)}: {cause}", WARNING)
            self._told(cause)
