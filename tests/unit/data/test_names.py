"""What a user typed -> files: literal names before patterns, the same tar once however it is spelled."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from vit_dist.core.errors import DataError
from vit_dist.data.indexing import index_tars
from vit_dist.data.names import named
from vit_dist.data.pack.choose import open_source
from vit_dist.data.tars import find_tars


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir() if name.endswith("/") else path.write_bytes(b"")


@pytest.mark.parametrize(
    "name",
    [
        "part[1].tar",
        "what?/0.tar",
        "a*.tar",
        "{0..3}.tar",
        "{a,b}/x.tar",
        "un{balanced.tar",
        "[!a]/[x]/y.tar",
        "set [v2] {final}?/0.tar",
        "100%25.tar",
        "a#b.tar",
    ],
)
def test_what_exists_under_exactly_this_name_is_meant(here: Path, name: str) -> None:
    # Beside what it would stand for as a pattern.
    make(here, name, "part1.tar", "whatx/0.tar", "ab.tar", "0.tar", "1.tar", "a/x.tar", "b/x.tar", "x/x/y.tar")
    for spelled in (name, f"./{name}", str(here / name), f"file://{here}/{name}"):
        assert named(spelled) == [spelled]
        assert [tar.url for tar in find_tars([spelled])] == [spelled]


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("x/*.tar", ["x/a.tar", "x/b.tar"]),
        ("x/?.tar", ["x/a.tar", "x/b.tar"]),
        ("x/[a-a].tar", ["x/a.tar"]),
        ("?/a.tar", ["x/a.tar", "y/a.tar"]),
        ("*/b.tar", ["x/b.tar"]),
        ("{x,y}/a.tar", ["x/a.tar", "y/a.tar"]),
        ("{y,x}/[ab].tar", ["y/a.tar", "x/a.tar", "x/b.tar"]),
        ("set[1]/*.tar", ["set[1]/c*.tar", "set[1]/d.tar"]),
        ("set[1]/{d,c*}.tar", ["set[1]/d.tar", "set[1]/c*.tar"]),
        ("{x/a,y/b}.tar", ["x/a.tar", "y/b.tar"]),
    ],
)
def test_what_does_not_exist_is_a_pattern_behind_literal_folders(here: Path, pattern: str, found: list[str]) -> None:
    make(here, "x/a.tar", "x/b.tar", "x/.hidden.tar", "y/a.tar", "set[1]/c*.tar", "set[1]/d.tar", "set1/no.tar")
    assert named(pattern) == found
    assert named(str(here / pattern)) == [str(here / name) for name in found]


@pytest.mark.parametrize(
    "pattern", ["x/*.tat", "nowhere/*.tar", "[z]/a.tar", "*/nothing.tar", "x/a.tar/*", "x[/]a.tar"]
)
def test_a_pattern_that_nothing_fits_says_so(here: Path, pattern: str) -> None:
    make(here, "x/a.tar")
    with pytest.raises(DataError, match="no file of this name, and no file fits this pattern"):
        named(pattern)


@pytest.mark.parametrize("pattern", ["{00..01.tar", "{a,{b}.tar"])
def test_braces_that_do_not_fit_together_are_told(here: Path, pattern: str) -> None:
    with pytest.raises(DataError, match="no file of this name, and as a pattern"):
        named(pattern)


def test_a_url_of_a_web_server_knows_no_letters_for_others() -> None:
    for url in ("https://h.invalid/a.tar?x=[1]*", "http://h.invalid/what?", "https://h.invalid/x[1].tar"):
        assert named(url) == [url]
    assert named("https://h.invalid/{0..1}.tar?s=1") == ["https://h.invalid/0.tar?s=1", "https://h.invalid/1.tar?s=1"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("set/a.tar", "./set/a.tar"),
        ("set/a.tar", "set//a.tar"),
        ("set/a.tar", "link.tar"),
        ("set/a.tar", "linked/a.tar"),
        ("set/a.tar", "set/../set/a.tar"),
        ("set/a.tar", "{here}/set/a.tar"),
        ("{here}/set/a.tar", "file://{here}/set/a.tar"),
        ("set/", "set/a.tar"),
        ("set/*.tar", "set/./a.tar"),
        ("s3://b/a.tar", "S3://b/a.tar"),
        ("https://h.invalid/a%20b.tar", "https://H.invalid:443/a b.tar"),
        ("https://h.invalid/a.tar?X-Amz-Signature=1", "https://h.invalid/a.tar?X-Amz-Signature=2"),
    ],
)
def test_one_tar_twice_is_refused_however_it_is_spelled(here: Path, one: str, other: str) -> None:
    make(here, "set/a.tar")
    (here / "link.tar").symlink_to(here / "set" / "a.tar")
    (here / "linked").symlink_to(here / "set")
    with pytest.raises(DataError, match="named twice"):
        find_tars([one.format(here=here), other.format(here=here)])


def test_other_tars_of_one_name_are_others(here: Path) -> None:
    make(here, "a/0.tar", "b/0.tar")
    assert len(find_tars(["a/0.tar", "b/0.tar"])) == 2
    assert len(find_tars(["https://h.invalid/get?id=1.tar", "https://h.invalid/get?id=2.tar"])) == 2


@pytest.mark.parametrize("name", ["photos [2021]", "what?", "all*", "{a,b}", "photos.tar", "x.csv", "y.json"])
def test_a_folder_is_looked_into_whatever_it_is_called(here: Path, name: str) -> None:
    from PIL import Image

    (here / name / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(here / name / "cat" / "[0]*?.png")
    source = open_source(name, here / "scratch")
    assert (source.kind, [item.url for item in source.items()]) == ("folder", ["cat/[0]*?.png"])


def test_a_tar_under_another_spelling_is_not_indexed_again(here: Path) -> None:
    from PIL import Image

    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    (here / "set").mkdir()
    with tarfile.open("set/a[1].tar", "w") as tar:
        for name, content in (("0.png", image.getvalue()), ("0.cls", b"0")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert index_tars(["set/a[1].tar"], "out/m.json", quiet=True).num_read == 1
    for spelled in ("./set//a[1].tar", str(here / "set/a[1].tar"), "set/", "set/*.tar"):
        result = index_tars([spelled], "out/m.json", quiet=True)
        assert (result.num_read, result.manifest.num_samples) == (0, 1)
