"""Expressions of tag maps: those that may take for ever are refused, all others are done in time on any text."""

from __future__ import annotations

import re

import pytest

from tests.unit.fuzz.damage import bounded
from vit_dist.scaling.patterns import LEAST, LONGEST, longest_text
from vit_dist.scaling.tagmap import LogMap, TagMap

ENDLESS = [
    *("(a+)+$", "(a|a)*b", "(a|aa)+$", "(a?a?)*b", "((a*)*)*b", "(x+x+)+y", r"(\w*\d*)*x", "([a-z]+)*!", r"(\s*\s*)*x"),
    *("a?" * 40 + "a" * 40, "a*" * 10, r".*.*.*.*x", r"(.*a){12}", "(a{1,50}){1,50}b", ".{0,99}.{0,99}.{0,99}.{0,99}x"),
    *("(?i)a*A*a*A*x", "(?=.*.*.*.*x)a", r"\s*\s*\s*\s*x", r"(\d+|\w+)*x", r"(a|ab|b)*c", "(?P<x>a*)*b", "(.|a)*x"),
]  # fmt: skip
FINE = [
    *(".*", "", r"timm/(?P<family>\w+)_(?P<subset>\d+k?)_s(?P<seed>\d+)", "(ab|cd)+x"),
    *(r"(\d+,)+x", r"\s*\s*x", ".*.*.*x"),
    *(r".*/(.+)-(\w+)-s(\d+)", r"(.+)_(\w+)_s(\d+)/tb", r"^[^/]+/[^/]+/[^/]+/s\d+$", ".+/.+/.+/.+", "(?i)a*A*x*X*y"),
    *("(?:foo|bar)/.*", r"a{3}b?c?", r"(?<!x)run-(\d+)", r"\bseed(\d+)\b", "[^a]*[^b]*x"),
]  # fmt: skip


@pytest.mark.parametrize("pattern", ENDLESS)
def test_what_may_take_for_ever_is_refused(pattern: str) -> None:
    assert longest_text(pattern) < LEAST
    with pytest.raises(ValueError, match="may take for ever"):
        LogMap(directory=pattern, metric="m", examples_per_step=1.0, constants={"family": "x", "subset": 1})


@pytest.mark.parametrize("pattern", FINE)
def test_what_is_taken_is_done_in_time_on_the_worst_of_texts(pattern: str) -> None:
    most = longest_text(pattern)
    assert LEAST <= most <= LONGEST
    for piece in ("a", "_s1", "-1"):
        with bounded():
            re.search(pattern, (piece * most)[: most - 1] + "\0")


@pytest.mark.parametrize("pattern", ["(a", "*", "(?P<1>a)", "a{9999999999}", "(" * 5000, "[z-a]"])
def test_what_is_no_expression_is_told_so(pattern: str) -> None:
    with pytest.raises(ValueError, match=r"not a regular expression|at most 500"):
        LogMap(directory=pattern, metric="m", examples_per_step=1.0, constants={"family": "x", "subset": 1})


def test_a_directory_that_is_too_long_for_an_expression_is_of_no_entry() -> None:
    one = LogMap(directory=".*.*.*x", metric="m", examples_per_step=1.0, constants={"family": "x", "subset": 1})
    read = TagMap(logs=(one,))
    most = longest_text(".*.*.*x")
    assert read.entry("a" * (most - 1) + "x") is one
    assert read.entry("a" * most + "x") is None
