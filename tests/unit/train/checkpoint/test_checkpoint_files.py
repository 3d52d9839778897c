"""Rank files, markers, retention, goodput, cadences and spikes: what recovery is made of, without processes."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vit_dist.config.schema import CheckpointConfig, GuardConfig
from vit_dist.core.errors import CheckpointError
from vit_dist.core.metrics import LOSS
from vit_dist.core.run.checkpoints import FORMAT, MARKER, committed, read_marker
from vit_dist.core.world import World
from vit_dist.data.order import OrderIdentity
from vit_dist.engines._protocol import StepResult
from vit_dist.engines._slices import EngineState, Slice, split_over_ranks
from vit_dist.train.checkpoint.format import SliceSource, Snapshot, checksum
from vit_dist.train.checkpoint.host_memory import HostMemory
from vit_dist.train.checkpoint.store import Retention, Saved, drop_after, no_disk_headroom, prune, verify_files
from vit_dist.train.health.guards import after_step, loss_limit
from vit_dist.train.progress.cadence import AutoCadence, young_daly
from vit_dist.train.progress.goodput import BUCKETS, Goodput, carried
from vit_dist.train.state import TrainState


def wholes() -> list[tuple[str, str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        ("weight", "a.weight", torch.randn(7, 5, generator=generator)),
        ("weight", "b", torch.randn(3, generator=generator).to(torch.bfloat16)),
        ("exp_avg", "a.weight", torch.randn(7, 5, generator=generator)),
        ("buffer", "n", torch.tensor(41, dtype=torch.int64)),
    ]


def write(folder: Path, size: int) -> list[Path]:
    files = []
    for rank in range(size):
        scalars = {"a.weight": {"step": 3.0}} if rank == 0 else {}
        snapshot = Snapshot(EngineState(split_over_ranks(wholes(), World(rank, size)), scalars), HostMemory())
        path = folder / f"rank-{rank:05d}.safetensors"
        assert snapshot.write(path) == checksum(path)
        assert path.stat().st_size == snapshot.num_bytes
        files.append(path)
    return files


@pytest.mark.parametrize("size", [1, 2, 3, 8, 100])
def test_tensors_cut_over_any_number_of_ranks_come_back_bit_for_bit(tmp_path: Path, size: int) -> None:
    source = SliceSource(write(tmp_path, size))
    for kind, name, tensor in wholes():
        assert torch.equal(source.tensor(kind, name), tensor)
        assert source.tensor(kind, name).dtype == tensor.dtype
        for start, stop in ((0, 1), (tensor.numel() // 2, tensor.numel())):
            assert torch.equal(source.read(kind, name, start, stop), tensor.reshape(-1)[start:stop])
    assert source.kinds("a.weight") == ["exp_avg"]
    assert source.kinds("b") == []
    assert source.scalars("a.weight") == {"step": 3.0}


def test_files_are_those_of_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    found = load_file(write(tmp_path, 1)[0])
    assert set(found) == {f"{kind}:{name}" for kind, name, _ in wholes()}
    for kind, name, tensor in wholes():
        assert torch.equal(found[f"{kind}:{name}"], tensor.reshape(-1))


def test_memory_of_a_snapshot_is_used_again_and_holds_a_copy(tmp_path: Path) -> None:
    tensor = torch.arange(8.0)
    memory = HostMemory()
    first = Snapshot(EngineState([Slice("weight", "x", (8,), 0, tensor)], {}), memory)
    place = memory.block(32).data_ptr()
    tensor += 1  # training goes on
    first.write(tmp_path / "a")
    assert torch.equal(SliceSource([tmp_path / "a"]).tensor("weight", "x"), torch.arange(8.0))
    Snapshot(EngineState([Slice("weight", "x", (8,), 0, tensor)], {}), memory).write(tmp_path / "b")
    assert memory.block(32).data_ptr() == place
    assert torch.equal(SliceSource([tmp_path / "b"]).tensor("weight", "x"), torch.arange(1.0, 9.0))


def test_a_missing_rank_file_is_named_by_what_it_lacks(tmp_path: Path) -> None:
    files = write(tmp_path, 3)
    with pytest.raises(CheckpointError, match=r"a rank's file is missing"):
        SliceSource([files[0], files[2]])
    source = SliceSource(files)
    with pytest.raises(CheckpointError, match=r"no weight of c; it is of another model"):
        source.tensor("weight", "c")
    with pytest.raises(CheckpointError, match=r"has 3 elements, 2 to 4 are asked for"):
        source.read("weight", "b", 2, 4)


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rank-00000.safetensors"
    path.write_bytes(b"\x80\x04 a pickle")  # nothing is ever unpickled
    with pytest.raises(CheckpointError, match="not a checkpoint's file"):
        SliceSource([path])


def checkpoint(root: Path, step: int, **extra: object) -> Path:
    path = root / f"step-{step:010d}"
    path.mkdir(parents=True)
    (path / "rank-00000.safetensors").write_bytes(b"content")
    marker = {
        "format": FORMAT,
        "layout": {},
        "recipe": {},
        "state": {"step": step, "position": step * 10},
        "files": {"rank-00000.safetensors": {"bytes": 7, "xxh128": checksum(path / "rank-00000.safetensors")}},
    }
    (path / MARKER).write_text(json.dumps(marker | extra))
    return path


def test_verification_names_what_is_wrong(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, 1)
    marker, problem = read_marker(path)
    assert problem == ""
    assert verify_files(path, marker, World()) == ""
    (path / "rank-00000.safetensors").write_bytes(b"Content")
    assert "does not match its checksum" in verify_files(path, marker, World())
    (path / "rank-00000.safetensors").write_bytes(b"cont")
    assert "has 4 bytes, 7 were written" in verify_files(path, marker, World())
    (path / "rank-00000.safetensors").unlink()
    assert "is missing" in verify_files(path, marker, World())


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "damaged: not JSON"),
        ('{"format": 1}', "format 1, this version reads 2"),
        ('{"format": 2, "layout": {}, "recipe": {}, "state": 3, "files": {}}', "state is not a mapping"),
        ("[]", "not a JSON object"),
    ],
)
def test_a_marker_that_is_none_is_a_problem_not_a_crash(tmp_path: Path, content: str, says: str) -> None:
    path = checkpoint(tmp_path, 1)
    (path / MARKER).write_text(content)
    assert says in read_marker(path)[1]


def test_retention_keeps_the_newest_every_nth_and_the_best() -> None:
    saved = [Saved(s, s * 10, {"val/top1": 1 / (1 + abs(s - 4)), "val/loss": float(abs(s - 3))}) for s in range(1, 11)]
    assert Retention(2).steps_to_keep(saved) == {9, 10}
    assert Retention(1, every_examples=35).steps_to_keep(saved) == {4, 7, 10}
    assert Retention(1, best="val/top1").steps_to_keep(saved) == {4, 10}
    assert Retention(1, best="val/loss", rule=LOSS).steps_to_keep(saved) == {3, 10}
    assert Retention(3, best="val/none").steps_to_keep(saved) == {8, 9, 10}


@given(st.integers(1, 5), st.integers(1, 100), st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_what_is_kept_does_not_depend_on_when_it_was_pruned(keep: int, every: int, gaps: list[int]) -> None:
    rule, at, left = Retention(keep, every), 0, list[Saved]()
    everything = []
    for gap in gaps:
        at += gap
        everything.append(Saved(at, at * 3, {}))
        left.append(everything[-1])
        left = [s for s in left if s.step in rule.steps_to_keep(left)]
    assert {s.step for s in left} == rule.steps_to_keep(everything)


def test_pruning_leaves_what_it_cannot_read(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        checkpoint(tmp_path, step)
    (tmp_path / "step-0000000001" / MARKER).write_text("{")
    prune(tmp_path, Retention(2))
    assert [p.name[-1] for p in committed(tmp_path)] == ["4", "3", "1"]
    drop_after(tmp_path, 3)
    assert [p.name[-1] for p in committed(tmp_path)] == ["3", "1"]


def test_a_full_disk_is_noticed_before_it_is_full(tmp_path: Path) -> None:
    assert no_disk_headroom(tmp_path / "new", 10) == ""
    assert "are needed" in no_disk_headroom(tmp_path, 1 << 60)


def test_auto_cadence_is_young_and_daly(monkeypatch: pytest.MonkeyPatch) -> None:
    assert young_daly(2.0, 3600.0) == pytest.approx(120.0)
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    cadence = AutoCadence(3600.0, _last=0.0)
    cadence.measured(2.0, 5.0)
    now[0] = 119.0
    assert not cadence.due(0, 1)
    now[0] = 121.0
    assert cadence.due(1, 2)
    assert not cadence.due(2, 3)
    cadence.measured(2.0, 500.0)  # never sooner than the disk can follow
    assert cadence.interval_s == 1000.0
    assert CheckpointConfig(every="auto").every == "auto"


def test_every_second_is_in_one_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    goodput = Goodput({}, 90.0)
    for bucket, seconds in (("wait", 2.0), ("train", 5.0), ("save", 1.0), ("train", 4.0)):
        goodput.enter(bucket)
        now[0] += seconds
    sums = goodput.sums()
    assert {b: s for b, s in sums.items() if s} == {"start": 10.0, "wait": 2.0, "train": 9.0, "save": 1.0}
    assert sum(sums.values()) == now[0] - 90.0
    assert goodput.useful_fraction() == pytest.approx(9 / 22)
    goodput.rewound({"start": 10.0, "wait": 2.0, "train": 5.0})
    assert goodput.sums()["lost"] == 5.0
    assert sum(goodput.sums().values()) == 22.0


def test_goodput_survives_a_restart_and_a_clock_that_jumps() -> None:
    saved, beat = {"train": 50.0, "save": 2.0}, {"train": 80.0, "save": 3.0, "lost": 7.0, "down": 1.0}
    sums = carried(saved, beat, beat_at=1000.0, now=1060.0)
    assert sums["train"] == 50.0
    assert sums["lost"] == 7.0 + 30.0 + 1.0
    assert sums["down"] == 61.0
    assert sum(sums.values()) == sum(beat.values()) + 60.0
    backwards = carried(saved, beat, beat_at=1000.0, now=400.0)
    assert backwards["down"] == 1.0
    assert carried({}, {}, 0.0, 5.0) == dict.fromkeys(BUCKETS, 0.0)
    assert carried(saved, {}, 0.0, 5.0)["train"] == 50.0  # fetched to a machine that knows nothing of the run


def test_a_spike_is_far_from_the_median_of_the_last_losses() -> None:
    config = GuardConfig(spike="skip", spike_z=6.0)
    assert loss_limit(config, (1.0,) * 15) == math.inf
    calm = tuple(2.0 + 0.1 * math.sin(i) for i in range(64))
    limit = loss_limit(config, calm)
    assert 2.3 < limit < 3.0
    assert loss_limit(config, (*calm, 50.0, 80.0)) == pytest.approx(limit, rel=0.05)  # spikes do not hide spikes
    assert loss_limit(GuardConfig(spike="off"), calm) == math.inf
    assert loss_limit(config, (1.0,) * 64) == pytest.approx(1.06)  # at rest a ripple is none


def test_steps_that_were_not_applied_are_counted_and_not_remembered() -> None:
    config, state = GuardConfig(spike="skip"), TrainState(losses=(1.0,))
    good, spike = after_step(config, state, StepResult(2.0, 1.0, True), 5.0, position=8, quarantined=frozenset())
    assert (spike, good.losses, good.bad_in_row, good.skipped) == (False, (1.0, 2.0), 0, 0)
    bad, spike = after_step(config, good, StepResult(9.0, 1.0, False), 5.0, position=16, quarantined=frozenset())
    assert (spike, bad.losses, bad.bad_in_row, bad.skipped, bad.spikes) == (True, (1.0, 2.0), 1, 1, 1)
    nan, spike = after_step(config, bad, StepResult(math.nan, 1.0, False), 5.0, position=24, quarantined=frozenset())
    assert (spike, nan.bad_in_row, nan.spikes) == (False, 2, 1)
    again, _ = after_step(config, nan, StepResult(2.0, 1.0, True), 5.0, position=32, quarantined=frozenset())
    assert again.bad_in_row == 0


def test_a_rewound_state_skips_what_led_to_the_spike() -> None:
    past = TrainState(step=10, position=160)
    state = past.rewound(TrainState(step=15, position=240, spikes=1))
    assert (state.step, state.position, state.skipped_ranges, state.examples) == (10, 240, ((160, 240),), 160)
    # Before the next checkpoint another spike: two rewinds to the same place are two, and no example counts twice.
    again = past.rewound(replace(state, step=14, position=304, spikes=2))
    assert (again.step, again.skipped_ranges, again.examples, again.spikes) == (10, ((160, 240), (240, 304)), 160, 2)


def test_the_train_state_keeps_the_keys_of_markers_that_were_written_before() -> None:
    identity = OrderIdentity("fingerprint", 8, 0, 1, 8, 0)
    counters = {"step": 3, "position": 48, "skipped": 1, "quarantined": [5], "losses": [2.5], "bad_in_row": 0}
    marker = {**counters, "spikes": 1, "passed_over": [[16, 32]], "order": asdict(identity)}
    state = TrainState.load(json.loads(json.dumps(marker)), identity, "here")
    assert state == TrainState(3, 48, 1, frozenset({5}), (2.5,), 0, 1, ((16, 32),))
    dumped = json.loads(json.dumps(state.dump(identity)))
    assert (dumped, list(dumped)) == (marker, list(marker))
