"""500 random tars, whole and damaged: every stage accepts the same samples, those that webdataset reads, or none."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from tests.shards import noise_bytes
from tests.streams import recipe
from tests.tars import (
    END,
    FORMS,
    OTHERS,
    Samples,
    by_info,
    by_repack,
    by_training_reader,
    by_verify,
    by_webdataset,
    file,
    header,
    indexed,
    packed,
    pax,
)
from vit_dist.core.world import World
from vit_dist.data.indexing import index_tars
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

TARS, GROUPS = 500, 10
IMAGES = [noise_bytes(number, kind) for number in range(20) for kind in ("JPEG", "PNG")]
FOLDERS = ["", "", "./", ".//", "d/", "d.1/", ".hidden/", "./ü/", "a/b/c/", "__x/", "deep/" * 12]
DAMAGE = [
    "flipped bit of a header",
    "cut",
    "joined",
    "garbage behind",
    "no end marker",
    "member twice",
    "sample twice",
    "sparse",
    "absolute",
    "upwards",
    "not UTF-8",
    "global name",
    "no image",
    "two images",
    "label of words",
    "no label",
    "member lost in the middle",
]


def a_sample(draws: random.Random, key: str) -> list[bytes]:
    """The members of a sample, in any order and form, now and then one that is no part of it among them."""
    image = draws.choice(IMAGES)
    kind = draws.choice(["jpg", "JPG", "Jpg"] if image.startswith(b"\xff\xd8") else ["png", "PNG"])
    members = [(f"{key}.{kind}", image), (f"{key}.{draws.choice(['cls', 'CLS'])}", b"%d" % draws.randrange(4))]
    for extension in draws.sample(["txt", "json", "left.jpg", "seg.png", "npy", "_meta", "x.y.z"], draws.randrange(3)):
        members.append((f"{key}.{extension}", draws.randbytes(draws.choice([0, 1, 511, 512, 513, 900]))))
    draws.shuffle(members)
    pieces = []
    for name, content in members:
        if draws.random() < 0.15:
            pieces.append(draws.choice(list(OTHERS.values())))
        pieces.append(draws.choice(list(FORMS.values()))(name, content))
    return pieces


def a_tar(seed: int) -> tuple[bytes, str]:
    """A tar, and what is wrong with it; '' in three of five."""
    draws = random.Random(seed)
    keys = [f"{draws.choice(FOLDERS)}k{i}" for i in range(draws.randrange(1, 5))]
    groups = [a_sample(draws, key) for key in keys]
    damage = draws.choice(DAMAGE) if draws.random() < 0.4 else ""
    one: dict[str, list[bytes]] = {
        "member twice": [groups[-1][-1]],
        "sample twice": [*a_sample(draws, "twice"), *a_sample(draws, "between"), *a_sample(draws, "twice")],
        "sparse": [file("s.jpg", b"x", b"S")],
        "absolute": a_sample(draws, "/abs"),
        "upwards": a_sample(draws, "a/../b"),
        "not UTF-8": [file(b"\xe9.jpg", IMAGES[0]), file(b"\xe9.cls", b"1")],
        "global name": [pax({"path": b"x.jpg"}, b"g"), *a_sample(draws, "g")],
        "no image": [file("n.cls", b"1"), file("n.txt", b"1")],
        "two images": [*a_sample(draws, "t"), file("t.gif", b"x")],
        "label of words": [file("w.jpg", IMAGES[0]), file("w.cls", b"cat")],
        "no label": [file("w.jpg", IMAGES[0])],
        "member lost in the middle": [header(b"l.jpg", 4000), *a_sample(draws, "m")],
    }
    groups += [one[damage]] if damage in one else []
    content = b"".join(itertools.chain(*groups)) + END * draws.randrange(1, 8)
    return damaged(draws, content, damage), damage


def damaged(draws: random.Random, content: bytes, damage: str) -> bytes:
    """A tar whose bytes are damaged as a whole."""
    if damage == "flipped bit of a header":
        headers = [i for i in range(0, len(content), 512) if content[i + 257 : i + 262] == b"ustar"] or [0]
        at = draws.choice(headers) + draws.randrange(345)
        return content[:at] + bytes([content[at] ^ 1 << draws.randrange(8)]) + content[at + 1 :]
    if damage == "cut":
        return content[: draws.randrange(1, len(content))]
    if damage == "joined":
        return content + content
    if damage == "garbage behind":
        return content + draws.randbytes(draws.randrange(1, 1500))
    if damage == "no end marker":
        content = content.rstrip(b"\0")
        return content + bytes(-len(content) % 512)
    return content


def accepted(content: bytes, damage: str, work: Path) -> Samples:
    """What all stages find in a tar; nothing where all refuse it."""
    path = work / "t.tar"
    path.write_bytes(content)
    manifest, again = indexed(path, work), packed(path, work)
    if isinstance(manifest, str) or isinstance(again, str):
        assert isinstance(manifest, str), (again, damage)
        assert isinstance(again, str), (manifest, damage)
        assert damage, manifest
        return {}
    found = by_training_reader(manifest)
    assert found == by_webdataset(content), damage
    assert by_verify(manifest) == []
    assert by_info(manifest) == found
    assert by_repack(again, "t", list(found)) == found
    return found


@pytest.mark.parametrize(
    "group",
    [*range(GROUPS // 2), *(pytest.param(group, marks=pytest.mark.drill) for group in range(GROUPS // 2, GROUPS))],
)
def test_every_stage_accepts_the_same_samples_of_random_tars(group: int, tmp_path: Path) -> None:
    whole = refused = 0
    for seed in range(group * TARS // GROUPS, (group + 1) * TARS // GROUPS):
        work = tmp_path / str(seed)
        work.mkdir()
        content, damage = a_tar(seed)
        found = accepted(content, damage, work)
        whole += bool(found)
        refused += not found
    # Neither side may be empty by mistake.
    assert whole > TARS // GROUPS // 2
    assert refused > 3


def test_the_training_stream_reads_each_sample_of_random_tars_once_with_its_label(tmp_path: Path) -> None:
    expected: list[tuple[str, int]] = []
    for seed in range(60):
        content, damage = a_tar(seed)
        if not damage:
            (tmp_path / f"{seed:03d}.tar").write_bytes(content)
            expected += [(key, labels[0]) for key, (_, labels) in (by_webdataset(content) or {}).items()]
    assert len(expected) > 60
    manifest = index_tars([str(tmp_path)], str(tmp_path / "m.json"), quiet=True, num_classes=4).manifest
    indexes = [manifest.read_index(shard) for shard in range(len(manifest.shards))]
    keys = [index.key(i) for index in indexes for i in range(index.num_samples)]
    config = recipe(str(tmp_path / "m.json"), "global_batch=1", "data.image_size=14")
    seen: dict[int, int] = {}
    with TrainStream(open_training_set(config), config, World(0, 1), 0) as stream:
        for batch, _ in itertools.islice(stream, len(expected)):
            assert not batch.replaced
            seen[int(batch.ordinals[0])] = int(batch.labels[0, 0])
    assert [(keys[ordinal], label) for ordinal, label in sorted(seen.items())] == expected
