"""Images in [-1, 1], as everything here gives them, in the colours that weights of others were trained with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.core.log import WARNING, log
from vit_dist.models.weights.viewed import HALF, Viewed


def is_usual(viewed: Viewed) -> bool:
    """Whether weights want images in [-1, 1], as everything here gives them."""
    return (viewed.mean, viewed.std) == (HALF, HALF)


def warn_of_colours(viewed: Viewed, out: str) -> None:
    """Say it where weights want colours of their own, and go into a file that cannot say which."""
    if is_usual(viewed):
        return
    mean, std = (",".join(f"{value:g}" for value in one) for one in (viewed.mean, viewed.std))
    log(
        f"{out}: these weights want images of mean {mean} and deviation {std}, which a folder of Hugging "
        f"Face alone says; of this file, who uses it has to: `vit-dist predict --mean {mean} --std {std}`",
        WARNING,
    )


def recoloured(images: Tensor, viewed: Viewed) -> Tensor:
    """[..., 3, H, W] in [-1, 1] -> the same images less the mean of `viewed`, over its deviation."""
    if is_usual(viewed):
        return images
    # In float32 also of bf16 images: each of three roundings would cost a bit.
    mean, std = (images.new_tensor(c, dtype=torch.float32)[:, None, None] for c in (viewed.mean, viewed.std))
    return (((images.float() + 1) / 2 - mean) / std).to(images.dtype)


def recolour_inputs(model: nn.Module, viewed: Viewed) -> None:
    """From now on the model is given images in [-1, 1], and sees them as its weights want them.

    Args:
        model: that is called with images [B, 3, H, W].
        viewed: how its weights want them.
    """

    def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        return (recoloured(given[0], viewed), *given[1:])

    if not is_usual(viewed):
        model.register_forward_pre_hook(hook)
