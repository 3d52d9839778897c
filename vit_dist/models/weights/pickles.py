"""Pickles of torch read as data: what they name is noted, and nothing of it is imported, built or called.

A pickle is a program for a machine with a stack. This one knows the instructions that write down plain values; of the
calls only those that put a tensor together, as a description of it. All else is refused with its name.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vit_dist.core.npz import shown_name
from vit_dist.core.small_files import DamagedError, is_count

MAX_BYTES = 16 << 20
_MAX_INSTRUCTIONS = 2_000_000
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


class ForbiddenError(Exception):
    """What a pickle names that is neither plain data nor a tensor."""


class NoPickleError(DamagedError):
    """Something else, or cut short."""


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


class Opaque:
    """A value that is there and of no interest."""


@dataclass(frozen=True)
class _Named:
    name: str


_MARK = Opaque()
_PLAIN = (str, int, float, bool, type(None))


def read_pickle(file: io.BytesIO) -> Any:
    """The next pickle of a file as plain values, with a `Described` for each tensor.

    Raises:
        NoPickleError: something else, or cut short.
        DamagedError: a tensor that cannot be.
        ForbiddenError: it holds more than plain data and tensors; the message is the name of it.
    """
    machine = _Machine()
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
            if count > _MAX_INSTRUCTIONS:
                raise DamagedError(f"a pickle of more than {_MAX_INSTRUCTIONS:,} instructions")
            machine.run(instruction.name, argument)
        return machine.stack.pop()
    except (DamagedError, ForbiddenError, MemoryError):
        raise
    except Exception as error:
        # pickletools says of damage whatever struct, codecs and int say.
        raise NoPickleError(f"no whole pickle: {str(error)[:200] or type(error).__name__}") from None


class _Machine:
    def __init__(self) -> None:
        self.stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(_VALUES[name](argument))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise DamagedError(f"an instruction that torch does not write ({name})")

    def put(self, index: int | None) -> None:
        self._memo[len(self._memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        self.stack.append(self._memo[index])

    def to_mark(self) -> list[Any]:
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise DamagedError("a pickle without the mark that it needs")
        found = self.stack[at + 1 :]
        del self.stack[at:]
        return found

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def take(self, count: int) -> tuple[Any, ...]:
        if count > len(self.stack):
            raise DamagedError("a pickle that takes what it has not put")
        found = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return found

    def append(self, values: list[Any] | tuple[Any, ...]) -> None:
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(values)

    def set_items(self, values: list[Any] | tuple[Any, ...]) -> None:
        if isinstance(self.stack[-1], dict):
            self.stack[-1].update(_dictionary(values))

    def name_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("a pickle that names something by other than text")
        full = f"{module}.{name}"
        if full not in _KNOWN:
            raise ForbiddenError(shown_name(full))
        self.stack.append(_Named(full))

    def call(self) -> None:
        what, arguments = self.take(2)
        if not isinstance(what, _Named) or not isinstance(arguments, tuple):
            raise DamagedError("a pickle that calls what has no name")
        self.stack.append(_called(what.name, arguments))

    def storage(self) -> None:
        (stated,) = self.take(1)
        # Of before torch 0.4 is a sixth field that is no None: a view of a storage.
        if not isinstance(stated, tuple) or len(stated) not in (5, 6) or stated[0] != "storage" or any(stated[5:]):
            raise DamagedError("a pickle that refers to something other than numbers of its file")
        _, kind, key, _, count, *_ = stated
        dtype = (
            (torch.uint8 if kind.name == _UNTYPED else _STORAGES.get(kind.name)) if isinstance(kind, _Named) else None
        )
        if dtype is None or not isinstance(key, str) or not is_count(count):
            raise DamagedError("a pickle that refers to numbers of no kind, name or count")
        self.stack.append(Storage(key, dtype, count))


def _dictionary(values: Sequence[Any]) -> dict[Any, Any]:
    """From keys and values in turn."""
    # A tuple of tuples may take for ever to be hashed.
    keys = [key if isinstance(key, _PLAIN) else Opaque() for key in values[::2]]
    return dict(zip(keys, values[1::2], strict=True))


def _ignored(_: Any) -> Opaque:
    return Opaque()


def _called(name: str, arguments: tuple[Any, ...]) -> Any:
    if name in _DICTIONARIES:
        found: dict[Any, Any] = {}
        for one in arguments:
            # Python 2 wrote a dictionary's pairs as a list.
            if isinstance(one, list) and all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in one):
                found |= _dictionary([part for pair in one for part in pair])
        return found
    if name in _PARAMETERS:
        return arguments[0]
    if name == _OF_A_TYPE:
        return _called(arguments[0].name, arguments[2])
    return _tensor(arguments) if name in _TENSORS else Opaque()


def _tensor(arguments: tuple[Any, ...]) -> Described:
    storage, offset, shape, stride = arguments[:4]
    dtype = storage.dtype
    if len(arguments) > 6 and isinstance(arguments[6], _Named):
        dtype = _DTYPES[arguments[6].name]
    if not all(map(is_count, (offset, *shape, *stride))) or len(shape) != len(stride) or len(shape) > _MAX_DIMENSIONS:
        raise DamagedError("a tensor whose shape, stride and offset are no whole numbers that fit together")
    # An untyped storage counts bytes.
    have = storage.count * storage.dtype.itemsize // dtype.itemsize
    found = Described(storage, dtype, offset, tuple(shape), tuple(stride))
    if found.end > have:
        raise DamagedError(f"a tensor of the shape {shape} with more numbers than the {have:,} that it is part of")
    return found


def _text(argument: Any) -> str:
    # Python 2 wrote names as bytes, which pickletools shows as Latin-1.
    return str(argument).encode("latin-1").decode("utf-8", "replace")


_VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), lambda a: a),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), lambda a: a),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _text),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_SET"), _ignored),
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "MARK": lambda _: _MARK,
}
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda _, __: None),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), lambda m, a: m.put(a)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda m, a: m.get(a)),
    "POP": lambda m, _: m.take(1),
    "POP_MARK": lambda m, _: m.to_mark(),
    "TUPLE": lambda m, _: m.push(tuple(m.to_mark())),
    "TUPLE1": lambda m, _: m.push(m.take(1)),
    "TUPLE2": lambda m, _: m.push(m.take(2)),
    "TUPLE3": lambda m, _: m.push(m.take(3)),
    "LIST": lambda m, _: m.push(m.to_mark()),
    "DICT": lambda m, _: m.push(_dictionary(m.to_mark())),
    "FROZENSET": lambda m, _: m.push(_ignored(m.to_mark())),
    "ADDITEMS": lambda m, _: m.to_mark(),
    "APPEND": lambda m, _: m.append(m.take(1)),
    "APPENDS": lambda m, _: m.append(m.to_mark()),
    "SETITEM": lambda m, _: m.set_items(m.take(2)),
    "SETITEMS": lambda m, _: m.set_items(m.to_mark()),
    "GLOBAL": lambda m, a: m.name_global(*str(a).split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name_global(*m.take(2)),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    # Attributes of a dictionary, such as the versions of a state's modules.
    "BUILD": lambda m, _: m.take(1),
    "BINPERSID": lambda m, _: m.storage(),
}
