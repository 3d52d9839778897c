"""An attempt that is asked for what cannot be did not begin: its run stands as before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.supervise.attempts import close_entry, open_entry
from tests.histories import speak
from vit_dist.core.run import history, names
from vit_dist.core.run.history import TAIL_BYTES, JobWord, State

REASON = "data.takedown=list.txt: 2 of 2 new keys name images of this run in another spelling\nand more"


def stopped(run: Path) -> None:
    speak(run, "stopped", 12, 96, "SIGTERM", goodput={"train": 9.0}, total_steps=400)


def failed(run: Path) -> None:
    speak(run, "failed", 12, 96, "NaN")


def done(run: Path) -> None:
    speak(run, "done", 400, 3200)


def killed(run: Path) -> None:
    history.take(run, ranks=1, saved=0)
    history.end(run, "stopped", history.Progress(1, step=3), reason="Ctrl-C")
    number, _, _ = history.take(run, ranks=1, saved=3)
    history.training(run, number, 3)
    # The next one finds it gone, and fails itself.
    number, _, _ = history.take(run, ranks=1, saved=3)
    history.end(run, "failed", history.Progress(number, step=3), reason="of its own")


def supervised(run: Path) -> None:
    entry = open_entry(run, launcher="local", devices=2)
    speak(run, "stopped", 12, 96, "SIGINT")
    close_entry(run, entry, cause="stopped", action="none", code=130, status=None)


def given_up(run: Path) -> None:
    entry = open_entry(run, launcher="local", devices=2)
    speak(run, "failed", 12, 96, "NaN")
    close_entry(run, entry, cause="crashed", action="give_up", code=1, status=None, detail="NaN")


def cancelled_in_a_job(run: Path) -> None:
    history.submitted(run, "7", history.submitting(run, {}))
    entry = open_entry(run, launcher="slurm", devices=2, job="7")
    speak(run, "running", 12, 96)
    close_entry(run, entry, cause="cancelled", action="none", code=143, status=None, detail="on request")


def by_ranks_alone(run: Path) -> None:
    number, _, before = history.take(run, ranks=2, saved=0)
    history.beat(run, history.Progress(number, time.time(), *_reached(before)))
    history.end(run, "failed", history.Progress(number), reason=REASON, refused=True)


def _reached(before: State) -> tuple[int, int, int]:
    return before.progress.step, before.progress.examples, before.progress.total_steps


def by_whoever_started_them(run: Path) -> None:
    history.failed_to_begin(run, ranks=2, saved=0, reason=REASON, refused=True)


def under_a_supervisor(run: Path) -> None:
    entry = open_entry(run, launcher="local", devices=2)
    by_ranks_alone(run)
    close_entry(run, entry, cause="invalid", action="none", code=2, status=None, detail=REASON)


def before_they_owned_the_directory(run: Path) -> None:
    entry = open_entry(run, launcher="local", devices=2)
    close_entry(run, entry, cause="invalid", action="none", code=2, status=None, detail=REASON)


def in_a_job(run: Path) -> None:
    history.submitted(run, "8", history.submitting(run, {}))
    entry = open_entry(run, launcher="slurm", devices=2, job="8")
    by_ranks_alone(run)
    close_entry(run, entry, cause="invalid", action="none", code=2, status=None, detail=REASON)


Change = Callable[[Path], None]
BEFORE: list[Change] = [stopped, failed, done, killed, supervised, given_up, cancelled_in_a_job]
REFUSED: list[Change] = [
    by_ranks_alone,
    by_whoever_started_them,
    under_a_supervisor,
    before_they_owned_the_directory,
    in_a_job,
]
OF_A_JOB_THAT_ENDED = JobWord("ended", "Slurm says failed, exit code 2")


def stands(run: Path, most: int | None = None) -> tuple[str, str]:
    state = history.read(run, most=most)
    return history.stands(state, OF_A_JOB_THAT_ENDED if state.job_id else JobWord(), time.time())


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("refuse", REFUSED)
def test_a_run_stands_as_before_whoever_was_refused_and_however_often(
    before: Change, refuse: Change, tmp_path: Path
) -> None:
    before(tmp_path)
    stood, state = stands(tmp_path), history.read(tmp_path)
    assert state.findings == ()
    for times in range(1, 3):
        refuse(tmp_path)
        now = history.read(tmp_path)
        assert now.findings == ()
        assert [(one.attempt, one.cause, one.step) for one in now.attempts] == [
            (one.attempt, one.cause, one.step) for one in state.attempts
        ]
        assert (now.newest, len(now.refused)) == (state.newest + times, times)
        assert now.progress.step == state.progress.step
        word, why = stands(tmp_path)
        assert word == stood[0]
        if word == "done":
            assert why == stood[1]
        else:
            assert why.startswith(stood[1])
            # Why, in one line, and which one: its logs lie under that number.
            assert f"attempt {now.newest} was refused: {REASON.splitlines()[0]}" in why
            assert "\n" not in why


def test_a_table_of_runs_which_reads_the_ends_of_files_shows_what_stands_before_many_refusals(tmp_path: Path) -> None:
    stopped(tmp_path)
    for _ in range(9):
        by_whoever_started_them(tmp_path)
    assert (tmp_path / names.BY_RANKS).stat().st_size > TAIL_BYTES
    assert stands(tmp_path, TAIL_BYTES) == stands(tmp_path)
    assert stands(tmp_path)[0] == "stopped"


@pytest.mark.parametrize("refuse", REFUSED)
def test_what_begins_after_a_refusal_goes_on_from_what_was_before(refuse: Change, tmp_path: Path) -> None:
    stopped(tmp_path)
    refuse(tmp_path)
    assert speak(tmp_path, "running", 13, 104) == 3
    state = history.read(tmp_path)
    assert [one.attempt for one in state.attempts] == [1, 3]
    assert state.last_refusal is None
    assert state.phase == "training"
    speak(tmp_path, "stopped", 20, 160, "SIGINT")
    assert stands(tmp_path) == ("stopped", "SIGINT")
    assert history.read(tmp_path).attempt(2) is not None


@pytest.mark.parametrize("refuse", REFUSED)
def test_of_a_run_that_was_nothing_before_the_refusal_is_all_there_is_to_tell(refuse: Change, tmp_path: Path) -> None:
    refuse(tmp_path)
    word, why = stands(tmp_path)
    assert word == "failed"
    assert REASON.splitlines()[0] in why
    assert history.read(tmp_path).refused == ()


def test_a_refusal_amid_a_supervisors_attempts_is_their_end(tmp_path: Path) -> None:
    entry = open_entry(tmp_path, launcher="local", devices=2)
    speak(tmp_path, "failed", 12, 96, "NaN")
    close_entry(tmp_path, entry, cause="crashed", action="respawn", code=1, status=None)
    under_a_supervisor(tmp_path)
    assert stands(tmp_path)[0] == "failed"


def test_an_attempt_that_has_trained_is_not_undone_by_what_it_meets_then(tmp_path: Path) -> None:
    stopped(tmp_path)
    number = speak(tmp_path, "running", 13, 104)
    history.end(tmp_path, "failed", history.Progress(number, step=14), reason="metric: no such", refused=True)
    assert stands(tmp_path) == ("failed", "metric: no such")


def test_a_submission_after_a_refusal_is_what_stands(tmp_path: Path) -> None:
    stopped(tmp_path)
    in_a_job(tmp_path)
    history.submitted(tmp_path, "9", history.submitting(tmp_path, {}))
    state = history.read(tmp_path)
    assert (state.phase, state.job_id, state.findings) == ("submitted", "9", ())
    history.requeue(tmp_path, "9")
    assert history.read(tmp_path).findings == ()
