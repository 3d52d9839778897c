"""The supervisor of a job: why an attempt ended, what follows, and what the ledger says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.bad_nodes import add
from launcher.slurm.allocation import Allocation, choose, read_allocation
from launcher.supervise.causes import ExitEvidence, Failure, classify, first_failure, idle_attempts
from vit_dist.core.errors import ConfigError
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import FORMAT, MARKER, measured_save_s, step_name
from vit_dist.core.run.history import Attempt, Status
from vit_dist.core.run.names import CHECKPOINTS

DONE, STOPPED = Status(status="done", step=9), Status(status="stopped", step=5, reason="SIGTERM")
RUNNING, FAILED = Status(status="running", step=5), Status(status="failed", step=5, reason="rank 1 is gone")
KILLED = Failure("n2", "1", 137, "killed")


@pytest.mark.parametrize(
    ("evidence", "cause", "detail"),
    [
        (ExitEvidence(0, DONE), "done", ""),
        (ExitEvidence(0, DONE, asked="time_limit"), "done", ""),
        (ExitEvidence(0, STOPPED, asked="time_limit"), "time_limit", "saved before"),
        (ExitEvidence(137, RUNNING, asked="time_limit"), "time_limit", "did not end in time"),
        (ExitEvidence(0, STOPPED, preempted=True), "preempted", "saved within the grace time"),
        (ExitEvidence(143, RUNNING, preempted=True, terminated=True), "preempted", ""),
        (ExitEvidence(0, STOPPED, cancelled=True, terminated=True), "cancelled", "on request"),
        (ExitEvidence(0, STOPPED, terminated=True), "cancelled", "Slurm ended the job"),
        (ExitEvidence(0, STOPPED, terminated=True, requeued=True), "preempted", "queued the job again"),
        (ExitEvidence(0, STOPPED, terminated=True, requeued=True, on_request=True), "requeued", "on request"),
        (ExitEvidence(143, RUNNING, terminated=True, requeued=True, on_request=True), "requeued", "on request"),
        (ExitEvidence(0, STOPPED, preempted=True, requeued=True, on_request=True), "preempted", ""),
        (ExitEvidence(143, RUNNING, terminated=True, overdue=True), "time_limit", "ended by Slurm"),
        (ExitEvidence(70, FAILED, lost_nodes=(("n2", "is down*"),)), "node_lost", "n2 is down*"),
        (ExitEvidence(0, Status(status="stopped", reason="the request file")), "stopped", "the request file"),
        (ExitEvidence(137, FAILED, KILLED), "rank_lost", "rank 1 on n2: killed"),
        (ExitEvidence(137, RUNNING, KILLED), "rank_lost", "rank 1 on n2: killed"),
        (ExitEvidence(70, FAILED, Failure("n1", "0", 1, "exit code 1")), "crashed", "rank 0 on n1"),
        (ExitEvidence(1, Status(status="failed", reason="loss is not finite")), "crashed", "loss is not finite"),
        (ExitEvidence(71, FAILED), "hung", "rank 1 is gone"),
        (ExitEvidence(1, None, Failure("n1", "0", 1, "exit code 1")), "start_failed", "rank 0 on n1: exit code 1"),
        (ExitEvidence(1, None), "start_failed", "before training began"),
        (ExitEvidence(2, None), "invalid", ""),
        (ExitEvidence(72, RUNNING), "superseded", ""),
        (ExitEvidence(143, None, Failure("n1", "0", 2, "exit code 2")), "invalid", ""),
    ],
)
def test_the_cause_of_an_end_is_told_from_its_signs(evidence: ExitEvidence, cause: str, detail: str) -> None:
    classified = classify(evidence)
    assert classified[0] == cause
    assert detail in classified[1]


def test_the_first_failure_is_the_cause_and_not_its_victims(tmp_path: Path) -> None:
    log = tmp_path / "srun.log"
    log.write_text(
        "slurmstepd-n1: error: *** STEP 9.0 ON n1 CANCELLED ***\n"
        "srun: error: n1: tasks 0-3: Exited with exit code 70\n"
        "srun: launch/slurm: _step_signal: Terminating StepId=9.0\n"
        "srun: error: n3: task 9: Terminated\n"
        "srun: error: n2: task 5: Segmentation fault (core dumped)\n"
        "srun: error: n2: task 6: Exited with exit code 1\n"
    )
    assert first_failure(log) == Failure("n2", "5", 139, "segmentation fault")
    log.write_text("srun: error: n1: tasks 0-3: Exited with exit code 70\n")
    assert first_failure(log) == Failure("n1", "0-3", 70, "exit code 70")
    assert first_failure(tmp_path / "none") is None


def entry(cause: str, gained: int = 0, job: str = "7") -> Attempt:
    return Attempt(attempt=1, begun=0, job=job, ended=1, cause=cause, gained=gained)


def test_only_what_is_the_runs_own_fault_counts_against_it() -> None:
    assert idle_attempts([entry("crashed"), entry("crashed")], "7") == 2
    assert idle_attempts([entry("crashed"), entry("preempted"), entry("node_lost"), entry("hung")], "7") == 2
    assert idle_attempts([entry("crashed"), entry("crashed", gained=3), entry("hung")], "7") == 1
    assert idle_attempts([entry("crashed", job="6"), entry("crashed")], "7") == 1  # submitted anew: it counts anew
    assert idle_attempts([], "7") == 0


def test_a_cancelled_job_is_known_by_its_number(tmp_path: Path) -> None:
    job = Allocation("120_3", 123, 0, ("n1",))
    assert not history.is_cancelled(tmp_path, job.numbers)
    for number, cancelled in (("120_3", True), ("123", True), ("99", False)):
        (tmp_path / "cancel").write_text(json.dumps({"job": number}))
        assert history.is_cancelled(tmp_path, job.numbers) == cancelled


def test_bad_nodes_are_taken_last_and_lost_ones_never(tmp_path: Path) -> None:
    job = Allocation("1", 1, 0, ("n1", "n2", "n3", "n4"))
    assert choose(job, 2, tmp_path, {}) == ["n1", "n2"]
    add(tmp_path, "n1", "slow")
    assert choose(job, 2, tmp_path, {}) == ["n2", "n3"]
    assert choose(job, 3, tmp_path, {"n3": "is down"}) == ["n1", "n2", "n4"]
    assert choose(job, 3, tmp_path, {"n3": "is down", "n4": "is down"}) is None


def test_an_element_of_an_array_goes_by_its_own_number() -> None:
    env = {"SLURM_JOB_ID": "125", "SLURM_ARRAY_JOB_ID": "120", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}
    assert read_allocation({**env, "SLURM_JOB_NODELIST": "n1"}) == Allocation("120_3", 125, 2, ("n1",))
    with pytest.raises(ConfigError, match="runs inside a Slurm job"):
        read_allocation({})


def test_the_cost_of_a_save_is_read_from_the_newest_checkpoint(tmp_path: Path) -> None:
    assert measured_save_s(tmp_path) is None
    for step, wrote in ((10, 3.0), (20, 7.5)):
        path = tmp_path / CHECKPOINTS / step_name(step)
        path.mkdir(parents=True)
        files = {"rank-00000.safetensors": {"bytes": 7, "xxh128": "0" * 32}}
        marker = {"format": FORMAT, "wrote_s": wrote, "layout": {}, "recipe": {}, "state": {}, "files": files}
        (path / MARKER).write_text(json.dumps(marker))
    assert measured_save_s(tmp_path) == 7.5


def test_a_stop_before_the_ranks_had_met_is_told_as_one() -> None:
    from launcher.supervise.causes import cause_of_code
    from vit_dist.core.exit_codes import FINAL, INTERRUPTED, TERMINATED, WARNED

    assert {INTERRUPTED, TERMINATED, WARNED} <= FINAL
    assert [cause_of_code(code, None) for code in (INTERRUPTED, TERMINATED, WARNED)] == [
        "cancelled",
        "cancelled",
        "stopped",
    ]
    first = Failure("n1", "0", WARNED, "exit code 140")
    assert classify(ExitEvidence(WARNED, failure=first)) == ("stopped", "before it had begun")
    assert classify(ExitEvidence(WARNED, failure=first, asked="time_limit"))[0] == "time_limit"
    assert classify(ExitEvidence(WARNED, failure=first, preempted=True))[0] == "preempted"
    assert classify(ExitEvidence(TERMINATED, failure=first, lost_nodes=(("n2", "is down"),)))[0] == "node_lost"
