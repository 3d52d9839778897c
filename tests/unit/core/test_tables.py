"""Tables for people: what is left out, cut and coloured."""

from __future__ import annotations

import pytest
from rich.text import Text

from vit_dist.core.tables import columns, to_lines

HEADS = ("run", "state", "step", "note")
ROWS = [
    ("vit-l16-imagenet21k-[red]x", "running", "123,456", "n[1-4] is down since the morning"),
    ("b", "done", "1", ""),
]


def shown(width: int | None) -> list[str]:
    return to_lines(
        columns(ROWS, HEADS, right={"step"}, width=width, dispensable=("state",), flexible={"run": 12, "note": 10})
    )


def test_columns_are_aligned_and_markup_in_a_name_is_text() -> None:
    assert shown(None) == [
        "run                         state       step  note",
        "vit-l16-imagenet21k-[red]x  running  123,456  n[1-4] is down since the morning",
        "b                           done           1",
    ]


@pytest.mark.parametrize("width", [31, 36, 44, 50, 60, 80])
def test_in_a_narrow_window_texts_are_cut_and_numbers_are_not(width: int) -> None:
    lines = shown(width)
    assert len(lines) == 3
    assert max(map(len, lines)) <= width
    assert "123,456" in lines[1]
    assert lines[1].startswith("vit-l16")
    assert ("running" in lines[1]) == (width >= 12 + 7 + 7 + 10 + 3 * 2)


def test_columns_without_anything_are_left_out() -> None:
    assert to_lines(columns([("a", "", "1"), ("bb", "", "")], ("x", "y", "z"))) == ["x   z", "a   1", "bb"]
    assert to_lines(columns([("ok", "a thing", ""), ("FAIL", "b", "")])) == ["ok    a thing", "FAIL  b"]
    assert to_lines(columns([])) == []


def test_wide_characters_count_twice() -> None:
    assert to_lines(columns([("漢字", "1"), ("ab", "2")])) == ["漢字  1", "ab    2"]


def test_colours_are_for_terminals() -> None:
    table = columns([(Text("sick", "red"), "n1")])
    assert to_lines(table) == ["sick  n1"]
    assert "\033[31msick" in to_lines(table, colour=True)[0]
