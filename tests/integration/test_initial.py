"""Runs that begin from weights: whatever form and place these have, they are there bit for bit."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vit_dist.cli import models
from vit_dist.core.errors import DataError
from vit_dist.core.files import write_bytes
from vit_dist.models.weights.adapt import fit
from vit_dist.models.weights.files import read_weights
from vit_dist.train.checkpoint.weights import checkpoint_weights

pytestmark = pytest.mark.distributed

Command = Callable[..., subprocess.CompletedProcess[str]]
STILL = "optim.lr=1e-30"  # a step that changes no weight


@pytest.fixture
def recipe(tmp_path: Path, small_set: str) -> str:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
global_batch: 16
horizon: 3 steps
precision: bf16
model: vit-test
data: {{num_classes: 4, train: {small_set}, image_size: 28, augment: none}}
optim: {{name: adamw, lr: 1e-2}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {{name: deepspeed, zero_stage: 3}}
checkpoint: {{every: 1 step}}
log: {{every: 1 step}}
"""
    )
    return str(path)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Equal but for what such a step adds to a zero."""
    return a.keys() == b.keys() and all(torch.allclose(a[name], b[name], rtol=0, atol=1e-25) for name in a)


@pytest.mark.s3
def test_a_run_begins_from_another_ones_weights_on_s3_with_a_new_head_and_size(
    vit_dist: Command, recipe: str, tmp_path: Path, s3: str
) -> None:
    before, after = tmp_path / "before", tmp_path / "after"
    done = vit_dist("train", recipe, "--nproc", "2", "--run-dir", str(before), f"checkpoint.remote={s3}/before")
    assert done.returncode == 0, done.stderr
    tune = ("train", recipe, "--nproc", "2", "--run-dir", str(after), f"init.weights={s3}/before", "init.head=new")
    tune += ("data.num_classes=7", "data.image_size=56", "model.head_bias=-3", STILL)
    done = vit_dist(*tune)
    assert done.returncode == 0, done.stderr
    assert f"weights: from {s3}/before, trained for 48 examples before, with a new head" in done.stderr
    assert not list(after.glob(".initial*"))
    old, new = checkpoint_weights(before), checkpoint_weights(after)
    wanted = fit(old.state, new.config, num_classes=7, image_size=56, source="before", head="new")
    assert wanted["pos_embed"].shape != old.state["pos_embed"].shape
    assert same(new.state, wanted)

    # The copies' weights go out and in by their URLs, as a file and as a folder.
    for verb, source, out in (
        ("export", f"{s3}/before", f"{s3}/out/w.safetensors"),
        ("import", f"{s3}/out/w.safetensors", f"{s3}/out/folder/"),
        ("import", f"{s3}/out/folder/", str(tmp_path / "w.safetensors")),
    ):
        assert models.main([verb, source, out]) == 0
    again = read_weights(tmp_path / "w.safetensors").state
    assert all(torch.equal(again[name], old.state[name]) for name in old.state)
    with pytest.raises(DataError, match="nothing: no weights there"):
        models.main(["export", f"{s3}/nothing", str(tmp_path / "x.safetensors")])

    write_bytes(f"{s3}/out/torn.npz", b"PK\x03\x04 half")
    with pytest.raises(DataError, match=f"^{s3}/out/torn.npz: not a whole .npz"):
        models.main(["import", f"{s3}/out/torn.npz", str(tmp_path / "x.safetensors"), "--model", "vit-test"])

    shutil.rmtree(before)  # a run that has begun needs what it began from no more
    done = vit_dist(*tune, "horizon=3 steps", "checkpoint.keep=1", "init.weights=nowhere")
    assert done.returncode == 0, done.stderr
    assert "this run is done" in done.stderr


def test_the_form_of_the_weights_is_nothing_to_the_run_and_their_content_is(
    vit_dist: Command, recipe: str, tmp_path: Path
) -> None:
    for out, seed in (("w.npz", "7"), ("w.safetensors", "7"), ("other.npz", "8")):
        models.main(["export", "vit-test", str(tmp_path / out), "--seed", seed, "--num-classes", "4"])
    run = tmp_path / "run"
    train = ("train", recipe, "engine=plain", "--run-dir", str(run))
    done = vit_dist(*train, f"init.weights={tmp_path}/w.npz", STILL)
    assert done.returncode == 0, done.stderr
    assert same(checkpoint_weights(run).state, read_weights(tmp_path / "w.safetensors").state)

    assert checkpoint_weights(run).classes == ("hat", "tie", "cap", "bag")
    identity = json.loads((run / "run.json").read_text())["identity"]
    assert len(identity["initial_weights"]) == 32
    assert identity["init"] == {"head": "keep", "positions": "public"}, "a path is no part of what a run is"
    # Killed before its first checkpoint: it begins again, from the same weights in another form, and from no others.
    shutil.rmtree(run / "checkpoints")
    done = vit_dist(*train, f"init.weights={tmp_path}/other.npz", STILL)
    assert done.returncode == 2
    assert "other.npz are not the weights that this run began from before" in done.stderr
    done = vit_dist(*train, f"init.weights={tmp_path}/w.safetensors", STILL)
    assert done.returncode == 0, done.stderr
    done = vit_dist(*train, STILL)
    assert done.returncode == 2
    assert "holds another run: init: None here" in done.stderr


def test_weights_that_do_not_fit_are_refused_before_anything_is_trained(
    vit_dist: Command, recipe: str, tmp_path: Path
) -> None:
    models.main(["export", "bit-test", str(tmp_path / "bit.safetensors"), "--num-classes", "4"])
    write_bytes(str(tmp_path / "torn.npz"), b"PK\x03\x04 half")
    for weights, says in (
        ("bit.safetensors", "not the weights of vit-test"),
        ("torn.npz", "not a whole .npz"),
        ("none.npz", "none.npz: there is no such file or folder"),
    ):
        train = ("train", recipe, "--nproc", "2", "--run-dir", str(tmp_path / "run"))
        done = vit_dist(*train, f"init.weights={tmp_path}/{weights}")
        assert done.returncode != 0
        assert says in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("error:") == 1, done.stderr
        assert not (tmp_path / "run/run.json").exists()
