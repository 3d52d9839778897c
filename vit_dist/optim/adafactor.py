"""Adafactor: of the squares of a matrix's gradients it keeps means of rows and columns alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import DECAYS, DECOUPLED, Beta, Decay, NonNegative, OptimizerConfig

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

MomentumDtype = Literal["bf16", "fp32"]


@OPTIMIZERS.register("adafactor")
class AdafactorConfig(OptimizerConfig):
    """Adafactor (arXiv 1804.04235) as "Scaling Vision Transformers" trains (2106.04560, section 3.4): 2 bytes a weight.

    Rates are not scaled by the weights' size, momentum is kept in bf16, and the second mean's decay stays below a cap.
    Details are big_vision's (optax.py), but for decay, which is times the rate here, as in adamw.
    """

    elementwise: ClassVar[bool] = False

    momentum: Beta = Field(0.9, description="decay of the running mean of updates")
    momentum_dtype: MomentumDtype = Field("bf16", description="in which that mean is kept; fp32: 4 bytes a weight")
    decay_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        0.8, description="c of the second mean's decay at step t, 1 - t ** -c"
    )
    beta2_cap: Annotated[float, Field(gt=0, lt=1)] = Field(0.999, description="above which that decay does not rise")
    min_factored: Annotated[int, Field(ge=2)] = Field(
        32, description="a weight keeps rows and columns where its two longest sides are no shorter, else every square"
    )
    weight_decay: NonNegative = Field(0.1, description=DECOUPLED)
    decay: Decay = Field("kernels", description=DECAYS)

    @property
    def moments(self) -> float:
        """See `OptimizerConfig.moments`."""
        # Rows, columns, and squares of what is no matrix: less than this of a ViT-S, and of larger ones.
        return (0.5 if self.momentum_dtype == "bf16" else 1) + 0.02

    def build(self, model: nn.Module) -> Optimizer:
        """See `OptimizerConfig.build`."""
        from vit_dist.optim._adafactor import Adafactor
        from vit_dist.optim._groups import decay_groups

        settings = {
            "lr": self.lr,
            "momentum": self.momentum,
            "momentum_dtype": self.momentum_dtype,
            "decay_rate": self.decay_rate,
            "beta2_cap": self.beta2_cap,
            "min_factored": self.min_factored,
        }
        return Adafactor([{**group, **settings} for group in decay_groups(model, self.weight_decay, self.decay)])
