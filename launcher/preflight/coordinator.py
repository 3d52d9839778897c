"""Who of the probes has said what, who is silent, and what each is told to do next."""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.preflight.processes import Probes
from launcher.preflight.report import NodeResult

_ROUNDS = 3
_SPOKEN = {
    "shm": "its test of /dev/shm",
    "reads": "reading shards",
    "device": "the import of torch",
    "gemm": "the matrix product",
    "reach": "its connections to the others",
    "reduce": "the all-reduce",
}
_MANY = 32  # nodes; above it, each knocks at some of the others


@dataclass(frozen=True)
class Options:
    """How to test.

    Attributes:
        timeout_s: for a node's own tests, and again for the links.
        silence_s: after which a probe that says nothing counts as gone. A probe says something every second.
        slow: a node below this share of the median counts as slow.
        max_skew_s: between a node's clock and the median.
        reads: URL and size of shards to read from; empty leaves that out.
    """

    timeout_s: float = 180.0
    silence_s: float = 15.0
    slow: float = 0.7
    max_skew_s: float = 2.0
    reads: tuple[tuple[str, int], ...] = ()


@dataclass
class _Rank:
    """What a probe has said so far."""

    node: str
    seen: float
    pid: int = 0
    test: str = "start"
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    offsets: list[float] = field(default_factory=list)
    boot: str = ""
    ready: dict[str, Any] | None = None
    gone: str = ""

    def told_ready(self, what: str) -> Any:
        """What it said when its own tests were through."""
        return (self.ready or {})[what]

    def done(self, test: str) -> bool:
        """It has ended this test, one way or the other."""
        return test in self.found or test in self.failed


class Watch:
    """Who has said what, and who is silent."""

    def __init__(self, probes: Probes, nodes: Sequence[str], per_node: int, options: Options) -> None:
        self._probes, self._nodes, self._per_node, self._options = probes, nodes, per_node, options
        self._ranks: dict[int, _Rank] = {}
        self._absent: dict[str, str] = {}
        self._ended = False

    def run(self) -> list[str]:
        """All tests, one after another; what concerns no single node."""
        total = len(self._nodes) * self._per_node
        began = time.monotonic()
        self._wait(lambda: len(self._ranks) == total, lambda r: r.ready is not None, self._options.timeout_s)
        waited = time.monotonic() - began
        for node in self._nodes:
            if sum(r.node == node for r in self._ranks.values()) < self._per_node:
                why = "".join(f" ({line})" for line in self._probes.complaints[:1])
                self._absent[node] = f"did not start in {waited:.0f} s{why}"
        remarks = self._links() if len(self._nodes) > 1 else []
        self._probes.order(do="end")
        if not any(r.gone for r in self._ranks.values()) and not self._absent:
            self._probes.wait(5)
        return remarks

    def result(self, node: str) -> NodeResult:
        """What is known of a node."""
        ranks = [r for r in self._ranks.values() if r.node == node]
        problems = [self._absent[node]] if node in self._absent else []
        for rank in ranks:
            problems += [rank.gone] if rank.gone else []
            problems += [f"{test}: {error}" for test, error in rank.failed.items() if test != "reduce"]
        figures = {}
        for test in ("gemm", "shm", "reads", "reduce"):
            rates = [r.found[test]["rate"] for r in ranks if test in r.found]
            if rates:
                figures[test] = min(rates)
        # A healthy node looks slow beside a slow one: what counts is the best that it did.
        pairs = [
            max((rate for _, rate in r.found["reduce"]["pairs"]), default=0.0) for r in ranks if "reduce" in r.found
        ]
        if pairs and min(pairs) > 0:
            figures["links"] = min(pairs)
        frees = [r.found["shm"]["free"] for r in ranks if "shm" in r.found]
        if frees:
            figures["shm_free"] = min(frees)
        offsets = [o for r in ranks for o in r.offsets]
        devices = sorted({str(r.found["device"]["device"]) for r in ranks if "device" in r.found})
        return NodeResult(node, tuple(dict.fromkeys(problems)), figures, min(offsets) if offsets else None, devices)

    def _wait(
        self,
        all_here: Callable[[], bool],
        done: Callable[[_Rank], bool],
        limit: float,
        ranks: Collection[int] = (),
        *,
        together: bool = False,
    ) -> None:
        """Listen until all that are here are done, or silent, or late. Those that are not are marked as gone.

        Where they work `together`, one that falls silent holds up the others: they are not waited for, nor blamed.
        """
        began, most_s = time.monotonic(), math.inf
        total = len(ranks) or len(self._nodes) * self._per_node
        while True:
            self._listen(0.1)
            now = time.monotonic()
            waited_for = [r for i, r in self._ranks.items() if not r.gone and (not ranks or i in ranks)]
            open_ = [r for r in waited_for if not done(r)]
            if not open_ and all_here():
                return
            for rank in open_:
                if now - rank.seen > self._options.silence_s:
                    rank.gone = f"fell silent during {rank.test}: its process has died or hangs, or the node is cut off"
            if together and any(r.gone for i, r in self._ranks.items() if i in ranks):
                return
            # Once most are through, a straggler gets as long again, not the whole limit.
            if len(waited_for) - len(open_) > total / 2:
                most_s = min(most_s, now - began)
            spent = now - began
            if self._ended or spent > min(limit, 2 * most_s + self._options.silence_s):
                for rank in open_:
                    late = f"{rank.test} ended early" if self._ended else f"{rank.test} did not end in {spent:.0f} s"
                    rank.gone = rank.gone or late
                return

    def _listen(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._probes.lines.get(timeout=left)
            except queue.Empty:
                return
            if line is None:
                self._ended = True
                return
            self._take(*line)

    def _take(self, at: float, told: dict[str, Any]) -> None:
        now = time.monotonic()
        rank = self._ranks.setdefault(told["rank"], _Rank(str(told["node"]), now))
        rank.seen, rank.pid = now, int(told["pid"])
        rank.offsets.append(at - float(told["wall"]))
        what, test = told["what"], str(told.get("test", ""))
        if what == "hello":
            rank.boot = str(told["boot"])
        elif what == "begin":
            rank.test = _SPOKEN.get(test, test)
        elif what == "failed":
            rank.failed[test] = str(told["error"])
        elif what == "found":
            rank.found[test] = told
        elif what == "ready":
            rank.ready = told

    def _links(self) -> list[str]:
        """Whether nodes reach each other, then an all-reduce over those that do; what concerns no single node."""
        fit = {i: r for i, r in self._ranks.items() if not r.gone and not r.failed and r.node not in self._absent}
        nodes = sorted(
            {r.node for r in self._ranks.values()} - {r.node for i, r in self._ranks.items() if i not in fit}
        )
        fit = {i: r for i, r in sorted(fit.items()) if r.node in nodes}
        if len(nodes) < 2:
            return ["fewer than two nodes are fit, so the links between them were not tested"]
        first = {node: min(i for i, r in fit.items() if r.node == node) for node in nodes}
        same_host = len({r.boot for r in fit.values()}) == 1
        places = {node: (self._address(fit[i], same_host), fit[i].told_ready("port")) for node, i in first.items()}
        self._probes.order(do="reach", ranks=list(first.values()), peers=_some(places))
        self._wait(lambda: True, lambda r: r.done("reach"), 60.0, list(first.values()))
        remarks = self._cut_off(nodes, first)
        nodes = [n for n in nodes if not any(r.gone or r.failed for r in self._ranks.values() if r.node == n)]
        fit = {i: r for i, r in fit.items() if r.node in nodes}
        if remarks or len(nodes) < 2:
            return [*remarks, "the all-reduce was left out: too few nodes reach each other"]
        master = fit[first[nodes[0]]]
        self._probes.order(
            do="reduce",
            ranks=list(fit),
            address=self._address(master, same_host),
            port=master.told_ready("store_port"),
            same_host=same_host,
            timeout=self._options.timeout_s,
            rounds=_rounds(fit, nodes),
        )
        self._wait(lambda: True, lambda r: r.done("reduce"), self._options.timeout_s, list(fit), together=True)
        errors = sorted({r.failed["reduce"] for r in fit.values() if "reduce" in r.failed})
        # Where one has died or hangs, the others' errors are about that.
        silent = any(r.gone for r in fit.values())
        return [] if silent else [f"the all-reduce over {', '.join(nodes)} failed: {error}" for error in errors]

    def _address(self, rank: _Rank, same_host: bool) -> str:
        return "127.0.0.1" if same_host else str(rank.told_ready("address"))

    def _cut_off(self, nodes: Sequence[str], first: Mapping[str, int]) -> list[str]:
        """Mark the nodes whose links fail, the one with the most first; with two nodes nobody can be named."""
        broken = {
            frozenset((node, peer))
            for node, i in first.items()
            for peer in self._ranks[i].found.get("reach", {}).get("unreachable", ())
        }
        if broken and len(nodes) == 2:
            return [f"{nodes[0]} and {nodes[1]} do not reach each other"]
        while broken:
            worst = max(nodes, key=lambda n: sum(n in pair for pair in broken))
            peers = sorted(n for pair in broken if worst in pair for n in pair - {worst})
            self._ranks[first[worst]].failed["network"] = f"no connection between it and {', '.join(peers[:8])}"
            broken = {pair for pair in broken if worst not in pair}
        return []


def _some(places: Mapping[str, tuple[str, Any]]) -> dict[str, dict[str, tuple[str, Any]]]:
    """Whom each node knocks at: all others, or where there are many, those at distances 1, 2, 4, ..."""
    nodes, count = list(places), len(places)
    steps = range(1, count) if count <= _MANY else [1 << k for k in range(count.bit_length()) if 1 << k < count]
    return {
        node: {nodes[(i + step) % count]: places[nodes[(i + step) % count]] for step in steps}
        for i, node in enumerate(nodes)
    }


def _rounds(fit: Mapping[int, _Rank], nodes: Sequence[str]) -> list[dict[str, tuple[str, int]]]:
    """Rounds in which each rank exchanges with its like of one other node: rank -> (node, rank)."""
    of_node = {node: [i for i, r in fit.items() if r.node == node] for node in nodes}
    circle: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    rounds = []
    for _ in range(min(_ROUNDS, len(circle) - 1)):  # the circle method: the first stays, the others move on
        half = len(circle) // 2
        partners: dict[str, tuple[str, int]] = {}
        for a, b in zip(circle[:half], reversed(circle[half:]), strict=True):
            if a is not None and b is not None:
                for i, j in zip(of_node[a], of_node[b], strict=False):
                    partners[str(i)], partners[str(j)] = (b, j), (a, i)
        rounds.append(partners)
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds
