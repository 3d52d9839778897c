"""Vision Transformers: the paper's sizes (Table 1), smaller ones, and any other by its numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from vit_dist.core.marks import WHEN_SET
from vit_dist.core.registry import MODELS
from vit_dist.models import ModelConfig

if TYPE_CHECKING:
    from vit_dist.models._vit import ViT

Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class ViTConfig(ModelConfig):
    """A Vision Transformer (arXiv 2010.11929). Defaults are those of the paper and its public code."""

    family: str = "vit"
    patch_size: Positive = Field(description="side of a patch, in pixels")
    width: Positive = Field(description="of the tokens")
    depth: Positive = Field(description="transformer blocks")
    num_heads: Positive = Field(description="attention heads of a block; a divisor of the width")
    mlp_dim: Positive | None = Field(
        None,
        description="hidden width of the MLPs; empty: four times the width, of swiglu two thirds of that, rounded up "
        "to a multiple of 8",
    )
    dropout: Rate = Field(
        0.0, description="after each dense layer but the qkv projections, and on the embedded patches (appendix B.1)"
    )
    stochastic_depth: Rate = Field(
        0.0, description="chance that an example skips the last block; it falls linearly to 0 at the first"
    )
    pool: Literal["cls", "mean", "map"] = Field(
        "cls", description="cls: the class token; mean: of the patches; map: one attention head with a learned query"
    )
    representation: bool = Field(
        False, description="a dense layer of the model's width and tanh before the head; the paper pretrains with it"
    )
    gelu: Literal["tanh", "exact"] = Field(
        "tanh", description="of the MLPs; tanh: the approximation of the public code"
    )
    position_embedding: Literal["learned", "learned-2d", "relative", "sincos", "rope", "conditional", "none"] = Field(
        "learned",
        description="learned: a vector a token; learned-2d: half a vector a column, half a row; relative: in "
        "attention, by the offset of two patches; sincos: fixed, 2-D; rope: queries and keys are turned by their "
        "place, in 2-D (arXiv 2403.13298), as in DINOv3; conditional: a convolution over patches (CPVT)",
    )
    positions_at: Literal["stem", "layers", "shared"] | None = Field(
        None,
        description="stem: added once (conditional: behind the first block); layers: at each layer, its own; "
        "shared: at each layer, the same (conditional: behind each but the last). Left out: stem, but for relative "
        "layers, for rope shared",
    )

    layer_scale: Annotated[Annotated[float, Field(gt=0)] | None, WHEN_SET] = Field(
        None,
        description="first value of a learned factor for each channel of what a block adds (LayerScale, arXiv "
        "2103.17239), such as 1e-4; left out: none",
    )
    qk_norm: Annotated[bool, WHEN_SET] = Field(
        False,
        description="LayerNorm of queries and keys, over each head, before their product (ViT-22B, arXiv 2302.05442)",
    )

    mlp: Annotated[Literal["gelu", "swiglu"], WHEN_SET] = Field(
        "gelu",
        description="of the blocks; swiglu: SiLU of one product times another, then a third (arXiv 2002.05202)",
    )
    registers: Annotated[Annotated[int, Field(ge=0)], WHEN_SET] = Field(
        0,
        description="learned tokens beside the patches, without positions, that no pooling looks at (arXiv 2309.16588)",
    )

    patch_dropout: Annotated[Rate, WHEN_SET] = Field(
        0.0,
        description="fraction of the patches that each example leaves out in training, for speed (FLIP, arXiv "
        "2212.00794); evaluation sees all",
    )

    @model_validator(mode="after")
    def _shapes_fit(self) -> ViTConfig:
        if self.width % self.num_heads:
            raise ValueError(
                f"width={self.width} is not divisible by num_heads={self.num_heads}; "
                f"heads that divide it: {_divisors(self.width)}"
            )
        if self.position_embedding == "sincos" and (self.width % 4 or self.width < 8):
            raise ValueError(f"position_embedding=sincos needs a width of 8 or more that 4 divides, got {self.width}")
        if self.position_embedding == "learned-2d" and self.width % 2:
            raise ValueError(f"position_embedding=learned-2d needs an even width, got {self.width}")
        if self.position_embedding == "rope":
            self._turnable()
        if self.position_embedding == "conditional" and self.depth < 2:
            raise ValueError("position_embedding=conditional stands between two blocks: it needs a depth of 2 or more")
        if self.mlp == "swiglu" and self.gelu == "exact" and self.pool != "map":
            raise ValueError("gelu=exact: mlp=swiglu has no GELU; leave `gelu` out")
        if self.patch_dropout and self.position_embedding in ("relative", "conditional"):
            raise ValueError(
                f"patch_dropout={self.patch_dropout:g}: position_embedding={self.position_embedding} needs all patches "
                f"in their places; choose another, or leave patch_dropout out"
            )
        impossible = {"relative": "stem", "sincos": "layers"}
        if self.positions_at is not None and impossible.get(self.position_embedding) == self.positions_at:
            raise ValueError(
                "positions_at=stem: relative positions act in attention; choose layers or shared"
                if self.position_embedding == "relative"
                else "positions_at=layers: a fixed sincos table is the same in each layer; choose stem or shared"
            )
        return self

    def _turnable(self) -> None:
        per_head = self.width // self.num_heads
        if per_head % 4:
            raise ValueError(
                f"position_embedding=rope needs heads of a width that 4 divides; width={self.width} over "
                f"num_heads={self.num_heads} is {per_head}"
            )
        if self.positions_at in ("stem", "layers"):
            raise ValueError(
                f"positions_at={self.positions_at}: rope turns queries and keys of every layer alike; choose shared, "
                f"or leave it out"
            )

    @property
    def places(self) -> Literal["stem", "layers", "shared"]:
        """Where positions are added."""
        usual: dict[str, Literal["stem", "layers", "shared"]] = {"relative": "layers", "rope": "shared"}
        return self.positions_at or usual.get(self.position_embedding, "stem")

    @property
    def stride(self) -> int:
        """Side of a patch in pixels."""
        return self.patch_size

    @property
    def hidden(self) -> int:
        """Hidden width of the MLPs."""
        if self.mlp_dim is not None:
            return self.mlp_dim
        # DINOv2's (facebookresearch/dinov2, layers/swiglu_ffn.py): three matrices of about as many numbers as two.
        return -(-(8 * self.width // 3) // 8) * 8 if self.mlp == "swiglu" else 4 * self.width

    def patches_kept(self, patches: int) -> int:
        """Of so many patches those that an example keeps in training."""
        return patches if not self.patch_dropout else max(1, int(patches * (1 - self.patch_dropout)))

    def build(self, *, num_classes: int, image_size: int) -> ViT:
        """See `ModelConfig.build`; the patch size must divide the image size."""
        from vit_dist.models._vit import build_vit

        self.fit(image_size)
        return build_vit(self, num_classes=num_classes, image_size=image_size)


def _divisors(width: int) -> str:
    divisors = [n for n in range(1, min(width, 64) + 1) if width % n == 0]
    return ", ".join(map(str, divisors))


def sizes(width: int, depth: int, num_heads: int) -> dict[str, Any]:
    """Width, depth and heads as keys of a config."""
    return {"width": width, "depth": depth, "num_heads": num_heads}


# Base, Large, Huge: Table 1 of the paper. Tiny and Small: arXiv 2106.10270, Table 2. g, G: arXiv 2106.04560, Table 2.
TINY, SMALL = sizes(192, 12, 3), sizes(384, 12, 6)
BASE, LARGE, HUGE = sizes(768, 12, 12), sizes(1024, 24, 16), sizes(1280, 32, 16)

LITTLE_G, BIG_G = {**sizes(1408, 40, 16), "mlp_dim": 6144}, {**sizes(1664, 48, 16), "mlp_dim": 8192}

PRESETS: dict[str, dict[str, Any]] = {
    "vit": {},
    "ViT-Ti/16": {"patch_size": 16, **TINY},
    "ViT-S/32": {"patch_size": 32, **SMALL},
    "ViT-S/16": {"patch_size": 16, **SMALL},
    # Figure 4: Base with all hidden dimensions halved.
    "ViT-b/32": {"patch_size": 32, **BASE, "width": 384},
    "ViT-B/32": {"patch_size": 32, **BASE},
    "ViT-B/16": {"patch_size": 16, **BASE},
    "ViT-L/32": {"patch_size": 32, **LARGE},
    "ViT-L/16": {"patch_size": 16, **LARGE},
    "ViT-H/14": {"patch_size": 14, **HUGE},
    "ViT-g/14": {"patch_size": 14, **LITTLE_G},
    "ViT-G/14": {"patch_size": 14, **BIG_G},
    # For 28-pixel images on a CPU.
    "vit-demo": {"patch_size": 7, **sizes(64, 4, 4)},
    "vit-test": {"patch_size": 7, **sizes(32, 2, 2)},
}
for _name, _defaults in PRESETS.items():
    MODELS.register(_name, **_defaults)(ViTConfig)
