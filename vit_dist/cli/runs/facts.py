"""How a run stands, as short texts: what the terminal and plain lines have in common."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from vit_dist.core.files import redact
from vit_dist.core.terminal import clean
from vit_dist.core.units import counted, format_rate, format_seconds

if TYPE_CHECKING:
    from launcher.status.run_view import RunView
    from vit_dist.core.run.history import Attempt

BUCKETS = ("train", "wait", "eval", "save", "start", "lost", "down")
COLUMNS = ("run", "state", "job", "step", "done", "img/s", "left", "useful", "saved", "tries", "note")
ATTEMPT_COLUMNS = ("#", "began", "took", "job", "nodes", "steps", "gained", "lost", "ended", "then")


def one_line(text: str) -> str:
    """In one line, without secrets; control characters, which could redraw a terminal, as escapes."""
    return clean(redact(" ".join(text.split())))


def as_json(view: RunView) -> dict[str, Any]:
    """Everything, for programs."""
    plain = asdict(view)
    plain["path"] = str(view.path.resolve())
    plain.pop("logged")
    # JSON has no NaN.
    plain["evaluated"] = {
        tag: {"step": step, "value": value if math.isfinite(value) else None}
        for tag, (step, value) in view.evaluated.items()
    }
    plain |= {"name": view.name, "done": view.fraction_done, "useful": view.useful}
    if view.job is not None:
        plain["job"]["label"] = view.job.label
    return plain


def facts(view: RunView, now: float) -> list[tuple[str, str]]:
    """(label, text) pairs of one run, in the order to read them; empty ones are left out."""
    pairs = [
        ("path", str(view.path.resolve())),
        ("branch of", view.branched_from),
        ("job", job_line(view, now)),
        ("progress", progress_line(view)),
        ("rate", rate_line(view, now)),
        ("saved", saved_line(view, now)),
        ("measured", "  ".join(f"{name} {value:.4g}" for name, value in view.metrics.items())),
        ("evaluated", evaluated_line(view)),
        ("goodput", goodput_line(view.goodput, view.useful)),
        ("cost", cost_line(view, now)),
    ]
    return [(label, one_line(text)) for label, text in pairs if text]


def job_line(view: RunView, now: float) -> str:
    """Where it runs, or why it does not yet."""
    where = f" on {view.cluster}" if view.cluster else ""
    devices = counted(view.devices, "process") if view.devices else ""
    if view.job is None:
        if view.job_id:
            return f"{view.job_id}{where}; Slurm no longer knows it"
        return f"none: on this machine or another, without Slurm; {devices}" if view.state != "new" and devices else ""
    job, parts = view.job, list[str]()
    if job.waiting:
        parts.append(f"{counted(job.nodes, 'node')} asked for")
        if job.start:
            soon = job.start - now
            parts.append(f"expected to start {'now' if soon < 1 else f'in {span(soon)}'}")
    else:
        parts += [job.nodelist or counted(job.nodes, "node"), devices]
    if job.running and job.end and job.state != "COMPLETING":
        parts.append(f"time limit in {span(max(0.0, job.end - now))}")
    if job.restarts:
        parts.append(f"requeued {counted(job.restarts, 'time')}")
    if job.excluded:
        parts.append(f"not on {job.excluded}")
    return f"{job.label}{where}, {job.state.lower()}: {', '.join(p for p in parts if p)}"


def progress_line(view: RunView) -> str:
    """The step, out of how many."""
    if not view.step and not view.total_steps:
        return ""
    of = f" of {view.total_steps:,}" if view.total_steps else ""
    share = f" ({100 * view.fraction_done:.1f}%)" if view.fraction_done is not None else ""
    return f"step {view.step:,}{of}{share}, {counted(view.examples, 'example')}"


def rate_line(view: RunView, now: float) -> str:
    """Speed and what is left."""
    if not view.rate:
        return ""
    left = ""
    if view.eta_s is not None and view.active:
        left = f", {span(view.eta_s)} left"
        if view.state == "running":
            left += f": about {moment(now + view.eta_s, now)}"
    return f"{format_rate(view.rate)} images a second{left}"


def saved_line(view: RunView, now: float) -> str:
    """The newest checkpoint."""
    if view.saved is None:
        return "nothing yet" if view.step else ""
    behind = view.step - view.saved
    since = f"; {counted(behind, 'step')} since" if behind > 0 and view.active else ""
    return f"step {view.saved:,}, {span(now - view.saved_at)} ago{since}"


def evaluated_line(view: RunView) -> str:
    """What `vit-dist evaluate` measured last, the newest step first; tags name a set that is not the run's own."""
    steps: dict[int, list[str]] = {}
    for tag, (step, value) in view.evaluated.items():
        steps.setdefault(step, []).append(f"{tag} {value:.4g}")
    return "; ".join(f"step {step:,}: {', '.join(steps[step])}" for step in sorted(steps, reverse=True))


def goodput_line(goodput: Mapping[str, float], useful: float | None) -> str:
    """Where the time went, largest first."""
    if useful is None:
        return ""
    parts = sorted(((goodput.get(b, 0.0), b) for b in BUCKETS), reverse=True)
    return f"{100 * useful:.1f}% useful: " + ", ".join(f"{b} {span(s)}" for s, b in parts if s >= 0.05)


def cost_line(view: RunView, now: float) -> str:
    """What the attempts have cost and lost; one that is open counts up to now, or up to its last heartbeat."""
    if not view.attempts:
        return ""
    count, lost = len(view.attempts), sum(entry.lost for entry in view.attempts)
    hours = sum(entry.device_hours for entry in view.attempts)
    last = view.attempts[-1]
    if last.open:
        until = now if view.active else view.seen
        hours += last.devices * max(0.0, until - last.begun) / 3600
    text = f"{counted(count, 'attempt')}, {hours:,.3g} device-hours"
    return text + (f", {counted(lost, 'step')} done in vain" if lost else "")


def attempt_row(entry: Attempt, now: float) -> tuple[str, ...]:
    """One line of the table of attempts; see ATTEMPT_COLUMNS."""
    ended = entry.ended if entry.ended is not None else now
    cause = entry.cause.replace("_", " ")
    words = cause if not entry.detail or entry.detail == cause else f"{cause}: {entry.detail}"
    then = {"none": "", "give_up": "gave up", "requeue": "requeued", "respawn": "started again"}.get(entry.action, "")
    if entry.excluded:
        then += f" without {','.join(entry.excluded)}"
    return tuple(
        one_line(text)
        for text in (
            str(entry.attempt),
            moment(entry.begun, now),
            span(max(0.0, ended - entry.begun)),
            entry.job,
            f"{fold(entry.nodes)} x{entry.devices}" if entry.nodes else f"x{entry.devices}",
            f"{entry.step:,} to {entry.saved:,}" if not entry.open else f"from {entry.step:,}",
            "" if entry.open else f"{entry.gained:,}",
            "" if entry.open else f"{entry.lost:,}",
            "still open" if entry.open else words,
            then,
        )
    )


def row(view: RunView, now: float) -> tuple[str, ...]:
    """One line of the table of runs; see COLUMNS."""
    from launcher.status.advice import explain_waiting

    note = view.reason
    if view.state == "waiting" and view.job is not None:
        start = f"in {span(view.job.start - now)}" if view.job.start and view.job.start > now else ""
        note = ", ".join(
            part for part in (view.reason, start or explain_waiting(view.reason).partition(";")[0]) if part
        )
    if view.problems:
        note = f"damaged: {view.problems[0]}"
    of = f"/{view.total_steps:,}" if view.total_steps else ""
    return tuple(
        one_line(text)
        for text in (
            view.name,
            view.state,
            view.job.label if view.job is not None else view.job_id,
            f"{view.step:,}{of}" if view.step or of else "",
            f"{100 * view.fraction_done:.0f}%" if view.fraction_done is not None else "",
            format_rate(view.rate) if view.rate else "",
            span(view.eta_s) if view.eta_s is not None and view.active else "",
            f"{100 * view.useful:.0f}%" if view.useful is not None else "",
            span(now - view.saved_at) if view.saved is not None else "",
            str(view.tries or ""),
            note,
        )
    )


def order(views: Sequence[RunView]) -> list[RunView]:
    """Those to look at first: active, then in trouble, then the rest; within each the newest heartbeat first."""
    from vit_dist.core.run.history import ACTIVE

    rank = {state: i for i, state in enumerate((*ACTIVE, "silent", "lost", "given up", "failed"))}
    return sorted(views, key=lambda v: (rank.get(v.state, 99), -v.seen, v.name))


def summary(views: Sequence[RunView]) -> str:
    """`12 runs: 3 running, 1 failed, 8 done`."""
    counts: dict[str, int] = {}
    for view in order(views):
        counts[view.state] = counts.get(view.state, 0) + 1
    parts = ", ".join(f"{count} {state}" for state, count in counts.items())
    return counted(len(views), "run") + (f": {parts}" if parts else "")


def span(seconds: float) -> str:
    """A span of time; days from two on."""
    if seconds >= 2 * 86400:
        return f"{seconds // 86400:.0f}d{seconds % 86400 // 3600:02.0f}h"
    return format_seconds(max(0.0, seconds))


def moment(when: float, now: float) -> str:
    """`14:03`, or `Nov 22 14:03` on another day."""
    local = time.localtime(when)
    same_day = time.localtime(now)[:3] == local[:3]
    return time.strftime("%H:%M" if same_day else "%b %d %H:%M", local)


def fold(nodes: Sequence[str]) -> str:
    """n1, n2, n3 -> n[1-3]; other names with commas."""
    from launcher.slurm.parse import consecutive

    parts = [re.fullmatch(r"(.*?)(\d+)", node) for node in nodes]
    stems = {(m[1], len(m[2])) for m in parts if m}
    if len(nodes) < 2 or not all(parts) or len(stems) != 1:
        return ",".join(nodes)
    width = next(iter(stems))[1]
    runs = consecutive([int(m[2]) for m in parts if m])
    inside = ",".join(f"{a:0{width}d}" if a == b else f"{a:0{width}d}-{b:0{width}d}" for a, b in runs)
    return f"{next(iter(stems))[0]}[{inside}]"
