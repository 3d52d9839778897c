"""A run is found by what a person calls it, its state follows from its files and its job, and advice fits the state."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.slurm import commands
from launcher.slurm.commands import Job
from launcher.status.actions import ask, requeue
from launcher.status.advice import explain_waiting
from launcher.status.files import read_run
from launcher.status.find import find_run, find_runs, run_roots
from launcher.status.run_view import RunView
from launcher.status.view import look, view
from tests.histories import line, speak, submit
from vit_dist.cli.main import main
from vit_dist.cli.runs import facts as shown
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.run import history, names
from vit_dist.core.run.checkpoints import steps_in_hand

NOW = 1_700_000_000.0


def make_run(path: Path, status: str = "", *, at: float = NOW - 1, job: str = "", **fields: Any) -> Path:
    """The files of a run as training and its supervisor leave them."""
    path.mkdir(parents=True)
    identity = {"horizon": "1000 steps", "global_batch": 64, "data": {"subset": None}}
    (path / "run.json").write_text(json.dumps({"name": path.name, "identity": identity}))
    began = min(at, NOW - 80) - 10
    if job:
        submit(path, job, began - 10, cluster="dev")
        supervised = {"launcher": "slurm", "devices": 8, "step": 0, "job": job, "nodes": ["n1", "n2"]}
        line(path, names.BY_SUPERVISOR, "begun", began, attempt=1, **supervised)
    if status:
        place = {"host": fields.pop("host", "elsewhere"), "pid": fields.pop("pid", 1)}
        reason = fields.pop("reason", "")
        line(path, names.BY_RANKS, "opened", began + 5, attempt=1, **place)
        line(path, names.BY_RANKS, "training", began + 9, attempt=1)
        known = {"attempt": 1, "time": at, "step": 400, "examples": 25600, **fields}
        (path / "alive.json").write_text(json.dumps(known))
        if status != "running":
            line(path, names.BY_RANKS, "ended", at, **known, status=status, reason=reason)
    return path


def end(path: Path, cause: str, action: str, **fields: Any) -> None:
    """Close the open attempt."""
    values = {"code": 1, "reached": 400, "saved": 300, "at": NOW, **fields}
    last = history.read(path).last
    assert last is not None
    history.close(path, last, cause=cause, action=action, **values)


def state(path: Path, job: Job | None = None, silence: str = "") -> tuple[str, str]:
    """State and reason."""
    found = view(read_run(path), job, silence, now=NOW)
    return found.state, found.reason


def test_a_run_is_found_by_directory_name_beginning_cell_and_job(tmp_path: Path) -> None:
    one = make_run(tmp_path / "vit-l16-aaaa", job="120")
    cell = make_run(tmp_path / "scaling" / "vit-30M-s0", job="121_3")
    assert find_runs([tmp_path]) == [cell, one]
    for wanted in (str(one), "vit-l16-aaaa", "vit-l", "120"):
        assert find_run(wanted, [tmp_path]) == one
    for wanted in ("scaling/vit-30M-s0", "vit-30M", "121_3"):
        assert find_run(wanted, [tmp_path]) == cell


def test_what_may_be_several_runs_is_an_error_that_lists_them(tmp_path: Path) -> None:
    make_run(tmp_path / "a" / "vit", job="7")
    make_run(tmp_path / "b" / "vit", job="7")
    for wanted in ("vit", "v", "7"):
        with pytest.raises(ConfigError, match=r"(?s)give the directory.*a/vit.*b/vit"):
            find_run(wanted, [tmp_path])
    with pytest.raises(ConfigError, match=r"did you mean 'vit'"):
        find_run("vti", [tmp_path])


@pytest.mark.parametrize("wanted", ["", "$(id)", "a\nb", "../nowhere", "'; rm -rf /", "*", "12;13"])
def test_a_strange_name_is_only_a_name(wanted: str, tmp_path: Path) -> None:
    make_run(tmp_path / "vit")
    with pytest.raises(ConfigError):
        find_run(wanted, [tmp_path])


def test_roots_are_those_given_else_the_usual_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("runs", "more", "site"):
        (tmp_path / folder).mkdir()
    monkeypatch.setenv("VIT_DIST_RUNS", f"{tmp_path}/more:{tmp_path}/none")
    (tmp_path / "configs/clusters").mkdir(parents=True)
    (tmp_path / "configs/clusters/mine.yaml").write_text(f"run_root: {tmp_path}/site\n")
    assert run_roots() == [Path("runs"), tmp_path / "more", tmp_path / "site"]
    with pytest.raises(ConfigError, match="--runs nowhere: no such directory"):
        run_roots([Path("nowhere")])


def test_a_job_that_is_cancelled_before_it_begins_leaves_a_cancelled_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "stopped", job="5")
    end(run, "stopped", "none")
    assert state(run)[0] == "stopped"
    submit(run, "6", NOW + 10, after=1)
    assert state(run, Job("6", "CANCELLED")) == ("cancelled", "by scancel")
    (run / "cancel").write_text(json.dumps({"job": "6"}))
    assert state(run, Job("6", "CANCELLED")) == ("cancelled", "on request")
    line(run, names.BY_SUPERVISOR, "begun", NOW + 20, attempt=2, launcher="local")  # on this machine, afterwards
    end(run, "crashed", "none", detail="no memory", at=NOW + 30)
    assert state(run, Job("6", "CANCELLED"))[0] == "failed"


def test_the_state_of_a_job_that_waits_or_runs_comes_from_slurm(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "running", job="5")
    assert state(run, Job("5", "PENDING", "Priority")) == ("waiting", "Priority")
    assert state(run, Job("5", "RUNNING", start=NOW - 50)) == ("running", "")
    assert state(run, Job("5", "RUNNING", start=NOW + 50)) == ("starting", "")  # requeued: the status is an old one
    end(run, "node_lost", "requeue")
    assert state(run, Job("5", "RUNNING", start=NOW - 50)) == ("ending", "node lost")
    assert state(run, Job("5", "RUNNING", start=NOW + 50)) == ("starting", "")
    assert state(make_run(tmp_path / "s", job="6"), Job("6", "RUNNING", start=NOW))[0] == "starting"


@pytest.mark.parametrize(
    ("told", "cause", "slurm", "expected"),
    [
        ("failed", "", "RUNNING", "its ranks have failed; its supervisor finds out what happened"),
        ("stopped", "", "RUNNING", "its ranks have saved; its supervisor finds out what happened"),
        ("failed", "node_lost", "RUNNING", "node lost"),
        ("failed", "node_lost", "COMPLETING", "node lost; it is being queued again"),
        ("stopped", "preempted", "COMPLETING", "preempted; it is being queued again"),
        ("stopped", "requeued", "COMPLETING", "requeued; it is being queued again"),
        ("failed", "", "COMPLETING", "its ranks have failed; its supervisor finds out what happened"),
    ],
)
def test_between_an_attempt_and_the_next_it_is_ending_and_neither_failed_nor_starting(
    told: str, cause: str, slurm: str, expected: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path / "r", told, job="5")
    if cause:
        end(run, cause, "requeue")
    # A job that is put back into the queue counts as restarted, and as begun, before its nodes are cleared.
    restarted: dict[str, Any] = {"start": NOW + 50, "restarts": 1} if slurm == "COMPLETING" else {"start": NOW - 50}
    job = Job("5", slurm, end=NOW + 1800, **restarted)
    assert state(run, job) == ("ending", expected)
    shown_line = shown.job_line(view(read_run(run), job, now=NOW), NOW)
    assert ("time limit" in shown_line) == (slurm == "RUNNING")


@pytest.mark.parametrize(
    ("reason", "words", "advised"),
    [
        (
            "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved",
            "Nodes required for job are DOWN, DRAINED",
            "sinfo -R",
        ),
        ("Some_new_sentence_of_Slurm", "Some new sentence of Slurm", ""),
        ("launch_failed_requeued_held", "launch_failed_requeued_held", "scontrol release 5"),
        ("QOSMaxJobsPerUserLimit", "QOSMaxJobsPerUserLimit", "a limit of your account"),
        ("ReqNodeNotAvail,_UnavailableNodes:n[1-2]", "ReqNodeNotAvail,_UnavailableNodes:n[1-2]", "sinfo -R"),
        ("Priority", "Priority", ""),
    ],
)
def test_why_a_job_waits_is_said_in_words(reason: str, words: str, advised: str, tmp_path: Path) -> None:
    found = view(read_run(make_run(tmp_path / "r", "running", job="5")), Job("5", "PENDING", reason), now=NOW)
    assert found.reason.startswith(words)
    assert advised in " ".join(found.advice)
    assert "_required" not in found.reason


@pytest.mark.parametrize(
    ("cause", "action", "expected"),
    [
        ("stopped", "none", "stopped"),
        ("cancelled", "none", "cancelled"),
        ("crashed", "give_up", "given up"),
        ("crashed", "none", "failed"),
        ("node_lost", "none", "failed"),
    ],
)
def test_the_state_of_a_run_that_ended_comes_from_its_ledger(
    tmp_path: Path, cause: str, action: str, expected: str
) -> None:
    run = make_run(tmp_path / "r", "stopped" if cause == "stopped" else "failed", at=NOW - 2, job="5", reason="why")
    end(run, cause, action, detail="rank 3 on n2: Killed")
    for job in (None, Job("5", "COMPLETED"), Job("5", "FAILED", exit_code=1)):
        found, reason = state(run, job)
        assert found == expected
        assert "rank 3 on n2: Killed" in reason


def test_done_is_done_whatever_slurm_says(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "done", job="5")
    for job in (None, Job("5", "RUNNING"), Job("5", "TIMEOUT")):
        assert state(run, job)[0] == "done"


def test_a_run_whose_job_is_gone_is_lost_and_one_that_slurm_cannot_be_asked_about_is_silent(tmp_path: Path) -> None:
    old = make_run(tmp_path / "old", "running", at=NOW - 3600, job="5")
    assert state(old)[0] == "lost"
    found = view(read_run(old), None, "no Slurm on the PATH", now=NOW)
    assert (found.state, found.reason) == ("silent", "no heartbeat for 1h00m")
    assert any("no Slurm on the PATH" in line for line in found.advice)
    fresh = make_run(tmp_path / "fresh", "running", at=NOW - 3600, job="6")
    (fresh / "alive.json").write_text(json.dumps({"attempt": 1, "time": NOW - 2, "goodput": {"train": 30.0}}))
    assert state(fresh, silence="no Slurm") == ("running", "")
    assert state(make_run(tmp_path / "c", "running", job="7"), Job("7", "CANCELLED"))[0] == "cancelled"
    found_state, reason = state(make_run(tmp_path / "t", "running", job="8"), Job("8", "TIMEOUT", "TimeLimit"))
    assert (found_state, reason) == ("failed", "Slurm says timeout (TimeLimit)")


def test_a_run_on_this_machine_runs_as_long_as_its_process(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print(flush=True); input()", "vit_dist"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        stall = "training waits for data 43% of the time; decoding is the cause"
        own = {"host": socket.gethostname(), "pid": process.pid, "stall": stall}
        run = make_run(tmp_path / "r", "running", at=NOW - 300, **own)
        assert state(run) == ("running", "")
        found = view(read_run(run), None, now=NOW)
        assert (found.advice, shown.as_json(found)["stall"]) == ((stall,), stall)
        process.kill()
    assert state(run) == ("lost", f"process {process.pid} is gone, and has left no reason")
    found = view(read_run(run), None, now=NOW)
    assert (stall in found.advice, found.stall) == (False, "")


def test_where_a_run_stands_is_computed_from_its_files(tmp_path: Path) -> None:
    goodput = {"train": 80.0, "wait": 20.0, "lost": 100.0}
    run = make_run(tmp_path / "r", "running", job="5", goodput=goodput)
    for name in ("step-0000000300", "step-0000000200", ".step-0000000400.ab.partial"):
        (run / "checkpoints" / name).mkdir(parents=True)
    marker = run / "checkpoints/step-0000000300/COMMITTED.json"
    marker.write_text("{}")
    os.utime(marker, (NOW - 60, NOW - 60))
    (run / "checkpoints/step-0000000200/COMMITTED.json").write_text("{}")
    found = view(read_run(run), Job("5", "RUNNING", start=NOW - 95, nodelist="n[1-2]"), now=NOW)
    assert (found.step, found.total_steps, found.fraction_done) == (400, 1000, 0.4)
    assert (found.saved, found.saved_at, found.useful) == (300, NOW - 60, 0.4)
    assert (found.rate, found.eta_s) == (256.0, 600 * 64 / 256.0)
    assert steps_in_hand(run) == {200, 300, 400}
    alive = json.loads((run / "alive.json").read_text())
    alive |= {"total_steps": 500, "examples_per_s": 640.0, "metrics": {"train/loss": 1.5}}
    (run / "alive.json").write_text(json.dumps(alive))
    exact = view(read_run(run), None, "asked nobody", now=NOW)
    assert (exact.total_steps, exact.rate, exact.eta_s, exact.metrics) == (500, 640.0, 10.0, {"train/loss": 1.5})
    facts = dict(shown.facts(found, NOW))
    assert facts["progress"] == "step 400 of 1,000 (40.0%), 25,600 examples"
    assert facts["saved"] == "step 300, 1m00s ago; 100 steps since"
    assert facts["job"] == "5 on dev, running: n[1-2], 8 processes"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"status": 5, "step": "x", "goodput": 3, "time": null}', "\x00"])
def test_damaged_files_are_findings_and_hide_no_other_run(tmp_path: Path, content: str) -> None:
    bad, good = make_run(tmp_path / "bad"), make_run(tmp_path / "good", "done")
    for name in (*names.HISTORY, *names.FORMER, names.RUN, names.OWNER, names.HEARTBEAT, names.CANCEL, names.REQUEST):
        (bad / name).write_text(content)
    views, silence = look([bad, good])
    assert [v.state for v in views][1] == "done"
    assert silence == ""  # no run of these has a job
    assert shown.row(views[0], NOW)


def test_control_characters_and_secrets_never_reach_the_terminal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "failed", reason="\x1b]0;evil\x07 s3://k:hunter2@host/x\nsecond line")
    found = view(read_run(run), None, now=NOW)
    text = " ".join(shown.row(found, NOW))
    assert "hunter2" not in text
    assert not any(ord(c) < 32 for c in text)


def test_every_state_that_needs_a_person_comes_with_a_command() -> None:
    from launcher.status.advice import advise

    for one in ("failed", "given up", "lost", "silent", "stopped", "cancelled"):
        advised = advise(RunView(Path("/r/a b"), one, saved=5), "", NOW)
        assert any("vit-dist resume '/r/a b'" in line for line in advised.advice), one
    assert explain_waiting("QOSMaxGRESPerUser").startswith("a limit of your account")
    assert "requeue {run} --now" in explain_waiting("BeginTime")
    assert explain_waiting("SomethingNew") == ""


def test_a_requeue_names_the_step_that_the_end_of_the_attempt_has_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "r", "running", job="9")
    jobs = {"9": Job("9", "RUNNING", restarts=0)}

    def save(step: int) -> None:
        marker = run / names.CHECKPOINTS / f"step-{step:010d}" / "COMMITTED.json"
        marker.parent.mkdir(parents=True)
        marker.write_text("{}")

    def requeued(number: str) -> None:
        # Slurm's signal makes the attempt save once more before it ends.
        save(1234)
        jobs[number] = Job(number, "PENDING", restarts=1)

    save(400)
    monkeypatch.setattr(commands, "job", lambda number, **_: jobs[number])
    monkeypatch.setattr(commands, "requeue", requeued)
    assert requeue(run, save_s=None).state == "PENDING"
    assert "r: goes on from step 1,234, its newest checkpoint" in capsys.readouterr().err


def test_a_stop_that_was_asked_for_is_not_turned_into_a_save(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "running")
    ask(run, "stop")
    with pytest.raises(RunError, match="a stop is requested already"):
        ask(run, "save")
    assert (run / "request").read_text() == "stop\n"


@pytest.mark.parametrize(
    ("nodes", "folded"),
    [
        (["n1", "n2", "n3", "n7"], "n[1-3,7]"),
        (["gpu08", "gpu09", "gpu10"], "gpu[08-10]"),
        (["a1", "b2"], "a1,b2"),
        (["n9", "n10"], "n9,n10"),
        (["solo"], "solo"),
    ],
)
def test_names_of_nodes_are_folded(nodes: list[str], folded: str) -> None:
    assert shown.fold(nodes) == folded


def test_the_table_and_the_panel_say_what_the_files_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "vit-l16")
    begun = history.begin(run, launcher="local", devices=2, step=0, nodes=["vm"])
    speak(run, "stopped", 400, 25600, goodput={"train": 1.0})
    history.close(run, begun, cause="stopped", action="none", code=0, reached=400, saved=400)
    assert main(["status", "--runs", str(tmp_path)]) == 0
    head, line, foot = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "step"]
    assert line.split()[:4] == ["vit-l16", "stopped", "400/1,000", "40%"]
    assert foot == "1 run: 1 stopped"
    assert main(["status", "vit", "--runs", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "0 to 400" in text
    assert f"`vit-dist resume {run}` starts it again" in text
    assert main(["status", "vit", "--runs", str(tmp_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["state"], record["attempts"][0]["gained"], record["slurm"]) == ("stopped", 400, "ok")
    assert main(["list", "--runs", str(tmp_path), "--state", "stopped", "--names"]) == 0
    assert capsys.readouterr().out == f"{run}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "nothing"], "no run 'nothing'"),
        (["status", "--watch", "--json"], "--watch and --json"),
        (["status", "--every", "0"], "--every=0"),
        (["logs", "r", "--lines", "-1"], "--lines=-1"),
        (["logs", "r", "--first-error", "-f"], "--first-error looks at all logs"),
        (["list", "clutsers"], "did you mean 'clusters'"),
        (["cancel", "r"], "has no Slurm job"),
        (["checkpoint", "r"], "this one is stopped"),
        (["stop", "r"], "this one is stopped"),
        (["requeue", "r", "--exclude", "n1;id"], "not a node, nor a list"),
    ],
)
def test_bad_input_gets_one_paragraph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    make_run(tmp_path / "r", "stopped")
    assert main([*arguments, "--runs", str(tmp_path)]) in (1, 2)
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize("width", [40, 60, 84, 100, 130, 200])
def test_on_any_terminal_tables_fit_and_names_and_states_stay(tmp_path: Path, width: int) -> None:
    from rich.console import Console

    from vit_dist.cli.runs import screen

    name = "vit-l16-with-a-very-long-name"
    run = make_run(tmp_path / name, "failed", job="5", reason="[red]n[1-4][/red] is down", goodput={"train": 9.0})
    end(run, "node_lost", "requeue", detail="n[1-4] is down " * 9)
    found = view(read_run(run), Job("5", "RUNNING", start=NOW + 9, nodelist="n[1-4]"), now=NOW)
    for shape in (screen.many([found] * 9, "a note", width=width), screen.one(found, width=width)):
        console = Console(width=width, record=True, highlight=False, file=io.StringIO())
        console.print(shape)
        lines = console.export_text().splitlines()
        assert max(map(len, lines)) <= width
        assert all(name[:7] in line for line in lines if "starting" in line and "9 runs" not in line)
        assert any("starting" in line for line in lines)


CANCEL = json.dumps({"job": "6"})


@pytest.mark.parametrize(
    ("events", "cancel", "job", "silence", "expected"),
    [
        ("submitted", "", None, "no Slurm", ("submitted", "as job 6, 50s ago")),
        ("submitted", "", None, "", ("lost", "job 6 ended before it began to train")),
        ("submitted", "", Job("6", "PENDING", "Priority"), "", ("waiting", "Priority")),
        ("submitted", "", Job("6", "RUNNING", start=NOW), "", ("starting", "")),
        ("submitted", "", Job("6", "FAILED", exit_code=1), "", ("failed", "Slurm says failed, exit code 1")),
        ("submitted", CANCEL, None, "no Slurm", ("cancelled", "on request")),
        ("submitted", CANCEL, None, "", ("cancelled", "on request")),
        ("submitted", "", Job("6", "CANCELLED"), "", ("cancelled", "by scancel")),
        ("submitting", "", None, "", ("submitted", "it is being handed to Slurm")),
        ("submitting long ago", "", None, "", ("lost", "the submission did not come to its end")),
        ("begun", "", None, "no Slurm", ("starting", "")),
        ("begun", "", None, "", ("lost", "job 6 is no longer known to Slurm")),
        ("begun", CANCEL, None, "", ("cancelled", "on request")),
        ("queued", "", None, "no Slurm", ("submitted", "job 6 was queued again: preempted: saved")),
        ("queued", "", None, "", ("lost", "job 6 was queued again (preempted: saved), and is gone")),
        ("queued", CANCEL, None, "no Slurm", ("cancelled", "on request")),
        ("queued", "", Job("6", "PENDING", "BeginTime"), "", ("waiting", "BeginTime")),
        ("queued", "", Job("6", "RUNNING", start=NOW - 50, restarts=1), "", ("starting", "")),
        ("queued", "", Job("6", "RUNNING", start=NOW - 50, restarts=0), "", ("ending", "preempted")),
    ],
)
@pytest.mark.parametrize("before", ["", "stopped", "failed"])
def test_a_run_that_has_begun_nothing_yet_is_told_by_its_last_submission(
    tmp_path: Path,
    events: str,
    cancel: str,
    job: Job | None,
    silence: str,
    expected: tuple[str, str],
    before: str,
) -> None:
    """Also where an earlier job of the run has ended in its own way."""
    run = make_run(tmp_path / "r", before, at=NOW - 500, job="5" if before else "")
    after = 1 if before else 0
    if before:
        end(run, "stopped" if before == "stopped" else "crashed", "none", at=NOW - 400)
    submit(run, "" if "submitting" in events else "6", NOW - (200 if "long" in events else 50), after=after)
    if events in {"begun", "queued"}:
        supervised = {"launcher": "slurm", "job": "6"}
        line(run, names.BY_SUPERVISOR, "begun", NOW - 40, attempt=after + 1, **supervised)
    if events == "queued":
        end(run, "preempted", "requeue", detail="saved", at=NOW - 10)
    if cancel:
        (run / "cancel").write_text(cancel)
    found, reason = state(run, job, silence)
    assert (found, reason[: len(expected[1])]) == expected


@pytest.mark.parametrize("content", ["", "yes", '{"job": null}', "[]"])
def test_a_cancel_that_a_person_has_touched_is_of_whatever_job_there_is(tmp_path: Path, content: str) -> None:
    run = tmp_path / "r"
    submit(run, "6", NOW - 50)
    assert state(run)[0] == "lost"
    (run / "cancel").write_text(content)
    assert state(run) == ("cancelled", "on request")
    assert history.is_cancelled(run, {"6"})


@pytest.mark.parametrize(
    ("logs", "advice"),
    [
        ([], []),
        (["logs/batch.log"], ["--batch"]),
        (["logs/attempt-0001/rank-0.log"], ["--first-error"]),
        (["logs/batch.log", "logs/attempt-0001/rank-0.log"], ["--first-error"]),
    ],
)
@pytest.mark.parametrize("how", ["failed", "given up", "lost"])
def test_no_log_is_named_that_is_not_there(tmp_path: Path, logs: list[str], advice: list[str], how: str) -> None:
    run = make_run(tmp_path / "r", "running" if how == "lost" else "failed", job="5")
    if how != "lost":
        end(run, "crashed", "give_up" if how == "given up" else "none")
    for name in logs:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    found = view(read_run(run), None, now=NOW)
    assert found.state == how
    named = [word for line in found.advice for word in ("--batch", "--first-error") if word in line]
    assert named == advice


def test_of_a_long_history_the_table_reads_the_end_and_says_the_same(tmp_path: Path) -> None:
    run = make_run(tmp_path / "r", "running", job="5")
    end(run, "preempted", "requeue", detail="x" * 500)
    for number in range(2, 120):
        supervised = {"launcher": "slurm", "job": "5", "restart": number - 1}
        line(run, names.BY_SUPERVISOR, "begun", NOW - 60, attempt=number, **supervised)
        line(run, names.BY_RANKS, "opened", NOW - 50, attempt=number, host="n1", pid=1)
        line(run, names.BY_RANKS, "training", NOW - 40, attempt=number)
        line(run, names.BY_RANKS, "ended", NOW - 30, attempt=number, status="stopped", step=number, time=NOW - 30)
        end(run, "preempted", "requeue", detail="y" * (300 if number % 7 else 20_000))
    whole, end_alone = read_run(run), read_run(run, most=history.TAIL_BYTES)
    assert len(end_alone.state.attempts) < len(whole.state.attempts) == 119
    assert end_alone.state.attempts == whole.state.attempts[-len(end_alone.state.attempts) :]
    assert end_alone.problems == whole.problems == ()
    one, other = (view(files, None, now=NOW) for files in (whole, end_alone))
    assert (one.tries, one.state, one.reason, one.step) == (other.tries, other.state, other.reason, other.step)
    assert shown.row(one, NOW) == shown.row(other, NOW)


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ([], ""),
        ([(400, {"val/top1": 0.5}, {})], "step 400: val/top1 0.5"),
        (
            [(400, {"val/top1": 0.5}, {"val/top1": "val@other-12345678/top1"})],
            "step 400: val@other-12345678/top1 0.5",
        ),
        ([(300, {"val/top1": 0.4}, {}), (400, {"val/top1": 0.5}, {})], "step 400: val/top1 0.5"),
        ([(400, {"val/top1": 0.5}, {}), (300, {"val/top1": 0.4}, {})], "step 400: val/top1 0.5"),
        (
            [(300, {"a": 0.4, "b": 3.0}, {}), (400, {"a": 0.5}, {"a": "a@x"})],
            "step 400: a@x 0.5; step 300: a 0.4, b 3",
        ),
        ([(1000, {"val/loss": float("nan")}, {})], "step 1,000: val/loss nan"),
    ],
)
def test_what_was_evaluated_is_shown_with_its_sets_and_steps(
    entries: list[tuple[int, dict[str, float], dict[str, str]]],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = make_run(tmp_path / "run", "done", metrics={"val/top1": 0.25})
    for step, values, tags in entries:
        history.evaluated(run, [{"name": "any"}], step, values, {"tags": tags} if tags else {})
    assert main(["status", str(run)]) == 0
    lines = {
        words[0]: words[1] for row in capsys.readouterr().out.splitlines() if len(words := row.split(maxsplit=1)) > 1
    }
    assert lines.get("evaluated", "") == told
    assert lines["measured"] == "val/top1 0.25"
    assert main(["status", str(run), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["evaluated"]
    assert {f"step {one['step']:,}" for one in evaluated.values()} == {
        part.split(":")[0] for part in told.split("; ") if part
    }


@pytest.mark.parametrize(
    "line",
    [
        '{"event": "evaluated", "evaluators": [], "step": 7}',
        '{"event": "evaluated", "evaluators": [], "step": 7, "values": [1]}',
        '{"event": "evaluated", "evaluators": [], "step": "7", "values": {}}',
        '{"event": "evaluated", "evaluators": [], "step": -1, "values": {"a": 1}}',
        '{"event": "evaluated", "evaluators": [], "step": 7, "values": {"a": 1}, "tags": 3}',
        '{"event": "evaluated", "evaluators": [], "step": 7, "values": {"a": 1}, "tags": {"a": 3}}',
    ],
)
def test_damaged_evaluations_are_told_and_hide_nothing_else(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path / "run", "done", metrics={"val/top1": 0.25})
    (run / names.BY_EVALUATORS).write_text(line + "\n")
    assert main(["status", str(run)]) == 0
    said = capsys.readouterr().out
    assert "val/top1 0.25" in said
    assert "damaged" in said
