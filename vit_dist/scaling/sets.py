"""On which sets the values of runs were measured: only values of one set are compared. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence

from vit_dist.core.errors import DataError
from vit_dist.core.events.reader import RunLog, Series
from vit_dist.core.run.log import logged_measured
from vit_dist.core.run.measured import MeasuredOn
from vit_dist.core.units import counted

_SHOWN = 5


def compared(
    metric: str, runs: Mapping[str, MeasuredOn | None], wanted: str | None = None
) -> tuple[dict[str, str], list[str]]:
    """Which runs are left out since their metric was measured on another set than that of the others.

    Those of the set that most runs share are compared, or those of the set that is asked for. A run whose log does not
    say its set stays, and is told.

    Args:
        metric: the tag.
        runs: on what each run measured it, by directory; None: its log does not say.
        wanted: the name of a set, or how its fingerprint begins.

    Returns:
        The reasons, by directory, and remarks.

    Raises:
        DataError: no run was measured on the set that is asked for, or on several that fit.
    """
    groups: dict[str, list[str]] = {}
    for directory, one in sorted(runs.items()):
        if one is not None:
            groups.setdefault(one.key, []).append(directory)
    sets = {key: _said(runs[directories[0]]) for key, directories in groups.items()}
    chosen = _asked(metric, sets, wanted) if wanted else _most(groups, sets)
    remarks = []
    left_out: dict[str, str] = {}
    if len(groups) > 1 and chosen is not None:
        shown = "; ".join(
            f"{sets[key].words()}: {_listed(groups[key])}" for key in sorted(groups, key=lambda k: k != chosen)
        )
        remarks.append(
            f"{metric} was measured on {counted(len(groups), 'set')}, which are not compared: {shown}. The first "
            f"counts; `vit-dist study report --val-set NAME` takes another"
        )
        for key in groups.keys() - {chosen}:
            reason = f"{metric} was measured on {sets[key].words()}, that of the other runs on {sets[chosen].words()}"
            left_out |= dict.fromkeys(groups[key], reason)
    unknown = sorted(directory for directory, one in runs.items() if one is None)
    if unknown:
        remarks.append(
            f"it is not known on which set {metric} was measured, the logs do not say it: {_listed(unknown)}"
        )
    return left_out, [
        *remarks,
        *_views(metric, [one for d, one in runs.items() if one is not None and d not in left_out]),
    ]


def _said(one: MeasuredOn | None) -> MeasuredOn:
    assert one is not None
    return one


def _most(groups: Mapping[str, Sequence[str]], sets: Mapping[str, MeasuredOn]) -> str | None:
    """The set of most runs; of equals the larger one, then the first by fingerprint."""
    ranked = sorted(groups, key=lambda key: (-len(groups[key]), -sets[key].examples, sets[key].fingerprint, key))
    return ranked[0] if ranked else None


def _asked(metric: str, sets: Mapping[str, MeasuredOn], wanted: str) -> str:
    found = [key for key, one in sets.items() if wanted == one.name or one.fingerprint.startswith(wanted.lower())]
    if len(found) != 1:
        there = "; ".join(one.words() for one in sets.values()) or "none that the logs name"
        what = "no run's" if not found else f"{len(found)} sets'"
        raise DataError(f"--val-set {wanted}: {what} {metric} was measured on it; sets are: {there}")
    return found[0]


def _views(metric: str, sets: Sequence[MeasuredOn]) -> list[str]:
    """A remark where images were looked at in different ways: that may be what a study is about."""
    views = sorted({(one.image_size, one.crop) for one in sets})
    if len(views) < 2:
        return []
    shown = ", ".join(f"{size} pixels with a crop of {crop:g}" for size, crop in views)
    return [f"{metric} was measured on images of different sizes: {shown}"]


def _listed(directories: Sequence[str]) -> str:
    more = f" and {len(directories) - _SHOWN} more" if len(directories) > _SHOWN else ""
    return f"{counted(len(directories), 'run')} ({', '.join(directories[:_SHOWN])}{more})"


def measured_of(log: RunLog) -> dict[str, MeasuredOn]:
    """On what a log says that its tags were measured, as far as it can be understood."""
    found: dict[str, MeasuredOn] = {}
    for tag in log.scalars:
        with contextlib.suppress(DataError):
            one = logged_measured(log, tag)
            if one is not None:
                found[tag] = one
    return found


def comparable(
    curves: Mapping[str, Mapping[str, Series]],
    measured: Mapping[str, Mapping[str, MeasuredOn]],
    metric: str,
    remarks: list[str],
) -> dict[str, dict[str, Series]]:
    """The curves of runs without those of other metrics whose set is not that of most runs, which is remarked."""
    kept = {directory: dict(scalars) for directory, scalars in curves.items()}
    for tag in sorted({tag for scalars in curves.values() for tag in scalars} - {metric}):
        runs = {directory: measured[directory].get(tag) for directory in kept if tag in kept[directory]}
        of_others, said = compared(tag, runs)
        remarks += said if of_others else []
        for directory in of_others:
            del kept[directory][tag]
    return kept
