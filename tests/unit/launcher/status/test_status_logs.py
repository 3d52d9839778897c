"""Among the logs of many ranks the error that came first is found; ends of logs are shown, and followed."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from launcher.status.logs import attempt_dir, first_error, follow, rank_log, rank_logs, tail
from vit_dist.cli.main import main
from vit_dist.core.errors import ConfigError, RunError

LOST = "vit-dist train: rank {}: another rank is gone: no collective can complete\n"
SRUN_PEERS = (
    "srun: error: n2: task 1: Exited with exit code 70\nslurmstepd: error: *** STEP 5.0 ON n1 CANCELLED AT x ***\n"
)
TRACEBACK = """\
  step 10/100  loss 1.2
Traceback (most recent call last):
  File "a.py", line 1, in f
    g()
ValueError: first
During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "b.py", line 2, in h
    i()
RuntimeError: the real one
"""


def logs(folder: Path, *, srun: str = "", **ranks: str) -> Path:
    """logs/attempt-0001 of a run; ranks fall silent in the order in which they are given."""
    directory = folder / "logs" / "attempt-0001"
    directory.mkdir(parents=True)
    for i, (name, text) in enumerate(ranks.items()):
        path = directory / f"rank-{name.removeprefix('r')}.log"
        path.write_text(f"  model: vit-test\n  step 10/100  loss 1.2\n{text}")
        os.utime(path, (1000 + i, 1000 + i))
    (directory / "srun.log").write_text(srun)
    return directory


def test_a_rank_s_own_error_counts_before_the_complaints_of_those_that_lost_it(tmp_path: Path) -> None:
    found = first_error(logs(tmp_path, r0=LOST.format(0), r1=TRACEBACK, r2=LOST.format(2), srun=SRUN_PEERS))
    assert found is not None
    assert (found.rank, found.message, found.noise) == (1, "RuntimeError: the real one", False)
    assert any("ValueError: first" in line for line in found.context)


def test_errors_are_found_behind_time_rank_and_level(tmp_path: Path) -> None:
    stamp = "2026-11-26T03:50:43.012Z rank {} ERROR "
    real = TRACEBACK.replace("Traceback", stamp.format(1) + "Traceback", 1)
    own = f"{stamp.format(2)}vit-dist train: error: /data is gone\n"
    found = first_error(logs(tmp_path / "a", r0=stamp.format(0) + LOST.format(0), r1=real))
    assert found is not None
    assert (found.rank, found.message) == (1, "RuntimeError: the real one")
    found = first_error(logs(tmp_path / "b", r0=stamp.format(0) + LOST.format(0), r2=own))
    assert found is not None
    assert (found.rank, found.message) == (2, "vit-dist train: error: /data is gone")


def test_of_two_errors_that_of_the_rank_that_fell_silent_first_counts(tmp_path: Path) -> None:
    texts = {"r7": "vit-dist train: error: /data is gone\n", "r0": "torch.OutOfMemoryError: CUDA out of memory\n"}
    found = first_error(logs(tmp_path, **texts))
    assert found is not None
    assert (found.rank, found.message) == (7, "vit-dist train: error: /data is gone")


def test_a_rank_that_was_killed_left_no_word_so_srun_names_it(tmp_path: Path) -> None:
    srun = f"srun: error: n1: task 3: Killed\n{SRUN_PEERS}"
    found = first_error(logs(tmp_path, r0=LOST.format(0), r3="", srun=srun))
    assert found is not None
    assert (found.rank, found.message) == (None, "srun: error: n1: task 3: Killed")


def test_a_node_that_failed_is_the_cause_of_all_else(tmp_path: Path) -> None:
    srun = "srun: error: Node failure on n2\nsrun: Job step aborted: Waiting up to 32 seconds for job step to finish.\n"
    gloo = "RuntimeError: a collective that nobody has a rule for\n"
    found = first_error(logs(tmp_path, r0=f"Traceback (most recent call last):\n  x\n{gloo}", srun=srun))
    assert found is not None
    assert found.message == "srun: error: Node failure on n2"


def test_where_there_are_only_complaints_they_are_shown_as_such(tmp_path: Path) -> None:
    found = first_error(logs(tmp_path, r0=LOST.format(0), srun=SRUN_PEERS))
    assert found is not None
    assert found.noise
    assert first_error(logs(tmp_path / "other", r0="", r1="")) is None


def test_a_progress_bar_counts_as_its_last_state(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\r\nstep 1\rstep 2\rstep 3\nlast \xff without an end")
    assert tail(path, 0) == ["one", "step 3", "last \ufffd without an end"]
    assert tail(path, 1) == ["last \ufffd without an end"]
    path.write_text("".join(f"line {i}\n" for i in range(700_000)))
    assert tail(path, 2) == ["line 699998", "line 699999"]
    with pytest.raises(RunError, match="cannot be read: No such file"):
        tail(tmp_path / "none", 1)


def test_ranks_and_attempts_that_are_not_there_are_named_with_those_that_are(tmp_path: Path) -> None:
    directory = logs(tmp_path, r00="", r01="", r10="")
    assert list(rank_logs(directory)) == [0, 1, 10]
    with pytest.raises(ConfigError, match=r"--rank 3: .* has logs of ranks 0 to 10"):
        rank_log(directory, 3)
    with pytest.raises(ConfigError, match="--attempt 9: there are logs of 1 in"):
        attempt_dir(tmp_path, 9)
    with pytest.raises(RunError, match="no log of an attempt is there"):
        attempt_dir(tmp_path / "none")


def test_following_goes_from_attempt_to_attempt_and_ends_with_the_run(tmp_path: Path) -> None:
    first, second = tmp_path / "1", tmp_path / "2"
    first.write_text("old\nlast of old\n")
    ended = threading.Event()

    def write() -> None:
        for path, text in ((first, "more\n"), (first, "cut in"), (first, " two\n"), (second, "again\nno end")):
            time.sleep(0.4)
            with path.open("a") as file:
                file.write(text)
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    lines = list(follow(lambda: second if second.exists() else first, ended.is_set, lines=1))
    writer.join()
    assert [(path.name, line) for path, line in lines] == [
        ("1", "last of old"),
        ("1", "more"),
        ("1", "cut in two"),
        ("2", "again"),
        ("2", "no end"),
    ]


def test_the_command_shows_ends_errors_and_no_terminal_codes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "vit"
    logs(run, r0=f"\x1b]0;evil\x07\x08\x1b[31mred\n{LOST.format(0)}", r1=TRACEBACK)
    (run / "status.json").write_text("{}")
    assert main(["logs", "vit", "--runs", str(tmp_path), "-n", "2"]) == 0
    assert capsys.readouterr().out == f"\\x1b]0;evil\\x07\\x08\x1b[31mred\n{LOST.format(0)}"
    assert main(["logs", "vit", "--runs", str(tmp_path), "--first-error"]) == 0
    captured = capsys.readouterr()
    assert captured.out.rstrip().endswith("RuntimeError: the real one")
    assert f"rank 1, {run}/logs/attempt-0001/rank-1.log:" in captured.err
