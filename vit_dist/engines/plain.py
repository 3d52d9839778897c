"""Config of the plain engine: torch's DistributedDataParallel, the reference implementation for DeepSpeed."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vit_dist.core.registry import ENGINES
from vit_dist.engines import EngineConfig

if TYPE_CHECKING:
    from vit_dist.engines._protocol import Engine, EngineInputs


@ENGINES.register("plain")
class PlainConfig(EngineConfig):
    """No sharding. In bf16 the weights stay fp32 and the forward pass runs under autocast."""

    clips_blocks: ClassVar[bool] = True

    def build(self, inputs: EngineInputs) -> Engine:
        """The engine. A collective."""
        from vit_dist.engines._plain import PlainEngine

        return PlainEngine(self, inputs)
