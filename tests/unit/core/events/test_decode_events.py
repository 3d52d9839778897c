"""The decoder of event files: equal to protobuf's reading of any file, by checksum, at speed, and cached by content."""

from __future__ import annotations

import os
import random
import struct
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from vit_dist.core.events.cache import cache_directory, read_cached
from vit_dist.core.events.crc import masked_crc
from vit_dist.core.events.decode import Decoder, tag_filter
from vit_dist.core.events.reader import EventFile, event_stamps, read_events, read_run
from vit_dist.core.events.writer import EventWriter


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_DIST_CACHE", str(tmp_path_factory.mktemp("cache")))


def frame(event: Event) -> bytes:
    payload = event.SerializeToString()
    header = struct.pack("<Q", len(payload))
    return header + struct.pack("<I", masked_crc32c(header)) + payload + struct.pack("<I", masked_crc32c(payload))


def scalar(step: int, tag: str, value: float, wall_time: float = 2.5) -> Event:
    return Event(step=step, wall_time=wall_time, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))


def simple_values(data: bytes) -> dict[str, list[tuple[int, float, float]]]:
    """The reference: protobuf's own reading of every complete record."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    position = 0
    while position + 16 <= len(data):
        (length,) = struct.unpack_from("<Q", data, position)
        event = Event.FromString(data[position + 12 : position + 12 + length])
        for value in event.summary.value:
            if value.HasField("simple_value"):
                found.setdefault(value.tag, []).append((event.step, value.simple_value, event.wall_time))
        position += length + 16
    return found


def parsed(data: bytes, tags: list[str] | None = None) -> EventFile:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return read_events(file.name, tags)


def values_of(data: bytes, tags: list[str] | None = None) -> dict[str, list[tuple[int, float, float]]]:
    scalars = parsed(data, tags).scalars
    return {tag: list(zip(*(column.tolist() for column in series), strict=True)) for tag, series in scalars.items()}


def mixed(seed: int, count: int) -> bytes:
    """Records of many shapes: tags of one length and of many, one value or several, histograms and images between."""
    draw = random.Random(seed)
    tags = [f"layer{i}/norm" for i in range(40)] + ["a", "bb", "train/loss", "x" * 150]
    records = [frame(Event(wall_time=1.0, file_version="brain.Event:2"))]
    for _ in range(count):
        step = draw.choice([0, 1, 127, 128, 300, 2**21, 2**40, draw.randrange(10**6)])
        kind = draw.random()
        if kind < 0.6:
            event = scalar(step, draw.choice(tags), draw.gauss(0, 1), draw.choice([0.0, draw.random() * 1e9]))
        elif kind < 0.85:
            event = scalar(step, "first", draw.random(), draw.random())
            event.summary.value.extend(
                Summary.Value(tag=tag, simple_value=draw.random()) for tag in draw.sample(tags, 3)
            )
        elif kind < 0.95:
            event = Event(step=step, wall_time=3.0)
            event.summary.value.add(tag="h").histo.bucket.extend(draw.random() for _ in range(draw.randrange(9)))
        else:
            event = Event(step=step, wall_time=3.0)
            event.summary.value.add(tag="i").image.encoded_image_string = draw.randbytes(draw.randrange(40_000))
        records.append(frame(event))
    return b"".join(records)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_any_mixture_of_records_is_read_as_protobuf_reads_it(seed: int) -> None:
    data = mixed(seed, 700)
    assert values_of(data) == simple_values(data)
    assert parsed(data).problem is None


def test_some_tags_are_those_of_all() -> None:
    data = mixed(3, 400)
    every = simple_values(data)
    assert values_of(data, ["train/loss", "layer?/*"]) == {
        tag: rows for tag, rows in every.items() if tag == "train/loss" or (tag.startswith("layer") and tag[6] == "/")
    }


def test_where_the_blocks_of_a_file_end_makes_no_difference() -> None:
    data, draw = mixed(4, 60), random.Random(0)
    expected = values_of(data)
    for most in (200, 100_000):
        decoder, position = Decoder(tag_filter(None)), 0
        while position < len(data):
            step = draw.randint(1, most)
            decoder.feed(data[position : position + step])
            position += step
        decoder.finish()
        assert decoder.problem is None
        rows = {
            tag: sorted(row for part in parts for row in zip(*(column.tolist() for column in part), strict=True))
            for tag, parts in decoder.parts.items()
        }
        assert {tag: [row[1:] for row in found] for tag, found in rows.items()} == expected


def test_a_flipped_bit_is_noticed_by_the_checksum_of_its_record(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path)
    for step in range(200):
        writer.scalars(step, {"loss": 1.0 + step, "lr": 0.5})
    writer.close()
    clean, draw = writer.path.read_bytes(), random.Random(5)
    intact = values_of(clean)["loss"]
    first = 16 + struct.unpack_from("<Q", clean)[0]
    for _ in range(60):
        data = bytearray(clean)
        data[draw.randrange(first, len(data))] ^= 1 << draw.randrange(8)
        read = parsed(bytes(data))
        assert read.problem is not None
        assert set(values_of(bytes(data)).get("loss", [])) < set(intact)


@pytest.mark.parametrize("length", [0, 3, 4, 127, 128, 1023, 1024, 1027, 5000])
def test_the_checksum_is_tensorboards_at_every_length(length: int) -> None:
    data = random.Random(length).randbytes(length)
    assert masked_crc(data) == masked_crc32c(data)


def test_a_restart_within_one_file_makes_void_what_it_repeats() -> None:
    from tensorboard.compat.proto.event_pb2 import SessionLog

    events = [scalar(step, "loss", 1.0) for step in range(10)]
    events.append(Event(step=6, wall_time=2.5, session_log=SessionLog(status=SessionLog.START)))
    events += [scalar(step, "loss", 2.0) for step in range(6, 8)]
    data = b"".join(map(frame, events))
    assert [row[:2] for row in values_of(data)["loss"]] == [*((s, 1.0) for s in range(6)), (6, 2.0), (7, 2.0)]


def test_reading_takes_a_fifth_of_event_accumulators_time_at_most(tmp_path: Path) -> None:
    """The real figures are those of benchmarks/read_events.py (26x and more); here only that it is not lost."""
    (tmp_path / "theirs").mkdir()
    data = b"".join(frame(scalar(step, f"train/value_{i}", step + i)) for step in range(600) for i in range(10))
    (tmp_path / "theirs" / "events.out.tfevents.1.x").write_bytes(data)
    began = time.process_time()
    theirs = EventAccumulator(str(tmp_path / "theirs"), size_guidance={"scalars": 0})
    theirs.Reload()
    between = time.process_time()
    mine = read_run(str(tmp_path / "theirs"))
    ended = time.process_time()
    assert mine.scalars["train/value_3"].values.tolist() == [e.value for e in theirs.Scalars("train/value_3")]
    assert (between - began) > 5 * (ended - between)


# The cache


def log(directory: Path, value: float) -> Path:
    writer = EventWriter(directory)
    writer.scalars(1, {"loss": value, "count": 2**40})
    writer.text("note", "hello", 3)
    writer.close()
    return writer.path


def cached(root: Path, tags: list[str]) -> list[Any]:
    return list(read_cached([stamp for stamps in event_stamps(str(root))[0].values() for stamp in stamps], tags))


def test_an_unchanged_file_comes_from_the_cache_and_a_changed_one_does_not(tmp_path: Path) -> None:
    path, tags = log(tmp_path / "a", 1.0), ["loss", "count", "note"]
    first, uncached = cached(tmp_path, tags)[0], read_events(str(path), tags)
    stamp = path.stat()
    other = log(tmp_path / "b", 2.0).read_bytes()
    (tmp_path / "b" / path.name).unlink(missing_ok=True)
    path.write_bytes(other)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    again = cached(tmp_path / "a", tags)[0]
    assert (again.texts, again.started, again.purge_step, again.problem) == (
        uncached.texts, uncached.started, uncached.purge_step, uncached.problem,
    )  # fmt: skip
    for tag in ("loss", "count"):
        for columns in zip(again.scalars[tag], uncached.scalars[tag], first.scalars[tag], strict=True):
            cached_column, expected, stored = (column.tolist() for column in columns)
            assert cached_column == expected == stored
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10**9))
    assert cached(tmp_path / "a", tags)[0].scalars["loss"].values.tolist() == [2.0]


def test_other_tags_are_another_entry_and_a_damaged_entry_is_read_anew(tmp_path: Path) -> None:
    log(tmp_path / "a", 1.0)
    assert list(cached(tmp_path, ["loss"])[0].scalars) == ["loss"]
    assert list(cached(tmp_path, ["count"])[0].scalars) == ["count"]
    entries = [path for path in cache_directory().rglob("*") if path.is_file()]
    assert len(entries) == 2
    for path in entries:
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    assert cached(tmp_path, ["loss"])[0].scalars["loss"].values.tolist() == [1.0]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("VIT_DIST_CACHE", str(tmp_path / "file"))
    log(tmp_path / "a", 1.0)
    assert np.array_equal(cached(tmp_path / "a", ["loss"])[0].scalars["loss"].values, [1.0])
