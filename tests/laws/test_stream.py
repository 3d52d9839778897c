"""Laws 1 to 3 for the stream: what really comes out of the tars, on any world, from any position."""

from __future__ import annotations

import gc
import itertools
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset

from tests.shards import write_set
from tests.streams import digest, global_batches, recipe
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import EvalBatches, TrainStream

SHAPES = {"one window": (), "lanes": ("data.lanes=8", "data.window=5"), "odd lanes": ("data.lanes=3", "data.window=32")}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_order_does_not_depend_on_world_size_or_threads(small_set: str, shape: str) -> None:
    base = digest(global_batches(recipe(small_set, *SHAPES[shape]), 1, 0, 40))
    for world_size in (2, 3, 4):
        assert digest(global_batches(recipe(small_set, *SHAPES[shape]), world_size, 0, 40)) == base
    for threads in ("1", "5"):
        config = recipe(small_set, *SHAPES[shape], f"data.decode_threads={threads}", f"data.read_threads={threads}")
        assert digest(global_batches(config, 1, 0, 40)) == base


@pytest.mark.parametrize("shape", SHAPES)
def test_restarting_at_every_batch_gives_the_same_tail(small_set: str, shape: str) -> None:
    config = recipe(small_set, *SHAPES[shape])
    whole = global_batches(config, 1, 0, 20)
    for step in range(1, 20):
        assert digest(global_batches(config, 2, step * 12, 2 if step < 18 else 1)) == digest(
            whole[step : step + (2 if step < 18 else 1)]
        )


@pytest.mark.parametrize("shape", SHAPES)
def test_batches_cross_epochs_and_every_epoch_is_exactly_once(small_set: str, shape: str) -> None:
    batches = global_batches(recipe(small_set, *SHAPES[shape]), 2, 0, 50)  # 600 examples: three epochs of 200
    ordinals = torch.cat([b[0] for b in batches]).tolist()
    for epoch in range(3):
        assert sorted(ordinals[epoch * 200 : (epoch + 1) * 200]) == list(range(200))


def test_webdataset_reads_the_same_samples(small_set: str) -> None:
    config = recipe(small_set, "data.augment=none")
    (batch,) = global_batches(config, 1, 0, 1)
    urls = [str(Path(small_set).parent / f"shard-{i:06d}.tar") for i in range(7)]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).decode("rgb8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # webdataset leaves its files to the garbage collector
        reference = list(dataset)
        del dataset
        gc.collect()
    for ordinal, label, image in zip(*batch, strict=True):
        sample = reference[ordinal]
        assert int(sample["cls"]) == label
        assert np.array_equal(sample["png"].transpose(2, 0, 1), image.numpy())


def test_a_broken_image_is_replaced_by_the_next_of_its_window_everywhere_alike(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4, broken=frozenset({3, 4, 40}))
    for shape in SHAPES:
        config = recipe(manifest, *SHAPES[shape], "data.max_bad=0.2")
        base = global_batches(config, 1, 0, 5)
        assert digest(base) == digest(global_batches(config, 3, 0, 5))
        ordinals = torch.cat([b[0] for b in base]).tolist()
        assert set(ordinals) == set(range(60)) - {3, 4, 40}
        assert len(ordinals) == 60
    data = open_training_set(config)
    with TrainStream(data, config, World(), 0) as stream:
        replaced = [r for b, _ in itertools.islice(stream, 5) for r in b.replaced]
    assert {r.key for r in replaced} == {"k000003", "k000004", "k000040"}
    assert all("shard-" in r.shard and r.reason for r in replaced)


def test_a_window_without_one_good_image_is_an_error_that_names_the_shard(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, num_samples=12, samples_per_shard=12, num_classes=4, broken=frozenset(range(12)))
    with pytest.raises(DataError, match=r"shard-000000\.tar: none of the 12 samples"):
        global_batches(recipe(manifest), 1, 0, 1)


def test_a_label_that_the_head_does_not_know_names_the_sample(small_set: str) -> None:
    config = recipe(small_set)
    data = open_training_set(config)
    narrow = config.model_copy(update={"data": config.data.model_copy(update={"num_classes": 2})})
    with pytest.raises(DataError, match=r"sample 'k\d+' has label [23], but the head knows classes 0 to 1"):
        next(iter(TrainStream(data, narrow, World(), 0)))


def test_fewer_classes_than_the_set_has_are_refused(small_set: str) -> None:
    with pytest.raises(ConfigError, match=r"has 4 classes; set data\.num_classes=4"):
        open_training_set(recipe(small_set, "data.num_classes=3"))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_truncated_tar_is_an_error_not_a_hang(tmp_path: Path, shape: str) -> None:
    manifest = write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    shard = tmp_path / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"shard-000001\.tar: has 9,000 bytes, and its manifest says"):
        global_batches(recipe(manifest, *SHAPES[shape]), 1, 0, 5)


def test_tars_that_were_swapped_after_indexing_are_noticed(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    other = write_set(tmp_path / "other", num_samples=60, samples_per_shard=20, num_classes=4, first=500)
    shard = Path(other).parent / "shard-000002.tar"
    (tmp_path / "shard-000002.tar").write_bytes(shard.read_bytes() + bytes(100_000))
    with pytest.raises(DataError, match=r"shard-000002\.tar: has 192,160 bytes, and its manifest says 92,160"):
        global_batches(recipe(manifest), 1, 0, 5)


def test_a_missing_shard_and_a_damaged_index_are_named(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    index = tmp_path / "shard-000001.idx.npz"
    whole = index.read_bytes()
    index.write_bytes(whole[:200] + b"\x00" + whole[201:])
    with pytest.raises(DataError, match=r"shard-000001\.idx\.npz: the index has checksum"):
        global_batches(recipe(manifest), 1, 0, 5)
    index.write_bytes(whole)
    (tmp_path / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.tar: no such file"):
        global_batches(recipe(manifest), 1, 0, 5)


def test_read_ahead_over_the_memory_limit_is_refused(small_set: str) -> None:
    config = recipe(small_set, "data.lanes=8", "data.window=5", "data.memory_limit=1000 B")
    data = open_training_set(config)
    with pytest.raises(ConfigError, match=r"over data\.memory_limit"):
        TrainStream(data, config, World(), 0)


def test_pinned_batches_count_with_what_torch_rounds_them_up_to(
    small_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    batch = recipe(small_set).global_batch * 3 * 28**2
    with TrainStream(open_training_set(recipe(small_set)), recipe(small_set), World(), 0) as stream:
        plain_bytes = stream.memory_bytes
    config = recipe(small_set, f"data.memory_limit={plain_bytes} B", "data.decode_workers=0")
    with TrainStream(open_training_set(config), config, World(), 0):
        pass
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rounded = plain_bytes + (config.data.prefetch_batches + 1) * ((1 << (batch - 1).bit_length()) - batch)
    assert rounded > plain_bytes
    with pytest.raises(ConfigError, match=re.escape(f"take {format_bytes(rounded)} a rank, over data.memory_limit")):
        TrainStream(open_training_set(config), config, World(), 0)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_evaluation_sees_every_example_once_in_equally_many_rounds(small_val: str, world_size: int) -> None:
    config, manifest = recipe(small_val), read_manifest(small_val)
    seen, rounds = [], set()
    for rank in range(world_size):
        batches = list(EvalBatches(manifest, config.data, World(rank, world_size), 7))
        rounds.add(len(batches))
        seen += [int(o) for b in batches if b is not None for o in b.ordinals]
    assert sorted(seen) == list(range(45))
    assert len(rounds) == 1


def test_undecodable_validation_examples_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_set(tmp_path, num_samples=20, samples_per_shard=20, num_classes=4, broken=frozenset({3, 9}))
    assert len(list(EvalBatches(read_manifest(manifest), recipe(manifest).data, World(), 7))) == 3
    said = capsys.readouterr()
    assert "2 validation examples cannot be decoded" in said.out + said.err
    assert "'k000003'" in said.out + said.err
