"""What evaluators measured after training: a file of a run's history of its own, which no state needs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vit_dist.core.errors import RunError
from vit_dist.core.run import names
from vit_dist.core.run.history import former
from vit_dist.core.run.history.events import FIELDS
from vit_dist.core.run.history.files import append, content_of
from vit_dist.core.small_files import DamagedError, is_count, is_number, is_text, or_none, parse_records


def evaluation(
    path: Path, evaluators: Sequence[Mapping[str, Any]], step: int, val: str | None = None
) -> dict[str, float] | None:
    """What these evaluators, as plain data, measured at this step; None where they have not run.

    Args:
        path: of the run.
        evaluators: those of a recipe.
        step: of the checkpoint.
        val: with this validation set alone, or where an old entry does not say with which; None: with any.

    Raises:
        RunError: the record cannot be read, or what they measured is damaged.
    """
    for entry, values in _evaluations(path, step):
        if entry.get("evaluators") == list(evaluators) and (val is None or entry.get("val", val) == val):
            return values
    return None


def evaluations(path: Path, step: int) -> dict[str, float]:
    """What evaluations measured at this step, by tag; nothing of those that do not say on which sets they did.

    Raises:
        RunError: the record cannot be read, or what they measured is damaged.
    """
    found: dict[str, float] = {}
    for entry, values in _evaluations(path, step):
        tags = _tags_of(path, entry)
        found |= {tags[metric]: value for metric, value in values.items() if metric in tags}
    return found


def newest_evaluations(path: Path) -> dict[str, tuple[int, float]]:
    """What evaluations of a run measured last, by tag: the step, and the value there.

    Values whose entries do not say under which tags they were logged stand under their metrics.

    Raises:
        RunError: the record cannot be read, or what they measured is damaged.
    """
    found: dict[str, tuple[int, float]] = {}
    for entry, values in _evaluations(path):
        step, tags = entry.get("step"), _tags_of(path, entry)
        if not isinstance(step, int) or not is_count(step):
            raise RunError(f"{path / names.BY_EVALUATORS}: damaged: {step!r:.40} as the step of an evaluation")
        for metric, value in values.items():
            tag = tags.get(metric, metric)
            if step >= found.get(tag, (0, 0.0))[0]:
                found[tag] = (step, value)
    return found


def _tags_of(path: Path, entry: Mapping[str, Any]) -> dict[str, str]:
    tags = entry.get("tags", {})
    if not isinstance(tags, dict) or not all(map(is_text, tags.values())):
        raise RunError(f"{path / names.BY_EVALUATORS}: damaged: the tags of step {entry.get('step')!r:.40}")
    return tags


def _evaluations(path: Path, at: int | None = None) -> Iterator[tuple[dict[str, Any], dict[str, float]]]:
    file = path / names.BY_EVALUATORS
    findings: list[str] = []
    try:
        entries = [*former.evaluations(path), *_content_lines(file, findings)]
    except (OSError, DamagedError) as error:
        raise RunError(f"{path / names.FORMER_EVALUATED}: damaged: {error}") from None
    if any("cannot be read" in text for text in findings):
        raise RunError(f"{path}: {findings[0]}")
    for entry in entries:
        if at is not None and entry.get("step") != at:
            continue
        values = entry.get("values")
        if not isinstance(values, dict) or not all(map(or_none(is_number), values.values())):
            raise RunError(f"{file}: damaged: the values of step {entry.get('step')!r:.40}")
        yield entry, {name: math.nan if value is None else float(value) for name, value in values.items()}


def _content_lines(file: Path, findings: list[str]) -> list[dict[str, Any]]:
    content, _ = content_of(file, None, findings)
    return list(parse_records(content, FIELDS["evaluated"], findings))


def evaluated(
    path: Path,
    evaluators: Sequence[Mapping[str, Any]],
    step: int,
    values: Mapping[str, float],
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write what evaluators measured, for `evaluation` to read; `more` has further fields: sets, tags, validation set.

    Args:
        path: of the run.
        evaluators: as plain data.
        step: of the checkpoint.
        values: by metric.
        more: further fields: the sets, tags, the validation set.

    Raises:
        RunError: it cannot be written.
    """
    # JSON has no NaN.
    shown = {name: value if math.isfinite(value) else None for name, value in values.items()}
    facts = {**(more or {}), "step": step, "evaluators": list(evaluators), "values": shown}
    append(path, names.BY_EVALUATORS, "evaluated", **facts)
