"""`vit-dist models` as a user calls it: lists, weights of a real sharded run, and what goes wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vit_dist.config.load import load_recipe
from vit_dist.core.world import World
from vit_dist.data.decode import normalize
from vit_dist.data.manifest import read_manifest
from vit_dist.data.sets import Part
from vit_dist.data.subset import select
from vit_dist.models.weights.files import LoadOptions, read_weights
from vit_dist.train.checkpoint.probe import make_probe

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.distributed
def test_weights_of_a_zero_3_run_on_two_ranks_give_the_loss_that_its_checkpoint_recorded(
    small_set: str, tmp_path: Path, vit_dist: Run
) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"""
global_batch: 16
horizon: 6 steps
precision: fp32
model: {{name: vit-test, representation: true}}
data: {{num_classes: 4, image_size: 28, augment: none, train: {small_set}}}
optim: {{name: adamw, lr: 1e-2}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {{name: deepspeed, zero_stage: 3}}
"""
    )
    run_dir = tmp_path / "run"
    done = vit_dist("train", str(tmp_path / "recipe.yaml"), "--nproc", "2", "--run-dir", str(run_dir))
    assert done.returncode == 0, done.stderr
    refused = vit_dist("models", "export", str(run_dir), str(tmp_path / "w.timm.safetensors"))
    assert refused.returncode == 2
    assert "representation=true (timm drops every 'pre_logits' tensor in silence); write .safetensors" in refused.stderr
    for out in ("w.safetensors", "w.npz"):
        exported = vit_dist("models", "export", str(run_dir), str(tmp_path / out))
        assert exported.returncode == 0, exported.stderr
    ours = read_weights(tmp_path / "w.safetensors")
    assert (ours.facts["step"], ours.facts["examples"]) == ("6", "96")
    other = read_weights(tmp_path / "w.npz", LoadOptions(ours.config, image_size=28)).state
    assert all(torch.equal(ours.state[name], other[name]) for name in ours.state)

    checkpoint = run_dir / "checkpoints/step-0000000006"
    marker = json.loads((checkpoint / "COMMITTED.json").read_text())
    recipe = load_recipe(str(run_dir / "recipe.yaml"))
    manifest = read_manifest(small_set)
    probe = make_probe(recipe, Part(manifest, select(manifest, None)), World(), marker["probe"]["examples"])
    assert probe is not None
    model = ours.config.build(num_classes=4, image_size=28).eval()
    model.load_state_dict(ours.state)
    with torch.no_grad():
        loss = float(probe.loss(model(normalize(probe.images, torch.float32)), probe.targets))
    assert loss == pytest.approx(marker["probe"]["loss"], rel=1e-5)

    (checkpoint / "rank-00001.safetensors").write_bytes(b"torn")
    torn = vit_dist("models", "export", str(checkpoint), str(tmp_path / "x.npz"))
    assert torn.returncode == 1
    assert "rank-00001.safetensors has 4 bytes" in torn.stderr
    assert not (tmp_path / "x.npz").exists()


def test_fresh_weights_are_those_of_the_seed_and_pass_through_every_form(tmp_path: Path, vit_dist: Run) -> None:
    def step(*arguments: str) -> None:
        done = vit_dist("models", *arguments)
        assert done.returncode == 0, done.stderr

    small = ["patch_size=8", "--image-size", "32", "--num-classes", "5"]
    step("export", "vit-test", str(tmp_path / "a.npz"), *small, "--seed", "7")
    step("import", str(tmp_path / "a.npz"), str(tmp_path / "b.safetensors"), "--model", "vit-test", "patch_size=8")
    step("export", str(tmp_path / "b.safetensors"), f"{tmp_path}/hf/")
    step("import", f"{tmp_path}/hf/", str(tmp_path / "c.npz"))
    assert (tmp_path / "a.npz").read_bytes() != b""
    ours = read_weights(tmp_path / "b.safetensors")
    again = read_weights(tmp_path / "c.npz", LoadOptions(ours.config))
    assert all(torch.equal(ours.state[name], again.state[name]) for name in ours.state)
    step("export", "vit-test", str(tmp_path / "d.npz"), *small, "--seed", "8")
    other = read_weights(tmp_path / "d.npz", LoadOptions(ours.config))
    assert not torch.equal(ours.state["blocks.0.mlp.fc1.weight"], other.state["blocks.0.mlp.fc1.weight"])


def test_every_model_is_listed_with_its_cost_and_shown_with_its_settings(vit_dist: Run) -> None:
    listed = vit_dist("models", "list")
    assert listed.returncode == 0, listed.stderr
    rows = {line.split()[0]: line.split()[1:] for line in listed.stdout.splitlines()}
    assert rows["ViT-H/14"] == ["vit", "632,045,800", "167.30", "224"]
    assert rows["R50+ViT-L/16"][0] == "hybrid"
    assert "vit" not in rows
    shown = vit_dist("models", "show", "ViT-B/16", "pool=map", "--tensors")
    assert "pool: map" in shown.stdout
    assert "attn_pool.latent" in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "ViT-B/61"], "unknown model 'ViT-B/61'; did you mean 'ViT-B/16'"),
        (["show", "ViT-B/16", "pol=map"], "model ViT-B/16: pol"),
        (["list", "swin"], "no model has 'swin'"),
        (["lst"], "unknown verb 'lst'; did you mean 'list'"),
        (["export", "runs/none/x", "a.npz"], "runs/none/x: no such checkpoint, run or file"),
        (["import", "none.npz", "a.safetensors", "--model", "ViT-B/16"], "none.npz: no such file"),
    ],
)
def test_mistakes_are_answered_with_what_would_be_right(arguments: list[str], message: str, vit_dist: Run) -> None:
    done = vit_dist("models", *arguments)
    assert done.returncode in (1, 2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
