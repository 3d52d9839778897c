"""Law 4 with real processes: ranks that die or hang, requests, guards, superseded attempts, object storage."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests import forks
from tests.conftest import command, free_ports
from tests.histories import speak
from tests.laws.test_resume import assert_same_bits, finish, recipe_file, start
from vit_dist.core.events.reader import read_run
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import seal_marker
from vit_dist.core.run.history import Status
from vit_dist.core.run.log import run_status
from vit_dist.train.checkpoint.remote import remote_steps
from vit_dist.train.progress.goodput import BUCKETS

pytestmark = pytest.mark.distributed

LONG = ["engine.name=plain", "horizon=100k steps", "checkpoint.every=50k steps", "eval.every=50k steps"]


def start_ranks(recipe: Path, run_dir: Path, *overrides: str) -> list[subprocess.Popen[str]]:
    """Two ranks without a parent of ours, as under srun."""
    (port,) = free_ports(1)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "GLOO_SOCKET_IFNAME": "lo"}
    return [
        forks.Popen(
            command("train", str(recipe), *overrides, "--run-dir", str(run_dir)),
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]


def wait_until_running(run_dir: Path, step: int = 1, timeout: float = 120) -> Status:
    deadline = time.monotonic() + timeout
    while True:
        assert time.monotonic() < deadline
        status = history.read(run_dir).status
        if status is not None and status.status == "running" and status.step >= step:
            return status
        time.sleep(0.02)


def wait_until_attempt(run_dir: Path, attempt: int, step: int = 0, timeout: float = 120) -> Status:
    deadline = time.monotonic() + timeout
    while (status := wait_until_running(run_dir, step)).attempt < attempt:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return status


def end_all(ranks: list[subprocess.Popen[str]]) -> list[str]:
    for process in ranks:
        if process.poll() is None:
            process.kill()
    return [process.communicate()[0] for process in ranks]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_rank_that_dies_takes_the_others_down_within_seconds(
    tmp_path: Path, small_set: str, small_val: str, victim: int
) -> None:
    ranks = start_ranks(recipe_file(tmp_path, small_set, small_val), tmp_path / "run", *LONG)
    try:
        wait_until_running(tmp_path / "run", 3)
        ranks[victim].kill()
        # Two seconds, where nothing else runs; the watchdog would take half an hour.
        code = ranks[1 - victim].wait(60)
    finally:
        outputs = end_all(ranks)
    assert code == 70, outputs
    if victim == 1:
        status = history.read(tmp_path / "run").status
        assert status is not None
        assert status.status == "failed"
        assert "gone" in status.reason


def test_a_hang_leaves_the_stacks_of_every_rank_and_ends(tmp_path: Path, small_set: str, small_val: str) -> None:
    ranks = start_ranks(recipe_file(tmp_path, small_set, small_val), tmp_path / "run", *LONG, "guards.hang=4s")
    try:
        wait_until_running(tmp_path / "run", 3)
        ranks[1].send_signal(signal.SIGSTOP)
        code = ranks[0].wait(60)
    finally:
        outputs = end_all(ranks)
    assert code == 71, outputs
    assert "rank 0 has hung for" in outputs[0]
    assert "train_step" in (tmp_path / "run" / "stacks" / "rank-00000.txt").read_text()
    # torch's flight recorder, a pickle: the last collectives, of which the step's own never ended.
    assert b"gloo:all_reduce" in (tmp_path / "run" / "stacks" / "nccl_trace_rank_0").read_bytes()
    assert re.search(r"Z rank 0 ERROR rank 0 has hung", outputs[0])


def test_a_request_saves_or_stops_and_is_recorded(tmp_path: Path, small_set: str, small_val: str) -> None:
    run_dir = tmp_path / "run"
    process = start(recipe_file(tmp_path, small_set, small_val), run_dir, *LONG)
    try:
        wait_until_running(run_dir, 2)
        (run_dir / "request").write_text("save\n")
        deadline = time.monotonic() + 60
        while not list(run_dir.glob("checkpoints/step-*/COMMITTED.json")):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert process.poll() is None, "a save alone does not stop the run"
        (run_dir / "request").write_text("stop\n")
        output = finish(process, 60)
    finally:
        end_all([process])
    assert "on the request file" in output
    status = history.read(run_dir).status
    assert status is not None
    assert (status.status, status.reason) == ("stopped", "the request file")
    (attempt,) = history.read(run_dir).attempts
    assert (attempt.attempt, attempt.told, attempt.cause) == (1, "stopped", "stopped")
    assert attempt.reached == status.step > 0
    assert not (run_dir / "request").exists()
    assert f"step-{status.step:010d}" in {p.name for p in (run_dir / "checkpoints").iterdir()}


def test_goodput_adds_up_over_attempts_and_stands_in_the_log(tmp_path: Path, small_set: str, small_val: str) -> None:
    forks.ready()
    recipe, run_dir, began = recipe_file(tmp_path, small_set, small_val), tmp_path / "run", time.time()
    options = ["engine.name=plain", "horizon=30 steps", "checkpoint.every=10 steps"]
    process = start(recipe, run_dir, *options, nproc=1)
    wait_until_running(run_dir, 13)
    seen = time.time()
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    finish(start(recipe, run_dir, *options, nproc=1))
    elapsed = time.time() - began
    log, status = read_run(str(run_dir / "tb")), history.read(run_dir).status
    assert status is not None
    assert sorted(status.goodput) == sorted(BUCKETS)
    assert 0 < sum(status.goodput.values()) <= elapsed + 0.5
    # What is missing is the launcher's own beginning and end.
    assert sum(status.goodput.values()) > status.time - seen > 0
    assert status.goodput["lost"] > 0
    assert log.scalars["goodput/lost_s"].values[-1] == pytest.approx(status.goodput["lost"], abs=0.01)
    assert log.scalars["goodput/useful"].steps.tolist() == list(range(1, 31))


def test_what_a_crash_cost_is_lost_and_not_down_however_rarely_the_run_logs(
    tmp_path: Path, small_set: str, small_val: str
) -> None:
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    options = [*LONG, "log.every=50k steps"]
    process = start(recipe, run_dir, *options, nproc=1)
    wait_until_running(run_dir, 0)

    def spent() -> dict[str, float]:
        """Seconds a bucket, as the last heartbeat has them."""
        return dict(history.read(run_dir).progress.goodput)

    deadline = time.monotonic() + 100
    while spent()["train"] + spent()["wait"] < 4:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    known = spent()
    time.sleep(1)
    process = start(recipe, run_dir, *options, nproc=1)
    wait_until_attempt(run_dir, 2)
    (run_dir / "request").write_text("stop")
    finish(process)
    status = history.read(run_dir).status
    assert status is not None
    assert status.goodput["lost"] == pytest.approx(sum(known.values())), "all up to the last heartbeat"
    assert status.goodput["down"] >= 1


@pytest.mark.parametrize("engine", [pytest.param("engine.name=plain", marks=pytest.mark.drill), "engine.zero_stage=2"])
def test_a_spike_is_skipped_or_rewound_from(tmp_path: Path, small_set: str, small_val: str, engine: str) -> None:
    # At a learning rate as absurd as this, and so low a limit, some loss is a spike however the numbers round.
    options = [engine, "horizon=60 steps", "optim.lr=0.3", "optim.clip=null", "schedule.warmup=30 steps"]
    options += ["precision=fp32", "model.dropout=0.0", "checkpoint.every=5 steps", "guards.spike_z=1.5"]
    run_dir = tmp_path / "skip"
    process = start(recipe_file(tmp_path, small_set, small_val), run_dir, *options, "guards.spike=skip", nproc=1)
    output = process.communicate(timeout=200)[0]
    assert "loss spike" in output
    assert "the step was not applied" in output
    bad = [json.loads(line) for line in (run_dir / "nonfinite.jsonl").read_text().splitlines()]
    assert bad[0]["reason"] == "spike"
    assert bad[0]["applied"] is False
    assert len(bad[0]["keys"]) == len(bad[0]["ordinals"]) == 16
    assert len(set(bad[0]["keys"])) == 16
    assert all(key.startswith("k") for key in bad[0]["keys"])

    run_dir = tmp_path / "rewind"
    process = start(recipe_file(tmp_path, small_set, small_val), run_dir, *options, "guards.spike=rewind", nproc=1)
    output = process.communicate(timeout=200)[0]
    assert "REWOUND to step" in output
    if process.returncode:  # diverging again and again is a reason to stop
        assert "guards.max_rewinds" in output
    steps = read_run(str(run_dir / "tb")).scalars["train/loss"].steps.tolist()
    assert steps == list(range(1, len(steps) + 1)), "a rewind leaves no step twice and none out"


def test_a_run_killed_while_it_rewinds_and_right_after_ends_as_the_undisturbed_one(
    tmp_path: Path, small_set: str, small_val: str
) -> None:
    options = ["engine.name=plain", "horizon=30 steps", "optim.lr=0.3", "optim.clip=null", "schedule.warmup=30 steps"]
    options += ["precision=fp32", "checkpoint.every=10 steps", "guards.spike_z=1.5", "guards.spike=rewind"]
    # Straight on, a rewind itself restores the average; after a kill the next attempt does.
    options += ["guards.max_rewinds=99", "ema={decay: 0.9}"]
    recipe, straight, killed = recipe_file(tmp_path, small_set, small_val), tmp_path / "straight", tmp_path / "killed"
    undisturbed = finish(start(recipe, straight, *options, nproc=1))
    rewound = re.findall(r"REWOUND to step (\d+), .* positions .*", undisturbed)
    assert rewound, "this recipe has a spike to rewind from"
    for moment in (": loss spike", "REWOUND to step"):
        process = start(recipe, killed, *options, nproc=1)
        assert process.stdout is not None
        reached = next((line for line in process.stdout if moment in line), "")
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert reached, "it ended before it could be killed"
    output = finish(start(recipe, killed, *options, nproc=1))
    assert f"resumed from step {rewound[0]} " in output, "nothing was saved between the rewind and the kill"
    assert [line for line in undisturbed.splitlines() if "REWOUND" in line] == [
        line for line in output.splitlines() if "REWOUND" in line
    ]
    last = "checkpoints/step-0000000030"
    assert_same_bits(straight / last, killed / last)
    states = [json.loads((run / last / "COMMITTED.json").read_text())["state"] for run in (straight, killed)]
    assert states[0] == states[1]
    assert states[0]["passed_over"], "the ranges that a rewind skipped, under their name in a marker"
    losses = [read_run(str(run / "tb")).scalars["train/loss"] for run in (straight, killed)]
    assert losses[0].steps.tolist() == losses[1].steps.tolist() == list(range(1, 31))
    assert losses[0].values.tolist() == losses[1].values.tolist()


def test_a_run_whose_numbers_are_beyond_help_is_stopped_with_the_keys(
    tmp_path: Path, small_set: str, small_val: str
) -> None:
    run_dir, options = tmp_path / "run", ["engine.name=plain", "precision=fp32", "optim.lr=1e30", "horizon=99 steps"]
    process = start(recipe_file(tmp_path, small_set, small_val), run_dir, *options, "guards.max_in_row=4", nproc=1)
    output = process.communicate(timeout=100)[0]
    assert process.returncode == 1
    assert "the last 4 steps, up to step" in output
    bad = [json.loads(line) for line in (run_dir / "nonfinite.jsonl").read_text().splitlines()]
    assert [(b["reason"], b["applied"], len(b["keys"])) for b in bad] == [("not finite", False, 16)] * 4
    status = history.read(run_dir).status
    assert status is not None
    assert (status.status, status.step) == ("failed", bad[-1]["step"])


def test_a_run_killed_after_its_last_checkpoint_trains_no_further_step(
    tmp_path: Path, small_set: str, small_val: str
) -> None:
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    finish(start(recipe, run_dir, "engine.name=plain", nproc=1))
    before = history.read(run_dir).status
    assert before is not None
    # Meanwhile the clock has jumped back by a day, and torch is another one.
    speak(run_dir, "running", 10, 160, goodput=before.goodput, time=time.time() + 86400)
    marker = run_dir / "checkpoints" / "step-0000000010" / "COMMITTED.json"
    changed = json.loads(marker.read_text().replace(f'"torch": "{torch.__version__}"', '"torch": "1.0"'))
    marker.write_bytes(seal_marker(changed))
    output = finish(start(recipe, run_dir, "engine.name=plain", nproc=1))
    assert "the last attempt's clock was 23h5" in output
    assert f"written by another layout: torch: '{torch.__version__}' here, '1.0' there" in output
    status = history.read(run_dir).status
    assert status is not None
    assert (status.status, status.step, status.examples) == ("done", 10, 160)
    assert 0 <= status.goodput["down"] < 60
    assert read_run(str(run_dir / "tb")).scalars["train/loss"].steps.tolist() == list(range(1, 11))
    output = finish(start(recipe, run_dir, "engine.name=plain", nproc=1))
    assert "this run is done" in output
    again = history.read(run_dir).status
    assert again is not None
    assert again.goodput["train"] == status.goodput["train"]


def test_an_older_attempt_that_wakes_up_leaves_the_run_to_the_newer_one(
    tmp_path: Path, small_set: str, small_val: str
) -> None:
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    options = ["engine.name=plain", "horizon=100k steps", "eval.every=50k steps", "checkpoint.every=50 steps"]
    options += ["checkpoint.keep=999", "log.every=5 steps"]
    older = newer = start(recipe, run_dir, *options)
    contested = run_dir / "checkpoints" / "step-0000000150"
    try:
        wait_until_running(run_dir, 60)
        os.killpg(older.pid, signal.SIGSTOP)  # its node has frozen
        (run_dir / "lock").unlink()  # as on a file system whose locks do not work
        reached = wait_until_running(run_dir, 60).step
        assert not contested.exists(), "it was too fast for this test"
        newer = start(recipe, run_dir, *options)
        wait_until_attempt(run_dir, 2, 155)
        while not (contested / "COMMITTED.json").exists():
            time.sleep(0.02)
        committed = (contested / "COMMITTED.json").stat()
        os.killpg(older.pid, signal.SIGCONT)
        output = older.communicate(timeout=60)[0]
        assert older.returncode == 72, output
        assert newer.poll() is None, "both were alive"
        assert wait_until_running(run_dir).attempt == 2, "the older one did not speak for the run"
        (run_dir / "request").write_text("stop")
        finish(newer)
    finally:
        os.killpg(older.pid, signal.SIGCONT) if older.poll() is None else None
        end_all([older, newer])
    assert f"attempt 2 on {os.uname().nodename}" in output
    assert "has superseded this attempt" in output
    now = (contested / "COMMITTED.json").stat()
    assert (now.st_ino, now.st_mtime_ns) == (committed.st_ino, committed.st_mtime_ns), "the older one has committed"
    status = history.read(run_dir).status
    assert status is not None
    assert (status.status, status.attempt) == ("stopped", 2)
    assert status.step > 155 > reached
    log = read_run(str(run_dir / "tb")).scalars["train/loss"]
    assert log.steps.tolist() == list(range(5, status.step + 1, 5))


def test_run_starts_again_after_a_kill_until_it_is_done(tmp_path: Path, small_set: str, small_val: str) -> None:
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    arguments = ["engine.name=plain", "horizon=200 steps", "checkpoint.every=10 steps", "--run-dir", str(run_dir)]
    process = forks.Popen(
        command("run", str(recipe), *arguments, "--nproc", "1"),
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until_running(run_dir, 15)
        pid = history.read(run_dir).attempts[-1].pid
        os.kill(pid, signal.SIGKILL)
        output = process.communicate(timeout=100)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    assert "attempt 1: killed by signal 9" in output
    assert "attempt 2: done" in output
    assert [(e.told, e.cause) for e in history.read(run_dir).attempts] == [("failed", "rank_lost"), ("done", "done")]


@pytest.mark.s3
def test_a_run_whose_directory_is_lost_resumes_from_the_store_with_its_weights_and_all_its_curves(
    tmp_path: Path, small_set: str, small_val: str, s3: str
) -> None:
    recipe, run_dir, straight = recipe_file(tmp_path, small_set, small_val), tmp_path / "run", tmp_path / "straight"
    options = ["engine.name=plain", "horizon=60 steps", "checkpoint.every=4 steps"]
    remote = f"{s3}/runs/moved"
    finish(start(recipe, straight, *options, nproc=1))

    first = start(recipe, run_dir, *options, f"checkpoint.remote={remote}", nproc=1)
    deadline = time.monotonic() + 100
    while not remote_steps(remote):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate(timeout=60)
    assert not (run_dir / "checkpoints" / "step-0000000060").exists(), "the run ended before it could be killed"
    shutil.rmtree(run_dir)

    output = finish(start(recipe, run_dir, *options, f"checkpoint.remote={remote}", nproc=1))
    assert "files of logs and records were brought back from" in output
    assert f"fetching {remote_steps(remote)[-1][:7]}" in output
    assert f"(nothing of it here: {remote} is asked)" in output
    assert f"restored from {remote} at step " in output
    assert_same_bits(straight / "checkpoints/step-0000000060", run_dir / "checkpoints/step-0000000060")
    lost, resumed = history.read(run_dir).attempts
    assert [lost.told, resumed.told] == ["killed", "done"]
    assert 0 < resumed.step < 60
    assert resumed.gained == 60 - resumed.step
    # Here, and on the store alone, to its end.
    undisturbed = read_run(str(straight / "tb")).scalars
    for log in (read_run(str(run_dir / "tb")), read_run(f"{remote}/tb")):
        for tag in ("train/loss", "train/lr", "train/grad_norm", "train/epoch", "val/top1", "val/loss"):
            assert log.scalars[tag].steps.tolist() == undisturbed[tag].steps.tolist(), tag
            assert log.scalars[tag].values.tolist() == undisturbed[tag].values.tolist(), tag
        status = run_status(log)
        assert status is not None
        assert (status.status, status.step) == ("done", 60)


def test_storage_that_is_away_is_logged_at_a_save_and_refused_at_a_restore(
    tmp_path: Path, small_set: str, small_val: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (port,) = free_ports(1)  # nobody listens there
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "none-of-your-business")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    options = ["engine.name=plain", "checkpoint.remote=s3://bucket/runs/away"]
    run_dir.mkdir()
    refused = start(recipe, run_dir, *options, nproc=1)
    output = refused.communicate(timeout=200)[0]
    assert refused.returncode == 1
    assert "checkpoint.remote: s3://bucket/runs/away: cannot be listed" in output
    assert "Traceback" not in output

    finish(start(recipe, run_dir, "engine.name=plain", "horizon=10 steps", nproc=1))
    (run_dir / "checkpoints" / "step-0000000010" / "COMMITTED.json").unlink()  # there is an older one: no need to ask
    output = finish(start(recipe, run_dir, *options, nproc=1))
    assert "resumed from step 9" in output
    assert "step-0000000010 COULD NOT BE COPIED" in output
    assert "Training continues" in output
    assert "none-of-your-business" not in output
