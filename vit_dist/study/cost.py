"""What the cells of a study will cost, and what will not fit: examples, steps, FLOPs, bytes, device-hours. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vit_dist.config.cadences import average_from, schedule_in_steps, unrated_checkpoints
from vit_dist.config.schema import Recipe
from vit_dist.core.devices import Device
from vit_dist.core.run import history, names
from vit_dist.core.run.directory import RunDir
from vit_dist.core.units import format_bytes, format_flops
from vit_dist.data.order import SMALL_SET_BYTES
from vit_dist.data.sets import idle_outputs, too_many_outputs
from vit_dist.models.costs import Cost, StateBytes, Sums, fsdp_state_bytes, model_cost, state_bytes, training_flops
from vit_dist.study.grid import Cell
from vit_dist.study.sets import DatasetSize, SetsOfCells


@dataclass(frozen=True)
class CostEstimate:
    """What one cell comes to, a branch without its trunk's part; None where that hangs on something unknown.

    `problems` says what will not fit, `missing` which sets are not there, `remark` what is odd and will run all the
    same, or ''.
    """

    cell: Cell
    examples: int | None
    steps: int | None
    epochs: float | None
    cost: Cost | None
    flops: int | None
    num_bytes: int | None
    problems: tuple[str, ...]
    remark: str
    missing: tuple[str, ...] = ()


def estimate_costs(
    cells: Iterable[Cell],
    sets: SetsOfCells,
    *,
    devices: int = 1,
    device: Device | None = None,
) -> list[CostEstimate]:
    """What each cell comes to.

    Args:
        cells: of a study.
        sets: what is known of those that they read, see `look_at_sets`.
        devices: that a run is trained on.
        device: whose memory must hold weights, gradients and optimizer; None asks for nothing.
    """
    costs: dict[int, Cost | None] = {}
    estimates = []
    for cell in cells:
        recipe = cell.recipe
        # Cells of one family share their model's config: a study of thousands has a few costs to work out.
        if id(recipe.model) not in costs:
            size, classes = recipe.data.image_size, recipe.data.num_classes
            costs[id(recipe.model)] = model_cost(recipe.model, num_classes=classes, image_size=size, training=True)
        dataset = sets.sizes.get(_dataset_url(recipe))
        estimate = _estimate(cell, costs[id(recipe.model)], dataset, devices, device)
        estimates.append(replace(estimate, missing=sets.missing(cell)))
    return estimates


def _dataset_url(recipe: Recipe) -> str:
    """The training set whose size counts; "" where none is named, and for mixtures, of which a run reads parts."""
    return "" if recipe.data.mixture else recipe.data.train or ""


def _estimate(
    cell: Cell, cost: Cost | None, dataset: DatasetSize | None, devices: int, device: Device | None
) -> CostEstimate:
    recipe, batch = cell.recipe, cell.recipe.global_batch
    subset = cell.subset or (dataset.samples if dataset else None)
    steps = None
    if subset is not None or recipe.horizon.unit != "epochs":
        steps = recipe.horizon.steps(global_batch=batch, epoch_examples=subset or 0)
    # Of a branch its own: what its trunk has trained up to there is counted with that.
    own = None if steps is None else max(0, steps - cell.begins_after)
    examples = None if own is None else own * batch
    flops = None if cost is None or examples is None else training_flops(cost.macs, examples)
    bytes_read = None
    if dataset is not None and subset is not None and examples is not None:
        # A set this small is one window, read once and kept; of any other, an example is read each time it is seen.
        subset_bytes = dataset.num_bytes * min(subset, dataset.samples) // dataset.samples
        small = subset_bytes < SMALL_SET_BYTES
        bytes_read = subset_bytes if small else dataset.num_bytes * examples // dataset.samples
    epochs = examples / subset if subset and examples is not None else None
    problems = tuple(_problems(cell, cost, dataset, subset, steps, devices, device))
    known = dataset.classes if dataset is not None else 0
    idle = idle_outputs(recipe.data.num_classes, known) if known and not too_many_outputs(recipe, known) else ""
    remark = "; ".join(filter(None, (unrated_checkpoints(recipe, subset), idle)))
    return CostEstimate(cell, examples, own, epochs, cost, flops, bytes_read, problems, remark)


def _problems(
    cell: Cell,
    cost: Cost | None,
    dataset: DatasetSize | None,
    subset: int | None,
    steps: int | None,
    devices: int,
    device: Device | None,
) -> list[str]:
    recipe, batch, problems = cell.recipe, cell.recipe.global_batch, []
    if dataset is not None and subset is not None and subset > dataset.samples:
        problems.append(f"the set has only {dataset.samples:,} examples")
    if dataset is not None and not dataset.classes:
        problems.append("the set has no labels to train on; index its tars by `vit-dist data index --labels EXT`")
    if dataset is not None and dataset.classes > recipe.data.num_classes:
        known = f"data.num_classes={recipe.data.num_classes}, but the set has {dataset.classes} classes"
        problems.append(f"{known}; set data.num_classes={dataset.classes}")
    if dataset is not None and dataset.classes:
        problems += filter(None, [too_many_outputs(recipe, dataset.classes)])
    if steps == 0:
        problems.append(f"horizon={recipe.horizon} is less than half a step of global_batch={batch}")
    if steps and steps <= cell.begins_after:
        problems.append(
            f"horizon={recipe.horizon} is {steps:,} steps in all, and it begins after step {cell.begins_after:,}"
        )
    if steps:
        problems += filter(None, [average_from(recipe, epoch_examples=subset, total_steps=steps)[1]])
        problems += filter(None, [schedule_in_steps(recipe, epoch_examples=subset, total_steps=steps)[1]])
    if batch % devices:
        problems.append(f"global_batch={batch} is not divisible by {devices} devices")
    if device is not None and cost is not None:
        needed = engine_bytes(recipe, cost.params, devices).peak
        if needed > device.memory_bytes:
            resharded = getattr(recipe.engine, "reshard_after_forward", None)
            more = "a higher engine.zero_stage" if resharded is None else "engine.reshard_after_forward=true"
            problems.append(
                f"weights, gradients and optimizer need {format_bytes(needed)} a device, {device.name} has "
                f"{format_bytes(device.memory_bytes)}; use more devices{'' if resharded else f' or {more}'}"
            )
    return problems


def engine_bytes(recipe: Recipe, params: int, devices: int) -> StateBytes:
    """What training of so many weights keeps on each device, by the recipe's engine, precision and optimizer."""
    # An average of the weights lies where moments lie, and is as large as one.
    moments = recipe.optim.moments + (recipe.ema is not None)  # type: ignore[attr-defined]
    engine = recipe.engine
    reduce_dtype = str(getattr(engine, "reduce_dtype", "fp32"))
    resharded, limit = getattr(engine, "reshard_after_forward", None), getattr(engine, "max_micro_batch", None)
    if resharded is not None:
        accumulates = limit is not None and limit < recipe.global_batch // devices
        summed: Sums = "whole" if not resharded and reduce_dtype == "fp32" else "shards"
        return fsdp_state_bytes(
            params,
            precision=recipe.precision,
            resharded=resharded,
            sums=summed if accumulates else "none",
            moments=moments,
            devices=devices,
        )
    return state_bytes(
        params,
        precision=recipe.precision,
        moments=moments,
        zero_stage=getattr(engine, "zero_stage", 0),
        devices=devices,
        reduce_bucket=int(getattr(engine, "reduce_bucket", 0)),
        reduce_dtype=reduce_dtype,
    )


def problem_lines(estimates: Iterable[CostEstimate], *, remarks: bool = False) -> list[str]:
    """Which cells cannot be trained and why, a line a reason; with what is worth a remark, where that is wanted."""
    reasons: dict[str, list[str]] = {}
    for estimate in estimates:
        for problem in estimate.missing:
            reasons.setdefault(f"cannot be read: {{}}: {problem}", []).append(estimate.cell.name)
        for problem in estimate.problems:
            reasons.setdefault(f"will not fit: {{}}: {problem}", []).append(estimate.cell.name)
        if remarks and estimate.remark:
            reasons.setdefault(f"note: {{}}: {estimate.remark}", []).append(estimate.cell.name)
    return cell_lines(reasons)


def cell_lines(reasons: Mapping[str, Sequence[str]]) -> list[str]:
    """A line for each reason; in place of {} in it stand the cells that it is of."""
    lines = []
    for text, cells in reasons.items():
        shown = ", ".join(cells[:4]) + (f" and {len(cells) - 4} more" if len(cells) > 4 else "")
        lines.append(text.replace("{}", shown, 1))
    return lines


@dataclass(frozen=True)
class Throughput:
    """What the finished runs of a study achieved: FLOP/s a device, all their time counted, and how many runs say so."""

    sustained: float
    runs: int


def measured_throughput(estimates: Sequence[CostEstimate], directory: Path) -> dict[str, Throughput]:
    """The throughput of the cells that are done, by the precision they ran in, from their run directories.

    A run of another recipe in a cell's directory did other work, and does not count.
    """
    sums: dict[str, tuple[float, float, int]] = {}
    for estimate in estimates:
        files = RunDir(directory / estimate.cell.name)
        state, run = history.read(files.path), files.read_json(names.RUN)
        status = state.status
        if status is None or status.status != "done" or estimate.flops is None:
            continue
        if run is None or run.get("recipe_hash") != estimate.cell.hash:
            continue
        # Without the time a run was down between attempts: no device was held then.
        busy = sum(status.goodput.get(bucket, 0.0) for bucket in ("train", "wait", "eval", "save", "start", "lost"))
        ranks = state.last.devices if state.last is not None else 1
        precision = estimate.cell.recipe.precision
        flops, seconds, runs = sums.get(precision, (0.0, 0.0, 0))
        sums[precision] = flops + estimate.flops, seconds + busy * ranks, runs + 1
    return {name: Throughput(flops / seconds, runs) for name, (flops, seconds, runs) in sums.items() if seconds}


@dataclass(frozen=True)
class Rates:
    """FLOP/s a device that time is counted by, by precision, and where each is from, in words.

    A precision that is in `sources` alone is one of which nothing is known.
    """

    sustained: Mapping[str, float]
    sources: Mapping[str, str]

    def hours(self, estimate: CostEstimate) -> float | None:
        """Device-hours of one run; None where its FLOPs, or what a device does in its precision, are not known."""
        rate = self.sustained.get(estimate.cell.recipe.precision)
        return None if rate is None or estimate.flops is None else estimate.flops / rate / 3600


def rates(
    estimates: Sequence[CostEstimate], measured: Mapping[str, Throughput], device: Device, utilisation: float
) -> Rates:
    """What the runs of a study are counted by: what was measured in their precision, else a part of its peak.

    Args:
        estimates: of the study's runs.
        measured: by precision; {} to count by the peaks alone.
        device: whose peaks count.
        utilisation: fraction of the peak.
    """
    sustained: dict[str, float] = {}
    sources: dict[str, str] = {}
    for precision in dict.fromkeys(estimate.cell.recipe.precision for estimate in estimates):
        found, peak = measured.get(precision), device.peak(precision)
        if found is not None:
            runs = f"{found.runs} finished run{'' if found.runs == 1 else 's'}"
            sustained[precision] = found.sustained
            sources[precision] = f"{precision} measured: {_per_second(found.sustained)} a device over {runs}"
        elif peak is not None:
            sustained[precision] = peak * utilisation
            assumed = f"{utilisation:.0%} of an {device.name}'s {_per_second(peak)} in {precision}"
            sources[precision] = f"assumed: {assumed}; --device, --utilisation"
        else:
            sources[precision] = f"unknown: the peak of an {device.name} in {precision}; --device"
    return Rates(sustained, sources)


def _per_second(flops: float) -> str:
    return f"{format_flops(flops).removesuffix('s')}/s"
