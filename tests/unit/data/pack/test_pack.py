"""Packing: what comes out, that it is always the same, and what is said where it cannot be done."""

from __future__ import annotations

import collections
import errno
import gzip
import io
import json
import os
import random
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.places import FASHION
from tests.shards import noise_bytes
from vit_dist.core.errors import ConfigError, DataError, RunError
from vit_dist.data.index import ShardIndex
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.data.pack.choose import open_source
from vit_dist.data.pack.items import Item, Listing, safe_key, shuffled_ordinals
from vit_dist.data.pack.run import PackOptions, PackResult, merge, pack
from vit_dist.data.pack.shards import ImageOptions, check_image


def image_bytes(number: int, kind: str = "JPEG", size: tuple[int, int] = (24, 20)) -> bytes:
    return noise_bytes(number, kind, size)


def make_folder(root: Path, classes: dict[str, int]) -> Path:
    number = 0
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"img{i:03d}.jpg").write_bytes(image_bytes(number))
            number += 1
    return root


def run(source: Path | str, dest: Path | str, max_bad: str = "1/100", **kwargs: object) -> PackResult:
    options = {k: kwargs.pop(k) for k in list(kwargs) if k in PackOptions.__dataclass_fields__}
    return pack(
        lambda scratch: open_source(str(source), scratch),
        str(dest),
        PackOptions(**options),  # type: ignore[arg-type]
        max_bad=Fraction(max_bad),
        quiet=True,
        **kwargs,  # type: ignore[arg-type]
    )


def all_samples(manifest: ShardManifest) -> dict[str, tuple[bytes, list[int]]]:
    """Image bytes and labels by key, through our own indexes."""
    found = {}
    for shard in range(len(manifest.shards)):
        index = manifest.read_index(shard)
        tar = Path(manifest.shard_url(shard)).read_bytes()
        for i, key in enumerate(index.keys()):
            assert key not in found
            begin = int(index.image_offsets[i])
            found[key] = tar[begin : begin + int(index.image_bytes[i])], index.sample_labels(i)[0].tolist()
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def read_wds(manifest: ShardManifest) -> list[dict[str, object]]:
    from webdataset.tariterators import group_by_keys, tar_file_expander

    samples: list[dict[str, object]] = []
    for i in range(len(manifest.shards)):
        with Path(manifest.shard_url(i)).open("rb") as stream:  # webdataset itself would leave it open
            samples += group_by_keys(tar_file_expander([{"url": manifest.shard_url(i), "stream": stream}]))
    return samples


def test_every_image_of_a_folder_arrives_once_with_its_bytes_and_label(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"cat": 7, "dog": 5})
    result = run(source, tmp_path / "out", samples_per_shard=5)
    manifest = read_manifest(str(tmp_path / "out"))
    assert result.manifests[0][1] == manifest
    assert [s.num_samples for s in manifest.shards] == [5, 5, 2]
    assert manifest.classes == ("cat", "dog")
    assert manifest.num_classes == 2
    assert manifest.shuffled
    expected = {
        f"{c}/img{i:03d}": ((source / c / f"img{i:03d}.jpg").read_bytes(), [label])
        for label, (c, n) in enumerate([("cat", 7), ("dog", 5)])
        for i in range(n)
    }
    assert all_samples(manifest) == expected
    assert {s["__key__"]: (s["jpg"], [int(s["cls"])]) for s in read_wds(manifest)} == expected  # type: ignore[call-overload]


@pytest.mark.filterwarnings("ignore:String specifications for transformations are deprecated:UserWarning")
def test_wids_reads_the_manifest_and_decodes_label_and_image(tmp_path: Path) -> None:
    import wids

    make_folder(tmp_path / "src", {"cat": 3, "dog": 4})
    run(tmp_path / "src", tmp_path / "out", samples_per_shard=3)
    dataset = wids.ShardListDataset(str(tmp_path / "out" / "manifest.json"), cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == 7
    labels = collections.Counter(sample[".cls"] for sample in dataset)
    assert labels == {0: 3, 1: 4}
    assert dataset[0][".jpg"].size == (24, 20)
    dataset.close()


def test_packing_twice_gives_the_same_bytes_for_any_number_of_processes_and_parts(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 30, "b": 33})
    run(source, tmp_path / "one", samples_per_shard=10)
    time.sleep(1.1)  # a time of day in a header would show
    run(source, tmp_path / "two", samples_per_shard=10)
    for part in ((1, 3), (3, 3), (2, 3)):
        assert run(source, tmp_path / "parts", samples_per_shard=10, part=part).manifests == ()
    merge(str(tmp_path / "parts"))
    assert files(tmp_path / "one") == files(tmp_path / "two")
    assert files(tmp_path / "one") == files(tmp_path / "parts")
    assert not (tmp_path / "one" / ".pack").exists()


def test_worker_processes_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folder(tmp_path / "src", {"a": 9, "b": 9})
    run(source, tmp_path / "one", samples_per_shard=4)
    monkeypatch.setattr("vit_dist.data.workers.IN_PROCESS_IMAGES", 0)
    run(source, tmp_path / "two", samples_per_shard=4, num_workers=2)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_another_seed_gives_another_order(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 20, "b": 20})
    keys = []
    for seed in (0, 1):
        run(source, tmp_path / str(seed), seed=seed)
        keys.append([s["__key__"] for s in read_wds(read_manifest(str(tmp_path / str(seed))))])
    assert sorted(keys[0]) == sorted(keys[1])
    assert keys[0] != keys[1]


def test_the_shuffle_is_global_and_a_prefix_is_a_random_sample() -> None:
    total = 20_000
    ordinals = shuffled_ordinals(0, total, total, seed=3)
    assert np.array_equal(np.sort(ordinals), np.arange(total))
    pieces = [shuffled_ordinals(i, 1000, total, seed=3) for i in range(0, total, 1000)]
    assert np.array_equal(np.concatenate(pieces), ordinals)
    first = np.histogram(ordinals[:5000], bins=20, range=(0, total))[0]  # 250 expected in each, s = 13.3
    assert np.all(abs(first - 250) < 5 * 13.4)
    assert abs(np.corrcoef(ordinals[:-1], ordinals[1:])[0, 1]) < 5 / np.sqrt(total)


def test_the_shuffle_needs_no_memory_that_grows_with_the_set() -> None:
    ordinals = shuffled_ordinals(10**11, 100, 10**12, seed=0)
    assert len(np.unique(ordinals)) == 100
    assert ordinals.min() >= 0
    assert ordinals.max() < 10**12


def test_val_keeps_a_random_part_apart(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 40, "b": 40})
    run(source, tmp_path / "out", val=Fraction(1, 4), samples_per_shard=25)
    train, val = (read_manifest(str(tmp_path / "out" / name)) for name in ("train", "val"))
    assert (train.num_samples, val.num_samples) == (60, 20)
    assert not all_samples(train).keys() & all_samples(val).keys()
    labels = [labels[0] for _, labels in all_samples(val).values()]
    assert 3 <= sum(labels) <= 17
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_bytes_per_shard_makes_shards_of_about_that_size(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 40})
    mean = sum(p.stat().st_size for p in source.rglob("*.jpg")) // 40
    run(source, tmp_path / "out", bytes_per_shard=mean * 10 + 100)
    assert [s.num_samples for s in read_manifest(str(tmp_path / "out")).shards] == [10, 10, 10, 10]


@pytest.mark.parametrize("cut", [1, 200, 700])
def test_a_truncated_jpeg_is_left_out_and_listed(tmp_path: Path, cut: int) -> None:
    source = make_folder(tmp_path / "src", {"a": 10})
    victim = source / "a" / "img004.jpg"
    victim.write_bytes(victim.read_bytes()[:-cut])
    result = run(source, tmp_path / "out", max_bad="1/10")
    assert result.num_bad == 1
    assert read_manifest(str(tmp_path / "out")).num_samples == 9
    (line,) = (tmp_path / "out" / "bad.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == "a/img004.jpg"
    assert "truncated" in json.loads(line)["reason"].lower()


@pytest.mark.parametrize(
    "content", [b"", b"no image at all", image_bytes(0, "PNG")[:-30], b"\xff\xd8\xff\xe0" + bytes(300)]
)
def test_what_is_no_image_is_left_out(tmp_path: Path, content: bytes) -> None:
    source = make_folder(tmp_path / "src", {"a": 10})
    (source / "a" / "odd.png").write_bytes(content)
    assert run(source, tmp_path / "out", max_bad="1/10").num_bad == 1


def test_too_many_bad_images_leave_nothing_whole_and_a_higher_limit_goes_on(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 20})
    for i in range(3):
        (source / "a" / f"img{i:03d}.jpg").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"3 of 20 images cannot be read, more than --max-bad 0\.1.*bad\.jsonl"):
        run(source, tmp_path / "out", max_bad="1/10")
    assert not (tmp_path / "out" / "manifest.json").exists()
    assert len((tmp_path / "out" / "bad.jsonl").read_text().splitlines()) == 3
    assert run(source, tmp_path / "out", max_bad="15/100").num_bad == 3
    assert read_manifest(str(tmp_path / "out")).num_samples == 17


def test_a_set_without_one_good_image_is_an_error_at_any_limit(tmp_path: Path) -> None:
    (tmp_path / "src" / "a").mkdir(parents=True)
    (tmp_path / "src" / "a" / "x.jpg").write_bytes(b"x")
    with pytest.raises(DataError, match="not one image could be read"):
        run(tmp_path / "src", tmp_path / "out", max_bad="1")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 2, "empty": 0})
    (source / "empty" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="the class 'empty' has no images"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_missing_empty_and_flat_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere: no such file or directory"):
        run(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: the folder is empty"):
        run(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "empty" / "x.jpg").write_bytes(image_bytes(0))
    with pytest.raises(DataError, match="images lie in it directly"):
        run(tmp_path / "empty", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_link_that_leads_back_is_refused(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 2})
    (source / "a" / "again").symlink_to(source / "a")
    with pytest.raises(DataError, match="a link leads back"):
        run(source, tmp_path / "out")


def test_the_same_packing_again_does_nothing_and_another_is_refused_unless_forced(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 6})
    run(source, tmp_path / "out", samples_per_shard=2)
    before = files(tmp_path / "out")
    assert run(source, tmp_path / "out", samples_per_shard=2).already_there
    with pytest.raises(ConfigError, match=r"\(--samples-per-shard: 3 now, 2 there\)"):
        run(source, tmp_path / "out", samples_per_shard=3)
    (source / "a" / "new.jpg").write_bytes(image_bytes(99))
    with pytest.raises(ConfigError, match=r"\(images in SRC: 7 now, 6 there\)"):
        run(source, tmp_path / "out", samples_per_shard=2)
    assert files(tmp_path / "out") == before
    run(source, tmp_path / "out", samples_per_shard=4, force=True)
    assert [s.num_samples for s in read_manifest(str(tmp_path / "out")).shards] == [4, 3]
    assert not (tmp_path / "out" / "shard-000002.tar").exists()


def test_a_manifest_of_somebody_else_is_not_overwritten(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 2})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "manifest.json").write_text("{}")
    with pytest.raises(ConfigError, match="did not write"):
        run(source, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_text() == "{}"


def test_a_full_disk_is_said_and_leaves_no_half_written_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_folder(tmp_path / "src", {"a": 6})

    sync = os.fsync

    def full(handle: int) -> None:
        if Path(f"/proc/self/fd/{handle}").readlink().name.endswith(".tar.tmp"):
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"disk is full.*start the same command again"):
        run(source, tmp_path / "out", samples_per_shard=2)
    assert not [p for p in (tmp_path / "out").rglob("*") if ".tar" in p.name]
    monkeypatch.undo()
    run(source, tmp_path / "out", samples_per_shard=2)
    assert read_manifest(str(tmp_path / "out")).num_samples == 6


def test_killed_at_random_moments_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 150, "b": 150})
    run(source, tmp_path / "whole", samples_per_shard=4)
    code = (
        "import sys; from vit_dist.cli.data import main;"
        "sys.exit(main(['pack', sys.argv[1], sys.argv[2], '--samples-per-shard', '4', '--workers', '1']))"
    )
    command = [sys.executable, "-c", code, str(source), str(tmp_path / "out")]
    moments = random.Random(5)
    kills = 0
    while True:
        process = subprocess.Popen(command, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        target = len(list((tmp_path / "out" / ".pack").glob("shard-*.json"))) + moments.randint(1, 30)
        while process.poll() is None and time.monotonic() < deadline and kills < 2:
            if len(list((tmp_path / "out" / ".pack").glob("shard-*.json"))) >= target:
                process.kill()
                kills += 1
                break
            time.sleep(0.001)
        said = process.communicate()[1].decode()
        if process.returncode == 0:
            break
        assert process.returncode == -9, said
        assert not (tmp_path / "out" / "manifest.json").exists()
    assert kills
    assert "resuming" in said
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_two_packings_into_one_directory_at_once_are_refused(tmp_path: Path) -> None:
    import fcntl

    source = make_folder(tmp_path / "src", {"a": 2})
    (tmp_path / "out" / ".pack").mkdir(parents=True)
    handle = os.open(tmp_path / "out" / ".pack" / "lock-all", os.O_CREAT | os.O_RDWR)
    fcntl.flock(handle, fcntl.LOCK_EX)
    with pytest.raises(RunError, match="another process is packing into it"):
        run(source, tmp_path / "out")
    os.close(handle)


def test_merging_before_all_parts_are_there_names_the_missing_shards(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 6})
    with pytest.raises(DataError, match="nothing was packed here"):
        merge(str(tmp_path / "out"))
    run(source, tmp_path / "out", samples_per_shard=2, part=(0, 3))
    with pytest.raises(DataError, match=r"2 of 3 shards are not packed yet \(shard-000001, shard-000002\)"):
        merge(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_resizing_reduces_the_side_that_is_named_and_never_enlarges(tmp_path: Path) -> None:
    (tmp_path / "src" / "a").mkdir(parents=True)
    for name, size in (("wide", (80, 40)), ("small", (16, 12))):
        (tmp_path / "src" / "a" / f"{name}.png").write_bytes(image_bytes(1, "PNG", size))
    run(tmp_path / "src", tmp_path / "shorter", images=ImageOptions(resize_shorter=20))
    run(tmp_path / "src", tmp_path / "longer", images=ImageOptions(resize_longer=20, quality=70))
    sizes = {}
    for name in ("shorter", "longer"):
        for key, (content, _) in all_samples(read_manifest(str(tmp_path / name))).items():
            with Image.open(io.BytesIO(content)) as image:
                sizes[name, key] = (image.size, image.format)
    assert sizes == {
        ("shorter", "a/wide"): ((40, 20), "JPEG"),
        ("shorter", "a/small"): ((16, 12), "PNG"),
        ("longer", "a/wide"): ((20, 10), "JPEG"),
        ("longer", "a/small"): ((16, 12), "JPEG"),
    }


def test_odd_names_become_safe_unique_keys(tmp_path: Path) -> None:
    folder = tmp_path / "src" / "class 1.0 é"
    folder.mkdir(parents=True)
    names = ["a.jpg", "a.png", "b.c.JPEG", "ü.jpg", "x" * 120 + ".jpg"]
    for i, name in enumerate(names):
        (folder / name).write_bytes(image_bytes(i))
    run(tmp_path / "src", tmp_path / "out")
    keys = {str(s["__key__"]) for s in read_wds(read_manifest(str(tmp_path / "out")))}
    prefix = "class%201%2E0%20%C3%A9"
    assert {f"{prefix}/a%2Ejpg", f"{prefix}/a%2Epng", f"{prefix}/b%2Ec", f"{prefix}/%C3%BC"} < keys
    (cut,) = (k for k in keys if "~" in k)
    assert len(cut) <= 80
    (told,) = (s["json"] for s in read_wds(read_manifest(str(tmp_path / "out"))) if "json" in s)
    assert json.loads(str(told, "utf-8")) == {"path": f"class 1.0 é/{'x' * 120}.jpg"}  # type: ignore[call-overload]


def test_names_that_are_other_names_without_an_ending_get_keys_of_their_own(tmp_path: Path) -> None:
    names = ["a.jpg", "a.png", "a.png.jpg", "a.png.jpg.gif", "b.jpg", "b.jpg.jpg"]
    (tmp_path / "src" / "c").mkdir(parents=True)
    for i, name in enumerate(names):
        (tmp_path / "src" / "c" / name).write_bytes(image_bytes(i))
    run(tmp_path / "src", tmp_path / "out", samples_per_shard=1)
    assert len(all_samples(read_manifest(str(tmp_path / "out")))) == len(names)


def test_names_that_are_not_utf8_are_packed_but_name_no_class(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "src", {"a": 1}) / "a"
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.jpg")).write_bytes(image_bytes(7))
    run(tmp_path / "src", tmp_path / "out")
    assert all_samples(read_manifest(str(tmp_path / "out")))["a/%FF"][0] == image_bytes(7)
    Path(os.fsdecode(os.fsencode(tmp_path / "src") + b"/\xfe")).mkdir()
    with pytest.raises(DataError, match="name that is not UTF-8"):
        run(tmp_path / "src", tmp_path / "new")


def test_safe_keys_differ_where_texts_differ() -> None:
    texts = ["a", "a.b", "a%2Eb", "a b", "__x", "%5F_x", "_x", "ä", "x" * 80, "x" * 81, "x" * 82, "é" * 40]
    keys = [safe_key(t) for t in texts]
    assert len(set(keys)) == len(texts)
    assert all(len(k) <= 80 and k.isascii() and "." not in k for k in keys)


def test_a_catalogue_gives_back_every_item(tmp_path: Path) -> None:
    items = [
        Item("k0", "u", -1, 5, (1,)),
        Item("k1", "ü", 7, 9, (1, 2), (0.5, 0.25), {"a": [1]}, "row 3"),
        Item("k2", "u", -1, -1, ()),
    ]
    listing = Listing.write(tmp_path, items)
    assert [listing[i] for i in range(3)] == items
    again = Listing.reopen(listing.describe())
    assert again[1] == items[1]
    assert listing.num_bytes == 14
    listing.close()
    again.close()


def write_idx(folder: Path, part: str, images: np.ndarray, labels: list[int], packed: bool = False) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shape = b"".join(n.to_bytes(4, "big") for n in images.shape)
    contents = {
        f"{part}-images-idx3-ubyte": b"\0\0\x08\x03" + shape + images.tobytes(),
        f"{part}-labels-idx1-ubyte": b"\0\0\x08\x01" + len(labels).to_bytes(4, "big") + bytes(labels),
    }
    for name, content in contents.items():
        (folder / (name + ".gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_become_png_with_the_same_pixels(tmp_path: Path, packed: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 5, 4), dtype=np.uint8)
    write_idx(tmp_path / "src", "train", images, [2, 0, 1, 1, 2, 0], packed)
    run(tmp_path / "src", tmp_path / "out")
    manifest = read_manifest(str(tmp_path / "out"))
    found = all_samples(manifest)
    assert manifest.num_classes == 3
    for i, label in enumerate([2, 0, 1, 1, 2, 0]):
        content, labels = found[f"train-{i:05d}"]
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(content))), images[i])
        assert labels == [label]


def test_idx_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    write_idx(tmp_path / "labels", "train", images, [0, 1])
    with pytest.raises(DataError, match=r"3 images.*2 labels"):
        run(tmp_path / "labels", tmp_path / "out")
    write_idx(tmp_path / "short", "train", images, [0, 1, 1])
    file = tmp_path / "short" / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match="45 bytes of pixels, but its header says 3 images of 4 x 4"):
        run(tmp_path / "short", tmp_path / "out")
    write_idx(tmp_path / "gz", "train", images, [0, 1, 1], packed=True)
    file = tmp_path / "gz" / "train-images-idx3-ubyte.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(DataError, match="damaged"):
        run(tmp_path / "gz", tmp_path / "out")
    write_idx(tmp_path / "two", "train", images, [0, 1, 1])
    write_idx(tmp_path / "two", "t10k", images, [0, 1, 1])
    with pytest.raises(ConfigError, match="--split-name train"):
        run(tmp_path / "two", tmp_path / "out")


def test_the_embedded_images_are_what_their_readme_says() -> None:
    for part, per_class in (("train", 800), ("test", 200)):
        from vit_dist.data.pack.idx import _read_idx

        name = "train" if part == "train" else "t10k"
        shape, labels = _read_idx(FASHION / f"{name}-labels-idx1-ubyte.gz", 1)
        assert shape == [per_class * 10]
        assert collections.Counter(labels) == dict.fromkeys(range(10), per_class)
    assert "Zalando" in (FASHION / "LICENSE").read_text()
    assert len((FASHION / "classes.txt").read_text().splitlines()) == 10


def test_a_shard_that_vanishes_after_its_done_marker_is_named_when_it_is_read(tmp_path: Path) -> None:
    source = make_folder(tmp_path / "src", {"a": 4})
    run(source, tmp_path / "out", samples_per_shard=2)
    (tmp_path / "out" / "shard-000001.idx.npz").unlink()
    with pytest.raises(DataError, match=r"shard-000001\.idx\.npz: no such file"):
        read_manifest(str(tmp_path / "out")).read_index(1)


def test_an_index_knows_where_the_members_of_each_sample_lie(tmp_path: Path) -> None:
    make_folder(tmp_path / "src", {"a": 5})
    run(tmp_path / "src", tmp_path / "out")
    index: ShardIndex = read_manifest(str(tmp_path / "out")).read_index(0)
    tar = (tmp_path / "out" / "shard-000000.tar").read_bytes()
    for i in range(5):
        begin, end = int(index.offsets[i]), int(index.offsets[i + 1])
        assert tar[begin:].startswith(f"{index.key(i)}.cls".encode())
        assert (end - begin) % 512 == 0
        image = int(index.image_offsets[i])
        assert tar[image : image + 2] == b"\xff\xd8"
        assert tar[image - 512 :].startswith(f"{index.key(i)}.jpg".encode())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_upright_photos_have_the_pixels_that_their_exif_asks_for(orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth = Image.linear_gradient("L").resize((40, 24))
    smooth.paste(0, (0, 0, 8, 8))
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=95, exif=exif)
    content = buffer.getvalue()
    kept, _ = check_image(content, ImageOptions())
    assert kept == content
    upright, extension = check_image(content, ImageOptions(upright=True))
    assert extension == "jpg"
    assert (upright == content) == (orientation == 1)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    found = Image.open(io.BytesIO(upright))
    assert found.getexif().get(0x0112, 1) == 1
    difference = np.abs(np.asarray(found.convert("L"), int) - np.asarray(expected.convert("L"), int))
    assert difference.mean() < 3
    small, _ = check_image(content, ImageOptions(upright=True, resize_shorter=12))
    width, height = expected.size
    assert Image.open(io.BytesIO(small)).size == (width // 2, height // 2)
