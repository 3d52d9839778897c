"""Laws 1 to 3 for mixtures: one order, closed form, every set exactly once an epoch of its own."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.shards import write_set
from tests.streams import digest, global_batches, recipe_of
from vit_dist.config.load import recipe_hash, resolve
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import CheckpointError, ConfigError
from vit_dist.core.world import World
from vit_dist.data.mixture import MixtureOrder, deal_lanes, resolve_mixture
from vit_dist.data.order import GlobalOrder
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream
from vit_dist.train.state import TrainState


@st.composite
def mixtures(draw: st.DrawFn) -> MixtureOrder:
    orders = []
    for _ in range(draw(st.integers(1, 4))):
        counts = draw(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(lambda c: sum(c) > 0))
        lanes = draw(st.integers(1, min(6, sum(counts))))
        orders.append(
            GlobalOrder(np.array(counts), seed=draw(st.integers(0, 99)), lanes=lanes, window=draw(st.integers(1, 40)))
        )
    return MixtureOrder(orders)


@given(mixtures())
def test_each_set_is_consumed_exactly_once_in_each_epoch_of_its_own(order: MixtureOrder) -> None:
    rows = max(2 * o.num_samples // o.lanes + 1 for o in order.orders)
    seen = [order.locate(g) for g in range(rows * order.lanes)]
    first_shard = 0
    for component in order.orders:
        shards = range(first_shard, first_shard + len(component.counts))
        first_shard = shards.stop
        own = [where for where in seen if where.shard in shards]
        assert len(own) == rows * component.lanes
        n = component.num_samples
        everything = {(s, i) for s, count in zip(shards, component.counts, strict=True) for i in range(count)}
        for epoch in range(len(own) // n):
            part = own[epoch * n : (epoch + 1) * n]
            assert {where.epoch for where in part} == {epoch}
            assert {where[1:] for where in part} == everything


@given(mixtures(), st.data())
def test_seeking_in_a_mixture_equals_walking(order: MixtureOrder, data: st.DataObject) -> None:
    walked = list(zip(*(a.tolist() for a in order.locate_many(np.arange(600))), strict=True))
    fresh = MixtureOrder([GlobalOrder(o.counts, seed=o.seed, lanes=o.lanes, window=o.window) for o in order.orders])
    for position in data.draw(st.lists(st.integers(0, 599), min_size=1, max_size=30)):
        assert tuple(fresh.locate(position)) == walked[position]
        window, slot = fresh.place(position)
        stored = [(s.shard, s.first + i) for s in fresh.window_segments(window) for i in range(s.length)]
        assert (window.epoch, *stored[slot]) == walked[position]
        assert sorted(fresh.window_slots(window).tolist()) == list(range(len(stored)))


@given(mixtures(), st.integers(0, 500))
def test_what_each_set_has_given_is_known_without_walking(order: MixtureOrder, position: int) -> None:
    first_shards = np.cumsum([0, *(len(o.counts) for o in order.orders)])
    walked = Counter(
        int(np.searchsorted(first_shards, order.locate(g).shard, side="right")) - 1 for g in range(position)
    )
    assert order.consumed(position) == [walked[i] for i in range(len(order.orders))]


def test_a_mixture_of_one_set_is_that_set() -> None:
    order = GlobalOrder(np.array([31, 0, 17, 5]), seed=4, lanes=4, window=6)
    mixed = MixtureOrder([order])
    assert [mixed.locate(g) for g in range(200)] == [order.locate(g) for g in range(200)]
    assert [mixed.place(g) for g in range(200)] == [order.place(g) for g in range(200)]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_lanes_are_dealt_evenly(lanes: list[int]) -> None:
    owner = deal_lanes(lanes)
    total = sum(lanes)
    assert Counter(owner) == dict(enumerate(lanes))
    for component, share in enumerate(lanes):
        for end in range(total + 1):
            assert abs(owner[:end].count(component) - end * share / total) <= len(lanes)
    assert deal_lanes([3, 1]) == [0, 0, 1, 0]


def test_lanes_follow_the_weights_exactly() -> None:
    big = 10 << 30
    assert resolve_mixture({"a": 3, "b": 1}, {"a": 10**6, "b": 10**5}, big, None, None) == {
        "a": (3 * 256, 32),
        "b": (256, 32),
    }
    assert resolve_mixture({"a": 50, "b": 50}, {"a": 10**8, "b": 10**8}, big, None, None)["a"] == (2048, 32)
    assert resolve_mixture({"a": 3, "b": 1}, {"a": 500, "b": 70}, 10**6, None, None) == {"a": (3, 500), "b": (1, 70)}
    assert resolve_mixture({"a": 3, "b": 1}, {"a": 500, "b": 70}, 10**6, 8, 5) == {"a": (6, 5), "b": (2, 5)}
    with pytest.raises(ConfigError, match=r"data\.lanes=10 cannot be shared out .* multiple of 4; nearest: 8, 12"):
        resolve_mixture({"a": 3, "b": 1}, {"a": 500, "b": 70}, 10**6, 10, None)
    with pytest.raises(ConfigError, match=r"data\.mixture\.b has 2 examples, fewer than the 3 lanes that its weight 3"):
        resolve_mixture({"a": 1, "b": 3}, {"a": 500, "b": 2}, 10**6, None, None)


def mixed(sets: tuple[str, str], *overrides: str, **data: object) -> Recipe:
    components = {"one": {"train": sets[0], "weight": 3, **data}, "two": {"train": sets[1], "label_offset": 4}}
    often = {"every": "1k examples"}
    return recipe_of(
        {"num_classes": 8, "mixture": components}, *overrides, horizon="5k examples", eval=often, checkpoint=often
    )


@pytest.fixture(scope="module")
def two_sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("mixture")
    one = write_set(folder / "one", num_samples=90, samples_per_shard=1, num_classes=4, sizes=[1, 37, 0, 52])
    two = write_set(
        folder / "two", num_samples=30, samples_per_shard=7, num_classes=4, first=900, broken=frozenset({5, 22})
    )
    return one, two


@pytest.mark.parametrize("shape", [(), ("data.lanes=8", "data.window=5")])
def test_a_mixed_stream_does_not_depend_on_world_size_or_threads_or_restarts(
    two_sets: tuple[str, str], shape: tuple[str, ...]
) -> None:
    config = mixed(two_sets, *shape, "data.max_bad=0.5")
    whole = global_batches(config, 1, 0, 30)
    for world_size in (2, 3, 4):
        assert digest(global_batches(config, world_size, 0, 30)) == digest(whole)
    for step in (1, 7, 29):
        assert digest(global_batches(config, 2, step * 12, 1)) == digest(whole[step : step + 1])
    threads = mixed(two_sets, *shape, "data.max_bad=0.5", "data.decode_threads=5", "data.read_threads=1")
    assert digest(global_batches(threads, 1, 0, 30)) == digest(whole)


def test_labels_and_ordinals_of_a_mixture_tell_its_sets_apart(two_sets: tuple[str, str]) -> None:
    batches = global_batches(mixed(two_sets, "data.max_bad=0.5"), 1, 0, 30)
    ordinals, labels = (torch.cat([b[i] for b in batches]) for i in (0, 1))
    second = ordinals >= 90
    assert second.sum() == 90  # a quarter of 360
    assert (labels[second] >= 4).all()
    assert (labels[~second] < 4).all()
    assert Counter(ordinals[~second].tolist()) == dict.fromkeys(range(90), 3)
    assert set(ordinals[second].tolist()) == set(range(90, 120)) - {95, 112}


def test_the_same_samples_are_replaced_at_every_world_size(two_sets: tuple[str, str]) -> None:
    config = mixed(two_sets, "data.max_bad=0.5")
    data = open_training_set(config)
    found = []
    for size in (1, 2, 3, 4):
        replaced = []
        for rank in range(size):
            with TrainStream(data, config, World(rank, size), 0) as stream:
                replaced += [r for batch, _ in itertools.islice(stream, 30) for r in batch.replaced]
        found.append(sorted((r.key, r.ordinal, r.replaced_by) for r in replaced))
    assert found[0] == found[1] == found[2] == found[3]
    assert Counter(ordinal for _, ordinal, _ in found[0]) == {95: 3, 112: 3}  # once an epoch


def test_going_on_with_another_mixture_is_refused_and_says_what_differs(two_sets: tuple[str, str]) -> None:
    ours, theirs = open_training_set(mixed(two_sets)), open_training_set(mixed(two_sets, subset=40))
    saved = TrainState(step=1, position=12).dump(theirs.identity)
    with pytest.raises(CheckpointError, match=r"components\.one\.num_samples: 90 here, 40 there"):
        TrainState.load(saved, ours.identity, "step-1")
    single = resolve({**_plain(mixed(two_sets)), "data": {"num_classes": 8, "train": two_sets[0]}})
    with pytest.raises(CheckpointError, match=r"components: one, two here, none there"):
        TrainState.load(TrainState().dump(open_training_set(single).identity), ours.identity, "step-1")
    assert TrainState.load(TrainState(3, 36).dump(ours.identity), ours.identity, "step-3").position == 36


def _plain(recipe: Recipe) -> dict[str, object]:
    from vit_dist.config.schema import dump

    return dump(recipe)


def test_the_run_is_named_by_the_sets_not_by_where_they_lie(two_sets: tuple[str, str]) -> None:
    here = mixed(two_sets)
    assert recipe_hash(here) == recipe_hash(mixed(("s3://a/one.json", "s3://b/two.json")))
    assert recipe_hash(here) != recipe_hash(mixed(two_sets, subset=40))
    assert open_training_set(here).epochs(120) == {"one": 1.0, "two": 1.0}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("horizon=3 epochs", r"horizon: '3 epochs' says nothing for data\.mixture"),
        ("eval.every=1 epoch", r"eval\.every: '1 epoch' says nothing"),
        ("schedule.warmup=1 epoch", r"schedule\.warmup: '1 epoch' says nothing"),
        ("data.train=x.json", r"train=x\.json beside mixture: give `train` to each set"),
        ("data.subset=10", r"subset=10 beside mixture"),
        (
            "data.mixture.two.wieght=2",
            r"data\.mixture\.two\.wieght: unknown key; did you mean 'data\.mixture\.two\.weight'\?",
        ),
        ("data.mixup.cutmix=1.0", r"data\.mixup\.cutmix: unknown key; did you mean 'data\.mixup\.cutmix_\w+'\?"),
        ("data.mixture.two.weight=0", r"data\.mixture\.two\.weight: .* greater than or equal to 1, got 0"),
    ],
)
def test_what_a_mixture_cannot_mean_is_refused(two_sets: tuple[str, str], override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mixed(two_sets, override)


def test_labels_moved_beyond_the_head_and_sets_too_small_name_the_component(two_sets: tuple[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"data\.mixture\.two: .* label_offset=4; set data\.num_classes=8"):
        open_training_set(mixed(two_sets, "data.num_classes=7"))
    with pytest.raises(ConfigError, match=r"data\.mixture\.one: data\.subset=91 .* from 90"):
        open_training_set(mixed(two_sets, subset=91))
    assert Path(two_sets[0]).is_file()


@given(mixtures(), st.integers(0, 600))
def test_a_sample_is_found_where_it_is_consumed(order: MixtureOrder, position: int) -> None:
    window, slot = order.place(position)
    assert order.home(*order.locate(position)) == (window, slot)
    assert order.turn(window, slot) == position
    assert order.preceding(order.following(window)) == window == order.following(order.preceding(window))
