"""The weights of a checkpoint or of a run's newest one, put together from all ranks' files; no GPU, one copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from vit_dist.config.load import load_recipe, recipe_hash, recipe_yaml
from vit_dist.core.errors import CheckpointError
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import MARKER, committed, read_marker
from vit_dist.core.world import World
from vit_dist.engines._slices import BUFFER, WEIGHT
from vit_dist.models import ModelConfig
from vit_dist.models._base import seed_weights
from vit_dist.models.weights.described import config_of
from vit_dist.models.weights.files import Weights
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.store import verify_files

CLASSES = "classes"
"""The marker's entry with the names of the head's classes in the order of its outputs, '' where one has none."""


def is_checkpoint(path: Path) -> bool:
    """Whether a directory is a checkpoint or a run."""
    return path.is_dir() and ((path / MARKER).is_file() or (path / names.RUN).is_file())


def checkpoint_weights(path: Path) -> Weights:
    """The weights of a checkpoint, or of the newest intact one of a run.

    Args:
        path: .../checkpoints/step-0000001000, or the run's directory.

    Raises:
        CheckpointError: none is there, or none is intact.
    """
    state, marker = checkpoint_state(path)
    identity = marker["recipe"]
    facts = {"step": str(marker["state"]["step"]), "examples": str(marker["state"]["position"])}
    recipe_file = _candidates(path)[0] / names.RECIPE
    # Copies of checkpoints on object storage come without the run's recipe.yaml.
    if recipe_file.is_file():
        recipe = load_recipe(str(recipe_file))
        facts |= {"name": recipe.name, "recipe": recipe_yaml(recipe), "recipe_hash": recipe_hash(recipe)}
    config = config_of(identity["model"], f"{path}: {MARKER}")
    data, classes = identity["data"], tuple(map(str, marker.get(CLASSES, ())))
    return Weights(state, config, int(data["num_classes"]), int(data["image_size"]), facts, classes)


def checkpoint_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and buffers of a checkpoint, or of the newest intact one of a run, and its marker.

    Raises:
        CheckpointError: none is there, or none is intact.
    """
    chosen, marker = intact_checkpoint(path)
    source = SliceSource([chosen / name for name in sorted(marker["files"])])
    return {name: source.tensor(kind, name) for kind, name in source.names() if kind in (WEIGHT, BUFFER)}, marker


def intact_checkpoint(path: Path) -> tuple[Path, dict[str, Any]]:
    """A checkpoint, or the newest intact one of a run, and its marker.

    Raises:
        CheckpointError: none is there, or none is intact.
    """
    problems = []
    for candidate in _candidates(path)[1]:
        marker, problem = read_marker(candidate)
        problem = problem or verify_files(candidate, marker, World())
        if not problem:
            return candidate, marker
        problems.append(f"{candidate.name}: {problem}")
    raise CheckpointError(f"{path}: no intact checkpoint in it{': ' if problems else ''}{'; '.join(problems)}")


def _candidates(path: Path) -> tuple[Path, list[Path]]:
    if (path / MARKER).is_file():
        return path.parent.parent, [path]
    return path, committed(path / names.CHECKPOINTS)


def fresh_weights(config: ModelConfig, num_classes: int, image_size: int, seed: int) -> Weights:
    """The weights with which a run of this seed begins."""
    seed_weights(seed)
    model = config.build(num_classes=num_classes, image_size=image_size)
    return Weights(dict(model.state_dict()), config, num_classes, image_size, {"seed": str(seed)})
