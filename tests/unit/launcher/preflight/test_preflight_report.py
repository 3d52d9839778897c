"""How a preflight's figures become verdicts."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.preflight.coordinator import RankState, _peers_to_reach, _rounds
from launcher.preflight.report import NodeResult, PreflightReport, compare_nodes, lines

GOOD = {"gemm": 1e12, "links": 1e9, "shm": 1e9, "reads": 1e8, "shm_free": float(1 << 30)}


def node(name: str, *problems: str, offset: float | None = 0.0, **figures: float) -> NodeResult:
    return NodeResult(name, problems, {**GOOD, **figures}, offset)


def judged(*results: NodeResult, remarks: tuple[str, ...] = ()) -> PreflightReport:
    return compare_nodes(results, remarks, slow=0.7, max_skew_s=2.0, seconds=1.0)


def verdicts(report: PreflightReport) -> dict[str, str]:
    return {n.node: n.verdict for n in report.nodes}


def test_a_node_below_the_share_of_the_median_is_slow_and_named() -> None:
    report = judged(node("a"), node("b", gemm=0.69e12), node("c", gemm=0.71e12), node("d"))
    assert verdicts(report) == {"a": "ok", "b": "slow", "c": "ok", "d": "ok"}
    assert report.bad == {"b": "slow: matrix product at 69% of the median"}
    assert not report.ok


def test_of_two_nodes_the_worse_is_held_to_the_better() -> None:
    assert verdicts(judged(node("a", links=1e8), node("b"))) == {"a": "slow", "b": "ok"}


def test_reads_and_shared_memory_may_vary_more_than_arithmetic() -> None:
    report = judged(node("a"), node("b", reads=0.4e8, shm=0.4e9), node("c"), node("d"))
    assert set(verdicts(report).values()) == {"ok"}
    assert verdicts(judged(node("a"), node("b"), node("c", reads=0.3e8)))["c"] == "slow"


def test_what_every_node_complains_of_is_no_nodes_fault() -> None:
    report = judged(node("a", "reads: the store is away"), node("b", "reads: the store is away", "gemm: wrong"))
    assert verdicts(report) == {"a": "ok", "b": "sick"}
    assert report.remarks == ("every node: reads: the store is away",)
    assert not report.ok


def test_one_machine_alone_is_sick_of_its_own_problems() -> None:
    assert verdicts(judged(node("a", "gemm: wrong"))) == {"a": "sick"}


@pytest.mark.parametrize(("offset", "word"), [(-3.0, "ahead"), (3.0, "behind")])
def test_a_clock_that_is_off_is_named(offset: float, word: str) -> None:
    # our clock minus the node's: negative where the node is ahead
    report = judged(node("a", offset=0.001), node("b", offset=offset), node("c", offset=0.002))
    assert verdicts(report) == {"a": "ok", "b": "sick", "c": "ok"}
    assert f"its clock is 3.0 s {word}" in report.bad["b"]


def test_a_full_shared_memory_is_sick() -> None:
    assert "in /dev/shm" in judged(node("a"), node("b", shm_free=1e6)).bad["b"]


def test_secrets_in_errors_are_hidden() -> None:
    report = judged(node("a", "reads: https://me:hunter2@host/x?token=abc"), node("b"), remarks=("password=xyz",))
    text = "\n".join(lines(report))
    assert "hunter2" not in text
    assert "abc" not in text
    assert "xyz" not in text


def test_every_node_meets_others_in_the_rounds_and_no_rank_twice_in_one() -> None:
    for count in (2, 3, 4, 5, 8):
        nodes = [f"n{i}" for i in range(count)]
        fit = {2 * i + k: RankState(nodes[i], 0.0) for i in range(count) for k in range(2)}
        rounds: list[dict[str, Any]] = _rounds(fit, nodes)
        met: dict[str, set[str]] = {name: set() for name in nodes}
        for partners in rounds:
            for rank, (peer, other) in partners.items():
                assert partners[str(other)] == (fit[int(rank)].node, int(rank))
                met[fit[int(rank)].node].add(peer)
        assert all(len(peers) >= min(2, count - 1) for peers in met.values())


def test_of_many_nodes_each_connects_to_some_of_the_others_and_each_is_connected_to() -> None:
    places = {f"n{i}": ("host", i) for i in range(500)}
    some = _peers_to_reach(places)
    assert max(len(peers) for peers in some.values()) < 12
    assert {peer for peers in some.values() for peer in peers} == set(places)
    assert all(name not in peers for name, peers in some.items())
