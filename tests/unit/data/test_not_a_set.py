"""What is said where a manifest was expected and something else lies there: what it is, and how a set is made of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shards import write_set
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import DataError, MissingError
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.data.not_a_set import NotASetError
from vit_dist.study.grid import load_study, plan
from vit_dist.study.sets import look_at_sets
from vit_dist.train.plan import open_training


def write(*names: str) -> Callable[[Path], None]:
    """Makes files of these names."""

    def make(folder: Path) -> None:
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(b"x")

    return make


def two_sets(folder: Path) -> None:
    for split in ("train", "val"):
        write_set(folder / split, num_samples=2, samples_per_shard=2, num_classes=2)


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (write("x/0.tar"), "x/0.tar", "this is a tar.*vit-dist data index"),
        (write("x/0.TAR"), "x/0.TAR", "this is a tar.*vit-dist data index"),
        (write(), "x/{000..123}.tar", "this is a tar.*vit-dist data index"),
        (write("x/0.tar", "x/1.tar"), "x", "there are tars in it.*data index x "),
        (write("x/cat/1.jpg", "x/dog/2.JPEG"), "x", "there are images in it.*data pack x DEST"),
        (write("x/1.png"), "x/", "there are images in it.*data pack"),
        (write("x/images/train/cat/1.webp"), "x", "there are images in it.*data pack"),
        (write("x/1.png"), "x/1.png", "this is an image.*data pack"),
        (write("x.csv"), "x.csv", "this is a table.*data pack"),
        (write("x/data.parquet"), "x", "there are tables in it.*data pack"),
        (write("x.tar.gz"), "x.tar.gz", "this is an archive: unpack it"),
        (write("x.zip"), "x.zip", "this is an archive: unpack it"),
        (write("x"), "x", "this is a file; give the folder"),
        (write("x/set.json"), "x", r"there is set\.json in it"),
        (write("x/notes.txt"), "x", r"what lies in it: notes\.txt"),
        (lambda folder: (folder / "x").mkdir(), "x", "the folder is empty"),
        (lambda folder: two_sets(folder / "x"), "x", "sets lie in folders of it.*give x/train, x/val"),
    ],
)
def test_what_is_no_set_is_named_with_what_to_do(
    make: Callable[[Path], None], given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    recipe = load_recipe("demo", [f"data.train='{given}'", "data.val="])
    with pytest.raises(NotASetError, match=message):
        open_training(recipe, World())
    (cell, *_) = plan(load_study("demo", [f"data.train='{given}'"]))
    assert re.search(message, look_at_sets([cell]).unread[given])


@pytest.mark.parametrize(
    ("make", "given", "message"),
    [
        (write(), "sets/other/train", r"^sets/other/train/manifest\.json: no such file.*; there is one in sets/other$"),
        (write(), "sets/other/train/", r"there is one in sets/other$"),
        (write(), "sets/other/val/manifest.json", r"there is one in sets/other$"),
        (write(), "ABSOLUTE/sets/other/val", r"there is one in /.*/sets/other$"),
        (write(), "file://ABSOLUTE/sets/other/val", r"there is one in file:///.*/sets/other$"),
        (write("sets/other/train/0.tar"), "sets/other/train", r"there is one in sets/other; there are tars in it"),
        (
            write("sets/other/train/cat/1.jpg"),
            "sets/other/train",
            r"there is one in sets/other; there are images in it",
        ),
        (write("sets/other/train/n.txt"), "sets/other/train", r"there is one in sets/other; what lies in it: n\.txt"),
        (write("manifest.json"), "train", r"there is one in \.$"),
        # Of no help: it lies further up, or there is none.
        (write(), "sets/other/a/b", r"check the path and its spelling$"),
        (write(), "sets/train", r"check the path and its spelling$"),
    ],
)
def test_a_manifest_one_level_up_is_named(
    make: Callable[[Path], None], given: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write("sets/other/manifest.json")(tmp_path)
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        read_manifest(given.replace("ABSOLUTE", str(tmp_path)))


def test_a_set_that_is_not_there_is_missing_and_one_that_is_there_is_read(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file"):
        read_manifest(str(tmp_path / "nowhere"))
    with pytest.raises(MissingError, match="no such file"):
        read_manifest(str(tmp_path / "nowhere" / "manifest.json"))
    two_sets(tmp_path)
    assert read_manifest(str(tmp_path / "train")).num_samples == 2


@pytest.mark.parametrize("scheme", ["s4", "ss3", "gss", "htps"])
def test_copies_in_a_store_that_nothing_is_known_of_are_refused_before_training(scheme: str, tmp_path: Path) -> None:
    two_sets(tmp_path)
    recipe = load_recipe("demo", [f"data.train={tmp_path}/train", "data.val=", f"checkpoint.remote={scheme}://b/run"])
    with pytest.raises(DataError, match=f"no file system for '{scheme}'.*did you mean"):
        open_training(recipe, World())
