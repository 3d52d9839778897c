"""Texts of users: byte order marks are skipped, other encodings are refused in words, wherever text is read."""

from __future__ import annotations

import codecs
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from vit_dist.cli import data as cli
from vit_dist.config.load import load_recipe, read_mapping
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.run import history, names
from vit_dist.core.text import decode_text, read_text
from vit_dist.data.labels import LabelRule, read_classes
from vit_dist.data.manifest import read_manifest
from vit_dist.data.pack.tables import TableOptions, list_source
from vit_dist.scaling.tables import read_points

MARK = codecs.BOM_UTF8


def labels_in(url: str) -> list[tuple[int, ...]]:
    return [item.labels for item in list_source(url, TableOptions()).items()]


def rows(path: Path, content: bytes, name: str) -> list[tuple[int, ...]]:
    (path / name).write_bytes(content)
    return labels_in(str(path / name))


READERS: dict[str, tuple[Callable[[Path, bytes], object], bytes]] = {
    "csv": (lambda d, c: rows(d, c, "l.csv"), b"image,label\na.jpg,1\nb.jpg,0\n"),
    "tsv": (lambda d, c: rows(d, c, "l.tsv"), b"image\tlabel\r\na.jpg\t1\r\nb.jpg\t0\r\n"),
    "jsonl": (lambda d, c: rows(d, c, "l.jsonl"), b'{"image": "a", "label": 1}\n{"image": "b", "label": 0}\n'),
    "CSV": (lambda d, c: rows(d, c, "l.CSV"), b"image,label\na.jpg,1\n"),
    "classes": (lambda d, c: read_classes(written(d, c)), "Katze\nHund\nÄffchen\n".encode()),
    "yaml": (lambda d, c: read_mapping(written(d, c)), "base: demo\ndescription: für alle\n".encode()),
    "cls": (lambda d, c: LabelRule().labels({"cls": c}), b"17\r\n"),
    "cls of a name": (lambda d, c: LabelRule(classes=("ant", "bee")).labels({"cls": c}), b"bee"),
    "txt": (lambda d, c: LabelRule("txt").labels({"txt": c}), b"3, 5\n"),
    "json": (lambda d, c: LabelRule().labels({"json": c}), b'{"label": 4}'),
    "a table of points": (
        lambda d, c: read_points(str(written(d, c)), x="n", y="loss"), b"n,loss\n1,2\n10,1\n"
    ),
}  # fmt: skip


def written(folder: Path, content: bytes) -> Path:
    (folder / "file").write_bytes(content)
    return folder / "file"


@pytest.mark.parametrize("kind", READERS)
def test_a_byte_order_mark_changes_nothing(kind: str, tmp_path: Path) -> None:
    read, content = READERS[kind]
    assert read(tmp_path, MARK + content) == read(tmp_path, content)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("kind", READERS)
def test_other_encodings_are_refused_in_words(kind: str, encoding: str, tmp_path: Path) -> None:
    read, content = READERS[kind]
    other = content.decode().encode(encoding)
    with pytest.raises((DataError, ConfigError, ValueError), match=r"UTF-(16|32).*save it as UTF-8"):
        read(tmp_path, other)


def test_latin_1_is_refused_with_the_place() -> None:
    with pytest.raises(ValueError, match=r"not text in UTF-8 .*position 1.*save it as UTF-8"):
        decode_text(b"f\xfcr")


def test_a_mark_within_a_text_is_a_letter(tmp_path: Path) -> None:
    assert decode_text(b"a" + MARK + b"b") == "a\ufeffb"
    assert read_text(written(tmp_path, MARK + MARK + b"x")) == "\ufeffx"


def test_a_recipe_and_its_base_with_marks_are_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_bytes(MARK + b"base: demo\noptim:\n  lr: 1e-3\n")
    (tmp_path / "mine.yaml").write_bytes(MARK + b"base: base\nseed: 4\n")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert (recipe.seed, recipe.optim.lr) == (4, 1e-3)


@pytest.mark.parametrize("asked", [b"save", MARK + b"save\r\n", MARK + b"Stop"])
def test_a_request_by_hand_may_have_a_mark(asked: bytes, tmp_path: Path) -> None:
    (tmp_path / names.REQUEST).write_bytes(asked)
    assert history.take_request(tmp_path) == asked.removeprefix(MARK).decode().strip().lower()


def test_labels_in_a_tar_with_marks_are_indexed(tmp_path: Path) -> None:
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i, label in enumerate((MARK + b"1\r\n", b"0", MARK + b"2")):
            for name, content in ((f"s{i}.png", image.getvalue()), (f"s{i}.cls", label)):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    assert cli.main(["index", str(tmp_path / "a.tar"), "--out", str(tmp_path / "m.json"), "--workers", "1"]) == 0
    assert read_manifest(str(tmp_path / "m.json")).read_index(0).labels.tolist() == [1, 0, 2]
