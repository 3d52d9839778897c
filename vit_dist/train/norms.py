"""Norms of weights, gradients and updates of one step, and its largest attention logits: `log.norms` of a recipe.

Nothing here changes what is trained: weights and gradients are read, hooks return nothing, no random number is drawn.
Under ZeRO the weights are those of the optimizer (fp32 masters), each rank summing its own part of them, so that
nothing but the gradients is gathered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from vit_dist.core.run import log as runlog
from vit_dist.core.world import World
from vit_dist.engines._protocol import Engine
from vit_dist.engines._slices import WEIGHT, Slice
from vit_dist.models._positions import RelativeAttention, RotaryAttention

_IMAGES_AT_ONCE = 8


class StepNorms:
    """Watches one step, from before it until `finish`.

    Holds a copy of this rank's part of the weights meanwhile: 4 bytes a parameter, over the number of ranks.

    Args:
        engine: that is about to take the step.
        world: its ranks, all of which watch the same step.
    """

    def __init__(self, engine: Engine, world: World) -> None:
        self._engine, self._world = engine, world
        # In one order on every rank, whatever part of them it holds: the sums are reduced by place.
        self._names = [name for name, _ in engine.module.named_parameters()]
        self._before = {(part.name, part.start): part.data.clone() for part in self._weights()}
        self._gradients: dict[str, Tensor] = {}
        self._attention = AttentionLogits(engine.module)

    def on_gradients(self, named: Iterator[tuple[str, Tensor]]) -> None:
        """See engines/_protocol.OnGradients."""
        for name, gradient in named:
            self._gradients[name] = _sum_of_squares(gradient)

    def finish(self) -> dict[str, float]:
        """The norms by tag; those over all parameters are called `all`. A collective."""
        self._attention.close()
        at = {name: i for i, name in enumerate(self._names)}
        sums = torch.zeros(2, len(at), dtype=torch.float64, device=self._engine.device)
        for part in self._weights():
            sums[0, at[part.name]] += _sum_of_squares(part.data)
            sums[1, at[part.name]] += _sum_of_squares(part.data - self._before[part.name, part.start])
        largest = self._attention.stacked(self._engine.device)
        if self._world.size > 1:
            torch.distributed.all_reduce(sums)
            torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX)
        # One copy from the device for all.
        weights, updates = sums.tolist()
        gradients = dict(zip(self._gradients, torch.stack([*self._gradients.values()]).tolist(), strict=True))
        return {
            **_norms(runlog.WEIGHT_NORM, dict(zip(self._names, weights, strict=True))),
            **_norms(runlog.GRADIENT_NORM, gradients),
            **_norms(runlog.UPDATE_NORM, dict(zip(self._names, updates, strict=True))),
            **_largest(dict(zip(self._attention.names, largest.tolist(), strict=True))),
        }

    def _weights(self) -> Iterator[Slice]:
        return (part for part in self._engine.state().slices if part.kind == WEIGHT)


class AttentionLogits:
    """The largest |logit| of each attention layer, over the first micro-batch that passes until `close`.

    That is |q . k| / sqrt(d) before the softmax, with the bias of relative positions where a model has it. Seen are
    timm's attention and our own of relative and rotary positions; not attention pooling.

    Args:
        module: the model.
    """

    def __init__(self, module: nn.Module) -> None:
        self._largest: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        for name, layer in module.named_modules():
            if isinstance(layer, Attention):
                self._watch(name, layer)

    @property
    def names(self) -> list[str]:
        """The layers that were seen, in the order of the forward pass: the same on every rank."""
        return list(self._largest)

    def stacked(self, device: torch.device) -> Tensor:
        """[layers], in the order of `names`."""
        return torch.stack([*self._largest.values()]) if self._largest else torch.zeros(0, device=device)

    def close(self) -> None:
        """Look no more."""
        for handle in self._handles:
            handle.remove()

    def _watch(self, name: str, layer: Attention) -> None:
        # Emptied as it is read: what stayed here would be an activation a layer that is not freed.
        given: dict[str, Tensor] = {}

        def keep_query(_module: nn.Module, _inputs: Any, query: Tensor) -> None:
            given["q"] = query.detach()

        def see_key(_module: nn.Module, _inputs: Any, key: Tensor) -> None:
            self._see(name, layer, given.pop("q"), key.detach(), given.pop("table", None))

        def keep_table(_module: nn.Module, _inputs: Any, named: dict[str, Any]) -> None:
            given["table"] = named["attn_mask"].detach()

        if isinstance(layer, RelativeAttention):
            self._handles.append(layer.register_forward_pre_hook(keep_table, with_kwargs=True))
        # Without normalised queries and keys the norms are identities, but they are called all the same.
        last = (layer.q_turn, layer.k_turn) if isinstance(layer, RotaryAttention) else (layer.q_norm, layer.k_norm)
        self._handles.append(last[0].register_forward_hook(keep_query))
        self._handles.append(last[1].register_forward_hook(see_key))

    @torch.no_grad()
    def _see(self, name: str, layer: Attention, q: Tensor, k: Tensor, table: Tensor | None) -> None:
        # Later micro-batches pass here too, and under activation checkpointing each once more in the backward pass.
        if name in self._largest:
            return
        # In fp32, and a few images at a time: [B, heads, T, T] of a whole micro-batch is what fused attention avoids.
        with torch.autocast(q.device.type, enabled=False):
            largest = torch.zeros((), device=q.device)
            for i in range(0, len(q), _IMAGES_AT_ONCE):
                some_q, some_k = q[i : i + _IMAGES_AT_ONCE].float(), k[i : i + _IMAGES_AT_ONCE].float()
                logits = some_q @ some_k.transpose(-2, -1) * layer.scale
                if table is not None:
                    assert isinstance(layer, RelativeAttention)
                    logits += layer.bias(some_q, table.float())
                largest = torch.maximum(largest, logits.abs().amax())
        self._largest[name] = largest


def _sum_of_squares(values: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(values.detach(), dtype=torch.float64)
    return norm**2


def _norms(tag: str, sums: dict[str, float]) -> dict[str, float]:
    each = {f"{tag}/{name}": math.sqrt(total) for name, total in sums.items()}
    return {f"{tag}/{runlog.ALL}": math.sqrt(sum(sums.values())), **each}


def _largest(logits: dict[str, float]) -> dict[str, float]:
    if not logits:
        return {}
    each = {f"{runlog.ATTENTION_LOGIT}/{name}": value for name, value in logits.items()}
    return {f"{runlog.ATTENTION_LOGIT}/{runlog.ALL}": max(logits.values()), **each}
