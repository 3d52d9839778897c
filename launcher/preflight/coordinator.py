"""The coordinator of a preflight: collects what the probes report, notices who is silent, and starts the next test.

A probe that never starts, dies, hangs or is cut off looks the same from here: its heartbeat stops.
"""

from __future__ import annotations

import math
import queue
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.preflight.processes import ProbeProcesses
from launcher.preflight.report import NodeResult

_ROUNDS = 3
_TEST_NAMES = {
    "shm": "its test of /dev/shm",
    "reads": "reading shards",
    "device": "the import of torch",
    "gemm": "the matrix product",
    "reach": "its connections to the others",
    "reduce": "the all-reduce",
}
_ALL_PAIRS_UP_TO = 32
"""Nodes; with more, each opens a connection to some of the others: N (N - 1) at once would be a storm of its own."""


@dataclass(frozen=True)
class PreflightOptions:
    """How to test.

    Attributes:
        timeout_s: for a node's own tests, and again for the links.
        silence_s: after which a probe without a heartbeat counts as gone. One comes every second.
        slow: a node below this fraction of the median counts as slow.
        max_skew_s: between a node's clock and the median.
        reads: URL and size of shards to read from; empty leaves that out.
    """

    timeout_s: float = 180.0
    silence_s: float = 15.0
    slow: float = 0.7
    max_skew_s: float = 2.0
    reads: tuple[tuple[str, int], ...] = ()


@dataclass
class RankState:
    """What a probe has reported so far.

    Attributes:
        node: on which it runs.
        last_heartbeat: when its last message of any kind came, by `time.monotonic`.
        test: what it is doing, for people.
        results, errors: of its tests, by name.
        clock_offsets: our clock minus its own, seconds, a value a message; the least has the least latency in it.
        boot_id: names the running kernel: nodes with the same one are one machine.
        ready: its message that its own tests are through, with the addresses at which others reach it.
        gone: why it counts as gone; '' while it does not.
    """

    node: str
    last_heartbeat: float
    test: str = "start"
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    clock_offsets: list[float] = field(default_factory=list)
    boot_id: str = ""
    ready: dict[str, Any] | None = None
    gone: str = ""

    def ready_field(self, key: str) -> Any:
        """A field of the message `ready`."""
        return (self.ready or {})[key]

    def done(self, test: str) -> bool:
        """It has ended this test, one way or the other."""
        return test in self.results or test in self.errors


class Coordinator:
    """Leads the probes of all nodes through the tests.

    Args:
        probes: their processes.
        nodes: that are tested.
        per_node: probes on each.
        options: how to test.
    """

    def __init__(self, probes: ProbeProcesses, nodes: Sequence[str], per_node: int, options: PreflightOptions) -> None:
        self._probes, self._nodes, self._per_node, self._options = probes, nodes, per_node, options
        self._ranks: dict[int, RankState] = {}
        self._not_started: dict[str, str] = {}
        self._ended = False

    def run(self) -> list[str]:
        """Do all tests, one after another. Returns remarks that concern no single node."""
        total = len(self._nodes) * self._per_node
        began = time.monotonic()
        self._wait(lambda: len(self._ranks) == total, lambda r: r.ready is not None, self._options.timeout_s)
        waited = time.monotonic() - began
        for node in self._nodes:
            if sum(r.node == node for r in self._ranks.values()) < self._per_node:
                why = "".join(f" ({line})" for line in self._probes.stderr_lines[:1])
                self._not_started[node] = f"did not start in {waited:.0f} s{why}"
        remarks = self._links() if len(self._nodes) > 1 else []
        self._probes.send(do="end")
        if not any(r.gone for r in self._ranks.values()) and not self._not_started:
            self._probes.wait(5)
        return remarks

    def result(self, node: str) -> NodeResult:
        """What is known of a node."""
        ranks = [r for r in self._ranks.values() if r.node == node]
        problems = [self._not_started[node]] if node in self._not_started else []
        for rank in ranks:
            problems += [rank.gone] if rank.gone else []
            # An all-reduce fails on every rank at once: whose fault it is, `_links` finds out.
            problems += [f"{test}: {error}" for test, error in rank.errors.items() if test != "reduce"]
        figures = {}
        for test in ("gemm", "shm", "reads", "reduce"):
            rates = [r.results[test]["rate"] for r in ranks if test in r.results]
            if rates:
                figures[test] = min(rates)
        # A healthy node looks slow beside a slow one: what counts is the best that it did.
        pairs = [
            max((rate for _, rate in r.results["reduce"]["pairs"]), default=0.0) for r in ranks if "reduce" in r.results
        ]
        if pairs and min(pairs) > 0:
            figures["links"] = min(pairs)
        frees = [r.results["shm"]["free"] for r in ranks if "shm" in r.results]
        if frees:
            figures["shm_free"] = min(frees)
        offsets = [o for r in ranks for o in r.clock_offsets]
        devices = sorted({str(r.results["device"]["device"]) for r in ranks if "device" in r.results})
        return NodeResult(node, tuple(dict.fromkeys(problems)), figures, min(offsets) if offsets else None, devices)

    def _wait(
        self,
        all_here: Callable[[], bool],
        done: Callable[[RankState], bool],
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
            self._read_messages(0.1)
            now = time.monotonic()
            waited_for = [r for i, r in self._ranks.items() if not r.gone and (not ranks or i in ranks)]
            open_ = [r for r in waited_for if not done(r)]
            if not open_ and all_here():
                return
            for rank in open_:
                if now - rank.last_heartbeat > self._options.silence_s:
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

    def _read_messages(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._probes.lines.get(timeout=left)
            except queue.Empty:
                return
            if line is None:
                self._ended = True
                return
            self._receive(*line)

    def _receive(self, at: float, message: dict[str, Any]) -> None:
        now = time.monotonic()
        rank = self._ranks.setdefault(message["rank"], RankState(str(message["node"]), now))
        # Any message is a heartbeat; those of kind `alive` are nothing else.
        rank.last_heartbeat = now
        rank.clock_offsets.append(at - float(message["wall"]))
        kind, test = message["what"], str(message.get("test", ""))
        if kind == "hello":
            rank.boot_id = str(message["boot"])
        elif kind == "begin":
            rank.test = _TEST_NAMES.get(test, test)
        elif kind == "failed":
            rank.errors[test] = str(message["error"])
        elif kind == "found":
            rank.results[test] = message
        elif kind == "ready":
            rank.ready = message

    def _links(self) -> list[str]:
        """Test whether nodes reach each other, then an all-reduce over those that do. Returns remarks about no node."""
        fit = {i: r for i, r in self._ranks.items() if not r.gone and not r.errors and r.node not in self._not_started}
        nodes = sorted(
            {r.node for r in self._ranks.values()} - {r.node for i, r in self._ranks.items() if i not in fit}
        )
        fit = {i: r for i, r in sorted(fit.items()) if r.node in nodes}
        if len(nodes) < 2:
            return ["fewer than two nodes are fit, so the links between them were not tested"]
        first = {node: min(i for i, r in fit.items() if r.node == node) for node in nodes}
        same_host = len({r.boot_id for r in fit.values()}) == 1
        places = {node: (self._address(fit[i], same_host), fit[i].ready_field("port")) for node, i in first.items()}
        self._probes.send(do="reach", ranks=list(first.values()), peers=_peers_to_reach(places))
        self._wait(lambda: True, lambda r: r.done("reach"), 60.0, list(first.values()))
        remarks = self._cut_off(nodes, first)
        nodes = [n for n in nodes if not any(r.gone or r.errors for r in self._ranks.values() if r.node == n)]
        fit = {i: r for i, r in fit.items() if r.node in nodes}
        if remarks or len(nodes) < 2:
            return [*remarks, "the all-reduce was left out: too few nodes reach each other"]
        master = fit[first[nodes[0]]]
        self._probes.send(
            do="reduce",
            ranks=list(fit),
            address=self._address(master, same_host),
            port=master.ready_field("store_port"),
            same_host=same_host,
            timeout=self._options.timeout_s,
            rounds=_rounds(fit, nodes),
        )
        self._wait(lambda: True, lambda r: r.done("reduce"), self._options.timeout_s, list(fit), together=True)
        errors = sorted({r.errors["reduce"] for r in fit.values() if "reduce" in r.errors})
        # Where one has died or hangs, the others' errors are about that.
        silent = any(r.gone for r in fit.values())
        return [] if silent else [f"the all-reduce over {', '.join(nodes)} failed: {error}" for error in errors]

    def _address(self, rank: RankState, same_host: bool) -> str:
        return "127.0.0.1" if same_host else str(rank.ready_field("address"))

    def _cut_off(self, nodes: Sequence[str], first: Mapping[str, int]) -> list[str]:
        """Mark the nodes whose links fail, the one with the most first; with two nodes neither can be blamed."""
        broken = {
            frozenset((node, peer))
            for node, i in first.items()
            for peer in self._ranks[i].results.get("reach", {}).get("unreachable", ())
        }
        if broken and len(nodes) == 2:
            return [f"{nodes[0]} and {nodes[1]} do not reach each other"]
        while broken:
            worst = max(nodes, key=lambda n: sum(n in pair for pair in broken))
            peers = sorted(n for pair in broken if worst in pair for n in pair - {worst})
            self._ranks[first[worst]].errors["network"] = f"no connection between it and {', '.join(peers[:8])}"
            broken = {pair for pair in broken if worst not in pair}
        return []


def _peers_to_reach(places: Mapping[str, tuple[str, Any]]) -> dict[str, dict[str, tuple[str, Any]]]:
    """To whom each node opens a connection: all others, or where there are many, those at distances 1, 2, 4, ..."""
    nodes, count = list(places), len(places)
    steps = (
        range(1, count) if count <= _ALL_PAIRS_UP_TO else [1 << k for k in range(count.bit_length()) if 1 << k < count]
    )
    return {
        node: {nodes[(i + step) % count]: places[nodes[(i + step) % count]] for step in steps}
        for i, node in enumerate(nodes)
    }


def _rounds(fit: Mapping[int, RankState], nodes: Sequence[str]) -> list[dict[str, tuple[str, int]]]:
    """Rounds in which each rank exchanges with its like of one other node: rank -> (node, rank)."""
    of_node = {node: [i for i, r in fit.items() if r.node == node] for node in nodes}
    circle: list[str | None] = [*nodes, *([None] if len(nodes) % 2 else [])]
    rounds = []
    # The circle method of round-robin tournaments: the first stays, the others move on.
    for _ in range(min(_ROUNDS, len(circle) - 1)):
        half = len(circle) // 2
        # Keys are texts, for they become those of a JSON object.
        partners: dict[str, tuple[str, int]] = {}
        for a, b in zip(circle[:half], reversed(circle[half:]), strict=True):
            if a is not None and b is not None:
                for i, j in zip(of_node[a], of_node[b], strict=False):
                    partners[str(i)], partners[str(j)] = (b, j), (a, i)
        rounds.append(partners)
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds
