"""Config of the plain engine: torch's DistributedDataParallel, the reference implementation for DeepSpeed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from vit_dist.core.registry import ENGINES, Plugin

if TYPE_CHECKING:
    from vit_dist.engines._protocol import Engine, EngineInputs


@ENGINES.register("plain")
class PlainConfig(Plugin):
    """No sharding. In bf16 the weights stay fp32 and the forward pass runs under autocast."""

    max_micro_batch: Annotated[int, Field(ge=1)] | None = Field(
        None, description="examples a rank may run at once; the derived micro-batch is its largest share below"
    )
    activation_checkpointing: Literal["none", "full"] = "none"
    channels_last: bool = Field(
        False, description="images as NHWC in memory, for convolutions; measure it first: docs/models.md"
    )

    def build(self, inputs: EngineInputs) -> Engine:
        """The engine. A collective."""
        from vit_dist.engines._plain import PlainEngine

        return PlainEngine(inputs)
