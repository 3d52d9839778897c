"""Frozen features: what enters a model's head, for every image of a set."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vit_dist.data.batch import Batch
from vit_dist.data.decode import centre
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.stream import EvalBatches
from vit_dist.data.subset import Subset
from vit_dist.evals import EvalContext
from vit_dist.evals._pace import paced


def feature_width(context: EvalContext) -> int:
    """D, the number of features that the head classifies."""
    head: Any = context.engine.module.head
    return int(head.in_features)


def features(
    context: EvalContext,
    manifest: ShardManifest,
    *,
    subset: Subset | None = None,
    crop: float,
    view: Callable[[Tensor, int, float], Tensor] = centre,
) -> Iterator[tuple[Batch, Tensor]]:
    """This rank's part of a set, batch by batch, each with its features, float32 [B, D] on the device. A collective.

    Features are what enters the head while the whole model runs, so that any engine can give them, whichever way it
    has sharded the weights.

    Args:
        context: model, recipe, world.
        manifest: the set; its labels need not be those that the head knows.
        subset: which of it; None: all.
        crop: given to `view`.
        view: what an image becomes.
    """
    recipe, engine = context.recipe, context.engine
    own = {"num_classes": manifest.num_classes, "val_crop": crop, "val_resize": None}
    config = recipe.data.model_copy(update=own)
    size = config.image_size
    captured: list[Tensor] = []

    def capture(_module: object, inputs: tuple[Tensor, ...]) -> None:
        captured[:] = [inputs[0].detach().float()]

    head: Any = engine.module.head
    batches = EvalBatches(manifest, config, context.world, recipe.eval.batch, subset=subset, view=view)
    with contextlib.closing(paced(batches, engine.device)) as rank_batches:  # type: ignore[type-var]
        hook = head.register_forward_pre_hook(capture)
        try:
            for batch in rank_batches:
                # This rank has none left, but under ZeRO-3 a forward pass gathers weights from all ranks: it takes part
                # with an image whose result nobody uses.
                if batch is None:
                    engine.predict(torch.zeros(1, 3, size, size, dtype=torch.uint8))
                    continue
                engine.predict(batch.images)
                yield batch, captured.pop()
        finally:
            hook.remove()
