"""Adam with decoupled weight decay: what the paper pretrains with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import DECAYS, DECOUPLED, MEANS, Betas, Decay, NonNegative, OptimizerConfig, Positive

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@OPTIMIZERS.register("adamw")
class AdamWConfig(OptimizerConfig):
    """AdamW (arXiv 1711.05101): decay is lr * weight_decay * parameter a step, outside the adaptive update.

    Betas and decay are the paper's (section 4.1); so is clipping, which it states for ImageNet.
    """

    elementwise: ClassVar[bool] = True

    betas: Betas = Field((0.9, 0.999), description=MEANS)
    eps: Positive = Field(1e-8, description="added to the root of the second mean")
    weight_decay: NonNegative = Field(0.1, description=DECOUPLED)
    decay: Decay = Field("kernels", description=DECAYS)

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerConfig.build`."""
        from torch.optim import AdamW

        from vit_dist.optim._groups import decay_groups

        groups = decay_groups(model, self.weight_decay, self.decay)
        # Fused: one pass over the numbers and no temporaries as large as the parameters; the others need two of them.
        return AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
