"""Lines for people: plain on a terminal, with time, rank and level in files, and secrets nowhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from vit_dist.core.errors import RunError
from vit_dist.core.log import WARNING, launcher_log, log, log_to_file, without_stamp

STAMP = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


def as_rank(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    start = "import sys, pathlib; from vit_dist.core.log import *; from vit_dist.core.log import speak_as_rank\n"
    return subprocess.run(
        [sys.executable, "-c", start + code, *arguments], capture_output=True, text=True, check=False, timeout=60
    )


def test_a_rank_with_a_file_prints_text_alone_and_writes_down_who_and_when(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "attempt-0001" / "rank-3.log"
    done = as_rank(
        "speak_as_rank(3, pathlib.Path(sys.argv[1])); log('  model: vit'); log('careful', WARNING)\n"
        "log_to_file('step 7'); log('s3://k:secret@host/a', ERROR); raise ValueError('at last')",
        str(path),
    )
    assert done.stderr.startswith("  model: vit\ncareful\ns3://k:***@host/a\n")
    assert "step 7" not in done.stderr
    assert done.stderr.count("ValueError: at last") == 1
    assert f"its traceback is kept in {path}\n" in done.stderr
    written = path.read_text()
    for line in ("INFO   model: vit", "WARNING careful", "INFO step 7", "ERROR Traceback (most recent call last):"):
        assert re.search(rf"^{STAMP} rank 3 {re.escape(line)}$", written, re.MULTILINE), line
    assert written.endswith("ValueError: at last\n")
    assert "secret" not in written


def test_a_rank_whose_output_a_launcher_keeps_prints_who_and_when() -> None:
    done = as_rank("speak_as_rank(12, None); log('first\\nsecond')")
    assert re.fullmatch(rf"{STAMP} rank 12 INFO first\nsecond\n", done.stderr)


def test_a_file_that_cannot_be_written_costs_the_line_and_not_the_run(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    done = as_rank("speak_as_rank(0, pathlib.Path(sys.argv[1])); log('on we go')", str(tmp_path / "logs" / "a.log"))
    assert (done.returncode, done.stderr) == (0, "on we go\n")


def test_a_launcher_s_lines_go_to_its_file_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with launcher_log(tmp_path / "batch.log"):
        log("begins", WARNING)
        log_to_file("alone")
    log("after")
    assert capsys.readouterr().err == "begins\nafter\n"
    assert [without_stamp(line) for line in (tmp_path / "batch.log").read_text().splitlines()] == ["begins", "alone"]


def test_the_traceback_of_what_a_launcher_did_not_expect_is_kept_and_its_file_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "batch.log"
    for error in (KeyError("x"), OSError("disk"), RuntimeError("torch")):
        with pytest.raises(type(error)), launcher_log(path):
            raise error
        assert f"its traceback is kept in {path}\n" in capsys.readouterr().err
        assert "ERROR Traceback (most recent call last):\n" in path.read_text()
        path.unlink()
    with pytest.raises(RunError), launcher_log(path):
        raise RunError("said in one line")
    assert capsys.readouterr().err == ""
    assert not path.exists()


def test_a_stamp_is_taken_off_and_nothing_else() -> None:
    assert without_stamp("2026-11-26T03:50:43.012Z rank 511 ERROR Traceback (most") == "Traceback (most"
    assert without_stamp("2026-11-26T03:50:43.012Z launcher INFO   attempt 1") == "  attempt 1"
    for line in ("  step 10", "rank 3 is gone", "2026-11-26 a date"):
        assert without_stamp(line) == line


def test_a_program_that_logs_by_itself_prints_no_line_twice() -> None:
    done = as_rank("import logging; logging.basicConfig(level=logging.DEBUG); log('once')")
    assert done.stderr == "once\n"
