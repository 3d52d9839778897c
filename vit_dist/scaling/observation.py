"""What logs come to: observations, one for each finished run; runs that are none; and all that was found together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vit_dist.core.events.reader import Series
from vit_dist.core.metrics import Metric
from vit_dist.core.run.lineage import Lineage, multiply_adds
from vit_dist.core.run.log import RunInfo


@dataclass(frozen=True)
class Observation:
    """One point of a study: a finished run and the value of the metric at its last step.

    `best` is the best value on the way, at `best_step`. `macs` are those of one forward pass of one image. `directory`
    is relative to the logs that were read. `measured_on` is the name of the set on which the metric was measured, ''
    where the log does not say. `trunk` is the run and step from which a branch has grown, as RUN@STEP; '' of any other.
    """

    study: str
    run: str
    family: str
    model: str
    dataset: str
    dataset_fingerprint: str
    subset: int
    subset_seed: int
    seed: int
    metric: str
    value: float
    best: float
    best_step: int
    measured_on: str
    measured_on_fingerprint: str
    step: int
    examples_seen: int
    planned_examples: int
    num_params: int
    macs: int | None
    macs_method: str
    global_batch: int
    base_lr: float
    weight_decay: float
    precision: str
    engine: str
    world_size: int
    code_version: str
    recipe_hash: str
    status: str
    directory: str
    finished: float = field(compare=False, repr=False)
    trunk: str = ""
    lineage: Lineage = field(default=(), compare=False, repr=False)

    @property
    def cell(self) -> tuple[str, str, int, int, int, int, str]:
        """What makes two runs the same point: family, model, subset, subset seed, seed, duration, and its trunk."""
        trunk = self.lineage[-1].digest if self.lineage else ""
        return self.family, self.model, self.subset, self.subset_seed, self.seed, self.planned_examples, trunk

    @property
    def exaflops(self) -> float | None:
        """Compute of training so far: 2 FLOPs a multiply-add, times 3 for forward and backward, over all examples.

        Of a branch with all that its trunks have spent on it: what it takes to have this model.
        """
        return self.exaflops_at(self.examples_seen)

    def exaflops_at(self, examples: float) -> float | None:
        """The same after so many examples, of which those up to the branch were the trunk's."""
        spent = multiply_adds(self.lineage, self.macs, examples)
        return None if spent is None else 6 * spent / 1e18


@dataclass(frozen=True)
class Excluded:
    """A run that is no observation, and why. `info` is what is known of it."""

    run: str
    directory: str
    reason: str
    info: RunInfo | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Collection:
    """What was found: observations by family, subset and seed; runs left out; remarks on damaged files.

    `rule` says how the metric is read. `curves` has every scalar that was read of each observed run: {directory: {tag:
    series by step}}.
    """

    url: str
    study: str
    metric: str
    rule: Metric
    observations: tuple[Observation, ...]
    excluded: tuple[Excluded, ...]
    remarks: tuple[str, ...]
    curves: Mapping[str, Mapping[str, Series]] = field(default_factory=dict, compare=False, repr=False)
