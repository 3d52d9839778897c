"""Event files, what they say of runs, and the cache of them, with anything changed: a report, a remark or one error."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.fuzz.budget import fuzz
from tests.unit.fuzz.damage import bounded, damaged, damaged_json
from tests.unit.scaling.logged_runs import info, log_run
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.events import cache
from vit_dist.core.events.crc import masked_crc
from vit_dist.core.events.reader import EventFile, event_stamps, read_events
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.run.log import METRICS, RUN, STATUS
from vit_dist.scaling.collect import collect


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The logs of a good run and of a bad one; the cache lies beside them."""
    root = tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIT_DIST_CACHE", str(tmp_path_factory.mktemp("cache")))
        log_run(root / "here", folder="good")
        log_run(root / "here", folder="bad", subset=800).rename(root / "here/bad/tb/events.out.tfevents.1.x")
        yield root / "here"


def framed(payload: bytes) -> bytes:
    header = struct.pack("<Q", len(payload))
    return header + struct.pack("<I", masked_crc(header)) + payload + struct.pack("<I", masked_crc(payload))


def payloads(content: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        found.append(content[at + 12 : at + 12 + length])
        at += length + 16
    return found


@st.composite
def damaged_log(draw: st.DrawFn, content: bytes) -> bytes:
    """The file with bytes changed; or its records, whose checksums are then made anew."""
    if draw(st.booleans()):
        return draw(damaged([content]))
    records = payloads(content)
    for _ in range(draw(st.integers(1, 3))):
        number = draw(st.integers(0, len(records) - 1))
        records[number] = draw(damaged([records[number]], records, 3))
        records += records[number : number + 1] * draw(st.sampled_from((0, 0, 1, 50)))
    return b"".join(map(framed, records))


def use(file: EventFile) -> None:
    for steps, values, walls in file.scalars.values():
        assert (steps.dtype, values.dtype, walls.dtype) == (np.int64, np.float64, np.float64)
        assert len(steps) == len(values) == len(walls)
    assert file.problem is None or len(file.problem) < 200_000


@fuzz
@given(st.data())
def test_any_event_file_is_read_and_its_run_left_out_at_the_most(logs: Path, data: st.DataObject) -> None:
    path = logs / "bad/tb/events.out.tfevents.1.x"
    real = path.read_bytes()
    path.write_bytes(data.draw(damaged_log(real)))
    try:
        with bounded():
            use(read_events(str(path)))
            found = collect(str(logs), study="tiny")
    finally:
        path.write_bytes(real)
    assert "good/tb" in {one.directory for one in (*found.observations, *found.excluded)}
    assert all(isinstance(one.reason, str) for one in found.excluded)


@fuzz
@given(st.data())
def test_whatever_a_run_says_of_itself_concerns_itself_alone(logs: Path, data: st.DataObject) -> None:
    entries = [
        info(subset=900).model_dump(),
        {"status": "done", "step": 10, "examples": 640},
        {"score": {"better": "higher"}},
    ]
    odd = ["../../../tmp/x", "done", "-x", "x" * 300]
    said = [data.draw(st.just(entry) | damaged_json([entry], odd)) for entry in entries]
    steps = data.draw(st.lists(st.sampled_from((0, 10, 2**62)), min_size=3, max_size=3))
    metric = data.draw(st.sampled_from(("val/top1", "score")))
    (logs / "bad/other").mkdir(exist_ok=True)
    writer = EventWriter(logs / "bad/other")
    try:
        for tag, entry, step in zip((RUN, STATUS, METRICS), said, steps, strict=True):
            writer.text(tag, json.dumps(entry), step)
        writer.scalars(10, {"val/top1": 0.5, "score": 0.5})
        writer.close()
        with bounded():
            try:
                collect(str(logs), study="tiny", metric=metric)
            except (DataError, ConfigError):
                assert metric == "score"
    finally:
        writer.close()
        writer.path.unlink()


@fuzz
@given(st.data())
def test_any_entry_of_the_cache_is_used_or_passed_over(logs: Path, data: st.DataObject) -> None:
    stamps = [stamp for some in event_stamps(str(logs))[0].values() for stamp in some]
    (stamp, *_) = stamps
    for file in cache.read_cached([stamp], ["val/*"]):
        use(file)
    key = cache._key(stamp, ["val/*"])
    real = cache.load_entry("events", key)
    assert real is not None
    head, _, body = real.partition(b"\n")
    forged = data.draw(damaged([real]) | damaged_json([json.loads(head)], [2**40, [["a", 1]], [["a", -1]]]))
    content = forged if isinstance(forged, bytes) else json.dumps(forged).encode() + b"\n" + body
    cache.store_entry("events", key, content)
    try:
        with bounded():
            for file in cache.read_cached([stamp], ["val/*"]):
                use(file)
    finally:
        cache.store_entry("events", key, real)
