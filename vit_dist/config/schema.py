"""What a recipe may say. Everything is frozen, typed and checked; defaults are the ViT paper's where it gives one."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, field_validator, model_validator

from vit_dist.core.registry import Config, Plugin
from vit_dist.core.units import Duration, parse_bytes, parse_count


class Incidental:
    """Marks a field that is free to differ between two attempts of one run: where, how often, how fast, not what."""


INCIDENTAL = Incidental()

Count = Annotated[int, BeforeValidator(parse_count)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
AnyPlugin = SerializeAsAny[Plugin]
Floats = Annotated[tuple[float, ...], Field(strict=False)]


class DataConfig(Config):
    """Which examples, in which order, and how an image becomes a tensor."""

    dataset: str = Field("custom", description="name of a file in configs/data, which fills in the keys below")
    num_classes: Annotated[int, Field(gt=0)]
    train: Annotated[str, INCIDENTAL] = Field("", description="URL of the training manifest")
    val: Annotated[str, INCIDENTAL] = Field("", description="URL of the validation manifest; empty: no validation")
    subset: Count | None = Field(None, description="train on the first n examples of the nested order")
    subset_seed: Annotated[int, Field(ge=0)] = 0
    lanes: Annotated[Count, Field(ge=1)] | None = None
    window: Annotated[Count, Field(ge=1)] | None = None
    image_size: Annotated[int, Field(ge=1)] = 224
    augment: Literal["inception", "flip", "none"] = Field(
        "inception", description="inception: random area crop and flip; flip: resize and flip; none: resize only"
    )
    crop_area: Floats = Field((0.05, 1.0), description="range of the crop's share of the image's area")
    crop_aspect: Floats = (3 / 4, 4 / 3)
    val_crop: Annotated[float, Field(gt=0, le=1)] = Field(
        0.875, description="share of the shorter side that evaluation's centre crop keeps"
    )
    max_bad: Annotated[float, Field(ge=0, le=1)] = Field(
        0.001, description="share of undecodable examples over which a run stops"
    )
    decode_threads: Annotated[int, Field(ge=1), INCIDENTAL] = 2
    read_threads: Annotated[int, Field(ge=1), INCIDENTAL] = 4
    prefetch_batches: Annotated[int, Field(ge=1), INCIDENTAL] = 4
    memory_limit: Annotated[Bytes, INCIDENTAL] = Field(4 << 30, description="read-ahead a rank may hold")

    @field_validator("crop_area", "crop_aspect")
    @classmethod
    def _is_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) != 2 or not 0 < value[0] <= value[1]:
            raise ValueError("expected two numbers [low, high] with 0 < low <= high")
        return value

    @field_validator("subset")
    @classmethod
    def _not_empty(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("a subset of 0 examples cannot be trained on; leave it out for the whole set")
        return value


class LossConfig(Config):
    """Softmax cross-entropy, or the sigmoid one that the paper pretrains with (summed over classes)."""

    name: Literal["softmax", "sigmoid"] = "softmax"
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0


class EvalConfig(Config):
    """When to evaluate; what is evaluated is the list `evaluators`."""

    every: Annotated[Duration, INCIDENTAL] = Duration.parse("1 epoch")
    batch: Annotated[int, Field(ge=1), INCIDENTAL] = Field(256, description="examples a rank evaluates at once")


class CheckpointConfig(Config):
    """When to save, and how many to keep."""

    every: Annotated[Duration, INCIDENTAL] = Duration.parse("1 epoch")
    keep: Annotated[int, Field(ge=1), INCIDENTAL] = 2


class LogConfig(Config):
    """How often training metrics are written."""

    every: Annotated[Duration, INCIDENTAL] = Duration.parse("10 steps")


class Recipe(Config):
    """What to train: one resolved recipe and a seed are one run."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$"), INCIDENTAL] = "run"
    study: Annotated[str, INCIDENTAL] = Field("", description="the study that this run is a cell of")
    family: Annotated[str, INCIDENTAL] = Field("", description="label of the model family in a study's figures")
    seed: Annotated[int, Field(ge=0)] = 0
    global_batch: Annotated[Count, Field(ge=1)] = 4096
    horizon: Duration
    precision: Literal["fp32", "bf16"] = "bf16"
    model: AnyPlugin
    data: DataConfig
    loss: LossConfig = LossConfig()
    optim: AnyPlugin
    schedule: AnyPlugin
    engine: Annotated[AnyPlugin, INCIDENTAL]
    evaluators: Annotated[tuple[AnyPlugin, ...], Field(strict=False), INCIDENTAL] = ()
    eval: Annotated[EvalConfig, INCIDENTAL] = EvalConfig()
    checkpoint: Annotated[CheckpointConfig, INCIDENTAL] = CheckpointConfig()
    log: Annotated[LogConfig, INCIDENTAL] = LogConfig()

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.horizon.unit == "seconds":
            raise ValueError(f"horizon: '{self.horizon}' is a span of time; a recipe is trained for examples or epochs")
        if self.horizon.value == 0:
            raise ValueError("horizon: a run of length 0 trains nothing")
        for plugin in (self.model, self.optim, self.schedule, self.engine):
            check = getattr(plugin, "check", None)
            if check is not None:
                check(self)
        return self


def dump(config: Config) -> dict[str, Any]:
    """A config as plain data, ready for YAML or JSON, in the order of the fields."""
    return config.model_dump(mode="json")


def dump_identity(config: Config) -> dict[str, Any]:
    """The part of a config that decides what is learned: without fields marked incidental."""
    plain: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        if any(isinstance(mark, Incidental) for mark in field.metadata):
            continue
        value = getattr(config, name)
        plain[name] = dump_identity(value) if isinstance(value, Config) else _plain(value)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Duration):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return value
