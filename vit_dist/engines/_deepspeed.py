"""DeepSpeed ZeRO 1-3 behind the engine protocol, with every setting that matters written out.

Where a default of DeepSpeed is wrong for us the reason stands beside the setting.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.data.decode import normalize
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
from vit_dist.engines._reduce_scatter import reduce_scatter, sums_by_reduce_scatter
from vit_dist.engines._slices import EngineState, Source
from vit_dist.engines._zero import (
    after_masters_changed,
    before_masters_change,
    gathered,
    load_zero_state,
    master_mismatch,
    masters_of,
    write_masters,
    zero_state,
)
from vit_dist.engines.deepspeed import DeepSpeedConfig


def import_deepspeed() -> Any:
    """DeepSpeed, quiet, and without the CPU op that it would compile at start-up for inference alone."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.ERROR)
        for handler in logger.handlers:
            handler.setLevel(logging.ERROR)
        if not torch.cuda.is_available():
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        _import_muon()
    return deepspeed


def _import_muon() -> None:
    """DeepSpeed's Muon, which it imports itself otherwise, without torch's compiler.

    It decorates its functions with torch.compile, which imports all of inductor: two seconds of each rank's start. No
    recipe names theirs (optim/muon.py is another); it works uncompiled too.
    """
    from deepspeed.runtime import compiler

    compiles = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    finally:
        compiler.compile = compiles


def engine_config(config: DeepSpeedConfig, inputs: EngineInputs) -> dict[str, Any]:
    """The dictionary that DeepSpeed is initialized with."""
    return {
        "train_micro_batch_size_per_gpu": inputs.micro_batch,
        "gradient_accumulation_steps": inputs.accumulation,
        "gradient_clipping": inputs.clip or 0.0,  # left out it would be 1.0
        "bf16": {"enabled": inputs.precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        # Left out it is the dtype of the weights: in bf16 a ring over N ranks rounds N - 1 times to 8 bits.
        "communication_data_type": config.reduce_dtype,
        "zero_allow_untested_optimizer": True,  # only elementwise ones come here: DeepSpeedConfig.check
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,  # races on stages 1 and 2 (deepspeed issue 5545)
            # ZeRO-1 in bf16 has no buckets: its sums lie flat already (_reduce_scatter.py). ZeRO-1 in fp32 and ZeRO-2
            # sum each bucket by all-reduce and keep their part of it, whatever `reduce_scatter` says; the alternative,
            # `use_multi_rank_bucket_allreduce: false`, is a `reduce` to each rank in turn: half of the bytes, but as
            # many collectives as ranks. ZeRO-3 does scatter. tests/integration/test_collectives.py counts.
            "reduce_bucket_size": config.reduce_bucket,
            # Without effect: where torch can gather into one tensor, which it can, a group is gathered as a whole.
            "allgather_bucket_size": config.allgather_bucket,
            # ZeRO-3 gathers each weight below it by itself after each step (100,000 elements, if left out: every norm
            # and bias of a ViT); at 0 they come with the others of their layer.
            "stage3_param_persistence_threshold": 0,
            "memory_efficient_linear": False,  # its in-place bias breaks recomputed activations
        },
        "timers": {"throughput": {"enabled": False}},  # it waits for the device twice a micro-batch
        "steps_per_print": 10**9,
    }


def _full_precision(inputs: EngineInputs) -> dict[str, Tensor]:
    # DeepSpeed casts the weights to bf16 before it copies them into the masters. A copy on the CPU, until these are
    # written; in fp32 nothing is cast.
    if inputs.precision != "bf16":
        return {}
    return {
        name: parameter.detach().to("cpu", copy=True)
        for name, parameter in inputs.model.named_parameters()
        if parameter.requires_grad
    }


class DeepSpeedEngine:
    """See engines/_protocol.Engine."""

    def __init__(self, config: DeepSpeedConfig, inputs: EngineInputs) -> None:
        deepspeed = import_deepspeed()
        self._config, self._in, self._stage = config, inputs, config.zero_stage
        self._dtype = torch.bfloat16 if inputs.precision == "bf16" else torch.float32
        seeded = _full_precision(inputs)
        # DeepSpeed prints its memory use to stdout, unasked.
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            deepspeed.init_distributed(
                dist_backend=torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False
            )
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=inputs.model,
                optimizer=inputs.optimizer,
                config=engine_config(config, inputs),
                dist_init_required=False,
            )
        self.module: nn.Module = self._engine.module
        self.device, self.timer = inputs.device, inputs.timer
        write_masters(self.module, self._optimizer, self._stage, inputs.world, seeded)
        self.average = inputs.averages(masters_of(self.module, self._optimizer, self._stage, inputs.world))
        scatters = sums_by_reduce_scatter(self._optimizer)
        if scatters:
            summed = torch.bfloat16 if config.reduce_dtype == "bf16" else torch.float32
            reduce_scatter(self._engine, self._optimizer, inputs.world, summed)
        # Under stage 3 weights are gathered by hooks of each module, which torch cannot compile together with it.
        self._compiled = compile_blocks(config, inputs, self.module, self._logits)
        self.layout: dict[str, Any] = {
            "engine": "deepspeed",
            "deepspeed": deepspeed.__version__,
            "zero_stage": config.zero_stage,
            "gradient_sums": "reduce-scatter" if scatters else "DeepSpeed's",
            **layout(config, inputs, compiled=bool(self._compiled)),
        }
        self.description = (
            f"DeepSpeed {deepspeed.__version__}, ZeRO stage {config.zero_stage}, {inputs.precision}"
            f"{self._compiled.described}"
        )

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
        assert len(micro_batches) == self._in.accumulation
        self._engine.train()
        set_lr(self._optimizer, lr)
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        with warnings.catch_warnings():
            # torch renamed collectives that DeepSpeed still calls.
            warnings.simplefilter("ignore", FutureWarning)
            for i, (images, targets) in enumerate(micro_batches):
                last = i == len(micro_batches) - 1
                with self.timer.phase("transfer"):
                    images, targets = self._input(images), targets.to(self.device, non_blocking=True)
                with self.timer.phase("forward"):
                    loss = self._in.loss(self._engine(images).float(), targets)
                    total += loss.detach() / len(micro_batches)
                with self.timer.phase("backward"):
                    # A collective of its own (see nan_if_over), before the last backward pass: whether to skip must be
                    # decided on the mean over ranks, and before ZeRO reduces the gradients of this micro-batch.
                    if last:
                        loss = nan_if_over(loss, total, skip_over, self._in.world)
                    # backward and step are called for every micro-batch: DeepSpeed counts them, reduces gradients (each
                    # time under ZeRO-2 and 3, which do not keep whole ones) and updates weights after the last. It
                    # divides the loss by their number.
                    self._engine.backward(loss)
                if last and on_gradients is not None:
                    on_gradients(self._gradients())
                with self.timer.phase("optimizer"):
                    self._engine.step()
        # Both are the same on every rank: DeepSpeed reduces the norm and the check for overflow over all of them.
        norm = self._engine.get_global_grad_norm()
        applied = bool(self._engine.was_step_applied())
        return PendingStep(mean_over_ranks(total, self._in.world), math.nan if norm is None else norm, applied)

    def _gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Each gradient as a whole, between the last backward pass and the step. A collective a parameter."""
        from deepspeed.utils import safe_get_full_grad

        for name, parameter in self.module.named_parameters():
            # None for a frozen parameter, on every rank.
            gradient = safe_get_full_grad(parameter) if parameter.requires_grad else None
            if gradient is not None:
                yield name, gradient

    @computed
    def predict(self, images: Tensor) -> Tensor:
        """See Engine."""
        self._engine.eval()
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            logits: Tensor = self._engine(self._input(images))
        return logits.float()

    def _logits(self, images: Tensor) -> Tensor:
        logits: Tensor = self.module(self._input(images))
        return logits

    def _input(self, images: Tensor) -> Tensor:
        images = images.to(self.device, non_blocking=True)
        return normalize(images, self._dtype, self._in.memory_format)

    def state(self) -> EngineState:
        """See Engine."""
        return zero_state(self.module, self._optimizer, self._stage, self._in.world, self.average)

    def wanted(self) -> Wanted:
        """See Engine."""
        return wanted_of(
            self.module, self._optimizer.optimizer, masters=torch.float32, averages=self.average is not None
        )

    def load(self, source: Source) -> None:
        """See Engine. Hyper-parameters are the recipe's: nothing here touches the parameter groups."""
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)
            load_zero_state(self.module, self._optimizer, self._stage, self._in.world, source, self.average)

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """See Engine. Weights that are computed with are derived from the masters, before and after."""

        def refresh() -> None:
            with warnings.catch_warnings(), torch.no_grad():
                warnings.simplefilter("ignore", FutureWarning)
                before_masters_change(self._optimizer, self._stage)
                after_masters_changed(self._optimizer, self._stage)

        with exchanged(self.average, refresh):
            yield

    def replicated(self) -> Iterator[tuple[str, Tensor]]:
        """See Engine. Under stage 3 each weight is gathered while it is yielded, one at a time."""
        for name, parameter in self.module.named_parameters():
            if self._stage < 3:
                yield name, parameter
            else:
                with gathered(parameter) as complete:
                    yield name, complete
        yield from self.module.named_buffers()

    def master_mismatch(self) -> str:
        """See Engine."""
        return master_mismatch(self.module, self._optimizer, self._stage, self._in.world)
