"""Checkpoints that are removed, killed at every step of it, here and on a store; and names that come from elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT
from vit_dist.core.errors import CheckpointError
from vit_dist.core.run.checkpoints import FORMAT, MARKER, committed, newest_step, read_marker, steps_in_hand
from vit_dist.train.checkpoint import remote
from vit_dist.train.checkpoint.format import checksum
from vit_dist.train.checkpoint.remote import Uploader, fetch, remote_steps, upload
from vit_dist.train.checkpoint.store import Retention, remove, sweep

PART = "rank-00000.safetensors"


def checkpoint(root: Path, step: int, files: dict[str, str] | None = None) -> Path:
    path = root / f"step-{step:010d}"
    path.mkdir(parents=True)
    parts = {}
    for name in (PART, "rank-00001.safetensors"):
        (path / name).write_bytes(b"content")
        parts[name] = {"bytes": 7, "xxh128": checksum(path / name)}
    marker = {"format": FORMAT, "layout": {}, "recipe": {}, "state": {"step": step, "position": step}, "files": parts}
    marker["files"] = {**parts, **dict.fromkeys(files or (), parts[PART])}
    (path / MARKER).write_text(json.dumps(marker))
    return path


# Without torch: a kill at each change of the file system, by the interpreter's own hook.
_KILLED = """
import os, sys, types
# Checksums are all that the store wants of it.
sys.modules["vit_dist.train.checkpoint.format"] = types.SimpleNamespace(checksum=None)
from pathlib import Path
from vit_dist.train.checkpoint.store import remove

left = int(sys.argv[2])

def kill(event, _):
    global left
    if event in ("os.rename", "os.remove", "os.rmdir", "shutil.rmtree", "os.scandir"):
        if not left:
            os.kill(os.getpid(), 9)
        left -= 1

sys.addaudithook(kill)
remove(Path(sys.argv[1]))
"""


def test_a_kill_amid_a_removal_leaves_a_whole_checkpoint_or_none_and_a_sweep_the_rest(
    tmp_path: Path,
) -> None:
    codes, seen = [], set()
    while not codes or codes[-1]:
        assert len(codes) < 20
        root = tmp_path / str(len(codes)) / "checkpoints"
        kept, doomed = checkpoint(root, 5), checkpoint(root, 7)
        done = subprocess.run(
            [sys.executable, "-c", _KILLED, str(doomed), str(len(codes))], env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        codes.append(done.returncode)
        whole = doomed in committed(root)
        seen.add(whole)
        # Nothing is left under its name for those who look at names alone.
        assert doomed.exists() is whole
        assert not whole or {p.name for p in doomed.iterdir()} == {PART, "rank-00001.safetensors", MARKER}
        assert newest_step(root.parent) == (7 if whole else 5)
        assert steps_in_hand(root.parent) == ({5, 7} if whole else {5})
        sweep(root)
        assert sorted(root.iterdir()) == ([kept, doomed] if whole else [kept])
    assert set(codes[:-1]) == {-9}
    assert len(codes) > 4
    assert seen == {True, False}


def test_what_older_versions_left_half_removed_is_swept_and_what_people_look_at_is_not(tmp_path: Path) -> None:
    half, whole = checkpoint(tmp_path, 3), checkpoint(tmp_path, 4)
    (half / MARKER).unlink()
    (whole / MARKER).write_text("{")
    (tmp_path / "step-by-step.txt").write_text("a person's")
    sweep(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000004", "step-by-step.txt"]


def test_what_is_not_there_is_removed_already(tmp_path: Path) -> None:
    remove(tmp_path / "step-0000000001")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kill_at", range(4))
def test_copies_that_were_half_sent_or_half_removed_go_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    root, store = tmp_path / "checkpoints", f"file://{tmp_path}/store"
    for step in (1, 2, 3):
        upload(checkpoint(root, step), store)
    # The process dies at the n-th file that it removes from the store.
    system, path = remote.file_system(store)
    removed: list[str] = []

    class KillError(BaseException):
        pass

    def dying(self: object, place: str) -> None:
        if len(removed) == kill_at:
            raise KillError
        removed.append(place)
        Path(place).unlink()

    def dying_folder(self: object, place: str) -> None:
        for file in sorted(Path(place).iterdir()):
            dying(self, str(file))
        # A store has no folders.
        Path(place).rmdir()

    with monkeypatch.context() as patched:
        patched.setattr(type(system), "rm_file", dying)
        patched.setattr(type(system), "rm_tree", dying_folder)
        with pytest.raises(KillError):
            Uploader(root, store, Retention(1))._prune()
    assert remote_steps(store)[0] == "step-0000000003"
    for name in remote_steps(store):
        assert {p.name for p in (Path(path) / name).iterdir()} == {PART, "rank-00001.safetensors", MARKER}
    Uploader(root, store, Retention(1))._prune()
    assert [p.name for p in Path(path).iterdir()] == ["step-0000000003"]


def test_a_copy_that_is_being_sent_or_cannot_be_read_stays(tmp_path: Path) -> None:
    root, store = tmp_path / "checkpoints", tmp_path / "store"
    for step in (1, 2, 3, 4):
        upload(checkpoint(root, step), f"file://{store}")
    remove(root / "step-0000000001")
    (store / "step-0000000001" / MARKER).write_text("not ours")
    (store / "step-0000000004" / MARKER).unlink()
    Uploader(root, f"file://{store}", Retention(1))._prune()
    assert sorted(p.name[-1] for p in store.iterdir()) == ["1", "3", "4"]


FOREIGN = [
    "../x",
    "../../outside.safetensors",
    "/tmp/x",
    "..",
    "",
    ".hidden",
    "a/rank-00000.safetensors",
    "rank-00000.safetensors/../../x",
    "rank-00000.safetensors\n",
    "rank-0.safetensors",
    "rank-\u0660\u0660\u0660\u0660\u0660.safetensors",
    "COMMITTED.json",
    "C:\\x",
    "~/x",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_name_that_is_no_ranks_part_becomes_no_path(tmp_path: Path, name: str) -> None:
    store, here = tmp_path / "store", tmp_path / "deep" / "checkpoints"
    foreign = checkpoint(store, 1, {name: ""})
    here.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CheckpointError, match="is not the name of a rank's part"):
        fetch(f"file://{store}", foreign.name, here)
    with pytest.raises(CheckpointError, match="is not the name of a rank's part"):
        upload(foreign, f"file://{tmp_path}/copies")
    assert "is not the name of a rank's part" in read_marker(foreign)[1]
    assert sorted(tmp_path.rglob("*")) == before


def test_names_of_any_rank_are_ours(tmp_path: Path) -> None:
    ours = checkpoint(tmp_path / "store", 1, {"rank-99999.safetensors": "", "rank-100000.safetensors": ""})
    assert read_marker(ours)[1] == ""
