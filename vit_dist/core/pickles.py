"""Pickles read as data: what they name is noted, and nothing of it is imported, built or called. No torch.

A pickle is a program for a machine with a stack. This one knows the instructions that write down plain values; of the
calls only those to which whoever reads gives a meaning. All else is refused with its name.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import IO, Any, NoReturn

from vit_dist.core.npz import shown_name
from vit_dist.core.small_files import DamagedError

_MAX_INSTRUCTIONS = 2_000_000


class ForbiddenError(Exception):
    """What a pickle names that has no meaning here."""


class NoPickleError(DamagedError):
    """Something else, or cut short."""


class Opaque:
    """A value that is there and of no interest."""


@dataclass(frozen=True)
class Named:
    """What stands for a class or function: its name, with its module's."""

    name: str


def ignored(_: Any) -> Opaque:
    """In place of a value that nobody needs."""
    return Opaque()


def as_utf8(argument: Any) -> str:
    """A text that Python 2 wrote as bytes, which pickletools shows as Latin-1."""
    return str(argument).encode("latin-1").decode("utf-8", "replace")


def _no_reference(_: Any) -> NoReturn:
    raise DamagedError("a pickle that refers to something outside of it")


@dataclass(frozen=True)
class Meaning:
    """What whoever reads makes of the instructions that are no plain values.

    Attributes:
        known: names that may stand in the pickle.
        call: given one of these and its arguments, what the call gives.
        refer: given what refers to something outside, what that is.
        build: given a value and its state, the value with it.
        raw: what becomes of bytes.
        string: what becomes of Python 2's texts.
    """

    known: Collection[str]
    call: Callable[[str, tuple[Any, ...]], Any]
    refer: Callable[[Any], Any] = _no_reference
    build: Callable[[Any, Any], Any] = lambda value, _: value
    raw: Callable[[Any], Any] = ignored
    string: Callable[[Any], Any] = as_utf8


_MARK = Opaque()
_PLAIN = (str, bytes, int, float, bool, type(None))


def read_pickle(file: IO[bytes], meaning: Meaning) -> Any:
    """The next pickle of a file as plain values, and as what the meaning makes of the rest.

    Raises:
        NoPickleError: something else, or cut short.
        DamagedError: what cannot be.
        ForbiddenError: it holds more than plain data and what is known; the message is the name of it.
    """
    machine = _Machine(meaning)
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
    def __init__(self, meaning: Meaning) -> None:
        self.stack: list[Any] = []
        self._meaning = meaning
        self._memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        if name in _VALUES:
            self.stack.append(_VALUES[name](argument))
        elif name in _STEPS:
            _STEPS[name](self, argument)
        else:
            raise DamagedError(f"an instruction that has no meaning here ({name})")

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
            self.stack[-1].update(dictionary(values))

    def name_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise DamagedError("a pickle that names something by other than text")
        full = f"{module}.{name}"
        if full not in self._meaning.known:
            raise ForbiddenError(shown_name(full))
        self.stack.append(Named(full))

    def call(self) -> None:
        what, arguments = self.take(2)
        if not isinstance(what, Named) or not isinstance(arguments, tuple):
            raise DamagedError("a pickle that calls what has no name")
        self.stack.append(self._meaning.call(what.name, arguments))

    def refer(self) -> None:
        self.push(self._meaning.refer(*self.take(1)))

    def build(self) -> None:
        self.push(self._meaning.build(*self.take(2)))

    def raw(self, argument: Any) -> None:
        self.push(self._meaning.raw(argument))

    def string(self, argument: Any) -> None:
        self.push(self._meaning.string(argument))


def dictionary(values: Sequence[Any]) -> dict[Any, Any]:
    """From keys and values in turn."""
    # A tuple of tuples may take for ever to be hashed.
    keys = [key if isinstance(key, _PLAIN) else Opaque() for key in values[::2]]
    return dict(zip(keys, values[1::2], strict=True))


_VALUES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"), lambda a: a),
    **dict.fromkeys(("FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), lambda a: a),
    "EMPTY_SET": ignored,
    "NONE": lambda _: None,
    "NEWTRUE": lambda _: True,
    "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {},
    "EMPTY_LIST": lambda _: [],
    "EMPTY_TUPLE": lambda _: (),
    "MARK": lambda _: _MARK,
}
_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), lambda m, a: m.string(a)),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), lambda m, a: m.raw(a)),
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
    "DICT": lambda m, _: m.push(dictionary(m.to_mark())),
    "FROZENSET": lambda m, _: m.push(ignored(m.to_mark())),
    "ADDITEMS": lambda m, _: m.to_mark(),
    "APPEND": lambda m, _: m.append(m.take(1)),
    "APPENDS": lambda m, _: m.append(m.to_mark()),
    "SETITEM": lambda m, _: m.set_items(m.take(2)),
    "SETITEMS": lambda m, _: m.set_items(m.to_mark()),
    "GLOBAL": lambda m, a: m.name_global(*str(a).split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name_global(*m.take(2)),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.call(),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.refer(),
}
