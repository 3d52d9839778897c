"""What attention says of a model: rollout, mean distance, and where the class token looks, layer by layer.

B images, h heads, T tokens, of which the last L are patches on a grid (tokens.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from vit_dist.core.errors import ConfigError
from vit_dist.inspect.attention import watched_attention
from vit_dist.inspect.tokens import Tokens

_TINY = 1e-12


@dataclass(frozen=True)
class Attended:
    """What the attention of a model was over some images. D is the number of layers.

    Attributes:
        tokens: how they lie.
        num_images: over how many `distance` and the two after it are.
        distance: mean attention distance of each head in pixels, [D, h]: see `mean_distance`.
        spread: its standard deviation from image to image, [D, h].
        on_patches: share of a patch's attention that goes to patches, and not to class token and registers, [D, h].
        rollout: of the first images, [n, L]: see `rolled_out`.
        layers: what the output's token gives to each patch in each layer, mean over the heads, [n, D, L]: the class
            token; in a model without, the mean over all patches.
    """

    tokens: Tokens
    num_images: int
    distance: Tensor
    spread: Tensor
    on_patches: Tensor
    rollout: Tensor
    layers: Tensor


def distances_between(tokens: Tokens) -> Tensor:
    """Distance between the centres of any two patches in pixels, [L, L]."""
    rows, columns = tokens.grid
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    places = torch.stack([y.flatten() * tokens.patch[0], x.flatten() * tokens.patch[1]], dim=1).double()
    return torch.cdist(places, places, compute_mode="donot_use_mm_for_euclid_dist").float()


def uniform_distance(tokens: Tokens) -> float:
    """The mean distance of a head that attends to all patches alike, in pixels: the mean over all pairs of patches."""
    return float(distances_between(tokens).double().mean())


def mean_distance(weights: Tensor, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """Mean attention distance of each head in pixels, [B, h]; and the share of attention that stays on patches, [B, h].

    Of each patch the distances to all patches, weighted by its attention to them; then the mean over the patches:
    section 4.5, Figure 7 and appendix D.7 of arXiv 2010.11929, which calls it analogous to the receptive field of
    a CNN. Class token and registers have no place: as queries they are left out, and what goes to them as keys is taken
    off before the weights of the patches are made to sum to 1. (The paper does not say what it does with them.)

    Args:
        weights: [B, h, T, T], rows sum to 1.
        tokens: how they lie.
    """
    patches = weights[:, :, tokens.prefix :, tokens.prefix :]
    on_patches = patches.sum(-1)
    apart = distances_between(tokens).to(weights.device)
    distance = (patches * apart).sum(-1) / on_patches.clamp(min=_TINY)
    return distance.mean(-1), on_patches.mean(-1)


def rolled_out(layers: list[Tensor]) -> Tensor:
    """Attention rollout [B, T, T]: how much of each token of the input is in each of the output.

    Of each layer the mean over the heads, A; half of it and half the identity for what passes by (the residual); then
    the product of all layers: arXiv 2005.00928, section 3, and appendix D.8 of arXiv 2010.11929. Rows sum to 1.

    Args:
        layers: weights of each layer, [B, h, T, T], the first layer first.
    """
    result = torch.eye(layers[0].shape[-1], device=layers[0].device).expand(len(layers[0]), -1, -1)
    for weights in layers:
        result = passed_on(weights.mean(1), result)
    return result


def passed_on(mean_of_heads: Tensor, below: Tensor) -> Tensor:
    """One layer of rollout: [B, T, T] of a layer over [B, T, T] of all below it."""
    return (0.5 * mean_of_heads) @ below + 0.5 * below


def attention_maps(
    forward: Callable[[Tensor], object], images: Tensor, tokens: Tokens, *, batch: int = 32, shown: int = 12
) -> Attended:
    """Look at the attention of a model over some images.

    Args:
        forward: runs the model on a batch of them; it has no dropout then.
        images: [N, ...], N at least 1.
        tokens: how they lie.
        batch: images at once.
        shown: of how many images, the first, there are maps.

    Raises:
        ConfigError: no attention was seen, or it is not one among all tokens.
    """
    sums = _Sums(tokens, shown)
    for start in range(0, len(images), batch):
        sums.begin(min(batch, len(images) - start))
        with watched_attention(sums.see):
            forward(images[start : start + batch])
        sums.end()
    return sums.result()


@dataclass
class _Sums:
    """Sums over batches of images, so that no more than one layer's weights of one batch are there at once."""

    tokens: Tokens
    shown: int
    _distance: list[list[Tensor]] = field(default_factory=list)
    _on_patches: list[list[Tensor]] = field(default_factory=list)
    _rollout: list[Tensor] = field(default_factory=list)
    _layers: list[Tensor] = field(default_factory=list)
    # Of the batch: images, how many of them are shown, what passed by now, rows of the layers, the pooling head's.
    _size: int = 0
    _maps: int = 0
    _seen: int = 0
    _below: Tensor | None = None
    _rows: list[Tensor] = field(default_factory=list)
    _pooled: Tensor | None = None

    def begin(self, size: int) -> None:
        """A batch follows."""
        self._size, self._maps = size, min(size, self.shown - sum(map(len, self._rollout)))
        self._seen, self._below, self._rows, self._pooled = 0, None, [], None
        self._distance.append([])
        self._on_patches.append([])

    def see(self, weights: Tensor) -> None:
        """Weights [B, h, Tq, Tk] of the next attention of the batch."""
        keys = weights.shape[-1]
        if self._seen and weights.shape[-2] != keys and keys in (self.tokens.count, self.tokens.num_patches):
            # A query of its own: the head that pools, which may leave out what stands before the patches.
            self._pooled = functional.pad(weights[: self._maps].mean((1, 2)), (self.tokens.count - keys, 0))
            return
        if weights.shape[0] != self._size or weights.shape[2:] != (self.tokens.count,) * 2:
            raise ConfigError(self._not_global(weights))
        self._seen += 1
        distance, on_patches = mean_distance(weights, self.tokens)
        self._distance[-1].append(distance.cpu())
        self._on_patches[-1].append(on_patches.cpu())
        if self._maps:
            mean, prefix = weights[: self._maps].mean(1), self.tokens.prefix
            self._rows.append((mean[:, 0] if self.tokens.has_class else mean[:, prefix:].mean(1))[:, prefix:].cpu())
            eye = torch.eye(self.tokens.count, device=mean.device).expand_as(mean)
            self._below = passed_on(mean, eye if self._below is None else self._below)

    def _not_global(self, weights: Tensor) -> str:
        rows, columns = self.tokens.grid
        return (
            f"the model attends among {weights.shape[-2]} x {weights.shape[-1]} tokens of {weights.shape[0]} groups, "
            f"not among all {self.tokens.count} of each of {self._size} images ({rows} x {columns} patches and "
            f"{self.tokens.prefix} before them): attention in windows or of several scales, as Swin's, has no "
            f"distances and no rollout over the image"
        )

    def end(self) -> None:
        """The batch is through."""
        if not self._seen:
            raise ConfigError(
                "no attention was seen: the model does not compute it by torch's scaled_dot_product_attention; Swin's "
                "windows do not, nor does any of timm's models while TIMM_FUSED_ATTN=0 is set"
            )
        if self._below is not None:
            self._rollout.append(self._read(self._below)[:, self.tokens.prefix :].cpu())
            self._layers.append(torch.stack(self._rows, dim=1))

    def _read(self, rollout: Tensor) -> Tensor:
        """What the head reads, of all tokens of the input: [B, T, T] -> [B, T]."""
        if self._pooled is not None and self.tokens.pool == "map":
            return (self._pooled[:, None] @ rollout)[:, 0]
        return rollout[:, 0] if self.tokens.pool == "cls" else rollout[:, self.tokens.prefix :].mean(1)

    def result(self) -> Attended:
        """Of all batches."""
        # [images, layers, heads]
        distance, on_patches = (
            torch.cat([torch.stack(batch, dim=1) for batch in sums]) for sums in (self._distance, self._on_patches)
        )
        nothing = torch.zeros(0, self.tokens.num_patches)
        return Attended(
            tokens=self.tokens,
            num_images=len(distance),
            distance=distance.mean(0),
            spread=distance.std(0, correction=1 if len(distance) > 1 else 0),
            on_patches=on_patches.mean(0),
            rollout=torch.cat(self._rollout) if self._rollout else nothing,
            layers=torch.cat(self._layers) if self._layers else nothing[:, None],
        )
