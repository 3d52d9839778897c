"""The figures of one run as a Markdown table. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.goals import beside, expectations, not_measured


def last_run(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of the newest run, from its header on."""
    headers = [number for number, line in enumerate(lines) if line["stage"] == "machine"]
    return list(lines[headers[-1] :]) if headers else list(lines)


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row for each line of results.jsonl, under what its header says; what failed stands in bold in its place.

    Beside the figures their goals, met or missed, and what was predicted; at the end the goals that were not measured.
    A smoke run has no goals.
    """
    head = next((line for line in lines if line["stage"] == "machine" and "figures" in line), None)
    smoke = head is None or head.get("what") == "smoke"
    expected = [] if smoke or head is None else expectations(str(head["figures"].get("device", "")))
    header, rows = [], ["| stage | case | what | figures | goal | predicted |", "|---|---|---|---|---|---|"]
    for line in lines:
        said = f"**{line['problem']}**" if "problem" in line else written(line["figures"])
        if line["stage"] == "machine":
            header += [f"{line['what']}: {said}" if line.get("what") else said, ""]
            continue
        goal, predicted = beside(line, expected)
        rows.append(f"| {line['stage']} | {line['case']} | {line.get('what', '')} | {said} | {goal} | {predicted} |")
    lacking = not_measured(lines, expected)
    tail = ["", f"Goals that were not measured: {'; '.join(lacking)}."] if lacking else []
    return "\n".join(header + rows + tail) + "\n"


def written(figures: Mapping[str, Any]) -> str:
    """For people: 'ms 12.35, images_per_s 10,365'."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in figures.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    # Four digits; what is large in full, what is tiny by its exponent.
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
