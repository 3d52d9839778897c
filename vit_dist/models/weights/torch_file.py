"""Files that `torch.save` wrote: a zip archive with a pickle and a member for each storage, or, before torch 1.6, one
pickle behind the other and the storages behind them.

The pickle is read as data (pickles.py); a storage is read when a tensor of it is wanted. torch itself never sees the
file: it would build what the pickle describes before anyone has looked at it.
"""

from __future__ import annotations

import functools
import io
import math
import zipfile
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from vit_dist.core.errors import DataError
from vit_dist.core.npz import open_archive, read_member, shown_name
from vit_dist.core.pickles import ForbiddenError, NoPickleError
from vit_dist.core.small_files import DamagedError
from vit_dist.models.weights.numbers import Array, check_tensor, from_tensor
from vit_dist.models.weights.pickles import MAX_BYTES, Described, Storage, read_pickle
from vit_dist.models.weights.promised import State, promise

# Where checkpoints of trainers hold the state of a model.
_CONTAINERS = ("state_dict", "model", "model_state_dict", "module")
_MAX_CONTAINERS = 10
_MAGIC = 0x1950A86A20F9469CFC6C
# A storage may be larger than the tensors that are views of it, which is not to mean that all of a disk is read.
_MAX_RATIO = 16
_ALWAYS_READ_BYTES = 256 << 20
_Read = Callable[[Storage, int, int], Array]
"""Bytes [begin, end) of a storage."""


def open_torch(file: BinaryIO, where: str) -> State:
    """The tensors of an open file, by name; they can be read for as long as it is open.

    Args:
        file: of any age.
        where: its name, for errors.

    Raises:
        DataError: damaged, or something other than a dictionary of plain tensors; nothing in it is ever run.
    """
    try:
        content, read = _zipped(file) if file.read(4) == b"PK\x03\x04" else _in_a_row(file)
    except ForbiddenError as error:
        raise DataError(
            f"{where}: holds more than plain tensors ({error}); nothing in it was run. Where you trust it, save its "
            f"state_dict() as safetensors"
        ) from None
    except DamagedError as error:
        raise DataError(f"{where}: not a whole file of torch: {error}; fetch it again") from None
    tensors = _state(content, where)
    _check_storages(tensors, where)
    return {name: _promised(name, tensor, where, read) for name, tensor in tensors.items()}


def _promised(name: str, tensor: Described, where: str, read: _Read) -> Any:
    check_tensor(name, tensor.dtype, where)

    def values() -> Tensor:
        size = tensor.dtype.itemsize
        try:
            content = read(tensor.storage, tensor.offset * size, tensor.end * size)
        except DamagedError as error:
            raise DataError(f"{where}: not a whole file of torch: {error}; fetch it again") from None
        numbers = torch.from_numpy(content).view(tensor.dtype)
        return from_tensor(name, numbers.as_strided(tensor.shape, tensor.stride), where)

    return promise(name, tensor.shape, where, values)


def _state(content: Any, where: str) -> dict[str, Described]:
    """The dictionary of tensors, in whatever dictionaries of a trainer it lies."""
    for _ in range(_MAX_CONTAINERS):
        inside = next((k for k in _CONTAINERS if isinstance(content, dict) and isinstance(content.get(k), dict)), None)
        if inside is None:
            break
        content = content[inside]
    if not isinstance(content, dict) or not content:
        raise DataError(f"{where}: holds no dictionary of tensors but {_kind(content)}; save a state_dict() alone")
    others = [
        f"{shown_name(str(name)) if isinstance(name, str | int) else _kind(name)} ({_kind(value)})"
        for name, value in content.items()
        if not isinstance(value, Described) or not isinstance(name, str)
    ]
    if others:
        shown = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
        raise DataError(f"{where}: holds no dictionary of tensors alone, but {shown}; save a state_dict() alone")
    return content


def _kind(value: Any) -> str:
    return {"Described": "Tensor", "Opaque": "object"}.get(type(value).__name__, type(value).__name__)


def _check_storages(tensors: Mapping[str, Described], where: str) -> None:
    """Refuse storages that are far larger than the tensors in them."""
    taken: Counter[Storage] = Counter()
    for tensor in tensors.values():
        taken[tensor.storage] += math.prod(tensor.shape) * tensor.dtype.itemsize
    for storage, needed in taken.items():
        there = storage.count * storage.dtype.itemsize
        if there > max(_ALWAYS_READ_BYTES, _MAX_RATIO * needed):
            raise DataError(
                f"{where}: not a whole file of torch: {there:,} bytes for tensors that take {needed:,} of them; save "
                f"copies of the tensors (`clone()`)"
            )


def _pickle(file: io.BytesIO) -> Any:
    try:
        return read_pickle(file)
    except NoPickleError as error:
        if len(file.getbuffer()) > MAX_BYTES:
            raise DamagedError(f"a pickle of more than {MAX_BYTES:,} bytes; save a state_dict() alone") from None
        raise error


def _zipped(file: BinaryIO) -> tuple[Any, _Read]:
    archive = open_archive(file)
    members = {info.filename: info for info in archive.infolist()}
    if len(members) < len(archive.infolist()):
        raise DamagedError("a member stands twice in the archive")
    found = [name for name in members if name.endswith("/data.pkl")]
    if len(found) != 1:
        raise DamagedError("an archive without one data.pkl")
    for name, info in members.items():
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise DamagedError(f"{shown_name(name)}: packed in a way that torch does not write")
    root = found[0].removesuffix("data.pkl")
    order = members.get(f"{root}byteorder")
    if (
        order is not None
        and bytes(read_member(archive, order, order.filename, 0, min(order.file_size, 9))) != b"little"
    ):
        raise DamagedError("written on a machine of another byte order")
    size = members[found[0]].file_size
    content = _pickle(io.BytesIO(read_member(archive, members[found[0]], found[0], 0, min(size, MAX_BYTES + 1)).data))

    @functools.lru_cache(maxsize=1)
    def whole(storage: Storage) -> Array:
        # All of it: that is what the checksum is of. The next tensor is often of the same storage.
        name, wanted = f"{root}data/{storage.key}", storage.count * storage.dtype.itemsize
        if name not in members or members[name].file_size != wanted:
            there = f"{members[name].file_size:,}" if name in members else "none"
            raise DamagedError(f"{shown_name(name)}: {wanted:,} bytes are wanted, there are {there}")
        return read_member(archive, members[name], name, 0, wanted)

    # A copy, since what is made of it may be changed, and may be kept for longer than the whole.
    return content, lambda storage, begin, end: whole(storage)[begin:end].copy()


def _in_a_row(file: BinaryIO) -> tuple[Any, _Read]:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    head = io.BytesIO(file.read(MAX_BYTES + 1))
    if _pickle(head) != _MAGIC or _pickle(head) != 1001:
        raise DamagedError("torch.save did not write it")
    machine = _pickle(head)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise DamagedError("written on a machine of another byte order")
    content, keys = _pickle(head), _pickle(head)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len({*keys}) < len(keys):
        raise DamagedError("its list of storages is none")
    sizes = _sizes(content)
    places, at = {}, head.tell()
    for key in keys:
        file.seek(at)
        count = int.from_bytes(file.read(8), "little")
        if key not in sizes or sizes[key].count != count:
            raise DamagedError(f"storage {shown_name(key)}: has {count:,} numbers, its tensors speak of others")
        places[key], at = at + 8, at + 8 + count * sizes[key].dtype.itemsize
        if at > size:
            raise DamagedError(f"storage {shown_name(key)} leads beyond the end of the file")

    def read(storage: Storage, begin: int, end: int) -> Array:
        if sizes.get(storage.key) != storage or storage.key not in places:
            raise DamagedError(f"storage {shown_name(storage.key)} is not there")
        content = np.empty(end - begin, np.uint8)
        file.seek(places[storage.key] + begin)
        if file.readinto(content.data) < len(content):  # type: ignore[attr-defined]
            raise DamagedError(f"storage {shown_name(storage.key)} ends early")
        return content

    return content, read


def _sizes(content: Any) -> dict[str, Storage]:
    """The storages that anything in the plain values is a part of, by their keys."""
    found: dict[str, Storage] = {}
    seen: set[int] = set()
    left = [content]
    while left:
        value = left.pop()
        if isinstance(value, Described):
            found.setdefault(value.storage.key, value.storage)
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            left.extend(value.values() if isinstance(value, dict) else value)
    return found
