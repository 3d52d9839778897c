"""The checkpoint of another run that a run begins from, as `vit-dist branch` writes it into a recipe. No torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from vit_dist.core.marks import NON_IDENTITY, WHEN_SET
from vit_dist.core.registry import AnyPlace, Config


class BranchConfig(Config):
    """The checkpoint of another run, its trunk, that a run begins from: weights, optimizer, position and step."""

    checkpoint: Annotated[AnyPlace, Field(min_length=1), NON_IDENTITY] = Field(
        description="path or URL of the trunk's checkpoint, .../step-0000001000; not needed any more once a branch has "
        "begun"
    )
    run: Annotated[str, Field(min_length=1, max_length=300), NON_IDENTITY] = Field(
        description="the trunk's name, for people"
    )
    step: Annotated[int, Field(ge=0)] = Field(description="after which the branch begins")
    digest: Annotated[str | None, Field(pattern=r"^[0-9a-f]{32}$"), WHEN_SET] = Field(
        None, description="of what the checkpoint holds: weights, moments, train state, recipe; or `trunk` says of whom"
    )
    trunk: Annotated[str | None, Field(pattern=r"^[0-9a-f]{16}$"), WHEN_SET] = Field(
        None,
        description="hash of the trunk's recipe, in place of `digest` where the checkpoint is not there yet: what it "
        "holds is written down when the branch begins",
    )
    head: Literal["keep", "new"] = Field("keep", description="new: zeros and model.head_bias, for other classes")
    positions: Literal["public", "bicubic"] = Field(
        "public", description="how position embeddings are resampled for another image size; see docs/models.md"
    )
    optimizer: Annotated[Literal["keep", "new"], WHEN_SET] = Field(
        "keep", description="new: another optimizer, or the same anew: no moments, and its count of steps begins at 0"
    )

    @model_validator(mode="after")
    def _held_to_one(self) -> BranchConfig:
        if (self.digest is None) == (self.trunk is None):
            raise ValueError("give digest or trunk, of which one says whose checkpoint it is")
        return self
