"""What a recipe comes to on a world, and whether it comes out at all. No torch: asked before a process is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_dist.config.blame import ON_THE_COMMAND_LINE, Sources
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, DataError, MissingError
from vit_dist.core.files import exists, file_system, redact
from vit_dist.core.run import names
from vit_dist.core.run.copies import check_place
from vit_dist.core.units import nearest_multiples
from vit_dist.core.world import World
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.data.sets import TrainingSet, how_to_pack, open_training_set
from vit_dist.data.takedown import hold, read_lines, refuse_forgetting
from vit_dist.data.validation import open_validation_set
from vit_dist.evals import EvaluatorConfig
from vit_dist.train.state import taken_down


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to on this world: steps, and a rank batch as accumulation x micro_batch."""

    total_steps: int
    warmup_steps: int
    micro_batch: int
    accumulation: int


def open_training(
    recipe: Recipe, world: World, sources: Sources | None = None
) -> tuple[TrainingSet, ShardManifest | None, Plan]:
    """The training set, the validation set or None, and the plan of a run.

    Args:
        recipe: of the run.
        world: this rank's place.
        sources: where its values come from, to be told of a set that is not there; None: it is not known.

    Raises:
        ConfigError: the recipe does not fit its data or the world.
        DataError: a manifest cannot be read (names the key), or there is no file system for `checkpoint.remote`.
    """
    if recipe.checkpoint.remote:
        # Without asking the store: whether it is there is asked where a run begins.
        file_system(recipe.checkpoint.remote)

    def read(url: str) -> ShardManifest:
        try:
            return read_manifest(url)
        except DataError as error:
            mixed = (f"data.mixture.{name}.train" for name, part in recipe.data.mixture.items() if part.train == url)
            raise _of_key(next(mixed, "data.train"), error, recipe, sources) from None

    data = open_training_set(recipe, read=read)
    try:
        val = open_validation_set(recipe, data)
    except DataError as error:
        raise _of_key("data.val", error, recipe, sources) from None
    for evaluator in recipe.evaluators if world.is_main else ():
        assert isinstance(evaluator, EvaluatorConfig)
        evaluator.check_sets(recipe)
    return data, val, make_plan(recipe, data, world)


def _of_key(key: str, error: DataError, recipe: Recipe, sources: Sources | None) -> DataError:
    """What is wrong with a set, with the key that names it and where that was given."""
    said = f"{key}: {error}"
    if isinstance(error, MissingError):
        none = ", or data.val= for none" if key == "data.val" else ""
        typed = sources is None or sources.of(key).endswith(ON_THE_COMMAND_LINE)
        whose = "" if typed else "the recipe names it: "
        said += how_to_pack(recipe) or f"; {whose}give {key}=URL of a set{none}"
    return type(error)(said if sources is None else sources.blame(said))


def check_beginning(recipe: Recipe, run_dir: Path) -> None:
    """Refuse a run that cannot begin or go on as asked, before anything is written of it.

    One that has not begun yet needs its `init.weights` and the store of `checkpoint.remote`. One that has begun goes on
    without them: it has weights, and tries to send its copies again at each save. But it forgets no key that was taken
    down.

    Raises:
        ConfigError: the weights are not there, or `data.takedown` lacks keys.
        DataError: a store cannot be asked, or the list cannot be read.
    """
    # Read anew: it may have grown since this process has read it.
    hold(recipe.data.takedown, read_lines(recipe.data.takedown))
    if (run_dir / names.RUN).exists():
        refuse_forgetting(taken_down(run_dir), recipe.data.takedown)
        return
    if recipe.checkpoint.remote:
        # A store that nothing can be written to would be noticed at the first save.
        try:
            check_place(recipe.checkpoint.remote)
        except DataError as error:
            raise type(error)(f"checkpoint.remote: {error}") from None
    if recipe.init is None or exists(recipe.init.weights):
        return
    raise ConfigError(
        f"init.weights={redact(recipe.init.weights)}: there is no such file or folder; give weights of a form that "
        f"`vit-dist models import` reads, a checkpoint or a run"
    )


def make_plan(recipe: Recipe, data: TrainingSet, world: World) -> Plan:
    """Steps, warm-up, micro-batch and accumulation of a run on this world.

    Raises:
        ConfigError: they do not come out: no step at all, warm-up longer than the run, ranks that do not divide.
    """
    batch, n = recipe.global_batch, data.num_samples
    total = recipe.horizon.steps(global_batch=batch, epoch_examples=n)
    if total == 0:
        raise ConfigError(
            f"horizon={recipe.horizon} is less than half a step of global_batch={batch}: nothing to train"
        )
    warmup_duration = recipe.schedule.warmup  # type: ignore[attr-defined]
    warmup = warmup_duration.steps(global_batch=batch, epoch_examples=n)
    if warmup > total:
        raise ConfigError(
            f"schedule.warmup={warmup_duration} is {warmup} steps, longer than the whole run of {total} steps "
            f"(horizon={recipe.horizon} of {n} examples at global_batch={batch}); shorten it"
        )
    rank_batch = world.rank_batch(batch)
    limit = getattr(recipe.engine, "max_micro_batch", None) or rank_batch
    multiple = 1
    if recipe.data.pair_mixing is not None:
        _check_pairs(batch, world.size, limit, recipe.data.mixing_key)
        # MixUp mixes neighbours: a micro-batch holds whole pairs.
        multiple = 2
    micro = max(d for d in range(multiple, min(limit, rank_batch) + 1, multiple) if rank_batch % d == 0)
    return Plan(total, warmup, micro, rank_batch // micro)


def _check_pairs(global_batch: int, ranks: int, micro_batch_limit: int | None, key: str) -> None:
    """Whether every pair is on one rank, and fits one micro-batch.

    Raises:
        ConfigError: 2W does not divide the batch, or a micro-batch cannot hold two.
    """
    if global_batch % (2 * ranks):
        raise ConfigError(
            f"global_batch={global_batch} is not divisible by twice the {ranks} ranks, so that {key} cannot keep "
            f"its pairs together; nearest that are: {nearest_multiples(global_batch, 2 * ranks)}"
        )
    if micro_batch_limit == 1:
        raise ConfigError(f"engine.max_micro_batch=1 cannot hold the pairs of {key}; give it 2 or more")
