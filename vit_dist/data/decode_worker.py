"""A decode process: fills rows of batches in shared memory, as it is told, until its rank is gone.

It holds nothing that a result depends on: a task says positions and rows, and where a position's example is follows
from that alone. Tasks are looked at as they come, so that their bytes are on the way while others are decoded.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import NamedTuple

import torch

from vit_dist.config.schema import DataConfig
from vit_dist.core.errors import DataError
from vit_dist.core.store_patience import Known, know
from vit_dist.core.urls import is_s3
from vit_dist.data import torchvision_parts
from vit_dist.data.batch import Batch, Replacement, Sample
from vit_dist.data.decode import BYTES_ARE_RESIZED
from vit_dist.data.pace import Interval
from vit_dist.data.rows import Place, Rows, RowsOf
from vit_dist.data.shared_memory import Layout, SharedMemory


@dataclass(frozen=True)
class Setup:
    """What all decode processes of a stream are given, once.

    Attributes:
        rows: what rows hold.
        layout: of the shared memory.
        read_threads: of each process.
        stores: what the rank knows of them: they are waited for as it does.
    """

    rows: RowsOf
    layout: Layout
    read_threads: int
    stores: Known


LOOK_ALONE = -1
"""The slot of a task that fills nothing, and is done when bytes of all its examples are here."""


class Task(NamedTuple):
    """Rows of a batch for one process: example `positions[i]` goes to row `rows[i]` of slot `slot`."""

    number: int
    slot: int
    rows: Sequence[int]
    positions: Sequence[int]


class Done(NamedTuple):
    """A task that is done: its samples, as tuples, by their place in it; or the first row that failed, and why.

    With what the process did since the task before.
    """

    number: int
    samples: Sequence[tuple[str, str, int, int, int]]
    replaced: Sequence[Replacement]
    failed: tuple[int, BaseException] | None
    did: Interval


def work(setup: Setup, memory: SharedMemory, process: int, connection: Connection) -> None:
    """Do all tasks that come. Ends this process when the other end is gone."""
    # One CPU each. Set before there is a thread, whose number it becomes.
    torch.set_num_threads(1)
    know(setup.stores)
    slots = memory.buffers()
    rows = Rows(setup.rows, setup.read_threads, functools.partial(memory.note, process))
    todo: queue.SimpleQueue[tuple[Task, list[Place] | BaseException]] = queue.SimpleQueue()

    def fill() -> None:
        while True:
            task, places = todo.get()
            if task.slot == LOOK_ALONE:
                _send(connection, _looked(task, places, rows))
                continue
            buffers = slots[task.slot]
            unset = torch.zeros(len(buffers.images), dtype=torch.int64)
            batch = Batch(buffers.images, buffers.labels, buffers.weights, unset, unset)
            batch.samples = [Sample("", "", -1, -1, -1)] * len(buffers.images)
            done = _done(task, places, batch, rows)
            memory.note(process, "", "")
            _send(connection, done)

    threading.Thread(target=fill, name=f"decode process {process}", daemon=True).start()
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            # Without clean-up: threads may wait for a store that does not answer.
            os._exit(0)
        try:
            places: list[Place] | BaseException = [rows.find(position) for position in task.positions]
        except Exception as error:
            places = error
        todo.put((task, places))


def prepare(of: RowsOf) -> None:
    """Import what the processes of a stream will need, before they are forked, so that none of them has to."""
    torchvision_parts.load(functional=_needs_torchvision(of.config))
    if any(is_s3(part.manifest.shard_url(0)) for part in of.parts):
        import botocore.session  # noqa: F401


def _needs_torchvision(config: DataConfig) -> bool:
    changes = config.augment
    return config.upright or not BYTES_ARE_RESIZED or any((changes.jitter, changes.randaugment, changes.erase))


def _send(connection: Connection, done: Done) -> None:
    try:
        connection.send(done)
    except OSError:
        os._exit(0)


def _looked(task: Task, places: list[Place] | BaseException, rows: Rows) -> Done:
    # What cannot be read is told by the rows that want it.
    with contextlib.suppress(Exception):
        for place in places if isinstance(places, list) else ():
            piece, sample = place.window.sample(place.slot)
            piece.image(sample)
    return Done(task.number, [], [], None, rows.pace.since_last())


def _done(task: Task, places: list[Place] | BaseException, batch: Batch, rows: Rows) -> Done:
    if isinstance(places, BaseException):
        return Done(task.number, [], [], (task.rows[0], _sendable(places)), rows.pace.since_last())
    failed = rows.fill(batch, task.rows, places)
    if failed is not None:
        return Done(task.number, [], [], (failed.row, _sendable(failed.error)), rows.pace.since_last())
    samples = [batch.samples[row] for row in task.rows]
    told = [(s.key, s.set, s.ordinal, s.epoch, s.position) for s in samples]
    return Done(task.number, told, batch.replaced, None, rows.pace.since_last())


def _sendable(error: BaseException) -> BaseException:
    """The error, or its words where it cannot be sent to another process as it is."""
    try:
        if type(pickle.loads(pickle.dumps(error))) is type(error):  # noqa: S301 - made one expression before
            return error
    except Exception:  # whatever its class does
        return DataError(f"{type(error).__name__}: {error}")
    return DataError(f"{type(error).__name__}: {error}")
