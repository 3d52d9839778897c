"""Published sets that are damaged, incomplete or do not fit together are refused; what failed is named."""

from __future__ import annotations

import json
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from tests import published
from tests.shards import noise_bytes, write_tar
from vit_dist.core.errors import VitDistError
from vit_dist.data.pack.choose import open_source
from vit_dist.data.pack.sources import SourceOptions


def refused(src: Path, tmp_path: Path, split: str = "", kind: str = "", classes: tuple[str, ...] = ()) -> str:
    """What packing says of it."""
    with pytest.raises(VitDistError) as error:
        list(open_source(str(src), tmp_path / "scratch", SourceOptions(kind, split, classes=classes)).items())
    return str(error.value)


def without_image(src: Path) -> None:
    write_tar(src / "ILSVRC2012_img_val.tar", [one for one in published.val_images() if "3.JPEG" not in one[0]])


def one_image_more(src: Path) -> None:
    write_tar(src / "ILSVRC2012_img_val.tar", published.val_images(7))


def label_beyond(src: Path) -> None:
    (src / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(published.devkit([1, 3, 2, 5, 4, 1]))


def no_devkit(src: Path) -> None:
    (src / "ILSVRC2012_devkit_t12.tar.gz").unlink()


def truth_without_table(src: Path) -> None:
    no_devkit(src)
    (src / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n3\n2\n2\n4\n1\n")


def damaged_table(src: Path) -> None:
    truth_without_table(src)
    (src / "meta.mat").write_bytes(published.meta_mat()[:300])


def cut_devkit(src: Path) -> None:
    path = src / "ILSVRC2012_devkit_t12.tar.gz"
    path.write_bytes(path.read_bytes()[:-200])


def cut_val(src: Path) -> None:
    path = src / "ILSVRC2012_img_val.tar"
    os.truncate(path, 4000)


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (without_image, r"ILSVRC2012_img_val\.tar: 1 image of 6 missing: ILSVRC2012_val_00000003\.JPEG"),
        (one_image_more, r"7 images, but .*ground_truth\.txt has 6 labels: ILSVRC2012_val_00000007\.JPEG has none"),
        (label_beyond, r"ground_truth\.txt:4: label '5' is out of range: .*meta\.mat has the 4 classes 1 to 4"),
        (no_devkit, r"ILSVRC2012_validation_ground_truth\.txt is missing, which says the images' classes"),
        (truth_without_table, r"ground_truth\.txt: its labels are the devkit's numbers.*put meta\.mat of the devkit"),
        (damaged_table, r"meta\.mat: no file of MATLAB, or damaged"),
        (cut_devkit, r"ILSVRC2012_devkit_t12\.tar\.gz: damaged: .*fetch it again"),
        (cut_val, r"ILSVRC2012_img_val\.tar: the tar has a member .* truncated"),
    ],
)
def test_a_validation_set_that_is_not_whole(break_it: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    src = published.imagenet(tmp_path / "in", train=False)
    break_it(src)
    assert re.search(said, refused(src, tmp_path, "val"))


def test_a_training_set_that_is_not_whole_and_splits_that_are_not_there(tmp_path: Path) -> None:
    src = published.imagenet(tmp_path / "in", val=False)
    assert "ILSVRC2012_img_val.tar is missing" in refused(src, tmp_path, "val")
    assert "holds train and val of ILSVRC2012" in refused(src, tmp_path, "test")
    both = published.imagenet(tmp_path / "both")
    assert "choose one with --split-name train or val" in refused(both, tmp_path)
    known = (*published.WNIDS, "n09999999")
    assert "n09999999.tar is missing, of 5 classes" in refused(src, tmp_path, classes=known)
    assert "n02119789 is no class of the list" in refused(src, tmp_path, classes=published.WNIDS[:-1])
    tar = src / "ILSVRC2012_img_train.tar"
    images = published.tar_bytes([("a.JPEG", noise_bytes(0, "JPEG"))])
    write_tar(tar, [(f"{published.WNIDS[0]}.tar", images), (f"{published.WNIDS[1]}.tar", images[:700])])
    (src / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    assert re.search(r"n01443537\.tar: the tar .*truncated", refused(tar, tmp_path))
    write_tar(tar, [(f"{published.WNIDS[0]}.tar", published.tar_bytes([("notes.txt", b"")]))])
    assert "n01440764.tar has no images" in refused(tar, tmp_path)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[0]] * 5, "6 images, but .*real.json has 5 labels: ILSVRC2012_val_00000006.JPEG has none"),
        ([[0]] * 7, "1 image of 7 missing: ILSVRC2012_val_00000007.JPEG"),
        ([[0]] * 5 + [[1, 4]], "image 6: label 4 is out of range: there are 4 classes, from 0"),
        ([[0]] * 5 + [[1, 1]], r"image 6: \[1, 1\] is no list of labels, each once"),
        ([[0]] * 5 + [7], "image 6: 7 is no list of labels"),
        ({"a": 1}, "expected a list with a list of labels for each image"),
    ],
)
def test_reals_labels_that_do_not_fit(labels: object, said: str, tmp_path: Path) -> None:
    src = published.imagenet(tmp_path / "in", train=False)
    (src / "real.json").write_text(json.dumps(labels))
    assert re.search(said, refused(src, tmp_path, kind="imagenet-real"))
    (src / "real.json").unlink()
    assert "real.json is missing" in refused(src, tmp_path, kind="imagenet-real")


class Evil:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_that_runs_something_is_refused_and_does_not_run(tmp_path: Path) -> None:
    members = dict(published.cifar10("python2"))
    evil = {"data": published.cifar_pixels(0, 2), "labels": [0, 1], "more": Evil(tmp_path / "ran")}
    members["cifar-10-batches-py/data_batch_2"] = pickle.dumps(evil, protocol=2)
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(published.tar_bytes(list(members.items()), "w:gz"))
    assert re.search(
        r"data_batch_2: it wants to run \w+\.mkdir, which no file of CIFAR does", refused(archive, tmp_path, "train")
    )
    assert not (tmp_path / "ran").exists()
    pickle.loads(members["cifar-10-batches-py/data_batch_2"])
    assert (tmp_path / "ran").exists(), "it would have run"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("data_batch_3", None, r"data_batch_3 is missing, a file of CIFAR-10 \(python\)"),
        ("batches.meta", None, r"batches\.meta is missing"),
        ("data_batch_3", {"labels": [0, 1, 2]}, r"data_batch_3: no 'data' and 'labels' in it"),
        ("data_batch_3", {"labels": [0, 3], "data": 2}, r"data_batch_3: image 1: label 3 is out of range; there are 3"),
        ("data_batch_3", {"labels": [0, 1, 1], "data": 2}, r"3 labels, but data of the shape \(2, 3072\)"),
        ("data_batch_3", b"\x80\x02}q\x00(U\x05da", r"data_batch_3: damaged: no whole pickle"),
        ("batches.meta", {"other": [1]}, r"batches\.meta: no list 'label_names' in it"),
    ],
)
def test_a_cifar_that_is_not_whole(name: str, content: object, said: str, tmp_path: Path) -> None:
    members = dict(published.cifar10("python2"))
    if content is None:
        del members[f"cifar-10-batches-py/{name}"]
    else:
        if isinstance(content, dict) and "data" in content:
            content["data"] = published.cifar_pixels(0, content["data"])
        raw = content if isinstance(content, bytes) else published.python2_pickle(content)  # type: ignore[arg-type]
        members[f"cifar-10-batches-py/{name}"] = raw
    archive = tmp_path / "cifar-10-python.tar.gz"
    archive.write_bytes(published.tar_bytes(list(members.items()), "w:gz"))
    assert re.search(said, refused(archive, tmp_path, "train"))


def test_a_cut_archive_records_and_splits_of_cifar(tmp_path: Path) -> None:
    archive = tmp_path / "cifar-10-binary.tar.gz"
    whole = published.tar_bytes(published.cifar10("binary"), "w:gz")
    archive.write_bytes(whole[:-2000])
    assert re.search(r"cifar-10-binary\.tar\.gz: damaged: .*fetch it again", refused(archive, tmp_path, "train"))
    members = dict(published.cifar10("binary"))
    members["cifar-10-batches-bin/data_batch_1.bin"] += b"12"
    archive.write_bytes(published.tar_bytes(list(members.items()), "w:gz"))
    assert "data_batch_1.bin: 6,148 bytes are no whole number of records of 3,073" in refused(
        archive, tmp_path, "train"
    )
    assert "choose one with --split-name train or --split-name test" in refused(archive, tmp_path)
    assert "CIFAR-10 (binary) has train and test" in refused(archive, tmp_path, "val")
    archive.write_bytes(b"no gzip")
    assert "damaged" in refused(archive, tmp_path, "test")


def test_pets_and_flowers_that_are_not_whole(tmp_path: Path) -> None:
    pets = published.pets(tmp_path / "pets")
    assert "choose one with --split-name: trainval, test, all" in refused(pets, tmp_path)
    lists = "annotations/trainval.txt", "annotations/test.txt"
    for text, said in (
        ("Abyssinian_9 1 1 1\n", "1 image of .* missing: Abyssinian_9.jpg; fetch images.tar.gz again"),
        ("Abyssinian_1 0 1 1\n", "trainval.txt:1: label '0' is out of range: classes begin at 1"),
        ("Abyssinian_1 1 1 1\nBengal_1 1 1 1\n", "trainval.txt: class 1 is 'Abyssinian' and 'Bengal'"),
        ("Abyssinian_1 3 1 1\n", "classes 1 to 3, but 1, 2: a label is out of range"),
        ("Abyssinian 1\n", "trainval.txt:1: expected 'NAME_7 CLASS SPECIES BREED'"),
    ):
        texts = [(lists[0], text.encode()), (lists[1], b"Bengal_1 1 1 1")]
        (pets / "annotations.tar.gz").write_bytes(published.tar_bytes(texts, "w:gz"))
        assert re.search(said, refused(pets, tmp_path, "trainval"))
    (pets / "annotations.tar.gz").unlink()
    assert "trainval.txt is missing, which is in annotations.tar.gz" in refused(pets, tmp_path, "trainval", "pets")

    for number, (labels, splits, said) in enumerate(
        [
            ([2, 1, 3, 1, 2, 3], published.FLOWER_SPLITS, "7 images, but .*imagelabels.mat has 6 labels"),
            ([2, 1, 3, 0, 2, 3, 1], published.FLOWER_SPLITS, "image 4: label 0 is out of range: 1 to 3"),
            (published.FLOWERS, {**published.FLOWER_SPLITS, "trnid": [1, 8]}, "image 8, but .*imagelabels.mat has 7"),
            ([*published.FLOWERS, 1], {**published.FLOWER_SPLITS, "trnid": [8]}, "missing: image_00008.jpg"),
        ]
    ):
        src = published.flowers(tmp_path / f"flowers-{number}", labels, splits)
        assert re.search(said, refused(src, tmp_path, "train"))
    (src / "setid.mat").unlink()
    assert "setid.mat is missing" in refused(src, tmp_path, "train", "flowers")
    savemat(src / "setid.mat", {"trnid": np.array([[1.5]])})
    assert "'trnid' is no list of whole numbers" in refused(src, tmp_path, "train")
    savemat(src / "setid.mat", {"other": np.array([[1]])})
    assert "has no variable 'trnid'" in refused(src, tmp_path, "train")


def test_lists_of_vtab_that_do_not_fit(tmp_path: Path) -> None:
    src = published.vtab(tmp_path / "in")
    assert "choose one with --split-name: test, train800, train800val200, val200" in refused(src, tmp_path)
    assert "no list of this name" in refused(src, tmp_path, "train900")
    assert re.search(
        r"test\.txt:3: label 2 is out of range: 2 classes", refused(src, tmp_path, "test", classes=("a", "b"))
    )
    (src / "images" / "test" / "000002.jpg").unlink()
    assert re.search(r"1 image of .*test\.txt missing: images/test/000002\.jpg", refused(src, tmp_path, "test"))
    (src / "test.txt").write_text("images/test/000001.jpg\n")
    assert re.search(r"test\.txt:1: expected 'images/", refused(src, tmp_path, "test"))
