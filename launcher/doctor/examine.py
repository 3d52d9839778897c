"""Checks everything a run depends on, and reports what is well, doubtful or failing, with what to do about it."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from launcher.doctor.finding import Check, Finding, Subject
from vit_dist.core.errors import VitDistError
from vit_dist.core.files import redact


def examine(subject: Subject) -> list[Finding]:
    """Every finding, by area. A check that breaks is a finding of its own: none hides the others."""
    from launcher.doctor import files, machine, slurm, storage

    checks: list[tuple[str, Check]] = [
        ("Environment", machine.environment),
        ("Machine", machine.machine),
        ("GPUs", machine.gpus),
        ("Slurm", slurm.slurm_settings),
        ("Files", files.run_root),
        ("Data", storage.data),
    ]
    # At once, for each waits for something else: a disk, a controller, a store.
    with ThreadPoolExecutor(len(checks), thread_name_prefix="doctor") as pool:
        by_area = pool.map(lambda check: list(_run_check(check[0], check[1], subject)), checks)
        return [finding for findings in by_area for finding in findings]


def _run_check(area: str, check: Check, subject: Subject) -> Iterator[Finding]:
    try:
        for finding in check(subject):
            yield Finding(area, finding.verdict, redact(finding.text), redact(finding.advice))
    except VitDistError as error:
        yield Finding(area, "fail", redact(str(error)))
    # The doctor must not die of what it looks at.
    except Exception as error:
        yield Finding(area, "warn", redact(f"could not be checked: {type(error).__name__}: {error}"))


def as_json(findings: Sequence[Finding]) -> dict[str, Any]:
    """Plain values."""
    return {"ok": all(f.verdict != "fail" for f in findings), "findings": [asdict(f) for f in findings]}


def lines(findings: Sequence[Finding], *, colour: bool = False, width: int = 0) -> list[str]:
    """The findings for people: areas as headings, advice below what it is about.

    Text that is wrapped, and no table: paths and commands must not be cut, which the cells of a table would do.

    Args:
        findings: in their order.
        colour: for a terminal.
        width: of the terminal; 0 breaks no line.
    """
    codes = {"ok": "32", "warn": "33", "fail": "31"}
    out, area = list[str](), ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            out += ["", f"\033[1m{area}\033[0m" if colour else area]
        mark = f"{finding.verdict:<4}"
        mark = f"\033[{codes[finding.verdict]}m{mark}\033[0m" if colour else mark
        out += [
            f"  {mark}  {text}" if i == 0 else f"        {text}" for i, text in enumerate(_wrap(finding.text, width))
        ]
        out += [f"        {'->' if i == 0 else '  '} {text}" for i, text in enumerate(_wrap(finding.advice, width - 3))]
    counts = {verdict: sum(f.verdict == verdict for f in findings) for verdict in ("ok", "warn", "fail")}
    out += ["", f"{counts['ok']} well, {counts['warn']} doubtful, {counts['fail']} failing"]
    return out[1:]


def _wrap(text: str, width: int) -> list[str]:
    if not text:
        return []
    return textwrap.wrap(text, width - 8, break_on_hyphens=False, break_long_words=False) if width > 40 else [text]
