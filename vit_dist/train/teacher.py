"""The teacher of a distillation: read and checked before a run is anything, then whole on every rank, never trained.

It sees each micro-batch as the student does, augmented and mixed, and computes as the engine does: in its precision and
with its kernel of attention, eagerly, in eval mode, without gradients. It has no state: a resumed run reads it again,
and its content is a part of what the run is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.config.loss import TeacherConfig
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import redact
from vit_dist.core.log import log
from vit_dist.core.run.checkpoints import is_checkpoint
from vit_dist.core.run.directory import RunDir
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World
from vit_dist.data.classes import Classes, rows_in
from vit_dist.data.decode import normalize
from vit_dist.engines._layout import images_format
from vit_dist.engines._numerics import attention_kernel
from vit_dist.models import ModelConfig
from vit_dist.models.weights.colours import is_usual, recolour_inputs
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, with_rows
from vit_dist.models.weights.names import TEACHER as WORDING
from vit_dist.models.weights.opened import opened
from vit_dist.train.checkpoint.weights import checkpoint_weights
from vit_dist.train.initial_weights import TEACHER, Given, digest_of

_KEY = "loss.teacher.weights"
_OTHER_CLASSES = "give a teacher of the training set's classes"
_POSITIONS = ("pos_embed", "pos_embed_x", "pos_relative")


class Teacher:
    """A model whose logits are learned.

    Args:
        model: with its weights, on its device.
        dtype: of its weights and images.
        memory_format: of its images.
        attention: the engine's kernel.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format, attention: Any
    ) -> None:
        self._model, self._dtype, self._format, self._attention = model, dtype, memory_format, attention

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [b, 3, S, S] on its device -> float32 logits [b, K]. Draws nothing, and nobody waits for it."""
        with attention_kernel(self._attention):
            logits: Tensor = self._model(normalize(images, self._dtype, self._format))
        return logits.float()


class TeacherWeights:
    """The weights of a recipe's teacher, on one rank. To make them is a collective; without a teacher nothing is read.

    Attributes:
        identity: the part of a run's identity that says which they are.

    Args:
        recipe: of the run.
        directory: of the run, shared by all ranks; weights of a remote URL pass through it.
        world: this rank's place.
        class_names: what the training set calls the classes of the head, as far as it has names.

    Raises:
        VitDistError: the weights are missing or damaged, or of other classes or another image size.
    """

    def __init__(self, recipe: Recipe, directory: RunDir, world: World, class_names: Mapping[int, str]) -> None:
        self._recipe, self._world, config = recipe, world, recipe.loss.teacher
        self._weights: Weights | None = None
        self.identity: dict[str, str] = {}
        if config is None:
            return
        head = Classes("the training set", recipe.data.num_classes, class_names)
        given = Given(_KEY, config.weights, directory.path / ".teacher-weights", world)
        size = recipe.data.image_size
        self._weights = given.read(lambda path: _fitting(path, config, head, size))
        # Heads and the kind of GELU leave no trace in the tensors.
        said = json.dumps(self._weights.config.model_dump(mode="json"), sort_keys=True)
        viewed = self._weights.viewed
        colours = "" if is_usual(viewed) else f" {viewed.mean} {viewed.std}"
        content = f"{digest_of(self._weights.state)} {said}{colours}"
        self.identity = {TEACHER: given.agreed(hashlib.sha256(content.encode()).hexdigest()[:32])}

    def build(self, device: torch.device) -> Teacher | None:
        """The teacher on a device; its weights are given up here."""
        weights, self._weights = self._weights, None
        if weights is None:
            return None
        # What the run draws must not depend on it.
        with torch.random.fork_rng([]):
            model: Any = weights.config.build(num_classes=weights.num_classes, image_size=self._recipe.data.image_size)
        model.load_state_dict(weights.state)
        dtype = torch.bfloat16 if self._recipe.precision == "bf16" else torch.float32
        model = model.to(device).requires_grad_(False).eval()
        for parameter in model.parameters():
            # Not the buffers: fixed tables stay in float32, as every engine leaves them.
            parameter.data = parameter.data.to(dtype)
        recolour_inputs(model, weights.viewed)
        numbers = sum(p.numel() for p in model.parameters())
        held = format_bytes(sum(p.numel() * p.element_size() for p in model.parameters()))
        assert self._recipe.loss.teacher is not None
        if self._world.is_main:
            url = redact(self._recipe.loss.teacher.weights)
            log(f"  teacher: {weights.config.name} from {url}, {numbers:,} parameters: {held} on every rank")
        engine: Any = self._recipe.engine
        return Teacher(model, dtype, images_format(engine, model, device), engine.attention)


def _fitting(path: Path, config: TeacherConfig, head: Classes, image_size: int) -> Weights:
    """The weights at a path, held to the recipe's classes and pixels.

    Raises:
        ConfigError, DataError: they do not fit; says how.
    """

    def rows(names: tuple[str, ...]) -> Sequence[int] | None:
        return rows_in(head, names, f"what {path} was trained on", _OTHER_CLASSES)

    model = config.model
    assert model is None or isinstance(model, ModelConfig)
    if is_checkpoint(path):
        found = checkpoint_weights(path)
        if model is not None and model != found.config:
            raise ConfigError(
                f"{path}: is of {found.config.name}, with settings of its own; leave loss.teacher.model out"
            )
        state, _ = with_rows(found.state, found.classes, rows)
        found = replace(found, state=state, num_classes=len(state["head.bias"]))
    else:
        options = LoadOptions(model, rows=rows, wording=WORDING)
        found = read_weights(path, options)
        if found.image_size != image_size and not _says_size(path, found):
            found = read_weights(path, replace(options, image_size=image_size))
    if found.num_classes != head.num_classes:
        raise ConfigError(
            f"{path}: a teacher of {found.num_classes:,} classes, and data.num_classes={head.num_classes}; "
            f"{_OTHER_CLASSES}"
        )
    if found.image_size != image_size:
        raise ConfigError(
            f"{path}: a teacher for images of {found.image_size} pixels, and data.image_size={image_size}; `vit-dist "
            f"models import {path} OUT --image-size {image_size}` makes one for those, or train on "
            f"data.image_size={found.image_size}"
        )
    return found


def _says_size(path: Path, found: Weights) -> bool:
    """Whether the weights are for images of one size: they have positions, or their file says so."""
    if any(name in found.state for name in _POSITIONS) or path.is_dir():
        return True
    if path.suffix != ".safetensors":
        return False
    with opened(path) as (_, metadata):
        return bool(metadata.get("image_size"))
