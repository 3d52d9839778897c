"""YAML is read whole, or refused in one line that says where: in bounded time and memory, whatever the text."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vit_dist.config.load import load_recipe, resolve
from vit_dist.config.safe_yaml import MAX_CHARACTERS, parse_yaml
from vit_dist.core.errors import ConfigError


def doubling(levels: int, width: int, item: str = "[{}]", pair: str = "{}") -> str:
    """A file in which each line holds the one before it several times: small as a text, huge as values."""
    lines = [f"a0: &a0 {item.format(', '.join([pair.format(1)] * width))}"]
    lines += [
        f"a{i}: &a{i} {item.format(', '.join(pair.format(f'*a{i - 1}') for _ in range(width)))}"
        for i in range(1, levels)
    ]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        (doubling(9, 9), 6, "more than 100,000 values"),
        (doubling(40, 2), 16, "more than 100,000 values"),
        ("\n".join(f"k{i}: {{x: *b}}" if i else f"b: &b [{'1,' * 9000}]" for i in range(20)), 1, "100,000 values"),
        ("x: " + "[" * 3000 + "]" * 3000, 1, "more than 60 levels"),
        ("x: " + "{a: " * 100 + "1" + "}" * 100, 1, "more than 60 levels"),
        ("\n".join(" " * i + "a:" for i in range(100)), 60, "more than 60 levels"),
        ("- " * 100 + "1", 1, "more than 60 levels"),
        ("a: &a [*a]", 1, "*a contains itself"),
        ("a: &a {b: {c: *a}}", 1, "*a contains itself"),
        ("seed: " + "9" * 5000, 1, "a number of 5,000 characters"),
        ("seed: -" + "1" * 40, 1, "a number of 41 characters"),
        ("seed: !!int xx", 1, "'xx' is not !!int"),
        ("seed: !!int ''", 1, "'' is not !!int"),
        ("a: 1\nseed: !!float 1.2.3", 2, "'1.2.3' is not !!float"),
        ("seed: !!bool perhaps", 1, "'perhaps' is not !!bool"),
        ("when: !!timestamp 2026-11-26", 1, "the tag !!timestamp is not read here"),
        ("a: !!binary aGk=", 1, "the tag !!binary is not read here"),
        ("a: !!python/object/apply:os.system [true]", 1, "the tag !!python/object/apply:os.system is not"),
        ("a: !!set {x}", 1, "the tag !!set is not"),
        ("a: !mine x", 1, "the tag !mine is not"),
        ("a: !!map [1]", 1, "a sequence is not !!map"),
        ("log: {<<: 3}", 1, "expected a mapping"),
        ("log: {<<: [1, 2]}", 1, "expected a mapping"),
        ("a: {b: 1, b: 2}", 1, "key 'b' is given twice"),
        ("? [1, 2]\n: 3", 1, "not a name"),
    ],
)
def test_what_is_beyond_a_bound_is_refused_with_its_place(text: str, line: int, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "r.yaml")
    told = str(caught.value)
    assert told.startswith(f"r.yaml, line {line}, column ")
    assert says in told
    assert "\n" not in told


def test_a_text_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(ConfigError, match=r"r\.yaml: 1,048,577 characters; 1,048,576 are read at most"):
        parse_yaml("#" * (MAX_CHARACTERS + 1), "r.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("log: {<<: {every: 10 steps}}", {"log": {"every": "10 steps"}}),
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}", {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}),
        ("b: {y: 3, <<: {x: 1, y: 2}}", {"b": {"x": 1, "y": 3}}),
        ("b: {<<: [{x: 1}, {x: 2, y: 2}]}", {"b": {"x": 1, "y": 2}}),
        ("a: &a [1]\nb: [*a, *a]", {"a": [1], "b": [[1], [1]]}),
        ("a: !!str 1\nb: !!int '7'\nc: !!float 1\nd: !!null ''", {"a": "1", "b": 7, "c": 1.0, "d": None}),
        ("'<<': 1", {"<<": 1}),
        ("x: " + "[" * 58 + "]" * 58, None),
        ("", None),
    ],
)
def test_what_is_within_the_bounds_is_what_it_says(text: str, value: Any) -> None:
    read = parse_yaml(text, "r.yaml")
    assert value is None or read == value


def plain(value: Any) -> bool:
    """Whether it is made of what a recipe can hold."""
    if isinstance(value, dict):
        return all(isinstance(key, str | int | float | bool) and plain(part) for key, part in value.items())
    if isinstance(value, list):
        return all(map(plain, value))
    return value is None or isinstance(value, str | int | float | bool)


PIECES = st.sampled_from(
    ["a", "b", ": ", ":", "- ", "\n", "  ", "[", "]", "{", "}", ",", "&a ", "*a", "<<: ", "!!int ", "!!map ", "!!set ",
     "!x ", "'", '"', "|", ">", "#", "%YAML 1.1\n", "---\n", "...", "? ", "~", "1", "1e9", ".inf", "0x1f", "true", "\t",
     "\x00", "\x1b", "\ufeff", "\u2028", "\ud7ff", "é", "9" * 50, "@", "`", "\\x41"]
)  # fmt: skip


@settings(max_examples=600, derandomize=True)
@given(st.lists(PIECES, max_size=40).map("".join))
@example("a: " + "[" * 59 + "&a [" + "]" * 60)
def test_any_text_is_a_plain_value_or_one_clear_line(text: str) -> None:
    # Any other error fails the test.
    with contextlib.suppress(ConfigError):
        assert plain(parse_yaml(text, "r.yaml"))


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "x\0y", "\udcff", "../" * 2000 + "x"])
@pytest.mark.parametrize("suffix", ["", ".yaml"])
def test_a_name_that_no_file_can_have_is_no_recipe(name: str, suffix: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no recipe"):
        load_recipe(name + suffix)
    (tmp_path / "child.yaml").write_text(f"base: {name.encode('unicode_escape').decode()!r}\n")
    with pytest.raises(ConfigError):
        load_recipe(str(tmp_path / "child.yaml"))


@pytest.mark.parametrize("override", ["seed=" + "9" * 5000, "seed=" + "[" * 500, "seed=!!int x", "seed=&a [*a]"])
def test_overrides_have_the_same_bounds(override: str) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        resolve({}, [override])


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf", "1e999"])
def test_numbers_that_are_none_are_refused_where_a_recipe_wants_one(value: str) -> None:
    assert not math.isfinite(parse_yaml(value, "r.yaml"))
    with pytest.raises(ConfigError, match=r"optim\.lr"):
        load_recipe("demo", [f"optim.lr={value}"])
