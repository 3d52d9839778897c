"""Laws 1 to 3 where processes decode: what comes out is what threads give, from any position, and so are the errors."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vit_dist
from tests.shards import write_set
from tests.streams import recipe, recipe_of
from vit_dist.config.load import identity
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.process import wait_until
from vit_dist.core.world import World
from vit_dist.data.mixture import MixtureOrder
from vit_dist.data.order import GlobalOrder
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

SHAPES = {
    "one window": (),
    "lanes": ("data.lanes=8", "data.window=5"),
    "odd lanes": ("data.lanes=3", "data.window=32"),
    "subset": ("data.subset=47", "data.lanes=4", "data.window=3"),
    "augmented": (
        "data.lanes=16",
        "data.window=4",
        "data.augment={randaugment: {num_ops: 2}, jitter: {hue: 0.1}, erase: {fill: noise}}",
    ),
}


@pytest.fixture(scope="module")
def broken_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """60 images of which three, two of them neighbours, cannot be decoded."""
    folder = tmp_path_factory.mktemp("broken")
    return write_set(folder, num_samples=60, samples_per_shard=17, num_classes=4, broken=frozenset({3, 4, 40}))


def told(
    config: Recipe,
    workers: int,
    *,
    world: World | None = None,
    position: int = 0,
    steps: int = 12,
    taken: dict[int, int] | None = None,
    reuse: bool = False,
) -> list[tuple[Any, ...]]:
    """All that a rank is told of each batch, as values that are compared."""
    config = config.model_copy(update={"data": config.data.model_copy(update={"decode_workers": workers})})
    data, found = open_training_set(config), []
    with TrainStream(
        data, config, world or World(), position, taken_down=taken, reuse=reuse, at_once=bool(workers)
    ) as stream:
        for batch, state in itertools.islice(stream, steps):
            tensors = (batch.images, batch.labels, batch.weights, batch.ordinals, batch.positions)
            bits = [(tuple(x.shape), str(x.dtype), x.numpy().tobytes()) for x in tensors]
            found.append((bits, batch.samples, batch.replaced, state.position))
            batch.give_back()
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_processes_gives_the_batches_of_threads(broken_set: str, shape: str) -> None:
    config = recipe(broken_set, *SHAPES[shape], "data.max_bad=0.2")
    taken = {7: 0, 8: 0, 30: 40, 41: 0}
    threads = told(config, 0, taken=taken)
    assert any(replaced for _, _, replaced, _ in threads)
    for workers in (1, 2, 3):
        assert told(config, workers, taken=taken) == threads
    for rank in range(2):
        ours = told(config, 2, world=World(rank, 2), taken=taken)
        assert ours == told(config, 0, world=World(rank, 2), taken=taken)
    # Each slot is written again.
    assert told(config, 2, taken=taken, reuse=True) == threads


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_go_on_from_any_position(broken_set: str, workers: int) -> None:
    config = recipe(broken_set, *SHAPES["lanes"], "data.max_bad=0.2")
    whole = told(config, 0)
    for step in (1, 4, 5, 9):  # amid an epoch, at its end (60 = 5 x 12), amid the next
        assert told(config, workers, position=12 * step, steps=3) == whole[step : step + 3]


@pytest.mark.parametrize("shape", [(), ("data.lanes=12", "data.window=3")])
def test_mixtures_are_the_same_by_processes(tmp_path: Path, shape: tuple[str, ...]) -> None:
    one = write_set(tmp_path / "one", num_samples=41, samples_per_shard=13, num_classes=4, broken=frozenset({5}))
    two = write_set(tmp_path / "two", num_samples=23, samples_per_shard=10, num_classes=4, first=20)
    sets = {"one": {"train": one, "weight": 2}, "two": {"train": two, "weight": 1, "label_offset": 4}}
    config = recipe_of(
        {"num_classes": 8, "mixture": sets, "max_bad": 0.2},
        *shape,
        horizon="10 steps",
        eval={"every": "10 steps"},
        checkpoint={"every": "10 steps"},
    )
    threads = told(config, 0, steps=15)
    assert {sample.set for _, samples, _, _ in threads for sample in samples} == {"one", "two"}
    for workers in (1, 2, 3):
        assert told(config, workers, steps=15) == threads


def test_threads_begin_and_processes_go_on_with_the_same_examples(broken_set: str) -> None:
    config = recipe(broken_set, *SHAPES["lanes"], "data.max_bad=0.2", "data.decode_workers=2")
    with TrainStream(open_training_set(config), config, World(), 0, reuse=True) as stream:
        pool = stream._reader._pool
        assert pool is not None
        found = []
        for number, (batch, _) in enumerate(itertools.islice(stream, 12)):
            found.append((batch.images.numpy().tobytes(), batch.samples))
            batch.give_back()
            if number == 2:
                assert wait_until(pool._ready.is_set, 120, 0.01)
        assert 0 < pool._submitted < 12 + config.data.prefetch_batches + 1
    expected = [(bits[0][2], samples) for bits, samples, _, _ in told(config, 0)]
    assert found == expected


def test_a_stream_of_ones_own_may_have_processes(broken_set: str) -> None:
    def read(**data: Any) -> list[Any]:
        with vit_dist.open_stream(
            broken_set, batch=7, seed=5, epochs=2, image_size=28, max_bad=0.2, prefetch_batches=2, **data
        ) as stream:
            # All of them are kept: each has memory of its own.
            batches = list(stream)
        return [(b.images.tolist(), b.labels.tolist(), b.samples, state) for b, state in batches]

    assert read(decode_workers=2) == read()


@pytest.mark.parametrize(
    "given",
    [{"decode": "pil"}, {"decode": "bytes"}, {"transform": lambda image, sample: image}, {"shuffle": False}],
    ids=["pil", "bytes", "transform", "stored"],
)
def test_what_processes_do_not_make_is_refused_by_them(small_set: str, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="decode_workers=2: processes make uint8 crops"):
        vit_dist.open_stream(small_set, batch=4, decode_workers=2, **given)


def test_the_number_of_processes_is_no_part_of_a_run(small_set: str) -> None:
    plain = recipe(small_set)
    assert identity(recipe(small_set, "data.decode_workers=3")) == identity(plain)


# Errors.


def _cut(folder: Path) -> None:
    shard = folder / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:9000])


def _swapped(folder: Path) -> None:
    other = write_set(folder / "other", num_samples=60, samples_per_shard=20, num_classes=4, first=500)
    shard = Path(other).parent / "shard-000002.tar"
    (folder / "shard-000002.tar").write_bytes(shard.read_bytes() + bytes(100_000))


def _missing(folder: Path) -> None:
    (folder / "shard-000001.tar").unlink()


def _damaged_index(folder: Path) -> None:
    index = folder / "shard-000001.idx.npz"
    whole = index.read_bytes()
    index.write_bytes(whole[:200] + b"\x00" + whole[201:])


def _all_broken(folder: Path) -> None:
    write_set(folder, num_samples=60, samples_per_shard=20, num_classes=4, broken=frozenset(range(60)))


def _nothing(folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("hurt", "says"),
    [
        (_cut, r"shard-000001\.tar: has 9,000 bytes, and its manifest says"),
        (_swapped, r"shard-000002\.tar: has 192,160 bytes, and its manifest says 92,160"),
        (_missing, r"shard-000001\.tar: no such file"),
        (_damaged_index, r"shard-000001\.idx\.npz: the index has checksum"),
        (_all_broken, r"none of the \d+ samples around 'k\d+' can be decoded"),
        (_nothing, r"sample 'k\d+' has label \d, but the head knows classes 0 to 0"),
    ],
    ids=["cut", "swapped", "missing", "damaged index", "all broken", "label"],
)
@pytest.mark.parametrize("shape", ["one window", "lanes"])
def test_errors_are_those_of_threads(tmp_path: Path, hurt: Any, says: str, shape: str) -> None:
    manifest = write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    hurt(tmp_path)
    config = recipe(manifest, *SHAPES[shape])
    if hurt is _nothing:
        # Opened as it is, and read by a head that knows less.
        data = open_training_set(config)
    errors = set()
    for workers in (0, 2):
        keys = {"decode_workers": workers, "num_classes": 1 if hurt is _nothing else 4}
        narrow = config.model_copy(update={"data": config.data.model_copy(update=keys)})
        data = data if hurt is _nothing else open_training_set(narrow)
        with (
            pytest.raises(DataError, match=says) as error,
            TrainStream(data, narrow, World(), 0, at_once=bool(workers)) as stream,
        ):
            list(itertools.islice(stream, 10))
        errors.add((type(error.value), str(error.value)))
    assert len(errors) == 1


# Lanes.


@settings(max_examples=40)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5), st.integers(1, 9), st.integers(0, 10_000))
def test_the_lanes_of_an_array_are_those_of_each_place(counts: list[int], lanes: int, begin: int) -> None:
    order = GlobalOrder(np.array(counts), seed=1, lanes=min(lanes, sum(counts)), window=3)
    other = GlobalOrder(np.array([50]), seed=1, lanes=2 * order.lanes, window=4)
    positions = np.arange(begin, begin + 200)
    for one in (order, MixtureOrder([order, other])):
        assert one.lanes_of(positions).tolist() == [one.place(int(p))[0].lane for p in positions]


@pytest.mark.parametrize(("lanes", "batch"), [(8, 12), (16, 4), (64, 100), (50, 100)])
def test_a_lane_stays_with_one_process_and_each_has_as_many(small_set: str, lanes: int, batch: int) -> None:
    config = recipe(small_set, f"data.lanes={lanes}", "data.window=2", "data.decode_workers=3", f"global_batch={batch}")
    with TrainStream(open_training_set(config), config, World(), 0, at_once=True) as stream:
        pool = stream._reader._pool
        assert pool is not None
        owners: dict[int, set[int]] = {}
        for begin in range(0, 1200, batch):
            positions = list(range(begin, begin + batch))
            shares = pool._share(positions)
            assert sorted(row for rows in shares for row in rows) == list(range(batch))
            for process, rows in enumerate(shares):
                for row in rows:
                    owners.setdefault(stream._data.order.place(positions[row])[0].lane, set()).add(process)
        assert len(owners) == lanes
        assert {len(processes) for processes in owners.values()} == {1}
        each = [sum(process in some for some in owners.values()) for process in range(3)]
        assert max(each) - min(each) <= 1
