"""Published sets in their true forms are recognised and packed, with the labels that their makers give them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import published
from tests.shards import noise_bytes, write_tar
from vit_dist.cli.data import main
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import write_bytes
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.data.pack.choose import open_source
from vit_dist.data.pack.fetch import Fetcher
from vit_dist.data.pack.sources import SourceOptions


def opened(
    src: Path | str, tmp_path: Path, split: str = "", kind: str = "", **options: object
) -> tuple[list[tuple[str, tuple[int, ...], bytes]], tuple[str, ...], list[str]]:
    """Key, labels and bytes of each item; names of the classes; what is told."""
    asked = SourceOptions(kind=kind, split_name=split, **options)  # type: ignore[arg-type]
    source = open_source(str(src), tmp_path / "scratch", asked)
    fetched = list(Fetcher(source.base).fetch_all(source.items()))
    assert all(isinstance(content, bytes) for _, content in fetched)
    return [(item.key, item.labels, bytes(content)) for item, content in fetched], source.classes, source.notes  # type: ignore[arg-type]


def packed(src: Path, dest: Path, *words: str) -> ShardManifest:
    assert main(["pack", str(src), str(dest), "--workers", "1", *words]) == 0
    return read_manifest(str(dest))


def samples(manifest: ShardManifest) -> dict[str, tuple[list[int], np.ndarray]]:
    """Labels and pixels by key, read by Python's tarfile and Pillow."""
    found: dict[str, tuple[list[int], np.ndarray]] = {}
    for shard in range(len(manifest.shards)):
        members: dict[str, dict[str, bytes]] = {}
        with tarfile.open(manifest.shard_url(shard)) as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                content = tar.extractfile(member)
                assert content is not None
                members.setdefault(key, {})[extension] = content.read()
        for key, parts in members.items():
            labels = [int(parts["cls"])] if "cls" in parts else json.loads(parts["json"])["labels"]
            image = next(content for name, content in parts.items() if name in {"jpg", "png"})
            found[key] = (labels, np.asarray(Image.open(io.BytesIO(image))))
    return found


def test_the_validation_set_has_the_numbers_of_the_training_sets_classes(tmp_path: Path) -> None:
    src = published.imagenet(tmp_path / "in")
    train, val = (packed(src, tmp_path / split, "--split-name", split) for split in ("train", "val"))
    assert train.classes == val.classes == published.WNIDS
    assert train.num_samples == 2 + 3 + 4 + 5
    numbers = {wnid: number for number, wnid in enumerate(published.WNIDS)}
    assert {key: labels for key, (labels, _) in samples(train).items()} == {
        f"{wnid}/{wnid}_{i}": [numbers[wnid]]
        for k, wnid in enumerate(reversed(published.WNIDS))
        for i in range(1, 3 + k)
    }
    expected = {
        f"ILSVRC2012_val_{i:08d}": [numbers[published.SYNSETS[number][0]]]
        for i, number in enumerate(published.TRUTH, 1)
    }
    assert {key: labels for key, (labels, _) in samples(val).items()} == expected
    # The rule: as a folder with a directory a class, packed by another reader.
    for number, wnid in enumerate(reversed(published.WNIDS)):
        (tmp_path / "folder" / wnid).mkdir(parents=True)
        (tmp_path / "folder" / wnid / f"{number}.JPEG").write_bytes(noise_bytes(number, "JPEG"))
    assert opened(tmp_path / "folder", tmp_path)[1] == train.classes


@pytest.mark.parametrize("truth", ["devkit unpacked", "map_clsloc", "wnids", "kaggle"])
def test_the_ground_truth_is_found_in_any_of_its_forms_and_images_in_a_folder_too(truth: str, tmp_path: Path) -> None:
    src, wnids = tmp_path / "in", [published.SYNSETS[number][0] for number in published.TRUTH]
    (src / "val").mkdir(parents=True)
    for name, content in published.val_images():
        (src / "val" / name).write_bytes(content)
    data, text = src / "ILSVRC2012_devkit_t12" / "data", "ILSVRC2012_validation_ground_truth.txt"
    data.mkdir(parents=True)
    ids = "".join(f"{number}\n" for number in published.TRUTH)
    if truth == "devkit unpacked":
        (data / "meta.mat").write_bytes(published.meta_mat())
        (data / text).write_text(ids)
    elif truth == "map_clsloc":
        table = (f"{wnid} {number} {words.replace(' ', '_')}\n" for number, (wnid, words) in published.SYNSETS.items())
        (src / "map_clsloc.txt").write_text("".join(table))
        (src / text).write_text(ids)
    elif truth == "wnids":
        (src / text).write_text("\n".join(wnids))
    else:
        rows = (f"ILSVRC2012_val_{i:08d},{wnid} 1 2 3 4 {wnid} 5 6 7 8\n" for i, wnid in enumerate(wnids, 1))
        (src / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
        (src / "LOC_synset_mapping.txt").write_text("".join(f"{wnid} words of it\n" for wnid in published.WNIDS))
    items, classes, _ = opened(src, tmp_path, "val", "imagenet")
    assert classes == published.WNIDS
    assert [labels for _, labels, _ in items] == [(published.WNIDS.index(wnid),) for wnid in wnids]
    assert [content for _, _, content in items] == [content for _, content in published.val_images()]


def test_a_list_of_classes_says_another_order_for_both(tmp_path: Path) -> None:
    src, order = published.imagenet(tmp_path / "in"), tuple(reversed(published.WNIDS))
    val, classes, _ = opened(src, tmp_path, "val", classes=order)
    train = opened(src / "ILSVRC2012_img_train.tar", tmp_path, classes=order)
    assert classes == train[1] == order
    assert val[0][1] == (order.index("n02119789"),)
    assert {(key.partition("/")[0], labels) for key, labels, _ in train[0]} == {(w, (i,)) for i, w in enumerate(order)}


def test_real_has_several_labels_an_image_and_images_without_one_are_left_out_and_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    src = published.imagenet(tmp_path / "in", train=False)
    (src / "real.json").write_text(json.dumps([[0], [3, 1], [], [2], [], [1]]))
    manifest = packed(src, tmp_path / "real", "--format", "imagenet-real")
    assert manifest.classes == published.WNIDS
    assert manifest.max_labels == 2
    found = {key[-1]: labels for key, (labels, _) in samples(manifest).items()}
    assert found == {"1": [0], "2": [3, 1], "4": [2], "6": [1]}
    told = capsys.readouterr().err
    assert "left out: ILSVRC2012_val_00000003: real.json gives it no label" in told
    assert "left out 2 samples without an image or a label; 4 are packed" in told


def test_cifar_10_is_packed_to_the_same_bytes_from_all_its_forms(tmp_path: Path) -> None:
    prints = set()
    for form in ("python2", "python3", "binary"):
        name = "cifar-10-binary.tar.gz" if form == "binary" else "cifar-10-python.tar.gz"
        archive = tmp_path / form / name
        archive.parent.mkdir()
        archive.write_bytes(published.tar_bytes(published.cifar10(form), "w:gz"))
        train = packed(archive, tmp_path / form / "train", "--split-name", "train")
        prints.add(train.fingerprint)
        unpacked = tmp_path / form / "unpacked"
        with tarfile.open(archive) as tar:
            tar.extractall(unpacked, filter="data")
        for src in (unpacked, next(unpacked.iterdir())):
            assert opened(src, tmp_path, "test")[0] == opened(archive, tmp_path, "test")[0]
    assert len(prints) == 1
    assert train.classes == published.CIFAR10
    batches = [batch for name, batch in published.cifar10_batches().items() if name != "test_batch"]
    found = samples(train)
    assert [found[key][0] for key in sorted(found)] == [[label] for _, labels in batches for label in labels]
    expected = np.concatenate([pixels for pixels, _ in batches]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(np.stack([found[key][1] for key in sorted(found)]), expected)


@pytest.mark.parametrize("form", ["python", "binary"])
def test_cifar_100_has_fine_labels_and_coarse_ones_where_they_are_asked_for(form: str, tmp_path: Path) -> None:
    archive = tmp_path / f"cifar-100-{form}.tar.gz"
    archive.write_bytes(published.tar_bytes(published.cifar100(form), "w:gz"))
    fine, names, _ = opened(archive, tmp_path, "train")
    assert names == published.FINE
    assert [labels for _, labels, _ in fine] == [(0,), (3,), (1,), (2,), (1,)]
    assert [content for _, _, content in fine] == [row.tobytes() for row in published.cifar_pixels(7, 5)]
    coarse, names, _ = opened(archive, tmp_path, "test", label_field="coarse")
    assert names == published.COARSE
    assert [labels for _, labels, _ in coarse] == [(1,), (0,)]


@pytest.mark.parametrize(("split", "count"), [("trainval", 9), ("train", 9), ("test", 3), ("all", 12)])
def test_pets_have_the_lists_numbers_and_the_files_names(split: str, count: int, tmp_path: Path) -> None:
    src = published.pets(tmp_path / "in")
    items, names, notes = opened(src, tmp_path, split)
    assert names == tuple(published.PETS)
    assert len(items) == count
    assert all(names[labels[0]] == key.rpartition("_")[0] for key, labels, _ in items)
    assert f"{count} images of 3 classes" in notes[0]
    for archive in src.iterdir():
        with tarfile.open(archive) as tar:
            tar.extractall(tmp_path / "unpacked", filter="data")
    assert opened(tmp_path / "unpacked", tmp_path, split)[0] == items


@pytest.mark.parametrize(
    ("split", "numbers"),
    [("train", [1, 4]), ("val", [6]), ("test", [2, 3, 5, 7]), ("trainval", [1, 4, 6]), ("all", [1, 4, 6, 2, 3, 5, 7])],
)
def test_flowers_have_matlabs_labels_less_one_and_its_splits(
    split: str, numbers: Sequence[int], tmp_path: Path
) -> None:
    items, _, _ = opened(published.flowers(tmp_path / "in"), tmp_path, split)
    assert [key for key, _, _ in items] == [f"image_{number:05d}" for number in numbers]
    assert [labels for _, labels, _ in items] == [(published.FLOWERS[number - 1] - 1,) for number in numbers]
    assert [content for _, _, content in items] == [noise_bytes(number, "JPEG") for number in numbers]


def test_a_list_of_vtab_is_a_split_and_all_lists_have_the_same_classes(tmp_path: Path) -> None:
    src = published.vtab(tmp_path / "in")
    manifest = packed(src, tmp_path / "train", "--split-name", "train800val200")
    assert (manifest.num_samples, manifest.num_classes) == (5, 4), "class 3 is in the test list alone"
    items, _, notes = opened(src, tmp_path, "train")
    assert [labels for _, labels, _ in items] == [(0,), (1,), (2,), (0,), (1,)]
    assert "5 images; VTAB-1k's list has 1,000" in notes[1]
    assert len(opened(src, tmp_path, "val200")[0]) == 1


@pytest.mark.s3
def test_archives_on_a_store_give_the_same_images_as_here(tmp_path: Path, s3: str) -> None:
    src = published.imagenet(tmp_path / "in")
    (src / "cifar-10-python.tar.gz").write_bytes(published.tar_bytes(published.cifar10("python2"), "w:gz"))
    for path in src.iterdir():
        write_bytes(f"{s3}/published/{path.name}", path.read_bytes())
    for kind, split in (("imagenet", "train"), ("imagenet", "val"), ("cifar", "test")):
        there, here = (opened(place, tmp_path, split, kind)[:2] for place in (f"{s3}/published", src))
        assert there == here
    assert opened(f"{s3}/published/cifar-10-python.tar.gz", tmp_path, "test")[:2] == here


def test_a_training_set_is_read_where_it_lies(tmp_path: Path) -> None:
    src = published.imagenet(tmp_path / "in", val=False)
    items, _, notes = opened(src / "ILSVRC2012_img_train.tar", tmp_path)
    assert len(items) == 14
    assert not list((tmp_path / "scratch").glob("*train*")), "nothing is unpacked"
    assert "read as train of ILSVRC2012, 4 classes in the order of their WordNet ids: 0 is n01440764" in notes[0]


def test_plain_folders_and_tars_are_taken_for_no_published_set(tmp_path: Path) -> None:
    for name in ("images", "annotations", "cat"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.jpg").write_bytes(noise_bytes(0, "JPEG"))
    assert opened(tmp_path / "in", tmp_path)[1] == ("annotations", "cat", "images")
    write_tar(tmp_path / "n01440764-shards.tar", [("a.jpg", noise_bytes(0, "JPEG")), ("a.cls", b"1")])
    source = open_source(str(tmp_path / "n01440764-shards.tar"), tmp_path)
    assert source.kind == "tar"


def test_a_folder_of_several_sets_is_not_guessed_at(tmp_path: Path) -> None:
    src = published.flowers(tmp_path / "in")
    (src / "cifar-10-python.tar.gz").write_bytes(published.tar_bytes(published.cifar10("python2"), "w:gz"))
    with pytest.raises(ConfigError, match=r"holds cifar and flowers; --format says which"):
        opened(src, tmp_path, "train")
    assert len(opened(src, tmp_path, "train", "flowers")[0]) == 2
    with pytest.raises(ConfigError, match=r"CIFAR-10 \(python\) has two sets; choose one with --split-name train or"):
        opened(src, tmp_path, "", "cifar")
