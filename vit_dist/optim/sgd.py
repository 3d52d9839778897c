"""SGD with momentum: what the paper fine-tunes with."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import DECAYS, Beta, Decay, NonNegative, OptimizerConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


@OPTIMIZERS.register("sgd")
class SGDConfig(OptimizerConfig):
    """SGD with momentum; momentum 0.9, no decay and clipping at 1 are the paper's (appendix B.1.1)."""

    elementwise: ClassVar[bool] = True

    momentum: Beta = Field(0.9, description="share of the last update that is kept")
    weight_decay: NonNegative = Field(0.0, description="added to the gradient, times the parameter, before momentum")
    decay: Decay = Field("kernels", description=DECAYS)

    @property
    def moments(self) -> float:
        """See `OptimizerConfig.moments`."""
        return 1 if self.momentum else 0

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerConfig.build`."""
        from torch.optim import SGD

        from vit_dist.optim._groups import decay_groups

        groups = decay_groups(model, self.weight_decay, self.decay)
        return SGD(groups, lr=self.lr, momentum=self.momentum, fused=True)
