"""The figures of one run as a Markdown table. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def last_run(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The lines of the newest run, from its header on."""
    headers = [number for number, line in enumerate(lines) if line["stage"] == "machine"]
    return list(lines[headers[-1] :]) if headers else list(lines)


def markdown(lines: Sequence[Mapping[str, Any]]) -> str:
    """A row for each line of results.jsonl, under what its header says; what failed stands in bold in its place."""
    header, rows = [], ["| stage | case | what | figures |", "|---|---|---|---|"]
    for line in lines:
        said = f"**{line['problem']}**" if "problem" in line else written(line["figures"])
        if line["stage"] == "machine":
            header += [f"{line['what']}: {said}" if line.get("what") else said, ""]
        else:
            rows.append(f"| {line['stage']} | {line['case']} | {line.get('what', '')} | {said} |")
    return "\n".join(header + rows) + "\n"


def written(figures: Mapping[str, Any]) -> str:
    """For people: 'ms 12.35, images_per_s 10,365'."""
    return ", ".join(f"{name} {_shown(value)}" for name, value in figures.items())


def _shown(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    # Four digits; what is large in full, what is tiny by its exponent.
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
