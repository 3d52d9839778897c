"""Scratch folders: gone at the end, and those of processes that were killed gone at the next start; of others left."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_dist.core.scratch import in_scratch, scratch

HOST = re.sub(r"[^A-Za-z0-9.]+", "-", socket.gethostname())


def _dead() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        return process.pid


def _folder(path: Path) -> Path:
    path.mkdir()
    (path / "recipe.yaml").write_text("")
    return path


def test_it_is_made_with_what_is_above_it_and_gone_afterwards(tmp_path: Path) -> None:
    with scratch(tmp_path / "run", "start") as folder, scratch(tmp_path / "run", "start") as other:
        assert folder.is_dir()
        assert other.is_dir()
        assert folder != other
        assert folder.name.startswith(".start-")
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "file").write_text("")
    assert list((tmp_path / "run").iterdir()) == []


def test_that_of_a_process_that_was_killed_is_removed_by_the_next(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from vit_dist.core.scratch import scratch\n"
        "with scratch(Path(sys.argv[1]), 'start') as folder:\n"
        "    (folder / 'recipe.yaml').write_text(''); os.kill(os.getpid(), 9)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (left,) = tmp_path.iterdir()
    with scratch(tmp_path, "start"):
        assert not left.exists()


@pytest.mark.parametrize(
    "make",
    [
        lambda folder, pid: _folder(folder / f".start-elsewhere-{pid}-0123abcd"),
        lambda folder, pid: _folder(folder / f".start-{HOST}-{os.getpid()}-0123abcd"),
        lambda folder, pid: _folder(folder / f".start-{HOST}-1-0123abcd"),
        lambda folder, pid: _folder(folder / f".evaluate-{HOST}-{pid}-0123abcd"),
        lambda folder, pid: _folder(folder / f".start-{HOST}-{pid}-mine"),
        lambda folder, pid: _folder(folder / f"start-{HOST}-{pid}-0123abcd"),
    ],
    ids=["another machine's", "ours", "of one that lives", "of another kind", "no name of ours", "not hidden"],
)
def test_what_may_be_somebodys_is_left(make: Callable[[Path, int], Path], tmp_path: Path) -> None:
    theirs = make(tmp_path, _dead())
    with scratch(tmp_path, "start"):
        pass
    assert (theirs / "recipe.yaml").exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    theirs = _folder(tmp_path / "theirs")
    (tmp_path / "here").mkdir()
    link = tmp_path / "here" / f".start-{HOST}-{_dead()}-0123abcd"
    link.symlink_to(theirs)
    with scratch(tmp_path / "here", "start"):
        pass
    assert (theirs / "recipe.yaml").exists()
    assert link.is_symlink()


def test_what_was_written_for_a_process_is_told_from_what_people_keep(tmp_path: Path) -> None:
    with scratch(tmp_path, "study") as folder:
        assert in_scratch(folder / "recipe.yaml")
    for path in ("recipe.yaml", "runs/a-1/recipe.yaml", ".hidden-7/recipe.yaml", "study-vm-7-0123abcd/recipe.yaml"):
        assert not in_scratch(tmp_path / path)
