"""Law 6: a subset lies inside every larger one, in every epoch and for every run seed, read from the same tars."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.laws.test_stream import recipe
from tests.shards import write_set
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

SIZES = (12, 36, 84, 132, 200)
EPOCHS = 2


def consumed(manifest: str, size: int, seed: int) -> list[list[int]]:
    """Ordinals in the whole set of the examples that a run on a subset consumes, epoch by epoch."""
    config = recipe(manifest, f"data.subset={size}", f"seed={seed}", "data.subset_seed=7", "data.lanes=2")
    data = open_training_set(config)
    steps = -(-EPOCHS * size // config.global_batch)
    with TrainStream(data, config, World(), 0) as stream:
        ordinals = [o for batch, _ in itertools.islice(stream, steps) for o in batch.ordinals.tolist()]
    return [ordinals[epoch * size : (epoch + 1) * size] for epoch in range(EPOCHS)]


@pytest.mark.parametrize("in_random_order", [True, False])
def test_every_subset_lies_inside_the_larger_ones_in_every_epoch_and_for_every_run_seed(
    tmp_path: Path, in_random_order: bool
) -> None:
    manifest = write_set(
        tmp_path,
        num_samples=200,
        samples_per_shard=200,
        num_classes=4,
        sizes=[40, 0, 67, 93],
        shuffled=in_random_order,
    )
    files = sorted(tmp_path.rglob("*"))
    smaller: set[int] = set()
    for size in SIZES:
        epochs = [epoch for seed in (0, 1) for epoch in consumed(manifest, size, seed)]
        examples = set(epochs[0])
        assert len(examples) == size
        assert all(sorted(epoch) == sorted(examples) for epoch in epochs), "other examples in another epoch or run"
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs), "each epoch of each run has an order of its own"
        assert smaller < examples
        smaller = examples
    assert sorted(tmp_path.rglob("*")) == files, "no subset was copied"
    assert read_manifest(manifest).num_samples == SIZES[-1]
