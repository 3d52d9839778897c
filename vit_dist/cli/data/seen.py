"""`vit-dist data seen`: at which steps of a run an image was trained on. No torch."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_dist.cli.data.options import out, parser
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.places import any_option, local_option
from vit_dist.core.units import counted

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.data.seen import Reading, Readings
    from vit_dist.data.sets import Parts, TrainingSet
    from vit_dist.train.state import TrainState

_DETAILS = """
Computed from the order, not looked up: no image is read. Counted is what the newest checkpoint has learnt, so of a run
that is under way what came after it is not in. Rewinds, images that could not be decoded, keys that were taken down
and the images that stood in for these are in, as the checkpoint records them. To find keys all indexes are read.

An image that is mixed with another one (data.mixup) counts for its own position. Weights that the run began from
(init.weights) may have seen the image before.
"""
_EXAMPLES = """
  vit-dist data seen runs/photos cat/17 dog/3
  vit-dist data seen runs/photos --keys takedown.txt
"""


def main(argv: list[str]) -> int:
    """Print the steps of keys; exit code 1 where one is in no set of the run."""
    p = parser(
        "seen",
        "Print at which steps, epochs and positions a run was trained on images.",
        _DETAILS,
        _EXAMPLES.strip("\n"),
    )
    p.add_argument("run", type=local_option, metavar="RUN", help="the run's directory")
    p.add_argument(
        "keys",
        nargs="*",
        metavar="KEY",
        help="of an image, as `vit-dist data order` prints it; all of this name are told",
    )
    p.add_argument(
        "--keys", dest="list", type=any_option, metavar="FILE", help="a list of keys, as data.takedown takes"
    )
    args = p.parse_args(argv)

    from vit_dist.data.takedown import read_lines

    lines = tuple(dict.fromkeys([*args.keys, *read_lines(args.list or "")]))
    if not lines:
        raise ConfigError("give keys, or a list of them: --keys FILE")
    return _print(args, lines)


def _print(args: argparse.Namespace, lines: tuple[str, ...]) -> int:
    from vit_dist.data.seen import Readings
    from vit_dist.data.sets import open_training_set
    from vit_dist.data.takedown import find, hint, left_out, spelt
    from vit_dist.train.state import TrainState

    recipe, raw, where = _newest(args.run)
    data = open_training_set(recipe)
    state = TrainState.load(raw, data.identity, str(where))
    taken = left_out(state.taken_down)
    readings = Readings(data, state.position, taken, state.quarantined)
    out(f"{args.run}: {counted(state.step, 'step')} of {recipe.global_batch:,}, {counted(state.examples, 'example')}\n")
    found = find(lines, data.parts)
    validation = _validation(recipe, data)
    elsewhere = find([line for line in lines if not found[line]], validation)
    unknown = {line: None for line in lines if not found[line] and not elsewhere[line]}
    meant = spelt(list(unknown), data.parts, validation)
    for line in lines:
        if line in unknown:
            out(f"{line}: in no training set of this run{hint(line, meant)}\n")
        elif not found[line]:
            out(f"{line}: in the validation set of this run, which is not trained on\n")
        for ordinal in found[line]:
            out(_told(line, ordinal, readings, state, recipe.global_batch, data.parts, taken.get(ordinal)))
    return 1 if unknown else 0


def _validation(recipe: Recipe, data: TrainingSet) -> Parts:
    """The validation set of a run; no part where it has none, or none that can be read now."""
    from vit_dist.core.errors import VitDistError
    from vit_dist.data.sets import Part, Parts
    from vit_dist.data.subset import select
    from vit_dist.data.validation import open_validation_set

    # What was trained on is known without it.
    with contextlib.suppress(VitDistError):
        val = open_validation_set(recipe, data)
        if val is not None and val.num_samples:
            return Parts([Part(val, select(val, None))])
    return Parts()


def _told(
    line: str,
    ordinal: int,
    readings: Readings,
    state: TrainState,
    batch: int,
    parts: Parts,
    since: int | None,
) -> str:
    part = parts.of(ordinal)
    shard, _ = part.stored(ordinal)
    trained: list[tuple[int, Reading]] = []
    for reading in readings.of(ordinal):
        step = state.step_of(reading.position, batch)
        if step is not None:
            trained.append((step, reading))
    where = f"{part.name + ' ' if part.name else ''}{part.manifest.shards[shard].url}"
    down = "" if since is None else f"; taken down from position {since:,} on"
    text = [f"{line} ({where}, ordinal {ordinal}): trained on {counted(len(trained), 'time')}{down}\n"]
    for step, one in trained:
        stood = "" if one.in_place_of is None else f", in place of {_key(parts, one.in_place_of)!r}"
        text.append(f"  step {step:,}, epoch {one.epoch}, position {one.position:,}{stood}\n")
    return "".join(text)


def _key(parts: Parts, ordinal: int) -> str:
    part = parts.of(ordinal)
    shard, sample = part.stored(ordinal)
    return part.manifest.read_index(shard).key(sample)


def _newest(run_dir: Path) -> tuple[Any, dict[str, Any], Path]:
    """The recipe of a run, the train state of its newest whole checkpoint, and where that lies."""
    from vit_dist.config.load import load_recipe
    from vit_dist.core.run import names
    from vit_dist.core.run.checkpoints import committed, read_marker

    if not (run_dir / names.RECIPE).is_file():
        raise RunError(f"{run_dir}: no run directory: there is no {names.RECIPE} in it")
    for path in committed(run_dir / names.CHECKPOINTS):
        marker, problem = read_marker(path)
        if not problem:
            return load_recipe(str(run_dir / names.RECIPE)), marker["state"], path
    raise RunError(f"{run_dir}: no checkpoint in it: nothing is known of what it was trained on")
