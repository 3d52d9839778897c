"""Frozen features of every image of a set: what enters a model's head, or what comes out of its last blocks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vit_dist.core.errors import ConfigError
from vit_dist.core.units import counted
from vit_dist.core.world import World
from vit_dist.data.batch import Batch
from vit_dist.data.decode import centre
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.stream import EvalBatches
from vit_dist.data.subset import Subset
from vit_dist.evals import EvalContext
from vit_dist.evals._pace import paced
from vit_dist.models._base import repeated_blocks


class Tap(Protocol):
    """What is taken out of a model while it runs; `width` is that of what was taken last."""

    width: int

    def listen(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Take what passes, as long as the block lasts."""

    def take(self) -> Tensor:
        """Of the batch that passed last: float32 [B, D]; the same images are not taken twice."""


class HeadInput:
    """What the head classifies."""

    def __init__(self) -> None:
        self._taken: list[Tensor] = []
        self.width = 0

    def listen(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """See Tap."""

        def capture(_module: object, inputs: tuple[Tensor, ...]) -> None:
            self._taken[:] = [inputs[0].detach().float()]

        head: Any = module.head
        return hooked([head.register_forward_pre_hook(capture)])

    def take(self) -> Tensor:
        """See Tap."""
        taken = self._taken.pop()
        self.width = taken.shape[1]
        return taken


class BlockOutputs:
    """What the head classifies, and the class token and the mean over places of the last blocks, side by side.

    Tokens are normalised one by one (LayerNorm without weights), as a model does before its head; of feature maps of a
    convolution the mean alone is taken, and there is no class token.

    Args:
        module: the model.
        blocks: so many of its last ones.

    Raises:
        ConfigError: it has fewer.
    """

    def __init__(self, module: nn.Module, blocks: int) -> None:
        found = repeated_blocks(module)
        if blocks > len(found):
            raise ConfigError(
                f"the last {blocks} blocks are asked for, but {type(module).__name__} has "
                f"{counted(len(found), 'block')}"
            )
        self._blocks = found[len(found) - blocks :] if blocks else []
        self.prefix = prefix_tokens(module)
        self._channels_last = getattr(getattr(module, "net", module), "output_fmt", "") == "NHWC"
        self.width = 0
        self._head = HeadInput()
        self._taken: list[Tensor] = []
        self.spans: dict[tuple[str, int], slice] = {}
        """Columns of what is taken: of ('head', 0), and of ('cls', n) and ('mean', n) of the n-th last block; known
        once a batch has passed."""

    def listen(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """See Tap."""
        hooks = [block.register_forward_hook(self._keep) for block in self._blocks]
        stack = contextlib.ExitStack()
        stack.enter_context(self._head.listen(module))
        stack.enter_context(hooked(hooks))
        return stack

    def _keep(self, _module: object, _inputs: object, output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output
        self._taken.append(pooled_output(found.detach(), self.prefix, channels_last=self._channels_last))

    def take(self) -> Tensor:
        """See Tap."""
        parts = [self._head.take(), *self._taken[::-1]]
        self._taken.clear()
        if not self.spans:
            self._measure(parts)
        taken = torch.cat(parts, dim=1)
        self.width = taken.shape[1]
        return taken

    def _measure(self, parts: Sequence[Tensor]) -> None:
        self.spans["head", 0] = slice(0, parts[0].shape[1])
        at = parts[0].shape[1]
        for n, part in enumerate(parts[1:], 1):
            kinds = ("cls", "mean") if self.prefix else ("mean",)
            width = part.shape[1] // len(kinds)
            for kind in kinds:
                self.spans[kind, n] = slice(at, at + width)
                at += width


def pooled_output(output: Tensor, prefix: int, *, channels_last: bool = False) -> Tensor:
    """A block's output -> float32 [B, 2 D]: the class token and the mean of the other tokens; without one the mean.

    Args:
        output: tokens [B, T, D], or a feature map [B, C, H, W].
        prefix: tokens before those of patches; the first of them is the class token.
        channels_last: a feature map is [B, H, W, C].

    Raises:
        ConfigError: it is neither.
    """
    if output.dim() == 4:
        return output.float().mean(dim=(1, 2) if channels_last else (2, 3))
    if output.dim() != 3:
        raise ConfigError(
            f"a block gives a tensor of shape {tuple(output.shape)}; tokens [B, T, D] or feature maps [B, C, H, W] can "
            f"be pooled: take what the head classifies, by poolings: [head]"
        )
    tokens = nn.functional.layer_norm(output.float(), output.shape[-1:])
    mean = tokens[:, prefix:].mean(dim=1)
    return torch.cat([tokens[:, 0], mean], dim=1) if prefix else mean


def prefix_tokens(module: nn.Module) -> int:
    """Tokens before those of patches, the class token first; 0: there is none."""
    inner = getattr(module, "net", module)
    return int(getattr(inner, "prefix", getattr(inner, "num_prefix_tokens", 0)))


@contextlib.contextmanager
def hooked(hooks: Sequence[Any]) -> Iterator[None]:
    """Take hooks away at the end."""
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def feature_width(context: EvalContext) -> int:
    """D, the number of features that the head classifies."""
    head: Any = context.engine.module.head
    return int(head.in_features)


def features(
    context: EvalContext,
    manifest: ShardManifest,
    *,
    subset: Subset | None = None,
    crop: float,
    view: Callable[[Tensor, int, float], Tensor] = centre,
    tap: Tap | None = None,
) -> Iterator[tuple[Batch, Tensor]]:
    """This rank's part of a set, batch by batch, each with its features, float32 [B, D] on the device. A collective.

    Features are taken while the whole model runs, so that any engine can give them, whichever way it has sharded the
    weights.

    Args:
        context: model, recipe, world.
        manifest: the set; its labels need not be those that the head knows.
        subset: which of it; None: all.
        crop: given to `view`.
        view: what an image becomes.
        tap: what is taken; None: what enters the head.
    """
    recipe, engine = context.recipe, context.engine
    own = {"num_classes": manifest.num_classes, "val_crop": crop, "val_resize": None}
    config = recipe.data.model_copy(update=own)
    size, tap = config.image_size, tap or HeadInput()
    batches = EvalBatches(manifest, config, context.world, recipe.eval.batch, subset=subset, view=view)
    with (
        contextlib.closing(paced(batches, engine.device)) as rank_batches,  # type: ignore[type-var]
        tap.listen(engine.module),
    ):
        for batch in rank_batches:
            # This rank has none left, but under ZeRO-3 a forward pass gathers weights from all ranks: it takes part
            # with an image whose result nobody uses.
            if batch is None:
                engine.predict(torch.zeros(1, 3, size, size, dtype=torch.uint8))
                tap.take()
                continue
            engine.predict(batch.images)
            yield batch, tap.take()


@dataclass(frozen=True)
class Shard:
    """A rank's part of a set's features: n consecutive examples of the order in which it is stored, D features each.

    Attributes:
        x: float32 [n, D].
        labels: int64 [n, L]; -1 where an example has fewer than L.
        start: position of the first example in the whole set.
        total: examples of the whole set.
    """

    x: Tensor
    labels: Tensor
    start: int
    total: int

    @property
    def first_labels(self) -> Tensor:
        """int64 [n]: of an example with several labels the first; -1 where it has none."""
        return self.labels[:, 0]


def gather(
    context: EvalContext,
    manifest: ShardManifest,
    *,
    subset: Subset | None = None,
    crop: float,
    view: Callable[[Tensor, int, float], Tensor] = centre,
    tap: Tap | None = None,
) -> Shard:
    """All features of this rank's part of a set, in the device's memory, or the host's where that is too small.

    Arguments are those of `features`. A collective.
    """
    total = manifest.num_samples if subset is None else subset.num_samples
    start, size = share(total, context.world)
    device, filled, tap = context.engine.device, 0, tap or HeadInput()
    x, labels = torch.empty(0), torch.empty(0, manifest.max_labels, dtype=torch.int64, device=device)
    for batch, part in features(context, manifest, subset=subset, crop=crop, view=view, tap=tap):
        if not filled:
            place = _place(size * part.shape[1] * part.element_size(), device)
            x = torch.empty(size, part.shape[1], device=place)
            labels = torch.empty(size, batch.labels.shape[1], dtype=torch.int64, device=place)
        x[filled : filled + len(part)] = part
        labels[filled : filled + len(part)] = batch.labels.to(labels.device, non_blocking=True)
        filled += len(part)
    assert filled == size, (filled, size)
    # A rank without an example has seen a blank image.
    return Shard(x if size else torch.empty(0, tap.width, device=device), labels, start, total)


def share(total: int, world: World) -> tuple[int, int]:
    """Where a rank's part of `total` examples begins, and how many there are: as EvalBatches cuts a set."""
    each = -(-total // world.size)
    start = min(total, world.rank * each)
    return start, min(total, start + each) - start


def _place(wanted: int, device: torch.device) -> torch.device:
    """The device where half of its free memory suffices, since classifiers need some too; else the CPU."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if wanted < free // 2 else torch.device("cpu")
