"""What a recipe says of itself: where its numbers are from, what was reported, what it does otherwise. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, Field

from vit_dist.core.registry import Config
from vit_dist.core.units import parse_count

Line = Annotated[str, Field(min_length=1, max_length=300, pattern=r"^[^\x00-\x1f]+$")]
"""A text of one line."""


class ReportedConfig(Config):
    """One number that the source reports of what it trained."""

    value: float = Field(description="as it is printed, such as 84.15")
    metric: Line = Field(description="what it is, and how it was measured, such as ImageNet top-1 in %, at 384 pixels")
    where: Line = Field(description="the table, figure or file that has it")


class AboutConfig(Config):
    """Facts of a recipe that repeats somebody's, for people: nothing that is trained hangs on them.

    They are of the file that has them: a recipe with that file as its `base` does not have them.
    """

    source: Line = Field(description="paper with its table, or file of a public repository, that its numbers are from")
    set_examples: Annotated[int, BeforeValidator(parse_count), Field(ge=1)] | None = Field(
        None, description="examples of the source's training set, by which `vit-dist recipes` counts epochs"
    )
    reported: Annotated[tuple[ReportedConfig, ...], Field(strict=False)] = Field(
        (), description="what the source measured of what it trained"
    )
    differs: Annotated[tuple[Line, ...], Field(strict=False)] = Field(
        (), description="what the source does and this recipe does not, or does otherwise"
    )
