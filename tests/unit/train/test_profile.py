"""`--profile`: which steps are meant, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from vit_dist.core.errors import ConfigError
from vit_dist.train.profile import Profiler, ProfileSteps, profile_options


@pytest.mark.parametrize(
    ("text", "done", "placed"),
    [("10:13", 0, (10, 13)), ("10-13", 5, (10, 13)), ("4", 0, (4, 7)), ("4", 100, (104, 107)), ("7:7", 0, (7, 7))],
)
def test_steps_are_numbered_or_counted_behind_the_first_three(text: str, done: int, placed: tuple[int, int]) -> None:
    assert ProfileSteps.parse(text).placed(done) == placed
    assert profile_options(text) == (f"--profile={text}",)


@pytest.mark.parametrize("text", ["x", "0", "5:4", "0:3", "1:2:3", "-3", "1:101"])
def test_what_names_no_steps_is_refused_with_what_was_given(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--profile={text}: "):
        profile_options(text)


def test_no_option_hands_nothing_on() -> None:
    assert profile_options("") == ()


def steps(profiler: Profiler, first: int, last: int) -> None:
    for step in range(first, last + 1):
        profiler.before(step)
        with torch.profiler.record_function(f"number {step}"):
            torch.ones(3).sum()
        profiler.after(step)


def trace(folder: Path) -> tuple[str, set[str]]:
    (path,) = folder.iterdir()
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return path.name, {event["name"] for event in events if event.get("name", "").startswith("number ")}


def test_a_trace_holds_the_steps_that_were_asked_for(tmp_path: Path) -> None:
    steps(Profiler(ProfileSteps.parse("2:3"), tmp_path / "profile", 5, 0), 1, 6)
    assert trace(tmp_path / "profile") == ("trace-rank-00005-steps-2-3.json.gz", {"number 2", "number 3"})


def test_a_run_that_ends_amid_the_steps_leaves_what_there_was(tmp_path: Path) -> None:
    profiler = Profiler(ProfileSteps.parse("2:30"), tmp_path / "profile", 0, 0)
    steps(profiler, 1, 4)
    profiler.close(4)
    assert trace(tmp_path / "profile") == ("trace-rank-00000-steps-2-4.json.gz", {"number 2", "number 3", "number 4"})


def test_an_attempt_that_begins_behind_the_steps_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps(Profiler(ProfileSteps.parse("2:3"), tmp_path / "profile", 0, 40), 41, 43)
    assert not (tmp_path / "profile").exists()
    assert "step 2 is past, the attempt begins after step 40" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "profile").write_text("")
    steps(Profiler(ProfileSteps.parse("1:2"), tmp_path / "profile", 0, 0), 1, 3)
    assert "training continues without a trace" in capsys.readouterr().err
