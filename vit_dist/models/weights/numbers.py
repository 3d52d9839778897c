"""Arrays and tensors of files as float32 tensors: any dtype of real numbers is read, others are refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_dist.core.errors import DataError
from vit_dist.core.npz import shown_name

Array = np.ndarray[Any, np.dtype[Any]]


def check_array(name: str, dtype: np.dtype[Any], where: str) -> None:
    """Whether an array of a .npz can be weights.

    Floats and integers of any size and byte order can, and bfloat16, which numpy itself does not know and stores as two
    bytes without a meaning.

    Args:
        name: of the array.
        dtype: that it has.
        where: the file, for errors.

    Raises:
        DataError: numbers of another kind.
    """
    if dtype.kind in "fiu" or (dtype.kind == "V" and dtype.itemsize == 2):
        return
    kind = f"{dtype.itemsize} bytes of unknown meaning" if dtype.kind == "V" else str(dtype)
    raise DataError(
        f"{where}: {shown_name(name)} in it is no array of numbers that can be weights, but of {kind}; save float32"
    )


def from_array(name: str, array: Array, where: str) -> Tensor:
    """An array that `check_array` lets through as a float32 tensor of the same shape.

    Raises:
        DataError: numbers that float32 cannot hold.
    """
    if array.dtype.kind == "V":
        bits = np.ascontiguousarray(array).view(np.uint16).astype(np.uint32) << 16
        return torch.from_numpy(bits.view(np.float32).reshape(array.shape))
    with np.errstate(over="ignore"):
        found = np.ascontiguousarray(array.astype(np.float32)).reshape(array.shape)
    if array.dtype.kind == "f" and array.dtype.itemsize > 4 and (np.isinf(found) & np.isfinite(array)).any():
        raise DataError(f"{where}: {shown_name(name)} in it holds numbers of {array.dtype} that float32 cannot hold")
    return torch.from_numpy(found)


def check_tensor(name: str, dtype: torch.dtype, where: str) -> None:
    """Whether a tensor of this dtype can be weights.

    Raises:
        DataError: not of real numbers, or not stored as such; with its name and dtype.
    """
    what = "boolean" if dtype == torch.bool else "complex" if dtype.is_complex else ""
    if not what:
        try:
            torch.empty(0, dtype=dtype).float()
        except (RuntimeError, NotImplementedError):
            # Packed formats of four bits and such, for which torch has no arithmetic.
            what = "of a format that torch cannot convert"
    if what:
        kind = str(dtype).removeprefix("torch.")
        raise DataError(
            f"{where}: {shown_name(name)} in it is {what} ({kind}), and no weights that can be read; save float32"
        )


def from_tensor(name: str, tensor: Tensor, where: str) -> Tensor:
    """A tensor that `check_tensor` lets through in float32.

    Raises:
        DataError: numbers that float32 cannot hold.
    """
    found = tensor.float()
    if tensor.dtype == torch.float64 and bool((found.isinf() & tensor.isfinite()).any()):
        raise DataError(f"{where}: {shown_name(name)} in it holds numbers of float64 that float32 cannot hold")
    return found
