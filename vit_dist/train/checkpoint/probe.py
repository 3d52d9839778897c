"""A loss that a checkpoint can be held to: of the first examples of the run's own set, without augmentation.

It is measured when a checkpoint is made and again when one was loaded: weights that were read wrong, cut wrong or
damaged in memory give another loss, whatever checksums say.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vit_dist.config.schema import Recipe
from vit_dist.core.world import World
from vit_dist.data.sets import Part
from vit_dist.data.stream import EvalBatches
from vit_dist.engines._layout import completed
from vit_dist.engines._protocol import Engine, mean_over_ranks
from vit_dist.train.losses import make_loss, make_targets

_SAME = {"fp32": 1e-5, "tf32": 3e-4, "bf16": 2e-3}
_OTHER = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
_KERNELS = ("engine", "zero_stage", "torch", "device", "tf32", "head", "attention", "deterministic")
"""What of a layout decides which kernels compute the probe."""


@dataclass(frozen=True)
class Probe:
    """A fixed batch and how it is judged. uint8 images [n, 3, S, S], float32 targets [n, K].

    `without` are the ordinals of samples that were taken down, in whose place others are in the batch.
    """

    images: Tensor
    targets: Tensor
    loss: Any
    world: World
    precision: str
    without: tuple[int, ...] = ()

    def record(self, loss: float) -> dict[str, Any]:
        """The entry of a checkpoint's marker."""
        return {"examples": len(self.images), "loss": loss, **({"without": list(self.without)} if self.without else {})}

    def is_of(self, recorded: dict[str, Any]) -> bool:
        """Whether a marker's entry was measured on this very batch."""
        return bool(recorded["examples"] == len(self.images) and recorded.get("without", []) == list(self.without))

    def measure(self, engine: Engine) -> float:
        """The loss of the batch with the engine's weights as they are. A collective."""
        logits = engine.predict(self.images)
        loss = self.loss(logits.float(), self.targets.to(logits.device))
        return float(mean_over_ranks(loss, self.world))

    def tolerance(self, wrote: dict[str, Any], reads: dict[str, Any]) -> float:
        """Greatest relative difference that rounding explains, between the layout that wrote and the one that reads.

        On the same engine and stage the same kernels see the same weights; DeepSpeed in bf16 casts weights where
        plain torch casts under autocast.
        """
        wrote = completed(wrote, reads)
        same = all(wrote.get(key) == reads.get(key) for key in _KERNELS)
        # Older versions left TF32 on for convolutions of fp32.
        rounded = self.precision == "fp32" and wrote.get("tf32", "none") != "none"
        return (_SAME if same else _OTHER)["tf32" if rounded else self.precision]

    def judge(self, engine: Engine, recorded: float, wrote: dict[str, Any]) -> str:
        """What is wrong with the restored weights, or ''. A collective."""
        measured, tolerance = self.measure(engine), self.tolerance(wrote, engine.layout)
        # A run that has diverged saves NaN and restores NaN.
        if math.isnan(recorded) and math.isnan(measured):
            return ""
        if abs(measured - recorded) <= tolerance * max(abs(recorded), 1e-3):
            return ""
        return (
            f"the restored model's loss on the first {len(self.images)} examples is {measured:.8g}, it was "
            f"{recorded:.8g} when saved (tolerance {tolerance:g}, relative)"
        )


def make_probe(recipe: Recipe, part: Part, world: World, examples: int) -> Probe | None:
    """The first examples of a set as they lie in the shards; None for 0 examples."""
    if examples == 0:
        return None
    everything = EvalBatches(part.manifest, recipe.data, World(), examples, name=part.name)
    with contextlib.closing(iter(everything)) as batches:  # type: ignore[type-var]
        batch = next(batches)
    assert batch is not None, "a training set is never empty"
    targets = make_targets(batch.labels, batch.weights, recipe.data.num_classes, recipe.loss)
    without = tuple(r.ordinal for r in batch.replaced if r.taken_down)
    return Probe(batch.images, targets, make_loss(recipe.loss), world, recipe.precision, without)
