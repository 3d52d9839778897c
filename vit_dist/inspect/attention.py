"""Attention weights out of any forward pass, whichever kernel computes it.

Fused kernels never hold the weights. So the queries and keys that `scaled_dot_product_attention` is called with are
looked at on their way (torch.overrides.TorchFunctionMode), and the weights computed beside it: after norms of queries
and keys, rotary positions, biases and masks, whatever the model is; its own code has no second path for this.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

See = Callable[[Tensor], None]


class _Watch(TorchFunctionMode):
    def __init__(self, see: See) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            self._see(attention_weights(*args, **kwargs).detach())
        return func(*args, **kwargs)


@contextlib.contextmanager
def watched_attention(see: See) -> Iterator[None]:
    """Within the block `see` is given the weights of each attention that is computed, in its order.

    They are float32 [B, h, Tq, Tk], and each row sums to 1; what the model computes is what it would be without.

        with watched_attention(lambda weights: print(weights.shape)), torch.no_grad():
            model(images)

    Of attention that a model computes without torch's `scaled_dot_product_attention`, nothing is seen.
    """
    with _Watch(see):
        yield


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """softmax(q k^T * scale + mask), float32 [B, h, Tq, Tk], of the arguments of `scaled_dot_product_attention`.

    Dropout is left out. `scale` is 1 / sqrt(d) where none is given.
    """
    # They change nothing of the weights that evaluation has.
    del value, dropout_p
    with torch.autocast(query.device.type, enabled=False):
        q, k = query.float(), key.float()
        if enable_gqa:
            k = k.repeat_interleave(q.shape[-3] // k.shape[-3], dim=-3)
        logits = q @ k.transpose(-2, -1) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        if is_causal:
            below = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).tril()
            logits = logits.masked_fill(~below, -math.inf)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            logits = logits + attn_mask.float()
        return logits.softmax(dim=-1)
