"""Examples that one thread fills together: how many go through a stage side by side, and which failure is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.shards import write_set
from tests.streams import recipe
from vit_dist.core.errors import DataError
from vit_dist.data.batch import Batch
from vit_dist.data.decode import Encoded
from vit_dist.data.images import DecodeError
from vit_dist.data.ring import Buffers
from vit_dist.data.rows import TOGETHER, Failed, Rows, RowsOf, Stages
from vit_dist.data.sets import open_training_set

Told = list[tuple[str, int]]


class Watched:
    """A view that tells which stage of which example is gone through, and of what size its pixels are."""

    def __init__(self, size: int, fails: Callable[[int], Exception | None] = lambda _: None) -> None:
        self.told: Told = []
        self._size, self._fails = size, fails

    def __call__(self, _image: Encoded, _epoch: int, ordinal: int) -> Stages:
        self.told.append(("draw", ordinal))
        yield self._size
        self.told.append(("decode", ordinal))
        error = self._fails(ordinal)
        if error is not None:
            raise error
        yield self._size
        self.told.append(("finish", ordinal))
        return torch.full((3, 28, 28), ordinal % 256, dtype=torch.uint8)


@pytest.fixture
def manifest(tmp_path: Path) -> str:
    return write_set(tmp_path, num_samples=60, samples_per_shard=30, num_classes=4)


@contextlib.contextmanager
def rows_of(manifest: str, view: Watched) -> Iterator[Rows]:
    config = recipe(manifest)
    data = open_training_set(config)
    rows = Rows(RowsOf(data.parts, data.order, view, config.data, data.fits_in_memory), 2)
    try:
        yield rows
    finally:
        rows.close()


def filled(manifest: str, view: Watched, count: int) -> tuple[Batch, Failed | None]:
    batch = Batch.blank(range(count), Buffers.make(count, 28, 1), None)
    with rows_of(manifest, view) as rows:
        return batch, rows.fill(batch, range(count), [rows.find(position) for position in range(count)])


def test_each_stage_is_gone_through_by_a_few_images_before_the_next_one(manifest: str) -> None:
    view = Watched(1000)
    batch, failed = filled(manifest, view, TOGETHER + 2)
    assert failed is None
    first, rest = batch.ordinals[:TOGETHER].tolist(), batch.ordinals[TOGETHER:].tolist()
    assert view.told == [
        (stage, one) for those in (first, rest) for stage in ("draw", "decode", "finish") for one in those
    ]
    assert batch.images[:, 0, 0, 0].tolist() == batch.ordinals.tolist()


def test_of_images_that_are_large_fewer_are_held_at_once(manifest: str) -> None:
    view = Watched(5 << 20)
    batch, _ = filled(manifest, view, 6)
    pairs = batch.ordinals.view(-1, 2).tolist()
    assert view.told == [(stage, one) for those in pairs for stage in ("draw", "decode", "finish") for one in those]
    view = Watched(100 << 20)
    batch, _ = filled(manifest, view, 3)
    assert [stage for stage, _ in view.told] == ["draw", "decode", "finish"] * 3


def test_the_first_row_that_fails_is_told_whichever_failed_first(manifest: str) -> None:
    ordinals = filled(manifest, Watched(1000), 12)[0].ordinals.tolist()
    # The row behind it fails one stage earlier, at the sample whose turn it is not.
    late, early = DataError("the third row"), DataError("the fourth row")

    class Early(Watched):
        def __call__(self, image: Encoded, epoch: int, ordinal: int) -> Stages:
            if ordinal == ordinals[3]:
                raise early
            return (yield from super().__call__(image, epoch, ordinal))

    view = Early(1000, lambda ordinal: late if ordinal == ordinals[2] else None)
    assert filled(manifest, view, 12)[1] == Failed(2, late)
    # Nothing is begun behind a failure.
    assert {one for _, one in view.told} == set(ordinals[:3])


def test_one_that_cannot_be_decoded_is_replaced_while_others_go_on(manifest: str) -> None:
    ordinals = filled(manifest, Watched(1000), 8)[0].ordinals.tolist()
    view = Watched(1000, lambda ordinal: DecodeError("broken") if ordinal == ordinals[1] else None)
    batch, failed = filled(manifest, view, 8)
    assert failed is None
    assert batch.ordinals.tolist()[2:] == ordinals[2:]
    (replaced,) = batch.replaced
    assert (replaced.ordinal, replaced.reason) == (ordinals[1], "broken")
    assert replaced.replaced_by == batch.samples[1].key
    assert int(batch.images[1, 0, 0, 0]) == int(batch.ordinals[1]) != ordinals[1]
