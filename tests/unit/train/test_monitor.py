"""The watch over ranks that die: who counts as one, and who does not."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from vit_dist.core.process import wait_until
from vit_dist.core.world import World
from vit_dist.train.health import strangers
from vit_dist.train.health.monitor import Monitor, Place

LONG_S = 20.0


class Watch:
    """Rank 0 of a world of three, and the ranks that are linked to it, all in this process."""

    def __init__(self) -> None:
        self.place: Place = ("", 0, "")
        self.lost: dict[int, list[str]] = {0: [], 1: [], 2: []}
        self.stacks: list[int] = []
        self.ranks: list[Monitor] = []
        self.threads: list[threading.Thread] = []
        self.strangers: list[socket.socket] = []
        self.main = self.rank(0)

    def rank(self, rank: int) -> Monitor:
        """Start a rank's monitor."""

        def exchange(place: Place | None) -> Place:
            self.place = place or self.place
            return self.place

        before = set(threading.enumerate())
        monitor = Monitor(World(rank, 3, rank), exchange, self.lost[rank].append, lambda: self.stacks.append(rank))
        self.threads += set(threading.enumerate()) - before
        if rank:
            self.ranks.append(monitor)
        return monitor

    def linked(self, count: int) -> bool:
        """Wait until rank 0 knows so many ranks."""
        return wait_until(lambda: len(self.main._links) == count, LONG_S, 0.01)

    def end(self) -> None:
        """Wait for the threads of all monitors."""
        for thread in self.threads:
            thread.join(LONG_S)
            assert not thread.is_alive()

    def connect(self) -> socket.socket:
        """Come to rank 0's port as anybody."""
        link = socket.create_connection(self.place[:2], timeout=LONG_S)
        self.strangers.append(link)
        return link


@pytest.fixture(params=["127.0.0.1", "::1"])
def watch(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    if request.param == "::1" and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    monkeypatch.setenv("MASTER_ADDR", request.param)
    made = Watch()
    yield made
    made.main.close()
    for rank in made.ranks:
        rank.close()
        for link in rank._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
    with contextlib.suppress(OSError):
        made.connect()
    for link in made.strangers:
        link.close()
    made.end()


def scan(watch: Watch) -> None:
    watch.connect().close()


def reset(watch: Watch) -> None:
    link = watch.connect()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    link.close()


def say(*texts: bytes, stay: bool = True) -> Callable[[Watch], None]:
    def visit(watch: Watch) -> None:
        link = watch.connect()
        for text in texts:
            with contextlib.suppress(OSError):
                link.sendall(text.replace(b"TOKEN", watch.place[2].encode()))
        if not stay:
            link.close()

    return visit


def crowd(watch: Watch) -> None:
    for _ in range(strangers._SPARE * 2):
        watch.connect()


VISITS = {
    "port scan": scan,
    "reset": reset,
    "says nothing": say(),
    "browser": say(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
    "tls": say(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)), stay=False),
    "no end of line": say(b"x" * 100_000),
    "slow": say(b"ran", b"k 1 "),
    "wrong token": say(b"rank 1 " + b"0" * 32 + b"\n", stay=False),
    "no token": say(b"rank 1\n", b"bye\n", stay=False),
    "half a token": say(b"rank 2 TOKEN"[:-1] + b"\n", stay=False),
    "no number": say(b"rank one TOKEN\n", stay=False),
    "rank 0": say(b"rank 0 TOKEN\n", stay=False),
    "no such rank": say(b"rank 3 TOKEN\n", stay=False),
    "negative rank": say(b"rank -1 TOKEN\n", stay=False),
    "orders": say(b"stacks\nlost rank 1 is gone\nbye\n", stay=False),
    "crowd": crowd,
}


@pytest.mark.parametrize("name", VISITS)
def test_who_is_no_rank_does_no_harm_and_holds_up_nobody(watch: Watch, name: str) -> None:
    VISITS[name](watch)
    ranks = [watch.rank(1), watch.rank(2)]
    assert watch.linked(2)
    VISITS[name](watch)
    # Behind them in every queue: once this is heard, rank 0 has dealt with all that came before.
    ranks[0].send("stacks")
    assert wait_until(lambda: sorted(watch.stacks) == [0, 1, 2], LONG_S, 0.01)
    assert watch.lost == {0: [], 1: [], 2: []}
    ranks[1]._links[0].shutdown(socket.SHUT_RDWR)
    assert wait_until(lambda: bool(watch.lost[0] and watch.lost[1]), LONG_S, 0.01)
    assert watch.lost[0] == watch.lost[1] == ["rank 2 is gone"]


def test_a_rank_that_is_linked_cannot_be_replaced_by_another(watch: Watch) -> None:
    rank = watch.rank(1)
    assert watch.linked(1)
    say(b"rank 1 TOKEN\n", stay=False)(watch)
    rank.send("stacks")
    assert wait_until(lambda: sorted(watch.stacks) == [0, 1], LONG_S, 0.01)
    assert watch.lost[0] == []


def test_ranks_that_say_bye_end_nobody_and_rank_0_that_vanishes_ends_all(watch: Watch) -> None:
    first, _ = watch.rank(1), watch.rank(2)
    assert watch.linked(2)
    first.close()
    first._links[0].shutdown(socket.SHUT_RDWR)
    assert watch.linked(1)
    for link in list(watch.main._links):
        link.shutdown(socket.SHUT_RDWR)
    assert wait_until(lambda: bool(watch.lost[2]), LONG_S, 0.01)
    assert (watch.lost[1], watch.lost[2]) == ([], ["rank 0 is gone"])


def test_a_rank_that_is_turned_away_in_a_crowd_comes_again(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    turned_away: list[int] = []
    hear = strangers.Strangers.hear

    def first_one_dropped(self: strangers.Strangers, link: socket.socket) -> tuple[int, bytes] | None:
        if not turned_away:
            turned_away.append(1)
            self._drop(link)
            return None
        return hear(self, link)

    monkeypatch.setattr(strangers.Strangers, "hear", first_one_dropped)
    watch.rank(1)
    assert watch.linked(1)
    assert turned_away
    assert watch.lost == {0: [], 1: [], 2: []}


def test_connections_that_say_nothing_are_closed_in_time(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(strangers, "_GREETING_S", 0.0)
        silent = watch.connect()
        assert silent.recv(1) == b""
    watch.rank(1)
    assert watch.linked(1)
