"""The history of a run: one table of transitions, folded the same in any order; runs of a former version are read."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.histories import line, speak, submit
from tests.places import ROOT
from vit_dist.core.run import history, names
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.history import JobWord, Progress
from vit_dist.core.run.history.events import (
    FIELDS,
    LATER,
    OF_THE_RUN,
    PHASES,
    STAGES,
    TRANSITIONS,
    Event,
)
from vit_dist.core.run.history.fold import fold
from vit_dist.core.world import World
from vit_dist.train.progress.attempt_record import AttemptRecord

FORMER = ROOT / "tests" / "data" / "former-run"
NOW = 1_700_000_000.0
LOST = "on elsewhere; no heartbeat for 6m40s"
ODD = ["", "{", "[]", "\x00", '{"status": [], "event": "end", "action": {}, "attempt": "x"}']


def table() -> str:
    """The phases and transitions of the code, as the docs show them."""
    rows = ["| phase | means | then may come |", "|---|---|---|"]
    for phase, meaning in PHASES.items():
        own: dict[str, tuple[str, ...]] = {e: to for (of, e), to in TRANSITIONS.items() if of == phase and to != (of,)}
        moves = [f"`{event}` -> {', '.join(to)}" for event, to in own.items()]
        stays = [f"`{e}`" for (of, e), to in TRANSITIONS.items() if of == phase and to == (of,) and e != "requeue"]
        moves += ["stays: " + ", ".join(stays)] if stays else []
        rows.append(f"| {phase} | {meaning} | {'; '.join(moves)} |")
    anywhere = [f"`{event}` -> {phase}" for event, phase in {**LATER, **OF_THE_RUN}.items()]
    assert all(TRANSITIONS[phase, "requeue"] == (phase,) for phase in PHASES)
    rows.append(f"| any | | {'; '.join([*anywhere, 'stays: `requeue`'])} |")
    return "\n".join(rows) + "\n"


def test_the_docs_show_the_table_of_the_code() -> None:
    assert table() in (ROOT / "docs" / "recovery.md").read_text()


def test_the_docs_show_the_words_of_the_code() -> None:
    shown = "".join(f"| {word} | {meaning} |\n" for word, meaning in history.STANDINGS.items())
    assert shown in (ROOT / "docs" / "slurm-verbs.md").read_text()


def test_every_event_has_its_place_in_the_table() -> None:
    kinds = {event for _, event in TRANSITIONS} | {*LATER, *OF_THE_RUN}
    assert kinds == set(STAGES) == set(FIELDS) - {"evaluated"}
    assert {phase for phase, _ in TRANSITIONS} <= set(PHASES)
    assert {to for leads_to in TRANSITIONS.values() for to in leads_to} <= set(PHASES)


def usual(attempts: int = 3) -> list[Event]:
    """What becomes of a run that is preempted and then done."""
    events = [Event("submitting", 0, 1.0, {"after": 0}), Event("submitted", 0, 1.0, {"after": 0, "job": "7"})]
    for n in range(1, attempts + 1):
        told, last = "done" if n == attempts else "stopped", n == attempts
        events += [
            Event("begun", n, 10.0 * n, {"launcher": "slurm", "job": "7"}),
            Event("opened", n, 10.0 * n + 1, {"host": "n1"}),
            Event("training", n, 10.0 * n + 2),
            Event("ended", n, 10.0 * n + 3, {"status": told, "step": n, "time": 10.0 * n + 3}),
            Event("closed", n, 10.0 * n + 4, {"cause": told, "action": "none" if last else "requeue", "saved": n}),
        ]
    return events


@pytest.mark.parametrize("seed", range(20))
def test_the_state_does_not_depend_on_which_line_came_to_the_disk_first_nor_on_clocks(seed: int) -> None:
    dice = random.Random(seed)
    events = usual()
    # Lines of one file keep their order: of people's there may be several between two attempts.
    shuffled = [*events[:2], *dice.sample(events[2:], len(events) - 2)]
    state = fold(shuffled)
    assert state == fold(events)
    assert (state.phase, state.findings, [one.told for one in state.attempts]) == (
        "closed",
        (),
        ["stopped", "stopped", "done"],
    )
    wild = fold([Event(e.kind, e.attempt, dice.uniform(0, 1e9), e.facts) for e in events])
    assert (wild.phase, wild.findings) == ("closed", ())


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_missing_or_twice_there_is_a_state_and_never_an_exception(seed: int) -> None:
    dice = random.Random(seed)
    events = [event for event in usual(4) for _ in range(dice.choice([0, 1, 1, 2]))]
    state = fold(events)
    assert state.phase in PHASES
    word, _ = history.stands(state, JobWord(), 100.0)
    assert word in history.STANDINGS
    for finding in state.findings:
        assert "cannot have been" in finding


@pytest.mark.parametrize(
    ("events", "finding"),
    [
        ([Event("training", 1, 1.0)], "'training' of attempt 1 cannot have been: the run was 'new'"),
        ([Event("closed", 1, 1.0, {"action": "none"})], "'closed' of attempt 1 cannot have been"),
        (
            [Event("begun", 1, 1.0), Event("begun", 1, 2.0)],
            "'begun' of attempt 1 cannot",
        ),
        ([Event("begun", 1, 1.0), Event("training", 1, 2.0)], "the run was 'begun'"),
        ([Event("begun", 1, 1.0), Event("ended", 1, 2.0, {"status": "done"})], "the run was 'begun'"),
        ([Event("opened", 1, 1.0), Event("opened", 1, 2.0)], "the run was 'opened'"),
        ([Event("submitted", 0, 1.0, {"job": "7"})], "'submitted' of attempt 0 cannot have been"),
        ([Event("opened", 1, 1.0), Event("training", 2, 2.0)], "'training' of attempt 2 cannot have been"),
    ],
)
def test_what_the_table_does_not_allow_is_a_finding(events: list[Event], finding: str) -> None:
    (found,) = fold(events).findings
    assert finding in found


def test_of_two_words_on_one_end_the_first_counts() -> None:
    head = [Event("begun", 1, 1.0, {"launcher": "slurm"}), Event("opened", 1, 2.0)]
    told = [Event("ended", 1, 3.0, {"status": "killed", "step": 5}), Event("ended", 1, 4.0, {"status": "failed"})]
    closed = [Event("closed", 1, 5.0, {"cause": c, "action": a}) for c, a in (("hung", "respawn"), ("done", "none"))]
    state = fold([*head, *told, *closed])
    assert state.findings == ()
    assert (state.phase, state.attempts[0].told, state.attempts[0].cause) == ("again", "killed", "hung")


def test_ranks_take_the_number_that_their_supervisor_has_begun_for_them_and_else_the_next(tmp_path: Path) -> None:
    assert speak(tmp_path, "failed") == 1  # nobody supervises it
    begun = history.begin(tmp_path, launcher="local", devices=1, step=0)
    assert (begun.attempt, speak(tmp_path, "stopped", 5)) == (2, 2)
    history.close(tmp_path, begun, cause="stopped", action="none", code=0, reached=5, saved=5)
    again = history.begin(tmp_path, launcher="local", devices=1, step=5)
    history.close(tmp_path, again, cause="start_failed", action="respawn", code=1, reached=5, saved=5)
    assert speak(tmp_path, "running", 6) == 4
    assert history.begin(tmp_path, launcher="local", devices=1, step=5).attempt == 5
    assert history.read(tmp_path).findings == ()


def test_of_several_submissions_before_an_attempt_the_last_counts(tmp_path: Path) -> None:
    for job in ("7", "8"):
        history.submitted(tmp_path, job, history.submitting(tmp_path, {"nodes": int(job), "name": "r", "path": "x"}))
    history.submitting(tmp_path, {"nodes": 9})
    state = history.read(tmp_path)
    assert (state.phase, state.job_id, state.submission["nodes"]) == ("submitting", "", 9)
    history.submitted(tmp_path, "9", 0)
    state = history.read(tmp_path)
    assert (state.phase, state.job_id, state.findings) == ("submitted", "9", ())
    begun = history.begin(tmp_path, launcher="slurm", devices=1, step=0, job="9")
    history.close(tmp_path, begun, cause="stopped", action="none", code=0, reached=0, saved=0)
    history.submitted(tmp_path, "10", history.submitting(tmp_path, {}))
    assert (history.read(tmp_path).phase, history.read(tmp_path).job_id) == ("submitted", "10")


def test_a_line_of_a_later_version_is_passed_over(tmp_path: Path) -> None:
    submit(tmp_path, "7", 1.0, colour="blue")
    line(tmp_path, names.BY_PEOPLE, "praised", 2.0, attempt=0)
    state = history.read(tmp_path)
    assert (state.phase, state.findings) == ("submitted", ())


@pytest.fixture
def former(tmp_path: Path) -> Path:
    """A run that a former version has begun, in the middle of its third attempt, the second of its ranks' count."""
    return Path(shutil.copytree(FORMER, tmp_path / "former"))


def test_a_run_of_a_former_version_is_read(former: Path) -> None:
    state = history.read(former)
    assert state.findings == ()
    told = [(one.attempt, one.cause, one.told, one.trained, one.saved) for one in state.attempts]
    assert told == [(1, "preempted", "stopped", False, 200), (2, "start_failed", "", False, 200), (3, "", "", True, 0)]
    assert (state.phase, state.job_id, state.submission["spares"]) == ("training", "42", 1)
    progress = state.progress
    assert (progress.step, progress.time, progress.goodput["train"]) == (350, NOW - 2, 508.0)
    assert history.stands(state, JobWord("active", start=NOW - 500, restarts=1), NOW) == ("running", "")
    assert history.stands(state, JobWord("gone"), NOW)[0] == "lost"
    values = history.evaluation(former, [{"name": "classification"}], 200)
    assert str(values) == "{'val/top1': 0.5, 'val/loss': nan}"


def test_a_run_of_a_former_version_is_resumed_and_its_files_stay_as_they_are(former: Path) -> None:
    before = {path: (former / path).read_bytes() for path in names.FORMER}
    record = AttemptRecord(RunDir(former), World())
    record.begin()
    assert (record.attempt, record.before.step, record.before.goodput["train"]) == (4, 350, 508.0)
    # The older attempt, of whatever version, sees by its own file that it is superseded.
    assert json.loads((former / "owner.json").read_text())["token"] == record.token
    assert "attempt 4" in history.superseded_by(former, "b" * 32)
    record.running(310, 310 * 64, {"train": 600.0})
    record.end("stopped", "SIGTERM")
    state = history.read(former)
    assert [one.told for one in state.attempts] == ["stopped", "", "killed", "stopped"]
    assert (state.progress.step, state.findings) == (310, ())
    assert {path: (former / path).read_bytes() for path in names.FORMER} == before


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": "done", "step": 1000}, ("done", "")),
        ({"status": "failed", "reason": "loss is not finite"}, ("failed", "loss is not finite")),
        ({"status": "stopped", "reason": "SIGTERM"}, ("stopped", "SIGTERM")),
        ({"status": "running", "host": "elsewhere"}, ("running", "")),
        (
            {"status": "running", "host": "elsewhere", "time": NOW - 400},
            ("silent", "on elsewhere; no heartbeat for 6m40s"),
        ),
    ],
)
def test_a_run_of_a_former_version_without_a_supervisor_is_read(
    tmp_path: Path, changes: dict[str, Any], expected: tuple[str, str]
) -> None:
    status = {"step": 5, "examples": 80, "host": "h", "pid": 3, "time": NOW - 9, "attempt": 1, **changes}
    (tmp_path / "status.json").write_text(json.dumps(status))
    start = {"event": "start", "attempt": 1, "host": "elsewhere", "pid": 3, "ranks": 4, "time": NOW - 500}
    (tmp_path / "attempts.jsonl").write_text(json.dumps(start) + "\n")
    state = history.read(tmp_path)
    assert (history.stands(state, JobWord(), NOW), state.findings) == (expected, ())
    assert (state.attempts[0].devices, state.progress.step) == (4, status["step"])


@pytest.mark.parametrize("name", names.FORMER[:4])
@pytest.mark.parametrize(
    "content", ["", "{", "[]", "\x00", '{"status": [], "event": "end", "action": {}, "attempt": "x"}']
)
def test_damage_in_a_file_of_a_former_version_costs_that_file_alone(former: Path, name: str, content: str) -> None:
    (former / name).write_text(content)
    state = history.read(former, forgiving=True)
    assert history.stands(state, JobWord(), NOW)[0] in history.STANDINGS
    if name != names.FORMER_JOB:
        assert state.job_id == "42"


@pytest.mark.parametrize("supervised", [False, True])
@pytest.mark.parametrize(("opened", "restored"), [(0, 18), (18, 18), (18, 12)])
def test_an_attempt_has_gained_what_lies_beyond_the_step_it_was_restored_to(
    tmp_path: Path, supervised: bool, opened: int, restored: int
) -> None:
    begun = history.begin(tmp_path, launcher="local", devices=1, step=opened) if supervised else None
    number, _, _ = history.take(tmp_path, ranks=1, saved=opened)
    history.training(tmp_path, number, restored)
    history.end(tmp_path, "done", Progress(attempt=number, time=9.0, step=30), saved=30)
    if begun is not None:
        history.close(tmp_path, begun, cause="done", action="none", code=0, reached=30, saved=30)
    last = history.read(tmp_path).last
    assert last is not None
    assert (last.step, last.gained) == (restored, 30 - restored)
