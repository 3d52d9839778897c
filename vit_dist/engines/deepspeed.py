"""Config of the DeepSpeed engine: ZeRO stages 1 to 3, bf16 or fp32."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vit_dist.config.schema import Count, Recipe
from vit_dist.core.marks import LAYOUT
from vit_dist.core.registry import ENGINES
from vit_dist.engines import EngineConfig

if TYPE_CHECKING:
    from vit_dist.engines._protocol import Engine, EngineInputs


@ENGINES.register("deepspeed")
class DeepSpeedConfig(EngineConfig):
    """ZeRO shards optimizer state (1), gradients too (2), weights too (3). "Stage 0" is the plain engine."""

    zero_stage: Annotated[Literal[1, 2, 3], LAYOUT] = Field(
        1, description="what is sharded over ranks. 1: optimizer state; 2: and gradients; 3: and weights"
    )
    # Counts: DeepSpeed's buckets are in elements, whatever type those have.
    reduce_bucket: Count = Field(
        100_000_000, description="gradient elements reduced at once; ZeRO-1 in bf16 needs no such buffer"
    )
    allgather_bucket: Count = Field(
        200_000_000, description="without effect: weights are gathered whole, by group of parameters"
    )

    @property
    def compiles_on_gpus(self) -> bool:
        """See EngineConfig."""
        return super().compiles_on_gpus and self.zero_stage < 3

    def check(self, recipe: Recipe) -> None:
        """Refuse what DeepSpeed would get wrong in silence.

        Raises:
            ValueError: an optimizer that ZeRO's flat shards break, compiled blocks under stage 3, or clipping by block.
        """
        super().check(recipe)
        # Tried: gathering weights is left to each rank's own compiler, and ranks wait for each other for ever.
        if self.zero_stage == 3 and self.compile is True:
            raise ValueError(
                "engine.compile: true does not go with engine.zero_stage=3, which gathers weights by hooks on modules "
                "inside the blocks; use engine.compile=auto (off there), or stage 1 or 2"
            )
        if not getattr(recipe.optim, "elementwise", False):
            others = "plain or fsdp" if getattr(recipe.optim, "whole_rows", False) else "plain"
            raise ValueError(
                f"optim.name: {recipe.optim.name!r} needs whole tensors, which ZeRO's shards are "
                f"not; use engine.name={others}"
            )

    def build(self, inputs: EngineInputs) -> Engine:
        """The engine. A collective."""
        from vit_dist.core.process import heavy_imports

        with heavy_imports():
            from vit_dist.engines._deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(self, inputs)
