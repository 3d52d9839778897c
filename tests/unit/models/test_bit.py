"""The BiT ResNet, held to its paper and to timm's own."""

from __future__ import annotations

from functools import partial

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import nn

from tests.plugins import build_model, model_config
from vit_dist.core.registry import MODELS
from vit_dist.models import ModelConfig
from vit_dist.models._bit import GroupNorm


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("R50x1", "resnetv2_50x1_bit"), ("R101x3", "resnetv2_101x3_bit"), ("R152x4", "resnetv2_152x4_bit")],
)
def test_weights_below_the_head_have_the_names_and_shapes_of_timms_model(ours: str, theirs: str) -> None:
    with torch.device("meta"):
        model = model_config(ours).build(num_classes=10, image_size=224).state_dict()
        expected = timm.create_model(theirs, num_classes=10).state_dict()
    body = {name: tensor.shape for name, tensor in model.items() if not name.startswith("head.")}
    assert body == {name: tensor.shape for name, tensor in expected.items() if not name.startswith("head.")}


def test_logits_are_timms_for_the_same_weights() -> None:
    ours = build_model("bit-test", stem="imagenet", blocks=(1, 2), width=8, width_factor=2).eval()
    theirs = timm.models.ResNetV2(
        layers=[1, 2],
        channels=(32, 64),
        stem_chs=8,
        width_factor=2,
        num_classes=10,
        stem_type="fixed",
        norm_layer=partial(timm.layers.GroupNormAct, num_groups=4),
        conv_layer=partial(timm.layers.StdConv2d, eps=1e-8),
    ).eval()
    weights = {name.replace("head.", "head.fc."): tensor for name, tensor in ours.state_dict().items()}
    weights["head.fc.weight"] = weights["head.fc.weight"][:, :, None, None]
    theirs.load_state_dict(weights)
    x = torch.randn(2, 3, 40, 40)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", ["bottleneck", "basic"])
def test_the_scale_and_offset_of_a_kernel_change_nothing(block: str) -> None:
    model = build_model("bit-test", block=block).eval()
    x = torch.randn(2, 3, 28, 28)
    before = model(x)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data.mul_(3).add_(0.5)
    torch.testing.assert_close(model(x), before, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("stem", "side"), [("imagenet", 8), ("small", 32), ("small/2", 16)])
def test_the_stem_divides_the_image_as_it_says(stem: str, side: int) -> None:
    assert build_model("bit-test", stem=stem).stem(torch.randn(1, 3, 32, 32)).shape == (1, 8, side, side)


def test_the_imagenet_stem_pads_with_zeros_before_it_pools() -> None:
    stem = build_model("bit-test", stem="imagenet").stem
    assert [type(part).__name__ for part in stem] == ["StdConv2d", "ConstantPad2d", "MaxPool2d"]
    assert stem(torch.zeros(1, 3, 32, 32)).abs().max() == 0


def test_each_stage_doubles_the_channels_and_every_one_but_the_first_halves_the_image() -> None:
    model = build_model("bit-test", blocks=(1, 2, 1), width=16)
    x = model.stem(torch.randn(1, 3, 28, 28))
    seen = []
    for stage in model.stages:
        x = stage(x)
        seen.append(tuple(x.shape[1:]))
    assert seen == [(64, 14, 14), (128, 7, 7), (256, 4, 4)]
    strides = [m.stride for m in model.stages[1].blocks[0].modules() if isinstance(m, nn.Conv2d)]
    assert strides == [(2, 2), (1, 1), (2, 2), (1, 1)]  # shortcut, 1x1, 3x3, 1x1


def test_a_factor_widens_every_channel() -> None:
    assert model_config("R50x1").channels == (256, 512, 1024, 2048)
    assert model_config("R152x4").channels == (1024, 2048, 4096, 8192)


def test_norms_have_the_groups_asked_for() -> None:
    groups = {m.num_groups for m in build_model("bit-test", groups=2).modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {2}


def test_channels_that_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(ValidationError, match="8 channels do not divide into groups=3"):
        model_config("bit-test", groups=3)
    with pytest.raises(ValidationError, match="must be a multiple of 8"):
        model_config("bit-test", width=12)
    with pytest.raises(ValidationError, match="blocks"):
        model_config("bit-test", blocks=())


def test_stochastic_depth_rises_towards_the_last_stage() -> None:
    model = build_model("bit-test", stochastic_depth=0.4, blocks=(1, 1, 1))
    skipping = {name: m.drop_prob for name, m in model.named_modules() if hasattr(m, "drop_prob")}
    assert skipping == pytest.approx({"stages.1.blocks.0.drop_path": 0.2, "stages.2.blocks.0.drop_path": 0.4})


@pytest.mark.parametrize("name", ["bit", "hybrid"])
def test_kernels_start_as_lecun_normal(name: str) -> None:
    cls, defaults = MODELS.lookup(name)
    blocks = {"stages": (1,), "width": 32, "depth": 1, "num_heads": 1} if name == "hybrid" else {"blocks": (1,)}
    torch.manual_seed(0)
    made = cls.model_validate({**defaults, **blocks})
    assert isinstance(made, ModelConfig)
    for module in made.build(num_classes=2, image_size=32).modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.std().item() == pytest.approx(module.weight[0].numel() ** -0.5, rel=0.1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("act", [True, False])
def test_a_compiled_norm_computes_what_torchs_does_and_keeps_the_layout(
    layout: torch.memory_format, dtype: torch.dtype, off: float, act: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    norm = GroupNorm(24, num_groups=4, apply_act=act)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    # A mean far from zero, of which a sum of squares would lose the variance.
    images = (
        (torch.randn(3, 24, 5, 7) + 30 * torch.arange(24.0).view(24, 1, 1)).to(dtype).contiguous(memory_format=layout)
    )
    found = {}
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        given, norm.weight.grad, norm.bias.grad = images.clone().requires_grad_(), None, None
        with torch.autocast("cpu", enabled=dtype == torch.bfloat16):
            result = norm(given)
        assert result.dtype == dtype
        (result.float() * torch.linspace(-1, 1, result.numel()).view(result.shape)).sum().backward()
        assert given.grad is not None
        found[compiling] = result, given.grad, norm.weight.grad, norm.bias.grad
    assert found[True][0].is_contiguous(memory_format=layout)
    for ours, torchs in zip(found[True], found[False], strict=True):
        assert ours is not None
        assert torchs is not None
        torch.testing.assert_close(ours.float(), torchs.float(), rtol=off, atol=off * torchs.abs().max().item())
