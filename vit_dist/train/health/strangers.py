"""Connections to the port of the watch that have not yet said who they are: a rank's, or anybody's.

A port that listens is found by scanners, by monitoring of the site, by a job that was given the wrong port. Only who
says a rank's number and the token, which rank 0 has told the ranks over the process group, is a rank. The others are
closed: whatever they send or leave out costs the run nothing, and holds up no rank.
"""

from __future__ import annotations

import contextlib
import hmac
import selectors
import socket
import time
from dataclasses import dataclass, field

# More than a rank's greeting has.
_LONGEST = 128
_GREETING_S = 10.0
# Beside one for each rank: more that say nothing are closed, the oldest first.
_SPARE = 64


def greeting(rank: int, token: str) -> bytes:
    """The line with which a rank begins."""
    return f"rank {rank} {token}\n".encode()


@dataclass
class _Stranger:
    came: float
    said: bytes = field(default=b"")


class Strangers:
    """Accepts connections and tells those of ranks from the others. Never blocks, and never raises.

    Args:
        server: listens.
        size: of the world.
        token: that the ranks have been told.
        ready: hears of the server and of every connection that is open.
    """

    def __init__(self, server: socket.socket, size: int, token: str, ready: selectors.BaseSelector) -> None:
        self._server, self._size, self._token, self._ready = server, size, token, ready
        self._open: dict[socket.socket, _Stranger] = {}
        self._known: set[int] = set()
        server.setblocking(False)
        ready.register(server, selectors.EVENT_READ)

    def __contains__(self, link: object) -> bool:
        return link in self._open

    def accept(self) -> None:
        """Take a new connection, unless it has gone again."""
        try:
            link, _ = self._server.accept()
        except BlockingIOError:
            return
        except OSError:
            # Too many open files, most likely: it stays in the queue, and must not keep this thread busy.
            time.sleep(0.1)
            return
        link.setblocking(False)
        self._open[link] = _Stranger(time.monotonic())
        self._ready.register(link, selectors.EVENT_READ)

    def hear(self, link: socket.socket) -> tuple[int, bytes] | None:
        """Read what a connection says. Returns its rank and what it said after its greeting, once it is a rank's.

        One that says anything else is closed.
        """
        stranger = self._open[link]
        try:
            received = link.recv(_LONGEST)
        except BlockingIOError:
            return None
        except OSError:
            received = b""
        stranger.said += received
        line, end, rest = stranger.said.partition(b"\n")
        if end:
            rank = self._rank_of(line)
            if rank is not None:
                del self._open[link]
                self._known.add(rank)
                return rank, rest
        if end or not received or len(stranger.said) >= _LONGEST:
            self._drop(link)
        return None

    def drop_overdue(self) -> None:
        """Close connections that have said nothing for too long, and the oldest of too many."""
        latest = time.monotonic() - _GREETING_S
        # In the order in which they came.
        links = list(self._open)
        too_many = len(links) - (self._size - len(self._known)) - _SPARE
        for i, link in enumerate(links):
            if i < too_many or self._open[link].came < latest:
                self._drop(link)

    def drop_all(self) -> None:
        """Close all that are no rank's."""
        for link in list(self._open):
            self._drop(link)

    def _drop(self, link: socket.socket) -> None:
        del self._open[link]
        self._ready.unregister(link)
        with contextlib.suppress(OSError):
            link.close()

    def patience_s(self) -> float | None:
        """How long to wait for the next event, at most; None where there is nobody to close."""
        return 1.0 if self._open else None

    def _rank_of(self, line: bytes) -> int | None:
        """The rank that a greeting is of; None for any other line, and for a rank that is there already."""
        word, _, rest = line.partition(b" ")
        number, _, token = rest.partition(b" ")
        if word != b"rank" or not number.isdigit() or len(number) > 9:
            return None
        rank = int(number)
        right = hmac.compare_digest(token, self._token.encode())
        return rank if right and 0 < rank < self._size and rank not in self._known else None
