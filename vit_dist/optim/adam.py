"""Adam as it was published: weight decay, where there is some, is a part of the gradient."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import DECAYS, MEANS, Betas, Decay, NonNegative, OptimizerConfig, Positive

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@OPTIMIZERS.register("adam")
class AdamConfig(OptimizerConfig):
    """Adam (arXiv 1412.6980), with L2 in the gradient: what papers before AdamW mean by weight decay, and not ViT's.

    ViT's Adam with a decay of 0.1 is flax's, whose decay is outside of the adaptive update: `adamw` here.
    """

    elementwise: ClassVar[bool] = True

    betas: Betas = Field((0.9, 0.999), description=MEANS)
    eps: Positive = Field(1e-8, description="added to the root of the second mean")
    weight_decay: NonNegative = Field(0.0, description="L2: added to the gradient, times the parameter, before means")
    decay: Decay = Field("kernels", description=DECAYS)

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerConfig.build`."""
        from torch.optim import Adam

        from vit_dist.optim._groups import decay_groups

        groups = decay_groups(model, self.weight_decay, self.decay)
        return Adam(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
