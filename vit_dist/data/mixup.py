"""MixUp and CutMix of pairs of the global batch, the same on any number of ranks, after any restart.

Slot j of the global batch is paired with slot j + B/2. Rank r of W owns the slots j = r mod W, so where 2W divides B
both slots of a pair are on one rank, half its rows apart. How a pair is mixed is a function of (seed, position of its
first slot) alone. Both slots get the same lambda and box: x_j' = l x_j + (1 - l) x_k, x_k' = l x_k + (1 - l) x_j.

Mixing is done on uint8, in integers, on the device that trains: every device and every micro-batch size gives the same
bits, a quarter of the bytes of float32 cross the bus, and the decode threads are left alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vit_dist.config.augment import MixupConfig
from vit_dist.core.seeding import hash64, uniform

_TAG_MIX = 0x4D4958  # "MIX"
# Lambda is counted in 1/65536: products with a uint8 fit 32 bits.
_ONE = 1 << 16


@dataclass(frozen=True)
class PairMix:
    """How one pair is mixed.

    Attributes:
        lam: the papers' lambda: weight of the example itself in its mixed image and target; the rest is its partner's.
        box: top, left, bottom, right of what CutMix takes from the partner, in pixels; None for MixUp.
    """

    lam: float
    box: tuple[int, int, int, int] | None = None


def draw_mix(config: MixupConfig, seed: int, position: int, size: int) -> PairMix:
    """How the pair whose first slot stands at a position of the stream is mixed, in images of size x size pixels."""
    key = hash64(seed, _TAG_MIX, position)
    if uniform(key, 0) >= config.probability:
        return PairMix(1.0)
    cut = config.cutmix_alpha and (not config.alpha or uniform(key, 1) < config.cutmix_share)
    if not cut:
        return PairMix(round(_beta(config.alpha, key) * _ONE) / _ONE)
    # Yun et al. 2019: a box of the image's shape and of 1 - lambda of its area, around any pixel, cut off at the edges.
    side = size * math.sqrt(1 - _beta(config.cutmix_alpha, key))
    middle = uniform(key, 2) * size, uniform(key, 3) * size
    top, left = (max(0, round(m - side / 2)) for m in middle)
    bottom, right = (min(size, round(m + side / 2)) for m in middle)
    return PairMix(1 - (bottom - top) * (right - left) / size**2, (top, left, bottom, right))


def _beta(alpha: float, key: int) -> float:
    """A draw from Beta(alpha, alpha): Joehnk's method (1964), in logarithms, with counters for random numbers."""
    attempt = 4
    while True:
        x = math.log(1 - uniform(key, attempt)) / alpha
        y = math.log(1 - uniform(key, attempt + 1)) / alpha
        high = max(x, y)
        if math.exp(x) + math.exp(y) <= 1:
            return math.exp(x - high) / (math.exp(x - high) + math.exp(y - high))
        attempt += 2


def mix_targets(targets: Tensor, mixes: list[PairMix]) -> Tensor:
    """float32 [2m, K] of m pairs, first the m first ones -> the same, mixed."""
    lam = _sent(torch.tensor([mix.lam for mix in mixes]), targets.device).unsqueeze(1)
    s, t = targets[: len(mixes)], targets[len(mixes) :]
    return torch.cat((lam * s + (1 - lam) * t, lam * t + (1 - lam) * s))


def mix_images(a: Tensor, b: Tensor, mixes: list[PairMix]) -> Tensor:
    """uint8 [m, 3, S, S] twice, the two of each pair -> uint8 [2m, 3, S, S], on their device."""
    shares = [_ONE if mix.box else int(mix.lam * _ONE) for mix in mixes]
    if any(share < _ONE for share in shares):
        blend = _sent(torch.tensor(shares, dtype=torch.int32), a.device).view(-1, 1, 1, 1)
        # b + (a - b) * lambda, rounded; what the first gains the second loses, but for the rounding.
        step = (a.to(torch.int32) - b) * blend
        first = ((b.to(torch.int32) << 16) + step + (_ONE >> 1)) >> 16
        second = ((a.to(torch.int32) << 16) - step + (_ONE >> 1)) >> 16
        a, b = first.to(torch.uint8), second.to(torch.uint8)
    if any(mix.box for mix in mixes):
        corners = _sent(torch.tensor([mix.box or (0, 0, 0, 0) for mix in mixes]), a.device).view(-1, 4, 1)
        pixel = torch.arange(a.shape[-1], device=a.device)
        tall = (pixel >= corners[:, 0]) & (pixel < corners[:, 2])
        wide = (pixel >= corners[:, 1]) & (pixel < corners[:, 3])
        inside = (tall.unsqueeze(2) & wide.unsqueeze(1)).unsqueeze(1)
        a, b = torch.where(inside, b, a), torch.where(inside, a, b)
    return torch.cat((a, b))


def _sent(values: Tensor, device: torch.device) -> Tensor:
    """A few numbers of the host's on the device; from pinned memory, out of which a copy is only queued."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values
