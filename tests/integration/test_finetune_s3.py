"""Weights and sets of a fine-tuning that lie in a store: what they are is known without a tensor or an image."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import trains_here
from vit_dist.cli.finetune import finetune_recipe
from vit_dist.cli.models import main as models
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import DataError
from vit_dist.core.files import write_bytes
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import committed
from vit_dist.core.world import World

pytestmark = pytest.mark.s3
SMALL = ["data.image_size=28"]


def upload(folder: Path, url: str) -> str:
    for path in folder.iterdir():
        write_bytes(f"{url}/{path.name}", path.read_bytes())
    return url


def test_weights_and_sets_of_a_store_are_found_as_those_of_a_disk(
    tmp_path: Path, small_set: str, small_val: str, s3: str
) -> None:
    from vit_dist.train.attempt import attempt

    pets = f"{s3}/pets"
    upload(Path(small_set).parent, f"{pets}/train")
    upload(Path(small_val).parent, f"{pets}/test")
    here = [str(tmp_path / name) for name in ("w.npz", "w.safetensors", "folder/")]
    for out in here:
        assert models(["export", "vit-test", out, "--num-classes", "10"]) == 0
    write_bytes(f"{s3}/w/w.npz", Path(here[0]).read_bytes())
    write_bytes(f"{s3}/w/w.npz.json", Path(f"{here[0]}.json").read_bytes())
    write_bytes(f"{s3}/w/w.safetensors", Path(here[1]).read_bytes())
    upload(Path(here[2]), f"{s3}/w/folder")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
global_batch: 20
horizon: 1 step
precision: fp32
model: {{name: vit-test, representation: true, head_bias: -10.0}}
data: {{num_classes: 4, train: {small_set}, image_size: 28, augment: none}}
optim: {{name: sgd, lr: 0.1}}
schedule: {{name: constant, warmup: 0 steps}}
engine: plain
guards: {{hang: 0s}}
evaluators: []
"""
    )
    with trains_here():
        attempt(load_recipe(str(recipe), [f"checkpoint.remote={s3}/run"]), tmp_path / "run", World())
    (step,) = committed(tmp_path / "run" / names.CHECKPOINTS)
    run = [str(tmp_path / "run"), str(step), f"{s3}/run", f"{s3}/run/{step.name}"]
    stored = [f"{s3}/w/w.npz", f"{s3}/w/w.safetensors", f"{s3}/w/folder"]
    for weights in [*run, *stored]:
        found = finetune_recipe("finetune", weights, pets, SMALL)
        model = found.model
        assert (model.width, model.patch_size, model.depth) == (32, 7, 2), weights  # type: ignore[attr-defined]
        assert (model.representation, model.head_bias) == (False, 0.0), weights  # type: ignore[attr-defined]
        assert found.init is not None
        assert found.init.weights == weights
        assert (found.data.train, found.data.val, found.data.num_classes) == (f"{pets}/train", f"{pets}/test", 4)
    with pytest.raises(DataError, match="nothing: no weights there"):
        finetune_recipe("finetune", f"{s3}/nothing", pets, SMALL)
    with pytest.raises(DataError, match=r"x\.safetensors: no such file"):
        finetune_recipe("finetune", f"{s3}/x.safetensors", pets, SMALL)
    with pytest.raises(DataError, match=r"DATA: .*nowhere"):
        finetune_recipe("finetune", stored[0], f"{s3}/nowhere", SMALL)
