"""Event files under a directory or URL -> observations, one for each finished run, and why others are left out."""

from __future__ import annotations

import itertools
import math
import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from vit_dist.core.errors import DataError
from vit_dist.core.events.cache import read_cached
from vit_dist.core.events.reader import EventFile, RunLog, Series, event_stamps, merge_files
from vit_dist.core.files import redact
from vit_dist.core.run.log import RUN, STATUS, VAL_LOSS, VAL_TOP1, RunInfo, RunStatus, run_info, run_status
from vit_dist.scaling.tagmap import TagMap, apply

FEW_SHOT = "fewshot/"
"""Tags that begin so are few-shot accuracies: fewshot/<set>_<k>shot."""


@dataclass(frozen=True)
class Observation:
    """One point of a study: a finished run and the value of the metric at its last step.

    `best` is the highest value on the way, at `best_step`. `macs` are those of one forward pass of one image.
    `directory` is relative to the logs that were read.
    """

    study: str
    run: str
    family: str
    model: str
    dataset: str
    dataset_fingerprint: str
    subset: int
    subset_seed: int
    seed: int
    metric: str
    value: float
    best: float
    best_step: int
    step: int
    examples_seen: int
    planned_examples: int
    num_params: int
    macs: int | None
    macs_method: str
    global_batch: int
    base_lr: float
    weight_decay: float
    precision: str
    engine: str
    world_size: int
    code_version: str
    recipe_hash: str
    status: str
    directory: str
    finished: float = field(compare=False, repr=False)

    @property
    def cell(self) -> tuple[str, str, int, int, int, int]:
        """What makes two runs the same point: family, model, subset, subset seed, seed, duration."""
        return self.family, self.model, self.subset, self.subset_seed, self.seed, self.planned_examples

    @property
    def exaflops(self) -> float | None:
        """Compute of training so far: 2 FLOPs a multiply-add, times 3 for forward and backward, over all examples."""
        return None if self.macs is None else 6 * self.macs * self.examples_seen / 1e18


@dataclass(frozen=True)
class Excluded:
    """A run that is no observation, and why. `info` is what is known of it."""

    run: str
    directory: str
    reason: str
    info: RunInfo | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Collection:
    """What was found: observations by family, subset and seed; runs left out; remarks on damaged files.

    `curves` has every scalar that was read of each observed run: {directory: {tag: series by step}}.
    """

    url: str
    study: str
    metric: str
    observations: tuple[Observation, ...]
    excluded: tuple[Excluded, ...]
    remarks: tuple[str, ...]
    curves: Mapping[str, Mapping[str, Series]] = field(default_factory=dict, compare=False, repr=False)


def collect(url: str, *, study: str | None = None, metric: str = VAL_TOP1, tag_map: TagMap | None = None) -> Collection:
    """Read every run under a directory.

    Args:
        url: a directory, local or remote, that holds event files at any depth; one directory is one run.
        study: take only runs of this study; None takes the only one there is.
        metric: scalar tag to observe.
        tag_map: how to read logs that are not ours.

    Raises:
        DataError: nothing there to read, or runs of several studies and none was named.
    """
    observed: list[Observation] = []
    excluded: list[Excluded] = []
    remarks: list[str] = []
    curves: dict[str, Mapping[str, Series]] = {}
    for directory, files in _read_all(url, metric, tag_map):
        names = (posixpath.join(directory, posixpath.basename(file.url)) for file in files)
        remarks += [f"{name}: {file.problem}" for name, file in zip(names, files, strict=True) if file.problem]
        log = merge_files(directory, files)
        outcome, log = _observe(log, directory, study, metric, tag_map)
        if isinstance(outcome, Excluded):
            excluded.append(outcome)
        else:
            observed.append(outcome)
            curves[directory] = log.scalars
    chosen = _choose_study(url, observed, excluded, study)
    observations, duplicates = _without_duplicates(observed)
    remarks += _shared_names(observations)
    fingerprints = sorted({o.dataset_fingerprint for o in observations if o.dataset_fingerprint})
    if len(fingerprints) > 1:
        remarks.append(f"the runs were trained on different data: fingerprints {', '.join(fingerprints)}")
    return Collection(
        url,
        chosen,
        metric,
        tuple(sorted(observations, key=lambda o: (o.cell, o.directory))),
        tuple(sorted([*excluded, *duplicates], key=lambda e: e.directory)),
        tuple(remarks),
        {o.directory: curves[o.directory] for o in observations},
    )


def _read_all(url: str, metric: str, tag_map: TagMap | None) -> Iterable[tuple[str, list[EventFile]]]:
    """The event files of each directory."""
    directories = event_stamps(url)
    if not directories:
        raise DataError(
            f"{redact(url)}: no TensorBoard event files in it; give the directory that holds the runs' logs"
        )
    tags = {RUN, STATUS, metric, VAL_TOP1, VAL_LOSS, f"{FEW_SHOT}*", *(tag_map.all_tags if tag_map else ())}
    files = read_cached([stamp for stamps in directories.values() for stamp in stamps], sorted(tags))
    for directory, stamps in directories.items():
        yield directory, list(itertools.islice(files, len(stamps)))


def _observe(
    log: RunLog, directory: str, study: str | None, metric: str, tag_map: TagMap | None
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
    return _observation(info, status, series, directory, metric), log


def _observation(info: RunInfo, status: RunStatus, series: Series, directory: str, metric: str) -> Observation:
    best = int(np.nanargmax(series.values))
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
        status=status.status,
        directory=directory,
        finished=float(series.wall_times[-1]),
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
    if not math.isfinite(series.values[-1]):
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
        shown = "; ".join(f"{name!r} ({len(runs[name])} runs, such as {min(runs[name])})" for name in names)
        raise DataError(f"{redact(url)}: holds runs of {len(names)} studies: {shown}; name the one to report")
    return study if study is not None else (names[0] if names else "")


def _shared_names(observations: Iterable[Observation]) -> list[str]:
    """Remarks on runs with one name that are different points all the same."""
    places: dict[str, list[str]] = {}
    for one in observations:
        places.setdefault(one.run, []).append(one.directory)
    return [
        f"{len(directories)} different runs are called {name!r}: {', '.join(sorted(directories))}; each is counted"
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
