"""A rank that dies takes the others down within seconds, and a rank that hangs leaves its stacks behind.

Collectives wait for a dead peer for minutes. So every rank keeps one TCP connection to rank 0, on which hardly anything
is ever sent: when a process dies its kernel closes the connection, when a node dies keep-alive finds out in some ten
seconds. Rank 0 tells the others. Ranks that end as they should send `bye` before they close it. A connection counts as
a rank's once it has said the token that rank 0 gave them over the process group; others harm nobody (strangers.py).
This needs no parent process: it is the same under srun, torchrun or `vit-dist train --nproc`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import secrets
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.exit_codes import HUNG, PEER_LOST
from vit_dist.core.log import ERROR, WARNING, log
from vit_dist.core.network import listen
from vit_dist.core.units import format_seconds
from vit_dist.core.world import World
from vit_dist.train.health.flight_recorder import write_record
from vit_dist.train.health.patience import Patience
from vit_dist.train.health.strangers import Strangers, greeting

# A rank that meets the same error as the one that is gone gets to log it itself before it is ended.
_GRACE_S = 2.0
_CONNECT_S = 60.0
_TRIES = 5
_PAUSE_S = 0.5
_WELCOME = "welcome"
_WAITS = b"waits"
# Beside one for each rank.
_BACKLOG = 64

Place = tuple[str, int, str]
"""Where rank 0 listens, host and port, and the token by which it knows a rank."""


@dataclass
class _Peer:
    """What rank 0 knows of a rank that is linked to it."""

    rank: int
    leaving: bool = False
    pending: bytes = b""


class Monitor:
    """This rank's link to the others.

    Args:
        world: this rank's place.
        exchange: gives rank 0's (host, port, token) to every rank: a collective.
        lost: called once, from a thread, with what happened; it ends the process.
        dump_stacks: called from a thread when another rank hangs.
        heard: on rank 0, called from a thread with a rank and what it waits for, in words; '' when it no longer does.
    """

    def __init__(
        self,
        world: World,
        exchange: Callable[[Place | None], Place],
        lost: Callable[[str], None],
        dump_stacks: Callable[[], None],
        heard: Callable[[int, str], None] = lambda _rank, _text: None,
    ) -> None:
        self._world, self._lost, self._dump_stacks, self._heard = world, lost, dump_stacks, heard
        self._closing = False
        self._links: list[socket.socket] = []
        if world.is_main:
            server, token = listen(backlog=world.size + _BACKLOG), secrets.token_hex(16)
            exchange((os.environ.get("MASTER_ADDR", "127.0.0.1"), int(server.getsockname()[1]), token))
            work: Callable[[], None] = lambda: self._serve(server, token)  # noqa: E731
        else:
            place = exchange(None)
            try:
                self._links.append(self._connect(place))
            except OSError as error:
                self._not_watched(place, str(error))
                return
            work = lambda: self._listen(place)  # noqa: E731
        threading.Thread(target=work, name="monitor", daemon=True).start()

    def send(self, message: str) -> None:
        """Send a line to rank 0; from rank 0 to all."""
        for link in list(self._links):
            with contextlib.suppress(OSError):
                link.sendall(f"{message}\n".encode())

    def close(self) -> None:
        """Announce that this rank ends as it should, so that no other ends because of it."""
        self._closing = True
        self.send("bye")

    def _connect(self, place: Place) -> socket.socket:
        host, port, token = place
        link = socket.create_connection((host, port), timeout=_CONNECT_S)
        # A read blocks for as long as all is well: that rank 0 is gone shows as its end, never as a time-out.
        link.settimeout(None)
        _keep_alive(link)
        link.sendall(greeting(self._world.rank, token))
        return link

    def _not_watched(self, place: Place, why: str) -> None:
        rank = self._world.rank
        log(f"rank {rank}: cannot reach rank 0 at {place[0]}:{place[1]} ({why}): it is not watched", WARNING)

    def _listen(self, place: Place) -> None:
        for attempt in range(_TRIES):
            if attempt:
                # It was closed before rank 0 had taken it for a rank's: rank 0 had too many others at its door.
                time.sleep(attempt * _PAUSE_S)
                try:
                    self._links[:] = [self._connect(place)]
                except OSError:
                    self._lost("rank 0 is gone")
                    return
            with self._links[0] as link:
                if self._follow(link) or self._closing:
                    return
        self._not_watched(place, f"it has closed {_TRIES} connections")

    def _follow(self, link: socket.socket) -> bool:
        """Do what rank 0 says until it ends. Returns False where it never said that it knows this rank."""
        pending, welcome = b"", False
        while True:
            try:
                received = link.recv(4096)
            except OSError:
                received = b""
            if not received:
                if welcome and not self._closing:
                    self._lost("rank 0 is gone")
                return welcome
            *lines, pending = (pending + received).split(b"\n")
            for line in lines:
                kind, _, rest = line.decode(errors="replace").partition(" ")
                if kind == _WELCOME:
                    welcome = True
                elif kind == "bye":
                    self._closing = True
                elif kind == "lost" and not self._closing:
                    self._lost(rest)
                elif kind == "stacks":
                    self._dump_stacks()

    def _serve(self, server: socket.socket, token: str) -> None:
        ranks: dict[Any, _Peer] = {}
        with server, selectors.DefaultSelector() as ready:
            strangers = Strangers(server, self._world.size, token, ready)
            while self._links or not self._closing:
                for key, _ in ready.select(strangers.patience_s()):
                    link: Any = key.fileobj
                    if link is server:
                        strangers.accept()
                    elif link in strangers:
                        known = strangers.hear(link)
                        if known is not None:
                            ranks[link] = self._welcome(link, *known)
                    elif not self._hear(link, ranks[link]):
                        ready.unregister(link)
                        link.close()
                strangers.drop_overdue()
            strangers.drop_all()

    def _welcome(self, link: socket.socket, rank: int, said: bytes) -> _Peer:
        """Take a connection for a rank's: as of now, what becomes of it is the run's concern."""
        link.settimeout(None)
        _keep_alive(link)
        self._links.append(link)
        with contextlib.suppress(OSError):
            link.sendall(f"{_WELCOME}\n".encode())
        peer = _Peer(rank)
        self._take(peer, said)
        return peer

    def _hear(self, link: socket.socket, peer: _Peer) -> bool:
        """Read what a rank says. Returns False where it has ended."""
        try:
            received = link.recv(4096)
        except OSError:
            received = b""
        self._take(peer, received)
        if received:
            return True
        self._links.remove(link)
        # Whoever closed its connection without a `bye` before has died.
        if not peer.leaving and not self._closing:
            self.send(f"lost rank {peer.rank} is gone")
            self._lost(f"rank {peer.rank} is gone")
        return False

    def _take(self, peer: _Peer, received: bytes) -> None:
        *lines, peer.pending = (peer.pending + received).split(b"\n")
        for line in lines:
            if line == b"bye":
                peer.leaving = True
            elif line == b"stacks":
                self.send("stacks")
                self._dump_stacks()
            elif line.startswith(_WAITS):
                self._heard(peer.rank, line[len(_WAITS) :].decode(errors="replace").strip())


def _keep_alive(link: socket.socket) -> None:
    """Find out in about ten seconds that the other node has vanished."""
    # A node that loses power closes nothing: the kernel's probes (after 4 s of silence, 3 of them 2 s apart) notice.
    link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            link.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Watchdog:
    """Ends a rank that makes no progress, after it has written where every thread stands.

    Args:
        patience: how long a step, and what is none, may take.
        stacks: directory for the stacks, made when needed.
        rank: of this process.
        send: passes "stacks" on to the other ranks.
        ended: called before the process ends, with what happened.
        waits: what this rank waits for at the moment, in words; '' where it does not.
    """

    def __init__(
        self,
        patience: Patience,
        stacks: Path,
        rank: int,
        send: Callable[[str], None],
        ended: Callable[[str], None],
        waits: Callable[[], str] = str,
    ) -> None:
        self._patience, self._stacks, self._rank, self._send, self._ended = patience, stacks, rank, send, ended
        self._waits = waits
        self._last, self._limit, self._closed = time.monotonic(), patience.other_work_s, threading.Event()
        self._dumped = False
        if patience.hang_s > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def step(self) -> None:
        """What follows is a step."""
        self._last, self._limit = time.monotonic(), self._patience.hang_s

    def other_work(self) -> None:
        """What follows is not a step: an evaluation, a checkpoint, the beginning."""
        self._last, self._limit = time.monotonic(), self._patience.other_work_s

    def close(self) -> None:
        """Watch no more."""
        self._closed.set()

    def dump(self) -> Path:
        """Write where every thread stands; once. Returns the file."""
        path = self._stacks / f"rank-{self._rank:05d}.txt"
        if not self._dumped:
            self._dumped = True
            with contextlib.suppress(OSError):
                self._stacks.mkdir(parents=True, exist_ok=True)
                with path.open("w") as file:
                    file.write(f"rank {self._rank}, process {os.getpid()} on {socket.gethostname()}, {time.ctime()}\n")
                    file.write(f"{waits}\n" if (waits := self._waits()) else "")
                    file.flush()
                    faulthandler.dump_traceback(file, all_threads=True)
            # Last, since it asks libraries that may hang themselves.
            write_record(self._stacks, self._rank)
        return path

    def _watch(self) -> None:
        hang = self._patience.hang_s
        poll = min(1.0, hang / 10)
        woke = time.monotonic()
        while not self._closed.wait(poll):
            now = time.monotonic()
            # This thread slept far longer than it asked for: the whole process was suspended, which is no hang.
            if now - woke > 5 * poll + 5:
                self._last = now
            woke = now
            waited, limit = now - self._last, self._limit
            if waited > limit:
                what = "step" if limit == hang else "evaluation, checkpoint or start"
                waits = self._waits()
                path = self.dump()
                self._send("stacks")
                reason = (
                    f"rank {self._rank} has hung for {format_seconds(waited)} in one {what} (guards.hang="
                    f"{format_seconds(hang)}); every rank's stacks are in {path.parent}"
                )
                log(f"{reason}. It waits for data: {waits}" if waits else reason, ERROR)
                # The others write their stacks meanwhile, and say what they wait for. Then without clean-up: the main
                # thread hangs, in a collective or a driver, and neither destroying the process group nor an exception
                # would ever get through.
                time.sleep(_GRACE_S / 2)
                self._ended(reason)
                time.sleep(_GRACE_S / 2)
                os._exit(HUNG)


def leave_after_grace(world: World, ended: Callable[[str], None]) -> Callable[[str], None]:
    """What a rank does when another one is gone: wait a moment, then end without any collective."""

    def leave(what: str) -> None:
        def work() -> None:
            time.sleep(_GRACE_S)
            log(f"rank {world.rank}: {what}: no collective can complete, so this rank ends too", ERROR)
            ended(what)
            # The main thread waits in a collective that never completes: only the kernel can end it.
            os._exit(PEER_LOST)

        threading.Thread(target=work, name="leave", daemon=True).start()

    return leave
