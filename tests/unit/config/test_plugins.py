"""Plug-in files: found from their recipe, imported once for their content, refused in a line, part of what a run is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from vit_dist.config.load import identity, load_recipe, recipe_hash, recipe_yaml
from vit_dist.config.plugins import check_plugins, plugin_identity, with_copies
from vit_dist.config.schema import Recipe
from vit_dist.core import plugins
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.registry import MODELS
from vit_dist.study.grid import load_study, plan

pytestmark = pytest.mark.usefixtures("plugins_forgotten")

OPTIMIZER = """
from __future__ import annotations
from typing import ClassVar
from vit_dist.core.registry import OPTIMIZERS
from vit_dist.optim import NonNegative, OptimizerConfig

@OPTIMIZERS.register("signs", floor=0.5)
class SignsConfig(OptimizerConfig):
    elementwise: ClassVar[bool] = True
    floor: NonNegative
"""
EVALUATOR = """
from vit_dist.core.registry import EVALUATORS
from vit_dist.evals import EvaluatorConfig

@EVALUATORS.register("nothing")
class NothingConfig(EvaluatorConfig):
    pass
"""


def recipe_file(folder: Path, *plugin_files: str, optim: str = "signs", name: str = "r.yaml") -> str:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / name
    path.write_text(f"base: demo\nplugins: [{', '.join(plugin_files)}]\noptim: {{name: {optim}, lr: 0.1}}\n")
    return str(path)


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    return path


def test_a_file_is_found_from_the_recipe_that_names_it_and_its_place_is_no_part_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        written(folder / "lib" / "signs.py", OPTIMIZER)
    first = load_recipe(recipe_file(here, "lib/signs.py"))
    assert first.plugins == (str(here / "lib" / "signs.py"),)
    assert first.optim.model_dump()["floor"] == 0.5
    child = written(tmp_path / "child.yaml", f"base: {here / 'r'}\nseed: 0\n")  # paths of a base count from the base
    monkeypatch.chdir(there)
    for other in (
        load_recipe(str(child)),
        load_recipe("demo", ["plugins=lib/signs.py", "optim={name: signs, lr: 0.1}"]),
    ):
        assert identity(other) == identity(first)
        assert recipe_hash(other) == recipe_hash(first)
        assert plugin_identity(other) == plugin_identity(first)
    again = load_recipe(str(written(tmp_path / "again" / "recipe.yaml", recipe_yaml(first))))
    assert again == first
    assert "plugins" not in identity(first)
    assert not list(tmp_path.rglob("__pycache__"))


def test_recipes_without_plug_ins_say_nothing_of_them() -> None:
    recipe = load_recipe("demo")
    assert "plugins" not in yaml.safe_load(recipe_yaml(recipe))
    assert plugin_identity(recipe) == {}
    assert recipe_hash(recipe) == "934dabdd574d0dca"


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("missing.py", None, r"missing\.py: no such file"),
        ("folder.py/x.txt", "x", r"x\.txt: no Python file; a plug-in is one \.py file"),
        ("a.py", "x = 1\ny = 1 / 0\n", r"a\.py, line 2: ZeroDivisionError: division by zero"),
        ("a.py", "x = 1\n\n\ndef (:\n", r"a\.py, line 4: SyntaxError: invalid syntax"),
        ("a.py", "import sys\nsys.exit(3)\n", r"a\.py, line 2: SystemExit: 3"),
        ("a.py", "import beside\n", r"a\.py, line 1: ModuleNotFoundError: .*'beside'; a plug-in file stands alone"),
        (
            "a.py",
            EVALUATOR.replace('"nothing"', '"fewshot"'),
            r"a\.py, line 5: .*two evaluators are called 'fewshot': one in vit_dist\.evals\.fewshot, one in /.*/a\.py",
        ),
        (
            "a.py",
            OPTIMIZER.replace("(OptimizerConfig)", ""),
            r"'signs': .*SignsConfig.* must be a class that inherits Opt",
        ),
        (
            "a.py",
            OPTIMIZER + "from vit_dist.core.registry import MODELS\nMODELS.register_prefix('R50')(SignsConfig)",
            r"must be a class that inherits ModelConfig of vit_dist\.models",
        ),
        (
            "a.py",
            OPTIMIZER.split("\n@")[0] + "OPTIMIZERS.register_prefix('adam')(OptimizerConfig)",
            r"a\.py, line 6: .*optimizer 'adam': begins like 'adamw', which vit_dist\.optim\.adamw has",
        ),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_its_name_line_and_reason(
    tmp_path: Path, name: str, code: str | None, says: str
) -> None:
    if code is not None:
        written(tmp_path / name, code)
    written(tmp_path / "beside.py", "")
    recipe = recipe_file(tmp_path, name)
    for _ in range(2):  # what failed half-way has left nothing that would change the second answer
        with pytest.raises(ConfigError, match=rf"r\.yaml, line 2: plugins: .*{says}"):
            load_recipe(recipe)
    assert load_recipe("demo").optim.name == "adamw"


@pytest.mark.parametrize("value", ["3", "[3]", "{a: 1}", "null", "['']"])
def test_what_is_no_list_of_paths_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"plugins: expected paths of \.py files"):
        load_recipe("demo", [f"plugins={value}"])


def test_urls_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"plugins: .*s3:/.*: a plug-in is a file on this machine"):
        load_recipe(recipe_file(tmp_path, "s3://b/x.py"))


def test_two_files_with_one_name_are_both_named(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.py", OPTIMIZER), written(tmp_path / "b.py", OPTIMIZER + "# other\n")
    with pytest.raises(ConfigError, match=rf"two optimizers are called 'signs': one in {a}, one in {b}"):
        load_recipe(recipe_file(tmp_path, "a.py", "b.py"))


def test_a_file_that_has_changed_takes_its_old_selfs_place(tmp_path: Path) -> None:
    written(tmp_path / "a.py", OPTIMIZER + EVALUATOR)
    before = load_recipe(recipe_file(tmp_path, "a.py"))
    written(tmp_path / "a.py", OPTIMIZER.replace("0.5", "0.25"))
    after = load_recipe(recipe_file(tmp_path, "a.py"))
    assert (before.optim.model_dump()["floor"], after.optim.model_dump()["floor"]) == (0.5, 0.25)
    with pytest.raises(ConfigError, match="unknown evaluator 'nothing'"):
        load_recipe("demo", ["evaluators=[nothing]"])


def run_json(recipe: Recipe) -> dict[str, object]:
    return {"identity": {**identity(recipe), **plugin_identity(recipe)}}


def test_a_run_keeps_its_code_and_refuses_other_code(tmp_path: Path) -> None:
    file = written(tmp_path / "signs.py", OPTIMIZER)
    recipe = load_recipe(recipe_file(tmp_path, "signs.py"))
    run = tmp_path / "run"
    kept = with_copies(recipe, run)
    (copy,) = map(Path, kept.plugins)
    assert copy.read_text() == OPTIMIZER
    assert copy.parent == run / "plugins"
    assert with_copies(kept, run) == kept  # a copy of a copy is the copy
    begun = run_json(recipe)
    check_plugins(recipe, begun, run)
    check_plugins(kept, begun, run)
    check_plugins(recipe, None, run)

    written(file, OPTIMIZER + "# a comment\n")
    edited = load_recipe(recipe_file(tmp_path, "signs.py"))
    with pytest.raises(RunError, match=rf"{file}, which defines optim 'signs', has changed .*\(a copy is {copy}\)"):
        check_plugins(edited, begun, run)
    with pytest.raises(RunError, match="was not what this run began with"):
        check_plugins(edited, run_json(load_recipe("demo")), run)
    second = with_copies(edited, run).plugins  # the first copy stays for the job that was given it
    assert {copy, *map(Path, second)} == set((run / "plugins").iterdir())
    assert len(list((run / "plugins").iterdir())) == 2


def test_only_what_decides_the_result_counts(tmp_path: Path) -> None:
    written(tmp_path / "signs.py", OPTIMIZER)
    written(tmp_path / "look.py", EVALUATOR)
    recipe = load_recipe(recipe_file(tmp_path, "signs.py", "look.py"), ["evaluators=[nothing]"])
    assert list(plugin_identity(recipe)["plugins"]) == ["optim"]
    plain = load_recipe(recipe_file(tmp_path, "look.py", optim="sgd"), ["evaluators=[nothing]"])
    assert plugin_identity(plain) == {}


def test_a_study_finds_its_files_from_where_they_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "signs.py", OPTIMIZER)
    recipe = recipe_file(tmp_path, "signs.py")
    study = "name: s\nrecipe: {}\nmodels: [vit-demo]\nsubsets: [100]\n{}"
    based = written(tmp_path / "based.yaml", study.format(recipe, ""))
    layer = "plugins: [signs.py]\n    optim: {name: signs, lr: 0.1}"
    over = written(tmp_path / "over.yaml", study.format("demo", f"overrides:\n    {layer}\n"))
    cell = written(tmp_path / "cell.yaml", study.format("demo", f"cells:\n- set:\n    {layer}\n"))
    monkeypatch.chdir("/")
    for file in (based, over, cell):
        (one,) = plan(load_study(str(file)))
        assert one.recipe.optim.name == "signs"
        assert one.recipe.plugins == (str(tmp_path / "signs.py"),)


def test_names_from_outside_are_told_apart(tmp_path: Path) -> None:
    file = written(
        tmp_path / "more.py",
        "from vit_dist.core.registry import MODELS\nfrom vit_dist.models.vit import ViTConfig\n"
        "MODELS.register('vit-mine', patch_size=7, width=8, depth=1, num_heads=1)(ViTConfig)\n",
    )
    plugins.load_file(file)
    assert MODELS.from_outside() == {"vit-mine": str(file)}
    # A preset of a class of ours: the recipe has all of its values, so the file does not count.
    assert plugin_identity(load_recipe("demo", [f"plugins=[{file}]", "model=vit-mine"])) == {}
