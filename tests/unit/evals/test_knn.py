"""Neighbours are those of brute force in float64, also where single precision cannot tell them apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluating import context_of, nearest_by_force
from tests.shards import write_set
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.evals import _knn
from vit_dist.evals._features import Shard
from vit_dist.evals._knn import Votes, count_correct, vote


def shard(x: np.ndarray, labels: np.ndarray) -> Shard:
    return Shard(torch.from_numpy(x), torch.from_numpy(labels.reshape(len(x), -1)), 0, len(x))


@pytest.mark.parametrize("tile", [1 << 25, 900])
def test_votes_are_those_of_brute_force_however_the_work_is_cut(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_knn, "_TILE", tile)
    monkeypatch.setattr(_knn, "_QUERIES", 32)
    rng = np.random.default_rng(0)
    # All point about the same way: of many neighbours similarities are equal in single precision.
    x = (rng.normal(size=(300, 24)) * 3e-3 + 1).astype(np.float32)
    new = (rng.normal(size=(70, 24)) * 3e-3 + 1).astype(np.float32)
    labels, truth = rng.integers(0, 6, 300), rng.integers(0, 6, 70)
    k = (1, 7, 50)
    found = count_correct(shard(x, labels), shard(new, truth), Votes(k, 0.07, 6), World(), torch.device("cpu"))
    expected = [(nearest_by_force(x, labels, new, number, 0.07, 6) == truth).sum() for number in k]
    assert found.tolist() == [*expected, 70]


def test_a_small_temperature_lets_the_nearest_decide_and_a_large_one_the_majority() -> None:
    similarity, label = torch.tensor([[0.9, 0.5, 0.5]], dtype=torch.float64), torch.tensor([[2, 1, 1]])
    assert vote(similarity, label, 0.001, 3).tolist() == [2]
    assert vote(similarity, label, 10.0, 3).tolist() == [1]


def test_examples_without_a_label_neither_vote_nor_are_tried_and_each_of_several_labels_is_right() -> None:
    x = np.eye(4, dtype=np.float32)
    train = shard(x, np.array([-1, 1, 2, 3]))
    test = shard(x[[0, 1, 2, 2]] + 0.1 * x[[1, 0, 0, 0]], np.array([[1, -1], [3, 1], [3, -1], [-1, -1]]))
    found = count_correct(train, test, Votes((1,), 0.07, 4), World(), torch.device("cpu"))
    # The first would be nearest to the one without a label; the last has none.
    assert found.tolist() == [2, 3]


def test_what_cannot_be_is_refused_before_a_model_runs(small_set: str, small_val: str, tmp_path: Any) -> None:
    def check(**settings: Any) -> None:
        context = context_of(small_set, small_val, [{"name": "knn", "set": "s", **settings}])
        context.recipe.evaluators[0].check_sets(context.recipe)

    check(k=[200])
    with pytest.raises(ConfigError, match=r"knn of 's': k=201 neighbours of 200 examples of its train set"):
        check(k=[201])
    with pytest.raises(ConfigError, match=r"k=20 neighbours of 8 examples"):
        check(train_subset=8)
    few = write_set(tmp_path / "few", num_samples=2, samples_per_shard=2, num_classes=4)
    with pytest.raises(ConfigError, match=r"2 classes of its test set '.*' without any example in its train set 'few'"):
        check(train=few, k=[1])
