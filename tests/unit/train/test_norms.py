"""The largest attention logit, held against attention written out."""

from __future__ import annotations

import pytest
import torch

from vit_dist.config.load import resolve
from vit_dist.train.norms import AttentionLogits


@pytest.mark.parametrize("positions", ["learned", "relative", "rope"])
def test_the_largest_logit_is_that_of_attention_written_out(positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "model": {
                "name": "vit-test",
                "position_embedding": positions,
                "qk_norm": positions != "learned",
                **({"positions_at": "layers"} if positions == "relative" else {}),
            },
            "data": {"num_classes": 10, "image_size": 28},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {"name": "plain"},
        }
    )
    torch.manual_seed(0)
    model = recipe.model.build(num_classes=10, image_size=28)
    seen, attention = [], torch.nn.functional.scaled_dot_product_attention

    def written_out(q, k, v, attn_mask=None, **named):
        logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5 + (0 if attn_mask is None else attn_mask)
        seen.append(float(logits.detach().abs().max()))
        return attention(q, k, v, attn_mask=attn_mask, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", written_out)
    logits = AttentionLogits(model)
    model(torch.rand(11, 3, 28, 28))
    first = list(seen)
    model(10 * torch.rand(11, 3, 28, 28))  # another micro-batch: not looked at
    logits.close()

    assert logits.names == ["blocks.0.attn", "blocks.1.attn"]
    assert logits.stacked(torch.device("cpu")).tolist() == pytest.approx(first, rel=1e-5)
    assert first != seen[len(first) :]
