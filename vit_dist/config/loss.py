"""What a recipe may say of what is minimised: the loss, the weights of its classes, and a teacher. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, model_validator

from vit_dist.core.marks import NON_IDENTITY, WHEN_SET
from vit_dist.core.registry import AnyPlace, Config, Plugin

Weight = Annotated[float, Field(ge=0)]
ClassWeights = Annotated[tuple[Weight, ...], Field(strict=False)]


class TeacherConfig(Config):
    """A model that is there already, whose logits of the same images are a part of what is learned (distillation)."""

    weights: Annotated[AnyPlace, Field(min_length=1), NON_IDENTITY] = Field(
        description="path or URL of a file or folder that `vit-dist models import` reads, of a checkpoint, or of a run"
    )
    model: SerializeAsAny[Plugin] | None = Field(
        None, description="the teacher's, by its name or with settings; left out: what its weights say"
    )
    weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="share of the teacher's part in the loss; the labels' has the rest"
    )
    hard: bool = Field(
        False,
        description="the teacher's first class is a label (DeiT, arXiv 2012.12877); else its distribution over the "
        "classes is the target (arXiv 1503.02531)",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="what both models' logits are divided by before they are compared; not if `hard`"
    )

    @model_validator(mode="after")
    def _does_something(self) -> TeacherConfig:
        if self.hard and self.temperature != 1:
            raise ValueError(f"temperature={self.temperature:g}: a hard label has none; leave one of the two out")
        return self


class LossConfig(Config):
    """Cross-entropy over the classes, or of each class: summed as the ViT paper pretrains, or DeiT III's mean."""

    name: Literal["softmax", "sigmoid", "bce"] = Field(
        "softmax",
        description="cross-entropy over classes, or of each class by itself: sigmoid summed over them, with labels "
        "smoothed towards one half; bce as DeiT III has it (arXiv 2204.07118), their mean, smoothed as softmax",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0, description="share of the target that is spread over all classes"
    )
    sum_classes: Annotated[bool, WHEN_SET] = Field(False, description="of bce: the sum over classes, not their mean")
    target_threshold: Annotated[Annotated[float, Field(ge=0, lt=1)] | None, WHEN_SET] = Field(
        None,
        description="of bce: targets above it are 1, others 0, once they are smoothed and mixed; left out: as they are",
    )
    class_weights: Annotated[ClassWeights | Literal["balanced"] | None, WHEN_SET] = Field(
        None,
        description="factor of each class's part of the loss, a number a class; balanced: examples over classes and "
        "examples of the class, by the manifest; left out: none",
    )

    class_weights_file: Annotated[AnyPlace, NON_IDENTITY, WHEN_SET] = Field(
        "", description="path or URL of a text file of them, a number a line, in place of class_weights"
    )
    teacher: Annotated[TeacherConfig | None, WHEN_SET] = Field(None, description="distil from a model; left out: none")

    @model_validator(mode="after")
    def _does_something(self) -> LossConfig:
        if self.name != "bce" and (self.sum_classes or self.target_threshold is not None):
            given = "sum_classes=true" if self.sum_classes else f"target_threshold={self.target_threshold}"
            raise ValueError(f"{given}: it is of the loss bce, and the loss is {self.name}; leave it out")
        if self.class_weights is not None and self.class_weights_file:
            raise ValueError("class_weights_file beside class_weights: leave one of them out")
        if isinstance(self.class_weights, tuple) and not any(self.class_weights):
            raise ValueError("class_weights: no class has a weight, so that nothing would be learned")
        return self

    def check(self, num_classes: int) -> None:
        """Refuse weights of other classes than a head has.

        Raises:
            ValueError: they are more or fewer.
        """
        if isinstance(self.class_weights, tuple) and len(self.class_weights) != num_classes:
            raise ValueError(
                f"loss.class_weights: {len(self.class_weights):,} weights, and data.num_classes={num_classes}; give "
                f"one for each class, in the order of their numbers"
            )


def with_model(loss: Any, made: Callable[[Any], Any]) -> dict[str, Any]:
    """The section `loss`, not yet checked, with its teacher's model as a config; {} where it names none.

    Args:
        loss: as it was given.
        made: the config of a model by its name or settings.
    """
    teacher = loss.get("teacher") if isinstance(loss, Mapping) else None
    if not isinstance(teacher, Mapping) or teacher.get("model") is None:
        return {}
    return {"loss": {**loss, "teacher": {**teacher, "model": made(teacher["model"])}}}
