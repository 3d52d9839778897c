"""What a recipe may say. Everything is frozen, typed and checked; defaults are the ViT paper's where it gives one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    field_validator,
    model_validator,
)

from vit_dist.config.about import AboutConfig
from vit_dist.config.augment import AugmentConfig, Floats, MixupConfig, check_range, spelt_augment
from vit_dist.config.branch import BranchConfig
from vit_dist.config.cache import CacheConfig
from vit_dist.config.ema import EMA_TAG, EmaConfig
from vit_dist.config.finetune import FinetuneConfig
from vit_dist.config.held_out import HeldOut, check_beside
from vit_dist.config.lengths import Share, lengths_of
from vit_dist.config.loss import LossConfig
from vit_dist.core.connections import CONNECTIONS
from vit_dist.core.marks import LAYOUT, NON_IDENTITY, WHEN_SET, NonIdentity
from vit_dist.core.metrics import Metric, known_metric, nearest, undeclared
from vit_dist.core.registry import AnyPlace, Config, LocalPath, Plugin
from vit_dist.core.units import Duration, Length, Span, parse_bytes, parse_count

Count = Annotated[int, BeforeValidator(parse_count)]
Bytes = Annotated[int, BeforeValidator(parse_bytes)]
AnyPlugin = SerializeAsAny[Plugin]


class ComponentConfig(Config):
    """One set of a mixture. All sets share the labels of the head; `label_offset` moves a set to a range of its own."""

    train: Annotated[AnyPlace, Field(min_length=1), NON_IDENTITY] = Field(
        description="URL of the set's training manifest"
    )
    weight: Annotated[int, Field(ge=1, le=4096)] = Field(
        1, description="of the set in the stream, relative to the other sets'"
    )
    subset: Annotated[Count, Field(ge=1)] | None = Field(None, description="the first n examples of its nested order")
    subset_seed: Annotated[int, Field(ge=0)] = Field(0, description="which nested family of subsets")
    label_offset: Annotated[int, Field(ge=0)] = Field(0, description="added to each of the set's labels")


class DataConfig(Config):
    """Which examples, in which order, and how an image becomes a tensor.

    Models get RGB in [-1, 1]: uint8 / 127.5 - 1, the same for every model and set; no mean or deviation is taken off.
    """

    dataset: str = Field("custom", description="name of a file in configs/data, which fills in the keys below")
    num_classes: Annotated[int, Field(gt=0)] = Field(description="outputs of the head; no fewer than the set has")
    spare_outputs: Annotated[bool, NON_IDENTITY, WHEN_SET] = Field(
        False, description="more than ten outputs of the head for each class of the set are meant, and no mistake"
    )
    train: Annotated[AnyPlace, NON_IDENTITY] = Field("", description="path or URL of the training manifest")
    val: Annotated[AnyPlace, NON_IDENTITY] = Field(
        "", description="path or URL of the validation manifest; empty: no validation"
    )
    mixture: dict[str, ComponentConfig] = Field(
        {}, description="several training sets by name, in place of `train`: {web: {train: URL, weight: 3}, ...}"
    )
    subset: Count | None = Field(None, description="train on the first n examples of the nested order")
    subset_seed: Annotated[int, Field(ge=0)] = Field(0, description="which nested family of subsets")
    held_out: Annotated[HeldOut, WHEN_SET] = Field(
        "",
        description="the end of the nested order: not trained on, and evaluated in place of `val`; such as 2% or 500",
    )
    lanes: Annotated[Count, Field(ge=1)] | None = Field(
        None, description="runs of samples that are read side by side; left out: by the size of the set"
    )
    window: Annotated[Count, Field(ge=1)] | None = Field(
        None, description="samples of a lane that are shuffled among each other; left out: 32, or all of a small set"
    )
    image_size: Annotated[int, Field(ge=1)] = Field(224, description="side of the square that a model gets, in pixels")
    augment: Annotated[AugmentConfig, BeforeValidator(spelt_augment)] = Field(
        AugmentConfig(), description="how training images are changed; a text is short for {crop: TEXT}"
    )
    crop_area: Floats = Field((0.05, 1.0), description="range of the crop's area, as a fraction of the image's")
    crop_aspect: Floats = Field((3 / 4, 4 / 3), description="range of the crop's width over its height")
    mixup: MixupConfig | None = Field(None, description="mix pairs of training examples; left out: none")
    val_crop: Annotated[float, Field(gt=0, le=1)] = Field(
        0.875, description="fraction of the shorter side that evaluation's centre crop keeps"
    )
    val_resize: Annotated[Annotated[int, Field(ge=1)] | None, WHEN_SET] = Field(
        None, description="pixels that evaluation resizes the shorter side to; left out: image_size / val_crop"
    )
    upright: Annotated[bool, WHEN_SET] = Field(
        False, description="turn photos as their EXIF data say, for training and evaluation"
    )
    max_bad: Annotated[float, Field(ge=0, le=1)] = Field(
        0.001, description="fraction of undecodable examples over which a run stops"
    )
    takedown: Annotated[AnyPlace, NON_IDENTITY, WHEN_SET] = Field(
        "", description="path or URL of a list of keys, one a line, that are not read from the next start on"
    )
    decoder: Annotated[Literal["torchvision", "nvimgcodec"], WHEN_SET] = Field(
        "torchvision",
        description="of training's JPEGs; nvimgcodec: the crop alone, with nvImageCodec, which is installed apart",
    )
    decode_threads: Annotated[int | None, Field(ge=1), NON_IDENTITY] = Field(
        None, description="left out: the CPUs of a rank less two, 2 to 32"
    )
    decode_workers: Annotated[int | None, Field(ge=0, le=128), NON_IDENTITY, WHEN_SET] = Field(
        None, description="processes that decode for a rank; 0: threads do; left out: by its CPUs beside a GPU"
    )
    read_threads: Annotated[int, Field(ge=1, le=CONNECTIONS), NON_IDENTITY] = Field(
        8, description="byte ranges asked for at once"
    )
    prefetch_batches: Annotated[int, Field(ge=1), NON_IDENTITY] = Field(4, description="batches made ready ahead")
    memory_limit: Annotated[Bytes, NON_IDENTITY] = Field(4 << 30, description="read-ahead a rank may hold")
    cache: Annotated[CacheConfig | None, NON_IDENTITY, WHEN_SET] = Field(
        None, description="copies of shards on each node; left out: the machine's, where its cluster file gives one"
    )

    @property
    def is_validated(self) -> bool:
        """Whether there is something to evaluate on that is not trained on."""
        return bool(self.val or self.held_out)

    @property
    def is_named(self) -> bool:
        """Whether the recipe says what is trained on; one that does not is to be completed."""
        return bool(self.train or self.mixture)

    @field_validator("crop_area", "crop_aspect")
    @classmethod
    def _is_range(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        return check_range(value)

    @field_validator("subset")
    @classmethod
    def _not_empty(cls, value: int | None) -> int | None:
        if value == 0:
            raise ValueError("a subset of 0 examples cannot be trained on; leave it out for the whole set")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> DataConfig:
        for key, given in ("train", self.train), ("subset", self.subset), ("subset_seed", self.subset_seed):
            if self.mixture and given:
                raise ValueError(f"{key}={given} beside mixture: give `{key}` to each set of the mixture")
        check_beside(self.held_out, self.val, mixed=bool(self.mixture))
        return self

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if self.augment.augreg is not None and self.mixup is not None:
            raise ValueError(
                f"mixup beside augment.augreg={self.augment.augreg}, {self.augment.numbers}: leave one of them out"
            )
        self.augment.check_size(self.image_size)
        if self.val_resize is not None and self.val_resize < self.image_size:
            raise ValueError(
                f"val_resize: {self.val_resize} pixels are fewer than image_size={self.image_size}, the side of what "
                f"is cut out of them; give {self.image_size} or more"
            )
        return self

    @property
    def pair_mixing(self) -> MixupConfig | None:
        """How pairs are mixed: as `mixup` says, or the strength of AugReg."""
        return MixupConfig(alpha=self.augment.alpha) if self.augment.alpha else self.mixup

    @property
    def mixing_key(self) -> str:
        """The key that says so, for errors."""
        return "data.augment.augreg" if self.augment.alpha else "data.mixup"

    @property
    def val_fraction(self) -> float:
        """Fraction of the resized shorter side that evaluation's centre crop keeps."""
        return self.val_crop if self.val_resize is None else self.image_size / self.val_resize


class InitConfig(Config):
    """Weights to begin from in place of the seed's. Their content is part of a run's identity, their place is not."""

    weights: Annotated[AnyPlace, Field(min_length=1), NON_IDENTITY] = Field(
        description="path or URL of a file or folder that `vit-dist models import` reads, of a checkpoint, or of a run"
    )
    head: Literal["keep", "new"] = Field("keep", description="new: zeros and model.head_bias, for other classes")
    average: Annotated[bool, WHEN_SET] = Field(
        False, description="begin from the average that a run with `ema` has kept, in place of its weights"
    )
    positions: Literal["public", "bicubic"] = Field(
        "public", description="how position embeddings are resampled for another image size; see docs/models.md"
    )


class EvalConfig(Config):
    """When to evaluate; what is evaluated is the list `evaluators`."""

    every: Annotated[Duration, NON_IDENTITY] = Field(
        Duration.parse("1 epoch"), description="how often, and at the end; 0 steps: at the end alone"
    )
    batch: Annotated[int, Field(ge=1), NON_IDENTITY] = Field(256, description="examples a rank evaluates at once")


DurationOrAuto = Annotated[
    Duration | Literal["auto"], BeforeValidator(lambda v: v if v == "auto" else Duration.parse(v))
]

DurationOrNever = Annotated[
    Duration | Literal["never"], BeforeValidator(lambda v: v if v == "never" else Duration.parse(v))
]


class CheckpointConfig(Config):
    """When to save, what to keep, and where copies go."""

    every: Annotated[DurationOrAuto, NON_IDENTITY] = Field(
        Duration.parse("1 epoch"),
        description="steps, examples, epochs or a span of time; auto: from the measured cost of a save and `mtbf`",
    )
    mtbf: Annotated[Span, NON_IDENTITY] = Field(
        Duration.parse("24h"), description="assumed time between failures of the whole job, for `every: auto`"
    )
    keep: Annotated[int, Field(ge=1), NON_IDENTITY] = Field(2, description="so many of the newest stay")
    keep_every: Annotated[Length | None, NON_IDENTITY] = Field(
        None, description="the first at or past each multiple of this stays for ever"
    )
    keep_best: Annotated[str, NON_IDENTITY] = Field("", description="the best by this metric stays, such as val/top1")
    remote: Annotated[AnyPlace, NON_IDENTITY] = Field(
        "", description="path or URL under which copies are kept, such as s3://b/run-7"
    )
    max_failures: Annotated[int, Field(ge=1), NON_IDENTITY] = Field(
        3, description="failed saves in a row that end a run"
    )
    probe: Annotated[int, Field(ge=0), NON_IDENTITY] = Field(
        4, description="examples whose loss a checkpoint records, and a restored model must give; 0: none"
    )

    @model_validator(mode="after")
    def _units(self) -> CheckpointConfig:
        if self.mtbf.value == 0:
            raise ValueError(f"mtbf: '{self.mtbf}' is not a span of time such as 24h")
        if self.keep_every is not None and self.keep_every.value == 0:
            raise ValueError(f"keep_every: '{self.keep_every}'; give more than none, or leave it out")
        return self


class GuardConfig(Config):
    """What stops, skips or rewinds a run that goes wrong."""

    max_in_row: Annotated[int, Field(ge=1), NON_IDENTITY] = Field(
        10, description="steps in a row that were not applied (not finite, or skipped as a spike) that end the run"
    )
    spike: Literal["off", "warn", "skip", "rewind"] = Field(
        "warn", description="what follows a loss spike; skip: the step is not applied; rewind: to the last checkpoint"
    )
    spike_z: Annotated[float, Field(gt=0)] = Field(
        8.0, description="robust z-score (median, 1.4826 MAD) from which a loss is a spike"
    )
    spike_window: Annotated[int, Field(ge=8, le=4096)] = Field(128, description="losses that it is measured against")
    max_rewinds: Annotated[int, Field(ge=0), NON_IDENTITY] = Field(3, description="after so many a run ends")
    checksum_every: Annotated[Duration, NON_IDENTITY] = Field(
        Duration.parse("1k steps"),
        description="how often replicated weights are compared over the ranks; 0 steps: never",
    )
    hang: Annotated[Span, NON_IDENTITY] = Field(
        Duration.parse("10 min"),
        description="a step that takes longer ends the run, ten times that for other work; 0s: no watchdog",
    )


class LogConfig(Config):
    """How often training metrics are written."""

    every: Annotated[Duration, NON_IDENTITY] = Field(
        Duration.parse("10 steps"), description="how often loss, rate and the like are written"
    )
    order: Annotated[bool, NON_IDENTITY] = Field(
        False, description="write the ordinals of every step's examples to RUN-DIR/order, a file an attempt and rank"
    )
    norms: Annotated[DurationOrNever, NON_IDENTITY] = Field(
        "never",
        description="how often norms of weights, gradients and updates of every parameter, and the largest attention "
        "logit of every layer, are written",
    )

    @model_validator(mode="after")
    def _units(self) -> LogConfig:
        if isinstance(self.norms, Duration) and self.norms.value == 0:
            raise ValueError(f"norms: '{self.norms}'; give steps, examples, epochs or a span of time, or never")
        return self


class Recipe(Config):
    """What to train: one resolved recipe and a seed are one run."""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f]+$"), NON_IDENTITY] = Field(
        "run", description="for people, and of the run's directory"
    )
    study: Annotated[str, NON_IDENTITY] = Field("", description="the study that this run is a cell of")
    family: Annotated[str, NON_IDENTITY] = Field("", description="label of the model family in a study's figures")
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of initial weights, order, augmentation and dropout")
    global_batch: Annotated[Count, Field(ge=1)] = Field(
        4096, description="examples of one optimizer step, on all ranks"
    )
    horizon: Length = Field(description="how long a run trains")
    precision: Annotated[Literal["fp32", "tf32", "bf16"], LAYOUT] = Field(
        "bf16", description="of products of a model's blocks; sums, head and loss are fp32; tf32: fp32 on CPUs"
    )
    model: AnyPlugin = Field(description="what is trained: `vit-dist models list` has the names")
    init: InitConfig | None = Field(None, description="weights to begin from; left out: those of the seed")
    finetune: Annotated[FinetuneConfig | None, NON_IDENTITY, WHEN_SET] = Field(
        None, description="learning rates that `vit-dist finetune` chooses from; all other verbs leave it alone"
    )
    branch: Annotated[BranchConfig | None, WHEN_SET] = Field(None, description="what `vit-dist branch` begins from")
    data: DataConfig = Field(description="what it is trained on; a text is short for {dataset: NAME}")
    loss: LossConfig = Field(LossConfig(), description="what is minimised")
    optim: AnyPlugin = Field(description="the optimizer")
    schedule: AnyPlugin = Field(description="the learning rate over the run")
    ema: Annotated[EmaConfig | None, WHEN_SET] = Field(
        None, description="a running average of the weights, evaluated beside them; left out: none"
    )
    engine: Annotated[AnyPlugin, NON_IDENTITY] = Field(description="what computes and shards a step")
    evaluators: Annotated[tuple[AnyPlugin, ...], Field(strict=False), NON_IDENTITY] = Field(
        (), description="what is measured at each `eval.every`; each a name, or a mapping with `name`"
    )
    eval: Annotated[EvalConfig, NON_IDENTITY] = Field(EvalConfig(), description="when the evaluators look")
    checkpoint: Annotated[CheckpointConfig, NON_IDENTITY] = Field(CheckpointConfig(), description="saves and copies")
    guards: GuardConfig = Field(GuardConfig(), description="what stops, skips or rewinds a run that goes wrong")
    log: Annotated[LogConfig, NON_IDENTITY] = Field(LogConfig(), description="how often training metrics are written")
    metrics: Annotated[dict[str, Metric], NON_IDENTITY, WHEN_SET] = Field(
        {}, description="how metrics are read that no evaluator declares: {TAG: {better: lower, range: [0, 1]}}"
    )
    about: Annotated[AboutConfig | None, NON_IDENTITY, WHEN_SET] = Field(
        None, description="where a shipped recipe is from, what was reported, what it does otherwise"
    )
    plugins: Annotated[tuple[LocalPath, ...], Field(strict=False), NON_IDENTITY, WHEN_SET] = Field(
        (), description="files that bring models, optimizers, evaluators, ...; a path, from the recipe's folder"
    )

    @model_validator(mode="after")
    def _possible(self) -> Recipe:
        if self.horizon.value == 0:
            raise ValueError("horizon: a run of length 0 trains nothing")
        if self.branch is not None and self.init is not None:
            raise ValueError("init: a branch begins from its checkpoint, and from no other weights; leave `init` out")
        if self.data.mixture:
            self._check_no_epochs()
        if self.data.pair_mixing is not None and self.global_batch % 2:
            raise ValueError(
                f"global_batch: {self.global_batch} is odd, but {self.data.mixing_key} pairs its halves; nearest that "
                f"can be: {self.global_batch - 1}, {self.global_batch + 1}"
            )
        self.loss.check(self.data.num_classes)
        for plugin in (self.model, self.optim, self.schedule, self.engine, *self.evaluators):
            check = getattr(plugin, "check", None)
            if check is not None:
                check(self)
        if self.checkpoint.keep_best:
            self.metric(self.checkpoint.keep_best, "checkpoint.keep_best")
        return self

    def measured(self, evaluations: Iterable[Plugin] = ()) -> tuple[dict[str, Metric], bool]:
        """The metrics that evaluators say they yield and how they are read, and whether there may be others.

        Args:
            evaluations: further evaluators, that look at the run once it is done.
        """
        said = [evaluator.metrics(self) for evaluator in (*self.evaluators, *evaluations)]  # type: ignore[attr-defined]
        found = {tag: metric for metrics in said if metrics is not None for tag, metric in metrics.items()}
        if self.ema is not None:
            found |= {f"{EMA_TAG}{tag}": metric for tag, metric in found.items()}
        return {tag: self.metrics.get(tag, metric) for tag, metric in found.items()}, None in said

    def metric(self, tag: str, key: str, evaluations: Iterable[Plugin] = ()) -> Metric:
        """How a metric is read that a run of this recipe is to measure.

        Args:
            tag: of the metric.
            key: where it is asked for, for errors.
            evaluations: see `measured`.

        Raises:
            ValueError: nothing measures it, or nothing says whether higher or lower is better.
        """
        asked = (*self.evaluators, *evaluations)
        found, others = self.measured(evaluations)
        if tag not in found and not others:
            names = ", ".join(dict.fromkeys(evaluator.name for evaluator in asked))
            unset = f": data.val is empty, so that nothing is measured by {names}" if names else ": evaluators is empty"
            raise ValueError(f"{key}: {tag!r} is not measured{nearest(tag, found) or unset}")
        metric = found.get(tag) or self.metrics.get(tag) or known_metric(tag)
        if metric is None:
            raise ValueError(f"{key}: {undeclared(tag, 'the recipe')}")
        return metric

    def _check_no_epochs(self) -> None:
        durations = {
            "horizon": self.horizon,
            **lengths_of(self.schedule, "schedule"),
            **(lengths_of(self.ema, "ema") if self.ema is not None else {}),
            "eval.every": self.eval.every,
            "checkpoint.every": self.checkpoint.every,
            "checkpoint.keep_every": self.checkpoint.keep_every,
            "log.every": self.log.every,
            "log.norms": self.log.norms,
            **{f"evaluators[{i}].every": getattr(one, "every", None) for i, one in enumerate(self.evaluators)},
        }
        for key, duration in durations.items():
            if isinstance(duration, Duration) and duration.unit == "epochs":
                raise ValueError(
                    f"{key}: '{duration}' says nothing for data.mixture, whose sets have epochs of their own; give "
                    f"examples or steps, such as {key}='100k examples'"
                )


def dump(config: Config) -> dict[str, Any]:
    """A config as plain data, ready for YAML or JSON, in the order of the fields."""
    plain: dict[str, Any] = config.model_dump(mode="json")
    return plain


def dump_identity(config: Config) -> dict[str, Any]:
    """The part of a config that decides what is learned: without its NON_IDENTITY fields."""
    plain: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        if any(isinstance(mark, NonIdentity) for mark in field.metadata) or config.is_unset(name):
            continue
        value = getattr(config, name)
        plain[name] = _plain(value)
    return plain


def identity_hash(plain: Mapping[str, Any]) -> str:
    """16 hexadecimal digits that name a recipe by its identity, as `config.load.identity` and markers have it."""
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:
    if isinstance(value, Duration | Share):
        return str(value)
    if isinstance(value, AugmentConfig):
        return value.model_dump(mode="json")
    if isinstance(value, Config):
        return dump_identity(value)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in sorted(value.items())}
    return value
