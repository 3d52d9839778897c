"""TensorBoard event files: one writer for a run, and a reader of our own. No torch, no TensorFlow.

The files are TensorBoard's: TFRecord frames (length, masked CRC-32C, payload, masked CRC-32C) around `Event` protos.
Many values share one event, counts and text keep their digits, a restart says from which step on it overrides what
earlier files hold, and every event reaches the operating system at once, so that a killed process loses none.
"""

from __future__ import annotations

import functools
import json
import os
import re
import socket
import struct
import textwrap
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.errors import DataError, RunError
from vit_dist.core.files import explained, file_system, is_remote, read_bytes, redact

HParam = bool | int | float | str

_MASK_DELTA = 0xA282EAD8
_NAME = re.compile(r"^events\.out\.tfevents\.(\d+)\.")
_SUMMARY_FIELD = 0x2A  # `summary` of Event: field 5, length-delimited
_HIDDEN_PLUGINS = frozenset({"hparams", "custom_scalars"})


class EventWriter:
    """The one event file of one attempt of a run, in `directory`.

    Every method writes one event, which survives `kill -9` from the moment the method returns.

    Args:
        directory: made if missing; holds the event files of all attempts of the run and nothing else's.
        purge_step: on a restart from step s, s + 1: readers drop what earlier files say of this step and later.

    Raises:
        RunError: the file cannot be made or written.
    """

    def __init__(self, directory: Path, *, purge_step: int | None = None) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self.path, started = _new_file(directory)
        try:
            self._file = self.path.open("xb")
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {error.strerror}") from None
        self._write(wall_time=started, file_version="brain.Event:2")
        if purge_step is not None:
            self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at one step, all in one event.

        A float is stored in single precision, as TensorBoard does; an int is stored in double precision, so that
        counts are exact up to 2^53.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.types_pb2 import DT_DOUBLE

        summary = Summary()
        for tag, value in values.items():
            if isinstance(value, int):
                item = summary.value.add(tag=tag, metadata=_metadata("scalars", data_class=1))
                item.tensor.dtype = DT_DOUBLE
                item.tensor.double_val.append(value)
            else:
                summary.value.add(tag=tag, simple_value=value)
        self._write(step=step, summary=summary)

    def text(self, tag: str, text: str, step: int = 0) -> None:
        """A text, shown by TensorBoard as Markdown."""
        self._tensor(tag, text.encode(), _metadata("text", data_class=2), step)

    def json(self, tag: str, mapping: Mapping[str, Any], step: int = 0) -> None:
        """A mapping as JSON text: numbers keep every digit. Indented, so that TensorBoard shows it as code."""
        self.text(tag, textwrap.indent(json.dumps(mapping, indent=2, allow_nan=False), "    "), step)

    def hparams(self, values: Mapping[str, HParam], metrics: Sequence[str], *, group: str) -> None:
        """What this run was started with, for TensorBoard's HPARAMS tab.

        Args:
            values: one value for each hyper-parameter.
            metrics: scalar tags to show beside them.
            group: runs of one group are one row; give each run its own name.
        """
        from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

        infos = []
        start = plugin_data_pb2.SessionStartInfo(group_name=group, start_time_secs=time.time())
        for name, value in sorted(values.items()):
            if isinstance(value, bool):
                kind, start.hparams[name].bool_value = api_pb2.DATA_TYPE_BOOL, value
            elif isinstance(value, int | float):
                kind, start.hparams[name].number_value = api_pb2.DATA_TYPE_FLOAT64, value
            else:
                kind, start.hparams[name].string_value = api_pb2.DATA_TYPE_STRING, value
            infos.append(api_pb2.HParamInfo(name=name, type=kind))
        shown = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in metrics]
        experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=shown)
        for tag, content in (
            (metadata.EXPERIMENT_TAG, plugin_data_pb2.HParamsPluginData(experiment=experiment)),
            (metadata.SESSION_START_INFO_TAG, plugin_data_pb2.HParamsPluginData(session_start_info=start)),
        ):
            self._tensor(tag, None, metadata.create_summary_metadata(content), 0)

    def custom_scalars(self, layout: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Which charts TensorBoard's CUSTOM SCALARS tab shows: {category: {chart: [regular expressions of tags]}}."""
        from tensorboard.plugins.custom_scalar import layout_pb2, metadata

        categories = [
            layout_pb2.Category(
                title=title,
                chart=[
                    layout_pb2.Chart(title=name, multiline=layout_pb2.MultilineChartContent(tag=list(tags)))
                    for name, tags in charts.items()
                ],
            )
            for title, charts in layout.items()
        ]
        content = layout_pb2.Layout(category=categories).SerializeToString()
        self._tensor(metadata.CONFIG_SUMMARY_TAG, content, metadata.create_summary_metadata(), 0)

    def flush(self) -> None:
        """Wait until everything written so far is on the disk, for moments such as before a checkpoint is committed."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; closing twice is allowed."""
        self._file.close()

    def _tensor(self, tag: str, content: bytes | None, metadata: Any, step: int) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.tensor_pb2 import TensorProto
        from tensorboard.compat.proto.types_pb2 import DT_FLOAT, DT_STRING

        tensor = TensorProto(dtype=DT_FLOAT)
        if content is not None:
            tensor = TensorProto(dtype=DT_STRING, string_val=[content])
            tensor.tensor_shape.dim.add(size=1)
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, metadata=metadata, tensor=tensor)]))

    def _write(self, *, wall_time: float | None = None, **content: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event

        event = Event(wall_time=time.time() if wall_time is None else wall_time, **content)
        payload = event.SerializeToString()
        header = struct.pack("<Q", len(payload))
        frame = (header, struct.pack("<I", _masked_crc(header)), payload, struct.pack("<I", _masked_crc(payload)))
        try:
            self._file.write(b"".join(frame))
            self._file.flush()
        except OSError as error:
            raise RunError(f"{self.path}: the log cannot be written: {error.strerror}") from None


def _new_file(directory: Path) -> tuple[Path, float]:
    """A new event file's path, and the time its first event shall carry.

    TensorBoard reads the files of a directory in the order of their names, our reader in that of their first events.
    Both must be later than every file already there, also where this node's clock is behind the last one's.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        stamps = [int(match.group(1)) for path in directory.iterdir() if (match := _NAME.match(path.name))]
    except OSError as error:
        raise RunError(f"{directory}: cannot hold a run's log: {error.strerror}") from None
    started = max(time.time(), float(max(stamps, default=-1) + 1))
    return directory / f"events.out.tfevents.{int(started):010d}.{socket.gethostname()}.{os.getpid()}", started


def _metadata(plugin: str, *, data_class: int) -> Any:
    from tensorboard.compat.proto.summary_pb2 import SummaryMetadata

    return SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name=plugin), data_class=data_class)


@functools.cache
def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli's polynomial, bits reversed
        table.append(crc)
    return table


def _masked_crc(data: bytes) -> int:
    table, crc = _crc_table(), 0xFFFFFFFF
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


class Series(NamedTuple):
    """The values of one scalar tag, by ascending step: int64 [n], float64 [n], float64 [n] (seconds since 1970)."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]
    wall_times: NDArray[np.float64]


@dataclass(frozen=True)
class EventFile:
    """What one event file says, in the order it was written.

    `purge_step` is the step from which on it overrides earlier files, if it is a restart's. `problem` says why the
    file was not read to its end, if so.
    """

    url: str
    started: float
    scalars: dict[str, Series]
    texts: dict[str, list[tuple[int, str]]]
    purge_step: int | None
    problem: str | None


@dataclass(frozen=True)
class RunLog:
    """What the event files of one directory say together, each step of each tag once."""

    url: str
    scalars: dict[str, Series] = field(default_factory=dict)
    texts: dict[str, dict[int, str]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    def last_text(self, tag: str) -> str | None:
        """The text of the highest step of a tag."""
        by_step = self.texts.get(tag)
        return by_step[max(by_step)] if by_step else None


def event_directories(url: str) -> dict[str, list[str]]:
    """The event files under a directory, at any depth: {directory relative to `url`: [file URLs]}, sorted.

    Raises:
        DataError: no such directory, or no permission to list it.
    """
    fs, root = file_system(url)
    top = fs._strip_protocol(root)
    prefix = f"{url.partition('://')[0]}://" if is_remote(url) else ""
    directories: dict[str, list[str]] = {}
    for file in _list(url, deep=True):
        parent, _, name = file.rpartition("/")
        if "tfevents" in name:
            relative = parent.removeprefix(prefix).removeprefix(top).strip("/") or "."
            directories.setdefault(relative, []).append(file)
    return directories


def read_run(url: str, tags: Collection[str] | None = None) -> RunLog:
    """All event files directly in a directory, merged.

    Files are taken in the order of their first event. A restart at step s drops what was said before of step s and
    later; of what is then said twice, the later counts.

    Args:
        url: a directory, local or of any scheme fsspec knows.
        tags: read only these; None reads all.

    Raises:
        DataError: the directory or a file cannot be read, or the directory holds no event file.
    """
    files = [path for path in _list(url, deep=False) if "tfevents" in path.rpartition("/")[2]]
    if not files:
        raise DataError(f"{redact(url)}: holds no TensorBoard event files")
    return merge_files(url, [read_events(file, tags) for file in files])


def merge_files(url: str, files: Sequence[EventFile]) -> RunLog:
    """The logs of all attempts of one run as one (the rules are `read_run`'s)."""
    files = sorted(files, key=lambda file: (file.started, file.url))
    texts: dict[str, dict[int, str]] = {}
    parts: dict[str, list[Series]] = {}
    for file in files:
        if file.purge_step is not None:
            for tag, series in parts.items():
                parts[tag] = [_before(one, file.purge_step) for one in series]
            texts = {
                tag: {step: text for step, text in by_step.items() if step < file.purge_step}
                for tag, by_step in texts.items()
            }
        for tag, one in file.scalars.items():
            parts.setdefault(tag, []).append(one)
        for tag, written in file.texts.items():
            texts.setdefault(tag, {}).update(written)
    return RunLog(
        url,
        {tag: merged for tag, series in parts.items() if len((merged := _last_written(series)).steps)},
        {tag: by_step for tag, by_step in texts.items() if by_step},
        tuple(file.url for file in files),
        tuple(f"{file.url}: {file.problem}" for file in files if file.problem),
    )


def _before(series: Series, step: int) -> Series:
    keep = series.steps < step
    return Series(series.steps[keep], series.values[keep], series.wall_times[keep])


def _last_written(series: Sequence[Series]) -> Series:
    steps, values, wall_times = (np.concatenate(columns) for columns in zip(*series, strict=True))
    order = np.argsort(steps, kind="stable")
    last = np.append(steps[order][1:] != steps[order][:-1], True)[: len(order)]
    return Series(steps[order][last], values[order][last], wall_times[order][last])


def read_events(url: str, tags: Collection[str] | None = None) -> EventFile:
    """One event file, up to its last whole record.

    Args:
        url: local path or any URL fsspec knows.
        tags: read only these; None reads all. Records that hold none of them are passed over unparsed.

    Raises:
        DataError: the file cannot be read at all.
    """
    return parse_events(read_bytes(url), url, tags)


def parse_events(data: bytes, url: str, tags: Collection[str] | None = None) -> EventFile:
    """What the bytes of an event file say (see `read_events`)."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    records, problem = _records(data)
    wanted = None if tags is None else frozenset(tags)
    needles = [tag.encode() for tag in wanted or ()]
    columns: dict[str, tuple[list[int], list[float], list[float]]] = {}
    texts: dict[str, list[tuple[int, str]]] = {}
    started, purge_step, damaged = float("inf"), None, 0
    for begin, end in records:
        payload = data[begin:end]
        if (
            wanted is not None
            and _is_summary(payload)
            and started < float("inf")
            and not any(needle in payload for needle in needles)
        ):
            continue
        try:
            event = Event.FromString(payload)
        except DecodeError:
            damaged += 1
            continue
        step, wall_time = event.step, event.wall_time
        started = wall_time if started == float("inf") else started
        if event.HasField("session_log") and event.session_log.status == SessionLog.START:
            _purge(columns, texts, step)
            purge_step = step if purge_step is None else min(purge_step, step)
        for value in event.summary.value:
            tag = value.tag
            if wanted is not None and tag not in wanted:
                continue
            number: float | str | None = value.simple_value
            if not value.HasField("simple_value"):
                number = _tensor_value(value) if value.HasField("tensor") else None
            if isinstance(number, str):
                texts.setdefault(tag, []).append((step, number))
            elif number is not None:
                column = columns.get(tag)
                if column is None:
                    column = columns[tag] = ([], [], [])
                column[0].append(step)
                column[1].append(number)
                column[2].append(wall_time)
    if damaged:
        problem = "; ".join(filter(None, [problem, f"{damaged} damaged records left out"]))
    scalars = {
        tag: Series(np.array(steps, np.int64), np.array(values, np.float64), np.array(times, np.float64))
        for tag, (steps, values, times) in columns.items()
    }
    return EventFile(url, started, scalars, texts, purge_step, problem)


def _records(data: bytes) -> tuple[list[tuple[int, int]], str | None]:
    """Where the payloads of the whole records lie, and what is wrong with the rest, if there is one."""
    unpack, size, position, whole = struct.Struct("<Q").unpack_from, len(data), 0, []
    while position + 16 <= size:
        end = position + 12 + unpack(data, position)[0]
        if end + 4 > size:
            break
        whole.append((position + 12, end))
        position = end + 4
    # A damaged length leads the walk astray; the lengths carry a checksum of their own, checked here for all at once.
    starts = np.array([begin - 12 for begin, _ in whole], np.int64)
    table, crc = np.array(_crc_table(), np.uint32), np.full(len(starts), 0xFFFFFFFF, np.uint32)
    raw = np.frombuffer(data, np.uint8)
    for i in range(8):
        crc = table[(crc ^ raw[starts + i]) & np.uint32(0xFF)] ^ (crc >> np.uint32(8))
    crc ^= np.uint32(0xFFFFFFFF)
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(_MASK_DELTA)
    stored = sum((raw[starts + 8 + i].astype(np.uint32) << np.uint32(8 * i) for i in range(4)), np.uint32(0))
    bad = np.flatnonzero(masked != stored)
    if len(bad):
        position = int(starts[bad[0]])
        return whole[: int(bad[0])], f"damaged at byte {position} of {size}; the rest was left out"
    if size == 0:
        return whole, "is empty"
    if position < size:
        return whole, f"the last record is cut short at byte {position} of {size}"
    return whole, None


def _is_summary(payload: bytes) -> bool:
    """True where the event surely is a summary: wall time, step (left out when 0), then the field `summary`."""
    if len(payload) < 12 or payload[0] != 0x09:
        return False
    position = 9
    if payload[position] == 0x10:
        position += 1
        while position < len(payload) - 1 and payload[position] & 0x80:
            position += 1
        position += 1
    return position < len(payload) and payload[position] == _SUMMARY_FIELD


def _purge(
    columns: dict[str, tuple[list[int], list[float], list[float]]],
    texts: dict[str, list[tuple[int, str]]],
    purge_step: int,
) -> None:
    for tag, column in columns.items():
        kept = [row for row in zip(*column, strict=True) if row[0] < purge_step]
        columns[tag] = ([row[0] for row in kept], [row[1] for row in kept], [row[2] for row in kept])
    for tag, written in texts.items():
        texts[tag] = [(step, text) for step, text in written if step < purge_step]


def _tensor_value(value: Any) -> float | str | None:
    """The number or the text in a summary value of tensor form; None for anything else (images, hyper-parameters)."""
    from tensorboard.compat.proto import types_pb2

    if value.metadata.plugin_data.plugin_name in _HIDDEN_PLUGINS:
        return None
    tensor = value.tensor
    if tensor.dtype == types_pb2.DT_STRING:
        return str(tensor.string_val[0], "utf-8", "replace") if len(tensor.string_val) == 1 else None
    kinds: dict[int, tuple[Any, str]] = {
        types_pb2.DT_FLOAT: (tensor.float_val, "<f4"),
        types_pb2.DT_DOUBLE: (tensor.double_val, "<f8"),
        types_pb2.DT_INT32: (tensor.int_val, "<i4"),
        types_pb2.DT_INT64: (tensor.int64_val, "<i8"),
    }
    if tensor.dtype not in kinds:
        return None
    listed, dtype = kinds[tensor.dtype]
    numbers = np.frombuffer(tensor.tensor_content, dtype) if tensor.tensor_content else listed
    return float(numbers[0]) if len(numbers) == 1 else None


def _list(url: str, *, deep: bool) -> list[str]:
    """The files in a directory, or at any depth below it, as URLs of the same scheme, sorted."""
    fs, root = file_system(url)
    with explained(url, "listed"):
        fs.invalidate_cache()  # runs grow while they are watched
        try:
            # `find` says nothing of what it may not see, `ls` does.
            found = fs.ls(root, detail=False)
        except FileNotFoundError:
            raise DataError(f"{redact(url)}: no such directory; give the one that holds the logs") from None
        found = sorted(fs.find(root) if deep else found)
    return [f"{url.partition('://')[0]}://{path}" for path in found] if is_remote(url) else found


__all__ = [
    "EventFile",
    "EventWriter",
    "RunLog",
    "Series",
    "event_directories",
    "merge_files",
    "parse_events",
    "read_events",
    "read_run",
]
