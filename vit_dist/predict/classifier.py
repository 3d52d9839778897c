"""A model with its weights, ready to be asked: a run, a checkpoint, or weights of any form that is read."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from vit_dist.core.errors import ConfigError
from vit_dist.core.files import redact
from vit_dist.core.run.checkpoints import is_checkpoint
from vit_dist.data.classes import Classes
from vit_dist.data.decode import centre, decode, normalize
from vit_dist.models import ModelConfig
from vit_dist.models._base import ImageModel
from vit_dist.models.weights.colours import recoloured
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights
from vit_dist.models.weights.viewed import Loss, Viewed
from vit_dist.train.checkpoint.weights import checkpoint_weights
from vit_dist.train.checkpoint.weights_remote import downloaded

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class OpenOptions:
    """What a person says of a model in place of what its weights say.

    Attributes:
        config: the model, where its file does not say it.
        classes: names of the classes, in the order of the head's outputs; (): those of the weights.
        average: of a run or a checkpoint: the average of its weights that it keeps, in their place.
        image_size: pixels; positions are resampled. None: those of the weights.
        crop: fraction of the shorter side that is kept.
        upright: turn photos as their EXIF orientation says.
        loss: that the model was trained by.
        mean: of the colours.
        std: that is divided by.
        device: 'cpu', 'cuda', 'cuda:1'; '' a GPU where there is one.
        precision: of the forward pass.
    """

    config: ModelConfig | None = None
    classes: tuple[str, ...] = ()
    average: bool = False
    image_size: int | None = None
    crop: float | None = None
    upright: bool | None = None
    loss: Loss | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    device: str = ""
    precision: Precision = "fp32"


@dataclass(frozen=True)
class Classifier:
    """A model that says what images show.

    Attributes:
        where: its weights come from, for people.
        model: in evaluation mode, on its device.
        device: where it computes.
        num_classes: of its head.
        classes: their names in the order of its outputs, '' where one has none; () where none has.
        image_size: side of the square that it is given.
        viewed: how images go in, and what logits mean.
        precision: of the forward pass; head and probabilities are computed in fp32 anyway.
        facts: step, examples and others, as far as its weights tell.
    """

    where: str
    model: ImageModel
    device: torch.device
    num_classes: int
    classes: tuple[str, ...]
    image_size: int
    viewed: Viewed
    precision: Precision = "fp32"
    facts: Mapping[str, str] = field(default_factory=dict)

    def name(self, number: int) -> str:
        """Of a class: its number, where it has no name."""
        named = self.classes[number] if number < len(self.classes) else ""
        return named or str(number)

    def as_classes(self) -> Classes:
        """Its classes, to be compared with those of sets and folders."""
        return Classes.listed("the model", self.num_classes, self.classes)

    def view(self, content: bytes | memoryview) -> Tensor:
        """Bytes of an image's file -> what evaluation makes of it: uint8 [3, S, S].

        Raises:
            DecodeError: not an image that is read, or cut off.
        """
        return centre(decode(content, upright=self.viewed.upright), self.image_size, self.viewed.crop)

    def logits(self, views: Tensor) -> Tensor:
        """uint8 [B, 3, S, S] -> float32 [B, num_classes], on the model's device."""
        images = views.to(self.device, non_blocking=True)
        # As evaluation in a run computes it, bit for bit, where the colours are seen as they are there.
        scaled = recoloured(normalize(images, torch.float32), self.viewed)
        bf16 = (
            torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()
        )
        with torch.inference_mode(), bf16:
            logits: Tensor = self.model(scaled)
        return logits.float()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits, float32 [B, num_classes] -> probabilities: by softmax they sum to 1, by sigmoid each stands alone."""
        return logits.softmax(1) if self.viewed.loss == "softmax" else logits.sigmoid()


def open_classifier(place: str, options: OpenOptions = OpenOptions()) -> Classifier:
    """The model at a path or URL.

    Args:
        place: a run (its newest intact checkpoint), a checkpoint of ours or a copy of one, a file of weights (.npz,
            .safetensors, torch's) or a folder of Hugging Face's.
        options: what is said in place of what the weights say.

    Raises:
        CheckpointError: no intact checkpoint is there.
        ConfigError: the file does not say its model, or names, sizes and device do not fit.
        DataError: missing, damaged, or the weights of another model.
    """
    device = _device(options.device)
    with downloaded(place) as path:
        if is_checkpoint(path):
            weights = _resized(checkpoint_weights(path, average=options.average), options, place)
        elif options.average:
            raise ConfigError(f"--average: {redact(place)} is a file of weights; give a run or a checkpoint")
        else:
            weights = read_weights(path, LoadOptions(config=options.config, image_size=options.image_size))
    classes = options.classes or weights.classes
    if options.classes and len(classes) != weights.num_classes:
        raise ConfigError(
            f"--classes: {len(classes):,} names, but the head of {redact(place)} has {weights.num_classes:,} classes; "
            f"give one name a line, in the order of its outputs"
        )
    said: dict[str, Any] = {
        name: value
        for name in ("crop", "upright", "loss", "mean", "std")
        if (value := getattr(options, name)) is not None
    }
    model = weights.config.build(num_classes=weights.num_classes, image_size=weights.image_size)
    model.load_state_dict(weights.state)
    return Classifier(
        redact(place),
        model.to(device).eval(),
        device,
        weights.num_classes,
        classes,
        weights.image_size,
        replace(weights.viewed, **said),
        options.precision,
        {"model": weights.config.name, **weights.facts},
    )


def _resized(weights: Weights, options: OpenOptions, place: str) -> Weights:
    """The weights of a checkpoint for images of the size that is asked for."""
    if options.config is not None:
        raise ConfigError(f"--model: {redact(place)} is a checkpoint or run of ours, which says its model itself")
    size = options.image_size
    if size is None or size == weights.image_size:
        return weights
    from vit_dist.models.weights.adapt import fit

    weights.config.fit(size)
    state = fit(weights.state, weights.config, num_classes=weights.num_classes, image_size=size, source=redact(place))
    return replace(weights, state=state, image_size=size)


def _device(wanted: str) -> torch.device:
    try:
        device = torch.device(wanted or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise ConfigError(f"--device {wanted!r}: no device is called so; give cpu, cuda, or cuda:1") from None
    if device.type not in {"cpu", "cuda"}:
        raise ConfigError(f"--device {wanted!r}: models compute on cpu or cuda here")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        have = torch.cuda.device_count()
        raise ConfigError(
            f"--device {wanted!r}: this machine has {have or 'no'} GPU{'' if have == 1 else 's'} that torch can use"
        )
    return device
