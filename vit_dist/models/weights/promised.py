"""Tensors of a file that are not read yet: their shapes are known, and what is to be done to them is noted.

So a whole file is held against the model that is wanted before a value of it takes memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_dist.core.errors import DataError
from vit_dist.core.npz import shown_name

_MAX_NAME = 500
_MAX_VALUES = 2**48


@dataclass(frozen=True)
class Promised:
    """A float32 tensor of this shape, once it is asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def then(self, change: Callable[[Tensor], Tensor]) -> Promised:
        """The same, changed.

        Args:
            change: what is done to it; it is tried on a tensor without values now, and raises what it raises there.
        """
        return Promised(tuple(change(_hollow(self)).shape), lambda: change(self.read()))


State = dict[str, Promised]


def stacked(parts: Sequence[Promised]) -> Promised:
    """Several as one, along their first axis.

    Raises:
        RuntimeError: their shapes do not allow that.
    """
    if len(parts) == 1:
        return parts[0]
    return Promised(
        tuple(torch.cat([_hollow(part) for part in parts]).shape), lambda: torch.cat([part.read() for part in parts])
    )


def promise(name: str, shape: tuple[int, ...], where: str, read: Callable[[], Tensor]) -> Promised:
    """A tensor of a file.

    Raises:
        DataError: no model has a tensor of such a name or shape.
    """
    if len(name) > _MAX_NAME or not name.isprintable():
        raise DataError(f"{where}: {shown_name(name)} in it has a name that no weight has ({len(name):,} characters)")
    if not 0 < math.prod(shape) <= _MAX_VALUES:
        raise DataError(f"{where}: {shown_name(name)} in it has the shape {str(shape)[:80]}, which no weight has")
    return Promised(shape, read)


def _hollow(tensor: Promised) -> Tensor:
    return torch.empty(tensor.shape, device="meta")
