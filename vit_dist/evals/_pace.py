"""The host is no more than a few batches ahead of the device that evaluates them, and waits for no result."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch

from vit_dist.data.batch import Batch
from vit_dist.data.stream import EvalBatches

_AHEAD = 2
"""Batches: the device finds the next one queued, and the one after it is being decoded."""


def paced(batches: EvalBatches, device: torch.device) -> Iterator[Batch | None]:
    """A set's batches, each once the device is through with what was queued for the third before it.

    Nothing else holds the host back where sums stay on the device: it would queue the whole set, and hold every
    batch in pinned memory until its copy is done.
    """
    queued: deque[Any] = deque()
    with contextlib.closing(iter(batches)) as of_rank:  # type: ignore[type-var]
        for batch in of_rank:
            yield batch
            if device.type == "cuda":
                # It sleeps: a host that spins would take the processor from the threads that decode.
                done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
                done.record()
                queued.append(done)
                if len(queued) > _AHEAD:
                    queued.popleft().synchronize()
