"""Config of the FSDP engine: torch's fully_shard (FSDP2), which shards weights, gradients and optimizer state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from vit_dist.config.schema import Recipe
from vit_dist.core.marks import LAYOUT
from vit_dist.core.registry import ENGINES
from vit_dist.engines import EngineConfig

if TYPE_CHECKING:
    from vit_dist.engines._protocol import Engine, EngineInputs


@ENGINES.register("fsdp")
class FSDPConfig(EngineConfig):
    """Each block of the model is gathered and reduced as one; in bf16 the masters are fp32, as under ZeRO."""

    clips_blocks: ClassVar[bool] = True

    reshard_after_forward: Annotated[bool, LAYOUT] = Field(
        False,
        description="true: between passes a rank keeps its shards alone, of gradients too, as under ZeRO-3; false: "
        "within a step weights stay gathered, and sums of micro-batches whole, which is faster",
    )

    def check(self, recipe: Recipe) -> None:
        """Refuse what shards would get wrong in silence.

        Raises:
            ValueError: an optimizer that needs more of a weight than a rank holds.
        """
        super().check(recipe)
        optim = recipe.optim
        if not (getattr(optim, "elementwise", False) or getattr(optim, "whole_rows", False)):
            raise ValueError(
                f"optim.name: {optim.name!r} needs whole tensors, which the shards of FSDP are "
                f"not; use engine.name=plain"
            )

    def build(self, inputs: EngineInputs) -> Engine:
        """The engine. A collective."""
        from vit_dist.core.process import heavy_imports

        with heavy_imports():
            from vit_dist.engines._fsdp import FSDPEngine

        return FSDPEngine(self, inputs)
