"""A packing in the place of another one: what differs is told as options, and nothing else is."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.shards import noise_bytes
from vit_dist.core.errors import ConfigError
from vit_dist.data.pack.choose import open_source
from vit_dist.data.pack.plan import PackPlan
from vit_dist.data.pack.run import PackOptions, pack
from vit_dist.data.pack.shards import ImageOptions

_THERE = PackPlan("folder", "d1", "pets", 60, 0, 20, 0, asdict(ImageOptions()), 2, ("cat", "dog"))


def _images(**options: Any) -> dict[str, Any]:
    return {"images": asdict(ImageOptions(**options))}


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (_images(), ""),
        (_images(resize_shorter=320), "--resize-shorter: 320 now, none there"),
        (_images(resize_longer=640, quality=95), "--resize-longer: 640 now, none there; --quality: 95 now, none there"),
        (_images(upright=True), "--upright: given now, not given there"),
        ({"seed": 3}, "--seed: 3 now, 0 there"),
        ({"samples_per_shard": 10}, "--samples-per-shard: 10 now, 20 there"),
        ({"name": "zoo"}, '--name: "zoo" now, "pets" there'),
        ({"num_val": 6}, "--val, in images: 6 now, 0 there"),
        ({"digest": "d2"}, "SRC: other images or labels now than there"),
        ({"digest": "d2", "kind": "parquet"}, '--format: "parquet" now, "folder" there'),
        ({"digest": "d2", "num_images": 61}, "images in SRC: 61 now, 60 there"),
        ({"classes": ("cat", "fox")}, 'name of class 1: "fox" now, "dog" there'),
        (
            {"digest": "d2", "classes": ("cat", "dog", "fox"), "num_classes": 3},
            (
                "SRC: other images or labels now than there; number of classes: 3 now, 2 there; "
                "names of classes: 3 now, 2 there"
            ),
        ),
        ({"num_classes": 5, "seed": 1}, "--seed: 1 now, 0 there; number of classes: 5 now, 2 there"),
    ],
)
def test_what_differs_is_told_as_options(now: dict[str, Any], told: str) -> None:
    assert _THERE.changes(asdict(replace(_THERE, **now))) == told


def test_of_a_job_of_parts_only_some_fields_are_known() -> None:
    now = {"seed": 1, "images": asdict(ImageOptions(quality=80))}
    assert _THERE.changes(now) == "--seed: 1 now, 0 there; --quality: 80 now, none there"
    assert not _THERE.changes({"seed": 0})


def test_a_shard_that_holds_all_images_is_no_other_choice() -> None:
    one = replace(_THERE, samples_per_shard=60)
    assert one.changes(asdict(replace(one, num_images=61, samples_per_shard=61))) == "images in SRC: 61 now, 60 there"


def test_it_is_refused_in_these_words(tmp_path: Path) -> None:
    source, out = tmp_path / "src", str(tmp_path / "out")
    for i, name in enumerate("ab"):
        (source / name).mkdir(parents=True)
        (source / name / "1.jpg").write_bytes(noise_bytes(i))

    def packed(images: ImageOptions) -> None:
        pack(lambda work: open_source(str(source), work), out, PackOptions(images=images), quiet=True)

    packed(ImageOptions(resize_shorter=16))
    with pytest.raises(ConfigError, match=r"\(--resize-shorter: none now, 16 there\); choose another directory"):
        packed(ImageOptions())
