"""Pickles of torch as data (core/pickles.py): of calls those that put a tensor together, as a description of it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Any

import torch

from vit_dist.core import pickles
from vit_dist.core.pickles import Named, Opaque, dictionary
from vit_dist.core.small_files import DamagedError, is_count

MAX_BYTES = 16 << 20
_MAX_DIMENSIONS = 32
_CLASSES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
}  # fmt: skip
_UNTYPED = "torch.storage.UntypedStorage"
_DTYPES = {f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)}
_STORAGES = {f"torch.{name}": dtype for name, dtype in _CLASSES.items()}
_DICTIONARIES = ("collections.OrderedDict", "collections.Counter", "collections.defaultdict")
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3")
_OF_A_TYPE, _TYPES = "torch._tensor._rebuild_from_type_v2", ("torch.Tensor", "torch.nn.parameter.Parameter")
_PARAMETERS = ("torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state")
# What stands beside weights in checkpoints of trainers and is of no interest here.
_IGNORED = ("torch.Size", "torch.device", "_codecs.encode", "builtins.set", "__builtin__.set", "builtins.complex")
_KNOWN = {_UNTYPED, *_DTYPES, *_STORAGES, *_DICTIONARIES, *_TENSORS, _OF_A_TYPE, *_TYPES, *_PARAMETERS, *_IGNORED}


@dataclass(frozen=True)
class Storage:
    """A run of numbers of a file that tensors are parts of: `key` says which, `count` of how many of `dtype`."""

    key: str
    dtype: torch.dtype
    count: int


@dataclass(frozen=True)
class Described:
    """A tensor, as its pickle describes it: a view into a storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def end(self) -> int:
        """The element of the storage behind the last one that the view shows."""
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return self.offset + last + 1 if math.prod(self.shape) else self.offset


def read_pickle(file: io.BytesIO) -> Any:
    """The next pickle of a file as plain values, with a `Described` for each tensor.

    Raises:
        NoPickleError: something else, or cut short.
        DamagedError: a tensor that cannot be.
        ForbiddenError: it holds more than plain data and tensors; the message is the name of it.
    """
    # States are attributes of a dictionary, such as the versions of a state's modules.
    return pickles.read_pickle(file, pickles.Meaning(_KNOWN, _called, _storage))


def _called(name: str, arguments: tuple[Any, ...]) -> Any:
    if name in _DICTIONARIES:
        found: dict[Any, Any] = {}
        for one in arguments:
            # Python 2 wrote a dictionary's pairs as a list.
            if isinstance(one, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in one):
                found |= dictionary([part for pair in one for part in pair])
        return found
    if name in _PARAMETERS:
        return arguments[0]
    if name == _OF_A_TYPE:
        return _called(arguments[0].name, arguments[2])
    return _tensor(arguments) if name in _TENSORS else Opaque()


def _tensor(arguments: tuple[Any, ...]) -> Described:
    storage, offset, shape, stride = arguments[:4]
    dtype = storage.dtype
    if len(arguments) > 6 and isinstance(arguments[6], Named):
        dtype = _DTYPES[arguments[6].name]
    if not all(map(is_count, (offset, *shape, *stride))) or len(shape) != len(stride) or len(shape) > _MAX_DIMENSIONS:
        raise DamagedError("a tensor whose shape, stride and offset are no whole numbers that fit together")
    # An untyped storage counts bytes.
    have = storage.count * storage.dtype.itemsize // dtype.itemsize
    found = Described(storage, dtype, offset, tuple(shape), tuple(stride))
    if found.end > have:
        raise DamagedError(f"a tensor of the shape {shape} with more numbers than the {have:,} that it is part of")
    return found


def _storage(stated: Any) -> Storage:
    # Of before torch 0.4 is a sixth field that is no None: a view of a storage.
    if not isinstance(stated, tuple) or len(stated) not in (5, 6) or stated[0] != "storage" or any(stated[5:]):
        raise DamagedError("a pickle that refers to something other than numbers of its file")
    _, kind, key, _, count, *_ = stated
    dtype = (torch.uint8 if kind.name == _UNTYPED else _STORAGES.get(kind.name)) if isinstance(kind, Named) else None
    if dtype is None or not isinstance(key, str) or not is_count(count):
        raise DamagedError("a pickle that refers to numbers of no kind, name or count")
    return Storage(key, dtype, count)
