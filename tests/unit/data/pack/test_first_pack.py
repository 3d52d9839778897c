"""What people give `data pack` the first time: splits, stray images, empty classes, turned photos, duplicates."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from tests.shards import noise_bytes
from vit_dist.cli.data.look import dedup_main
from vit_dist.cli.data.pack import main as pack_main
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import write_bytes
from vit_dist.data.dedup import copies_within
from vit_dist.data.images import is_turned
from vit_dist.data.manifest import read_manifest
from vit_dist.data.pack.shards import DoneMarker


def folder(root: Path, *names: str) -> Path:
    """Images of these names, each unlike the others."""
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(noise_bytes(number))
    return root


def photo(orientation: int | None, form: str = "JPEG") -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    Image.linear_gradient("L").resize((16, 12)).save(buffer, form, exif=exif)
    return buffer.getvalue()


def pack(source: Path | str, dest: Path, *options: str) -> None:
    assert pack_main([str(source), str(dest), "--workers", "1", *options]) == 0


@pytest.mark.parametrize(
    ("splits", "shown"),
    [
        (["train", "val"], ["train", "val"]),
        (["train", "val", "test"], ["test", "train", "val"]),
        (["training", "validation"], ["training", "validation"]),
        (["Train", "Test"], ["Test", "Train"]),
        (["photos/train", "photos/val"], ["train", "val"]),
        (["split=train", "split=test"], ["split=test", "split=train"]),
    ],
)
def test_folders_of_splits_are_told_how_each_is_packed_and_those_commands_work(
    splits: list[str], shown: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "src", *(f"{split}/{name}" for split in splits for name in ("cat/1.png", "dog/2.png")))
    with pytest.raises(ConfigError, match="pack each into a set of its own") as error:
        pack(Path("src"), Path("out"))
    commands = str(error.value).partition("--format folder): ")[2].split("; ")
    assert [command.split()[-1] for command in commands] == shown
    for command in commands:
        *_, source, dest, option, split = command.split()
        pack(Path(source), Path(dest.replace("DEST", "out")), option, split)
        assert read_manifest(dest.replace("DEST", "out")).num_samples == 2


@pytest.mark.parametrize("stray", [["1.png"], ["a.JPG"], ["1.png", "2.jpeg"], [f"{i}.webp" for i in range(9)]])
def test_images_that_lie_in_no_class_are_called_that(
    stray: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "src", "cat/1.png", "dog/1.png", *stray)
    (source / "notes.txt").write_text("no image")
    pack(source, tmp_path / "out")
    said = capsys.readouterr().err
    what = "1 image that lies" if len(stray) == 1 else f"{len(stray)} images that lie"
    assert f"left out {what} in no class directory: {', '.join(stray[:5])}" in said
    assert "ignored 1 file that does not end like an image: notes.txt\n" in said


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([".DS_Store"], "1 hidden file or directory: .DS_Store"),
        (["cat/._1.png"], "1 hidden file or directory: cat/._1.png"),
        (["cat/.thumbs/1.png"], "1 hidden file or directory: cat/.thumbs/"),
        ([".git/config", ".git/HEAD"], "1 hidden file or directory: .git/"),
        (["cat/a/.x.jpg", ".x"], "2 hidden files or directories: .x, cat/a/.x.jpg"),
        ([f"dog/.{i}.png" for i in range(7)], "7 hidden files or directories: dog/.0.png, "),
        ([], ""),
    ],
)
@pytest.mark.parametrize("where", ["{}", "memory:/{}"])
def test_hidden_files_are_left_out_and_counted(
    names: list[str], told: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "src", "cat/1.png", "dog/1.png", *names)
    url = where.format(source)
    for path in source.rglob("*"):
        if path.is_file() and where != "{}":
            write_bytes(f"{url}/{path.relative_to(source)}", path.read_bytes())
    pack(url, tmp_path / "out")
    said = capsys.readouterr().err
    assert f"ignored {told}" in said if told else "hidden" not in said
    assert ("dog/.4.png, ...\n" in said) == (len(names) > 5)
    assert read_manifest(str(tmp_path / "out")).num_samples == 2


@pytest.mark.parametrize(
    ("pattern", "told"),
    [
        ("src/*", "a pattern that names directories without tars, such as src/cat; give the folder that holds them"),
        ("src/{cat,dog}", "a pattern that names directories without tars, such as src/cat"),
        ("src/{dog,cat}", "a pattern that names directories without tars, such as src/dog"),
        ("src/[cd]*", "a pattern that names directories without tars"),
        ("src/*/*.png", "a pattern that names images, whose labels it does not tell"),
        ("src/cat/{1,2}.png", "a pattern that names images, whose labels it does not tell"),
        ("src/???", "a pattern that names directories without tars"),
    ],
)
def test_a_pattern_of_no_tars_is_told_what_to_give(
    pattern: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder(tmp_path / "src", "cat/1.png", "cat/2.png", "dog/1.png")
    with pytest.raises(DataError, match=re.escape(told)):
        pack(pattern, tmp_path / "out")


@pytest.mark.parametrize("inside", [[], ["deeper/"], ["a/b/c/"], [".gitkeep"], ["deeper/.DS_Store"]])
@pytest.mark.parametrize("name", ["ant", "cow", "zebra"])
def test_a_class_whose_directory_is_empty_keeps_its_number_which_is_said(
    name: str, inside: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "src", "cat/1.png", "dog/1.png")
    (source / name).mkdir()
    for path in inside:
        (source / name / path).parent.mkdir(parents=True, exist_ok=True)
        (source / name / path).mkdir() if path.endswith("/") else (source / name / path).write_bytes(b"")
    pack(source, tmp_path / "out")
    names = sorted(["cat", "dog", name])
    assert f"the class {name!r} keeps its number {names.index(name)}, and no image has it" in capsys.readouterr().err
    manifest = read_manifest(str(tmp_path / "out"))
    assert manifest.classes == tuple(names)
    assert manifest.num_classes == 3
    assert set(manifest.read_index(0).labels.tolist()) == {names.index("cat"), names.index("dog")}


@pytest.mark.parametrize("other", ["notes.txt", "deeper/list.csv", "a.heic", "1.npy"])
def test_a_directory_with_other_files_alone_is_no_class_that_could_be_meant(other: str, tmp_path: Path) -> None:
    source = folder(tmp_path / "src", "cat/1.png")
    (source / "dog" / other).parent.mkdir(parents=True)
    (source / "dog" / other).write_bytes(b"x")
    with pytest.raises(DataError, match="the class 'dog' has no images; add some, or remove the directory"):
        pack(source, tmp_path / "out")


def test_one_class_alone_is_worth_a_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pack(folder(tmp_path / "src", "pictures/1.png", "pictures/2.png"), tmp_path / "out")
    assert "holds one class alone, 'pictures': all images get the same label" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_whether_a_photo_lies_on_its_side_is_what_its_exif_says(form: str, orientation: int | None) -> None:
    assert is_turned(photo(orientation, form)) == (orientation in range(2, 9))


def test_what_is_no_photo_on_its_side_is_not_counted() -> None:
    for content in (b"", b"no image", photo(6)[:60], photo(6, "TIFF"), noise_bytes(1)):
        assert not is_turned(content)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ((), "3 images are stored on their side or mirrored, .* trained on as stored; --upright turns such"),
        (("--resize-shorter", "8"), "3 images are stored on their side .* --upright turns such"),
        (("--upright",), "turned 3 images upright, as their EXIF orientation says"),
        (("--upright", "--samples-per-shard", "2"), "turned 3 images upright"),
    ],
)
def test_photos_on_their_side_are_counted_and_told(
    options: tuple[str, ...], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "src", "cat/0.png", "dog/0.png")
    for number, orientation in enumerate((6, 3, 8, 1, None)):
        (source / "dog" / f"photo{number}.jpg").write_bytes(photo(orientation))
    pack(source, tmp_path / "out", *options)

    assert re.search(told, capsys.readouterr().err)


def test_a_marker_of_before_they_were_counted_is_read() -> None:
    digits = {"checksum": "0" * 32, "index_checksum": "0" * 32}
    shard = {"url": "a.tar", "num_samples": 1, "num_bytes": 2048, "index_url": "a.idx.npz", **digits}
    raw = {"shard": shard, "bad": [], "max_labels": 1, "max_label": 0}
    assert DoneMarker.decode(json.dumps(raw).encode()).turned == 0
    assert DoneMarker.decode(json.dumps({**raw, "turned": 7}).encode()).turned == 7


@pytest.mark.parametrize("per_shard", ["1", "3", "100"])
def test_files_that_are_in_a_set_twice_are_listed_with_their_labels(
    per_shard: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = folder(tmp_path / "src", "cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png", "eel/e.png")
    for copy, of in {"dog/x.png": "cat/a.png", "eel/y.png": "cat/a.png", "cat/z.png": "cat/b.png"}.items():
        (source / copy).write_bytes((source / of).read_bytes())
    pack(source, tmp_path / "out", "--samples-per-shard", per_shard)
    manifest = read_manifest(str(tmp_path / "out"))
    copies = copies_within(manifest)
    assert copies.num_surplus == 3
    assert sorted(copies.num_labels) == [1, 3]
    capsys.readouterr()
    assert dedup_main([str(tmp_path / "out"), "--workers", "1"]) == 0
    printed = capsys.readouterr()
    lines = [set(line.partition("  (")[0].split()) for line in printed.out.splitlines()]
    assert sorted(lines, key=len) == [{"cat/b", "cat/z"}, {"cat/a", "dog/x", "eel/y"}]
    assert printed.out.count("(3 different labels)") == 1
    assert "3 of 8 images are copies of another one in the set, byte for byte: 2 files" in printed.err
    assert "1 of them with different labels" in printed.err


@pytest.mark.parametrize("words", [["--out", "x.json"], ["--against", "x"]])
def test_half_a_question_of_dedup_is_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match="give --against and --out together, or neither"):
        dedup_main(["nowhere", *words])
