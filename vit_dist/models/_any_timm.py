"""A model of timm as an `ImageModel`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
from timm.models import group_parameters
from torch import Tensor, nn

from vit_dist.core.errors import ConfigError, of_its_family
from vit_dist.models._base import Checkpointing, ImageModel, zero_head

if TYPE_CHECKING:
    from vit_dist.models.any_timm import TimmConfig


class TimmModel(ImageModel):
    """timm's backbone under `net`, and the linear `head` that every model here has."""

    def __init__(self, config: TimmConfig, num_classes: int, image_size: int) -> None:
        super().__init__()
        net: Any = create(config, image_size)
        self.net = net
        # Running statistics would be each rank's own: the result would depend on the number of ranks.
        normalised = [n for n, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if normalised:
            raise ConfigError(
                f"model {config.name!r} has BatchNorm ({normalised[0]}, {len(normalised)} in all), whose result "
                f"depends on the number of ranks; choose one with another norm, such as "
                f"timm:resnet50_gn, timm:convnext_tiny, or R50x1"
            )
        self.head = zero_head(net.head_hidden_size, num_classes, config.head_bias)

    def features(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> [B, C]: what timm gives to its classifier."""
        x: Tensor = self.net(images)
        return x

    def weight_layers(self) -> dict[str, int] | None:
        """See ImageModel. As timm groups them itself, which counts a final norm to the last block."""
        matcher = getattr(self.net, "group_matcher", None)
        if matcher is None:
            return None
        layers: dict[str, int] = group_parameters(self.net, matcher(coarse=False), reverse=True)
        behind = max(layers.values(), default=0) + 1
        # One layer for all that is below the head tells nothing.
        if behind < 3:
            return None
        return {n: layers.get(n.removeprefix("net."), behind) for n, _ in self.named_parameters()}

    def set_activation_checkpointing(self, mode: Checkpointing) -> None:
        """As for every model, where timm's has it."""
        super().set_activation_checkpointing(mode)
        try:
            self.net.set_grad_checkpointing(mode == "full")
        except (AssertionError, AttributeError):
            if mode == "full":
                name = type(self.net).__name__
                raise ConfigError(
                    f"timm's {name} cannot recompute activations; switch activation checkpointing off"
                ) from None


def create(config: TimmConfig, image_size: int, num_classes: int = 0) -> nn.Module:
    """timm's model; 0 classes: without its classifier.

    Raises:
        ConfigError: timm has no such model, or cannot make it as asked.
    """
    name = config.architecture
    if not timm.is_model(name):
        raise ConfigError(f"timm {timm.__version__} has no model {name!r}{of_its_family(name, timm.list_models())}")
    known = timm.models.get_pretrained_cfg(name)
    size = {"img_size": image_size} if known is None or known.fixed_input_size else {}
    try:
        model: nn.Module = timm.create_model(name, pretrained=False, num_classes=num_classes, **{**size, **config.args})
    except Exception as error:
        # Each of timm's models refuses with an error of its own.
        raise ConfigError(
            f"timm cannot make {name!r} for {image_size}-pixel images with args {config.args}: {error}"
        ) from None
    return model


def usual_image_size(config: TimmConfig) -> int:
    """The side of the images that timm's own weights of this model were trained on."""
    known = timm.models.get_pretrained_cfg(config.architecture)
    return 224 if known is None else int(known.input_size[-1])
