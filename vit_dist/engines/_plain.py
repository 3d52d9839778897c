"""The reference implementation in plain torch: DistributedDataParallel, autocast, clip, step. Short enough to check."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from vit_dist.data.decode import normalize
from vit_dist.engines import EngineConfig
from vit_dist.engines._clip import layer_clip
from vit_dist.engines._compile import compile_blocks
from vit_dist.engines._fit import Wanted, wanted_of
from vit_dist.engines._layout import layout
from vit_dist.engines._numerics import computed
from vit_dist.engines._protocol import (
    EngineInputs,
    MicroBatches,
    OnGradients,
    PendingStep,
    exchanged,
    mean_over_ranks,
    nan_if_over,
    set_lr,
)
from vit_dist.engines._slices import (
    AVERAGE,
    BUFFER,
    WEIGHT,
    EngineState,
    Scalars,
    Source,
    buffers,
    forget_missing,
    load_whole,
    restore_scalars,
    split_over_ranks,
    split_state,
)


class PlainEngine:
    """See engines/_protocol.Engine."""

    def __init__(self, config: EngineConfig, inputs: EngineInputs) -> None:
        self._config, self._in = config, inputs
        self.module: nn.Module = inputs.model.to(inputs.device)
        self.device, self.timer = inputs.device, inputs.timer
        self._ddp = _replicated(self.module, config.reduce_dtype) if inputs.world.size > 1 else None
        self._optimizer, self._stepped = inputs.optimizer, False
        self._layers = layer_clip(inputs.clip_layers, inputs.clip)
        self.average = inputs.averages([p for p in self.module.parameters() if p.requires_grad])
        self._compiled = compile_blocks(config, inputs, self.module, self._logits)
        self.layout: dict[str, Any] = {"engine": "plain", **layout(config, inputs, compiled=bool(self._compiled))}
        version = torch.__version__.partition("+")[0]
        self.description = f"plain torch {version} (DDP), {inputs.precision}{self._compiled.described}"

    @computed
    def train_step(
        self,
        micro_batches: MicroBatches,
        lr: float,
        *,
        skip_over: float = math.inf,
        on_gradients: OnGradients | None = None,
    ) -> PendingStep:
        """See Engine."""
        self.module.train()
        net = self._ddp if self._ddp is not None else self.module
        self._optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for i, (images, targets) in enumerate(micro_batches):
            last = i == len(micro_batches) - 1
            # DDP all-reduces gradients in every backward pass: with accumulation only the last one's is wanted, which
            # holds the sum. It hooks into backward, so the forward pass belongs into the block as well.
            sync = contextlib.nullcontext() if self._ddp is None or last else self._ddp.no_sync()
            with sync:
                with self.timer.phase("transfer"):
                    images, targets = self._input(images), targets.to(self.device, non_blocking=True)
                with self.timer.phase("forward"):
                    with self._autocast():
                        logits = net(images)
                    loss = self._in.loss(logits.float(), targets) / len(micro_batches)
                    total += loss.detach()
                with self.timer.phase("backward"):
                    torch.autograd.backward(nan_if_over(loss, total, skip_over, self._in.world) if last else loss)
        named = [(name, p) for name, p in self.module.named_parameters() if p.grad is not None]
        if on_gradients is not None:
            on_gradients((name, p.grad) for name, p in named if p.grad is not None)
        gradients = [p.grad for _, p in named if p.grad is not None]
        with self.timer.phase("optimizer"):
            norm = torch.nn.utils.get_total_norm(gradients)
            # Gradients are averaged over ranks by now, so that the norm and this decision are the same on every rank.
            finite = torch.isfinite(norm)
            # What gradients are divided by, so that their norm is `clip` at most.
            scale = None
            if self._layers is not None:
                of_layers = [(name, p.grad) for name, p in named if p.grad is not None]
                self._layers.scale(of_layers, self._layers.squares(of_layers))
            elif self._in.clip is not None:
                scale = (norm / self._in.clip).clamp(min=1).float()
            set_lr(self._optimizer, lr)
            # Told as torch's GradScaler tells it, a fused kernel itself divides gradients, which saves a pass over
            # them, or leaves weights, moments and counters as they are. Not in the first step: there fused SGD makes
            # its momentum, and counts on the kernel to write it.
            told: Any = self._optimizer
            if self._stepped and getattr(told, "_step_supports_amp_scaling", False):
                told.found_inf, told.grad_scale = (~finite).float(), scale
                told.step()
            # This waits for the device; the step must not be taken before it is known.
            elif bool(finite):
                if scale is not None:
                    torch._foreach_div_(gradients, scale)
                told.found_inf = told.grad_scale = None
                told.step()
                self._stepped = True
        return PendingStep(mean_over_ranks(total, self._in.world), norm, finite)

    @computed
    def predict(self, images: Tensor) -> Tensor:
        """See Engine."""
        self.module.eval()
        with torch.no_grad():
            return self._logits(images).float()

    def _logits(self, images: Tensor) -> Tensor:
        with self._autocast():
            logits: Tensor = self.module(self._input(images))
        return logits

    def _input(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        return normalize(images, torch.float32, self._in.memory_format)

    def state(self) -> EngineState:
        """See Engine. Every rank holds everything; each gives an equal part of it."""
        average = self.average
        tensors = [(WEIGHT, name, p.detach()) for name, p in self.module.named_parameters()]
        tensors += [(BUFFER, name, b) for name, b in buffers(self.module)]
        scalars: Scalars = {}
        for name, p in self.module.named_parameters():
            moments, scalars[name] = split_state(self._optimizer.state.get(p, {}))
            tensors += [(kind, name, moment) for kind, moment in moments.items()]
            if average is not None and p.requires_grad:
                tensors.append((AVERAGE, name, average.of(p)))
        if average is not None:
            tensors += [(piece.kind, piece.name, piece.data) for piece in average.slices(is_main=True)]
        return EngineState(split_over_ranks(tensors, self._in.world), scalars)

    def wanted(self) -> Wanted:
        """See Engine."""
        return wanted_of(self.module, self._optimizer, masters=None, averages=self.average is not None)

    def load(self, source: Source) -> None:
        """See Engine."""
        self._stepped = False
        for name, p in self.module.named_parameters():
            load_whole(p, source, WEIGHT, name)
            state = self._optimizer.state[p] if p.requires_grad else {}
            forget_missing(state, source, name)
            for kind in source.kinds(name):
                values = source.read(kind, name, 0, math.prod(source.shape(kind, name)))
                # torch's optimizers make their moments at the first step; a fresh one has none to fill yet. Of some the
                # shape or dtype is not the weight's.
                if kind not in state:
                    state[kind] = torch.zeros(source.shape(kind, name), dtype=values.dtype, device=p.device)
                state[kind].copy_(values.view(state[kind].shape))
            restore_scalars(state, source.scalars(name), p, self._optimizer.defaults)
        for name, buffer in buffers(self.module):
            load_whole(buffer, source, BUFFER, name)
        if (average := self.average) is not None:
            trained = ((name, p) for name, p in self.module.named_parameters() if p.requires_grad)
            average.load(source, ((name, 0, average.of(p).view(-1)) for name, p in trained))

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """See Engine. It computes with its master weights themselves."""
        return exchanged(self.average, lambda: None)

    def replicated(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine."""
        yield from self.module.named_parameters()
        yield from self.module.named_buffers()

    def master_mismatch(self) -> str:
        """See Engine. There is one copy."""
        return ""

    def _autocast(self) -> Any:
        enabled = self._in.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=enabled)


def _replicated(module: nn.Module, reduce_dtype: str) -> DistributedDataParallel:
    # A class token's gradient is a slice of one, whose strides over dimensions of size 1 differ and mean nothing.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides", UserWarning)
    ddp = DistributedDataParallel(
        module,
        forward_sync_buffers=False,  # they are constant, since models with BatchNorm are refused
        gradient_as_bucket_view=True,  # no second copy of the gradients: 4 bytes a parameter
        # Fewer and longer sums than of the default 25 MB, whose fixed costs grow with the ranks.
        bucket_cap_mb=100,
        # static_graph=True fails an assertion inside torch where the first micro-batch is under no_sync().
    )
    if reduce_dtype == "bf16":
        ddp.register_comm_hook(None, bf16_compress_hook)
    return ddp
