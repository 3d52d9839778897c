"""Lion: steps by the sign of a momentum."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import DECAYS, DECOUPLED, Betas, Decay, NonNegative, OptimizerConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@OPTIMIZERS.register("lion")
class LionConfig(OptimizerConfig):
    """Lion (arXiv 2302.06675), by timm: half the state of AdamW.

    Every number moves by the whole rate, so that the paper takes a rate 3 to 10 times smaller than AdamW's and a decay
    as many times larger (section 5).
    """

    elementwise: ClassVar[bool] = True

    betas: Betas = Field(
        (0.9, 0.99), description="share of the momentum in a step's direction, and decay of the momentum"
    )
    weight_decay: NonNegative = Field(1.0, description=f"{DECOUPLED}; 3 to 10 times that of AdamW")
    decay: Decay = Field("kernels", description=DECAYS)

    @property
    def moments(self) -> float:
        """See `OptimizerConfig.moments`."""
        return 1

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerConfig.build`."""
        from timm.optim import Lion

        from vit_dist.optim._groups import decay_groups

        groups = decay_groups(model, self.weight_decay, self.decay)
        built: Optimizer = Lion(groups, lr=self.lr, betas=self.betas)
        return built
