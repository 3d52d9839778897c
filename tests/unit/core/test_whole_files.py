"""Files that come whole or not at all: what is no file, long names, links, disks that take no more."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.places import ROOT
from vit_dist.cli import main as command
from vit_dist.core.errors import DataError
from vit_dist.core.files import (
    append_json,
    copy_here,
    explained,
    make_folder,
    open_output,
    replacing,
    replacing_folder,
    write_bytes,
)


def test_a_pipe_is_written_to_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, got = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
    reader.start()
    write_bytes(str(pipe), b"content")
    reader.join(20)
    assert got == [b"content"]
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/dev/null"])
def test_devices_stay_what_they_are(name: str, tmp_path: Path) -> None:
    code = f"from vit_dist.core.files import write_bytes; print('a', flush=True); write_bytes({name!r}, b'content')"
    before = Path(name).lstat().st_mode if name == "/dev/null" else 0
    with (tmp_path / "out").open("wb") as out:
        subprocess.run(
            [sys.executable, "-c", code], stdout=out, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
    assert Path("/dev/null").is_char_device()
    assert Path("/dev/stdout").is_symlink()
    assert before in {0, Path(name).lstat().st_mode}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    if name != "/dev/null":
        assert (tmp_path / "out").read_bytes() == b"a\ncontent"


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, ".hidden", "with space", "a.b.c.json"])
def test_any_name_that_a_file_may_have_is_written(name: str, tmp_path: Path) -> None:
    write_bytes(str(tmp_path / name), b"old")
    write_bytes(str(tmp_path / name), b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(name, b"new")]


def test_a_writer_that_fails_leaves_the_old_file_or_folder_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()

    def fail(fresh: Path) -> None:
        (fresh / "half" if fresh.is_dir() else fresh).write_text("half")
        raise KeyError

    with pytest.raises(KeyError), replacing(tmp_path / "file") as fresh:
        fail(fresh)
    with pytest.raises(KeyError), replacing_folder(tmp_path / "folder") as fresh:
        fail(fresh)
    assert (tmp_path / "file").read_text() == "old"
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["old"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_link_is_replaced_and_what_it_leads_to_is_not(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to("other/theirs")
    (tmp_path / "folder").symlink_to("other")
    write_bytes(str(tmp_path / "link"), b"ours")
    with replacing_folder(tmp_path / "folder") as fresh:
        (fresh / "ours").touch()
    assert (tmp_path / "other" / "theirs").read_text() == "theirs"
    assert not (tmp_path / "link").is_symlink()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["ours"]


def test_what_cannot_be_made_or_copied_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(DataError, match=f"{tmp_path}/file/folder: cannot be made"):
        make_folder(tmp_path / "file" / "folder")
    with pytest.raises(DataError, match=f"{tmp_path}/gone: no such file"):
        copy_here(str(tmp_path / "gone"), tmp_path / "here")
    with pytest.raises(DataError, match="/dev/full: cannot be written: the disk is full"):
        copy_here(str(tmp_path / "file"), Path("/dev/full"))
    with open_output(tmp_path / "file" / "log") as nowhere:
        nowhere.write(b"lost")


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, r"the disk is full \(No space left on device\); free some space"),
        (errno.EDQUOT, "the quota is used up"),
        (errno.EFBIG, "the file would be larger than its file system"),
        (errno.EROFS, "the file system is read-only .*; mount it for writing"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_what_is_wrong_with_a_disk_is_one_line_that_says_what_to_do(number: int, says: str) -> None:
    with pytest.raises(DataError, match=f"^/a/b: cannot be written: .*{says}"), explained("/a/b", "written"):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "error: the disk is full"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), "error: /a/b: the file system is read-only"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "free some, or set TMPDIR"),
    ],
)
def test_a_disk_that_a_library_found_full_is_a_line_too(
    error: OSError, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vit_dist.cli import config

    def fails(_: list[str]) -> int:
        raise error

    monkeypatch.setattr(config, "main", fails)
    assert command.main(["config", "demo"]) == 1
    assert says in capsys.readouterr().err
    monkeypatch.setattr(config, "main", lambda _: (_ for _ in ()).throw(OSError(errno.EINVAL, "else")))
    with pytest.raises(OSError, match="else"):
        command.main(["config", "demo"])


def test_a_line_that_could_not_be_appended_whole_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_json(path, {"n": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 2')
    append_json(path, {"n": 3})
    assert path.read_bytes() == whole + b'{"n": 2\n{"n": 3}\n'
