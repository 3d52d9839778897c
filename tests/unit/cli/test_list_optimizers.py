"""`vit-dist list optimizers`: what each is, and the engines that the recipe's check lets it train on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.trajectories import recipe
from vit_dist.cli.main import main
from vit_dist.core.errors import ConfigError

ENGINES: dict[str, list[dict[str, Any]]] = {
    "plain": [{"name": "plain"}],
    "fsdp": [{"name": "fsdp"}],
    "deepspeed": [{"name": "deepspeed", "zero_stage": stage} for stage in (1, 2, 3)],
}


def accepts(optimizer: str, engine: dict[str, Any]) -> bool:
    try:
        recipe({"name": optimizer, "lr": 1e-3}, engine)
    except ConfigError:
        return False
    return True


def test_engines_that_are_listed_are_those_that_recipes_may_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "optimizers", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {"adafactor", "adam", "adamw", "lamb", "lion", "muon", "sgd"}
    for name, row in rows.items():
        expected = [engine for engine, forms in ENGINES.items() if all(accepts(name, form) for form in forms)]
        assert row["engines"].split(", ") == expected, name
        assert row["description"].endswith(".")


def test_names_alone_and_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "optimizers", "--names"]) == 0
    assert capsys.readouterr().out.split() == ["adafactor", "adam", "adamw", "lamb", "lion", "muon", "sgd"]
    assert main(["list", "optimizers"]) == 0
    assert "lamb       plain, fsdp             LAMB (arXiv 1904.00962" in capsys.readouterr().out
