"""What a small set, or a slice of one, makes of a fine-tuning: classes that one side lacks, steps of many epochs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from vit_dist.config.finetune import FinetuneConfig
from vit_dist.config.schema import Recipe
from vit_dist.core.units import counted
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.sets import held_out_slice, open_training_set
from vit_dist.data.subset import Subset, select
from vit_dist.data.validation import open_validation_set

_LOOKED_AT = 2_000_000
"""Samples of a set whose labels are read before anything is begun: some seconds."""
_SHOWN = 5


def remarks_on_data(recipe: Recipe, *, chooses: bool) -> list[str]:
    """What a person should know of the sets of a recipe; nothing of a mixture, nor of a large set.

    Runs of the grid do not know the validation set, so what is wrong with it is found out here, before they are paid.

    Args:
        recipe: of the run on all of the training set.
        chooses: whether a slice of it is held out first.

    Raises:
        VitDistError: a set cannot be read, the validation set has other classes, or nothing would be held out of the
            training set or left.
    """
    data, found = open_training_set(recipe), list[str]()
    val = open_validation_set(recipe, data)
    if recipe.data.mixture:
        return []
    n, manifest = data.num_samples, data.parts[0].manifest
    if recipe.global_batch > n:
        found.append(
            f"global_batch={recipe.global_batch}: a step is {recipe.global_batch / n:.3g} epochs of the "
            f"{counted(n, 'example')} there are, which are repeated in it; a smaller batch makes more steps of them"
        )
    part = None
    if chooses:
        rates = recipe.finetune or FinetuneConfig()
        held = recipe.data.model_copy(update={"held_out": rates.held_out, "val": ""})
        part = held_out_slice(held, manifest)
    if manifest.num_samples > _LOOKED_AT:
        return found
    known = _labels(manifest, data.parts[0].subset)
    if part is not None:
        kept = select(manifest, part.start, part.seed)
        found += _only(
            manifest, known - _labels(manifest, kept), "in the held-out slice alone", "the grid cannot learn them"
        )
        if part.stop - part.start < len(known):
            found.append(
                f"the held-out slice has {counted(part.stop - part.start, 'example')} for {len(known)} classes: rates "
                f"that differ by less than an example, {1 / (part.stop - part.start):.2g}, are told apart by nothing"
            )
    if val is not None and val.num_samples <= _LOOKED_AT:
        there = _labels(val, select(val, None))
        found += _only(manifest, there - known, "in the validation set alone", "no image teaches them")
        found += _only(manifest, known - there, "in the training set alone", "nothing measures them")
    return found


_HYPER_RULE = {"small": (0, 20_000), "medium": (20_000, 500_000), "large": (500_000, None)}
"""Training examples, from and below, of the three schedules of BiT-HyperRule (arXiv 1912.11370, section 3.3)."""


def hyper_rule(recipe: Recipe) -> list[str]:
    """A remark where a recipe of BiT-HyperRule is of sets of another size.

    Raises:
        VitDistError: the set cannot be read.
    """
    chosen = recipe.name.removeprefix("finetune-bit-")
    if chosen not in _HYPER_RULE or chosen == recipe.name or recipe.data.mixture:
        return []
    n = open_training_set(recipe).num_samples
    right = next(name for name, (low, high) in _HYPER_RULE.items() if n >= low and (high is None or n < high))
    return [] if right == chosen else [f"{recipe.name}: BiT-HyperRule takes finetune-bit-{right} for {n:,} examples"]


def _labels(manifest: ShardManifest, subset: Subset) -> set[int]:
    """The classes that the examples of a subset have."""
    found: set[int] = set()
    for i, shard in enumerate(subset.shards.tolist()):
        index = manifest.read_index(shard)
        chosen = np.arange(int(subset.counts[i])) if subset.chosen is None else subset.chosen[i]
        owners = np.repeat(np.arange(index.num_samples), np.diff(index.label_ends, prepend=0))
        found.update(np.unique(index.labels[np.isin(owners, chosen)]).tolist())
    return found


def _only(manifest: ShardManifest, classes: Iterable[int], where: str, so: str) -> list[str]:
    listed = sorted(classes)
    if not listed:
        return []
    named = [
        manifest.classes[i] if i < len(manifest.classes) and manifest.classes[i] else str(i) for i in listed[:_SHOWN]
    ]
    more = ", ..." if len(listed) > _SHOWN else ""
    return [f"{counted(len(listed), 'class is', 'classes are')} {where} ({', '.join(named)}{more}): {so}"]
