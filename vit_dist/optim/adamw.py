"""Adam with decoupled weight decay: what the paper pretrains with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import NonNegative, OptimizerConfig, Positive

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Beta = Annotated[float, Field(ge=0, lt=1)]


@OPTIMIZERS.register("adamw")
class AdamWConfig(OptimizerConfig):
    """AdamW (arXiv 1711.05101): decay is lr * weight_decay * parameter a step, outside the adaptive update.

    Betas and decay are the paper's (section 4.1); so is clipping, which it states for ImageNet.
    """

    elementwise: ClassVar[bool] = True

    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = Field(
        (0.9, 0.999), description="decay of the running means of gradients and of their squares"
    )
    eps: Positive = Field(1e-8, description="added to the root of the second mean")
    weight_decay: NonNegative = Field(0.1, description="times the rate and the parameter, taken off at each step")
    decay: Literal["kernels", "all"] = Field(
        "kernels", description="kernels: matrices and convolutions, as in big_vision; all: every parameter"
    )

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerConfig.build`."""
        from torch.optim import AdamW

        from vit_dist.optim._groups import decay_groups

        groups = decay_groups(model, self.weight_decay, self.decay)
        # Fused: one pass over the numbers and no temporaries as large as the parameters; the others need two of them.
        return AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
