"""The verbs that look after runs, on a real Slurm: states are seen, wishes are fulfilled, nothing is injected."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.slurm import commands
from launcher.status.actions import cancel, requeue, stop
from launcher.status.view import look, look_at
from tests.slurm.cluster import wait_for
from tests.slurm.jobs import Site, vit_dist
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.run import history

pytestmark = pytest.mark.slurm


@pytest.fixture
def sleeper(slurm: Any, tmp_path: Path) -> Callable[..., Path]:
    """sleeper(*options, name=..., body=...): the directory of a run whose job sleeps."""

    def submit(*options: str, name: str = "sleeper", body: str = "sleep 300 & wait") -> Path:
        run = tmp_path / "runs" / name
        (run / "logs").mkdir(parents=True)
        script = run / "job.sh"
        script.write_text(f"#!/bin/bash\n#SBATCH --requeue --open-mode=append\n{body}\n")
        job = commands.sbatch(script, args=[f"--output={run.parent}/out-%j", *options]).job
        history.submitted(run, job, history.submitting(run, {"cluster": "dev"}))
        return run

    return submit


def state(run: Path) -> str:
    """As `status` tells it."""
    return look_at(run)[0].state


def test_a_job_that_waits_runs_and_is_cancelled_is_told_so(sleeper: Callable[..., Path]) -> None:
    run = sleeper("-N2")
    wait_for("it starts", lambda: state(run) == "starting", 30)
    view, silence = look_at(run)
    assert silence == ""
    assert view.job is not None
    assert (view.job.nodes, view.job.partition, view.job.ended) == (2, "main", False)
    assert len(commands.hostnames(view.job.nodelist)) == 2
    later = sleeper("--begin=now+1hour", name="later")
    assert (state(later), look_at(later)[0].reason) == ("waiting", "BeginTime")
    views, _ = look([run, later])
    assert [v.state for v in views] == ["starting", "waiting"]
    assert cancel(run).state == "cancelled"
    assert stop(later, timeout_s=60).state == "cancelled"
    assert json.loads((run / "cancel").read_text())["job"] == view.job.id
    with pytest.raises(RunError, match="has ended already"):
        cancel(run)
    with pytest.raises(RunError, match=r"has ended; `vit-dist resume` makes a new job"):
        requeue(run)


def test_a_cancel_that_meets_a_requeue_is_repeated_until_it_holds(slurm: Any, sleeper: Callable[..., Path]) -> None:
    run = sleeper()
    job = look_at(run)[0].job_id
    wait_for("it runs", lambda: state(run) == "starting", 30)
    stopping = threading.Event()

    def queue_again() -> None:
        # A supervisor that has not seen the wish: it brings the job back twice after it was cancelled.
        for _ in range(2):
            wait_for("cancelled", lambda: (found := commands.job(job)) is None or found.ended, 30)
            commands.requeue(job)
        stopping.set()

    thread = threading.Thread(target=queue_again)
    thread.start()
    cancel(run, timeout_s=90)
    thread.join()
    assert stopping.is_set()
    found = commands.job(job)
    assert found is not None
    assert found.state == "CANCELLED"
    assert found.restarts is not None
    assert slurm.run("squeue", "-h", "-j", job).stdout == ""


def test_requeue_goes_elsewhere_at_once_under_the_same_number(sleeper: Callable[..., Path]) -> None:
    run = sleeper("-N1", body="hostname > /dev/null; sleep 300 & wait")
    wait_for("it runs", lambda: state(run) == "starting", 30)
    before = commands.job(look_at(run)[0].job_id)
    assert before is not None
    requeue(run, exclude=[before.nodelist], now=True, save_s=None)
    after = wait_for("it runs again", lambda: (j := commands.job(before.id)) and j.state == "RUNNING" and j, 60)
    assert after.nodelist != before.nodelist
    assert after.restarts == 1
    requeue(run, exclude=["n[2-3]"], save_s=None)
    waiting = commands.job(before.id)
    assert waiting is not None
    assert set(commands.hostnames(waiting.excluded)) == {before.nodelist, "n2", "n3"}
    for wrong in ("n9", "n1;id", "$(id)", "n1 n2", ""):
        with pytest.raises(ConfigError, match="--exclude"):
            requeue(run, exclude=[wrong], save_s=None)
    cancel(run)


def test_elements_of_an_array_are_runs_of_their_own(sleeper: Callable[..., Path], tmp_path: Path) -> None:
    first = sleeper("--array=0-3%1", name="cell-0")
    array = history.read(first).job_id
    runs = [first]
    for i in range(4):
        run = tmp_path / "runs" / f"cell-{i}"
        run.mkdir(exist_ok=True)
        history.submitted(run, f"{array}_{i}", history.submitting(run, {}))
        runs += [run] if i else []
    wait_for("the first runs", lambda: state(runs[0]) == "starting", 30)
    views, _ = look(runs)
    assert [v.state for v in views] == ["starting", "waiting", "waiting", "waiting"]
    cancel(runs[2])
    assert [state(run) for run in runs] == ["starting", "waiting", "cancelled", "waiting"]
    commands.scancel(array)


def test_strange_names_change_no_answer_and_run_no_command(sleeper: Callable[..., Path], tmp_path: Path) -> None:
    mark = tmp_path / "injected"
    names = ["a b", "$(touch injected)", "q'\"q", "c,d", "x JobState=FAILED UserId=x(0)", "n\nJobId=1 JobName=z"]
    runs = []
    for i, name in enumerate(names):
        comment = f"--comment={name} JobState=FAILED NodeList=evil"
        runs.append(sleeper(f"--job-name={name}", comment, "--begin=now+1hour", name=f"r{i}"))
    status_json = tmp_path / "runs" / names[1]
    shutil.copytree(runs[1], status_json)
    assert {v.state for v in look([*runs, status_json])[0]} == {"waiting"}
    for run, name in zip(runs, names, strict=True):
        view, _ = look_at(run)
        assert view.job is not None
        assert (view.state, view.job.name) == ("waiting", name)
    done = vit_dist("status", names[1], "--runs", str(tmp_path / "runs"), "--json")
    assert json.loads(done.stdout)["state"] == "waiting"
    done = vit_dist("cancel", names[1], "--runs", str(tmp_path / "runs"))
    assert done.returncode == 0, done.stderr
    assert not mark.exists()
    assert not (Path.cwd() / "injected").exists()
    for run in runs[2:]:
        commands.scancel(look_at(run)[0].job_id)


def test_without_an_answer_the_files_are_told_and_that_they_are(
    sleeper: Callable[..., Path], slurm: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = sleeper("--begin=now+1hour")
    history.begin(run, launcher="slurm", devices=2, step=0, job=look_at(run)[0].job_id)
    assert commands.accounting(look_at(run)[0].job_id) is None  # this cluster keeps none
    with monkeypatch.context() as there:
        there.setenv("PATH", str(tmp_path))
        done = vit_dist("status", "--runs", str(tmp_path / "runs"))
        assert done.returncode == 0
        assert "there is no Slurm here" in done.stdout
        assert "1 run: 1 starting" in done.stdout
        done = vit_dist("cancel", "sleeper", "--runs", str(tmp_path / "runs"))
        assert (done.returncode, "there is no Slurm here" in done.stderr) == (1, True)


@pytest.mark.distributed
@pytest.mark.timeout(600)
def test_a_training_job_is_followed_saved_moved_stopped_and_resumed(slurm: Any, tmp_path: Path, small_set: str) -> None:
    site = Site(slurm, tmp_path, small_set, tmp_path)
    run = site.submit(nodes=1, pace=0.3)
    name, roots = run.dir.name, ("--runs", str(run.dir.parent))

    def status_json() -> dict[str, Any]:
        return json.loads(vit_dist("status", run.job, *roots, "--json").stdout)

    wait_for("it trains", lambda: status_json()["state"] == "running", 240, run.text)
    done = vit_dist("checkpoint", name, *roots)
    assert done.returncode == 0, done.stderr
    assert (Path(done.stdout.strip()) / "COMMITTED.json").is_file()
    assert "model: vit-test" in vit_dist("logs", name, *roots).stdout
    assert "supervisor: job" in vit_dist("logs", name, *roots, "--batch").stdout

    (node,) = run.nodes
    done = vit_dist("requeue", name, *roots, "--exclude", node, "--now")
    assert done.returncode == 0, done.stderr
    assert "saved up to step" in done.stderr
    wait_for("it trains elsewhere", lambda: status_json()["state"] == "running" and len(run.ledger) == 2, 240, run.text)
    assert run.nodes != [node]
    assert run.ledger[1].restart == 1
    assert run.ledger[1].step >= run.ledger[0].saved > 0

    done = vit_dist("stop", name, *roots)
    assert done.returncode == 0, done.stderr + run.text()
    assert "stopped, saved up to step" in done.stderr
    assert run.end() == "COMPLETED"
    view = status_json()
    assert (view["state"], view["step"]) == ("stopped", view["saved"])

    first_job = run.job
    done = vit_dist("resume", name, *roots, "--nodes", "2")
    assert done.returncode == 0, done.stderr
    assert run.job != first_job
    done = vit_dist("resume", name, *roots)
    assert (done.returncode, "there is nothing to resume" in done.stderr) == (1, True)
    done = vit_dist("cancel", name, *roots)
    assert done.returncode == 0, done.stderr
    assert status_json()["state"] == "cancelled"
    assert vit_dist("resume", name, *roots, "--nodes", "5").returncode == 2  # 24 is not divisible by 5
