"""What `data pack` says of images that it packs more than once: under several labels, or in train and in val."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.shards import noise_bytes
from vit_dist.cli.data.pack import main as pack_main
from vit_dist.cli.data.pack import merge_main
from vit_dist.core.errors import DataError
from vit_dist.core.small_files import DamagedError
from vit_dist.data.dedup import copies_within
from vit_dist.data.manifest import read_manifest
from vit_dist.data.pack import shards
from vit_dist.data.pack.shards import DoneMarker


def folder(root: Path, **images: int) -> Path:
    """A file for each name (`cat_a` is cat/a.png), with the picture of this number."""
    for name, number in images.items():
        path = root / f"{name.replace('_', '/')}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise_bytes(number))
    return root


def pack(source: Path, dest: Path, *options: str) -> None:
    assert pack_main([str(source), str(dest), "--workers", "1", *options]) == 0


def listed(dest: Path) -> list[set[str]]:
    path = dest / "copies.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{image["key"] for image in json.loads(line)["images"]} for line in lines]


@pytest.mark.parametrize("options", [(), ("--samples-per-shard", "1"), ("--samples-per-shard", "2", "--seed", "5")])
@pytest.mark.parametrize(
    ("images", "files"),
    [
        ({"cat_a": 1, "dog_b": 2}, []),
        ({"cat_a": 1, "cat_b": 1, "dog_c": 2}, []),
        ({"cat_a": 1, "dog_b": 1}, [{"cat/a", "dog/b"}]),
        ({"cat_a": 1, "cat_b": 1, "dog_c": 1, "dog_d": 2}, [{"cat/a", "cat/b", "dog/c"}]),
        ({"cat_a": 1, "dog_b": 1, "eel_c": 1}, [{"cat/a", "dog/b", "eel/c"}]),
        ({"cat_a": 1, "dog_b": 1, "cat_c": 2, "eel_d": 2, "eel_e": 3}, [{"cat/a", "dog/b"}, {"cat/c", "eel/d"}]),
    ],
)
def test_an_image_under_several_labels_is_told_and_listed_as_dedup_finds_it(
    images: dict[str, int],
    files: list[set[str]],
    options: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pack(folder(tmp_path / "src", **images), tmp_path / "out", *options)
    said = capsys.readouterr().err
    assert sorted(listed(tmp_path / "out"), key=sorted) == files
    assert sum(n > 1 for n in copies_within(read_manifest(str(tmp_path / "out"))).num_labels) == len(files)
    if not files:
        assert "byte for byte" not in said
        return
    told = "1 image is" if len(files) == 1 else f"{len(files)} images are"
    first = re.search(rf"{told} there more than once with different labels, byte for byte: (.*) and (.*?)[;,]", said)
    assert first is not None
    keys = {one.partition(" (")[0] for one in first.groups()}
    assert any(keys <= file for file in files)
    # The class that each is packed under stands behind its key.
    assert all(one == f"{one.split('/')[0]}/{one[4]} ({one.split('/')[0]})" for one in first.groups())


def test_the_same_image_in_train_and_val_is_told_whatever_its_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "src", **{f"cat_{i}": 0 for i in range(8)}, dog_1=1)
    pack(source, tmp_path / "out", "--val", "4")
    keys = read_manifest(str(tmp_path / "out" / "val")).read_index(0).keys()
    num_val = sum(key.startswith("cat") for key in keys)
    said = capsys.readouterr().err
    told = "1 image of val is" if num_val == 1 else f"{num_val} images of val are"
    assert f"{told} in train too, byte for byte" in said
    assert "different labels" not in said
    command = re.search(r"`vit-dist (data dedup .*?)`", said)
    assert command is not None
    from vit_dist.cli.main import main

    assert main(command.group(1).split()) == 0
    assert read_manifest(str(tmp_path / "out" / "train" / "dedup.json")).num_samples <= 1


def test_parts_are_compared_when_they_are_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "src", cat_a=1, cat_b=2, dog_c=1, dog_d=3)
    for part in ("1/2", "2/2"):
        pack(source, tmp_path / "out", "--part", part, "--samples-per-shard", "1")
    assert "byte for byte" not in capsys.readouterr().err
    assert merge_main([str(tmp_path / "out")]) == 0
    assert "1 image is there more than once with different labels" in capsys.readouterr().err
    assert listed(tmp_path / "out") == [{"cat/a", "dog/c"}]


def test_a_packing_with_too_many_images_to_compare_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shards, "MOST_IMAGES", 3)
    pack(folder(tmp_path / "three", cat_a=1, dog_b=1, dog_c=2), tmp_path / "out3")
    assert "different labels" in capsys.readouterr().err
    pack(folder(tmp_path / "four", cat_a=1, dog_b=1, dog_c=2, dog_d=3), tmp_path / "out4")
    assert "was not looked for; `vit-dist data dedup SET` does" in capsys.readouterr().err


def test_packing_anew_forgets_the_list_of_before(tmp_path: Path) -> None:
    pack(folder(tmp_path / "src", cat_a=1, dog_b=1), tmp_path / "out")
    (tmp_path / "src" / "dog" / "b.png").write_bytes(noise_bytes(9))
    pack(tmp_path / "src", tmp_path / "out", "--force")
    assert not (tmp_path / "out" / "copies.jsonl").exists()


@pytest.mark.parametrize("value", [5, "x", "AAAA", "=" * 24, ["AAAA"], None])
def test_a_done_marker_with_other_digests_is_damaged(value: object) -> None:
    digits = {"checksum": "0" * 32, "index_checksum": "0" * 32}
    shard = {"url": "a.tar", "num_samples": 1, "num_bytes": 2048, "index_url": "a.idx.npz", **digits}
    raw = {"shard": shard, "bad": [], "max_labels": 1, "max_label": 0}
    assert DoneMarker.decode(json.dumps(raw).encode()).digests == ""
    with pytest.raises((DamagedError, DataError), match="two digests of each sample"):
        DoneMarker.decode(json.dumps({**raw, "digests": value}).encode())
