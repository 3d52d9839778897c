"""The supervisor on a real Slurm, with ranks that train nothing and so start at once."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.slurm import commands
from launcher.slurm.cluster import load_cluster
from launcher.slurm.render import Site, render_array, render_train
from tests.places import ROOT
from tests.slurm.cluster import wait_for
from vit_dist.core.run import history
from vit_dist.core.run.history import Attempt

pytestmark = pytest.mark.slurm

RANK = Path(__file__).parent / "fake_rank.py"


def prepare(run_dir: Path, **plan: Any) -> Path:
    (run_dir / "logs").mkdir(parents=True)
    settings = {"steps": 30, "pace_s": 0.05, "save_every": 10, **plan}
    (run_dir / "plan.json").write_text(json.dumps(settings))
    return run_dir


def site(tmp_path: Path, *overrides: str) -> Site:
    cluster = load_cluster("dev", ["cpus_per_node=1", *overrides])
    return Site(cluster, tmp_path, ROOT, sys.executable, tmp_path)


def submit(script: str, tmp_path: Path) -> str:
    path = tmp_path / "job.sbatch"
    path.write_text(script.replace("-P -m vit_dist.cli.main train", f"-P {RANK}"))
    return commands.sbatch(path).job


def submit_run(tmp_path: Path, run_dir: Path, *overrides: str, spares: int = 0) -> str:
    script = render_train(
        site(tmp_path, *overrides), job_name="t", run_dir=run_dir, recipe=["r"], nodes=2, spares=spares
    )
    return submit(script, tmp_path)


def ended(job: str, run_dir: Path, timeout: float = 120) -> tuple[Attempt, ...]:
    def over() -> bool:
        shown = commands.job(job)
        return shown is not None and shown.ended

    log = run_dir / "logs" / "batch.log"
    wait_for(f"job {job} ends", over, timeout, lambda: log.read_text() if log.exists() else f"{log} is missing")
    return history.read(run_dir).attempts


def step_of(run_dir: Path) -> int:
    status = history.read(run_dir).status
    return 0 if status is None else status.step


def test_a_rank_that_dies_is_started_again_on_the_same_nodes(slurm: Any, tmp_path: Path) -> None:
    run_dir = prepare(tmp_path / "odd 'name', $(x)", die={"1": [15, -9, 1]})
    job = submit_run(tmp_path, run_dir)
    first, second = ended(job, run_dir)
    assert (first.cause, first.action, first.nodes) == ("rank_lost", "respawn", ("n1", "n2"))
    assert first.gained >= 10
    assert first.detail == "rank 1 on n2: killed"
    assert (second.cause, second.action, second.saved, second.devices) == ("done", "none", 30, 2)
    shown = commands.job(job)
    assert shown is not None
    assert (shown.state, shown.exit_code) == ("COMPLETED", 0)
    assert second.begun - first.begun < 30
    assert (run_dir / "logs" / "attempt-0002" / "rank-1.log").exists()


def test_a_run_that_gets_nowhere_is_given_up(slurm: Any, tmp_path: Path) -> None:
    run_dir = prepare(tmp_path / "run", refuse=1)
    entries = ended(submit_run(tmp_path, run_dir), run_dir)
    assert [(e.cause, e.action) for e in entries] == [
        ("start_failed", "respawn"),
        ("start_failed", "respawn"),
        ("start_failed", "give_up"),
    ]
    assert "given up: 3 attempts in a row" in (run_dir / "logs" / "batch.log").read_text()


def test_what_cannot_be_is_not_tried_again(slurm: Any, tmp_path: Path) -> None:
    run_dir = prepare(tmp_path / "run", refuse=2)
    job = submit_run(tmp_path, run_dir)
    (only,) = ended(job, run_dir)
    assert (only.cause, only.action, only.code) == ("invalid", "none", 2)
    shown = commands.job(job)
    assert shown is not None
    assert (shown.state, shown.exit_code) == ("FAILED", 2)


def test_elements_of_an_array_are_runs_of_their_own(slurm: Any, tmp_path: Path) -> None:
    runs = [prepare(tmp_path / f"run {i}", die={"1": [15, 1, 0]} if i == 1 else {}) for i in range(3)]
    (tmp_path / "list").write_text("unused\n" + "".join(f"{run}\n" for run in runs))
    script = render_array(
        site(tmp_path),
        job_name="t",
        list_file=tmp_path / "list",
        count=3,
        first=1,
        log_dir=tmp_path,
        nodes=1,
        throttle=2,
    )
    job = submit(script, tmp_path)
    for i, run in enumerate(runs):
        entries = ended(f"{job}_{i}", run)
        assert {e.job for e in entries} == {f"{job}_{i}"}
        assert entries[-1].cause == "done"
        assert len(entries) == (2 if i == 1 else 1)


@pytest.mark.drill
def test_a_preempted_job_saves_and_is_queued_again(slurm: Any, tmp_path: Path) -> None:
    run_dir = prepare(tmp_path / "run", steps=100, pace_s=0.1, save_every=1000)
    job = submit_run(tmp_path, run_dir, "partition=lo")
    wait_for("training", lambda: step_of(run_dir) > 10)
    path = tmp_path / "hi.sbatch"
    path.write_text("#!/bin/bash\n#SBATCH -p hi -N3 --exclusive -o /dev/null\nsleep 2\n")
    commands.sbatch(path)
    first, second = ended(job, run_dir)
    assert (first.cause, first.action, first.detail) == ("preempted", "requeue", "saved within the grace time")
    assert first.gained > 10
    assert (second.cause, second.restart, second.saved, second.job) == ("done", 1, 100, job)


@pytest.mark.drill
@pytest.mark.parametrize("spares", [1, 0])
def test_a_lost_node_is_replaced(slurm: Any, tmp_path: Path, spares: int) -> None:
    run_dir = prepare(tmp_path / "run", steps=400, pace_s=0.1)
    job = submit_run(tmp_path, run_dir, spares=spares)
    wait_for("training", lambda: step_of(run_dir) > 20)
    slurm.kill("n2")
    first, second = ended(job, run_dir)
    assert (first.cause, first.action) == ("node_lost", "respawn" if spares else "requeue")
    assert first.excluded == ("n2",)
    assert (second.cause, second.nodes, second.job) == ("done", ("n1", "n3"), job)
    assert second.restart == (0 if spares else 1)
    assert second.step >= 20


@pytest.mark.drill
@pytest.mark.parametrize("spares", [0, 1])
def test_the_batch_hosts_death_is_told_by_the_next_start(slurm: Any, tmp_path: Path, spares: int) -> None:
    run_dir = prepare(tmp_path / "run", steps=300, pace_s=0.1)
    job = submit_run(tmp_path, run_dir, spares=spares)
    wait_for("training", lambda: step_of(run_dir) > 20)
    slurm.kill("n1")

    def again() -> bool:
        shown = commands.job(job)
        return shown is not None and bool(shown.restarts)

    wait_for("the job is queued again", again, 60)
    if spares:  # with its spare it needs all three nodes
        slurm.revive("n1")
    first, second = ended(job, run_dir)
    assert first.action == "requeue"
    assert first.cause == "node_lost" or spares  # a node that is back leaves no trace
    assert (second.cause, second.restart) == ("done", 1)
    assert second.step >= 20


@pytest.mark.drill
def test_time_limits_are_met_again_and_again(slurm: Any, tmp_path: Path) -> None:
    run_dir = prepare(tmp_path / "run", steps=700, pace_s=0.1, save_every=1000)
    job = submit_run(tmp_path, run_dir, "time_limit=1min", "signal_lead=20s")
    entries = ended(job, run_dir, 300)
    assert [e.cause for e in entries[:-1]] == ["time_limit"] * (len(entries) - 1)
    assert len(entries) >= 2
    assert all(e.action == "requeue" and e.lost == 0 for e in entries[:-1])
    assert entries[-1].cause == "done"
