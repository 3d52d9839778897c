"""What waits for the device: numbers that the host reads, and copies that it does not leave in a queue."""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.nonzero.default}
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class HostReads(TorchDispatchMode):
    """Notes where they happen, for as long as the block lasts; on a CPU copies between devices cannot be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        result = func(*args, **given)
        if func in _READS or (func in _COPIES and _waits(func, args, given, result)):
            frames = [f for f in traceback.extract_stack() if "host_reads" not in f.filename]
            self.places.append(f"{func} at " + " <- ".join(f"{f.filename}:{f.lineno}" for f in reversed(frames)))
        return result


def _waits(func: Any, args: tuple[Any, ...], given: Mapping[str, Any], result: torch.Tensor) -> bool:
    source = args[1] if func is torch.ops.aten.copy_.default else args[0]
    queued = given.get("non_blocking", args[2] if len(args) > 2 else False)
    return bool(source.device.type != result.device.type and not queued)
