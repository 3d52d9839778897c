"""ResNets of timm's parts: the BiT baseline, and the backbone that hybrids share."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING

import torch
from timm.layers import GroupNormAct, StdConv2d, StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from vit_dist.models._base import ImageModel, init_conv, zero_head

if TYPE_CHECKING:
    from vit_dist.models.bit import BiTConfig

# Inside the root of weight standardisation, as timm has it for the published weights.
EPS = 1e-8


class GroupNorm(GroupNormAct):  # type: ignore[misc]
    """timm's GroupNorm and activation, in the dtype of what they are given; compiled, in its layout too.

    torch's own formula would first copy images that lie as NHWC.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape and dtype."""
        if not torch.compiler.is_compiling():
            # Autocast computes norms in float32: neither what is added to it nor what is kept need be twice as large.
            normed: Tensor = super().forward(x)
            return normed.to(x.dtype)
        groups = (len(x), self.num_groups, -1)
        # Of each channel first: whatever the layout, memory is read as it lies.
        variance, mean = torch.var_mean(x.float(), dim=(2, 3), correction=0)
        grouped = mean.view(groups)
        centre = grouped.mean(dim=2, keepdim=True)
        spread = (variance.view(groups) + (grouped - centre).square()).mean(dim=2, keepdim=True)
        scale = (spread + self.eps).rsqrt().expand_as(grouped).flatten(1) * self.weight.float()
        centred = x.float() - centre.expand_as(grouped).flatten(1)[..., None, None]
        normed = torch.addcmul(self.bias.float()[:, None, None], centred, scale[..., None, None]).to(x.dtype)
        activated: Tensor = self.act(self.drop(normed))
        return activated


class BiT(ImageModel):
    """Stem -> stages of residual blocks -> GroupNorm, ReLU -> mean over the image -> head.

    Parameters have timm's names, but for `head`, which is one linear layer here as in every model.
    """

    convolutional = True

    def __init__(self, config: BiTConfig, num_classes: int) -> None:
        super().__init__()
        width = config.width * config.width_factor
        net = bit_resnet(config)
        if config.stem == "imagenet":
            self.stem = net.stem
        else:
            stride = 2 if config.stem == "small/2" else 1
            self.stem = nn.Sequential(OrderedDict(conv=StdConv2d(3, width, 3, stride=stride, eps=EPS)))
        self.stages = net.stages
        self.norm = net.norm
        self.head = zero_head(config.channels[-1], num_classes, config.head_bias)
        init_convs(self)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, C]: mean over the positions of the last feature map."""
        x: Tensor = self.stem(images)
        for stage in self.stages:
            x = self.run_blocks(stage.blocks, x)
        x = self.norm(x)
        return x.mean(dim=(2, 3))


def bit_resnet(config: BiTConfig, num_classes: int = 0) -> ResNetV2:
    """timm's ResNet of these blocks with the stem for large images; 0 classes: without its classifier."""
    basic = config.block == "basic"
    return ResNetV2(
        layers=list(config.blocks),
        channels=config.channels,
        stem_chs=config.width * config.width_factor,
        stem_type="fixed",
        num_classes=num_classes,
        preact=True,
        basic=basic,
        bottle_ratio=1.0 if basic else 0.25,
        norm_layer=partial(GroupNorm, num_groups=config.groups),
        conv_layer=partial(StdConv2d, eps=EPS),
        drop_path_rate=config.stochastic_depth,
    )


def post_activation_resnet(blocks: tuple[int, ...], *, width: int, groups: int, stem: str) -> ResNetV2:
    """A hybrid's backbone: images [B, 3, H, W] -> feature map [B, 4 * width * 2^(stages - 1), H / stride, W / stride].

    Post-activation bottlenecks and TensorFlow's SAME padding, as in google-research/vision_transformer
    (models_resnet.py); the last scale of each block starts at zero there, so that blocks start as shortcuts.
    """
    conv = partial(StdConv2dSame, eps=EPS)
    norm = partial(GroupNorm, num_groups=groups)
    net = ResNetV2(
        layers=list(blocks),
        channels=tuple(4 * width * 2**i for i in range(len(blocks))),
        stem_chs=width,
        stem_type="same",
        num_classes=0,
        global_pool="",
        preact=False,
        norm_layer=norm,
        conv_layer=conv,
        zero_init_last=True,
    )
    if stem != "imagenet":
        stride = 2 if stem == "small/2" else 1
        net.stem = nn.Sequential(OrderedDict(conv=conv(3, width, 3, stride=stride), norm=norm(width)))
    init_convs(net)
    return net


def init_convs(module: nn.Module) -> None:
    """LeCun normal kernels everywhere; their scale sets nothing but how fast a standardised kernel turns."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            init_conv(part)
