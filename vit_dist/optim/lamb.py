"""LAMB: Adam's direction, with a step as long as the weight is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import DECAYS, MEANS, Betas, Decay, NonNegative, OptimizerConfig, Positive

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@OPTIMIZERS.register("lamb")
class LambConfig(OptimizerConfig):
    """LAMB (arXiv 1904.00962, algorithm 2): each weight steps by the rate times its own norm. For large batches.

    NVIDIA's FusedLAMB, which DeiT III trains with, gives weights without decay the plain rate: `adapt=decayed`.
    """

    elementwise: ClassVar[bool] = False
    whole_rows: ClassVar[bool] = True

    betas: Betas = Field((0.9, 0.999), description=MEANS)
    eps: Positive = Field(1e-6, description="added to the root of the second mean")
    weight_decay: NonNegative = Field(
        0.01, description="times the parameter, added to the direction whose norm is taken off"
    )
    decay: Decay = Field("kernels", description=DECAYS)
    adapt: Literal["all", "decayed"] = Field(
        "all",
        description="which weights step by their norm. all: as the paper; decayed: those that decay, as FusedLAMB",
    )

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerConfig.build`."""
        from vit_dist.optim._groups import decay_groups
        from vit_dist.optim._lamb import Lamb

        groups = decay_groups(model, self.weight_decay, self.decay)
        settings = {"lr": self.lr, "betas": self.betas, "eps": self.eps}
        return Lamb(
            [{**group, **settings, "adapts": self.adapt == "all" or group["weight_decay"] > 0} for group in groups]
        )
