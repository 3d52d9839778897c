"""Saving in the background and restoring, on one rank with a small engine: what may go wrong, goes wrong here."""

from __future__ import annotations

import errno
import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.histories import speak
from vit_dist.core.errors import CheckpointError, DataError, RunError
from vit_dist.core.run.checkpoints import MARKER, committed
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.engines._fit import Kept, Wanted
from vit_dist.engines._slices import WEIGHT, EngineState, Slice, Source
from vit_dist.train.checkpoint.format import Snapshot
from vit_dist.train.checkpoint.probe import Probe
from vit_dist.train.checkpoint.remote import remote_steps
from vit_dist.train.checkpoint.restore import restore
from vit_dist.train.checkpoint.saver import Contents, Saver, SupersededError
from vit_dist.train.checkpoint.store import Retention, sweep


class TinyEngine:
    """Two tensors and their moments."""

    layout: dict[str, Any] = {"engine": "tiny", "world_size": 1}  # noqa: RUF012

    def __init__(self, value: float = 0.0) -> None:
        self.weight = torch.full((1000,), float(value))
        self.moment = -self.weight

    def state(self) -> EngineState:
        slices = [Slice(WEIGHT, "w", (1000,), 0, self.weight), Slice("exp_avg", "w", (1000,), 0, self.moment)]
        return EngineState(slices, {"w": {"step": float(self.weight[0])}})

    def wanted(self) -> Wanted:
        tensors = {(WEIGHT, "w"): ((1000,), frozenset({torch.float32}))}
        return Wanted(tensors, frozenset({"w"}), Kept(frozenset({"exp_avg"}), frozenset({"step"})), True)

    def load(self, source: Source) -> None:
        self.weight.copy_(source.read(WEIGHT, "w", 0, 1000))
        self.moment.copy_(source.read("exp_avg", "w", 0, 1000))


def state_at(step: int) -> dict[str, Any]:
    counts = {"step": step, "position": step * 10, "skipped": 0, "bad_in_row": 0, "spikes": 0}
    return {**counts, "quarantined": [], "losses": [], "passed_over": [], "order": {}}


def contents(step: int, recipe: dict[str, Any] | None = None, **extras: Any) -> Contents:
    return Contents(state_at(step), recipe or {"lr": 1.0}, TinyEngine.layout, extras)


def make(tmp_path: Path, token: str = "mine", **options: Any) -> Saver:
    RunDir(tmp_path).write_json("owner.json", {"token": token, "attempt": 2, "host": "h", "pid": 7})
    return Saver(RunDir(tmp_path), World(), "mine", Retention(options.pop("keep", 2)), **options)


def saved(tmp_path: Path, *steps: int, **options: Any) -> Path:
    saver = make(tmp_path, keep=9, **options)
    for step in steps:
        saver.save(TinyEngine(step), contents(step))  # type: ignore[arg-type]
    saver.finish()
    return tmp_path / "checkpoints"


def load(root: Path, recipe: dict[str, Any] | None = None, **options: Any) -> tuple[TinyEngine, Any]:
    engine = TinyEngine()
    return engine, restore(root, engine, recipe or {"lr": 1.0}, World(), **options)  # type: ignore[arg-type]


def test_training_continues_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, written, write = threading.Event(), [], Snapshot.write

    def gated(self: Snapshot, path: Path) -> str:
        gate.wait(60)
        written.append(path)
        return write(self, path)

    monkeypatch.setattr(Snapshot, "write", gated)
    saver, engine = make(tmp_path), TinyEngine(5.0)
    saver.save(engine, contents(5))  # type: ignore[arg-type]
    assert not written, "it waited for the disk"
    engine.weight += 1  # the disk has not begun
    assert saver.covers(5)
    assert committed(tmp_path / "checkpoints") == []
    gate.set()
    saver.finish()
    engine, restored = load(tmp_path / "checkpoints")
    assert restored.state == state_at(5)
    assert torch.equal(engine.weight, torch.full((1000,), 5.0))
    assert torch.equal(engine.moment, torch.full((1000,), -5.0))
    assert sorted(p.name for p in restored.path.iterdir()) == [MARKER, "rank-00000.safetensors"]


def test_a_failed_save_is_logged_and_training_continues_until_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = make(tmp_path, max_failures=3)
    saver.save(TinyEngine(1), contents(1))  # type: ignore[arg-type]
    saver.settle()
    write = Snapshot.write

    def full(self: Snapshot, path: Path) -> str:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Snapshot, "write", full)
    for step in (2, 3):
        saver.save(TinyEngine(step), contents(step))  # type: ignore[arg-type]
        saver.settle()
    logged = capsys.readouterr().err
    root = tmp_path / "checkpoints"
    assert f"CHECKPOINT FAILED at step 3: rank 0: {root}: the disk is full (No space left on device); free" in logged
    assert "Failure 2 of 3 in a row" in logged
    monkeypatch.setattr(Snapshot, "write", write)
    saver.save(TinyEngine(4), contents(4))  # type: ignore[arg-type]
    saver.settle()
    assert [p.name[-1] for p in committed(tmp_path / "checkpoints")] == ["4", "1"]
    assert not list((tmp_path / "checkpoints").glob(".*")), "half a checkpoint was left behind"

    monkeypatch.setattr(Snapshot, "write", full)
    for step in (5, 6, 7):
        saver.save(TinyEngine(step), contents(step))  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"3 checkpoints in a row could not be written.*checkpoint.max_failures"):
        saver.save(TinyEngine(8), contents(8))  # type: ignore[arg-type]
    assert load(tmp_path / "checkpoints")[1].state["step"] == 4


def test_the_last_checkpoint_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saver = make(tmp_path)
    monkeypatch.setattr(Snapshot, "write", lambda self, path: path.unlink())
    saver.save(TinyEngine(1), contents(1))  # type: ignore[arg-type]
    with pytest.raises(RunError, match="the last checkpoint could not be written"):
        saver.finish()


def test_a_disk_that_is_too_small_is_not_written_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 100})())
    saver = make(tmp_path)
    saver.save(TinyEngine(1), contents(1))  # type: ignore[arg-type]
    assert "100 B are free" in capsys.readouterr().err
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_an_orphaned_attempt_cannot_commit(tmp_path: Path) -> None:
    saver = make(tmp_path)
    saver.save(TinyEngine(1), contents(1))  # type: ignore[arg-type]
    saver.settle()
    speak(tmp_path, "stopped")
    speak(tmp_path, "stopped")
    speak(tmp_path, "running")  # another attempt has begun
    saver.save(TinyEngine(2), contents(2))  # type: ignore[arg-type]
    with pytest.raises(SupersededError, match=r"attempt 3 on .* has superseded this attempt"):
        saver.settle()
    assert [p.name[-1] for p in committed(tmp_path / "checkpoints")] == ["1"]
    assert SupersededError.exit_code == 72


def test_what_a_dead_attempt_left_is_swept(tmp_path: Path) -> None:
    root = saved(tmp_path, 1)
    (root / ".step-0000000002.abcd.partial").mkdir()
    (root / ".step-0000000002.abcd.partial" / "rank-00000.safetensors").write_bytes(b"half")
    sweep(root)
    assert [p.name for p in root.iterdir()] == ["step-0000000001"]


def damage(path: Path, how: str) -> None:
    file = path / "rank-00000.safetensors"
    content = bytearray(file.read_bytes())
    if how == "truncated":
        file.write_bytes(content[:-100])
    elif how == "bit-flipped":
        content[-50] ^= 4
        file.write_bytes(content)
    elif how == "half-deleted":
        file.unlink()
    elif how == "unreadable":
        file.unlink()
        file.mkdir()
    elif how == "marker cut":
        marker = path / MARKER
        marker.write_text(marker.read_text()[:100])
    elif how == "marker gone":
        (path / MARKER).unlink()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated", "bytes, "),
        ("bit-flipped", "does not match its checksum"),
        ("half-deleted", "rank-00000.safetensors is missing"),
        ("unreadable", "rank-00000.safetensors"),
        ("marker cut", "COMMITTED.json is damaged: not JSON"),
        ("marker gone", ""),
    ],
)
def test_a_damaged_checkpoint_is_skipped_and_logged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, says: str
) -> None:
    root = saved(tmp_path, 1, 2)
    damage(root / "step-0000000002", how)
    engine, restored = load(root)
    assert (restored.state["step"], float(engine.weight[0])) == (1, 1.0)
    logged = capsys.readouterr().err
    assert ("step-0000000002 is damaged and skipped" in logged) == (how != "marker gone")
    assert says in logged
    damage(root / "step-0000000001", "truncated")
    if how != "marker gone":
        with pytest.raises(CheckpointError, match="none of the 2 checkpoints is intact"):
            load(root)


def test_a_checkpoint_of_another_recipe_is_refused_with_what_differs(tmp_path: Path) -> None:
    root = saved(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"another recipe: lr: 2.0 here, 1.0 there"):
        load(root, {"lr": 2.0})


class Judge:
    """A probe that finds some steps' weights wrong."""

    images = (0, 0, 0, 0)
    without = ()
    is_of = Probe.is_of

    def judge(self, engine: TinyEngine, recorded: float, wrote: dict[str, Any]) -> str:
        return "" if float(engine.weight[0]) == recorded else f"the loss was {recorded}"


def test_a_checkpoint_whose_model_gives_another_loss_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saver = make(tmp_path, keep=9)
    for step, loss in ((1, 1.0), (2, 9.0)):
        saver.save(TinyEngine(step), contents(step, probe={"examples": 4, "loss": loss}))  # type: ignore[arg-type]
    saver.finish()
    engine, restored = load(tmp_path / "checkpoints", probe=Judge())
    assert (restored.state["step"], float(engine.weight[0])) == (1, 1.0)
    assert "the loss was 9.0" in capsys.readouterr().err


def test_copies_are_sent_kept_by_the_same_rule_and_fetched_where_there_is_none(tmp_path: Path) -> None:
    remote = f"file://{tmp_path}/remote/run"
    saver = make(tmp_path / "a", remote=remote, keep=2)
    for step in (1, 2, 3, 4):
        saver.save(TinyEngine(step), contents(step))  # type: ignore[arg-type]
        saver.settle()
        assert saver.uploader is not None
        saver.uploader.finish()
    assert remote_steps(remote) == ["step-0000000004", "step-0000000003"]
    engine, restored = load(tmp_path / "b" / "checkpoints", remote=remote)
    assert (restored.state["step"], float(engine.weight[0])) == (4, 4.0)
    assert restored.path == tmp_path / "b" / "checkpoints" / "step-0000000004"


def test_a_damaged_only_checkpoint_is_replaced_by_its_copy(tmp_path: Path) -> None:
    remote = f"file://{tmp_path}/remote"
    root = saved(tmp_path / "a", 1, remote=remote)
    damage(root / "step-0000000001", "bit-flipped")
    assert float(load(root, remote=remote)[0].weight[0]) == 1.0


def test_an_upload_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    saved(tmp_path / "a", 1, remote=str(remote))
    (remote / "step-0000000002").mkdir()
    (remote / "step-0000000002" / "rank-00000.safetensors").write_bytes(b"half")
    assert load(tmp_path / "b" / "checkpoints", remote=str(remote))[1].state["step"] == 1


def test_a_copy_counts_only_once_the_logs_of_its_step_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    remote, log = tmp_path / "remote", tmp_path / "a" / "tb" / "events.out.tfevents.1.h.1"
    log.parent.mkdir(parents=True)
    log.write_bytes(b"as far as step 1")
    # Something lies where the log is to go.
    (remote / "tb" / log.name).mkdir(parents=True)
    saved(tmp_path / "a", 1, remote=str(remote))
    assert "step-0000000001 COULD NOT BE COPIED" in capsys.readouterr().err
    assert (remote / "step-0000000001" / "rank-00000.safetensors").exists()
    assert remote_steps(str(remote)) == []
    (remote / "tb" / log.name).rmdir()
    saved(tmp_path / "a", 2, remote=str(remote))
    assert remote_steps(str(remote)) == ["step-0000000002"]
    assert (remote / "tb" / log.name).read_bytes() == log.read_bytes()


@pytest.mark.s3
def test_copies_live_on_object_storage(s3: str, tmp_path: Path) -> None:
    remote = f"{s3}/runs/copies"
    saved(tmp_path / "a", 1, 2, remote=remote)
    assert remote_steps(remote)[0] == "step-0000000002"
    assert load(tmp_path / "b" / "checkpoints", remote=remote)[1].state["step"] == 2


def test_storage_that_is_away_does_not_stop_training_and_does_not_look_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Away:
        def __getattr__(self, name: str) -> Any:
            def refuse(*_: Any, **__: Any) -> None:
                raise OSError("connection refused")

            return refuse if name != "invalidate_cache" else lambda: None

    monkeypatch.setattr("vit_dist.train.checkpoint.remote.file_system", lambda url: (Away(), url))
    root = saved(tmp_path / "a", 1, remote="s3://bucket/run")
    logged = capsys.readouterr().err
    assert "step-0000000001 COULD NOT BE COPIED" in logged
    assert "Training continues" in logged
    assert load(root, remote="s3://bucket/run")[1].state["step"] == 1  # a local one needs no store
    with pytest.raises(DataError, match=r"s3://bucket/run: cannot be listed: connection refused"):
        load(tmp_path / "b" / "checkpoints", remote="s3://bucket/run")


def test_a_save_waits_for_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, looked, calls = Snapshot.write, threading.Event(), []

    def slow(self: Snapshot, path: Path) -> str:
        calls.append(path)
        # The first takes a while, the second until it was looked at what is there.
        time.sleep(0.3) if len(calls) == 1 else looked.wait(60)
        return write(self, path)

    monkeypatch.setattr(Snapshot, "write", slow)
    saver = make(tmp_path, keep=9)
    for step in (1, 2):
        saver.save(TinyEngine(step), contents(step))  # type: ignore[arg-type]
    assert [p.name[-1] for p in committed(tmp_path / "checkpoints")] == ["1"]
    looked.set()
    saver.finish()
    marker = json.loads((tmp_path / "checkpoints" / "step-0000000002" / MARKER).read_text())
    assert list(marker["files"]) == ["rank-00000.safetensors"]


def test_without_headroom_for_a_copy_training_waits_and_the_checkpoint_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("vit_dist.train.checkpoint.saver.available_memory", lambda: 8000)
    written, write = [], Snapshot.write

    def slow(self: Snapshot, path: Path) -> str:
        time.sleep(0.2)
        digest = write(self, path)
        written.append(path)
        return digest

    monkeypatch.setattr(Snapshot, "write", slow)
    saver, engine = make(tmp_path), TinyEngine(5.0)
    for step in (5, 6):
        saver.save(engine, contents(step))  # type: ignore[arg-type]
        assert len(written) == step - 4, "the state may change now, and it is not written"
        engine.weight += 1
    saver.finish()
    engine, restored = load(tmp_path / "checkpoints")
    assert restored.state["step"] == 6
    assert torch.equal(engine.weight, torch.full((1000,), 6.0))
    logged = capsys.readouterr().err
    assert logged.count("7.8 KiB of a checkpoint do not fit a second time into the 7.8 KiB of memory") == 1
