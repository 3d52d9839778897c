"""The tars that benchmarks make up are real: webdataset reads them, any range is computed on its own, streams fit."""

from __future__ import annotations

import io
import itertools
import random

import webdataset
from PIL import Image

from benchmarks.seek_over_http import check
from benchmarks.synthetic import SyntheticSet, served
from tests.streams import recipe
from vit_dist.core.world import World
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

SET = SyntheticSet(num_shards=3, samples_per_shard=70)


def test_webdataset_reads_a_tar_that_was_made_up() -> None:
    tar = SET.tar(1, 0, SET.num_bytes(1))
    assert len(tar) == SET.num_bytes(1)
    files = webdataset.tariterators.tar_file_iterator(io.BytesIO(tar))
    samples = list(webdataset.tariterators.group_by_keys({**f, "__url__": "x"} for f in files))
    assert [s["__key__"] for s in samples] == [f"{1:06d}{i:06d}" for i in range(70)]
    assert [int(s["cls"]) for s in samples] == SET.labels(1).tolist()
    for sample in samples:
        Image.open(io.BytesIO(sample.get("jpg") or sample["png"])).load()


def test_any_range_of_a_tar_is_computed_on_its_own() -> None:
    tar = SET.tar(2, 0, SET.num_bytes(2))
    rng = random.Random(0)
    for _ in range(100):
        start = rng.randrange(len(tar))
        end = rng.randrange(start, len(tar) + 1)
        assert SET.tar(2, start, end) == tar[start:end]


def test_a_stream_over_http_delivers_what_the_order_says() -> None:
    with served(SET) as url:
        config = recipe(f"{url}/manifest.json", "data.num_classes=1000", "data.lanes=4", "data.window=9")
        data = open_training_set(config)
        for rank in range(2):
            with TrainStream(data, config, World(rank, 2), 120) as stream:
                for batch, _ in itertools.islice(stream, 12):
                    check(SET, data, batch)
