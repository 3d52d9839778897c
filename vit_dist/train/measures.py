"""The evaluators of a run: on what each measures, which tags its values have, and what is recorded of that."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from vit_dist.config.ema import EMA_TAG
from vit_dist.config.load import load_recipe
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import RunError, VitDistError
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.files import redact
from vit_dist.core.log import WARNING, log
from vit_dist.core.metrics import Metric, known_metric
from vit_dist.core.run import log as runlog
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import step_name
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.measured import MeasuredOn, Tags
from vit_dist.core.world import World
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.evals import EvalContext, EvaluatorConfig, whole_set
from vit_dist.train.checkpoint.restore import on_main

MEASURED = "measured"
"""Of run.json: the set that each tag of the run stands for."""


@dataclass
class Measures:
    """The evaluators of a run, ready to run.

    Attributes:
        context: what they look at.
        directory: of the run.
        on: what each of the recipe's evaluators measures on.
        tags: which set each tag stands for; the same on every rank.
        placed: the tag of each metric that was measured; of two with one name the second is called by its tag.
        sets: on what the values of each of these tags were measured.
    """

    context: EvalContext
    directory: RunDir
    on: tuple[MeasuredOn | None, ...]
    tags: Tags
    placed: dict[str, str] = field(default_factory=dict)
    sets: dict[str, MeasuredOn | None] = field(default_factory=dict)
    _said: set[str] = field(default_factory=set)
    _kept: dict[str, Any] | None = None
    _pictures: dict[str, bytes] = field(default_factory=dict)

    def run(
        self, step: int, known: Mapping[str, float] | None = None, due: Collection[int] | None = None
    ) -> dict[str, float]:
        """Values by tag, the same on every rank, of the weights and of their average where one is kept. A collective.

        Args:
            step: that is looked at: evaluators' files go to a folder of it.
            known: values by tag that need not be measured again.
            due: places of the evaluators that are to look, the same on every rank; None: all.
        """
        values = self._run(step, known or {}, due, "")
        engine = self.context.engine
        average = engine.average if self.context.recipe.ema is not None else None
        # Of an average in which no step counts yet there is nothing to say.
        if average is not None and average.counted():
            with engine.averaged():
                values |= self._run(step, known or {}, due, EMA_TAG)
        return values

    def _run(self, step: int, known: Mapping[str, float], due: Collection[int] | None, prefix: str) -> dict[str, float]:
        values: dict[str, float] = {}
        outputs = self.directory.path / names.EVALUATIONS / step_name(step)
        # Of the average beside those of the weights.
        outputs = outputs / prefix if prefix else outputs
        for place, (evaluator, on) in enumerate(zip(self._evaluators, self.on, strict=True)):
            if due is not None and place not in due:
                continue
            told = self._told(evaluator, on, known, prefix)
            context = replace(self.context, outputs=outputs if on is None else outputs / on.label)
            for name, value in evaluator.run(context) if told is None else told.items():
                metric = f"{prefix}{name}"
                tag = self.tags.claim(metric, on)
                self.placed[metric if self.placed.get(metric, tag) == tag else tag] = tag
                self.sets[tag], values[tag] = on, value
                group = tag.rpartition("/")[0]
                pictures = self.context.pictures.pop(name, {})
                self._pictures |= {f"{group}/{picture}": png for picture, png in pictures.items()}
        return values

    def _told(
        self, evaluator: EvaluatorConfig, on: MeasuredOn | None, known: Mapping[str, float], prefix: str
    ) -> dict[str, float] | None:
        """What is known of all that an evaluator would measure; None: not of all."""
        declared = evaluator.metrics(self.context.recipe)
        if on is None or not declared:
            return None
        tags = {metric: self.tags.place(f"{prefix}{metric}", on) for metric in declared}
        return {metric: known[tag] for metric, tag in tags.items()} if all(t in known for t in tags.values()) else None

    @property
    def _evaluators(self) -> Sequence[EvaluatorConfig]:
        return self.context.recipe.evaluators  # type: ignore[return-value]

    def others(self) -> dict[str, str]:
        """Metrics of which it is declared that they will be measured on another set than their tag stands for."""
        recipe = self.context.recipe
        prefixes = ("", EMA_TAG) if recipe.ema is not None else ("",)
        placed = {
            f"{prefix}{metric}": self.tags.place(f"{prefix}{metric}", on)
            for prefix in prefixes
            for evaluator, on in zip(self._evaluators, self.on, strict=True)
            for metric in evaluator.metrics(recipe) or {}
        }
        return {metric: tag for metric, tag in placed.items() if metric != tag}

    def announce(self, level: int) -> None:
        """Say on rank 0 what will be measured on another set than the run's, and where it goes."""
        by_set: dict[str, dict[str, str]] = {}
        for metric, tag in self.others().items() if self.context.world.is_main else ():
            owner = self.tags.owners[metric]
            of_run = owner.words() if owner is not None else "a set that an older version did not record"
            by_set.setdefault(of_run, {})[metric] = tag
        for of_run, tags in by_set.items():
            log(f"  of this run, {', '.join(tags)} are of {of_run}; of another set: {', '.join(tags.values())}", level)

    def rules(self) -> dict[str, Metric]:
        """How the values of each tag that was measured are read, as far as anybody says it."""
        recipe = self.context.recipe
        of_metrics = recipe.measured()[0] | recipe.metrics
        found = {tag: of_metrics.get(metric) or known_metric(metric) for metric, tag in self.placed.items()}
        return of_metrics | {tag: rule for tag, rule in found.items() if rule is not None}

    def write(self, writer: EventWriter, step: int, values: Mapping[str, float]) -> None:
        """Values into the log, with what they were measured on before the first of them; on rank 0."""
        new = {tag: self.sets[tag] for tag in values if tag not in self._said}
        runlog.write_measured(writer, new, self.rules(), step)
        self._said |= set(new)
        writer.scalars(step, dict(values))
        for tag in sorted(self._pictures):
            writer.picture(tag, self._pictures.pop(tag), step)

    def begin_file(self) -> None:
        """Another event file follows, which says anew what its values were measured on."""
        self._said = set()

    def keep(self) -> None:
        """Write down which set each tag stands for, where that is new; on rank 0. Never raises."""
        owners = self.tags.plain()
        if owners == self._kept:
            return
        try:
            of_run = self.directory.read_json(names.RUN)
            if of_run is not None and of_run.get(MEASURED) != owners:
                self.directory.write_json(names.RUN, {**of_run, MEASURED: owners})
            self._kept = owners
        except VitDistError as error:
            # The disk may be full: the next evaluation tries again.
            log(f"  {self.directory.path / names.RUN}: cannot note what was measured on which set: {error}", WARNING)

    def by_metric(self, values: Mapping[str, float]) -> dict[str, float]:
        """Values by tag as `--out` and the history name them: by metric, beside the set."""
        return {metric: values[tag] for metric, tag in self.placed.items() if tag in values}

    def record(self) -> dict[str, Any]:
        """What the history and `--out` say beside step, evaluators and values: the sets, and the tags in the log."""
        recipe, val = self.context.recipe, self.context.val
        whole = val and whole_set(val, recipe.data.image_size, recipe.data.val_fraction, {})
        return {
            "set": whole and whole.model_dump(mode="json"),
            "val": redact(recipe.data.val),
            "sets": [on and on.model_dump(mode="json") for on in self.on],
            "tags": dict(self.placed),
        }


def open_measures(context: EvalContext, directory: RunDir, world: World) -> Measures:
    """Find out on what a run's evaluators measure, and which set each of its tags stands for. A collective.

    Raises:
        ConfigError, DataError: a set cannot be read, or cannot serve.
        RunError: the run's record is damaged.
    """
    on, owners = on_main(lambda: _look(context.recipe, context.val, directory), world)
    return Measures(context, directory, on, Tags(owners))


def _look(
    recipe: Recipe, val: ShardManifest | None, directory: RunDir
) -> tuple[tuple[MeasuredOn | None, ...], dict[str, MeasuredOn | None]]:
    on = tuple(evaluator.measures_on(recipe, val) for evaluator in recipe.evaluators)  # type: ignore[attr-defined]
    of_run = directory.read_json(names.RUN)
    if of_run is None:
        return on, {}
    if MEASURED not in of_run:
        return on, _of_old_run(recipe, directory)
    try:
        return on, {tag: MeasuredOn.model_validate(one) for tag, one in of_run[MEASURED].items()}
    except ValidationError as error:
        problem = str(error).splitlines()[2].strip()
        raise RunError(f"{directory.path / names.RUN}: damaged: {MEASURED}: {problem}") from None


def _of_old_run(recipe: Recipe, directory: RunDir) -> dict[str, MeasuredOn | None]:
    """The sets of a run whose version recorded none: those that its recipe names."""
    try:
        began = load_recipe(str(directory.path / names.RECIPE), ["checkpoint.keep_best="])
        val = read_manifest(began.data.val) if began.data.val else None
        known = [(evaluator, evaluator.measures_on(began, val)) for evaluator in began.evaluators]  # type: ignore[attr-defined]
        return {tag: on for evaluator, on in known if on is not None for tag in evaluator.metrics(began) or {}}  # type: ignore[attr-defined]
    except VitDistError as error:
        log(
            f"  {directory.path}: an older version does not say on which set it was validated, and its recipe's cannot "
            f"be read ({error}): what is measured now has tags of its own",
            WARNING,
        )
        return dict.fromkeys(recipe.measured()[0])
