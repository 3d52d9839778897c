"""What storage, kills and strangers do to files: bytes, texts and JSON that were real, with some of it changed."""

# Tables of odd pieces are easier to look over in long lines.

from __future__ import annotations

import contextlib
import copy
import resource
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

_CPU_S = 10.0
_MORE_BYTES = 1 << 30

ODD_VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2, 2**31, 2**53, 2**53 + 1, 2**63, -(2**63), 10**39, 10**400),
    *(0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), "", " ", "0", "\0", "\ud800", "\x1b[31m", "a\nb", "../../x", "/etc/passwd"),
    "x" * 9000,
    *("²", "٣", "9" * 5000, "${HOME}", "$(id)", "-rf", "~", ".", "..", "s3://", "http://"),
    *("é" * 200, "1e5", "NaN", "null"),
    *([], {}, [[]], [{}], {"": None}, [0] * 300, {"x": {"x": {"x": []}}}),
]
"""Values of JSON, or nearly, that are seldom what is wanted."""

ODD_PIECES = [
    *(b"", b"\0", b"\n", b"\r\n", b" ", b"=", b"|", b",", b":", b"-", b"_", b"%", b"(", b")", b"[", b"]"),
    *(b"{", b"}", b'"'),
    *(b"'", b"\\", b"/", b"../", b"*", b"&a ", b"*a", b"- ", b"? ", b"!!int "),
    *(b"\xff", b"\xed\xa0\x80", b"\xef\xbb\xbf"),
    *("²".encode(), "٣".encode(), "\u2028".encode(), b"\x1b[2J", b"9" * 25, b"9" * 5000, b"-1", b"0", b"NaN", b"1e999"),
    *(b"(null)", b"N/A", b"Unknown", b"x" * 300, b"[" * 70, b"a" * 20_000, b" =" * 3000, b"(1)" * 1000, b"\n" * 1000),
]
"""Bytes that mean something to some parser."""


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """What happens inside takes 10 seconds of CPU and one GiB of further memory at the most, or fails the test.

    Of CPU, so that what else the machine does is no fault of the code under test.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def too_long(*_: object) -> None:
        raise AssertionError(f"more than {_CPU_S} seconds of CPU for one input")

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, _CPU_S)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MORE_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes], pieces: Sequence[bytes] = (), most: int = 6) -> bytes:
    """One of the seeds after some edits: bytes that flip, are lost, moved or doubled, pieces put in, a cut end."""
    content = bytearray(draw(st.sampled_from(seeds)))
    foreign = st.sampled_from([*ODD_PIECES, *pieces]) | st.binary(max_size=8)
    for _ in range(draw(st.integers(1, most))):
        begin, length = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
        match draw(st.sampled_from(("flip", "put", "replace", "lose", "double", "move", "splice", "cut"))):
            case "flip" if begin < len(content):
                content[begin] ^= draw(st.integers(1, 255))
            case "put":
                content[begin:begin] = draw(foreign)
            case "replace":
                content[begin : begin + length] = draw(foreign)
            case "lose":
                del content[begin : begin + length]
            case "double":
                content[begin:begin] = content[begin : begin + length] * draw(st.sampled_from((1, 1, 2, 500)))
            case "move":
                part = content[begin : begin + length]
                del content[begin : begin + length]
                to = draw(st.integers(0, len(content)))
                content[to:to] = part
            case "splice":
                other = draw(st.sampled_from(seeds))
                content[begin:] = other[draw(st.integers(0, len(other))) :]
            case "cut":
                del content[begin:]
    return bytes(content)


def damaged_text(seeds: Sequence[str], pieces: Sequence[str] = (), most: int = 6) -> st.SearchStrategy[str]:
    """The same of texts, as they come out of a process: what is not UTF-8 is replaced."""
    raw = damaged([seed.encode() for seed in seeds], [piece.encode() for piece in pieces], most)
    return raw.map(lambda content: content.decode(errors="replace"))


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _places(part, (*at, key))


@st.composite
def damaged_json(draw: st.DrawFn, seeds: Sequence[Any], values: Sequence[Any] = (), most: int = 3) -> Any:
    """One of some values out of JSON with some parts replaced, lost, doubled or put elsewhere."""
    value = copy.deepcopy(draw(st.sampled_from(seeds)))
    odd = st.sampled_from([*ODD_VALUES, *values]) | st.integers() | st.text(max_size=6)
    for _ in range(draw(st.integers(1, most))):
        *way, last = ("top", *draw(st.sampled_from(list(_places(value)))))
        holder: Any = {"top": value}
        top = holder
        for key in way:
            holder = holder[key]
        match draw(st.sampled_from(("replace", "replace", "lose", "rename", "move"))):
            case "lose" if len(holder) > 1 or holder is not top:
                del holder[last]
            case "rename" if isinstance(holder, dict) and holder is not top:
                holder[draw(st.text(max_size=4))] = holder.pop(last)
            case "move":
                there = value
                for key in draw(st.sampled_from(list(_places(value)))):
                    there = there[key]
                holder[last] = copy.deepcopy(there)
            case _:
                holder[last] = copy.deepcopy(draw(odd))
        value = top["top"]
    return value
