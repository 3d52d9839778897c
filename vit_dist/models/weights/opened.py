"""Files of weights, open: what they say they hold, by name, before a value of it is read."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from vit_dist.core.errors import DataError
from vit_dist.core.npz import Arrays, NoNumbersError, open_arrays, shown_name
from vit_dist.core.small_files import DamagedError, open_regular
from vit_dist.core.tensor_file import Stated, read_header
from vit_dist.models.weights.numbers import check_array, check_tensor, from_array, from_tensor
from vit_dist.models.weights.promised import Promised, State, promise
from vit_dist.models.weights.torch_file import open_torch

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


@contextlib.contextmanager
def opened(path: Path) -> Iterator[tuple[State, Mapping[str, str]]]:
    """The tensors of a .npz, .safetensors or torch file, by name, and its metadata; they can be read inside the block.

    Raises:
        DataError: missing, damaged, or of something that cannot be weights.
    """
    try:
        file = open_regular(path)
    except DamagedError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(file)
        try:
            if path.suffix == ".npz":
                with _damage_of(path, ".npz"):
                    arrays = stack.enter_context(open_arrays(file))
                yield _of_arrays(arrays, path), {}
            elif path.suffix == ".safetensors":
                with _damage_of(path, "safetensors"):
                    tensors, metadata = read_header(file)
                yield {name: _of_safetensors(name, one, file, path) for name, one in tensors.items()}, metadata
            else:
                yield open_torch(file, str(path)), {}
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def _damage_of(path: Path, form: str) -> Iterator[None]:
    try:
        yield
    except NoNumbersError as error:
        raise DataError(f"{path}: {error}; save float32") from None
    except DamagedError as error:
        raise DataError(f"{path}: not a whole {form} file: {error}; fetch it again") from None


def _of_arrays(arrays: Arrays, path: Path) -> State:
    def reader(name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            with _damage_of(path, ".npz"):
                array = arrays.read(name)
            return from_array(name, array, str(path))

        return read

    for name, described in arrays.described.items():
        check_array(name, described.dtype, str(path))
    return {name: promise(name, d.shape, str(path), reader(name)) for name, d in arrays.described.items()}


def _of_safetensors(name: str, stated: Stated, file: BinaryIO, path: Path) -> Promised:
    dtype = _DTYPES[stated.dtype]
    check_tensor(name, dtype, str(path))

    def read() -> Tensor:
        content = np.empty(stated.end - stated.begin, np.uint8)
        file.seek(stated.begin)
        if file.readinto(content.data) < len(content):  # type: ignore[attr-defined]
            raise DataError(f"{path}: not a whole safetensors file: {shown_name(name)} ends early; fetch it again")
        return from_tensor(name, torch.from_numpy(content).view(dtype).reshape(stated.shape), str(path))

    return promise(name, stated.shape, str(path), read)
