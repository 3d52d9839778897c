"""What the devices of a recipe need: images a second, measured by a run or computed from the model's cost."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.devices import find_device
from vit_dist.core.errors import ConfigError, DataError, RunError

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe

MODEL_UNKNOWN = "what {!r} costs is not known to arithmetic: give --run, a run that trained it, to see what it needs"
_WINDOWS = 10
"""Logged values of a run, at its end, whose median counts."""
_LEAST_COMPUTING = 0.05
_MFU, _MFU_OF_RESNETS, _RESNETS = 0.4, 0.11, "bit"
"""The goals of docs/performance.md: norms and weight standardisation of ResNets move memory and compute nothing."""


@dataclass(frozen=True)
class Need:
    """What one device takes.

    Attributes:
        images_per_s: where it never waits for data.
        source: for people: where the number comes from.
        assumed: whether it rests on an assumption, and was not measured.
    """

    images_per_s: float
    source: str
    assumed: bool


def measured(run_dir: Path) -> Need:
    """What the devices of a run took while they had data.

    Raises:
        RunError: no directory of a run.
        DataError: its log holds no speed.
    """
    from vit_dist.core.events.reader import read_run
    from vit_dist.core.run import log as runlog
    from vit_dist.core.run import names
    from vit_dist.core.run.directory import RunDir

    if not (run_dir / names.RECIPE).is_file():
        raise RunError(f"{run_dir}: no run directory: there is no {names.RECIPE} in it")
    log = read_run(str(RunDir(run_dir).events), [runlog.EXAMPLES_PER_S_PER_DEVICE, runlog.TRAIN_DATA_WAIT])
    speed, waits = (log.scalars.get(tag) for tag in (runlog.EXAMPLES_PER_S_PER_DEVICE, runlog.TRAIN_DATA_WAIT))
    if speed is None:
        raise DataError(
            f"{run_dir}: its event files hold no {runlog.EXAMPLES_PER_S_PER_DEVICE}: it has not trained long enough to "
            f"log one (log.every); give a run that has, or --recipe for arithmetic"
        )
    waiting = dict(zip(waits.steps.tolist(), waits.values.tolist(), strict=True)) if waits is not None else {}
    taken = [
        rate / max(_LEAST_COMPUTING, 1 - waiting.get(step, 0.0))
        for step, rate in zip(speed.steps.tolist(), speed.values.tolist(), strict=True)
    ][-_WINDOWS:]
    return Need(statistics.median(taken), f"measured by {run_dir} while it had data", assumed=False)


def computed(recipe: Recipe, device_name: str, mfu: float | None) -> Need | None:
    """What a device needs by the cost of the model; None where that is not known.

    Args:
        recipe: its model, precision, image size.
        device_name: as `find_device` takes it.
        mfu: fraction of the peak; None: what the family is known to reach.

    Raises:
        ConfigError: the device's peak in the recipe's precision is not known.
    """
    from vit_dist.models import ModelConfig
    from vit_dist.models.costs import model_cost, training_flops

    device = find_device(device_name)
    peak = device.peak(recipe.precision)
    if peak is None:
        raise ConfigError(
            f"--device {device.name}: its peak in {recipe.precision} is not known; give another one, or --run"
        )
    size, classes = recipe.data.image_size, recipe.data.num_classes
    cost = model_cost(recipe.model, num_classes=classes, image_size=size, training=True)
    if cost is None:
        return None
    if mfu is None:
        assert isinstance(recipe.model, ModelConfig)
        mfu = _MFU_OF_RESNETS if recipe.model.family == _RESNETS else _MFU
    return Need(
        peak * mfu / training_flops(cost.macs, 1),
        f"assumed: {mfu:.0%} of the peak of one {device.name} in {recipe.precision}",
        assumed=True,
    )
