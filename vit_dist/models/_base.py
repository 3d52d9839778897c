"""What every model offers to training, evaluation and inspection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal

import torch
from timm.layers import lecun_normal_
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from vit_dist.core.seeding import hash64

_TAG_WEIGHTS = 0x57454947485453  # "WEIGHTS"

Checkpointing = Literal["none", "full"]


class Head(nn.Linear):
    """A linear layer that computes in fp32, whatever the dtype of its weights and of what it is given.

    A logit of bf16 has 8 bits: around the -10 at which heads for a sigmoid start, neighbours are 0.06 apart, and their
    sigmoids 6%.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features], float32."""
        kind = x.device.type
        # The meta device knows no autocast, and must not be asked about it.
        autocast = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        with torch.autocast(kind, enabled=False) if autocast else contextlib.nullcontext():
            return functional.linear(x.float(), self.weight.float(), self.bias.float())


class ImageModel(nn.Module):
    """A backbone and a linear `head`. Submodules are made in one order, whatever the rank, as ZeRO-3 needs.

    Attributes:
        head: the classifier.
        convolutional: most of its time goes into convolutions, which GPUs compute on NHWC images.
    """

    head: nn.Linear
    convolutional: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        self.checkpointing: Checkpointing = "none"

    def features(self, images: Tensor) -> Tensor:
        """What the head classifies. Images [B, 3, H, W], in the parameters' dtype -> [B, head.in_features]."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] in [-1, 1], in the parameters' dtype -> float32 logits [B, num_classes]."""
        logits: Tensor = self.head(self.features(images))
        return logits

    def weight_layers(self) -> dict[str, int] | None:
        """The layer of each weight, for rates that fall from layer to layer; None where layers cannot be told.

        0: what comes before the blocks. 1 to n: a block each. n + 1: what comes behind them, the head with it.
        """
        blocks = repeated_blocks(self)
        if not blocks:
            return None
        of = {id(weight): i for i, block in enumerate(blocks, 1) for weight in block.parameters()}
        weights = list(self.named_parameters())
        begin = next(i for i, (_, weight) in enumerate(weights) if id(weight) in of)
        layers, following = {}, len(blocks) + 1
        for i, (name, weight) in reversed(list(enumerate(weights))):
            # What stands between blocks, such as what halves a stage's sides, is of the block that it comes before.
            following = of.get(id(weight), following)
            layers[name] = 0 if i < begin else following
        return layers | {f"head.{name}": len(blocks) + 1 for name, _ in self.head.named_parameters()}

    def set_activation_checkpointing(self, mode: Checkpointing) -> None:
        """`full`: keep the input of each block alone and compute the block again in the backward pass."""
        self.checkpointing = mode

    def run_blocks(self, blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
        """Blocks one after the other; each is recomputed in the backward pass where that was asked for."""
        for block in blocks:
            x = self._run_block(block, x)
        return x

    def _run_block(self, block: Callable[..., Tensor], x: Tensor, *others: Any) -> Tensor:
        """One block forward; `full` checkpointing keeps its arguments alone."""
        if self.checkpointing == "full" and torch.is_grad_enabled():
            # Not re-entrant: works with frozen inputs. The generator's state is kept: both passes drop the same units.
            recomputed: Tensor = checkpoint(block, x, *others, use_reentrant=False)
            return recomputed
        return block(x, *others)


def repeated_blocks(module: nn.Module) -> list[nn.Module]:
    """The blocks of a model, in order: modules of one class in a list, that are made of others and hold no such list.

    Those of a ViT, residual units of a ResNet and of a hybrid's, whatever the class: timm has hundreds.
    """
    found = [b for part in module.children() for b in repeated_blocks(part)]
    members = list(module.children())
    listed = isinstance(module, nn.ModuleList | nn.Sequential) and len({type(member) for member in members}) == 1
    if found or not listed or not all(any(True for _ in member.children()) for member in members):
        return found
    return members


def seed_weights(seed: int) -> None:
    """Make the initial weights of the models built next a function of a run's seed."""
    torch.manual_seed(hash64(seed, _TAG_WEIGHTS))


def zero_head(in_features: int, num_classes: int, bias: float) -> nn.Linear:
    """A classifier that starts by giving every class the logit `bias`, as in the paper's public code."""
    head = Head(in_features, num_classes)
    nn.init.zeros_(head.weight)
    nn.init.constant_(head.bias, bias)
    return head


def init_conv(conv: nn.Conv2d) -> None:
    """LeCun normal kernel and zero bias: flax's default, which the paper's public code leaves in place."""
    lecun_normal_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
