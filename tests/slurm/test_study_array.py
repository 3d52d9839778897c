"""A study as arrays of Slurm jobs, with a node killed in the middle, gives the table that it gives without Slurm."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.slurm.cluster import wait_for
from tests.slurm.jobs import SLOW_S, Site, last_step, vit_dist
from vit_dist.core.run import history
from vit_dist.scaling.collect import collect

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]

STEPS = 60
RECIPE = f"""
global_batch: 24
horizon: {STEPS} steps
model: vit-test
data: {{num_classes: 4, train: "TRAIN", val: "VAL", image_size: 28, augment: inception}}
optim: {{name: adamw, lr: 3e-3}}
schedule: {{name: cosine, warmup: 2 steps}}
engine: {{name: deepspeed, zero_stage: 1, reduce_bucket: 1000000, allgather_bucket: 1000000}}
checkpoint: {{every: 10 steps, keep: 2}}
eval: {{every: 30 steps, batch: 50}}
log: {{every: 5 steps, order: true}}
"""
STUDY = """
name: grid
recipe: RECIPE
families:
  vit: {model: vit-test}
  bit: {model: bit-test}
subsets: [50, 150]
evaluations:
  - {name: fewshot, set: small, shots: [5], crop: 1.0}
"""

BRANCHED = """
name: horizons
recipe: RECIPE
models: [vit-test]
subsets: [all]
seeds: [0, 1]
overrides:
  horizon: 6 steps
  schedule: {name: constant, warmup: 1 step}
  checkpoint: {every: 4 steps, keep_every: 4 steps}
  engine: plain
  precision: fp32
branches:
  five: {at: 4 steps, set: {horizon: 5 steps, schedule.cooldown: 1 step}}
"""


def study_file(folder: Path, train: str, val: str, study: str = STUDY) -> Path:
    recipe = folder / "base.yaml"
    recipe.write_text(RECIPE.replace("TRAIN", train).replace("VAL", val))
    path = folder / "grid.yaml"
    path.write_text(study.replace("RECIPE", str(recipe)))
    return path


def table(directory: Path) -> dict[str, dict[str, float]]:
    """Accuracy and few-shot accuracy of each run, from the event files alone."""
    found: dict[str, dict[str, float]] = {}
    for metric in ("val/top1", "val/loss", "fewshot/small_5shot"):
        collection = collect(str(directory), metric=metric)
        assert not collection.excluded, collection.excluded
        for one in collection.observations:
            assert one.step == STEPS
            found.setdefault(one.run, {})[metric] = one.value
    return found


def states(study: Path, runs: Path) -> dict[str, str]:
    done = vit_dist("study", "status", str(study), "--runs", str(runs), "--json", "-")
    assert done.returncode == 0, done.stderr
    return {record["run"]: record["state"] for record in json.loads(done.stdout)}


@pytest.mark.drill
@pytest.mark.timeout(2400)
def test_a_study_with_a_node_killed_in_the_middle_gives_the_same_table(
    slurm, tmp_path: Path, small_set: str, small_val: str
) -> None:
    study = study_file(tmp_path, small_set, small_val)
    done = vit_dist("study", "run", str(study), "--runs", str(tmp_path / "here"), "--jobs", "2", timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = table(tmp_path / "here" / "grid")
    assert len(expected) == 4
    assert len({tuple(values.values()) for values in expected.values()}) == 4

    site = Site(slurm, tmp_path, small_set, tmp_path)
    pace = tmp_path / "pace"
    pace.write_text(str(4 * SLOW_S))
    submit = ["study", "submit", str(study), "--cluster", str(site.cluster_file()), "--max-parallel", "3"]
    done = vit_dist(*submit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 runs to train" in done.stdout

    runs = tmp_path / "runs"
    victim = runs / "grid" / "bit-50-s0"
    wait_for("a run is in its middle", lambda: last_step(victim, 1) >= 12, 600, lambda: str(states(study, runs)))
    job = history.read(victim).job_id
    node = slurm.run("squeue", "-h", "-j", job, "-o", "%N").stdout.strip()
    slurm.kill(node)
    # What is in the queue or runs is not submitted again.
    done = vit_dist(*submit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 runs to train" in done.stdout
    pace.unlink()

    def over() -> bool:
        return not slurm.run("squeue", "-h").stdout.strip()

    wait_for("all jobs have ended", over, 1200, lambda: slurm.run("squeue").stdout + str(states(study, runs)))
    assert set(states(study, runs).values()) == {"done"}
    assert last_step(victim, 2) == STEPS, "the run whose node died was not in the middle of it"
    assert table(runs / "grid") == expected

    slurm.revive(node)
    done = vit_dist(*submit)
    assert "0 runs to train, 0 done runs to evaluate, 4 done" in done.stdout, done.stdout + done.stderr


@pytest.mark.timeout(400)
def test_branches_are_an_array_behind_that_of_their_trunks(
    slurm, tmp_path: Path, small_set: str, small_val: str
) -> None:
    study = study_file(tmp_path, small_set, small_val, BRANCHED)
    site, runs = Site(slurm, tmp_path, small_set, tmp_path), tmp_path / "runs"
    submit = ["study", "submit", str(study), "--cluster", str(site.cluster_file())]
    done = vit_dist(*submit)
    assert done.returncode == 0, done.stdout + done.stderr
    waiting = slurm.run("squeue", "-h", "-r", "-t", "PD", "-o", "%E").stdout.split()
    assert sum("aftercorr" in why for why in waiting) == 2, waiting

    def over() -> bool:
        return not slurm.run("squeue", "-h").stdout.strip()

    wait_for("all jobs have ended", over, 300, lambda: slurm.run("squeue").stdout + str(states(study, runs)))
    assert states(study, runs) == dict.fromkeys(
        ["vit-test-all-s0", "vit-test-all-s0-five", "vit-test-all-s1", "vit-test-all-s1-five"], "done"
    )
    found = {(o.run, o.trunk, o.step) for o in collect(str(runs / "horizons")).observations}
    assert found == {
        (f"vit-test-all-{seed}{branch}", branch and f"vit-test-all-{seed}@4", step)
        for seed in ("s0", "s1")
        for branch, step in (("", 6), ("-five", 5))
    }
    done = vit_dist(*submit)
    assert "0 runs to train" in done.stdout, done.stdout + done.stderr
