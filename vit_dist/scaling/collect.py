"""Event files under a directory or URL -> observations, one for each finished run, and why others are left out."""

from __future__ import annotations

import itertools
import math
import posixpath
from collections.abc import Iterable, Mapping

import numpy as np

from vit_dist.core.errors import DataError
from vit_dist.core.events.cache import read_cached
from vit_dist.core.events.reader import RunLog, Series, event_stamps, merge_files
from vit_dist.core.files import redact
from vit_dist.core.metrics import FEW_SHOT, Metric, find_metric, known_metric, merged
from vit_dist.core.run.log import (
    MEASURED_ON,
    METRICS,
    METRICS_OF,
    RUN,
    STATUS,
    VAL_LOSS,
    VAL_TOP1,
    RunInfo,
    RunStatus,
    logged_measured,
    logged_metrics,
    run_info,
    run_status,
)
from vit_dist.core.run.measured import MeasuredOn
from vit_dist.core.units import counted
from vit_dist.scaling.observation import Collection, Excluded, Observation
from vit_dist.scaling.sets import comparable, compared, measured_of
from vit_dist.scaling.tagmap import TagMap, apply

# The mean of such numbers and their squares are numbers too.
_LARGEST = 1e30
# Of a report: what a machine holds, and a page can show. Names and numbers of both come from anybody's logs.
_MOST_RUNS = 20_000
_MOST_POINTS = 30_000_000


def collect(
    url: str,
    *,
    study: str | None = None,
    metric: str = VAL_TOP1,
    tag_map: TagMap | None = None,
    declared: Mapping[str, Metric] | None = None,
    val_set: str | None = None,
) -> Collection:
    """Read every run under a directory.

    Args:
        url: a directory, local or remote, that holds event files at any depth; one directory is one run.
        study: take only runs of this study; None takes the only one there is.
        metric: scalar tag to observe.
        tag_map: how to read logs that are not ours.
        declared: how metrics are read, as a study says it; over what the runs have logged of them.
        val_set: name or fingerprint of the set on which the metric was measured; None: that of most runs. Runs
            that were measured on another one are left out.

    Raises:
        ConfigError: nothing says whether higher or lower values of the metric are better.
        DataError: nothing there to read, runs of several studies and none was named, or no run but such with values
            that the metric cannot have; no such set.
    """
    observed: list[Observation] = []
    measured: dict[str, dict[str, MeasuredOn]] = {}
    excluded: list[Excluded] = []
    curves: dict[str, Mapping[str, Series]] = {}
    impossible: list[Excluded] = []
    logs, remarks = _read_all(url, metric, tag_map)
    rule, damaged = _rule(logs, metric, tag_map, declared or {})
    for directory, raw in logs.items():
        outcome, log = _observe(raw, directory, study, metric, rule, tag_map)
        if isinstance(outcome, Excluded):
            excluded.append(outcome)
        elif directory in damaged:
            excluded.append(Excluded(outcome.run, directory, damaged[directory]))
        elif problem := _impossible_value({**_few_shot_rules(log), metric: rule}, log, mapped=raw is not log):
            impossible.append(Excluded(outcome.run, directory, problem))
        else:
            observed.append(outcome)
            curves[directory] = log.scalars
            measured[directory] = measured_of(log)
    if impossible and not observed:
        # One such run is that run's matter; where all are so, it is how they are read.
        raise DataError(f"{impossible[0].directory}: {impossible[0].reason}")
    excluded += impossible
    chosen = _choose_study(url, observed, excluded, study)
    same_set, others, said = _of_one_set(observed, measured, metric, val_set)
    excluded += others
    remarks += said
    observations, duplicates = _without_duplicates(same_set)
    shown = comparable({o.directory: curves[o.directory] for o in observations}, measured, metric, remarks)
    remarks += _shared_names(observations)
    fingerprints = sorted({o.dataset_fingerprint for o in observations if o.dataset_fingerprint})
    if len(fingerprints) > 1:
        remarks.append(f"the runs were trained on different data: fingerprints {', '.join(fingerprints)}")
    return Collection(
        url,
        chosen,
        metric,
        rule,
        tuple(sorted(observations, key=lambda o: (o.cell, o.directory))),
        tuple(sorted([*excluded, *duplicates], key=lambda e: e.directory)),
        tuple(remarks),
        shown,
    )


def _of_one_set(
    observed: Iterable[Observation],
    measured: Mapping[str, Mapping[str, MeasuredOn]],
    metric: str,
    wanted: str | None,
) -> tuple[list[Observation], list[Excluded], list[str]]:
    """The observations that can be compared, the others as excluded, and remarks."""
    reasons, said = compared(metric, {d: sets.get(metric) for d, sets in measured.items()}, wanted)
    others = [Excluded(o.run, o.directory, reasons[o.directory]) for o in observed if o.directory in reasons]
    return [o for o in observed if o.directory not in reasons], others, said


def _read_all(url: str, metric: str, tag_map: TagMap | None) -> tuple[dict[str, RunLog], list[str]]:
    """The log of each directory, and remarks on what could not be read."""
    directories, remarks = event_stamps(url)
    if not directories:
        because = f" ({'; '.join(remarks[:3])})" if remarks else ""
        raise DataError(
            f"{redact(url)}: no TensorBoard event files in it{because}; give the directory that holds the runs' logs"
        )
    if len(directories) > _MOST_RUNS:
        raise DataError(
            f"{redact(url)}: {counted(len(directories), 'directory')} with event files; a report takes "
            f"{_MOST_RUNS:,} runs: give a directory further down"
        )
    tags = {RUN, STATUS, METRICS, f"{METRICS_OF}*", f"{MEASURED_ON}*", metric, VAL_TOP1, VAL_LOSS, f"{FEW_SHOT}*"}
    tags |= tag_map.all_tags if tag_map else set()
    files = read_cached([stamp for stamps in directories.values() for stamp in stamps], sorted(tags))
    logs, points = {}, 0
    for directory, stamps in directories.items():
        of_run = list(itertools.islice(files, len(stamps)))
        names = (posixpath.join(directory, posixpath.basename(file.url)) for file in of_run)
        remarks += [f"{name}: {file.problem}" for name, file in zip(names, of_run, strict=True) if file.problem]
        log = merge_files(directory, of_run)
        points += sum(len(series.steps) for series in log.scalars.values())
        if points > _MOST_POINTS:
            remarks.append(f"{directory}: left out with all after it: a report takes {_MOST_POINTS:,} values")
            break
        logs[directory] = log
    return logs, remarks


def _rule(
    logs: Mapping[str, RunLog], metric: str, tag_map: TagMap | None, declared: Mapping[str, Metric]
) -> tuple[Metric, dict[str, str]]:
    """How the metric is read: as study and tag map say, else as the runs have logged, else as its name says.

    Also which directories' logs say it so that it cannot be understood, with the reason.
    """
    damaged: dict[str, str] = {}
    said = merged(("the study", declared), ("the tag map", tag_map.metrics if tag_map else {}))
    if metric not in said:
        logged: dict[str, dict[str, Metric]] = {}
        for directory, log in logs.items():
            try:
                logged[directory] = logged_metrics(log)
            except DataError as error:
                damaged[directory] = str(error)
        # What is said of tags that nobody asked for is no reason to stop.
        asked = {directory: {metric: found[metric]} for directory, found in logged.items() if metric in found}
        said = merged(*((f"the log in {directory}", found) for directory, found in asked.items()))
    return find_metric(metric, said, "the study file or a tag map (--tag-map)"), damaged


def _observe(
    log: RunLog, directory: str, study: str | None, metric: str, rule: Metric, tag_map: TagMap | None
) -> tuple[Observation | Excluded, RunLog]:
    entry = tag_map.entry(directory) if tag_map else None
    try:
        info, status = run_info(log), run_status(log)
        if info is None and entry is not None:
            info, status, log = apply(entry, log, directory, metric)
            # A log that names no study belongs to the one that is asked for.
            info = info if info.study else info.model_copy(update={"study": study or ""})
    except DataError as error:
        return Excluded(directory, directory, str(error)), log
    if info is None:
        hint = "no entry of the tag map fits its directory" if tag_map else "is it another framework's? see --tag-map"
        return Excluded(directory, directory, f"says nothing of its run: no text {RUN!r}; {hint}"), log
    if study is not None and info.study != study:
        return Excluded(info.name, directory, f"of another study: {info.study or '(none)'}", info), log
    series = log.scalars.get(metric)
    reason = _why_not(info, status, series, metric)
    if reason is not None or series is None or status is None:
        return Excluded(info.name, directory, reason or "", info), log
    try:
        measured = logged_measured(log, metric)
    except DataError as error:
        return Excluded(info.name, directory, str(error), info), log
    return _observation(info, status, series, directory, metric, rule, measured), log


def _few_shot_rules(log: RunLog) -> dict[str, Metric]:
    """How the few-shot tags of a log are read, which a report shows beside its metric."""
    found = {tag: known_metric(tag) for tag in log.scalars if tag.startswith(FEW_SHOT)}
    return {tag: rule for tag, rule in found.items() if rule is not None}


def _impossible_value(rules: Mapping[str, Metric], log: RunLog, *, mapped: bool) -> str:
    """The first value that a metric cannot have, with its tag and step, and what to do; '' where there is none."""
    for tag, rule in rules.items():
        steps, values, _ = log.scalars[tag]
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            problem = rule.problem(value) if math.isfinite(value) else ""
            if problem:
                scaled = "give the entry of the tag map `scale: 0.01`, or " if mapped else ""
                return (
                    f"{tag} at step {step}: {problem}; {scaled}declare its range under `metrics` of the "
                    f"study file or the tag map"
                )
    return ""


def _observation(
    info: RunInfo,
    status: RunStatus,
    series: Series,
    directory: str,
    metric: str,
    rule: Metric,
    measured: MeasuredOn | None,
) -> Observation:
    # `_why_not` has seen that the last value is finite.
    best = rule.best(series.values.tolist()) or 0
    return Observation(
        study=info.study,
        run=info.name,
        family=info.family or info.model,
        model=info.model,
        dataset=info.dataset,
        dataset_fingerprint=info.dataset_fingerprint,
        subset=info.subset,
        subset_seed=info.subset_seed,
        seed=info.seed,
        metric=metric,
        value=_as_logged(series.values[-1]),
        best=_as_logged(series.values[best]),
        best_step=int(series.steps[best]),
        measured_on=measured.name if measured is not None else "",
        measured_on_fingerprint=measured.fingerprint if measured is not None else "",
        step=status.step,
        examples_seen=status.examples,
        planned_examples=info.planned_examples,
        num_params=info.num_params,
        macs=info.macs_per_image,
        macs_method=info.macs_method,
        global_batch=info.global_batch,
        base_lr=info.base_lr,
        weight_decay=info.weight_decay,
        precision=info.precision,
        engine=info.engine,
        world_size=info.world_size,
        code_version=info.code_version,
        recipe_hash=info.recipe_hash,
        trunk=info.lineage[-1].place if info.lineage else "",
        lineage=info.lineage,
        status=status.status,
        directory=directory,
        finished=float(np.nan_to_num(series.wall_times[-1])),
    )


def _as_logged(value: float) -> float:
    """The shortest number that single precision stores as this one: 0.64, not 0.6399999856948853."""
    # Event files hold float32; as a double, 0.64 would be printed with eight digits of rounding.
    single = np.float32(value)
    return float(str(single)) if float(single) == value else float(value)


def _why_not(info: RunInfo, status: RunStatus | None, series: Series | None, metric: str) -> str | None:
    """The reason why a run is no observation, or None."""
    if status is None:
        return "unfinished: its log has no end; it is running or was killed"
    if status.status != "done":
        because = f" ({status.reason})" if status.reason else ""
        return f"{status.status} at step {status.step} of {info.planned_steps}{because}"
    if series is None:
        return f"has no values of {metric}"
    if not abs(series.values[-1]) <= _LARGEST:
        return f"diverged: {metric} is {series.values[-1]}"
    if series.steps[-1] != status.step:
        return f"{metric} was last measured at step {series.steps[-1]}, not at its end, {status.step}"
    return None


def _choose_study(url: str, observed: list[Observation], excluded: list[Excluded], study: str | None) -> str:
    """The study that was asked for, or the only one there is; logs that name none go with it."""
    runs: dict[str, list[str]] = {}
    for one in observed:
        runs.setdefault(one.study, []).append(one.directory)
    for other in excluded:
        if other.info is not None:
            runs.setdefault(other.info.study, []).append(other.directory)
    names = sorted(name for name in runs if name)
    if study is None and len(names) > 1:
        shown = "; ".join(f"{name!r} ({counted(len(runs[name]), 'run')}, such as {min(runs[name])})" for name in names)
        raise DataError(f"{redact(url)}: holds runs of {counted(len(names), 'study')}: {shown}; name the one to report")
    return study if study is not None else (names[0] if names else "")


def _shared_names(observations: Iterable[Observation]) -> list[str]:
    """Remarks on runs with one name that are different points all the same."""
    places: dict[str, list[str]] = {}
    for one in observations:
        places.setdefault(one.run, []).append(one.directory)
    return [
        f"{counted(len(directories), 'different run is', 'different runs are')} called {name!r}: "
        f"{', '.join(sorted(directories))}; each is counted"
        for name, directories in sorted(places.items())
        if len(directories) > 1
    ]


def _without_duplicates(observations: Iterable[Observation]) -> tuple[list[Observation], list[Excluded]]:
    """One observation for each cell, the one that finished last; the others as excluded."""
    latest: dict[tuple[object, ...], Observation] = {}
    duplicates = []
    for one in sorted(observations, key=lambda o: (o.finished, o.directory)):
        older = latest.get(one.cell)
        if older is not None:
            what = "the same recipe" if older.recipe_hash == one.recipe_hash else "another recipe"
            reason = f"duplicate: {one.directory} is the same cell with {what} and finished later"
            duplicates.append(Excluded(older.run, older.directory, reason))
        latest[one.cell] = one
    return list(latest.values()), duplicates
