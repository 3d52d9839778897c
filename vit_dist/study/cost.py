"""What the cells of a study will cost, and what will not fit: examples, steps, FLOPs, bytes, device-hours. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.run import names
from vit_dist.core.run.directory import RunDir
from vit_dist.core.units import format_bytes
from vit_dist.data.manifest import read_manifest
from vit_dist.data.order import SMALL_SET_BYTES
from vit_dist.models.costs import Cost, model_cost, training_flops
from vit_dist.study.grid import Cell


@dataclass(frozen=True)
class Device:
    """An accelerator: dense FLOP/s in bf16 by its data sheet, bytes of memory, and the share of the FLOP/s in use."""

    name: str
    peak: float
    memory_bytes: float
    utilisation: float

    @property
    def sustained(self) -> float:
        """FLOP/s that training is counted on."""
        return self.peak * self.utilisation


_DEVICES = {  # dense bf16 (V100: fp16) FLOP/s and memory, from NVIDIA's data sheets
    "v100": (125e12, 32e9),
    "a100": (312e12, 80e9),
    "a100-40g": (312e12, 40e9),
    "h100": (989e12, 80e9),
    "h200": (989e12, 141e9),
    "b200": (2250e12, 180e9),
}


def find_device(name: str, utilisation: float) -> Device:
    """A device by its name, at a utilisation in (0, 1].

    Raises:
        ConfigError: no such device, or no such share.
    """
    if not 0 < utilisation <= 1:
        raise ConfigError(f"--utilisation {utilisation:g}: expected a share over 0 and up to 1, such as 0.4 or 40%")
    if name.lower() not in _DEVICES:
        raise ConfigError(f"--device {name!r} is not known{did_you_mean(name.lower(), _DEVICES)}")
    peak, memory = _DEVICES[name.lower()]
    return Device(name.lower(), peak, memory, utilisation)


@dataclass(frozen=True)
class SetFacts:
    """How many samples a set has, and in how many bytes."""

    samples: int
    num_bytes: int


@dataclass(frozen=True)
class CostEstimate:
    """What one cell comes to; None where it hangs on something unknown (a set's size, a model's cost).

    `problems` says what will not fit.
    """

    cell: Cell
    examples: int | None
    steps: int | None
    epochs: float | None
    cost: Cost | None
    flops: int | None
    num_bytes: int | None
    problems: tuple[str, ...]


def estimate_costs(
    cells: Iterable[Cell],
    facts: Callable[[Recipe], SetFacts | None],
    *,
    devices: int = 1,
    device: Device | None = None,
) -> list[CostEstimate]:
    """What each cell comes to.

    Args:
        cells: of a study.
        facts: of a recipe's training set, or None where it cannot be read.
        devices: that a run is trained on.
        device: whose memory must hold weights, gradients and optimizer; None asks for nothing.
    """
    costs: dict[int, Cost | None] = {}
    found = []
    for cell in cells:
        recipe = cell.recipe
        if id(recipe.model) not in costs:  # cells of one family share their model's config
            size, classes = recipe.data.image_size, recipe.data.num_classes
            costs[id(recipe.model)] = model_cost(recipe.model, num_classes=classes, image_size=size)
        found.append(_expense(cell, costs[id(recipe.model)], facts(recipe), devices, device))
    return found


def _expense(
    cell: Cell, cost: Cost | None, whole: SetFacts | None, devices: int, device: Device | None
) -> CostEstimate:
    recipe, batch = cell.recipe, cell.recipe.global_batch
    n = cell.subset or (whole.samples if whole else None)
    steps = None
    if n is not None or recipe.horizon.unit != "epochs":
        steps = recipe.horizon.steps(global_batch=batch, epoch_examples=n or 0)
    examples = None if steps is None else steps * batch
    flops = None if cost is None or examples is None else training_flops(cost.macs, examples)
    read = None
    if whole is not None and n is not None and examples is not None:
        held = whole.num_bytes * min(n, whole.samples) // whole.samples
        read = held if held < SMALL_SET_BYTES else whole.num_bytes * examples // whole.samples
    epochs = examples / n if n and examples is not None else None
    problems = tuple(_problems(cell, cost, whole, n, steps, devices, device))
    return CostEstimate(cell, examples, steps, epochs, cost, flops, read, problems)


def _problems(
    cell: Cell,
    cost: Cost | None,
    whole: SetFacts | None,
    n: int | None,
    steps: int | None,
    devices: int,
    device: Device | None,
) -> list[str]:
    recipe, batch, found = cell.recipe, cell.recipe.global_batch, []
    if whole is not None and n is not None and n > whole.samples:
        found.append(f"the set has only {whole.samples:,} examples")
    if steps == 0:
        found.append(f"horizon={recipe.horizon} is less than half a step of global_batch={batch}")
    warmup = getattr(recipe.schedule, "warmup", None)
    if steps and warmup is not None and (n or warmup.unit != "epochs"):
        taken = warmup.steps(global_batch=batch, epoch_examples=n or 0)
        if taken > steps:
            found.append(f"schedule.warmup={warmup} is {taken:,} steps, longer than the run's {steps:,}")
    if batch % devices:
        found.append(f"global_batch={batch} is not divisible by {devices} devices")
    if device is not None and cost is not None:
        needed = state_bytes(recipe, cost.params, devices)
        if needed > device.memory_bytes:
            found.append(
                f"weights, gradients and optimizer need {format_bytes(needed)} a device, {device.name} has "
                f"{format_bytes(device.memory_bytes)}; use more devices or a higher engine.zero_stage"
            )
    return found


def state_bytes(recipe: Recipe, params: int, devices: int) -> float:
    """Bytes of weights, gradients, their fp32 sums and two moments on each device; activations come on top.

    ZeRO shares optimizer state from stage 1 on, gradients from stage 2 on, weights from stage 3 on.
    """
    stage = getattr(recipe.engine, "zero_stage", 0)
    if stage == 0 or recipe.precision == "fp32":
        weights, gradients, optimizer = 4, 4, 8 if stage == 0 else 12
    else:
        weights, gradients, optimizer = 2, 2 + 4, 12
    shared = [devices if stage >= since else 1 for since in (3, 2, 1)]
    return params * (weights / shared[0] + gradients / shared[1] + optimizer / shared[2])


@dataclass(frozen=True)
class Throughput:
    """What the finished runs of a study achieved: FLOP/s a device, all their time counted, and how many runs say so."""

    sustained: float
    runs: int


def measured_throughput(paid: Sequence[CostEstimate], directory: Path) -> Throughput | None:
    """The pace of the cells that are done, from their run directories; None where none is.

    A run of another recipe in a cell's directory did other work, and does not count.
    """
    flops = seconds = 0.0
    runs = 0
    for expense in paid:
        files = RunDir(directory / expense.cell.name)
        status, run = files.status(), files.read_json(names.RUN)
        if status is None or status.status != "done" or expense.flops is None:
            continue
        if run is None or run.get("recipe_hash") != expense.cell.hash:
            continue
        spent = sum(status.goodput.get(bucket, 0.0) for bucket in ("train", "wait", "eval", "save", "start", "lost"))
        ranks = next((int(line["ranks"]) for line in reversed(files.attempts()) if line.get("ranks")), 1)
        flops, seconds, runs = flops + expense.flops, seconds + spent * ranks, runs + 1
    return Throughput(flops / seconds, runs) if seconds else None


def set_facts() -> Callable[[Recipe], SetFacts | None]:
    """Facts of each recipe's training set, each read once; None for a mixture, no set, and one that is not there."""

    @lru_cache
    def known(url: str) -> SetFacts | None:
        try:
            manifest = read_manifest(url)
        except DataError:
            return None
        return SetFacts(manifest.num_samples, int(manifest.sizes.sum()))

    return lambda recipe: known(recipe.data.train) if recipe.data.train and not recipe.data.mixture else None
