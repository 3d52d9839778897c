"""Every shipped recipe trains: its small twin, the same keys with a small model on a small set, for two steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import trains_here
from vit_dist.config.load import load_recipe
from vit_dist.config.schema import Recipe, dump_identity
from vit_dist.core.events.reader import read_run
from vit_dist.core.registry import MODELS
from vit_dist.core.world import World
from vit_dist.study.shipped import shipped_paths
from vit_dist.train.attempt import attempt

SHRUNK = {"vit": "vit-test", "hybrid": "hybrid-test", "bit": "bit-test"}
"""Family -> the model whose shape its twins have."""
SITE = (
    "global_batch=8", "horizon=2 steps", "precision=fp32", "engine=plain", "evaluators=[]", "guards.hang=0s",
    "data.dataset=custom", "data.num_classes=4", "data.image_size=28", "data.decode_threads=1", "data.read_threads=1",
    "checkpoint.every=2 steps", "checkpoint.probe=0", "eval.every=0 steps", "log.every=1 step", "data.val=''",
)  # fmt: skip


def twin(name: str, train: str) -> Recipe:
    """The recipe with a small model and a small set; all else is its own, but for lengths, which are of 2 steps."""
    whole: Any = load_recipe(name)
    shape = MODELS.lookup(SHRUNK[whole.model.family])[1]
    changes = [*SITE, f"data.train={train}", "schedule.warmup=1 step"]
    changes += [f"model.{key}={json.dumps(value)}" for key, value in shape.items() if key != "name"]
    if whole.schedule.name == "step":
        changes += ["schedule.drops=[1 steps]"]
    if whole.data.augment.resize is not None:
        changes += ["data.augment={crop: random, resize: 32}"]
    return load_recipe(name, changes)


def kind(recipe: Recipe) -> str:
    """What twins have in common that train by the same code: everything but numbers of the optimizer and names."""
    plain = dump_identity(recipe)
    plain["model"].pop("name")
    for key in ("lr", "weight_decay"):
        plain["optim"].pop(key)
    return json.dumps(plain, sort_keys=True)


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with trains_here():
        yield


def test_a_small_twin_of_every_shipped_recipe_trains(tmp_path: Path, small_set: str) -> None:
    kinds: dict[str, Recipe] = {}
    for name in shipped_paths():
        recipe = twin(name, small_set)
        kinds.setdefault(kind(recipe), recipe)
    assert len(kinds) >= 15
    for number, recipe in enumerate(kinds.values()):
        run = tmp_path / str(number)
        attempt(recipe, run, World())
        scalars = read_run(str(run / "tb")).scalars
        assert scalars["train/loss"].steps.tolist() == [1, 2], recipe.name
        assert all(0 < value < 1e6 for value in scalars["train/loss"].values.tolist()), recipe.name
