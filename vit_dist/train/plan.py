"""What a recipe comes to on a world, and whether it comes out at all. No torch: asked before a process is started."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.config.blame import ON_THE_COMMAND_LINE, Sources
from vit_dist.config.cadences import average_from, schedule_in_steps
from vit_dist.config.lengths import whole_steps
from vit_dist.config.load import identity, read_mapping
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import AwayError, ConfigError, DataError, MissingError, VitDistError
from vit_dist.core.files import exists, file_system, parent_url, redact
from vit_dist.core.log import WARNING, log
from vit_dist.core.run import names
from vit_dist.core.run.copies import check_place, holds_copies_of
from vit_dist.core.store_patience import briefly
from vit_dist.core.units import nearest_multiples
from vit_dist.core.world import World
from vit_dist.data.class_weights import read_class_weights
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.data.sets import TrainingSet, how_to_pack, open_training_set, too_many_outputs, whole_set
from vit_dist.data.takedown import hold, new_lines, read_list, refuse_forgetting
from vit_dist.data.validation import open_validation_set
from vit_dist.evals import EvaluatorConfig
from vit_dist.optim import ScheduleConfig
from vit_dist.train.state import taken_down

_LOOKED_UP = 2_000_000
"""Samples of a set in which keys of a list are looked up before ranks are started: a second or two."""


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to on this world: steps, and a rank batch as accumulation x micro_batch.

    `schedule` is the recipe's with all its lengths in steps; `average_from` how many are taken before one counts in the
    average of the weights, None where there is none.
    """

    total_steps: int
    schedule: ScheduleConfig
    micro_batch: int
    accumulation: int
    average_from: int | None = None

    @property
    def warmup_steps(self) -> int:
        """The schedule's warm-up."""
        return whole_steps(self.schedule.warmup)

    def lr_at(self, step: int, base_lr: float) -> float:
        """Learning rate of a step; 0 is the first."""
        return self.schedule.lr_at(step, base_lr=base_lr, total_steps=self.total_steps, warmup_steps=self.warmup_steps)


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

    data = open_training_set(recipe, read=read_sets(recipe, sources))
    try:
        val = open_validation_set(recipe, data)
    except DataError as error:
        raise _of_key("data.val", error, recipe, sources) from None
    for evaluator in recipe.evaluators if world.is_main else ():
        assert isinstance(evaluator, EvaluatorConfig)
        evaluator.check_sets(recipe)
    return data, val, make_plan(recipe, data, world)


def read_sets(recipe: Recipe, sources: Sources | None = None) -> Callable[[str], ShardManifest]:
    """What reads the manifests of a recipe's training sets, and says with an error which key names the set.

    Args:
        recipe: of the run.
        sources: as of `open_training`.
    """

    def read(url: str) -> ShardManifest:
        try:
            return read_manifest(url)
        except DataError as error:
            mixed = (f"data.mixture.{name}.train" for name, part in recipe.data.mixture.items() if part.train == url)
            raise _of_key(next(mixed, "data.train"), error, recipe, sources) from None

    return read


def _of_key(key: str, error: DataError, recipe: Recipe, sources: Sources | None) -> DataError:
    """What is wrong with a set, with the key that names it and where that was given."""
    said = f"{key}: {error}"
    if isinstance(error, MissingError):
        none = ", or data.val= for none" if key == "data.val" else ""
        typed = sources is None or sources.of(key).endswith(ON_THE_COMMAND_LINE)
        whose = "" if typed else "the recipe names it: "
        said += how_to_pack(recipe) or f"; {whose}give {key}=URL of a set{none}"
    return type(error)(said if sources is None else sources.blame(said))


def check_beginning(recipe: Recipe, run_dir: Path, data: TrainingSet, val: ShardManifest | None) -> None:
    """Refuse a run that cannot begin or go on as asked, before anything is written of it and before ranks are started.

    One that has not begun yet needs its `init.weights`, the store of `checkpoint.remote`, and a head that its set can
    fill. One that has begun goes on without: it has weights, and tries to send its copies again at each save. But it
    forgets no key that was taken down, and sends no copies to where another run's lie.

    Args:
        recipe: of the run.
        run_dir: of the run.
        data, val: what `open_training` has opened for it.

    Raises:
        ConfigError: the weights are not there, the head is too large, or `data.takedown` lacks keys or names files.
        DataError: a store cannot be asked, or the list cannot be read.
        RefusalError: `checkpoint.remote` holds the copies of another run.
    """
    check_named(recipe, run_dir)
    # The indexes of a large set take minutes: of one, ranks look its keys up, and a refusal by them costs no more.
    if recipe.data.takedown and data.total_samples <= _LOOKED_UP:
        new_lines(taken_down(run_dir), recipe.data.takedown, data.parts, beside=whole_set(val))
    begun = _has_begun(run_dir)
    if recipe.checkpoint.remote:
        _check_copies(recipe, run_dir, {**identity(recipe), "fingerprint": data.fingerprint}, begun=begun)
    if not begun:
        check_outputs(recipe, data)


def check_named(recipe: Recipe, run_dir: Path, asked: set[str] | None = None) -> None:
    """The part of `check_beginning` that needs no set to be open: what a recipe names beside its sets is there.

    Args:
        recipe: of the run.
        run_dir: of the run.
        asked: places that were asked for other runs, which are not asked again; those of this one are added.

    Raises:
        ConfigError, DataError: as `check_beginning`.
    """
    asked = set() if asked is None else asked
    # Read anew: it may have grown since this process has read it.
    hold(recipe.data.takedown, read_list(recipe.data.takedown))
    refuse_forgetting(taken_down(run_dir), recipe.data.takedown)
    if recipe.loss.class_weights_file:
        read_class_weights(recipe.loss.class_weights_file, recipe.data.num_classes)
    if recipe.loss.teacher is not None:
        # Each attempt reads it.
        _there("loss.teacher.weights", recipe.loss.teacher.weights, asked)
    if _has_begun(run_dir):
        return
    remote = recipe.checkpoint.remote
    if remote and parent_url(remote) not in asked:
        # A store that nothing can be written to would be noticed at the first save.
        try:
            check_place(remote)
        except DataError as error:
            raise type(error)(f"checkpoint.remote: {error}") from None
        asked.add(parent_url(remote))
    if recipe.init is not None:
        _there("init.weights", recipe.init.weights, asked)


def _there(key: str, url: str, asked: set[str]) -> None:
    if url not in asked and not exists(url):
        raise ConfigError(
            f"{key}={redact(url)}: there is no such file or folder; give weights of a form that `vit-dist models "
            f"import` reads, a checkpoint or a run"
        )
    asked.add(url)


def _has_begun(run_dir: Path) -> bool:
    return (run_dir / names.RUN).exists()


def check_outputs(recipe: Recipe, data: TrainingSet) -> None:
    """Refuse a run that is to begin with a head of far more outputs than its set has classes.

    Raises:
        ConfigError: it has, and the recipe does not say that this is meant.
    """
    problem = too_many_outputs(recipe, data.num_classes)
    if problem:
        raise ConfigError(problem)


def _check_copies(recipe: Recipe, run_dir: Path, known: dict[str, Any], *, begun: bool) -> None:
    remote = recipe.checkpoint.remote
    if begun and _remote_before(run_dir) == remote:
        return
    try:
        # Not as patiently as while it trains, also where it has begun.
        with briefly():
            holds_copies_of(remote, known)
    except VitDistError as error:
        if begun and isinstance(error, AwayError):
            log(f"  checkpoint.remote: {error}. The run goes on, and tries it at each save", WARNING)
            return
        raise type(error)(f"checkpoint.remote: {error}") from None


def _remote_before(run_dir: Path) -> str | None:
    """What `checkpoint.remote` was when a run began; None where that is not known."""
    with contextlib.suppress(ConfigError):
        checkpoint = read_mapping(run_dir / names.RECIPE).get("checkpoint")
        return str(checkpoint.get("remote", "")) if isinstance(checkpoint, dict) else None
    return None


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
    if recipe.branch is not None and total <= recipe.branch.step:
        raise ConfigError(
            f"horizon={recipe.horizon} is {total:,} steps in all, and the branch begins after step "
            f"{recipe.branch.step:,} of {recipe.branch.run}: nothing to train; the trunk's steps count, so give more"
        )
    schedule, misfit = schedule_in_steps(recipe, epoch_examples=n, total_steps=total)
    if misfit:
        raise ConfigError(misfit)
    assert isinstance(schedule, ScheduleConfig)
    averaged, beyond = average_from(recipe, epoch_examples=n, total_steps=total)
    if beyond:
        raise ConfigError(beyond)
    rank_batch = world.rank_batch(batch)
    limit = getattr(recipe.engine, "max_micro_batch", None) or rank_batch
    multiple = 1
    if recipe.data.pair_mixing is not None:
        _check_pairs(batch, world.size, limit, recipe.data.mixing_key)
        # MixUp mixes neighbours: a micro-batch holds whole pairs.
        multiple = 2
    micro = max(d for d in range(multiple, min(limit, rank_batch) + 1, multiple) if rank_batch % d == 0)
    return Plan(total, schedule, micro, rank_batch // micro, averaged)


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
