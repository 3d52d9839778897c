"""A study's runs for TensorBoard with other step axes: examples seen, and training compute.

TensorBoard plots against the step or the time and nothing else. So each run's scalars are written anew, at steps that
count examples or FLOPs, into directories to be opened beside the logs: `by-examples/<run>`, `by-gigaflops/<run>`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from vit_dist.core.events.reader import Series, read_run
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.files import join_url, remove_tree
from vit_dist.core.folders import refuse_others
from vit_dist.core.run.log import LAYOUT
from vit_dist.core.run.names import is_plain_name, safe_name
from vit_dist.scaling.observation import Collection, Observation

AXES = ("by-examples", "by-gigaflops")
# TensorBoard's steps are 64 bits long.
_LAST_STEP = 2.0**63
_SHOWN = ("family", "model", "subset", "seed", "base_lr", "weight_decay", "global_batch", "num_params", "dataset")


def check_directory(directory: Path) -> None:
    """Nothing, where the runs can be written into a directory: it is new or empty, or holds such an export.

    Raises:
        ConfigError: something else lies there.
    """
    what = "an export for TensorBoard"
    refuse_others(directory, lambda path: path.name in AXES, what=what, do="give another --tensorboard")


def export_tensorboard(collection: Collection, directory: Path) -> list[Path]:
    """Write every observed run once for each axis; returns the directories made.

    Raises:
        ConfigError: the directory holds something else.
        DataError: a log cannot be read any more.
    """
    check_directory(directory)
    for axis in AXES:
        remove_tree(directory / axis)
    made = []
    for one in collection.observations:
        name = _folder(one, collection)
        scalars = read_run(join_url(collection.url, one.directory)).scalars
        per_step = one.examples_seen / max(1, one.step)
        places = (partial(_examples, per_step), partial(_gigaflops, one, per_step))
        for axis, place in zip(AXES, places, strict=True):
            if 0 < place(one.step) < math.inf:
                made.append(directory / axis / name)
                _write(made[-1], one, scalars, place)
    return made


def _examples(per_step: float, step: int) -> float:
    return step * per_step


def _gigaflops(one: Observation, per_step: float, step: int) -> float:
    return (one.exaflops_at(step * per_step) or 0.0) * 1e9


def _folder(one: Observation, collection: Collection) -> str:
    """Name of a run's folder; both the run's name and its directory's were read from logs."""
    taken = [name for o in collection.observations if (name := safe_name(o.run).lower())]
    plain = is_plain_name(one.run) and taken.count(safe_name(one.run).lower()) == 1
    if plain:
        return one.run
    other = safe_name(one.directory.replace("/", "_"))[:100]
    # Two directories may differ in what is left out alone.
    return f"{other}-{hashlib.sha256(one.directory.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _write(directory: Path, one: Observation, scalars: Mapping[str, Series], place: Callable[[int], float]) -> None:
    writer = EventWriter(directory)
    writer.hparams({name: getattr(one, name) for name in _SHOWN}, [one.metric], group=one.run)
    writer.custom_scalars(LAYOUT)
    rows: dict[int, dict[str, float]] = {}
    for tag, (steps, values, _) in scalars.items():
        for step, value in zip(steps.tolist(), values.tolist(), strict=True):
            if not 0 <= place(step) < _LAST_STEP:
                continue
            rows.setdefault(step, {})[tag] = value
    for step in sorted(rows):
        writer.scalars(round(place(step)), rows[step])
    writer.close()
