"""A fine-tuning: a grid over learning rates on all but a slice of the training set, and a run of the best on all of it.

Each is a run like any other, in a directory of its own; what is left to do is read from these alone, so that whatever
was killed goes on where it was. The slice is the end of the set's nested order (`data.held_out`). Runs of the grid know
of no validation set: the best is chosen without it, and the last run alone looks at it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from vit_dist.config.ema import EMA_TAG
from vit_dist.config.finetune import ChosenConfig, FinetuneConfig
from vit_dist.config.load import differences, identity, load_recipe, recipe_yaml, resolve
from vit_dist.config.schema import Recipe, dump
from vit_dist.core.errors import ConfigError, DataError, RunError
from vit_dist.core.events.reader import read_run
from vit_dist.core.files import join_url, read_bytes, write_bytes
from vit_dist.core.run import history, names
from vit_dist.core.run.names import run_folder
from vit_dist.core.small_files import DamagedError, parse_json
from vit_dist.data.manifest import read_manifest
from vit_dist.data.sets import held_out_slice
from vit_dist.study.grid import Cell, StudyConfig, plan
from vit_dist.study.kept import keep_study
from vit_dist.study.local import cell_state

REQUEST = "finetune.yaml"
"""In the directory of a fine-tuning: its recipe, with the grid."""
RESULTS = "results.csv"
GRID, FINAL = "grid", "final"
_GRID_RECIPE = "grid.yaml"


class FinalCell(Cell):
    """The run of the rate that was chosen; its recipe has the name of the whole, its directory one of its own."""

    @property
    def name(self) -> str:
        """Of its directory."""
        return FINAL


@dataclass(frozen=True)
class Finetuning:
    """What is to be done, in a directory.

    Attributes:
        recipe: with the grid in its section `finetune`; its own `optim.lr` counts where there is nothing to choose.
        directory: of everything.
    """

    recipe: Recipe
    directory: Path

    @property
    def rates(self) -> FinetuneConfig:
        """The grid; without any rates where the recipe has no such section."""
        return self.recipe.finetune or FinetuneConfig()

    @property
    def chooses(self) -> bool:
        """Whether there is more than one rate to choose from."""
        return len(self.rates.lrs) > 1

    @property
    def grid_directory(self) -> Path:
        """In which the runs of the grid have their directories."""
        return self.directory / GRID

    @cached_property
    def study(self) -> StudyConfig:
        """The grid as a study, for the verbs that look at one.

        Raises:
            ConfigError: no evaluator of the recipe measures on the slice what is to be compared.
        """
        recipe = self.directory.absolute() / _GRID_RECIPE
        return StudyConfig(
            name=GRID,
            recipe=str(recipe),
            families={label_of(lr): {"optim.lr": lr} for lr in self.rates.lrs},
            subsets=(self.recipe.data.subset,),
            seeds=(self.recipe.seed,),
            metric=self.rates.metric,
        )

    def prepare(self) -> None:
        """Write what is needed to go on by the directory alone.

        Raises:
            ConfigError: another fine-tuning is there.
            DataError: it cannot be written.
        """
        request = self.directory / REQUEST
        if request.exists():
            _check_same(self.recipe, load_recipe(str(request)), self.directory)
        elif self.directory.exists() and any(self.directory.iterdir()):
            raise ConfigError(f"{self.directory}: holds files of others; give another --run-dir")
        else:
            write_bytes(str(request), recipe_yaml(self.recipe).encode())
        if self.chooses:
            self._write_grid()

    def _write_grid(self) -> None:
        write_bytes(str(self.directory / _GRID_RECIPE), recipe_yaml(grid_recipe(self.recipe)).encode())
        study = self.study
        study._read = {
            key: value for key, value in study.model_dump(mode="json").items() if value not in (None, [], {})
        }
        keep_study(study, self.grid_directory)

    @cached_property
    def cells(self) -> list[Cell]:
        """The runs of the grid, small rates first; none where there is nothing to choose."""
        return plan(self.study) if self.chooses else []

    def final(self, chosen: ChosenConfig | None) -> FinalCell:
        """The last run: of the rate that was chosen, on all of the training set."""
        recipe = self.recipe
        rates = self.rates.lrs
        lr = chosen.best if chosen is not None else (rates[0] if rates else recipe.optim.lr)  # type: ignore[attr-defined]
        finetune = self.rates.model_copy(update={"chosen": chosen})
        remote = recipe.checkpoint.remote
        checkpoint = recipe.checkpoint.model_copy(update={"remote": join_url(remote, FINAL) if remote else ""})
        update: dict[str, Any] = {"optim": recipe.optim.model_copy(update={"lr": lr}), "checkpoint": checkpoint}
        recipe = recipe.model_copy(update={**update, "finetune": finetune if rates else recipe.finetune})
        # Checked anew: a schedule may end above a small rate.
        recipe = resolve(dump(recipe), where=f"{self.directory}: the run of optim.lr={lr:g}")
        return FinalCell(recipe.study, f"{FINAL}: {label_of(lr)}", recipe.data.subset, recipe.seed, recipe)


def default_directory(recipe: Recipe, root: Path) -> Path:
    """ROOT/NAME-HASH: weights, sets and the grid are part of it, unlike of a run's."""
    init, data = recipe.init, recipe.data
    said = [identity(recipe), dump(recipe.finetune) if recipe.finetune else None, init and init.weights]
    text = json.dumps([*said, data.train, data.val], sort_keys=True)
    return root / run_folder(recipe.name, hashlib.sha256(text.encode()).hexdigest()[:16])


def read_finetuning(directory: Path) -> Finetuning:
    """The fine-tuning that was begun in a directory.

    Raises:
        ConfigError: none was.
    """
    request = directory / REQUEST
    if not request.is_file():
        raise ConfigError(f"{directory}: no fine-tuning was begun there: it has no {REQUEST}")
    return Finetuning(load_recipe(str(request)), directory)


def grid_recipe(recipe: Recipe) -> Recipe:
    """What the runs of a grid share: a slice of the training set in place of the validation set.

    Raises:
        ConfigError: nothing would measure what is to be compared.
    """
    rates = recipe.finetune or FinetuneConfig()
    plain = dump(recipe)
    del plain["finetune"]
    plain["data"] |= {"held_out": rates.held_out, "val": ""}
    # What is kept for the choice is the last value of each: their checkpoints serve to go on after a kill.
    plain["checkpoint"] |= {"keep_best": ""}
    # What they measure may hang on what there is to be measured on.
    there = resolve({**plain, "evaluators": []}, where="the recipe of the grid")
    said = [(one, one.metrics(there)) for one in recipe.evaluators]  # type: ignore[attr-defined]
    metric = rates.metric.removeprefix(EMA_TAG) if recipe.ema is not None else rates.metric
    # One that does not say what it measures may measure it.
    plain["evaluators"] = [dump(one) for one, metrics in said if metrics is None or metric in metrics]
    if not plain["evaluators"]:
        known = ", ".join(tag for _, metrics in said for tag in metrics or ())
        raise ConfigError(
            f"finetune.metric={rates.metric}: no evaluator of the recipe measures it"
            f"{f'; they measure {known}' if known else ''}"
        )
    return resolve(plain, where="the recipe of the grid")


def label_of(lr: float) -> str:
    """A rate as families and runs are called by it."""
    return f"lr={lr:g}"


def is_diverged(run_dir: Path) -> bool:
    """Whether a run has ended because its steps were not applied any more: its rate was too high, and no try helps."""
    if cell_state(run_dir).state != "failed":
        return False
    try:
        *_, last = read_bytes(str(run_dir / names.NONFINITE)).splitlines()
        entry = parse_json(last)
    except (DataError, ValueError, DamagedError):
        return False
    status = history.read(run_dir).status
    return isinstance(entry, dict) and entry.get("applied") is False and status is not None


def left(cells: Sequence[Cell], directory: Path) -> list[Cell]:
    """Those that are neither done nor have diverged."""
    return [
        cell
        for cell in cells
        if cell_state(directory / cell.name).state != "done" and not is_diverged(directory / cell.name)
    ]


def values_of(run_dir: Path, recipe: Recipe) -> dict[str, float]:
    """What a run that is done has measured at its last step, by tag, from its log.

    Raises:
        DataError: the log cannot be read.
    """
    log = read_run(str(run_dir / names.EVENTS), [*recipe.measured()[0], recipe_metric(recipe)])
    step = cell_state(run_dir).step
    last = {tag: (int(one.steps[-1]), float(one.values[-1])) for tag, one in log.scalars.items() if len(one.steps)}
    # Logs hold single precision: further digits are none of the value's.
    return {tag: float(f"{value:.7g}") for tag, (at, value) in sorted(last.items()) if at == step}


def recipe_metric(recipe: Recipe) -> str:
    """What is compared, by the recipe; else the accuracy."""
    return (recipe.finetune or FinetuneConfig()).metric


def choose(tuning: Finetuning) -> ChosenConfig | None:
    """The rate that was best on the slice; of equals the smallest. None where there was nothing to choose.

    Raises:
        RunError: a run of the grid is not done, or all have diverged.
        DataError: a log cannot be read, or lacks the metric.
    """
    if not tuning.chooses:
        return None
    unfinished = left(tuning.cells, tuning.grid_directory)
    if unfinished:
        raise RunError(f"{tuning.grid_directory}: not done yet: {', '.join(cell.name for cell in unfinished)}")
    metric, values = tuning.rates.metric, dict[float, float | None]()
    for cell in tuning.cells:
        run_dir, lr = tuning.grid_directory / cell.name, cell.recipe.optim.lr  # type: ignore[attr-defined]
        values[lr] = None if is_diverged(run_dir) else _value(run_dir, cell.recipe, metric)
    rule = tuning.cells[0].recipe.metric(metric, "finetune.metric")
    # Of equals `best` takes the last.
    rates = sorted((lr for lr, value in values.items() if value is not None), reverse=True)
    best = rule.best([float(values[lr]) for lr in rates])  # type: ignore[arg-type]
    if best is None:
        tried = ", ".join(f"{lr:g}" for lr in sorted(values))
        raise RunError(
            f"{tuning.grid_directory}: every rate has diverged ({tried}): try smaller ones: finetune.lrs=[...]"
        )
    data = tuning.cells[0].recipe.data
    manifest = read_manifest(data.train)
    part = held_out_slice(data, manifest)
    return ChosenConfig(
        best=rates[best],
        metric=metric,
        values={f"{lr:g}": value for lr, value in sorted(values.items())},
        held_out=data.held_out,
        examples=part.stop - part.start,
        slice=str(part),
        fingerprint=manifest.fingerprint,
    )


def _value(run_dir: Path, recipe: Recipe, metric: str) -> float | None:
    value = values_of(run_dir, recipe).get(metric)
    if value is None:
        raise DataError(f"{run_dir / names.EVENTS}: has no {metric} at the run's last step; it cannot be compared")
    return value if math.isfinite(value) else None


def words_of(chosen: ChosenConfig) -> str:
    """How a rate was chosen, for people."""
    others = ", ".join(
        f"{lr} {'diverged' if value is None else f'{value:.4g}'}"
        for lr, value in chosen.values.items()
        if float(lr) != chosen.best
    )
    best = chosen.values[f"{chosen.best:g}"]
    return (
        f"optim.lr={chosen.best:g}: {chosen.metric} {best:.4g} on {chosen.examples:,} examples held out of the "
        f"training set ({others})"
    )


def edge_of_grid(chosen: ChosenConfig) -> str:
    """A remark where the best rate is the first or the last of the grid; '' where it lies inside."""
    rates = sorted(map(float, chosen.values))
    if chosen.best not in (rates[0], rates[-1]) or len(rates) < 3:
        return ""
    side, factor = ("smallest", 1 / 3) if chosen.best == rates[0] else ("largest", 3)
    return (
        f"the {side} rate of the grid was best: one beyond it may be better, such as {chosen.best * factor:.2g} "
        f"(finetune.lrs)"
    )


def _check_same(ours: Recipe, theirs: Recipe, directory: Path) -> None:
    found = differences(_decisive(ours), _decisive(theirs))
    if found:
        raise ConfigError(
            f"{directory}: another fine-tuning was begun there: {'; '.join(found[:4])}; give another --run-dir, or "
            f"remove it"
        )


def _decisive(recipe: Recipe) -> Mapping[str, Any]:
    return {**identity(recipe), "finetune": dump(recipe.finetune or FinetuneConfig())}
