"""What is held out of a training set is never trained on, and nothing else is: the subset law, from the other end."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.laws.test_stream import recipe
from tests.shards import write_set
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import EvalBatches, TrainStream
from vit_dist.data.validation import open_validation_set
from vit_dist.evals import whole_set


def trained_on(manifest: str, *overrides: str) -> set[int]:
    """Ordinals of the examples of two epochs."""
    config = recipe(manifest, "data.val=", *overrides)
    data = open_training_set(config)
    steps = -(-2 * data.num_samples // config.global_batch)
    with TrainStream(data, config, World(), 0) as stream:
        return {o for batch, _ in itertools.islice(stream, steps) for o in batch.ordinals.tolist()}


def evaluated_on(manifest: str, world: int, *overrides: str) -> list[int]:
    """Ordinals of what is evaluated on, over all ranks."""
    config = recipe(manifest, "data.val=", *overrides)
    val = open_validation_set(config, open_training_set(config))
    assert val is not None
    ranks = (EvalBatches(val, config.data, World(rank, world), 8) for rank in range(world))
    return [o for batches in ranks for batch in batches if batch is not None for o in batch.ordinals.tolist()]


@pytest.mark.parametrize("in_random_order", [True, False])
@pytest.mark.parametrize(
    ("overrides", "held"),
    [
        (["data.held_out=20%"], 40),
        (["data.held_out=7", "data.subset_seed=3"], 7),
        (["data.held_out=10%", "data.subset=90", "data.subset_seed=5"], 9),
    ],
)
def test_what_is_held_out_and_what_is_trained_on_are_the_subset_and_have_nothing_in_common(
    tmp_path: Path, in_random_order: bool, overrides: list[str], held: int
) -> None:
    sizes = [40, 0, 67, 93]
    manifest = write_set(
        tmp_path, num_samples=200, samples_per_shard=200, num_classes=4, sizes=sizes, shuffled=in_random_order
    )
    trained = trained_on(manifest, *overrides)
    evaluated = evaluated_on(manifest, 3, *overrides)
    assert len(evaluated) == len(set(evaluated)) == held, "each once, on any number of ranks"
    assert not trained & set(evaluated)
    without = [text for text in overrides if "held_out" not in text]
    assert trained | set(evaluated) == trained_on(manifest, *without)


def test_a_value_on_a_slice_is_of_no_other_slice_nor_of_the_whole_set(small_set: str) -> None:
    found = set()
    for overrides in (["data.held_out=20"], ["data.held_out=20", "data.subset_seed=1"], ["data.held_out=30"]):
        config = recipe(small_set, "data.val=", *overrides)
        val = open_validation_set(config, open_training_set(config))
        assert val is not None
        on = whole_set(val, 28, 1.0, {})
        assert (on.subset, on.examples) == (int(overrides[0].rpartition("=")[2]), 200)
        found.add(on.key)
    config = recipe(small_set, f"data.val={small_set}")
    val = open_validation_set(config, open_training_set(config))
    assert val is not None
    found.add(whole_set(val, 28, 1.0, {}).key)
    assert len(found) == 4


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data.held_out=0.1%"], "0.1% of 200 examples is not one of them.*give 0.5% or more"),
        (["data.held_out=200"], "200 of 200 examples are held out, and none is left"),
        (["data.held_out=100%"], "more than 0% and less than 100%"),
        (["data.held_out=0"], "0 examples are no slice"),
        (["data.held_out=some"], "a share such as '2%' or a count"),
        (["data.held_out=2%", "data.val=x"], "held_out=2% beside val=x: evaluated is one of them"),
        (
            ["data.held_out=2%", "data.train=", "data.mixture={a: {train: x}}"],
            "held_out=2% beside mixture: a slice is held out of one set alone",
        ),
    ],
)
def test_a_slice_that_cannot_be_is_refused(small_set: str, overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        open_training_set(recipe(small_set, "data.val=", *overrides))
