"""Forward, backward, step: DeepSpeed, and plain torch as the reference implementation, behind one protocol."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from vit_dist.core.marks import LAYOUT
from vit_dist.core.registry import Plugin

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe
    from vit_dist.engines._protocol import Engine, EngineInputs

Switch = Literal["auto", True, False]
Attention = Literal["auto", "flash", "efficient", "cudnn", "math"]
ReduceDtype = Literal["fp32", "bf16"]


class EngineConfig(Plugin):
    """Base of every engine's config: how a step is computed, which changes nothing but rounding, memory and speed."""

    name: Annotated[str, LAYOUT] = Field(description="of the engine, which brings the section's other keys")
    max_micro_batch: Annotated[int, Field(ge=1)] | None = Field(
        None, description="examples a rank may run at once; the derived micro-batch is its largest share below"
    )
    activation_checkpointing: Literal["none", "full"] = Field(
        "none", description="full: each block keeps its input alone, and computes the rest again in the backward pass"
    )
    compile: Annotated[Switch, LAYOUT] = Field(
        "auto",
        description="blocks by torch.compile, before the first step; auto: on GPUs, but under ZeRO stage 3 "
        "(docs/performance.md)",
    )
    channels_last: Switch = Field(
        "auto",
        description="images as NHWC in memory, for convolutions; auto: where a GPU's compiled blocks have some "
        "(docs/models.md)",
    )
    reduce_dtype: Annotated[ReduceDtype, LAYOUT] = Field(
        "fp32", description="of gradients while ranks sum them; bf16: half the bytes, rounded at each addition"
    )
    deterministic: Annotated[bool, LAYOUT] = Field(
        False, description="deterministic kernels alone, so that a resume is bit-identical on GPUs: docs/recovery.md"
    )
    attention: Annotated[Attention, LAYOUT] = Field(
        "auto", description="kernel of scaled_dot_product_attention; auto: torch's own choice by shape and device"
    )

    clips_blocks: ClassVar[bool] = False
    """Whether it can clip each block's gradient by its own norm."""

    def check(self, recipe: Recipe) -> None:
        """Refuse what this engine cannot do.

        Raises:
            ValueError: clipping by block, where the engine knows one norm.
        """
        clip_per = getattr(recipe.optim, "clip_per", "all")
        if clip_per != "all" and not self.clips_blocks:
            raise ValueError(
                f"optim.clip_per={clip_per} needs the norm of each block's gradient, and engine.name={self.name} clips "
                f"by the norm of all; use engine.name=plain or fsdp, or leave clip_per out"
            )

    @property
    def compiles_on_gpus(self) -> bool:
        """Whether blocks are to be compiled on a GPU."""
        return self.compile is not False

    def build(self, inputs: EngineInputs) -> Engine:
        """The engine. A collective."""
        raise NotImplementedError
