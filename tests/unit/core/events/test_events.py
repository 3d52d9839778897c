"""The event files that we write are TensorBoard's, and our reader reads what TensorBoard reads."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader, RawEventFileLoader
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.util import tensor_util

from vit_dist.core.errors import DataError, RunError
from vit_dist.core.events import crc as event_crc
from vit_dist.core.events.reader import event_stamps, read_events, read_run
from vit_dist.core.events.writer import EventWriter


def accumulator(directory: Path) -> EventAccumulator:
    loaded = EventAccumulator(str(directory), size_guidance={"scalars": 0, "tensors": 0})
    loaded.Reload()
    return loaded


def write(directory: Path, rows: dict[int, dict[str, float]], purge_step: int | None = None) -> Path:
    writer = EventWriter(directory, purge_step=purge_step)
    for step, values in rows.items():
        writer.scalars(step, values)
    writer.close()
    return writer.path


def values(directory: Path, tag: str) -> dict[int, float]:
    series = read_run(str(directory)).scalars[tag]
    return dict(zip(series.steps.tolist(), series.values.tolist(), strict=True))


def test_tensorboard_and_our_reader_read_the_same_scalars_from_what_we_write(tmp_path: Path) -> None:
    write(tmp_path, {step: {"train/loss": 1 / (step + 1), "train/lr": 1e-3 * step} for step in range(300)})
    log, oracle = read_run(str(tmp_path)), accumulator(tmp_path)
    assert sorted(log.scalars) == sorted(oracle.Tags()["scalars"]) == ["train/loss", "train/lr"]
    for tag, series in log.scalars.items():
        theirs = oracle.Scalars(tag)
        assert series.steps.tolist() == [e.step for e in theirs]
        assert series.values.tolist() == [e.value for e in theirs]
        assert series.wall_times.tolist() == [e.wall_time for e in theirs]


def test_many_values_at_a_step_share_one_event_and_every_checksum_holds(tmp_path: Path) -> None:
    path = write(tmp_path, {7: {f"t/{i}": float(i) for i in range(20)}})
    assert len(list(RawEventFileLoader(str(path)).Load())) == 2  # the version, and the values; checks the checksums
    assert len(read_run(str(tmp_path)).scalars) == 20


@pytest.mark.parametrize("length", [0, 1, 7, 8, 255, 1000])
def test_the_checksum_is_tensorboards(length: int) -> None:
    data = bytes(i * 37 % 256 for i in range(length))
    assert event_crc.masked_crc(data) == masked_crc32c(data)


def test_counts_are_exact_beyond_single_precision_for_both_readers(tmp_path: Path) -> None:
    count = 300_000_001
    assert int(np.float32(count)) != count
    write(tmp_path, {1: {"progress/examples": count, "train/loss": 0.5}})
    assert values(tmp_path, "progress/examples") == {1: count}
    (tensor,) = accumulator(tmp_path).Tensors("progress/examples")
    assert int(tensor_util.make_ndarray(tensor.tensor_proto)) == count


def test_json_keeps_every_digit_and_shows_as_code(tmp_path: Path) -> None:
    mapping = {"seed": 2**63 + 1, "lr": 3e-4, "none": None}
    writer = EventWriter(tmp_path)
    writer.json("vit_dist/run", mapping)
    writer.close()
    text = read_run(str(tmp_path)).texts["vit_dist/run"][0]
    assert json.loads(text) == mapping
    assert all(line.startswith("    ") for line in text.splitlines())
    assert "vit_dist/run" in accumulator(tmp_path).PluginTagToContent("text")


def test_summary_writer_files_are_read_in_both_forms_of_its_scalars(tmp_path: Path) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as theirs:
        for step in range(20):
            theirs.add_scalar("old", step * 0.5, step)
            theirs.add_scalar("new", step * 0.25, step, new_style=True)
            theirs.add_scalar("double", step * 0.1, step, new_style=True, double_precision=True)
        theirs.add_text("note", "hello", 3)
        theirs.add_histogram("weights", np.arange(10.0), 1)
    log = read_run(str(tmp_path))
    assert sorted(log.scalars) == ["double", "new", "old"]
    assert log.texts == {"note/text_summary": {3: "hello"}}
    assert values(tmp_path, "old") == {step: step * 0.5 for step in range(20)}
    assert values(tmp_path, "new") == {step: step * 0.25 for step in range(20)}
    assert values(tmp_path, "double") == {step: step * 0.1 for step in range(20)}


def test_a_restart_overrides_what_came_after_the_step_it_resumed_from(tmp_path: Path) -> None:
    write(tmp_path, {step: {"loss": 1.0, "early": 2.0} for step in range(10)})
    write(tmp_path, {step: {"loss": 3.0} for step in range(6, 8)}, purge_step=6)
    assert values(tmp_path, "loss") == {**dict.fromkeys(range(6), 1.0), 6: 3.0, 7: 3.0}
    assert values(tmp_path, "early") == dict.fromkeys(range(6), 2.0)
    theirs = accumulator(tmp_path).Scalars("loss")
    assert {e.step: e.value for e in theirs} == values(tmp_path, "loss")


def test_texts_of_dropped_steps_go_and_those_before_stay(tmp_path: Path) -> None:
    first = EventWriter(tmp_path)
    first.text("run", "a", 0)
    first.text("status", "stopped", 9)
    first.close()
    second = EventWriter(tmp_path, purge_step=6)
    second.text("run", "b", 0)
    second.close()
    assert read_run(str(tmp_path)).texts == {"run": {0: "b"}}


def test_without_a_purge_the_last_written_value_of_a_step_counts(tmp_path: Path) -> None:
    write(tmp_path, {1: {"loss": 1.0}, 2: {"loss": 2.0}})
    write(tmp_path, {2: {"loss": 5.0}, 3: {"loss": 6.0}})
    assert values(tmp_path, "loss") == {1: 1.0, 2: 5.0, 3: 6.0}


def test_a_restart_on_a_node_whose_clock_is_behind_still_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = write(tmp_path, {step: {"loss": 1.0} for step in range(4)})
    late = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: late)
    second = write(tmp_path, {2: {"loss": 9.0}}, purge_step=2)
    assert first.name < second.name
    assert values(tmp_path, "loss") == {0: 1.0, 1: 1.0, 2: 9.0}


def test_attempts_within_one_second_get_files_of_their_own_in_order(tmp_path: Path) -> None:
    paths = [write(tmp_path, {1: {"loss": float(i)}}) for i in range(5)]
    assert sorted(set(paths)) == paths
    assert values(tmp_path, "loss") == {1: 4.0}


@pytest.mark.parametrize("cut", [1, 5, 17, 30])
def test_a_file_cut_anywhere_in_its_last_record_reads_to_the_record_before(tmp_path: Path, cut: int) -> None:
    path = write(tmp_path, {step: {"loss": float(step)} for step in range(5)})
    path.write_bytes(path.read_bytes()[:-cut])
    log = read_run(str(tmp_path))
    assert log.scalars["loss"].steps.tolist() == [0, 1, 2, 3]
    assert len(log.problems) == 1
    assert "cut short" in log.problems[0]


def test_an_empty_file_beside_a_whole_one_is_reported_and_harmless(tmp_path: Path) -> None:
    write(tmp_path, {1: {"loss": 1.0}})
    (tmp_path / "events.out.tfevents.9999999999.x").touch()
    log = read_run(str(tmp_path))
    assert values(tmp_path, "loss") == {1: 1.0}
    assert [p.rpartition(": ")[2] for p in log.problems] == ["is empty"]


def test_a_tail_of_zeros_or_a_damaged_length_ends_the_reading_with_a_remark(tmp_path: Path) -> None:
    path = write(tmp_path, {step: {"loss": float(step)} for step in range(5)})
    content = path.read_bytes()
    path.write_bytes(content + bytes(64))
    assert read_events(str(path)).scalars["loss"].steps.tolist() == [0, 1, 2, 3, 4]
    assert "damaged" in (read_events(str(path)).problem or "")
    first = 16 + struct.unpack_from("<Q", content)[0]
    path.write_bytes(content[:first] + b"\x01" + content[first + 1 :])
    assert read_events(str(path)).scalars == {}
    assert read_events(str(path)).problem


def test_a_damaged_record_is_left_out_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path, {step: {"loss": float(step)} for step in range(3)})
    data = bytearray(path.read_bytes())
    at = bytes(data).rindex(b"loss") - 2
    data[at] = 0x7F  # a wrong wire type
    path.write_bytes(data)
    read = read_events(str(path))
    assert read.scalars["loss"].steps.tolist() == [0, 1]
    assert read.problem == "1 damaged record left out"


def test_reading_some_tags_gives_the_same_as_reading_all_and_choosing(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for step in range(0, 100_000, 1000):
        writer.scalars(step, {"train/loss": 1.0 * step, "val/top1_extra": 3.0})
        writer.scalars(step, {"val/top1": 2.0 * step})
    writer.text("vit_dist/run", "who")
    writer.close()
    write(tmp_path, {50_000: {"val/top1": -1.0}}, purge_step=50_000)
    some, every = read_run(str(tmp_path), ["val/top1", "vit_dist/run"]), read_run(str(tmp_path))
    assert list(some.scalars) == ["val/top1"]
    assert some.texts == every.texts
    for mine, theirs in zip(some.scalars["val/top1"], every.scalars["val/top1"], strict=True):
        assert mine.tolist() == theirs.tolist()
    assert some.scalars["val/top1"].values[-1] == -1.0


def test_what_was_written_survives_kill_9_without_a_flush(tmp_path: Path) -> None:
    code = f"""
    import sys, time
    from pathlib import Path
    from vit_dist.core.events.writer import EventWriter
    writer = EventWriter(Path({str(tmp_path)!r}))
    for step in range(50):
        writer.scalars(step, {{"loss": float(step)}})
    assert "torch" not in sys.modules
    print("written", flush=True)
    time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        os.kill(process.pid, signal.SIGKILL)
    assert values(tmp_path, "loss") == {step: float(step) for step in range(50)}
    assert read_run(str(tmp_path)).problems == ()


def test_hparams_and_layout_reach_their_plugins_in_the_runs_own_directory(tmp_path: Path) -> None:
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.plugins.hparams import metadata

    writer = EventWriter(tmp_path)
    writer.hparams({"lr": 1e-3, "model": "vit", "flip": True}, ["val/top1"], group="vit-500-s0")
    writer.custom_scalars({"Learning": {"loss": ["train/loss", "val/loss"]}})
    writer.close()
    assert [p.parent for p in tmp_path.rglob("*tfevents*")] == [tmp_path]
    loaded = accumulator(tmp_path)
    content = loaded.PluginTagToContent("hparams")
    start = metadata.parse_session_start_info_plugin_data(content[metadata.SESSION_START_INFO_TAG])
    assert start.group_name == "vit-500-s0"
    assert start.hparams["lr"].number_value == 1e-3
    assert start.hparams["flip"].bool_value is True
    experiment = metadata.parse_experiment_plugin_data(content[metadata.EXPERIMENT_TAG])
    assert [m.name.tag for m in experiment.metric_infos] == ["val/top1"]
    assert [h.name for h in experiment.hparam_infos] == ["flip", "lr", "model"]
    (tensor,) = loaded.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    assert list(layout.category[0].chart[0].multiline.tag) == ["train/loss", "val/loss"]
    assert read_run(str(tmp_path)).scalars == {}


def test_restarts_are_marked_as_tensorboard_marks_them(tmp_path: Path) -> None:
    path = write(tmp_path, {6: {"loss": 1.0}}, purge_step=6)
    loaded = list(EventFileLoader(str(path)).Load())
    assert loaded[0].file_version == "brain.Event:2"
    assert (loaded[1].step, loaded[1].session_log.status) == (6, 1)


def test_event_directories_are_relative_to_what_was_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/tb", "a/tb"):
        write(tmp_path / "runs" / name, {1: {"loss": 1.0}})
    (tmp_path / "runs" / "a" / "status.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    for url in ("runs", "runs/", "./runs", str(tmp_path / "runs"), f"file://{tmp_path}/runs"):
        stamps, _ = event_stamps(url)
        assert list(stamps) == ["a/tb", "b/tb"]
        assert read_events(stamps["a/tb"][0].url).scalars["loss"].steps.tolist() == [1]
    assert list(event_stamps("runs/a/tb")[0]) == ["."]


def test_logs_in_an_object_store_are_read_by_url(tmp_path: Path) -> None:
    import fsspec

    path = write(tmp_path, {1: {"loss": 1.0}})
    store = fsspec.filesystem("memory")
    store.pipe_file(f"/bucket/runs/a/tb/{path.name}", path.read_bytes())
    assert list(event_stamps("memory://bucket/runs")[0]) == ["a/tb"]
    assert read_run("memory://bucket/runs/a/tb").scalars["loss"].values.tolist() == [1.0]


def test_a_missing_directory_an_empty_one_and_an_unwritable_one_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such directory"):
        event_stamps(str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="holds no TensorBoard event files"):
        read_run(str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot hold a run's log"):
        EventWriter(tmp_path / "file")
