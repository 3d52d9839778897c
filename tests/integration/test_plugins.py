"""Plug-ins from outside the package, as docs/plugins.md shows them: that page's own text is what runs here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import command, free_ports
from tests.places import ROOT
from tests.shards import image_bytes
from tests.slurm.cluster import wait_for
from vit_dist.core.events.reader import read_run
from vit_dist.data.manifest import read_manifest

Command = Callable[..., subprocess.CompletedProcess[str]]


def shown(language: str) -> str:
    """The only block of docs/plugins.md in a language."""
    (block,) = re.findall(rf"^```{language}\n(.*?)^```", (ROOT / "docs/plugins.md").read_text(), re.M | re.S)
    return str(block)


def photos(folder: Path) -> Path:
    folder.mkdir()
    for i in range(80):
        name = ("ant", "bee", "cat", "dog")[i % 4]
        (folder / f"{name}_{i:04d}.png").write_bytes(image_bytes(i, i % 4))
    return folder


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    """A folder with the page's plug-in and recipe, and images."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "my_plugin.py").write_text(shown("python"))
    (folder / "recipe.yaml").write_text(shown("yaml").replace("shards/", f"{folder}/shards/"))
    photos(folder / "photos")
    return folder


def ok(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert done.returncode == 0, done.stderr
    return done


def installed(folder: Path, module: str, code: str, *, name: str = "my-package") -> dict[str, str]:
    """An installed package with an entry point; the environment in which it is there."""
    (folder / f"{name.replace('-', '_')}-1.2.dist-info").mkdir(parents=True)
    about = folder / f"{name.replace('-', '_')}-1.2.dist-info"
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[vit_dist.plugins]\nmixer = {module}\n")
    (folder / f"{module}.py").write_text(code)
    return {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_one_file_brings_a_source_a_model_an_optimizer_and_an_evaluator(
    vit_dist: Command, mine: Path, tmp_path: Path
) -> None:
    plugin, run = mine / "my_plugin.py", tmp_path / "run"
    pack = ("data", "pack", str(mine / "photos"), str(mine / "shards"), "--val", "20%", "--seed", "3")
    assert "no class directories" in vit_dist(*pack).stderr
    assert "64 examples of 4 classes" in ok(vit_dist(*pack, "--plugin", str(plugin))).stdout

    train = ("train", str(mine / "recipe.yaml"), "--nproc", "2", "--run-dir", str(run))
    ok(vit_dist(*train))
    logged = read_run(str(run / "tb")).scalars
    assert {"train/loss", "val/top1", "val/worst_class"} <= set(logged)
    identity = json.loads((run / "run.json").read_text())["identity"]
    assert set(identity["plugins"]) == {"model", "optim"}  # its evaluator would not count
    weights = checkpoint_bytes(run, 4)

    # Edited code is other code, and says so; the run keeps what it began with, wherever the file has gone.
    code = plugin.read_text()
    plugin.write_text(code.replace("0.9, ge", "0.8, ge"))
    refused = vit_dist(*train)
    (copy,) = (run / "plugins").iterdir()
    assert refused.returncode == 2
    assert f"the plug-in {plugin}, which defines model 'mixer-demo', has changed since this run began" in refused.stderr
    assert str(copy) in refused.stderr
    assert "Traceback" not in refused.stderr
    assert copy.read_text() == code
    plugin.unlink()

    # As it was, it goes on from the third step, to the same weights.
    shutil.rmtree(run / "checkpoints" / "step-0000000004")
    assert "resumed from step 3" in ok(vit_dist(*train, f"plugins=[{copy}]")).stderr
    assert checkpoint_bytes(run, 4) == weights
    out = tmp_path / "out.json"
    ok(vit_dist("evaluate", str(run), "--nproc", "2", "evaluators=[worst-class]", "--out", str(out)))
    assert json.loads(out.read_text())["values"] == {
        "val/worst_class": pytest.approx(float(logged["val/worst_class"].values[-1]))
    }
    ok(vit_dist("models", "export", str(run), str(tmp_path / "w.safetensors")))


def checkpoint_bytes(run: Path, step: int) -> dict[str, bytes]:
    folder = run / "checkpoints" / f"step-{step:010d}"
    return {p.name: p.read_bytes() for p in folder.glob("*.safetensors")}


@pytest.mark.distributed
def test_an_evaluator_of_another_file_looks_at_a_run_that_was_trained_without_it(
    vit_dist: Command, mine: Path, tmp_path: Path, small_set: str
) -> None:
    recipe, run = tmp_path / "plain.yaml", tmp_path / "run"
    text = (mine / "recipe.yaml").read_text().replace("plugins: [my_plugin.py]\n", "").replace("worst-class", "")
    recipe.write_text(text.replace("mixer-demo", "vit-test").replace("signum", "adamw"))
    sets = (f"data.train={small_set}", f"data.val={small_set}", "horizon=1 step", "engine={name: plain}")
    ok(vit_dist("train", str(recipe), *sets, "--run-dir", str(run)))
    assert not (run / "plugins").exists()
    assert "plugins" not in (run / "recipe.yaml").read_text() + (run / "run.json").read_text()
    out = tmp_path / "out.json"
    ok(
        vit_dist(
            "evaluate", str(run), f"plugins={mine / 'my_plugin.py'}", "evaluators=[worst-class]", "--out", str(out)
        )
    )
    assert 0 <= json.loads(out.read_text())["values"]["val/worst_class"] <= 1


@pytest.mark.distributed
def test_an_installed_package_is_there_in_every_verb_without_being_named(
    vit_dist: Command, mine: Path, tmp_path: Path
) -> None:
    there = installed(tmp_path / "site", "my_package", shown("python"))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text((mine / "recipe.yaml").read_text().replace("plugins: [my_plugin.py]\n", ""))
    assert "unknown model 'mixer-demo'" in vit_dist("config", str(recipe)).stderr
    assert "name: mixer-demo" in ok(vit_dist("config", str(recipe), **there)).stdout
    assert "mixer-demo" in ok(vit_dist("models", "list", "mixer", **there)).stdout
    told = ok(vit_dist("list", "plugins", **there)).stdout
    assert "mixer  my-package 1.2, my_package: model mixer-demo, optimizer signum, evaluator worst-class" in told
    ok(vit_dist("data", "pack", str(mine / "photos"), str(mine / "shards"), "--val", "20%", **there))
    run = ("--nproc", "2", "--run-dir", str(tmp_path / "run"))
    ok(vit_dist("train", str(recipe), "horizon=1 step", *run, **there))
    assert "plugins" not in json.loads((tmp_path / "run" / "run.json").read_text())["identity"]


def test_an_installed_package_that_cannot_be_imported_harms_nothing_else(vit_dist: Command, tmp_path: Path) -> None:
    there = installed(tmp_path / "site", "my_package", "import no_such_module\n")
    assert ok(vit_dist("config", "demo", **there)).stdout == ok(vit_dist("config", "demo")).stdout
    says = (
        "plug-in 'mixer' of my-package 1.2 (my_package) could not be imported: "
        "ModuleNotFoundError: No module named 'no_such_module'"
    )
    listed = ok(vit_dist("models", "list", "vit-demo", **there))
    assert "vit-demo" in listed.stdout
    assert f"warning: {says}" in listed.stderr
    refused = vit_dist("config", "demo", "model=mixer-demo", **there)
    assert refused.returncode == 2
    assert "unknown model 'mixer-demo'" in refused.stderr
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    taken = installed(
        tmp_path / "other",
        "takes_a_name",
        "from vit_dist.core.registry import MODELS\n"
        "from vit_dist.models.bit import BiTConfig\n"
        "MODELS.register('half-way', blocks=[1])(BiTConfig)\n"
        "MODELS.register('R50x1', blocks=[1])(BiTConfig)\n",  # the very class, but not what the name stands for
    )
    told = ok(vit_dist("list", "plugins", **taken)).stdout
    assert "two models are called 'R50x1': one in vit_dist.models.bit, one in plug-in 'mixer' of my-package" in told
    same = vit_dist("config", "demo", f"plugins=[{tmp_path / 'other' / 'takes_a_name.py'}]")
    assert same.returncode == 2
    assert "two models are called 'R50x1': one in vit_dist.models.bit, one in /" in same.stderr
    assert "unknown model 'half-way'" in vit_dist("models", "show", "half-way", **taken).stderr


@pytest.mark.distributed
def test_ranks_that_have_read_different_code_do_not_train(mine: Path, tmp_path: Path, small_set: str) -> None:
    other = tmp_path / "other"
    shutil.copytree(mine, other)
    (other / "my_plugin.py").write_text(shown("python") + "# edited while the job started\n")
    (port,) = free_ports(1)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    sets = (f"data.train={small_set}", f"data.val={small_set}")
    ranks = [
        subprocess.Popen(
            command("train", str(folder / "recipe.yaml"), *sets, "--run-dir", str(tmp_path / "run")),
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, folder in enumerate((mine, other))
    ]
    try:
        said = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert all(rank.returncode for rank in ranks)
    assert f"plugins: rank 1 has read another version of {mine / 'my_plugin.py'} than rank 0" in said[0]
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.slurm
def test_a_packing_on_slurm_has_plug_ins_of_its_own(slurm: Any, vit_dist: Command, mine: Path, tmp_path: Path) -> None:
    plugin, root = mine / "my_plugin.py", tmp_path / "runs"
    words = ("data", "pack", str(mine / "photos"), str(mine / "shards"), "--cluster", "dev", "--parts", "2")
    words += ("--samples-per-shard", "40", "--run-root", str(root))
    refused = vit_dist(*words, "--plugin", str(mine / "missing.py"))
    assert refused.returncode == 2
    assert f"error: --plugin: {mine / 'missing.py'}: no such file" in refused.stderr
    shown_script = ok(vit_dist(*words, "--plugin", str(plugin), "--dry-run")).stdout.split()
    assert shown_script[shown_script.index("--plugin") + 1] == str(plugin)
    assert shown_script.count("--plugin") == 1
    assert not root.exists()
    ok(vit_dist(*words, "--plugin", str(plugin)))
    plugin.write_text("raise SystemExit\n")  # does not reach the jobs
    manifest = mine / "shards" / "manifest.json"
    wait_for("the merge", manifest.exists, 200, lambda: "\n".join(p.read_text() for p in root.rglob("*.log")))
    assert read_manifest(str(manifest)).classes == ("ant", "bee", "cat", "dog")
