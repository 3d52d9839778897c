"""Histories of runs for tests, written as ranks write them, by whoever plays a rank."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from vit_dist.core.run import history, names
from vit_dist.core.run.checkpoints import newest_step
from vit_dist.core.run.history import Progress


def speak(run_dir: Path, status: str, step: int = 0, examples: int = 0, reason: str = "", **known: Any) -> int:
    """Write how an attempt stands: 'running', or how it ended. A new one, where the last has ended.

    Args:
        run_dir: of the run.
        status: 'running', 'done', 'stopped' or 'failed'.
        step, examples: how far it is.
        reason: why it ended.
        known: further fields of Progress; `ranks`, how many there are.

    Returns:
        The number of the attempt.
    """
    ranks = known.pop("ranks", 1)
    run_dir.mkdir(parents=True, exist_ok=True)
    last = history.read(run_dir).last
    if last is None or last.told or not (last.opened and last.open):
        number = history.take(run_dir, ranks=ranks, saved=newest_step(run_dir))[0]
    else:
        number = last.attempt
    progress = Progress(**{"attempt": number, "time": time.time(), "step": step, "examples": examples, **known})
    history.beat(run_dir, progress)
    if last is None or last.attempt != number or not last.trained:
        opened = history.read(run_dir).attempt(number)
        assert opened is not None
        history.training(run_dir, number, opened.step)
    if status != "running":
        history.end(run_dir, status, progress, reason=reason, saved=newest_step(run_dir))
    return number


def line(run_dir: Path, file: str, event: str, at: float, **facts: Any) -> None:
    """Append an event with a time of one's own to a file of a history."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / file).open("a") as out:
        out.write(json.dumps({"event": event, "at": at, **facts}) + "\n")


def submit(run_dir: Path, job: str, at: float, *, after: int = 0, **facts: Any) -> None:
    """Events of a submission."""
    line(run_dir, names.BY_PEOPLE, "submitting", at, after=after, **facts)
    if job:
        line(run_dir, names.BY_PEOPLE, "submitted", at, after=after, job=job)
