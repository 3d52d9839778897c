"""The hybrid as a module: timm's HybridEmbed in front of the ViT's blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from timm.layers import HybridEmbed

from vit_dist.models._base import Checkpointing
from vit_dist.models._bit import post_activation_resnet
from vit_dist.models._vit import ViT

if TYPE_CHECKING:
    from vit_dist.models.hybrid import HybridConfig


class Hybrid(ViT):
    """A ViT whose `patch_embed` is a ResNet and a convolution on its feature map."""

    convolutional = True

    def set_activation_checkpointing(self, mode: Checkpointing) -> None:
        """As for every model; the ResNet's blocks are recomputed one by one too."""
        super().set_activation_checkpointing(mode)
        self.patch_embed.set_grad_checkpointing(mode == "full")


def build_hybrid(config: HybridConfig, *, num_classes: int, image_size: int) -> Hybrid:
    """A hybrid with initial weights, as `HybridConfig.build` promises."""
    backbone = post_activation_resnet(
        config.stages, width=config.backbone_width, groups=config.groups, stem=config.stem
    )
    patches = HybridEmbed(backbone, img_size=image_size, patch_size=config.patch_size, embed_dim=config.width)
    return Hybrid(config, patches, num_classes)
