"""Models by timm's names."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from pydantic import ValidationError
from torch.nn import functional

from tests.plugins import build_model
from vit_dist.core.errors import ConfigError


@pytest.mark.parametrize("name", ["convnext_atto", "vit_tiny_patch16_224", "resnet50_gn"])
def test_a_model_of_timm_has_timms_features_and_our_head(name: str) -> None:
    ours = build_model(f"timm:{name}", 32, head_std=0, head_bias=-3.0).eval()
    theirs = timm.create_model(name, num_classes=0, **({"img_size": 32} if name.startswith("vit") else {})).eval()
    theirs.load_state_dict({n.removeprefix("net."): t for n, t in ours.state_dict().items() if n.startswith("net.")})
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(ours.features(x), theirs(x))
    assert torch.equal(ours(x), torch.full((2, 10), -3.0))


def test_a_model_of_timm_takes_its_arguments_and_recomputes_activations() -> None:
    model = build_model("timm:convnext_atto", 32, head_std=0, args={"drop_path_rate": 0.25})
    assert max(m.drop_prob for m in model.modules() if hasattr(m, "drop_prob")) == 0.25
    gradients = []
    for mode in ("none", "full"):
        model = build_model("timm:convnext_atto", 32, head_std=0)
        torch.nn.init.normal_(model.head.weight)
        model.set_activation_checkpointing(mode)  # type: ignore[arg-type]
        functional.cross_entropy(model(torch.ones(2, 3, 32, 32).cumsum(2)), torch.arange(2)).backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("timm:resnet50", {}, r"has BatchNorm \(bn1, .* timm:resnet50_gn"),
        ("timm:convnext_tini", {}, r"no model 'convnext_tini'; did you mean 'convnext_tiny'"),
        ("timm:convnext_atto", {"args": {"dept": 3}}, r"timm cannot make 'convnext_atto' .*dept"),
        (
            "timm:vit_tiny_patch16_224",
            {"image_size": 33, "args": {"strict_img_size": 1, "patch_size": 0}},
            "cannot make",
        ),
    ],
)
def test_what_timm_cannot_make_is_refused_with_the_reason(name: str, changes: dict[str, Any], message: str) -> None:
    # A name that there is not is refused before anything is built, by the recipe.
    with pytest.raises(ConfigError if name != "timm:convnext_tini" else ValidationError, match=message):
        build_model(name, **{"image_size": 32, **changes})
