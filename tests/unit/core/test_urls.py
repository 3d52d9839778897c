"""What paths and URLs mean: where they lead, what is the same file, what is refused, what is hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_dist.core.errors import DataError
from vit_dist.core.files import exists, file_system, read_bytes, redact, write_bytes
from vit_dist.core.urls import (
    destination,
    folder_url,
    holds_secret,
    identity,
    is_remote,
    join_url,
    lies_in,
    local_path,
    parent_url,
    url_name,
)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://", "names no bucket"),
        ("s3:///photos", "names no bucket"),
        ("S3:///photos", "names no bucket"),
        ("s3:// /photos", "names no bucket"),
        ("gs://", "names no bucket"),
        ("az:///x", "names no bucket"),
        ("s3:", "names no bucket"),
        ("s3:/photos/x", "names no bucket"),
        ("gs:/", "names no bucket"),
        ("http://", "names no server"),
        ("https:///set/a.tar", "names no server"),
        ("https://?token=x", "names no server"),
        ("https:/host/a.tar", "names no server"),
    ],
)
def test_a_url_without_bucket_or_server_is_refused_wherever_it_comes(
    url: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (
        read_bytes, exists, is_remote, local_path, file_system, folder_url, identity, url_name, parent_url,
        lambda u: write_bytes(u, b""), lambda u: write_bytes(join_url(u, "x"), b""), lambda u: destination(u, "DEST"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=says):
            use(url)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", " ", "\t"])
def test_an_empty_destination_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="DEST is empty"):
        destination(text, "DEST")


@pytest.mark.parametrize("name", ["./s3:", "./s3:/photos", "s3x:/a", "a:b", "dir/s3://x", "s3 /a", "https.tar"])
def test_what_only_looks_like_a_url_is_a_path(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not is_remote(name)
    write_bytes(name, b"x")
    assert Path(name).read_bytes() == b"x"


@pytest.mark.parametrize(
    ("url", "folder", "name"),
    [
        ("s3://b/x/m.json", "s3://b/x", "m.json"),
        ("s3://b/x?y/a#b.tar", "s3://b/x?y", "a#b.tar"),
        ("s3://b/m.json", "s3://b", "m.json"),
        ("s3://b", "s3://b", "b"),
        ("https://h/x/a.tar?sig=a/b&t=1", "https://h/x", "a.tar"),
        ("https://h:8080/x%20y/a.tar#part", "https://h:8080/x%20y", "a.tar"),
        ("m.json", "", "m.json"),
        ("/m.json", "/", "m.json"),
        ("x/set/", "x/set", "set"),
        ("file:///d/m.json", "file:///d", "m.json"),
    ],
)
def test_the_folder_and_the_name_of_a_url(url: str, folder: str, name: str) -> None:
    assert parent_url(url) == folder
    assert url_name(url) == name


@pytest.mark.parametrize(
    ("base", "name", "joined"),
    [
        ("https://h/set?sig=x", "a.tar", "https://h/set/a.tar"),
        ("https://h/set/", "a.tar?sig=y", "https://h/set/a.tar?sig=y"),
        ("s3://b/set?x", "a.tar", "s3://b/set?x/a.tar"),
        ("/", "a.tar", "/a.tar"),
        ("x", "S3://c/y.tar", "S3://c/y.tar"),
        ("x", "y://z/a", "y://z/a"),
    ],
)
def test_names_are_joined_to_folders_with_queries_and_without(base: str, name: str, joined: str) -> None:
    assert join_url(base, name) == joined


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("s3://b/x//", "s3://b/x"),
        ("S3://b/", "s3://b"),
        ("/", "/"),
        ("x/", "x"),
        ("https://h/x/?k=1", "https://h/x?k=1"),
    ],
)
def test_a_folder_has_no_slash_at_its_end(url: str, folder: str) -> None:
    assert folder_url(url) == folder


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("S3://b/a.tar", "s3://b/a.tar"),
        ("s3a://b/a.tar", "s3://b/a.tar"),
        ("s3://b/set/", "s3://b/set"),
        ("HTTPS://Host.Example/a.tar", "https://host.example/a.tar"),
        ("https://h:443/a.tar", "https://h/a.tar"),
        ("http://h:80/a.tar", "http://h/a.tar"),
        ("https://h/%61%20b.tar", "https://h/a%20b.tar"),
        ("https://h/a b.tar", "https://h/a%20b.tar"),
        ("https://h/%7eme/a%2Dz.tar", "https://h/~me/a-z.tar"),
        ("https://h/x/../y/./a.tar", "https://h/y//a.tar"),
        ("https://h/a.tar?X-Amz-Signature=1&X-Amz-Date=2", "https://h/a.tar?X-Amz-Signature=3&X-Amz-Date=4"),
        ("https://h/a.tar?sv=1&sig=x&id=7", "https://h/a.tar?id=7"),
        ("https://h/a.tar?b=1&a=2", "https://h/a.tar?a=2&b=1"),
        ("https://me:pw@h/a.tar#x", "https://h/a.tar"),
    ],
)
def test_one_file_is_one_however_it_is_spelled(one: str, other: str) -> None:
    assert identity(one) == identity(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("s3://b/a.tar", "s3://c/a.tar"),
        ("s3://b/A.tar", "s3://b/a.tar"),
        ("s3://b/a%20b.tar", "s3://b/a b.tar"),
        ("s3://b/a?x", "s3://b/a"),
        ("https://h/get?id=1", "https://h/get?id=2"),
        ("https://h/a.tar", "https://h:8443/a.tar"),
        ("https://h/A.tar", "https://h/a.tar"),
        ("https://h/a%2Fb.tar", "http://h/a%2Fb.tar"),
        ("s3://b/a.tar", "gs://b/a.tar"),
    ],
)
def test_other_files_are_others(one: str, other: str) -> None:
    assert identity(one) != identity(other)


def test_local_files_are_what_their_links_lead_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    target = tmp_path / "set" / "a.tar"
    target.write_bytes(b"")
    (tmp_path / "link.tar").symlink_to(target)
    (tmp_path / "other").symlink_to(tmp_path / "set")
    (tmp_path / "hard.tar").hardlink_to(target)
    same = ["set/a.tar", "./set//a.tar", "set/../set/a.tar", str(target), f"file://{target}", "link.tar", "other/a.tar"]
    same += ["hard.tar", f"file://localhost{target}", f"FILE://{target}"]
    assert len({identity(url) for url in same}) == 1
    assert identity("not/there/../a.tar") == identity("./not/a.tar") != identity("set/a.tar")


def test_a_file_url_is_decoded_unless_a_file_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"blank")
    (tmp_path / "c%20d").write_bytes(b"literally")
    assert read_bytes(f"file://{tmp_path}/a%20b") == b"blank"
    assert read_bytes(f"file://{tmp_path}/c%20d") == b"literally"


@pytest.mark.parametrize(
    ("url", "folder", "inside"),
    [
        ("s3://b/photos/out", "S3://b/photos/", True),
        ("s3://b/photos", "s3://b/photos", True),
        ("s3://b/photos2", "s3://b/photos", False),
        ("/d/photos/out", "/d/./photos", True),
        ("/d/photos2", "/d/photos", False),
        ("s3://b/x", "/b", False),
    ],
)
def test_what_lies_in_a_folder(url: str, folder: str, inside: bool) -> None:
    assert lies_in(url, folder) is inside


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://storage/a?X-Goog-Signature=s3cr3t", "s3cr3t"),
        ("https://h/a.tar?sv=2&sr=c&unknown=s3cr3t)", "s3cr3t"),
        ("url: /set/a.tar?Policy=s3cr3t&Key-Pair-Id=K", "s3cr3t"),
        ("URL('https://h/x?auth=s3cr3t')", "s3cr3t"),
        ("https://s3cr3t@h/x", "s3cr3t"),
        ("s3://AKIAIOSFODNN7EXAMPLE:wJal/rXUt+s3cr3t@b/x", "s3cr3t"),
        ("http://me:p@ss:s3cr3t@h/x", "s3cr3t"),
        ("the key AKIAIOSFODNN7EXAMPLE is unknown", "AKIAIOSFODNN7EXAMPLE"),
        ("https://h/x?api_key=s3cr3t, and more", "s3cr3t"),
    ],
)
def test_keys_and_signatures_are_hidden_whatever_they_are_called(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize(
    "text", ["http://h:8080/set@v2/a.tar", "s3://b/what?/a.tar", "is it there? x=1", "/d/a?b.tar", "s3://b/x[1]*.tar"]
)
def test_what_is_no_secret_is_shown(text: str) -> None:
    assert redact(text) == text
    assert not holds_secret(text)


def test_a_query_is_hidden_but_no_secret_by_itself() -> None:
    assert redact("https://h/a.tar?download=true") == "https://h/a.tar?***"
    assert not holds_secret("https://h/a.tar?download=true")
    assert holds_secret("https://h/a.tar?X-Amz-Signature=x")
