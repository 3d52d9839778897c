"""Laws 1 to 3 and 6 for the order itself: one order, closed form, exactly once, nested."""

from __future__ import annotations

import hashlib
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.data.manifest import Shard, ShardManifest
from vit_dist.data.order import GlobalOrder, default_lanes, permute, permute_array, resolve_lanes
from vit_dist.data.subset import select

shard_counts = st.lists(st.integers(0, 40), min_size=1, max_size=9).filter(lambda c: sum(c) > 0)


@st.composite
def orders(draw: st.DrawFn) -> GlobalOrder:
    counts = draw(shard_counts)
    lanes = draw(st.integers(1, min(16, sum(counts))))
    window = draw(st.integers(1, 40))
    return GlobalOrder(np.array(counts), seed=draw(st.integers(0, 2**40)), lanes=lanes, window=window)


@given(orders(), st.integers(0, 3))
def test_every_epoch_consumes_every_example_exactly_once(order: GlobalOrder, epoch: int) -> None:
    n = order.num_samples
    seen = [order.locate(epoch * n + offset) for offset in range(n)]
    assert {where.epoch for where in seen} == {epoch}
    expected = {(shard, sample) for shard, count in enumerate(order.counts) for sample in range(count)}
    assert {(where.shard, where.sample) for where in seen} == expected


@given(orders(), st.data())
def test_seeking_equals_walking(order: GlobalOrder, data: st.DataObject) -> None:
    positions = data.draw(st.lists(st.integers(0, 4 * order.num_samples), min_size=1, max_size=20))
    walked = list(zip(*(a.tolist() for a in order.locate_many(np.arange(4 * order.num_samples + 1))), strict=True))
    fresh = GlobalOrder(order.counts, seed=order.seed, lanes=order.lanes, window=order.window)
    assert [tuple(fresh.locate(p)) for p in positions] == [walked[p] for p in positions]


@given(orders(), st.integers(0, 2))
def test_a_window_is_a_permutation_of_consecutive_samples_of_one_lane(order: GlobalOrder, epoch: int) -> None:
    n, windows = order.num_samples, {}
    for offset in range(n):
        position = epoch * n + offset
        window, slot = order.place(position)
        assert window.lane == offset % order.lanes
        stored = [(s.shard, s.first + i) for s in order.window_segments(window) for i in range(s.length)]
        assert len(stored) <= order.window
        assert stored[slot] == order.locate(position)[1:]
        windows.setdefault(window, []).append(slot)
    for window, slots in windows.items():
        assert slots == order.window_slots(window).tolist()
        assert sorted(slots) == list(range(len(slots)))


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
@settings(max_examples=50)
def test_permute_is_a_permutation_and_its_array_form_agrees(size: int, key: int) -> None:
    images = [permute(i, size, key) for i in range(size)]
    assert sorted(images) == list(range(size))
    many = permute_array(np.arange(size), np.full(size, size), np.full(size, key, np.uint64))
    assert many.tolist() == images


@pytest.mark.parametrize("size", [2, 3, 5, 8, 32])
def test_permute_sends_every_index_everywhere_equally_often(size: int) -> None:
    from vit_dist.core.seeding import hash64

    trials = 4000
    counts = np.zeros((size, size))
    for trial in range(trials):
        key = hash64(7, trial)
        for index in range(size):
            counts[index, permute(index, size, key)] += 1
    expected = trials / size
    chi2 = ((counts - expected) ** 2 / expected).sum()
    degrees = (size - 1) ** 2
    assert chi2 < degrees + 5 * np.sqrt(2 * degrees)


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    counts = np.array([50, 50, 50])

    def epoch(seed: int, number: int) -> tuple[tuple[int, int], ...]:
        order = GlobalOrder(counts, seed=seed, lanes=4, window=8)
        return tuple(order.locate(number * 150 + i)[1:] for i in range(150))

    assert len({epoch(0, 0), epoch(0, 1), epoch(1, 0), epoch(1, 1)}) == 4


@pytest.mark.parametrize(
    ("samples", "lanes"), [(1, 1), (255, 1), (256, 1), (512, 2), (1000, 2), (2**20, 4096), (3 * 10**8, 4096)]
)
def test_lanes_are_the_power_of_two_that_the_design_names(samples: int, lanes: int) -> None:
    assert default_lanes(samples) == lanes


def test_a_small_set_is_one_window_and_what_is_given_overrides() -> None:
    assert resolve_lanes(1000, 10**6, None, None) == (1, 1000)
    assert resolve_lanes(1000, 1 << 30, None, None) == (2, 32)
    assert resolve_lanes(1000, 10**6, 4, None) == (4, 32)
    assert resolve_lanes(1000, 10**6, None, 8) == (1, 8)
    with pytest.raises(ConfigError, match=r"data\.lanes=1001 .* 1000 examples"):
        resolve_lanes(1000, 10**6, 1001, None)


def test_an_empty_set_has_no_order() -> None:
    with pytest.raises(DataError, match="no samples"):
        GlobalOrder(np.array([0, 0]), seed=0, lanes=1, window=1)


def _manifest(counts: list[int]) -> ShardManifest:
    shards = tuple(Shard(f"{i}.tar", c, 1000 * c, f"{i:032x}", f"{i}.idx", f"{i:032x}") for i, c in enumerate(counts))
    return ShardManifest("", "test", shards, True, 10)


@given(shard_counts, st.integers(0, 5), st.data())
def test_subsets_nest(counts: list[int], seed: int, data: st.DataObject) -> None:
    manifest, total = _manifest(counts), sum(counts)
    small = data.draw(st.integers(1, total))
    large = data.draw(st.integers(small, total))

    def members(n: int) -> set[tuple[int, int]]:
        subset = select(manifest, n, seed)
        pairs = {subset.sample(k, i) for k, count in enumerate(subset.counts) for i in range(count)}
        assert len(pairs) == n == subset.num_samples
        return pairs

    assert members(small) <= members(large)


def test_a_subset_larger_than_the_set_is_refused_with_both_numbers() -> None:
    with pytest.raises(ConfigError, match=r"data\.subset=11 .* from 10"):
        select(_manifest([4, 6]), 11)


def test_the_order_of_a_known_set_never_changes(golden) -> None:
    found = {}
    for counts, lanes, window in ([7, 0, 13, 5], 1, 25), ([100] * 10, 8, 32), ([997, 1, 1009], 4, 32):
        order = GlobalOrder(np.array(counts), seed=5, lanes=lanes, window=window)
        epochs, shards, samples = order.locate_many(np.arange(2 * order.num_samples))
        text = ",".join(f"{e}:{s}:{i}" for e, s, i in zip(epochs, shards, samples, strict=True))
        found[f"{counts} lanes={lanes} window={window}"] = hashlib.sha256(text.encode()).hexdigest()
    golden("order", found)


def test_planning_300_million_samples_takes_memory_for_shards_only() -> None:
    counts = np.full(30_000, 10_000)
    tracemalloc.start()
    order = GlobalOrder(counts, seed=0, lanes=4096, window=32)
    for position in (0, 150_000_000, 299_999_999, 300_000_000):
        order.locate(position)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
