"""Splits are recognised by the usual names: one is chosen, or several are refused; a class called 'test' is a class."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from vit_dist.cli import data as cli
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.data.pack.choose import open_source
from vit_dist.data.pack.sources import Source, SourceOptions
from vit_dist.data.splits import choose_files, split_of_file, split_of_folder
from vit_dist.data.tars import find_tars


def image() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


def folders(root: Path, *names: str) -> str:
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / "0.png").write_bytes(image())
    return str(root)


def opened(url: str, tmp_path: Path, split: str = "", kind: str = "") -> Source:
    return open_source(url, tmp_path / "scratch", SourceOptions(kind=kind, split_name=split))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"), ("Training", "train"), ("train2017", "train"), ("training_set", "train"),
        ("val", "validation"), ("valid", "validation"), ("validation", "validation"), ("dev", "validation"),
        ("split=test", "test"), ("TEST", "test"), ("eval", "test"), ("test_images", "test"),
        ("val-split", "validation"),
        ("tests", ""), ("bullet train", ""), ("trainer", ""), ("valley", ""), ("evalyn", ""), ("", ""),
    ],
)  # fmt: skip
def test_names_of_folders(name: str, split: str) -> None:
    assert split_of_folder(name) == split


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("data/train-00000-of-00002.parquet", ("train", "train")),
        ("data/test-00000-of-00001-0123456789abcdef.parquet", ("test", "test")),
        ("train/0.parquet", ("train", "train")),
        ("split=validation/part-0.parquet", ("validation", "validation")),
        ("default/partial-train/0000.parquet", ("train", "train")),
        ("plain_text/dev.parquet", ("dev", "validation")),
        ("mnist_test_0001.parquet", ("test", "test")),
        ("mnist-train.parquet", ("train", "train")),
        ("imagenet1k-validation-07.tar", ("validation", "validation")),
        ("data/extra-00000-of-00009.parquet", ("extra", "")),
        ("train/test-0.parquet", ("test", "test")),
        ("train.clean.100-00000-of-00001.parquet", ("train.clean.100", "train")),
        ("part-00000.parquet", ("", "")),
        ("latest.parquet", ("", "")),
        ("restrained/0.parquet", ("", "")),
    ],
)
def test_names_of_files(path: str, split: tuple[str, str]) -> None:
    assert split_of_file(path) == split


@pytest.mark.parametrize(
    "paths",
    [
        ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet"),
        ("train.parquet", "validation.parquet", "test.parquet"),
        ("train/0.parquet", "val/0.parquet"),
        ("split=train/0.parquet", "split=eval/0.parquet"),
        ("a-train.parquet", "a-dev.parquet"),
        ("train-00000-of-00001.parquet", "extra-00000-of-00001.parquet"),
        ("0.parquet", "test.parquet"),
    ],
)
def test_files_of_several_splits_are_not_mixed(paths: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"d: holds several splits: .*--split-name"):
        choose_files("d", paths, "")
    assert choose_files("d", paths, "all") == list(paths)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        ("train", ["train-1.parquet", "training-2.parquet"]),
        ("val", ["dev.parquet"]),
        ("validation", ["dev.parquet"]),
        ("DEV", ["dev.parquet"]),
        ("test", ["x/eval/0.parquet"]),
        ("extra", ["extra-00000-of-00001.parquet"]),
        ("training", ["training-2.parquet"]),
    ],
)
def test_a_split_is_chosen_as_written_or_by_what_it_means(wanted: str, chosen: list[str]) -> None:
    paths = ["dev.parquet", "extra-00000-of-00001.parquet", "train-1.parquet", "training-2.parquet", "x/eval/0.parquet"]
    expected = [p for p in paths if p.startswith("train-")] if wanted == "train" else chosen
    assert choose_files("d", paths, wanted) == expected
    with pytest.raises(ConfigError, match=r"--split-name 'tain'.*did you mean 'train'"):
        choose_files("d", paths, "tain")


@pytest.mark.parametrize(
    "paths", [("a.parquet", "b.parquet"), ("train-0.parquet", "train-1.parquet"), ("test.parquet",)]
)
def test_files_of_one_split_or_none_are_taken(paths: tuple[str, ...]) -> None:
    assert choose_files("d", paths, "") == list(paths)
    with pytest.raises(ConfigError, match="--split-name 'dev'"):
        choose_files("d", paths, "dev")


LAYOUTS = {
    "imagenet": ("train/cat", "train/dog", "val/cat", "val/dog"),
    "three, other classes": ("train/cat", "train/dog", "dev/cat", "test/cat"),
    "years": ("train2017/cat", "val2017/cat"),
    "with something beside": ("train/cat", "test/cat", "annotations/x"),
    "in capitals": ("Training/cat", "Validation/cat"),
    "hive": ("split=train/cat", "split=test/cat"),
    "below one folder": ("images/train/cat", "images/val/cat"),
    "below two": ("data/set/train/cat", "data/set/val/cat"),
    "no classes at all": ("train", "test"),
    "in each class, with something beside": ("cat/train/x", "cat/test/x", "cat/masks", "dog/train", "dog/val"),
    "in each class": ("cat/train", "cat/test", "dog/train", "dog/test"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_folder_of_splits_is_never_packed_as_classes(layout: str, tmp_path: Path) -> None:
    url = folders(tmp_path / "photos", *LAYOUTS[layout])
    with pytest.raises((ConfigError, DataError), match=r"holds several splits: .*--split-name"):
        list(opened(url, tmp_path).items())


@pytest.mark.parametrize(
    ("layout", "split", "classes", "keys"),
    [
        ("imagenet", "train", ("cat", "dog"), ["cat/0", "dog/0"]),
        ("imagenet", "validation", ("cat", "dog"), ["cat/0", "dog/0"]),
        ("three, other classes", "val", ("cat",), ["cat/0"]),
        ("years", "val2017", ("cat",), ["cat/0"]),
        ("with something beside", "test", ("cat",), ["cat/0"]),
        ("in capitals", "train", ("cat",), ["cat/0"]),
        ("hive", "train", ("cat",), ["cat/0"]),
        ("below two", "val", ("cat",), ["cat/0"]),
        ("in each class", "test", ("cat", "dog"), ["cat/test/0", "dog/test/0"]),
        ("in each class, with something beside", "train", ("cat", "dog"), ["cat/train/x/0", "dog/train/0"]),
    ],
)
def test_the_split_that_is_named_is_packed(
    layout: str, split: str, classes: tuple[str, ...], keys: list[str], tmp_path: Path
) -> None:
    source = opened(folders(tmp_path / "photos", *LAYOUTS[layout]), tmp_path, split)
    assert (source.classes, [item.key for item in source.items()]) == (classes, keys)


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train/cat", "val/cat"), "tset"),
        (("cat", "dog"), "train"),
        (("cat/train", "cat/test", "dog"), "train"),
        (("val/cat", "valid/cat"), "validation"),
    ],
)
def test_a_split_that_is_not_there_is_told(names: tuple[str, ...], split: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"--split-name '{split}'"):
        list(opened(folders(tmp_path / "photos", *names), tmp_path, split).items())


@pytest.mark.parametrize(
    "names",
    [
        ("cat", "dog", "test"),
        ("train", "bus", "tram"),
        ("train", "test", "bus"),
        ("train/2019", "test/2019", "bus/2019"),
        ("bullet train",),
        ("test",),
        ("cat/train", "dog/train"),
    ],
)
def test_classes_may_be_called_like_splits(names: tuple[str, ...], tmp_path: Path) -> None:
    source = opened(folders(tmp_path / "photos", *names), tmp_path)
    assert source.classes == tuple(sorted({name.partition("/")[0] for name in names}))
    assert len(list(source.items())) == len(names)


def test_who_says_folder_means_classes(tmp_path: Path) -> None:
    url = folders(tmp_path / "photos", "train", "test")
    assert opened(url, tmp_path, kind="folder").classes == ("test", "train")


def test_one_split_alone_is_taken_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = folders(tmp_path / "photos", "train/cat", "train/dog")
    assert cli.main(["pack", url, str(tmp_path / "out"), "--workers", "1"]) == 0
    assert "holds the split 'train' alone" in capsys.readouterr().err
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["name"], manifest["vit_dist"]["classes"]) == ("photos-train", ["cat", "dog"])


HUB = {
    "data": (
        "data/train-00000-of-00002.parquet",
        "data/train-00001-of-00002.parquet",
        "data/test-00000-of-00001.parquet",
    ),
    "configuration": ("plain_text/train-00000-of-00001.parquet", "plain_text/test-00000-of-00001.parquet"),
    "converted": ("default/train/0000.parquet", "default/test/0000.parquet"),
    "folders": ("train/0.parquet", "train/1.parquet", "test/0.parquet"),
    "hive": ("split=train/0.parquet", "split=test/0.parquet"),
    "flat": ("train.parquet", "test.parquet"),
}


@pytest.mark.parametrize("layout", HUB)
def test_parquet_of_the_hub_is_packed_split_by_split(layout: str, tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = tmp_path / "hub"
    for i, name in enumerate(HUB[layout]):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"image": [{"bytes": image(), "path": None}], "label": [i]}), root / name)
    (root / "README.md").write_text("a card")
    (tmp_path / "scratch").mkdir()
    with pytest.raises(ConfigError, match=r"holds several splits: .*--split-name"):
        list(opened(str(root), tmp_path).items())
    for split in ("train", "test"):
        source = opened(str(root), tmp_path, split)
        expected = [i for i, name in enumerate(HUB[layout]) if split in name]
        assert [item.labels[0] for item in source.items()] == expected
        assert source.name == f"hub-{split}"


@pytest.mark.parametrize(
    "names",
    [
        ("train-0.tar", "val-0.tar"),
        ("imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"),
        ("train_000.tar", "test_000.tar", "dev_000.tar"),
    ],
)
def test_a_directory_of_tars_of_several_splits_is_not_one_set(names: tuple[str, ...], tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"")
    for url in (str(tmp_path), f"{tmp_path}/*.tar"):
        with pytest.raises(ConfigError, match=r"holds several splits: .*--split-name"):
            find_tars([url])
        assert [tar.url for tar in find_tars([url], "train")] == [f"{tmp_path}/{names[0]}"]
        assert len(find_tars([url], "all")) == len(names)
    # Whoever writes them all down means them all.
    written = "{" + ",".join(names) + "}"
    assert len(find_tars([f"{tmp_path}/{written}"])) == len(find_tars([f"{tmp_path}/{n}" for n in names])) == len(names)
