"""The run directory: attempts, owner, requests, supervisor."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any

import pytest

from launcher.processes.ranks import _close_attempt, _note_end_without_a_word, first_words, run_local
from launcher.supervise.attempts import open_entry
from launcher.supervise.local import supervise_local
from tests.histories import speak
from vit_dist.config.load import load_recipe, recipe_hash
from vit_dist.core.errors import RunError
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import newest_step
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.train.progress.attempt_record import AttemptRecord


def test_a_request_is_served_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert history.take_request(tmp_path) == ""
    for asked in ("save", "stop"):
        (tmp_path / "request").write_text(f" {asked.upper()}\n")
        assert history.take_request(tmp_path) == asked
        assert history.take_request(tmp_path) == ""
    (tmp_path / "request").write_text("make coffee")
    assert history.take_request(tmp_path) == ""
    assert (tmp_path / "request.unknown").read_text() == "make coffee"
    assert "it may say `save` or `stop`" in capsys.readouterr().err


def test_the_history_only_grows_and_survives_a_cut_line(tmp_path: Path) -> None:
    history.begin(tmp_path, launcher="local", devices=1, step=0)
    with (tmp_path / "history-supervisor.jsonl").open("a") as file:
        file.write('{"event": "clo')  # the machine died
    history.begin(tmp_path, launcher="local", devices=1, step=0)
    state = history.read(tmp_path)
    assert [(one.attempt, one.open) for one in state.attempts] == [(1, True), (2, True)]
    assert state.findings == ()


def test_an_attempt_that_could_not_say_how_it_ended_counts_as_killed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    first = AttemptRecord(run, World())
    first.begin()
    first.running(7, 70, {"train": 3.0})
    second = AttemptRecord(run, World())
    second.begin()
    assert (second.attempt, second.before.step, second.before.goodput) == (2, 7, {"train": 3.0})
    second.set_progress(9, 90)
    second.end("stopped", "SIGTERM")
    second.end("failed", "too late: the first write wins")
    state = history.read(tmp_path)
    assert [(one.attempt, one.told, one.reached) for one in state.attempts] == [(1, "killed", 7), (2, "stopped", 9)]
    assert state.findings == ()
    status = state.status
    assert status is not None
    assert (status.status, status.reason, status.attempt) == ("stopped", "SIGTERM", 2)


def test_values_of_a_former_version_whose_names_could_be_two_things_are_not_carried_on(tmp_path: Path) -> None:
    old = {"loss": 0.3, "top1": 0.9, "val/top1": 0.8, "fewshot/a_5shot": 0.7}
    speak(tmp_path, "stopped", 7, 70, metrics=old)
    record = AttemptRecord(RunDir(tmp_path), World())
    record.begin()
    assert record.metrics == {"val/top1": 0.8, "fewshot/a_5shot": 0.7}
    record.end("stopped")


def test_an_attempt_that_was_superseded_leaves_the_history_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    orphan, owner = AttemptRecord(run, World()), AttemptRecord(run, World())
    orphan.begin()
    owner.begin()
    owner.running(5, 50, {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    orphan.running(4, 40, {})
    orphan.end("failed", "superseded")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    status = history.read(tmp_path).status
    assert status is not None
    assert (status.status, status.attempt) == ("running", 2)


def test_who_comes_second_leaves_status_and_ledger_of_the_first_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_dist.core.run.directory.DYING_S", 0.0)
    run = RunDir(tmp_path)
    entry = open_entry(tmp_path, launcher="local", devices=1)
    speak(tmp_path, "running", 5, 50)
    with run.locked():
        assert not run.is_free()
        _close_attempt(run, 1)
        with pytest.raises(RunError, match="another attempt is running in this directory"):
            supervise_local(None, tmp_path, scripted([]), give_up_after=1)  # type: ignore[arg-type]
        with pytest.raises(RunError, match="another attempt is running in this directory"):
            run_local(None, tmp_path, nproc=1)  # type: ignore[arg-type]
    status = history.read(tmp_path).status
    assert status is not None
    assert status.status == "running"
    assert [e.open for e in history.read(tmp_path).attempts] == [True]
    assert entry.attempt == 1
    _close_attempt(run, 137)
    closed = history.read(tmp_path).status
    assert closed is not None
    assert (closed.status, closed.reason) == ("failed", "a rank was killed by signal 9")


LOGGED = "2026-11-26T03:50:43.012Z rank 0 ERROR vit-dist train: error: set: no such file; look\nthere"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("nothing", "failed"),
        ("an attempt that failed", "failed"),
        ("run.json of this recipe", "failed"),
        ("run.json of another", "new"),
        ("a word of its own", "done"),
        ("a supervisor", "lost"),
        ("an attempt that runs", "new"),
    ],
)
def test_ranks_that_fail_before_they_own_the_directory_leave_a_run_that_failed(
    tmp_path: Path, before: str, after: str
) -> None:
    recipe, run, logs = load_recipe("demo"), RunDir(tmp_path), tmp_path / "logs" / "attempt-0001"
    logs.mkdir(parents=True)
    (logs / "rank-0.log").write_text(LOGGED)
    if before == "an attempt that failed":
        speak(tmp_path, "failed", reason="before")
    if before == "a supervisor":
        open_entry(tmp_path, launcher="local", devices=1)
    if "run.json" in before:
        run.write_json("run.json", {"recipe_hash": recipe_hash(recipe) if "this" in before else "0123"})
    state = history.read(tmp_path)
    if before == "a word of its own":
        speak(tmp_path, "done", 5)
    with run.locked() if before == "an attempt that runs" else contextlib.nullcontext():
        _note_end_without_a_word(run, recipe, state, 2, first_words(logs, 1), refused=False)
    state = history.read(tmp_path)
    assert history.stands(state, history.JobWord(), time.time())[0] == after
    if after == "failed":
        assert state.status is not None
        assert state.status.reason == f"set: no such file; look (log: {logs / 'rank-0.log'})"
        assert state.status.attempt == (2 if before == "an attempt that failed" else 1)


@pytest.mark.parametrize(
    ("code", "said"),
    [(137, "a rank was killed by signal 9 (log: gone)"), (3, "a rank ended with exit code 3 (log: gone)")],
)
def test_ranks_that_die_without_a_line_are_told_by_their_end(code: int, said: str) -> None:
    assert first_words(Path("gone"), code) == said


def commit(run_dir: Path, step: int) -> None:
    path = run_dir / "checkpoints" / f"step-{step:010d}"
    path.mkdir(parents=True)
    (path / "COMMITTED.json").write_text("{}")


def scripted(script: list[tuple[int, int, str]]) -> Any:
    """Attempts that save up to a step, then end with a code and a status."""
    left = iter(script)

    def attempt(_recipe: Any, run_dir: Path) -> int:
        code, step, status = next(left)
        if step > newest_step(run_dir):
            commit(run_dir, step)
        speak(run_dir, status, step + 2, 0, "a reason" if status == "failed" else "")
        return code

    return attempt


def test_a_run_that_makes_progress_is_restarted_however_often_it_dies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = [(137, 10 * i, "running") for i in range(1, 9)] + [(0, 90, "done")]
    assert supervise_local(None, tmp_path, scripted(script), give_up_after=2, pause_s=0) == 0  # type: ignore[arg-type]
    logged = capsys.readouterr().err
    assert "attempt 3: killed by signal 9" in logged
    assert "at step 32, saved up to 30: gained 10 steps, lost 2" in logged
    assert "attempt 9: done" in logged


def test_a_run_that_makes_no_progress_is_given_up(tmp_path: Path) -> None:
    script = [(137, 10, "running"), (1, 10, "failed"), (71, 10, "failed"), (1, 10, "failed")]
    with pytest.raises(RunError, match=r"given up: 3 attempts in a row .*: failed: a reason; hung: a reason") as caught:
        supervise_local(None, tmp_path, scripted(script), give_up_after=3, pause_s=0)  # type: ignore[arg-type]
    assert "checkpoints are intact, up to step 10" in str(caught.value)


@pytest.mark.parametrize("code", [0, 2, 72, 130, 143])
def test_some_ends_are_not_tried_again(tmp_path: Path, code: int) -> None:
    assert supervise_local(None, tmp_path, scripted([(code, 3, "stopped")]), give_up_after=3) == code  # type: ignore[arg-type]
