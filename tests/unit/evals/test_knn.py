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
from vit_dist.evals import _knn, _nearest
from vit_dist.evals._features import Shard
from vit_dist.evals._knn import Votes, count_correct, surely, vote
from vit_dist.evals._nearest import largest


def shard(x: np.ndarray, labels: np.ndarray) -> Shard:
    return Shard(torch.from_numpy(x), torch.from_numpy(labels.reshape(len(x), -1)), 0, len(x))


@pytest.mark.parametrize("tile", [1 << 23, 900])
def test_votes_are_those_of_brute_force_however_the_work_is_cut(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nearest, "TILE", tile)
    monkeypatch.setattr(_knn, "_QUERIES", 32)
    monkeypatch.setattr(_nearest, "BATCH", 12)
    rng = np.random.default_rng(0)
    # All point about the same way: of many neighbours similarities are equal in single precision.
    x = (rng.normal(size=(300, 24)) * 3e-3 + 1).astype(np.float32)
    new = (rng.normal(size=(70, 24)) * 3e-3 + 1).astype(np.float32)
    labels, truth = rng.integers(0, 6, 300), rng.integers(0, 6, 70)
    k = (1, 7, 50)
    found = count_correct(shard(x, labels), shard(new, truth), Votes(k, 0.07, 6), World(), torch.device("cpu"))
    expected = [(nearest_by_force(x, labels, new, number, 0.07, 6) == truth).sum() for number in k]
    assert found.tolist() == [*expected, 70]


def test_more_equals_than_candidates_are_settled_by_the_order_in_which_they_are_stored() -> None:
    rng = np.random.default_rng(1)
    # Each example forty times, under labels of its own: far more equals than there are candidates beyond k.
    x = rng.normal(size=(5, 8)).astype(np.float32).repeat(40, axis=0)
    labels, truth = rng.integers(0, 4, 200), rng.integers(0, 4, 30)
    new = (x[rng.integers(0, 200, 30)] + 0.01 * rng.normal(size=(30, 8))).astype(np.float32)
    k = (1, 3, 9)
    found = count_correct(shard(x, labels), shard(new, truth), Votes(k, 0.07, 4), World(), torch.device("cpu"))
    expected = [(nearest_by_force(x, labels, new, number, 0.07, 4) == truth).sum() for number in k]
    assert found.tolist() == [*expected, 30]


def test_single_precision_is_taken_at_its_word_only_where_double_cannot_say_otherwise() -> None:
    votes = Votes((2,), 0.07, 3)
    similarity = torch.tensor(
        [
            [0.9, 0.8, 0.7, 0.6],  # clear
            [0.9, 0.9 - 1e-6, 0.5, 0.4],  # which of two classes has more is a matter of rounding
            [0.9, 0.5, 0.5 - 1e-6, 0.4],  # which is the second is, but not who wins
            [0.9, 0.9, 0.9, 0.9],  # there may be more of these, of any class
            [0.9, 0.9, -torch.inf, -torch.inf],
        ]
    )
    label = torch.tensor([[1, 2, 0, 0], [1, 2, 0, 0], [1, 2, 0, 0], [1, 1, 1, 1], [2, 2, -1, -1]])
    guess, sure = surely(votes, similarity, label)
    assert sure.tolist() == [True, False, True, False, True]
    assert guess[sure, 0].tolist() == [1, 1, 2]


@pytest.mark.parametrize("n", [3, 40, 700, 5001])
def test_the_largest_are_those_of_topk(n: int) -> None:
    values = torch.randn(6, n, generator=torch.Generator().manual_seed(n))
    values[2] = values[2].round()
    found, columns = largest(values, 12)
    assert torch.equal(found, values.topk(min(12, n), dim=1).values)
    assert torch.equal(values.gather(1, columns), found)
    assert all(len(set(row)) == len(row) for row in columns.tolist())


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
