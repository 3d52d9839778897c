"""Muon: hidden matrices step by the nearest orthogonal matrix to their momentum, all else by AdamW."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import DECAYS, DECOUPLED, MEANS, Beta, Betas, Decay, NonNegative, OptimizerConfig, Positive

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

OrthogonalDtype = Literal["bf16", "fp32"]


@OPTIMIZERS.register("muon")
class MuonConfig(OptimizerConfig):
    """Muon (K. Jordan, kellerjordan.github.io/posts/muon) for the matrices of blocks; stem, head and the rest by AdamW.

    With `scale=rms`, "Muon is Scalable for LLM Training" (arXiv 2502.16982), rate and decay of AdamW serve for both.
    """

    elementwise: ClassVar[bool] = False
    whole_rows: ClassVar[bool] = True

    momentum: Beta = Field(0.95, description="decay of the running mean of a matrix's gradients")
    nesterov: bool = Field(True, description="step by the mean as it will be, with this gradient once more")
    iterations: Annotated[int, Field(ge=1, le=20)] = Field(5, description="of Newton and Schulz")
    orthogonal_dtype: OrthogonalDtype = Field("bf16", description="in which these are computed")
    scale: Literal["rms", "shape"] = Field(
        "rms",
        description="of an [m, n] matrix' step. rms: 0.2 sqrt(max(m, n)), as large as AdamW's; shape: "
        "sqrt(max(1, m / n)), as its author's",
    )
    weight_decay: NonNegative = Field(0.1, description=DECOUPLED)
    decay: Decay = Field("kernels", description=DECAYS)
    adamw_lr: Positive | None = Field(
        None, description="peak rate of what AdamW trains, which the schedule scales too; left out: lr"
    )
    adamw_betas: Betas = Field((0.9, 0.999), description=MEANS)
    adamw_eps: Positive = Field(1e-8, description="added to the root of the second mean")

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerConfig.build`.

        Raises:
            ConfigError: the model's layers cannot be told, and with them which matrices are hidden.
        """
        from vit_dist.optim._groups import decay_groups
        from vit_dist.optim._muon import Muon, divided

        matrices = {
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "iterations": self.iterations,
            "orthogonal_dtype": self.orthogonal_dtype,
            "scale": self.scale,
        }
        rest = {"betas": self.adamw_betas, "eps": self.adamw_eps, "lr_scale": (self.adamw_lr or self.lr) / self.lr}
        groups = decay_groups(model, self.weight_decay, self.decay)
        return Muon([{**group, "lr": self.lr} for group in divided(model, groups, matrices, rest)])
