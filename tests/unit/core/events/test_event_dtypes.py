"""Scalars in event files as tensors of every dtype, in both places where a tensor keeps its numbers."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.types_pb2 import DataType
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

from vit_dist.core.events.reader import EventFile, read_events

DTYPES: dict[str, tuple[str, Any]] = {
    "DT_FLOAT": ("float_val", np.float32),
    "DT_DOUBLE": ("double_val", np.float64),
    "DT_HALF": ("half_val", np.float16),
    "DT_BFLOAT16": ("half_val", None),
    "DT_INT8": ("int_val", np.int8),
    "DT_UINT8": ("int_val", np.uint8),
    "DT_INT16": ("int_val", np.int16),
    "DT_UINT16": ("int_val", np.uint16),
    "DT_INT32": ("int_val", np.int32),
    "DT_INT64": ("int64_val", np.int64),
    "DT_UINT32": ("uint32_val", np.uint32),
    "DT_UINT64": ("uint64_val", np.uint64),
    "DT_BOOL": ("bool_val", np.bool_),
}


def bf16_bits(value: float) -> int:
    return int(np.float32(value).view(np.uint32)) >> 16


def tensor(name: str, value: float, *, content: bool) -> TensorProto:
    """A tensor of one number."""
    field, dtype = DTYPES[name]
    proto = TensorProto(dtype=DataType.Value(name))
    if content:
        proto.tensor_content = (
            struct.pack("<H", bf16_bits(value)) if dtype is None else np.array(value, dtype).tobytes()
        )
    elif field == "half_val":
        bits = bf16_bits(value) if dtype is None else int(np.float16(value).view(np.uint16))
        proto.half_val.append(bits)
    else:
        getattr(proto, field).append(dtype(value).item())
    return proto


def log(path: Path, tensors: list[TensorProto]) -> EventFile:
    with path.open("wb") as file:
        for step, proto in enumerate(tensors):
            value = Summary.Value(tag="val/top1", tensor=proto)
            payload = Event(step=step, wall_time=2.5, summary=Summary(value=[value])).SerializeToString()
            header = struct.pack("<Q", len(payload))
            file.write(header + struct.pack("<I", masked_crc32c(header)))
            file.write(payload + struct.pack("<I", masked_crc32c(payload)))
    return read_events(str(path))


def numbers(name: str) -> list[float]:
    if name == "DT_BOOL":
        return [1.0, 0.0] * 20
    if name in ("DT_FLOAT", "DT_DOUBLE", "DT_HALF", "DT_BFLOAT16"):
        return [0.0, -0.625, float("nan"), float("inf"), *(i / 8 for i in range(40))]
    low, high = np.iinfo(DTYPES[name][1]).min, np.iinfo(DTYPES[name][1]).max
    return [0, 1, 127, high // 2, *([low] if low else []), *range(40)]


@pytest.mark.parametrize("content", [False, True], ids=["listed", "content"])
@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize("few", [False, True], ids=["many", "few"])  # records of one shape are decoded together
def test_a_scalar_of_any_real_dtype_is_read(name: str, content: bool, few: bool, tmp_path: Path) -> None:
    expected = numbers(name)[:3] if few else numbers(name)
    found = log(tmp_path / "e.tfevents", [tensor(name, value, content=content) for value in expected])
    assert found.problem is None
    series = found.scalars["val/top1"]
    assert series.steps.tolist() == list(range(len(expected)))
    assert np.array_equal(series.values, np.array(expected, np.float64), equal_nan=True)


@pytest.mark.parametrize("name", ["DT_UINT64", "DT_INT64", "DT_UINT32", "DT_INT32"])
@pytest.mark.parametrize("content", [False, True], ids=["listed", "content"])
def test_the_largest_number_of_a_dtype_keeps_its_sign(name: str, content: bool, tmp_path: Path) -> None:
    high = int(np.iinfo(DTYPES[name][1]).max)
    proto = TensorProto(dtype=DataType.Value(name))
    if content:
        proto.tensor_content = np.array(high, DTYPES[name][1]).tobytes()
    else:
        getattr(proto, DTYPES[name][0]).append(high)
    for count in (1, 10):
        assert (
            log(tmp_path / "e.tfevents", [proto] * count).scalars["val/top1"].values.tolist() == [float(high)] * count
        )


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("DT_COMPLEX64", "values of val/top1 are complex64 and were left out"),
        ("DT_COMPLEX128", "complex128"),
        ("DT_FLOAT8_E5M2", "float8"),
        ("DT_FLOAT8_E4M3FN", "float8"),
        ("DT_QINT8", "quantized"),
        ("DT_INT4", "packed integer"),
    ],
)
def test_values_that_cannot_be_read_are_named(name: str, says: str, tmp_path: Path) -> None:
    odd = TensorProto(dtype=DataType.Value(name), tensor_content=b"12345678")
    found = log(tmp_path / "e.tfevents", [odd] * 9 + [tensor("DT_FLOAT", 0.5, content=False)])
    assert says in str(found.problem)
    assert found.scalars["val/top1"].values.tolist() == [0.5]
    assert read_events(str(tmp_path / "e.tfevents"), ["other"]).problem is None
