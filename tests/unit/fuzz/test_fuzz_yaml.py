"""Recipes, studies, clusters, overrides and tag maps with anything changed: what they say, or one ConfigError."""

# Tables of odd pieces are easier to look over in long lines.
# ruff: noqa: E501

from __future__ import annotations

import contextlib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from launcher.slurm.cluster import load_cluster
from tests.unit.fuzz.budget import fuzz
from tests.unit.fuzz.damage import bounded, damaged, damaged_text
from vit_dist.config.load import config_dirs, load_recipe, recipe_hash, recipe_yaml
from vit_dist.core.errors import ConfigError
from vit_dist.scaling.tagmap import load_tag_map
from vit_dist.study.grid import load_study

PIECES = [
    *(b"base: demo\n", b"base: ../x\n", b"<<: *a", b"&a ", b"!!int x", b"1e999", b"9" * 50, b"- [", b": {", b"\t", b"null"),
    *(b"1e999999999 steps", b"1 steps" + b" " * 3000 + b"x", b"(a+)+", b".*" * 9, b"(?P<subset>.*)", b"- " * 3000, b"${X}"),
]  # fmt: skip
TAG_MAP = rb"""
logs:
  - directory: 'timm/(?P<family>\w+)_(?P<subset>\d+k?)_s(?P<seed>\d+)'
    metric: eval/top1
    scale: 0.01
    examples_per_step: 128
    steps: 1500
    constants: {model: vit-s16, dataset: fashion-mnist, num_params: 21665664, macs_per_image: 4600000000}
metrics: {eval/score: {better: higher, range: [0, null]}}
"""


def shipped(kind: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted((config_dirs()[0] / kind).glob("*.yaml"))[:6]]


@fuzz
@given(content=damaged(shipped("recipes"), PIECES))
def test_any_recipe_is_a_recipe_or_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(content)
    with bounded(), contextlib.suppress(ConfigError):
        recipe = load_recipe(str(path))
        recipe_hash(recipe)
        recipe_yaml(recipe)


OVERRIDES = [
    "optim.lr=3e-4",
    "data.subset=30M",
    "model=bit-demo",
    "horizon=7 epochs",
    "engine={name: plain}",
    "evaluators=[classification]",
]


@fuzz
@given(st.lists(damaged_text(OVERRIDES, [piece.decode() for piece in PIECES], 3), max_size=3))
def test_any_overrides_are_a_recipe_or_one_error(overrides: list[str]) -> None:
    with bounded(), contextlib.suppress(ConfigError):
        recipe_yaml(load_recipe("demo", overrides))


@fuzz
@given(content=damaged(shipped("studies"), PIECES))
def test_any_study_is_a_study_or_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.yaml"
    path.write_bytes(content)
    with bounded(), contextlib.suppress(ConfigError):
        load_study(str(path))


@fuzz
@given(content=damaged(shipped("clusters"), PIECES))
def test_any_cluster_is_a_cluster_or_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with bounded(), contextlib.suppress(ConfigError):
        cluster = load_cluster(str(path))
        assert cluster.lead_s >= 0


DIRECTORIES = st.sampled_from(
    ["timm/vit_10k_s0", "a" * 499, "1" * 400, "_s1" * 150, "a/" * 240, "a-1" * 160, "", "x" * 9000]
)


@fuzz
@given(content=damaged([TAG_MAP], PIECES, 3), directory=DIRECTORIES)
def test_any_tag_map_is_matched_in_time_or_refused(tmp_path: Path, content: bytes, directory: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(content)
    with bounded(), contextlib.suppress(ConfigError):
        load_tag_map(str(path)).entry(directory)


EXPRESSIONS = st.lists(
    st.sampled_from(
        [
            "a",
            "b",
            ".",
            r"\w",
            r"\d",
            r"\s",
            "[^/]",
            "[a-f]",
            "/",
            "_",
            "*",
            "+",
            "?",
            "*?",
            "{2,9}",
            "{,60}",
            "(",
            ")",
            "|",
            "(?:",
            "^",
            "$",
            r"\b",
        ]
    ),
    max_size=14,
).map("".join)


@fuzz
@given(expression=EXPRESSIONS, directory=DIRECTORIES)
def test_any_expression_is_matched_in_time_or_refused(tmp_path: Path, expression: str, directory: str) -> None:
    path = tmp_path / "t.yaml"
    path.write_bytes(
        TAG_MAP.replace(rb"timm/(?P<family>\w+)_(?P<subset>\d+k?)_s(?P<seed>\d+)", expression.encode()).replace(
            b"{model", b"{subset: 5, model"
        )
    )
    with bounded(), contextlib.suppress(ConfigError):
        load_tag_map(str(path)).entry(directory)
