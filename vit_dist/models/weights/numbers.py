"""Arrays and tensors of files as float32 tensors: any dtype of real numbers is read, others are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_dist.core.errors import DataError

Array = np.ndarray[Any, np.dtype[Any]]


def from_array(name: str, array: object, where: str) -> Tensor:
    """An array of a .npz as a float32 tensor of the same shape.

    Floats and integers of any size and byte order are read, and bfloat16, which numpy itself does not know and stores
    as two bytes without a meaning.

    Args:
        name: of the array.
        array: what numpy has read.
        where: the file, for errors.

    Raises:
        DataError: numbers of another kind, or none.
    """
    if not isinstance(array, np.ndarray):
        raise DataError(f"{where}: {name} in it is no array of numbers")
    if array.dtype.kind == "V" and array.dtype.itemsize == 2 and array.dtype.names is None:
        bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16
        return torch.from_numpy(bits.view(np.float32).reshape(array.shape))
    if array.dtype.kind not in "fiu":
        kind = f"{array.dtype.itemsize} bytes of unknown meaning" if array.dtype.kind == "V" else str(array.dtype)
        raise DataError(
            f"{where}: {name} in it is no array of numbers that can be weights, but of {kind}; save float32"
        )
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array.astype(np.float32)).reshape(array.shape)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4 and (np.isinf(found) & np.isfinite(array)).any():
        raise DataError(f"{where}: {name} in it holds numbers of {array.dtype} that float32 cannot hold")
    return torch.from_numpy(found)


def as_float32(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Tensors of a file in float32.

    Raises:
        DataError: one is not of real numbers, not stored as such, or has no data; with its name and dtype.
    """
    return {name: _as_float32(name, tensor, where) for name, tensor in tensors.items()}


def _as_float32(name: str, tensor: Tensor, where: str) -> Tensor:
    what = (
        "quantized" if tensor.is_quantized else "sparse" if tensor.layout != torch.strided
        else "without data" if tensor.is_meta else "boolean" if tensor.dtype == torch.bool
        else "complex" if tensor.is_complex() else ""
    )  # fmt: skip
    if not what:
        try:
            return tensor.detach().float()
        except (RuntimeError, NotImplementedError):
            # Packed formats of four bits and such, for which torch has no arithmetic.
            what = "of a format that torch cannot convert"
    dtype = str(tensor.dtype).removeprefix("torch.")
    raise DataError(f"{where}: {name} in it is {what} ({dtype}), and no weights that can be read; save float32")
