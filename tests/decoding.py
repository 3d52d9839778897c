"""Views that end the process which decodes, and what is left of processes; importable in decode processes."""

from __future__ import annotations

import io
import os
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image

from tests.streams import recipe
from vit_dist.core.process import lives
from vit_dist.core.store_patience import is_known
from vit_dist.data.decode import Encoded
from vit_dist.data.decode_pool import Processes
from vit_dist.data.reader import Reader
from vit_dist.data.rows import RowsOf, Stages, View
from vit_dist.data.sets import open_training_set
from vit_dist.data.waits import told_to_nobody


@dataclass(frozen=True)
class Ends:
    """As a decoder that does not survive an image: by a signal, or with an exit code where `number` is negative."""

    ordinal: int
    number: int

    def __call__(self, image: Encoded, epoch: int, ordinal: int) -> Stages:
        if ordinal == self.ordinal:
            if self.number < 0:
                os._exit(-self.number)
            os.kill(os.getpid(), self.number)
            time.sleep(60)
        yield 1
        return image.whole()[:, :28, :28]


@dataclass(frozen=True)
class Hangs:
    """As a decoder that does not come back from an image."""

    ordinal: int

    def __call__(self, image: Encoded, epoch: int, ordinal: int) -> Stages:
        while ordinal == self.ordinal:
            time.sleep(60)
        yield 1
        return image.whole()[:, :28, :28]


@dataclass(frozen=True)
class Grows:
    """As an image that takes more memory than there is: of a process that may have so many bytes more, if limited."""

    ordinal: int
    limit: int = 0

    def __call__(self, image: Encoded, epoch: int, ordinal: int) -> Stages:
        if ordinal == self.ordinal:
            if self.limit:
                has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (has + self.limit, resource.RLIM_INFINITY))
                image = Encoded(_large())
            else:
                torch.ones(_MORE_THAN_ALLOWED, dtype=torch.uint8)
        yield 1
        return image.whole()[:, :28, :28]


_MORE_THAN_ALLOWED = 1 << 30


def _large() -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(content, "JPEG")
    return content.getvalue()


@dataclass(frozen=True)
class Tells:
    """What a decode process knows, as the shade of its images: 1 where the server of a URL is known, 2 a variable."""

    url: str
    variable: str

    def __call__(self, image: Encoded, epoch: int, ordinal: int) -> Stages:
        yield 1
        shade = is_known(self.url) + 2 * bool(os.environ.get(self.variable))
        return torch.full((3, 28, 28), shade, dtype=torch.uint8)


class Unsendable:
    """A view that cannot be sent to another process."""

    def __call__(self, image: Encoded, epoch: int, ordinal: int) -> Stages:
        yield 1
        return image.whole()[:, :28, :28]

    def __reduce__(self) -> str:
        raise TypeError("this view stays where it is")


class Raises:
    """A view with a fault of its own, whose error cannot be sent as it is."""

    def __call__(self, image: Encoded, epoch: int, ordinal: int) -> Stages:
        class LocalError(Exception):
            pass

        yield 1
        raise LocalError("a fault of the view")


def reader(
    manifest: str,
    view: View,
    workers: int = 2,
    *,
    at_once: bool = True,
    prefetch: int = 4,
    timeout_s: float = 0.0,
    told: Callable[[str], None] = told_to_nobody,
) -> Reader:
    """Of a small set, batches of 12, by processes; of no processes by two threads."""
    config = recipe(
        manifest,
        f"data.prefetch_batches={prefetch}",
        f"data.decode_workers={workers}",
        "data.decode_threads=2",
    )
    data = open_training_set(config)
    rows = RowsOf(data.parts, data.order, view, config.data, data.fits_in_memory)
    positions = (range(i, i + 12) for i in range(0, 1_000_000, 12))
    processes = Processes(workers, 12, None, at_once=at_once) if workers else None
    return Reader(rows, positions, processes=processes, timeout_s=timeout_s, told=told)


def descendants(pid: int) -> Iterator[int]:
    """Processes that a process has started, and those that they have started, that live."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in children:
            yield from descendants(child)
            if lives(child):
                yield child
