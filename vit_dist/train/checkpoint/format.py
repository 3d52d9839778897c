"""The files of a checkpoint: one safetensors file a rank, no pickle; reading puts any run of any tensor together.

A rank copies its slices into one block of host memory (`Snapshot`), which is the file but for its header; so the
only part that training waits for is a copy. In the header each slice stands as 'kind:name', and the key
`slices` of the metadata says of each the shape of the whole tensor and where the slice begins in it. The layout is
that of https://github.com/huggingface/safetensors, whose own reader opens these files.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_dist.core.errors import CheckpointError
from vit_dist.engines._slices import BUFFER, WEIGHT, EngineState
from vit_dist.train.checkpoint.host_memory import HostMemory

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 16 << 20


class Snapshot:
    """A rank's slices, ready to be written: copied to host memory, so that training continues meanwhile, or in place.

    Args:
        state: the rank's part; its views are read here and, where copied, not later.
        memory: where to copy to; None keeps the views: the state must not change until `write` has returned.
    """

    def __init__(self, state: EngineState, memory: HostMemory | None) -> None:
        # Larger elements first, so that every slice begins at a multiple of its element size and can be viewed in
        # place.
        ordered = sorted(state.slices, key=lambda s: (-s.data.element_size(), s.kind, s.name))
        header: dict[str, Any] = {}
        places, at = [], 0
        for piece in ordered:
            end = at + piece.data.numel() * piece.data.element_size()
            key = f"{piece.kind}:{piece.name}"
            header[key] = {
                "dtype": _DTYPES[piece.data.dtype],
                "shape": [piece.data.numel()],
                "data_offsets": [at, end],
            }
            places.append((key, at, end))
            at = end
        assert len(header) == len(ordered), "a rank holds one run of a tensor, not several"
        described = {f"{s.kind}:{s.name}": {"shape": list(s.shape), "start": s.start} for s in ordered}
        header["__metadata__"] = {"slices": json.dumps(described), "scalars": json.dumps(state.scalars)}
        text = json.dumps(header, separators=(",", ":")).encode()
        # The format allows spaces behind the JSON; the data must begin aligned.
        text += b" " * (-len(text) % 8)
        self._header = len(text).to_bytes(8, "little") + text
        self._size = at
        self._parts = [piece.data for piece in ordered]
        if memory is not None:
            block = memory.block(at)
            self._parts = [block[:at]]
            for piece, (_, begin, end) in zip(ordered, places, strict=True):
                block[begin:end].view(piece.data.dtype).copy_(piece.data, non_blocking=True)
            # The copies above are asynchronous: without this the next step would change what they still read.
            if torch.cuda.is_available():
                torch.cuda.synchronize()

    @property
    def num_bytes(self) -> int:
        """Size of the file."""
        return len(self._header) + self._size

    def write(self, path: Path) -> str:
        """Write the file through to the disk.

        Returns:
            The checksum (xxh3, 128 bits) of what was meant to be written.

        Raises:
            OSError: the disk is full, or whatever it was.
        """
        import xxhash

        digest = xxhash.xxh3_128()
        with path.open("wb", buffering=0) as file:
            for part in (memoryview(self._header), *map(_bytes, self._parts)):
                for begin in range(0, len(part), _CHUNK):
                    chunk = part[begin : begin + _CHUNK]
                    digest.update(chunk)
                    # An unbuffered write may take less than it is given.
                    while chunk:
                        chunk = chunk[file.write(chunk) :]
            os.fsync(file.fileno())
        return digest.hexdigest()


def _bytes(data: Tensor) -> memoryview:
    """[n] of any type, on any device, as bytes in host memory."""
    content: memoryview = data.detach().cpu().contiguous().view(torch.uint8).numpy().data
    return content


def checksum(path: Path) -> str:
    """The checksum of a file's bytes, as `Snapshot.write` gives it."""
    import xxhash

    digest = xxhash.xxh3_128()
    with path.open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


class SliceSource:
    """All rank files of one checkpoint as whole tensors, of which any run can be read. See engines' Source.

    Raises:
        CheckpointError: a file is not what it should be.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self._shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        self._runs: dict[tuple[str, str], list[tuple[int, int, Any]]] = {}
        self._scalars: dict[str, dict[str, float]] = {}
        self._kinds: dict[str, list[str]] = {}
        for path in files:
            try:
                opened: Any = safe_open(path, framework="pt")
                metadata = opened.metadata()
                described = json.loads(metadata["slices"])
                for name, numbers in json.loads(metadata["scalars"]).items():
                    self._scalars.setdefault(name, {}).update(numbers)
                for key in sorted(opened.keys()):
                    self._add(key, described[key], opened)
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                raise CheckpointError(f"{path}: not a checkpoint's file: {type(error).__name__}: {error}") from None
        for runs in self._runs.values():
            runs.sort(key=lambda run: run[:2])

    def _add(self, key: str, described: Mapping[str, Any], opened: Any) -> None:
        kind, _, name = key.partition(":")
        tensor = opened.get_slice(key)
        start, size = int(described["start"]), int(tensor.get_shape()[0])
        self._shapes[kind, name] = tuple(described["shape"])
        self._runs.setdefault((kind, name), []).append((start, start + size, tensor))
        known = self._kinds.setdefault(name, [])
        if kind not in (WEIGHT, BUFFER, *known):
            known.append(kind)

    def names(self) -> list[tuple[str, str]]:
        """Every (kind, name), sorted."""
        return sorted(self._runs)

    def kinds(self, name: str) -> list[str]:
        """See Source."""
        return self._kinds.get(name, [])

    def scalars(self, name: str) -> Mapping[str, float]:
        """See Source."""
        return self._scalars.get(name, {})

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """See Source."""
        try:
            return self._shapes[kind, name]
        except KeyError:
            raise CheckpointError(f"the checkpoint has no {kind} of {name}; it is of another model") from None

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See Source."""
        numel = math.prod(self.shape(kind, name))
        parts, at = [], start
        for begin, end, tensor in self._runs[kind, name]:
            if begin <= at < min(end, stop):
                parts.append(tensor[at - begin : min(end, stop) - begin])
                at = min(end, stop)
        if at < stop:
            raise CheckpointError(
                f"the checkpoint has elements {start} to {at} of the {kind} of {name}, {start} to {stop} of {numel} "
                f"are needed; a rank's file is missing, or it is of another model"
            )
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else torch.empty(0)

    def tensor(self, kind: str, name: str) -> Tensor:
        """A whole tensor."""
        shape = self.shape(kind, name)
        return self.read(kind, name, 0, math.prod(shape)).view(shape)
