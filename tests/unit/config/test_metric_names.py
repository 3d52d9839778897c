"""Names of metrics are checked, and cadences compared, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_dist.cli.config import main as config
from vit_dist.config.cadences import unrated_checkpoints
from vit_dist.config.load import load_recipe, recipe_hash, recipe_yaml
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.metrics import ACCURACY, LOSS, Metric
from vit_dist.study.grid import Cell, load_study, plan
from vit_dist.train.checkpoint.store import Retention, Saved
from vit_dist.train.progress.cadence import Cadence

FEW_SHOT = "{name: fewshot, set: inet, train: a, test: b, shots: [1, 5]}"


def demo(*words: str) -> Recipe:
    return load_recipe("demo", words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["val/accuracy"], "'val/accuracy' is not measured; did you mean 'val/top1'? Measured are: val/loss, val/top1"),
        (["val/topl"], "did you mean 'val/top1'?"),
        (["top1"], "did you mean 'val/top1'?"),
        (["val/nll"], "did you mean 'val/loss'?"),
        (["train/loss"], "'train/loss' is not measured; did you mean 'val/loss'?"),
        (["fewshot/inet_10shot", f"evaluators=[{FEW_SHOT}]"], "did you mean 'fewshot/inet_"),
        (["val/top1", f"evaluators=[{FEW_SHOT}]"], "'val/top1' is not measured; did you mean 'fewshot/"),
        (["val/top1", "evaluators=[]"], "'val/top1' is not measured: evaluators is empty"),
        (["val/top1", "data.val="], "data.val is empty, so that nothing is measured by classification"),
        # A declaration says how a metric is read, and measures nothing.
        (["val/score", "metrics={val/score: {better: lower}}"], "'val/score' is not measured; did you mean"),
    ],
)
def test_a_checkpoint_cannot_be_kept_by_what_nothing_measures(
    words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        config(["demo", f"checkpoint.keep_best={words[0]}", *words[1:]])
    assert f"checkpoint.keep_best={words[0]} on the command line: checkpoint.keep_best: " in str(error.value)
    assert says in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("words", "metric"),
    [
        (["val/top1"], ACCURACY),
        (["val/loss"], LOSS),
        (["fewshot/inet_5shot", f"evaluators=[{FEW_SHOT}]"], ACCURACY),
        (["val/top1", "metrics={val/top1: {better: lower, range: [0, 100]}}"], Metric(better="lower", range=(0, 100))),
        # Data that is not named yet is still to come, and with it data.val.
        (["val/top1", "data.train=", "data.val="], ACCURACY),
    ],
)
def test_what_is_measured_says_how_it_is_read(words: list[str], metric: Metric, tmp_path: Path) -> None:
    recipe = demo(f"checkpoint.keep_best={words[0]}", *words[1:])
    assert recipe.metric(words[0], "x") == metric
    (tmp_path / "recipe.yaml").write_text(recipe_yaml(recipe))
    assert load_recipe(str(tmp_path / "recipe.yaml")) == recipe
    assert recipe_hash(recipe) == recipe_hash(demo())


def test_a_plug_in_that_does_not_say_what_it_yields_needs_a_declaration_where_a_name_says_nothing(
    tmp_path: Path,
) -> None:
    (tmp_path / "quiet.py").write_text(
        "from vit_dist.core.registry import EVALUATORS\nfrom vit_dist.evals import EvaluatorConfig\n"
        '@EVALUATORS.register("quiet")\nclass Quiet(EvaluatorConfig):\n    """Yields whatever it likes."""\n'
    )
    words = [f"plugins=[{tmp_path}/quiet.py]", "evaluators=[quiet]"]
    with pytest.raises(
        ConfigError, match=r"checkpoint\.keep_best: metric 'val/score': nothing says whether higher or lower"
    ):
        demo(*words, "checkpoint.keep_best=val/score")
    declared = demo(*words, "checkpoint.keep_best=val/score", "metrics={val/score: {better: lower, range: [0, null]}}")
    assert declared.metric("val/score", "x") == LOSS
    assert demo(*words, "checkpoint.keep_best=val/top5_err").metric("val/top5_err", "x").better == "lower"


def test_a_few_shot_evaluator_without_a_test_set_is_refused_as_soon_as_data_is_named() -> None:
    evaluators = "evaluators=[{name: fewshot, set: inet, train: a}]"
    with pytest.raises(ConfigError, match=r"fewshot of 'inet' has no test set: give it `test: URL`, or .* data\.val"):
        demo(evaluators, "data.val=")
    assert demo(evaluators, "data.train=", "data.val=").evaluators


STUDY = """
name: tiny
recipe: demo
families:
  vit: {model: vit-demo}
  bit: {model: bit-demo}
subsets: [1k, 2k]
metric: METRIC
"""


def cells(tmp_path: Path, metric: str, *lines: str) -> list[Cell]:
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.replace("METRIC", metric) + "\n".join(lines) + "\n")
    return plan(load_study(str(path)))


@pytest.mark.parametrize(
    ("metric", "line", "says"),
    [
        ("val/acc1", "", "study tiny, family bit: metric: 'val/acc1' is not measured; did you mean 'val/top1'?"),
        ("val/top1", "overrides: {data.val: ''}", "data.val is empty, so that nothing is measured by classification"),
        ("val/top1", "overrides: {evaluators: []}", "'val/top1' is not measured: evaluators is empty"),
        ("val/top1", "cells: [{when: {family: bit}, set: {evaluators: []}}]", "family bit: metric: 'val/top1' is not"),
        ("val/loss5", "", "did you mean 'val/loss'?"),
        ("fewshot/inet_5shot", "", "'fewshot/inet_5shot' is not measured; did you mean 'val/top1'?"),
        ("fewshot/inet_2shot", f"evaluations: [{FEW_SHOT}]", "did you mean 'fewshot/inet_"),
        ("val/top1", "cells: [{when: {subset: 2k}, set: {data.val: ''}}]", "family vit: metric: 'val/top1' is not"),
    ],
)
def test_a_study_of_what_its_runs_do_not_measure_is_refused_when_it_is_planned(
    metric: str, line: str, says: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        cells(tmp_path, metric, line)
    assert says in str(error.value)


def test_a_study_may_be_of_what_its_evaluations_measure_and_hands_its_declarations_to_the_runs(tmp_path: Path) -> None:
    assert len(cells(tmp_path, "fewshot/inet_5shot", f"evaluations: [{FEW_SHOT}]")) == 4
    declared = cells(tmp_path, "val/top1", "metrics: {val/top1: {better: lower, range: [0, 1]}}")
    assert {cell.recipe.metrics["val/top1"].better for cell in declared} == {"lower"}
    plain = cells(tmp_path, "val/top1")
    assert [cell.hash for cell in declared] == [cell.hash for cell in plain]


BEST = "checkpoint.keep_best=val/top1"


@pytest.mark.parametrize(
    ("evaluated", "saved", "horizon", "alone"),
    [
        ("4 steps", "3 steps", "10 steps", True),
        ("4 steps", "3 steps", "13 steps", False),
        ("4 steps", "8 steps", "20 steps", False),
        ("5 steps", "2 steps", "10 steps", True),
        ("0 steps", "2 steps", "10 steps", True),
        ("3 steps", "0 steps", "10 steps", False),
        ("4 steps", "12 steps", "10 steps", False),
        ("128 examples", "3 steps", "6 steps", True),
        ("192 examples", "3 steps", "6 steps", False),
        ("1 epoch", "5 steps", "2 epochs", True),
        ("1 epoch", "1 epoch", "3 epochs", False),
        ("1 epoch", "2 epochs", "2 epochs", False),
        ("10 steps", "5min", "100 steps", True),
        ("10 steps", "auto", "100 steps", True),
    ],
)
def test_it_is_said_where_only_the_last_checkpoint_will_be_rated(
    evaluated: str, saved: str, horizon: str, alone: bool
) -> None:
    words = [f"eval.every={evaluated}", f"checkpoint.every={saved}", f"horizon={horizon}", "global_batch=64"]
    recipe = demo(*words, BEST, "data.subset=500", "schedule.warmup=0 steps")
    assert bool(unrated_checkpoints(recipe, 500)) == alone
    assert unrated_checkpoints(demo(*words, "data.subset=500", "schedule.warmup=0 steps"), 500) == ""
    if alone:
        assert f"eval.every={evaluated} and checkpoint.every={saved}" in unrated_checkpoints(recipe, 500)
    if "min" not in saved and saved != "auto":  # what the loop itself would do
        last = recipe.horizon.steps(global_batch=64, epoch_examples=500)
        both = [Cadence(every, 64, 500) for every in (recipe.eval.every, recipe.checkpoint.every)]  # type: ignore[arg-type]
        due = [[every.due(64 * s - 64, 64 * s) for s in range(1, last)] for every in both]
        assert alone == (any(due[1]) and not any(a and b for a, b in zip(*due, strict=True)))


def test_config_says_it_and_prints_the_recipe_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    words = [BEST, "eval.every=4 steps", "checkpoint.every=3 steps", "horizon=10 steps", "schedule.warmup=0 steps"]
    assert config(["demo", *words, "--hash"]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.split()) == 1
    assert "eval.every=4 steps and checkpoint.every=3 steps meet at no step before the last, 10" in shown.err


NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "rule", "kept"),
    [
        ([0.1, NAN, 0.3, 0.2], ACCURACY, 3),
        ([0.1, 0.3, NAN, NAN], ACCURACY, 2),
        ([1.0, NAN, 3.0, 2.0], LOSS, 1),
        ([float("inf"), 2.0, NAN, 3.0], LOSS, 2),
        ([0.1, 64.1, 0.2, 0.1], ACCURACY, 3),
        ([-5.0, 2.0, 1.0, 3.0], LOSS, 3),
        ([0.5, 0.5, 0.5, 0.4], ACCURACY, 3),
        ([NAN, NAN, NAN, NAN], ACCURACY, 4),
    ],
)
def test_the_best_checkpoint_is_the_best_of_values_that_can_be(values: list[float], rule: Metric, kept: int) -> None:
    saved = [Saved(step, step * 10, {"x": value}) for step, value in enumerate(values, 1)]
    assert Retention(1, best="x", rule=rule).steps_to_keep(saved) == {kept, 4}
