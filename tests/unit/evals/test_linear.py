"""Probes that are trained together are those that would be trained alone; one is chosen without the test set."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluating import LINEAR, context_of
from vit_dist.core.errors import ConfigError
from vit_dist.core.seeding import permutation
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.evals._features import BlockOutputs, Shard, features
from vit_dist.evals._linear import _TAG_ORDER, Probes, Space, Training, scored, train

ALONE: Any = SimpleNamespace(engine=SimpleNamespace(device=torch.device("cpu")), world=World())
N, K = 70, 5
SPACES = (Space("a", (slice(0, 6),)), Space("b", (slice(2, 5), slice(8, 12))))


@pytest.fixture
def shard() -> Shard:
    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, K, (N, 1), generator=draw)
    x = torch.randn(N, 12, generator=draw) + torch.nn.functional.one_hot(labels[:, 0], 12)
    return Shard(x, labels, 0, N)


def by_torch(
    shard: Shard, space: Space, positions: np.ndarray, how: Training, rate: float, num_classes: int = K
) -> torch.nn.Linear:
    """The same probe by torch's own layer, loss, optimizer and schedule."""
    layer = torch.nn.Linear(space.width, num_classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate, momentum=0.9)
    total = how.passes * math.ceil(len(positions) / how.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    for epoch in range(how.passes):
        order = positions[permutation(len(positions), how.seed, _TAG_ORDER, epoch)]
        for start in range(0, len(order), how.batch):
            rows = torch.from_numpy(order[start : start + how.batch])
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(layer(space.of(shard.x[rows])), shard.labels[rows, 0]).backward()
            optimizer.step()
            schedule.step()
    return layer


def test_each_of_many_probes_is_that_of_torchs_own_loop_and_what_it_is_alone(shard: Shard) -> None:
    positions, rates = np.setdiff1d(np.arange(N), [3, 17]), [0.01, 0.3, 2.0]
    how = Training(rates, batch=16, passes=3, seed=4)
    probes = train(shard, positions, SPACES, how, K, ALONE)
    for i, space in enumerate(SPACES):
        for r, rate in enumerate(rates):
            layer = by_torch(shard, space, positions, how, rate)
            torch.testing.assert_close(probes.weights[i][:, r], layer.weight.detach().T, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(probes.biases[i][r], layer.bias.detach(), rtol=1e-4, atol=1e-6)
            alone = train(shard, positions, [space], Training([rate], 16, 3, 4), K, ALONE)
            torch.testing.assert_close(alone.weights[0][:, 0], probes.weights[i][:, r], rtol=1e-4, atol=1e-6)
    top1, loss = scored(probes, shard, np.array([3, 17, 40]), ALONE)
    rows = torch.tensor([3, 17, 40])
    logits = layer(SPACES[1].of(shard.x[rows])).detach()
    assert float(loss[1, 2]) == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, shard.labels[rows, 0])), rel=1e-4
    )
    assert float(top1[1, 2]) == pytest.approx(float((logits.argmax(1) == shard.labels[rows, 0]).double().mean()))


def test_a_probe_that_diverges_harms_no_other_and_is_never_chosen(shard: Shard) -> None:
    from vit_dist.evals._linear import _best
    from vit_dist.evals.linear import LinearConfig

    how = Training([0.1, 1e38], batch=16, passes=2, seed=0)
    probes = train(shard, np.arange(N), SPACES[:1], how, K, ALONE)
    alone = train(shard, np.arange(N), SPACES[:1], Training([0.1], 16, 2, 0), K, ALONE)
    torch.testing.assert_close(probes.weights[0][:, 0], alone.weights[0][:, 0], rtol=1e-4, atol=1e-6)
    config = LinearConfig(name="linear", set="x", train="a", test="b", rates=(0.1, 1e38))
    assert _best(config, *scored(probes, shard, np.arange(N), ALONE)) == (0, 0)
    worst = Probes(probes.spaces, (probes.weights[0][:, 1:],), (probes.biases[0][1:],))
    with pytest.raises(ConfigError, match=r"linear of 'x': the loss of every probe is not finite; give smaller rates"):
        _best(config, *scored(worst, shard, np.arange(N), ALONE))


def test_the_test_set_has_no_say_in_which_probe_is_chosen(
    small_set: str, small_val: str, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluator = {**LINEAR, "batch": 48, "passes": 2, "refit": False}
    own = context_of(small_set, small_val, [evaluator])
    first = dict(own.recipe.evaluators[0].run(own))
    other = context_of(small_set, small_set, [evaluator])
    second = dict(other.recipe.evaluators[0].run(other))
    assert first["linear/small_heldout"] == second["linear/small_heldout"]
    said = [line for line in capsys.readouterr().err.splitlines() if "is best on the held-out slice" in line]
    assert len(said) == 2
    assert said[0] == said[1]


def test_what_is_tested_was_trained_on_all_of_the_train_set(small_set: str, small_val: str) -> None:
    fields = {"name": "linear", "set": "small", "poolings": ["head"], "rates": [20.0], "batch": 64, "passes": 8}
    context = context_of(small_set, small_val, [fields])
    found = dict(context.recipe.evaluators[0].run(context))
    parts = []
    for url in (small_set, small_val):
        seen = list(features(context, read_manifest(url), crop=0.875))
        parts.append((torch.cat([x for _, x in seen]), torch.cat([batch.labels for batch, _ in seen])))
    (x, labels), (new, truth) = parts
    space, how = Space("head", (slice(0, x.shape[1]),)), Training([5.0], 64, 8, 0)
    layer = by_torch(Shard(x, labels, 0, len(x)), space, np.arange(len(x)), how, 5.0, num_classes=4)
    guess = layer(new).argmax(1)
    assert found["linear/small_top1"] == pytest.approx(float((guess == truth[:, 0]).double().mean()), abs=1e-9)
    assert len(guess.unique()) > 1


def test_features_of_blocks_are_those_of_the_models_own_tokens(small_set: str) -> None:
    context = context_of(small_set, small_set, ["classification"])
    model: Any = context.engine.module
    tap = BlockOutputs(model, 2)
    batch, taken = next(iter(features(context, read_manifest(small_set), crop=1.0, tap=tap)))
    with torch.no_grad():
        pixels = batch.images.float() / 127.5 - 1
        tokens = model.embed(pixels)
        outputs = []
        for block in model.blocks:
            tokens = block(tokens)
            outputs.append(torch.nn.functional.layer_norm(tokens, tokens.shape[-1:]))
        head = model.features(pixels)
    assert tap.width == taken.shape[1] == 5 * model.head.in_features
    torch.testing.assert_close(taken[:, tap.spans["head", 0]], head, rtol=1e-4, atol=1e-5)
    for n in (1, 2):
        torch.testing.assert_close(taken[:, tap.spans["cls", n]], outputs[-n][:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(taken[:, tap.spans["mean", n]], outputs[-n][:, 1:].mean(1), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match=r"the last 99 blocks are asked for, but ViT has \d+ blocks"):
        BlockOutputs(model, 99)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"layers": [1, 99]}, r"linear of 'small': layers=99, but vit-test has \d+ blocks"),
        ({"heldout": 0.001}, r"heldout=0.001 of 200 examples of its train set '.*' leaves no example"),
        ({"train_subset": 201}, r"train_subset=201, but its train set '.*' has 200 examples"),
        ({"train": "gone"}, "gone"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_runs(
    settings: Any, said: str, small_set: str, small_val: str
) -> None:
    from vit_dist.core.errors import VitDistError

    def check() -> None:
        context = context_of(small_set, small_val, [{**LINEAR, **settings}])
        context.recipe.evaluators[0].check_sets(context.recipe)  # type: ignore[attr-defined]

    with pytest.raises(VitDistError, match=said):
        check()
