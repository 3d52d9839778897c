"""Whether what a checkpoint holds is what an engine is made of, tensor by tensor: asked before a byte is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.core.small_files import shown
from vit_dist.engines._average import wanted_count
from vit_dist.engines._slices import AVERAGE, BUFFER, NO_MOMENTS, WEIGHT, buffers, split_state

_FLOATS = frozenset({torch.float32, torch.bfloat16, torch.float16, torch.float64})


@dataclass(frozen=True)
class Held:
    """What a checkpoint says of a whole tensor; `part` is the name of the first file that has elements of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    part: str

    @property
    def numel(self) -> int:
        """Its elements."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Kept:
    """What an optimizer keeps of each weight from its first step on: kinds of moments, keys of single numbers."""

    moments: frozenset[str]
    scalars: frozenset[str]


@dataclass(frozen=True)
class Wanted:
    """What an engine's state is made of.

    Attributes:
        tensors: weights, buffers and averages by (kind, name): shape of each, and dtypes in which it may be stored.
        trained: names of the weights of which the optimizer keeps something.
        kept: what that is; None: it cannot be told, or has other shapes than the weights.
        whole: moments have the shape of their weight, since they are cut as it is.
    """

    tensors: Mapping[tuple[str, str], tuple[tuple[int, ...], frozenset[torch.dtype]]]
    trained: frozenset[str]
    kept: Kept | None
    whole: bool

    def misfit(self, held: Mapping[tuple[str, str], Held], scalars: Mapping[str, Mapping[str, float]]) -> str:
        """The first thing in which a checkpoint is of something else, and how many more there are, or ''.

        Args:
            held: every tensor of the checkpoint, by (kind, name).
            scalars: what the optimizer kept a single number of, by weight.
        """
        found = [*self._tensors(held), *self._moments(held), *self._kept(held, scalars)]
        more = f"; and {len(found) - 1:,} more such" if len(found) > 1 else ""
        return f"{found[0]}{more}" if found else ""

    def _tensors(self, held: Mapping[tuple[str, str], Held]) -> Iterator[str]:
        for (kind, name), (shape, dtypes) in self.tensors.items():
            there = held.get((kind, name))
            # Of a tensor without elements nobody writes a run.
            if there is None and torch.Size(shape).numel():
                yield f"no part has the {kind} {shown(name)}; the model's is {_described(shape, dtypes)}"
            elif there is not None and (there.shape != shape or there.dtype not in dtypes):
                yield _other(kind, name, there, f"the model's is {_described(shape, dtypes)}")
        for (kind, name), there in held.items():
            if kind in NO_MOMENTS and (kind, name) not in self.tensors:
                none = (
                    "the model has none of this name" if kind in {WEIGHT, BUFFER} else "the recipe's `ema` keeps none"
                )
                yield _other(kind, name, there, none)

    def _moments(self, held: Mapping[tuple[str, str], Held]) -> Iterator[str]:
        for (kind, name), there in held.items():
            if kind in NO_MOMENTS:
                continue
            if name not in self.trained:
                yield _other(kind, name, there, "no weight of this name is trained")
            elif self.kept is not None and kind not in self.kept.moments:
                yield _other(kind, name, there, f"the optimizer keeps {_listed(self.kept.moments)} of a weight")
            elif self.kept is not None or self.whole:
                shape, dtypes = self.tensors[WEIGHT, name]
                if there.shape != shape or there.dtype not in dtypes:
                    yield _other(kind, name, there, f"its weight is {_described(shape, dtypes)}")

    def _kept(self, held: Mapping[tuple[str, str], Held], scalars: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
        moments: dict[str, set[str]] = {}
        for kind, name in held:
            if kind not in NO_MOMENTS:
                moments.setdefault(name, set()).add(kind)
        for name in scalars:
            if scalars[name] and name not in self.trained:
                yield f"a part has numbers of the optimizer for {shown(name)}; no weight of this name is trained"
        for name in sorted(self.trained):
            of_it = moments.get(name, set()) | set(scalars.get(name, ()))
            # A weight that never had a gradient has nothing of the optimizer, and goes on so.
            if self.kept is None or not of_it:
                continue
            wanted = self.kept.moments | self.kept.scalars
            # Of a weight without elements nobody writes a run.
            if not torch.Size(self.tensors[WEIGHT, name][0]).numel():
                wanted = self.kept.scalars
            if of_it != wanted:
                yield (
                    f"of the weight {shown(name)} the parts have {_listed(of_it)}; the optimizer keeps "
                    f"{_listed(wanted)} of a weight"
                )


def wanted_of(module: nn.Module, optimizer: Any, *, masters: torch.dtype | None, averages: bool = False) -> Wanted:
    """What the state of an engine is made of, from its model and torch's optimizer.

    Args:
        module: the model; under ZeRO-3 its parameters are partitioned.
        optimizer: torch's own.
        masters: dtype of the weights that are trained; None: they are the model's, and moments may have shapes of
            their own where the optimizer gives them such.
        averages: whether an average of the weights that are trained is kept.
    """
    trained = frozenset(name for name, p in module.named_parameters() if p.requires_grad)
    tensors = tensors_of(module)
    for name, p in module.named_parameters():
        if p.requires_grad:
            tensors[WEIGHT, name] = tensors[WEIGHT, name][0], frozenset({masters or p.dtype})
            if averages:
                tensors[AVERAGE, name] = tensors[WEIGHT, name]
    if averages:
        tensors |= [wanted_count()]
    return Wanted(tensors, trained, _kept_by(optimizer), whole=masters is not None)


def tensors_of(module: nn.Module) -> dict[tuple[str, str], tuple[tuple[int, ...], frozenset[torch.dtype]]]:
    """Weights and buffers of a model: the shape of each, and dtypes in which some engine may store it."""
    # A partitioned parameter is empty between steps, and says its shape itself.
    tensors = {
        (WEIGHT, name): (tuple(getattr(p, "ds_shape", p.shape)), _stored(p)) for name, p in module.named_parameters()
    }
    return tensors | {(BUFFER, name): (tuple(buffer.shape), _stored(buffer)) for name, buffer in buffers(module)}


def _stored(tensor: Tensor) -> frozenset[torch.dtype]:
    """Dtypes in which engines store a tensor that is not trained: floats in that which the engine computes with."""
    return _FLOATS if tensor.dtype in _FLOATS else frozenset({tensor.dtype})


def _kept_by(optimizer: Any) -> Kept | None:
    """What an optimizer keeps of a weight, tried on one of four elements; None where weights or groups differ in it."""
    # Of four elements it might keep all, and of a matrix rows and columns.
    if getattr(optimizer, "keeps_other_shapes", False):
        return None
    found = set()
    try:
        for group in optimizer.param_groups:
            device = next(iter(group["params"])).device
            weight = nn.Parameter(torch.zeros(2, 2, device=device))
            weight.grad = torch.zeros_like(weight)
            tried = type(optimizer)([{**group, "params": [weight]}])
            tried.step()
            moments, scalars = split_state(tried.state[weight])
            if any(moment.shape != weight.shape for moment in moments.values()):
                return None
            found.add(Kept(frozenset(moments), frozenset(scalars)))
    # Plug-ins make optimizers as they like: of one that cannot be made again this way, less is checked.
    except Exception:
        return None
    return found.pop() if len(found) == 1 else None


def _other(kind: str, name: str, held: Held, wanted: str) -> str:
    return f"{held.part}: the {kind} {shown(name)} is {_described(held.shape, {held.dtype})}; {wanted}"


def _described(shape: Sequence[int], dtypes: frozenset[torch.dtype] | set[torch.dtype]) -> str:
    names = " or ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
    return f"[{', '.join(map(str, shape))}] of {names}"


def _listed(names: frozenset[str] | set[str]) -> str:
    return ", ".join(map(shown, sorted(names))) or "nothing"
