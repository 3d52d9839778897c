"""What a preflight found: nodes against their median, and how people read it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from vit_dist.core.files import redact
from vit_dist.core.tables import columns, to_lines
from vit_dist.core.units import counted, format_bytes, format_seconds

if TYPE_CHECKING:
    from rich.text import Text

_SHM_NEEDED = 64 << 20
# Disks and stores vary more than arithmetic does: they must be further below the median to count.
_LENIENT = {"gemm": 1.0, "links": 1.0, "shm": 0.5, "reads": 0.5}
_HEADS = ("node", "verdict", "GEMM", "links", "shm", "reads", "clock")
_COLOURS = {"ok": "green", "slow": "yellow", "sick": "red"}
_NAMES = {
    "gemm": "matrix product",
    "links": "exchange with other nodes",
    "shm": "shared memory",
    "reads": "reading shards",
    "reduce": "all-reduce",
}


@dataclass(frozen=True)
class NodeResult:
    """What one node's probes measured.

    Attributes:
        node: its name.
        problems: what failed.
        figures: rates by test (FLOP/s for `gemm`, else bytes per second), and `shm_free`.
        offset: our clock minus the node's, in seconds, latency included; None where it sent nothing.
        devices: what computes there.
    """

    node: str
    problems: tuple[str, ...]
    figures: Mapping[str, float]
    offset: float | None
    devices: Sequence[str] = ()


@dataclass(frozen=True)
class NodeReport:
    """A node's verdict: 'ok', 'slow' or 'sick', why, and its figures (with `skew` in seconds)."""

    node: str
    verdict: str
    reasons: tuple[str, ...]
    figures: Mapping[str, float]
    devices: Sequence[str] = ()


@dataclass(frozen=True)
class PreflightReport:
    """What a preflight found; `remarks` concern no single node, and are failures too."""

    nodes: tuple[NodeReport, ...]
    remarks: tuple[str, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Nothing is wrong."""
        return not self.remarks and all(node.verdict == "ok" for node in self.nodes)

    @property
    def bad(self) -> dict[str, str]:
        """Nodes that should not train, each with the reason."""
        return {n.node: f"{n.verdict}: {'; '.join(n.reasons)}" for n in self.nodes if n.verdict != "ok"}

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"ok": self.ok, "seconds": round(self.seconds, 3), **asdict(replace(self, seconds=0.0)), "bad": self.bad}


def compare_nodes(
    results: Sequence[NodeResult], remarks: Sequence[str], slow: float, max_skew_s: float, seconds: float
) -> PreflightReport:
    """Compare nodes with each other.

    What every node reports is no node's fault, and becomes a remark: a store that is away is not 500 sick nodes.
    """
    shared = list(dict.fromkeys(redact(remark) for remark in remarks))
    common: set[str] = set()
    if len(results) > 1:
        common = set(results[0].problems).intersection(*(set(r.problems) for r in results[1:]))
        shared += [f"every node: {problem}" for problem in sorted(common)]
    medians = {test: _reference([r.figures[test] for r in results if test in r.figures]) for test in _LENIENT}
    offsets = [r.offset for r in results if r.offset is not None]
    middle = statistics.median(offsets) if offsets else 0.0
    nodes = []
    for r in results:
        sick = [redact(problem) for problem in r.problems if problem not in common]
        figures = dict(r.figures)
        if r.offset is not None:
            figures["skew"] = middle - r.offset
            if len(offsets) > 1 and abs(figures["skew"]) > max_skew_s:
                sick.append(
                    f"its clock is {abs(figures['skew']):.1f} s {'ahead' if figures['skew'] > 0 else 'behind'}; look "
                    f"at its time service (chrony, ntp)"
                )
        if figures.get("shm_free", _SHM_NEEDED) < _SHM_NEEDED:
            sick.append(f"{format_bytes(figures['shm_free'])} free in /dev/shm; NCCL needs more: clear or enlarge it")
        slower = [
            f"{_NAMES[test]} at {figures[test] / medians[test]:.0%} of the median"
            for test, lenient in _LENIENT.items()
            if len(results) > 1 and test in figures and figures[test] < slow * lenient * medians[test]
        ]
        verdict = "sick" if sick else "slow" if slower else "ok"
        nodes.append(NodeReport(r.node, verdict, tuple(sick + slower), figures, r.devices))
    return PreflightReport(tuple(nodes), tuple(shared), seconds)


def _cells(node: NodeReport) -> list[str | Text]:
    from rich.text import Text

    figures = node.figures
    return [
        node.node,
        Text(node.verdict, _COLOURS[node.verdict]),
        _flops(figures["gemm"]) if "gemm" in figures else "-",
        *(f"{format_bytes(figures[test])}/s" if test in figures else "-" for test in ("links", "shm", "reads")),
        f"{figures['skew'] * 1000:+.0f} ms" if "skew" in figures else "-",
    ]


def _flops(rate: float) -> str:
    return f"{rate / 1e12:.1f} TFLOP/s" if rate >= 1e12 else f"{rate / 1e9:.1f} GFLOP/s"


def _reference(values: Sequence[float]) -> float:
    """What a node is compared with: the median; of two nodes, the better."""
    return statistics.median_high(values) if values else 0.0


def lines(report: PreflightReport, *, colour: bool = False) -> list[str]:
    """The report for people: a line a node, then what to do."""
    table = columns([_cells(node) for node in report.nodes], _HEADS, right=_HEADS[2:])
    shown = to_lines(table, colour=colour)
    out = shown[:1]
    for node, row in zip(report.nodes, shown[1:], strict=True):
        out += [row, *(f"    {reason}" for reason in node.reasons)]
    reduce = [n.figures["reduce"] for n in report.nodes if "reduce" in n.figures]
    if reduce:
        out.append(f"all-reduce over {counted(len(reduce), 'node')}: {format_bytes(min(reduce))}/s")
    out += [f"! {remark}" for remark in report.remarks]
    bad = len(report.bad)
    summary = (
        "all nodes are fit"
        if report.ok
        else f"{bad} of {counted(len(report.nodes), 'node is', 'nodes are')} slow or sick"
    )
    out.append(f"{summary}; {format_seconds(report.seconds)}")
    return out
