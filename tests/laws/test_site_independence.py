"""Law 7: the science does not know the site: one identity on every cluster; nodes and micro-batches are derived."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.slurm.cluster import load_cluster
from launcher.submit.run import SubmitRequest, check
from tests.laws.test_resume import finish, recipe_file, start
from vit_dist.config.load import identity, load_recipe, recipe_hash
from vit_dist.core.events.reader import read_run
from vit_dist.core.run.log import run_info
from vit_dist.core.world import World
from vit_dist.data.sets import open_training_set
from vit_dist.train.plan import make_plan

CLUSTERS = sorted(path.stem for path in Path("configs/clusters").glob("*.yaml"))
RECIPES = sorted(path.stem for path in Path("configs/recipes").glob("*.yaml"))
SITE = (
    "data.train=s3://elsewhere/train", "data.decode_threads=7", "data.read_threads=3", "engine.max_micro_batch=8",
    "engine.name=deepspeed", "engine.zero_stage=3", "engine.activation_checkpointing=full", "engine.channels_last=true",
    "checkpoint.every=1k steps", "checkpoint.remote=s3://elsewhere/run", "log.every=7 steps", "eval.every=10k steps",
)  # fmt: skip
"""What a site may decide: where data lies, threads, engine, and how often something is written."""
WHOLE = tuple("engine.name=fsdp" if key == "engine.name=deepspeed" else key for key in SITE if "zero_stage" not in key)
"""The same for optimizers that need whole tensors, which ZeRO does not have."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_run_has_one_identity_on_every_cluster_and_number_of_nodes(name: str) -> None:
    recipe = load_recipe(name)
    names = set()
    for cluster in CLUSTERS:
        for nodes, overrides in ((1, ()), (2, WHOLE if recipe.optim.name == "lamb" else SITE)):
            there = SubmitRequest(load_recipe(name, overrides), load_cluster(cluster), nodes)
            check(there)
            names.add(there.directory.name)
            assert identity(there.recipe) == identity(recipe)
    assert names == {f"{recipe.name}-{recipe_hash(recipe)[:8]}"}


@given(st.integers(1, 12), st.integers(1, 8), st.none() | st.integers(1, 64), st.integers(1, 9))
def test_micro_batch_and_accumulation_are_derived_and_steps_are_not_the_sites(
    small_set: str, ranks: int, nodes: int, limit: int | None, factor: int
) -> None:
    world = World(size=ranks * nodes)
    batch = world.size * factor
    changes = [f"data.train={small_set}", "data.num_classes=4", "data.subset=null", f"global_batch={batch}"]
    changes += ["horizon=7 epochs", "schedule.warmup=1 epoch"]
    here = load_recipe("demo", changes)
    there = load_recipe("demo", [*changes, f"engine.max_micro_batch={limit or 'null'}"])
    data = open_training_set(here)
    alone, plan = make_plan(here, data, World()), make_plan(there, data, world)
    assert (plan.total_steps, plan.warmup_steps) == (alone.total_steps, alone.warmup_steps)
    assert plan.micro_batch * plan.accumulation * world.size == batch
    assert plan.micro_batch <= (limit or batch)


@pytest.mark.distributed
def test_one_run_trained_on_two_sites_has_one_identity_and_one_order(
    tmp_path: Path, small_set: str, small_val: str
) -> None:
    elsewhere = shutil.copytree(Path(small_set).parent, tmp_path / "elsewhere") / Path(small_set).name
    places = [small_set, str(elsewhere)]
    sites: list[tuple[int, list[str]]] = [
        (1, ["engine.name=plain", "data.decode_threads=1", "checkpoint.every=3 steps", "log.every=1 step"]),
        (2, ["engine.zero_stage=2", "engine.max_micro_batch=2", "checkpoint.every=7 steps", "log.every=5 steps"]),
    ]
    identities: list[Any] = []
    orders = []
    for place, (nproc, overrides) in zip(places, sites, strict=True):
        run = tmp_path / f"run-{nproc}"
        recipe = recipe_file(tmp_path, place, small_val)
        finish(start(recipe, run, *overrides, "log.order=true", "model.dropout=0.0", nproc=nproc))
        info = run_info(read_run(str(run / "tb")))
        assert info is not None
        assert (info.world_size, info.planned_steps, info.global_batch) == (nproc, 10, 16)
        claimed = json.loads((run / "run.json").read_text())
        identities.append((claimed["identity"], claimed["recipe_hash"], info.recipe_hash, info.dataset_fingerprint))
        orders.append(order(run, nproc))
    assert identities[0] == identities[1]
    assert orders[0] == orders[1]
    assert len(orders[0]) == 10 * 16


def order(run: Path, nproc: int) -> list[int]:
    """Ordinals of all examples in the order of their positions, put together from the files of all ranks."""
    by_rank = []
    for rank in range(nproc):
        lines = (run / "order" / f"attempt-00001-rank-{rank:05d}.jsonl").read_text().splitlines()
        by_rank.append([ordinal for line in lines for ordinal in json.loads(line)["ordinals"]])
    return [ordinal for group in zip(*by_rank, strict=True) for ordinal in group]
