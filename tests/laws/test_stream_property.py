"""Laws 1 to 3 for the stream, on sets of odd shapes: any lanes, windows, batches, worlds, subsets, exclusions."""

from __future__ import annotations

import ctypes
import gc
import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shards import write_set
from tests.streams import digest, global_batches, recipe
from vit_dist.config.schema import Recipe
from vit_dist.core.world import World
from vit_dist.data.index import encode_index, select_samples
from vit_dist.data.manifest import checksum, read_manifest, write_manifest
from vit_dist.data.sets import TrainingSet, open_training_set
from vit_dist.data.stream import TrainStream

SHAPES = {
    "primes and an empty shard": [13, 0, 29, 7],
    "shards of one sample": [1] * 11,
    "one shard": [17],
    "empty ends": [0, 5, 0, 0, 31, 0],
}


def exclude(manifest: str, out: Path, dropped: frozenset[int]) -> str:
    """A manifest of the same tars less some samples, by their ordinals."""
    whole = read_manifest(manifest)
    shards, first = [], 0
    for number, shard in enumerate(whole.shards):
        index = whole.read_index(number)
        kept = np.array([i for i in range(shard.num_samples) if first + i not in dropped], np.int64)
        first += shard.num_samples
        content = encode_index(select_samples(index, kept))
        (out / f"{number}.idx.npz").write_bytes(content)
        url = whole.shard_url(number)
        index_url = str(out / f"{number}.idx.npz")
        shards.append(
            replace(shard, url=url, num_samples=len(kept), index_url=index_url, index_checksum=checksum(content))
        )
    write_manifest(replace(whole, shards=tuple(shards)), str(out / "manifest.json"))
    return str(out / "manifest.json")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Manifests by name; those of each shape, shuffled and not, and one with holes."""
    folder, made = tmp_path_factory.mktemp("shapes"), {}
    for name, sizes in SHAPES.items():
        for shuffled in (True, False):
            label = f"{name}, {'shuffled' if shuffled else 'stored'}"
            made[label] = write_set(
                folder / label.replace(" ", "-"),
                num_samples=sum(sizes),
                samples_per_shard=1,
                num_classes=4,
                sizes=sizes,
                shuffled=shuffled,
            )
    (folder / "holes").mkdir()
    dropped = frozenset({0, 3, 4, 5, 12, 13, 40, 48})
    made["with holes"] = exclude(made["primes and an empty shard, stored"], folder / "holes", dropped)
    return made


@dataclass(frozen=True)
class Case:
    config: Recipe
    world_size: int
    step: int


@st.composite
def cases(draw: st.DrawFn, manifests: dict[str, str]) -> Case:
    manifest = manifests[draw(st.sampled_from(sorted(manifests)))]
    total = read_manifest(manifest).num_samples
    subset = draw(st.none() | st.integers(1, total))
    n = subset or total
    overrides = [f"seed={draw(st.integers(0, 9))}", f"data.subset_seed={draw(st.integers(0, 2))}"]
    if subset is not None:
        overrides.append(f"data.subset={subset}")
    if draw(st.booleans()):
        overrides.append(f"data.lanes={draw(st.integers(1, n))}")
    if draw(st.booleans()):
        overrides.append(f"data.window={draw(st.integers(1, n + 3))}")
    world_size = draw(st.integers(1, 5))
    overrides.append(f"global_batch={world_size * draw(st.integers(1, 5))}")
    overrides += [f"data.decode_threads={draw(st.integers(1, 3))}", f"data.read_threads={draw(st.integers(1, 3))}"]
    return Case(recipe(manifest, *overrides), world_size, draw(st.integers(0, 8)))


def expected_ordinals(data: TrainingSet, first: int, count: int) -> list[int]:
    (part,) = data.parts
    places = [data.order.locate(g) for g in range(first, first + count)]
    return [part.ordinal(*part.subset.sample(where.shard, where.sample)) for where in places]


@given(st.data())
@settings(max_examples=60)
def test_streams_deliver_what_the_order_says_whatever_the_world(sets: dict[str, str], data: st.DataObject) -> None:
    case = data.draw(cases(sets))
    batch, first = case.config.global_batch, case.step * case.config.global_batch
    found = global_batches(case.config, case.world_size, first, 4)
    ordinals = torch.cat([b[0] for b in found]).tolist()
    assert ordinals == expected_ordinals(open_training_set(case.config), first, 4 * batch)
    assert digest(global_batches(case.config, 1, first, 4)) == digest(found)


@pytest.mark.parametrize("name", ["primes and an empty shard, shuffled", "with holes"])
@pytest.mark.parametrize("shape", [(), ("data.lanes=4", "data.window=5")])
def test_restarting_at_every_position_of_an_epoch_gives_the_same_tail(
    sets: dict[str, str], name: str, shape: tuple[str, ...]
) -> None:
    config = recipe(sets[name], *shape, "global_batch=1", "data.prefetch_batches=1")
    data = open_training_set(config)
    whole = global_batches(config, 1, 0, data.num_samples + 3)
    for position in range(data.num_samples + 1):
        with TrainStream(data, config, World(), position) as stream:
            for (batch, state), (ordinals, _, images) in zip(stream, whole[position : position + 2], strict=False):
                assert torch.equal(batch.ordinals, ordinals)
                assert torch.equal(batch.images, images)
                position += 1
                assert state.position == position


def test_every_sample_but_the_excluded_comes_once_an_epoch(sets: dict[str, str]) -> None:
    config = recipe(sets["with holes"], "global_batch=1", "data.lanes=3", "data.window=4")
    ordinals = [int(b[0]) for b in global_batches(config, 1, 0, 41)]
    assert sorted(ordinals) == list(range(41))  # counted without the excluded
    original = recipe(sets["primes and an empty shard, stored"], "global_batch=1", "data.augment=none")
    bare = recipe(sets["with holes"], "global_batch=1", "data.augment=none")

    def pictures(config: Recipe, count: int) -> dict[int, bytes]:
        return {int(b[0]): b[2].numpy().tobytes() for b in global_batches(config, 1, 0, count)}

    kept = [i for i in range(49) if i not in {0, 3, 4, 5, 12, 13, 40, 48}]
    before, after = pictures(original, 49), pictures(bare, 41)
    assert [after[i] for i in range(41)] == [before[i] for i in kept]


@pytest.mark.parametrize("shape", [(), ("data.lanes=4", "data.window=16")])
def test_a_scattered_subset_reads_little_more_than_its_own_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[str, ...]
) -> None:
    manifest = write_set(tmp_path, num_samples=120, samples_per_shard=40, num_classes=4, shuffled=False)
    config = recipe(manifest, *shape, "data.subset=24")
    expected = digest(global_batches(config, 1, 0, 6))
    taken: list[int] = []
    from vit_dist.data import segments

    read_into = segments.RangeReader.read_into

    def counted(self: segments.RangeReader, url: str, start: int, into: memoryview) -> None:
        taken.append(len(into))
        read_into(self, url, start, into)

    monkeypatch.setattr(segments.RangeReader, "read_into", counted)
    monkeypatch.setattr(segments, "MERGE_GAP", 1536)
    assert digest(global_batches(config, 3, 0, 6)) == expected
    taken.clear()
    global_batches(config, 1, 0, 2)  # one epoch of 24
    data = open_training_set(config)
    mean = data.num_bytes / 24
    assert len(taken) > 3
    assert sum(taken) < 1.7 * 24 * mean * (1 if not shape else 2.5)  # prefetch begins the next epoch


def resident_mb() -> float:
    # What was freed goes back first: how much of it the allocator holds depends on what else this process has run
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.parametrize("shape", [(), ("data.lanes=8", "data.window=8")])
def test_memory_stays_flat_over_ten_epochs(small_set: str, shape: tuple[str, ...]) -> None:
    config = recipe(small_set, *shape, "global_batch=20", "data.image_size=56")
    data, after_epoch = open_training_set(config), []
    with TrainStream(data, config, World(), 0) as stream:
        for step, _ in enumerate(itertools.islice(stream, 100), 1):
            if step % 10 == 0:
                gc.collect()
                after_epoch.append(resident_mb())
    assert after_epoch[-1] - after_epoch[2] < 8
