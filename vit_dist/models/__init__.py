"""The model families, built from timm's parts. One public file a family; a name is a preset of one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vit_dist.core.registry import Plugin

if TYPE_CHECKING:
    from torch import nn


class ModelConfig(Plugin):
    """Base of every model family's config; `family` is the label of its curve in a study."""

    family: str

    def build(self, *, num_classes: int, image_size: int) -> nn.Module:
        """The module: float images [B, 3, H, W] in [-1, 1] -> logits [B, num_classes], with initial weights.

        Initial weights come from torch's global generator: seed it first.

        Raises:
            ConfigError: the image size does not fit the model.
        """
        raise NotImplementedError
