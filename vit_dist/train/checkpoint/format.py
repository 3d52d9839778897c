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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_dist.core.errors import CheckpointError
from vit_dist.core.small_files import (
    DamagedError,
    is_count,
    is_name,
    is_numbers,
    open_regular,
    parse_json,
    required,
    shown,
)
from vit_dist.core.tensor_file import Stated, read_header
from vit_dist.engines._fit import Held, Wanted
from vit_dist.engines._slices import NO_MOMENTS, EngineState
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
_BY_NAME = {name: dtype for dtype, name in _DTYPES.items()}
_CHUNK = 16 << 20
_MAX_DIMENSIONS = 32
_LARGEST = torch.finfo(torch.float32).max


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


@dataclass(frozen=True)
class _Run:
    """Elements [start, stop) of a tensor, which begin at byte `begin` of a file."""

    start: int
    stop: int
    file: Path
    begin: int


class SliceSource:
    """All rank files of one checkpoint as whole tensors, of which any run can be read. See engines' Source.

    What the files say is held against their bytes, and against each other: every element of every tensor stands in
    one of them, once.

    Raises:
        CheckpointError: a file is not what it should be, or they do not fit together; says which, and what.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.held: dict[tuple[str, str], Held] = {}
        self._runs: dict[tuple[str, str], list[_Run]] = {}
        self._scalars: dict[str, dict[str, float]] = {}
        self._bytes: dict[Path, Tensor] = {}
        for path in files:
            try:
                with open_regular(path) as file:
                    tensors, metadata = read_header(file)
                self._add(path, tensors, metadata)
            except OSError as error:
                raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
            except DamagedError as error:
                raise CheckpointError(f"{path}: not a checkpoint's file: {error}") from None
        for key, runs in self._runs.items():
            runs.sort(key=lambda run: (run.start, run.stop))
            self._check_runs(*key, runs)

    def _add(self, path: Path, tensors: Mapping[str, Stated], metadata: Mapping[str, str]) -> None:
        described = parse_json(metadata.get("slices", ""), unique=True)
        if not isinstance(described, dict) or described.keys() != tensors.keys():
            raise DamagedError("the slices that it describes are not those that it holds")
        for key, tensor in tensors.items():
            try:
                self._add_slice(path, key, tensor, described[key])
            except DamagedError as error:
                raise DamagedError(f"{shown(key)}: {error}") from None
        numbers = parse_json(metadata.get("scalars", ""), unique=True)
        if not isinstance(numbers, dict) or not all(map(_is_scalars, numbers.values())):
            raise DamagedError("scalars is not finite numbers by weight")
        for name, scalars in numbers.items():
            known = self._scalars.setdefault(name, {})
            other = next((key for key in scalars if known.get(key, scalars[key]) != scalars[key]), None)
            if other is not None:
                raise DamagedError(
                    f"{shown(other)} of {shown(name)} is {scalars[other]}, another part says {known[other]}"
                )
            known.update(scalars)

    def _add_slice(self, path: Path, key: str, tensor: Stated, described: Any) -> None:
        kind, _, name = key.partition(":")
        if not is_name(kind) or not is_name(name):
            raise DamagedError("not the kind and name of a tensor, such as weight:head.bias")
        if tensor.dtype not in _BY_NAME or len(tensor.shape) != 1:
            raise DamagedError(
                f"{tensor.dtype} of shape {[*tensor.shape]}, where a run of {', '.join(_BY_NAME)} stands"
            )
        shape = tuple(required(described, "shape", _is_shape, "a list of sizes"))
        start = required(described, "start", is_count, "a whole number from 0")
        stop, numel = start + tensor.shape[0], math.prod(shape)
        if stop > numel:
            raise DamagedError(f"elements {start:,} to {stop:,} of a tensor that has {numel:,}")
        held = self.held.setdefault((kind, name), Held(shape, _BY_NAME[tensor.dtype], path.name))
        if (held.shape, held.dtype) != (shape, _BY_NAME[tensor.dtype]):
            raise DamagedError(
                f"{tensor.dtype} of shape {[*shape]}; {held.part} has it as {_DTYPES[held.dtype]} of shape "
                f"{[*held.shape]}"
            )
        self._runs.setdefault((kind, name), []).append(_Run(start, stop, path, tensor.begin))

    def _check_runs(self, kind: str, name: str, runs: Sequence[_Run]) -> None:
        """Whether runs, sorted, hold each element of their tensor once."""
        numel, at = self.held[kind, name].numel, 0
        for run in runs:
            if run.start == run.stop:
                continue
            if run.start < at:
                raise CheckpointError(
                    f"{run.file}: elements {run.start:,} to {min(at, run.stop):,} of the {kind} {shown(name)} stand in "
                    f"another part too"
                )
            if run.start > at:
                raise CheckpointError(_missing(run.file.parent, kind, name, at, run.start))
            at = run.stop
        if at < numel:
            raise CheckpointError(_missing(runs[0].file.parent, kind, name, at, numel))

    def names(self) -> list[tuple[str, str]]:
        """Every (kind, name), sorted."""
        return sorted(self._runs)

    def kinds(self, name: str) -> list[str]:
        """See Source."""
        return sorted(kind for kind, of in self.held if of == name and kind not in NO_MOMENTS)

    def scalars(self, name: str) -> Mapping[str, float]:
        """See Source."""
        return self._scalars.get(name, {})

    def holds(self, kind: str, name: str) -> bool:
        """See Source."""
        return (kind, name) in self.held

    def misfit(self, wanted: Wanted) -> str:
        """In what this is not the state of an engine, or ''."""
        return wanted.misfit(self.held, self._scalars)

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """See Source."""
        try:
            return self.held[kind, name].shape
        except KeyError:
            raise CheckpointError(f"the checkpoint has no {kind} of {name}; it is of another model") from None

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """See Source."""
        numel = math.prod(self.shape(kind, name))
        if not 0 <= start <= stop <= numel:
            raise CheckpointError(f"the {kind} {name} has {numel:,} elements, {start:,} to {stop:,} are asked for")
        content = torch.empty(stop - start, dtype=self.held[kind, name].dtype)
        size, content_bytes = content.element_size(), content.view(torch.uint8)
        for run in self._runs[kind, name]:
            low, high = max(start, run.start), min(stop, run.stop)
            if low < high:
                begin, end = (run.begin + size * (at - run.start) for at in (low, high))
                content_bytes[size * (low - start) : size * (high - start)] = self._mapped(run.file)[begin:end]
        return content

    def _mapped(self, path: Path) -> Tensor:
        """The bytes of a file, of which only those are read that are asked for."""
        if path not in self._bytes:
            try:
                self._bytes[path] = torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
            except (OSError, RuntimeError) as error:
                raise CheckpointError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
        return self._bytes[path]

    def tensor(self, kind: str, name: str) -> Tensor:
        """A whole tensor."""
        shape = self.shape(kind, name)
        return self.read(kind, name, 0, math.prod(shape)).view(shape)


def _is_shape(value: Any) -> bool:
    """A list of sizes, of no more elements than can be counted."""
    return (
        isinstance(value, list)
        and len(value) <= _MAX_DIMENSIONS
        and all(map(is_count, value))
        and is_count(math.prod(size for size in value if size))
    )


def _is_scalars(value: Any) -> bool:
    """Finite numbers by key, as float32 holds them."""
    return is_numbers(value) and all(abs(number) <= _LARGEST for number in value.values())


def _missing(folder: Path, kind: str, name: str, begin: int, end: int) -> str:
    return (
        f"{folder}: elements {begin:,} to {end:,} of the {kind} {shown(name)} stand in no part; a rank's file is "
        f"missing, or it is of another model"
    )
