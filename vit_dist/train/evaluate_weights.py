"""Evaluate weights that no run of ours stands behind: of any form that is read, or a model's fresh ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vit_dist.config.load import resolve
from vit_dist.config.schema import Recipe, dump
from vit_dist.config.weights import recipe_of_weights
from vit_dist.core.errors import VitDistError
from vit_dist.core.files import redact, write_bytes
from vit_dist.core.log import log
from vit_dist.core.units import counted
from vit_dist.core.urls import url_name
from vit_dist.core.world import World
from vit_dist.data.classes import Classes, counted_as
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.engines._collectives import all_gather_object
from vit_dist.engines._numerics import check_precision, numerics
from vit_dist.engines._protocol import EngineInputs
from vit_dist.evals import EvalContext
from vit_dist.models import ModelConfig
from vit_dist.models.weights.adapt import Head
from vit_dist.models.weights.colours import recolour_inputs
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights
from vit_dist.models.weights.names import OPTIONS
from vit_dist.train.checkpoint.restore import on_main
from vit_dist.train.checkpoint.weights import fresh_weights
from vit_dist.train.checkpoint.weights_remote import downloaded
from vit_dist.train.losses import make_loss
from vit_dist.train.process_group import process_group

_OTHER_CLASSES = "give the weights the names of their classes by `vit-dist models import ... --classes FILE`"


@dataclass(frozen=True)
class Source:
    """Which weights are evaluated.

    Attributes:
        place: path or URL of a file or folder, or the name of a model, whose fresh weights are meant.
        config: the model; None: the weights say it.
        num_classes: None: those of the weights.
        image_size: None: that of the weights.
        head: see `adapt.fit`.
        seed: of fresh weights.
    """

    place: str
    config: ModelConfig | None
    num_classes: int | None = None
    image_size: int | None = None
    head: Head = "keep"
    seed: int = 0


def evaluate_source(
    source: Source, words: Sequence[str], world: World, *, out: Path | None = None, files: Path | None = None
) -> dict[str, float]:
    """Values of evaluators by metric, the same on every rank; rank 0 says them. A collective.

    Args:
        source: the weights.
        words: overrides: evaluators, sets, how data are read, precision.
        world: any number of ranks.
        out: a JSON file for the values, the evaluators and the sets.
        files: a folder for what evaluators write beside values; None: they do not.

    Raises:
        VitDistError: the weights cannot be read, or an evaluator or its sets cannot serve.
    """
    # What a rank alone cannot read is told by all of them, before the first collective of an evaluator.
    weights = error = None
    try:
        weights = _read(source)
    except VitDistError as problem:
        error = problem
    with process_group(world) as device:
        for rank, failure in enumerate(all_gather_object(error, world)):
            if failure is not None:
                raise type(failure)(f"rank {rank}: {failure}" if world.size > 1 else str(failure))
        assert weights is not None
        name = url_name(source.place.rstrip("/")) or source.place
        raw = recipe_of_weights(
            dump(weights.config), weights.num_classes, weights.image_size, name=name[:100], crop=weights.viewed.crop
        )
        raw["data"]["upright"] = weights.viewed.upright
        recipe = resolve({**raw, "global_batch": world.size}, words)
        with numerics(recipe):
            check_precision(recipe.precision, device)
            val = on_main(lambda: _checked(recipe, source, weights), world)
            context = EvalContext(_engine(recipe, weights, world, device), recipe, world, val, files)
            values: dict[str, float] = {}
            for evaluator in recipe.evaluators:
                on = evaluator.measures_on(recipe, val)  # type: ignore[attr-defined]
                beside = None if files is None or on is None else files / on.label
                values |= dict(evaluator.run(replace(context, outputs=beside)))  # type: ignore[attr-defined]
        if world.is_main and files is not None:
            for metric, pictures in context.pictures.items():
                for picture, png in pictures.items():
                    write_bytes(str(files / f"{metric}-{picture}.png".replace("/", "-")), png)
        if world.is_main:
            _tell(source, recipe, weights, val, values, out)
        return values


def _read(source: Source) -> Weights:
    if source.config is not None and not _is_place(source.place):
        return fresh_weights(source.config, source.num_classes or 1000, source.image_size or 224, source.seed)
    options = LoadOptions(source.config, source.num_classes, source.image_size, source.head, wording=OPTIONS)
    with downloaded(source.place) as path:
        return read_weights(path, options)


def _is_place(text: str) -> bool:
    return "://" in text or Path(text).exists()


def _checked(recipe: Recipe, source: Source, weights: Weights) -> ShardManifest | None:
    """The validation set with labels as the head counts them; None where none is named, or no evaluator scores it."""
    for evaluator in recipe.evaluators:
        evaluator.check_sets(recipe)  # type: ignore[attr-defined]
    if not recipe.data.val:
        return None
    val = read_manifest(recipe.data.val)
    if not any(getattr(evaluator, "scores_head", True) for evaluator in recipe.evaluators):
        return val
    head = Classes.listed(f"the head of {redact(source.place)}", weights.num_classes, weights.classes)
    return counted_as(val, head, "data.val: the set", _OTHER_CLASSES)


def _engine(recipe: Recipe, weights: Weights, world: World, device: Any) -> Any:
    config: Any = recipe.model
    model = config.build(num_classes=weights.num_classes, image_size=weights.image_size)
    model.load_state_dict(weights.state)
    recolour_inputs(model, weights.viewed)
    optimizer = recipe.optim.build(model)  # type: ignore[attr-defined]
    inputs = EngineInputs(model, optimizer, make_loss(recipe.loss), world, device, recipe.precision, None, 1, 1)
    return recipe.engine.build(inputs)  # type: ignore[attr-defined]


def _tell(
    source: Source,
    recipe: Recipe,
    weights: Weights,
    val: ShardManifest | None,
    values: dict[str, float],
    out: Path | None,
) -> None:
    shown = redact(source.place)
    log(f"  {shown}: {weights.config.name}, {weights.image_size} pixels, {counted(len(values), 'value')}")
    width = max((len(tag) for tag in values), default=0)
    for tag, value in values.items():
        log(f"  {tag:<{width}}  {value:.4f}")
    if out is None:
        return
    sets = [evaluator.measures_on(recipe, val) for evaluator in recipe.evaluators]  # type: ignore[attr-defined]
    payload = {
        "weights": shown,
        "model": dump(weights.config),
        "image_size": weights.image_size,
        "values": values,
        "evaluators": [dump(one) for one in recipe.evaluators],
        "sets": [one and one.model_dump(mode="json") for one in sets],
    }
    write_bytes(str(out), (json.dumps(payload, indent=1) + "\n").encode())
