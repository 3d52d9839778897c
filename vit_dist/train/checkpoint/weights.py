"""The weights of a checkpoint or of a run's newest one, put together from all ranks' files; no GPU, one copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vit_dist.config.load import load_recipe, recipe_hash, recipe_yaml
from vit_dist.core.errors import CheckpointError, ConfigError, DataError
from vit_dist.core.log import WARNING, log
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import MARKER, committed, read_marker
from vit_dist.core.small_files import DamagedError, is_count, is_mapping, required
from vit_dist.core.world import World
from vit_dist.engines._average import counted_steps
from vit_dist.engines._fit import Wanted, tensors_of
from vit_dist.engines._slices import AVERAGE, BUFFER, WEIGHT
from vit_dist.models import ModelConfig
from vit_dist.models._base import seed_weights
from vit_dist.models.weights.described import check_image_size, config_of
from vit_dist.models.weights.files import Weights
from vit_dist.models.weights.viewed import viewed_by
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.store import saved_of, verify_files

CLASSES = "classes"
"""The marker's entry with the names of the head's classes in the order of its outputs, '' where one has none."""


def checkpoint_weights(path: Path, *, average: bool = False) -> Weights:
    """The weights of a checkpoint, or of the newest intact one of a run.

    Args:
        path: .../checkpoints/step-0000001000, or the run's directory.
        average: the average that it keeps in their place.

    Raises:
        CheckpointError: none is there, or none is intact, or it keeps no average.
        ConfigError: they are of a model that is not known here.
    """
    foreign: list[tuple[Path, ConfigError]] = []
    problems: list[str] = []
    for chosen, marker, source in _intact(path, problems):
        # First: the run's recipe brings the plug-in file that its model may be of.
        facts = _facts(path, marker)
        try:
            config, num_classes, image_size = _model_of(marker, source, f"{path}: {MARKER}")
        except ConfigError as error:
            # Of a plug-in that was not named, maybe: then it is the same for all of them, and no damage.
            foreign.append((chosen, error))
            continue
        except CheckpointError as error:
            _skip(path, chosen, str(error), problems)
            continue
        viewed = viewed_by(marker["recipe"], image_size)
        for other, unknown in foreign:
            _skip(path, other, str(unknown), problems)
        facts |= {"average_steps": str(counted_steps(source))} if average else {}
        state = _state(source, chosen, average)
        return Weights(state, config, num_classes, image_size, facts, _classes(marker), viewed)
    raise foreign[0][1] if foreign else _none_intact(path, problems)


def checkpoint_state(path: Path, *, average: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The weights and buffers of a checkpoint, or of the newest intact one of a run, and its marker.

    Args:
        path: of either.
        average: the average that it keeps, in place of the weights.

    Raises:
        CheckpointError: none is there, or none is intact, or it keeps no average.
    """
    problems: list[str] = []
    for chosen, marker, source in _intact(path, problems):
        return _state(source, chosen, average), marker
    raise _none_intact(path, problems)


def intact_checkpoint(path: Path) -> Path:
    """A checkpoint, or the newest intact one of a run.

    Raises:
        CheckpointError: none is there, or none is intact.
    """
    problems: list[str] = []
    for chosen, _, _ in _intact(path, problems):
        return chosen
    raise _none_intact(path, problems)


def _intact(path: Path, problems: list[str]) -> Iterator[tuple[Path, dict[str, Any], SliceSource]]:
    """Those of a run's checkpoints that are whole, the newest first; of the others why not, in words and in a list."""
    for candidate in _candidates(path)[1]:
        marker, problem = read_marker(candidate)
        if not problem and saved_of(marker) is None:
            problem = f"{MARKER} is damaged: state has no step and position"
        problem = problem or verify_files(candidate, marker, World())
        if not problem:
            try:
                source = SliceSource([candidate / name for name in sorted(marker["files"])])
            except CheckpointError as error:
                problem = str(error)
            else:
                yield candidate, marker, source
                continue
        _skip(path, candidate, problem, problems)


def _skip(path: Path, candidate: Path, problem: str, problems: list[str]) -> None:
    # Of one that was named, and not chosen out of a run's, the error says all.
    if path != candidate:
        log(f"checkpoint {candidate} is damaged and skipped: {problem}", WARNING)
    problems.append(f"{candidate.name}: {problem}")


def _none_intact(path: Path, problems: Sequence[str]) -> CheckpointError:
    return CheckpointError(f"{path}: no intact checkpoint in it{': ' if problems else ''}{'; '.join(problems)}")


def _state(source: SliceSource, path: Path, average: bool) -> dict[str, Tensor]:
    if average and (steps := counted_steps(source)) <= 0:
        why = "it is of a run without `ema`" if steps < 0 else "none of its steps counts yet (ema.start)"
        raise CheckpointError(f"{path}: there is no average of weights in it: {why}; take its weights themselves")
    # Weights that are not trained have no average: they are what they were.
    return {
        name: source.tensor(AVERAGE if average and source.holds(AVERAGE, name) and kind == WEIGHT else kind, name)
        for kind, name in source.names()
        if kind in (WEIGHT, BUFFER)
    }


def _model_of(marker: dict[str, Any], source: SliceSource, where: str) -> tuple[ModelConfig, int, int]:
    """The model that the marker's recipe tells, with its classes and pixels, if the checkpoint holds its tensors.

    Raises:
        CheckpointError: the recipe does not say a model, or the tensors are not its own.
        ConfigError: of a model that this version does not know, or beyond a limit.
    """
    data = marker["recipe"].get("data")
    try:
        num_classes = required(data, "num_classes", lambda v: is_count(v) and v > 0, "a whole number from 1")
        image_size = required(data, "image_size", lambda v: is_count(v) and v > 0, "a whole number from 1")
        model = required(marker["recipe"], "model", is_mapping, "the settings of a model")
    except DamagedError as error:
        raise CheckpointError(f"{where}: recipe: {error}") from None
    config = config_of(model, where)
    held = {key: one for key, one in source.held.items() if key[0] in (WEIGHT, BUFFER)}
    # A head of as many rows as were forged would be built before it is missed.
    most = max((max(one.shape, default=0) for one in held.values()), default=0)
    if num_classes > most:
        raise CheckpointError(f"{where}: recipe: num_classes is {num_classes:,}, no tensor of it has so many rows")
    try:
        with torch.device("meta"):
            module = config.build(num_classes=num_classes, image_size=check_image_size(image_size, where))
    except (DataError, ConfigError, RuntimeError, OverflowError) as error:
        raise CheckpointError(f"{where}: recipe: no such model can be built: {str(error).splitlines()[0]}") from None
    problem = Wanted(tensors_of(module), frozenset(), None, whole=True).misfit(held, {})
    if problem:
        raise CheckpointError(f"{where}: not the weights of {config.name}: {problem}")
    return config, num_classes, image_size


def _facts(path: Path, marker: dict[str, Any]) -> dict[str, str]:
    facts = {"step": str(marker["state"]["step"]), "examples": str(marker["state"]["position"])}
    recipe_file = _candidates(path)[0] / names.RECIPE
    # Copies of checkpoints on object storage come without the run's recipe.yaml.
    if recipe_file.is_file():
        recipe = load_recipe(str(recipe_file))
        facts |= {"name": recipe.name, "recipe": recipe_yaml(recipe), "recipe_hash": recipe_hash(recipe)}
    return facts


def _classes(marker: dict[str, Any]) -> tuple[str, ...]:
    return tuple(map(str, marker.get(CLASSES, ())))


def _candidates(path: Path) -> tuple[Path, list[Path]]:
    if (path / MARKER).is_file():
        return path.parent.parent, [path]
    return path, committed(path / names.CHECKPOINTS)


def fresh_weights(config: ModelConfig, num_classes: int, image_size: int, seed: int) -> Weights:
    """The weights with which a run of this seed begins."""
    seed_weights(seed)
    model = config.build(num_classes=num_classes, image_size=image_size)
    return Weights(dict(model.state_dict()), config, num_classes, image_size, {"seed": str(seed)})
