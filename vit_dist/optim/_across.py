"""What an optimizer that needs more of a weight than some elements asks of the other ranks that hold the rest of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class Across(Protocol):
    """How a rank's rows of each weight become a whole. Collectives: all ranks ask, and in one order."""

    def summed(self, own: Tensor) -> Tensor:
        """The sum over ranks of what each has of its own rows."""

    def whole(self, weight: Tensor, own: Tensor) -> Tensor:
        """All rows of a tensor that is cut as `weight` is."""

    def own(self, weight: Tensor, whole: Tensor) -> Tensor:
        """This rank's rows of a whole."""


class Alone:
    """Every weight is whole already."""

    def summed(self, own: Tensor) -> Tensor:
        """See Across."""
        return own

    def whole(self, weight: Tensor, own: Tensor) -> Tensor:  # noqa: ARG002
        """See Across."""
        return own

    def own(self, weight: Tensor, whole: Tensor) -> Tensor:  # noqa: ARG002
        """See Across."""
        return whole


class RowOptimizer(torch.optim.Optimizer):
    """An optimizer whose state is cut as its weights are, and that steps on a rank's rows of each with `across`.

    Args:
        params: groups with every setting in them.
    """

    across: Across
    fused: ClassVar[bool] = False
    """Whether steps are counted on the device, as torch's fused kernels want it; whoever restores them asks."""

    def __init__(self, params: Iterable[Mapping[str, Any]]) -> None:
        super().__init__([dict(group) for group in params], {"fused": True} if self.fused else {})
        self.across = Alone()


def weights_with_gradients(group: Mapping[str, Any]) -> Iterator[Tensor]:
    """Those of a group that step."""
    return (weight for weight in group["params"] if weight.grad is not None)
