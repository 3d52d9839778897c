"""Branches as cells of a study: each run of its grid is a trunk, from which others begin. No torch.

What a branch begins from is not there when the study is planned. Its recipe says whose checkpoint it will be, by the
hash of the trunk's recipe, so that it has a hash of its own from the beginning; the attempt that begins the branch
reads the checkpoint as that of any branch (train/branch.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from vit_dist.config.blame import Sources
from vit_dist.config.branch_keys import check_changes, check_given
from vit_dist.config.load import identity, merge, recipe_hash, resolve
from vit_dist.config.schema import CheckpointConfig, Recipe, dump
from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import Config
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import step_name
from vit_dist.core.units import Duration, Length

UNSAID = "0" * 16
"""In place of the hash of a trunk that is not planned yet."""


class BranchRule(Config):
    """A branch of every run of the grid."""

    at: Length = Field(description="where it leaves its trunk: '800 steps', '51.2k examples'; saved and kept there")
    set: dict[str, Any] = Field(
        default_factory=dict, description="keys of the recipe in which it differs, such as {schedule.cooldown: 20%}"
    )


def branch_of(trunk: Recipe, label: str, rule: BranchRule, tree: Mapping[str, Any], where: str) -> Recipe:
    """The checked recipe of a branch of a trunk, whose place and hash are yet to be said (`grown_from`).

    Args:
        trunk: recipe of a run of the grid.
        label: of the branch.
        rule: of the study.
        tree: what `rule.set` says, as one nested mapping.
        where: for errors.

    Raises:
        ConfigError: a key that a branch may not change, a step that the trunk does not keep, or a mistake in a key.
    """
    key = f"branches.{label}"
    try:
        check_given(list(_flat(rule.set)))
    except ConfigError as error:
        raise ConfigError(f"{key}.set: {error}") from None
    step = _step(rule, trunk, key)
    begins = {"checkpoint": step_name(step), "run": trunk.name, "step": step, "trunk": UNSAID}
    raw = {name: value for name, value in dump(trunk).items() if name not in ("init", "finetune")}
    recipe = resolve(merge(merge(raw, {"branch": begins}), tree), where=Sources(f"{where}, {key}"))
    try:
        check_changes(identity(trunk), identity(recipe))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
    return recipe


def grown_from(recipe: Recipe, trunk: Recipe, **changes: Any) -> Recipe:
    """A branch of one run of the grid: held to that run's recipe, and what makes it a run of its own.

    Args:
        recipe: as `branch_of` gave it.
        trunk: of the cell.
        changes: name, seed, ...
    """
    assert recipe.branch is not None
    branch = recipe.branch.model_copy(update={"run": trunk.name, "trunk": recipe_hash(trunk)})
    return recipe.model_copy(update={"branch": branch, **changes})


def _step(rule: BranchRule, trunk: Recipe, key: str) -> int:
    """The trunk's step at which a branch begins.

    Raises:
        ConfigError: it is none, beyond the trunk's end, or its checkpoint is not kept.
    """
    batch, subset = trunk.global_batch, trunk.data.subset
    if rule.at.unit == "epochs" and subset is None:
        raise ConfigError(f"{key}.at={rule.at}: how many steps that is hangs on the set; give steps or examples")
    step = rule.at.steps(global_batch=batch, epoch_examples=subset or 0)
    total = _steps(trunk.horizon, batch, subset)
    if not step or (total is not None and step > total):
        ends = "" if total is None else f", which is trained for {total:,} steps"
        raise ConfigError(f"{key}.at={rule.at} is step {step:,} of its trunk{ends}; give a step that it takes")
    saves = trunk.checkpoint
    if step != total and not (_falls_on(saves.every, step, batch, subset) and _kept(saves, step, batch, subset)):
        raise ConfigError(
            f"{key}.at={rule.at}: its trunk does not save and keep step {step:,} (checkpoint.every={saves.every}, "
            f"checkpoint.keep_every={saves.keep_every or 'none'}); set both to a length that falls on it, such as "
            f"overrides: {{checkpoint.every: {step} steps, checkpoint.keep_every: {step} steps}}, or one that divides "
            f"the steps of all branches"
        )
    return step


def _kept(saves: CheckpointConfig, step: int, batch: int, subset: int | None) -> bool:
    return saves.keep_every is not None and _falls_on(saves.keep_every, step, batch, subset)


def _falls_on(every: object, step: int, batch: int, subset: int | None) -> bool:
    """Whether a multiple of a length is reached with this step, and not before, as train/progress/cadence.py has it."""
    if not isinstance(every, Duration) or not every.value or every.unit == "seconds":
        return False
    if every.unit == "epochs" and subset is None:
        return False
    period = every.examples(global_batch=batch, epoch_examples=subset or 0)
    return math.floor(step * batch / period) > math.floor((step - 1) * batch / period)


def _steps(horizon: Duration, batch: int, subset: int | None) -> int | None:
    if horizon.unit == "epochs" and subset is None:
        return None
    return horizon.steps(global_batch=batch, epoch_examples=subset or 0)


def _flat(tree: Mapping[str, Any], above: str = "") -> Iterator[str]:
    """The dotted keys of a mapping that is nested, dotted or both."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}"


def checkpoint_in(directory: str, trunk: str, step: int) -> str:
    """Where the run of a trunk keeps a step, in the directory of its study."""
    return f"{directory}/{trunk}/{names.CHECKPOINTS}/{step_name(step)}"
