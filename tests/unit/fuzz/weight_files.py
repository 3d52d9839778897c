"""Real files of weights of a model of 1,000 numbers, what storage and forgers do to them, and what may come of it."""

from __future__ import annotations

import copy
import io
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.plugins import model_config
from vit_dist.core.errors import VitDistError
from vit_dist.models.weights.adapt import shapes_of
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, write_weights

CONFIG = model_config("vit-test", patch_size=4, width=8, depth=1, mlp_dim=16)
SHAPES = shapes_of(CONFIG, 3, 8)
_MOST_BYTES = 64 << 20

_PIECES = [
    *(b"", b"\0", b"\xff", b"\xff" * 4, b"\xff" * 8, b"\x7f" + b"\xff" * 3, b"\0" * 64, b"PK\x01\x02", b"PK\x05\x06"),
    *(b"PK\x03\x04", b"\x93NUMPY\x02\x00\xff\xff\xff\xff", b"'|O'", b"'<f8'", b"-1", b"99999999999", b"0", b"[" * 3000),
    *(b"NaN", b"1e999", b'"F64"', b'"__metadata__":{},', b'"shape":[', b"(1000000000,)", b"cos\nsystem\n", b"\x85R"),
    *(b"\x8a\xff" + b"\xff" * 255, b"c__builtin__\nbytearray\n", b"r\xff\xff\xff\x7f", b"2" * 500),
    b"\x86q\x00h\x00" * 500,
]  # fmt: skip


def state() -> dict[str, Tensor]:
    """Tensors of the model."""
    draw = torch.Generator().manual_seed(0)
    return {name: torch.rand(shape, generator=draw) for name, shape in SHAPES.items()}


def seeds(folder: Path, ending: str) -> list[bytes]:
    """Whole files of this ending."""
    path = folder / f"seed{ending}"
    if ending == ".pth":
        return [_saved(state(), zipped) for zipped in (True, False)] + [_saved({"model": state(), "epoch": 3}, True)]
    write_weights(Weights(state(), CONFIG, 3, 8, {"step": "7"}, ("a", "b", "c")), path)
    whole = [path.read_bytes()]
    if ending == ".npz":
        buffer = io.BytesIO()
        with np.load(path) as arrays:
            np.savez_compressed(buffer, **{name: arrays[name] for name in arrays.files})
        whole.append(buffer.getvalue())
    return whole


def _saved(content: Any, zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


@st.composite
def damaged(draw: st.DrawFn, whole: list[bytes]) -> bytes:
    """One of the files with bytes that were flipped, cut off, taken out, put in or brought from another place."""
    content = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        # Headers stand at the beginning or, in archives, at the end.
        place = draw(st.integers(0, len(content)) | st.integers(0, 400) | st.integers(0, 4000).map(lambda n: -n))
        at = max(0, len(content) + place) if place < 0 else min(place, len(content))
        piece = draw(st.sampled_from(_PIECES) | st.binary(max_size=9))
        match draw(st.sampled_from(("flip", "flip", "over", "over", "in", "out", "cut", "splice"))):
            case "flip":
                content[at : at + 1] = bytes(b ^ draw(st.integers(1, 255)) for b in content[at : at + 1])
            case "over":
                content[at : at + len(piece)] = piece
            case "in":
                content[at:at] = piece
            case "out":
                del content[at : at + draw(st.integers(1, 40))]
            case "cut":
                del content[at:]
            case "splice":
                other = draw(st.sampled_from(whole))
                begin = draw(st.integers(0, len(other)))
                content[at : at + 64] = other[begin : begin + 64]
    return bytes(content)


ODD = st.sampled_from([
    *(None, True, False, 0, 1, -1, 2, 3, 7, 2**31, 2**53, 2**63, 10**39, 0.5, -0.0, 1e308, 1e-320),
    *("", "0", "\0", "\ud800"),
    *("x" * 9000, "../../x", "9" * 5000, "vit-test", "timm:test_vit", [], {}, [[]], [0] * 300, [2**62] * 8),
    {"x": {"x": {}}},
    *([1] * 33, "F64", "F32", "BOOL", "C64", "F8_E4M3", [0, 2**40], [-4, 0], ["a"], {"name": "vit-test"}),
])  # fmt: skip
"""Values of JSON that are seldom what is wanted."""


@st.composite
def edited(draw: st.DrawFn, whole: str) -> str:
    """JSON with some of its values or keys changed, left out or doubled."""
    value = json.loads(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = value
        while isinstance(at, dict | list) and at:
            places: list[Any] = list(at) if isinstance(at, dict) else list(range(len(at)))
            place = draw(st.sampled_from(places))
            if draw(st.booleans()) and isinstance(at[place], dict | list) and at[place]:
                at = at[place]
                continue
            if draw(st.booleans()):
                at[place] = copy.deepcopy(draw(ODD))
            elif isinstance(at, dict):
                at[draw(st.sampled_from(["", "\x1b[2J", "x" * 900, *map(str, places)]))] = at.pop(place)
            else:
                at.append(at[place])
            break
    return json.dumps(value)


def value_or_error(make: Callable[[], Any]) -> Any:
    """What comes of it, or None where there is one clear error; neither takes much memory.

    Raises:
        AssertionError: a text that nobody can read, or too much memory.
        Exception: of another kind than ours.
    """
    before = _most_taken()
    try:
        return make()
    except VitDistError as error:
        text = str(error)
        assert 0 < len(text) < 6000, len(text)
        assert "weights_only" not in text, text
        assert "allow_pickle" not in text, text
        return None
    finally:
        # The most that this process ever had: cheap to ask for, and it counts torch's memory too.
        assert _most_taken() - before < _MOST_BYTES


def _most_taken() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def read(path: Path, content: bytes, options: LoadOptions) -> Weights | None:
    """What is read of a file of this content, held against the model."""
    path.write_bytes(content)
    found: Weights | None = value_or_error(lambda: read_weights(path, options))
    if found is not None and options.config is not None and options.head == "keep":
        shapes = shapes_of(options.config, found.num_classes, found.image_size)
        assert {name: tuple(tensor.shape) for name, tensor in found.state.items()} == shapes
        assert all(tensor.dtype == torch.float32 for tensor in found.state.values())
    return found
