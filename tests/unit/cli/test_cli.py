"""The command itself: quick to help, clear about what it does not know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.cost import interpreters
from tests.places import ROOT
from vit_dist.cli.main import VERBS, main


def test_help_names_every_verb_and_loads_nothing_heavy() -> None:
    script = (
        "import sys; from vit_dist.cli.main import main; main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'deepspeed', 'timm', 'tensorboard', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"\n  {verb} " in done.stdout for verb in VERBS)


def test_help_costs_little_more_than_the_interpreter() -> None:
    # Half a second would be some fifteen times as much.
    assert interpreters([sys.executable, "-m", "vit_dist.cli.main", "--help"]) < 8


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_a_help_with_examples(
    verb: str, vit_dist: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = vit_dist(verb, "--help")
    assert done.returncode == 0
    assert "examples" in done.stdout
    assert f"vit-dist {verb}" in done.stdout


def test_an_unknown_verb_shows_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert "unknown verb 'trian'; did you mean 'train'?" in capsys.readouterr().err


def test_no_verb_is_an_error_that_helps(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: vit-dist VERB" in capsys.readouterr().out
    assert main(["--version"]) == 0


def test_config_prints_yaml_and_the_hash(capsys: pytest.CaptureFixture[str]) -> None:
    from vit_dist.config.load import load_recipe, recipe_hash, resolve
    from vit_dist.config.safe_yaml import parse_yaml

    assert main(["config", "demo", "optim.lr=2e-3", "seed=4"]) == 0
    printed = capsys.readouterr().out
    recipe = resolve(parse_yaml(printed, "printed"))
    assert recipe == load_recipe("demo", ["optim.lr=2e-3", "seed=4"])
    assert printed.endswith(f"# hash: {recipe_hash(recipe)}\n")
    assert main(["config", "demo", "--hash"]) == 0
    assert capsys.readouterr().out == f"{recipe_hash(load_recipe('demo'))}\n"


def test_every_package_is_part_of_a_wheel() -> None:
    from setuptools import find_packages

    found = set(find_packages(str(ROOT), include=["vit_dist*", "launcher*"]))
    holding_code = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for top in ("vit_dist", "launcher")
        for file in (ROOT / top).rglob("*.py")
    }
    assert holding_code == found, "a folder without __init__.py is left out of wheels"
