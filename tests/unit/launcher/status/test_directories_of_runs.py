"""`status` and `list` of directories that hold runs, or none: what is shown, and what is said."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.status.find import find_run
from tests.histories import speak
from vit_dist.cli.list import main as list_main
from vit_dist.cli.runs.status import main as status_main
from vit_dist.core.errors import ConfigError


@pytest.fixture(autouse=True)
def somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """runs/ with a run and a study of two, empty/, photos/ with something else."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))  # no Slurm
    monkeypatch.setattr("launcher.status.find._cluster_roots", lambda: iter(()))
    for name in ("one", "study/a", "study/b"):
        speak(tmp_path / "there" / name, "done", 5, 50)
    (tmp_path / "empty").mkdir()
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    (tmp_path / "photos" / "cat" / "1.jpg").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("there", {"one", "a", "b"}),
        ("there/", {"one", "a", "b"}),
        (".", {"one", "a", "b"}),
        ("there/study", {"a", "b"}),
        ("./there/study/", {"a", "b"}),
        ("there/../there", {"one", "a", "b"}),
    ],
)
def test_status_of_a_directory_of_runs_is_a_table_of_them(
    word: str, names: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_main([word]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["run", "state"]
    assert {line.split()[0] for line in lines[1:-1]} == names
    assert lines[-1] == f"{len(names)} runs: {len(names)} done"


@pytest.mark.parametrize("word", ["empty", "./empty", "photos", "photos/cat"])
def test_a_directory_without_runs_is_told_with_what_to_do(word: str) -> None:
    with pytest.raises(ConfigError, match="no run is in this directory, nor in the 3 levels below it; give the dir"):
        status_main([word])


def test_other_verbs_want_one_run_and_list_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match=r"a directory that holds 2 runs, and is none; give one:\n.*/a\n.*/b"):
        find_run("there/study", [])


def test_a_run_goes_by_its_directory_though_it_lies_among_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_main(["there/one"]) == 0
    assert capsys.readouterr().out.startswith("one  done\n")


@pytest.mark.parametrize("words", [[], ["--runs", "empty"], ["--state", "failed"], ["--names", "--runs", "photos"]])
def test_a_list_of_no_runs_says_so_and_leaves_standard_output_empty(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert list_main(words) == 0
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("no runs: looked in ")
    assert "--runs DIR looks elsewhere" in told.err


def test_a_list_of_no_runs_in_a_state_says_which(capsys: pytest.CaptureFixture[str]) -> None:
    assert list_main(["--runs", "there", "--state", "failed"]) == 0
    assert capsys.readouterr().err == "no runs in state failed\n"


def test_status_of_nothing_says_where_it_looked(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_main(["--runs", "empty"]) == 0
    assert capsys.readouterr().out.startswith("no runs: looked in empty; --runs DIR looks elsewhere")
