"""TensorBoard event files: the one writer of a run. The reader is `reader.py`. No torch, no TensorFlow.

The files are TensorBoard's: TFRecord frames (length, masked CRC-32C, payload, masked CRC-32C) around `Event` protos.
Many values share one event, counts and text keep their digits, a restart says from which step on it overrides what
earlier files hold, and every event reaches the operating system at once, so that a killed process loses none. An event
that the disk does not take leaves no part of itself behind; a patient writer keeps it until the disk does.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import socket
import struct
import textwrap
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.core.errors import RunError
from vit_dist.core.events.crc import masked_crc
from vit_dist.core.files import disk_problem
from vit_dist.core.log import WARNING, log
from vit_dist.core.small_files import is_count, required

HParam = bool | int | float | str

_MOST_WAITING = 16 << 20
"""Bytes of events that wait: a marker, which holds them as text, may be larger than this."""

_NAME = re.compile(r"^events\.out\.tfevents\.(\d+)\.")


@dataclass(frozen=True)
class _Waiting:
    """An event on its way to the file: its step and its bytes; whether it voids what was before."""

    step: int
    frame: bytes
    is_purge: bool = False

    @property
    def is_of_a_step(self) -> bool:
        """Whether it tells of training, and not of how the log begins."""
        return self.step > 0 and not self.is_purge


@dataclass(frozen=True)
class _Unwritten:
    """Events that could not be written before a checkpoint, and from which step on they take the place of others."""

    purge_step: int
    frames: tuple[bytes, ...]

    def encode(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "purge_step": self.purge_step,
            "events": [str(base64.b64encode(frame), "ascii") for frame in self.frames],
        }

    @classmethod
    def decode(cls, raw: Any) -> _Unwritten | None:
        """From plain data; None where it is none: a checkpoint is worth more than the log of some steps."""
        try:
            purge_step = required(raw, "purge_step", lambda v: is_count(v) and v > 0, "a step")
            events = required(raw, "events", lambda v: isinstance(v, list), "a list")
            return cls(purge_step, tuple(base64.b64decode(event, validate=True) for event in events))
        except (ValueError, TypeError):
            return None


class EventWriter:
    """The one event file of one attempt of a run, in `directory`.

    Every method writes one event, which survives `kill -9` from the moment the method returns.

    Args:
        directory: made if missing; holds the event files of all attempts of the run and nothing else's.
        purge_step: on a restart from step s, s + 1: readers drop what earlier files say of this step and later.
        patient: events that the disk does not take are kept and written once it does, and only `flush` raises; what is
            kept then goes into a checkpoint (`unwritten`).
        unwritten: what the log that is gone on with lacks.

    Raises:
        RunError: the file cannot be made or written, or more waits than a checkpoint can hold.
    """

    def __init__(
        self, directory: Path, *, purge_step: int | None = None, patient: bool = False, unwritten: Any = None
    ) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog

        self.path, started = _new_file(directory)
        try:
            # Unbuffered: what was not taken must not be written by the closing of the file.
            self._file = self.path.open("xb", buffering=0)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written: {disk_problem(error) or error.strerror}") from None
        self._patient, self._problem, self._end = patient, "", 0
        self._waiting: deque[_Waiting] = deque()
        # The events of the newest step that are written.
        self._newest: list[_Waiting] = []
        kept = _Unwritten.decode(unwritten)
        if kept is not None:
            purge_step = min(kept.purge_step, purge_step or kept.purge_step)
        self._purge_step = purge_step or 0
        try:
            self._write(wall_time=started, file_version="brain.Event:2")
            if purge_step is not None:
                self._write(step=purge_step, session_log=SessionLog(status=SessionLog.START))
            for frame in kept.frames if kept is not None else ():
                self._add(_Waiting(self._purge_step, frame))
        except RunError:
            self.close()
            raise

    def unwritten(self) -> dict[str, Any] | None:
        """What a run that goes on from here must write first, as plain data; None where nothing waits."""
        # Its beginning, at step 0, each attempt writes anew. What is written by now counts as void with what is not.
        ours = [waiting for waiting in self._waiting if waiting.is_of_a_step and waiting.step >= self._purge_step]
        if not ours:
            return None
        first = min(waiting.step for waiting in ours)
        # Of the same step some may be written already: they go with it.
        frames = [one.frame for one in (*(one for one in self._newest if one.step == first), *ours)]
        void = self._purge_step and any(waiting.is_purge for waiting in self._waiting)
        return _Unwritten(self._purge_step if void else first, tuple(frames)).encode()

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers at one step, all in one event.

        A float is stored in single precision, as TensorBoard does; an int is stored in double precision, so that
        counts are exact up to 2^53.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.compat.proto.types_pb2 import DT_DOUBLE

        summary = Summary()
        for tag, value in values.items():
            # TensorBoard's simple_value is a float32; only a tensor can hold a double.
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

    def picture(self, tag: str, png: bytes, step: int) -> None:
        """An image, as a PNG, for TensorBoard's IMAGES tab."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        # The first chunk of a PNG, behind its signature, says how large it is.
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._write(step=step, summary=Summary(value=[Summary.Value(tag=tag, image=image)]))

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
        """Wait until everything written so far is on the disk, for moments such as before a checkpoint is committed.

        Raises:
            RunError: it is not.
        """
        self._hand_over()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            self._problem = disk_problem(error) or str(error.strerror)
        if self._problem:
            raise RunError(f"{self.path}: the log cannot be written: {self._problem}")

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

        # One write an event: what the kernel has survives the process. `flush()` is for the machine.
        event = Event(wall_time=time.time() if wall_time is None else wall_time, **content)
        payload = event.SerializeToString()
        header = struct.pack("<Q", len(payload))
        frame = (header, struct.pack("<I", masked_crc(header)), payload, struct.pack("<I", masked_crc(payload)))
        self._add(_Waiting(content.get("step", 0), b"".join(frame), is_purge="session_log" in content))

    def _add(self, waiting: _Waiting) -> None:
        self._waiting.append(waiting)
        told = bool(self._problem)
        self._hand_over()
        if not self._problem:
            if told:
                log(f"  {self.path}: is written again, with all that waited", WARNING)
            return
        problem = f"{self.path}: the log cannot be written: {self._problem}"
        if not self._patient or sum(len(w.frame) for w in self._waiting) > _MOST_WAITING:
            raise RunError(problem)
        if not told:
            log(
                f"  {problem}. Training goes on; what belongs there is kept, in checkpoints too, until it can be",
                WARNING,
            )

    def _hand_over(self) -> None:
        """Write what waits, event by event; where the disk takes no more the file ends with the last whole one."""
        handle = self._file.fileno()
        try:
            while self._waiting:
                rest, at = memoryview(self._waiting[0].frame), self._end
                while rest:
                    done = os.pwrite(handle, rest, at)
                    rest, at = rest[done:], at + done
                self._end = at
                written = self._waiting.popleft()
                if written.is_of_a_step:
                    self._newest = [*(one for one in self._newest if one.step == written.step), written]
        except OSError as error:
            self._problem = disk_problem(error) or str(error.strerror)
            # Where that fails too, the next event is written over what is left.
            with contextlib.suppress(OSError):
                os.ftruncate(handle, self._end)
            return
        self._problem = ""


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
