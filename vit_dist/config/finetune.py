"""What a recipe may say of how `vit-dist finetune` chooses its learning rate, and how it was chosen. No torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from vit_dist.config.held_out import HeldOut
from vit_dist.core.registry import Config

Rate = Annotated[float, Field(gt=0)]


class ChosenConfig(Config):
    """How a learning rate was chosen; `vit-dist finetune` writes it into the recipe of the run that it leads to."""

    best: Rate = Field(description="the rate that was best")
    metric: str = Field(description="by which")
    values: dict[str, float | None] = Field(
        description="of each rate that was tried, at the end of its run; null: it diverged"
    )
    held_out: str = Field(description="how much of the training set was held out to measure it")
    examples: Annotated[int, Field(ge=1)] = Field(description="that were held out")
    slice: str = Field(description="which of the set's nested order they were")
    fingerprint: str = Field(description="of the training set")


class FinetuneConfig(Config):
    """The grid of learning rates of `vit-dist finetune`. Each trains on all but a slice of the training set, on which
    the best is chosen; that one trains on all of it.
    """

    lrs: Annotated[tuple[Rate, ...], Field(strict=False)] = Field(
        (), description="values of optim.lr; none, or one: nothing is to be chosen"
    )
    held_out: HeldOut = Field("2%", description="of the training set, to choose by: a share, or a count of examples")
    metric: str = Field("val/top1", description="that is compared; an evaluator must measure it")
    chosen: ChosenConfig | None = Field(None, description="written by the command: how optim.lr was chosen")

    @field_validator("lrs")
    @classmethod
    def _different(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        # As runs are called by them: six digits tell rates apart.
        shown = [f"{lr:g}" for lr in value]
        twice = sorted({lr for lr in shown if shown.count(lr) > 1})
        if twice:
            raise ValueError(f"given twice: {', '.join(twice)}")
        return value

    @field_validator("held_out")
    @classmethod
    def _something(cls, value: str) -> str:
        if not value:
            raise ValueError("nothing is held out to choose by; give a share such as '2%', or a count")
        return value
