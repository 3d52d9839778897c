"""A section whose plug-in is exchanged: nothing of the other is kept, and what to give is said in one message."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from vit_dist.cli.config import main
from vit_dist.config.load import load_recipe, parse_overrides, resolve
from vit_dist.config.sections import layer
from vit_dist.core.errors import ConfigError

BELOW: dict[str, Any] = {
    "horizon": "1 epoch",
    "model": "vit-test",
    "data": {"num_classes": 10, "image_size": 28},
    "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.05, "betas": [0.9, 0.95]},
    "schedule": {"name": "linear", "warmup": "50 steps"},
}


def advised(error: ConfigError) -> list[str]:
    """The overrides of the one command in an error of one line."""
    (line,) = str(error).splitlines()
    return shlex.split(line.partition("To keep those that both have: ")[2])


@pytest.mark.parametrize(
    ("overrides", "path", "values"),
    [
        (["optim.name=sgd"], "optim", {"lr": 1e-3, "weight_decay": 0.05}),
        (["optim=sgd"], "optim", {"lr": 1e-3, "weight_decay": 0.05}),
        (["optim={name: sgd, momentum: 0.5}"], "optim", {"lr": 1e-3, "weight_decay": 0.05}),
        (["optim.momentum=0.5", "optim.name=sgd"], "optim", {"lr": 1e-3}),
        (["optim=sgd", "optim.weight_decay=0"], "optim", {"lr": 1e-3}),
        (["model=vit"], "model", {"width": 32, "depth": 2, "num_heads": 2, "patch_size": 7}),
        (["model.name=vit", "model.depth=3"], "model", {"width": 32, "num_heads": 2, "patch_size": 7}),
    ],
)
def test_the_command_of_the_error_keeps_what_both_plugins_have(
    overrides: list[str], path: str, values: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=r"(is|are) required and missing") as caught:
        resolve(BELOW, overrides)
    recipe = resolve(BELOW, [*overrides, *advised(caught.value)])
    assert {key: getattr(getattr(recipe, path), key) for key in values} == values
    given = parse_overrides(overrides)[path]
    for key, value in given.items() if isinstance(given, dict) else ():
        assert getattr(getattr(recipe, path), key) == value


def test_what_the_other_had_not_is_named_without_a_value() -> None:
    with pytest.raises(ConfigError, match=r"depth=2 model\.num_heads=2, and model\.stages$"):
        resolve(BELOW, ["model=hybrid"])


@pytest.mark.parametrize("text", ["optim: {name: sgd}", "optim: sgd", "optim: {name: sgd, momentum: 0.8}"])
def test_a_file_over_its_base_is_told_the_same(text: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: demo\n{text}\n")
    with pytest.raises(ConfigError, match=r"optim\.name=sgd takes the place of adamw") as caught:
        load_recipe(str(tmp_path / "mine.yaml"))
    assert "optim.lr=0.001" in advised(caught.value)


def test_two_changes_of_a_plugin_speak_of_the_last() -> None:
    with pytest.raises(ConfigError, match="takes the place of adamw"):
        resolve(BELOW, ["optim=adamw", "optim=sgd"])
    again: Any = resolve(BELOW, ["optim=sgd", "optim=adamw", "optim.lr=3"]).optim
    assert (again.name, again.lr) == ("adamw", 3)


@pytest.mark.parametrize(
    "overrides",
    [
        ["optim.name=sgd", "optim.lr=0.1"],
        ["optim.lr=0.1", "optim.name=sgd"],
        ["optim.lr=0.1", "optim=sgd"],
        ["optim={lr: 0.1}", "optim.name=sgd"],
        ["optim.lr=0.1", "seed=0", "optim={name: sgd}"],
        ["optim.lr=9", "optim.name=sgd", "optim.lr=0.1"],
    ],
)
def test_the_order_of_overrides_does_not_take_a_key_away(overrides: list[str]) -> None:
    optim: Any = resolve(BELOW, overrides).optim
    assert (optim.name, optim.lr, optim.weight_decay) == ("sgd", 0.1, 0.0)
    pairs = [(key, value) for key, _, value in (text.partition("=") for text in ("optim.lr=1", "optim.name=sgd"))]
    assert layer(pairs) == layer(pairs[::-1]) == {"optim": {"lr": "1", "name": "sgd"}}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optim=sgd", "optim.lr=0.1"], "optim.weight_decay=0.05"),
        (["schedule=constant"], "'schedule.warmup=50 steps'"),
        (["schedule.name=linear", "schedule.warmup=1 step"], ""),
        (["optim=sgd", "optim.lr=0.1", "optim.weight_decay=0"], ""),
        (["optim.lr=0.1"], ""),
        (["model=bit-demo"], ""),
        (["engine.name=plain"], ""),
    ],
)
def test_config_says_which_keys_are_gone(overrides: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--hash", *overrides]) == 0
    told = capsys.readouterr().err.strip()
    assert says in told
    assert bool(told) == bool(says)
    if says:
        again = shlex.split(told.partition("add: ")[2])
        assert main(["demo", "--hash", *overrides, *again]) == 0
        assert not capsys.readouterr().err
