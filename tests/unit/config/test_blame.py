"""Who is told to have given a key that is wrong, and which key is offered for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.slurm.cluster import load_cluster
from vit_dist.config.blame import Sources
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import ConfigError
from vit_dist.study.grid import load_study, plan

BASE = """
# a comment
horizon: 10 steps
global_batch: 16
model: vit-test
optim: {name: adamw, lr: 0.001,
        weight_decay: 0.1}
schedule:
  name: cosine
  warmup: 2 steps
data: {train: somewhere, num_classes: 4}
"""


def said(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        load_recipe(str(path), overrides)
    return str(error.value).splitlines()


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "mine.yaml").write_text("base: base\n\noptim:\n  lr: 0.002\nevaluators:\n  - classification\n")
    return tmp_path / "mine.yaml"


@pytest.mark.parametrize(
    ("overrides", "given", "key"),
    [
        (["optim.lr=fast"], "optim.lr=fast", "optim.lr"),
        (["optim.lr=1", "optim.lr=fast"], "optim.lr=fast", "optim.lr"),
        (["optim={name: adamw, lr: x, weight_decay: 0}"], "optim={name: adamw, lr: x, weight_decay: 0}", "optim.lr"),
        (["model=vit-tst"], "model=vit-tst", "model.name"),
        (["schedule.warmup=10"], "schedule.warmup=10", "schedule.warmup"),
        (["evaluators=[classificatoin]"], "evaluators=[classificatoin]", "evaluators[0].name"),
        (["augment.flip=true"], "augment.flip=true", "augment"),
        (["data.mixture.a.weigth=1"], "data.mixture.a.weigth=1", "data.mixture.a.weigth"),
        (["plugins=[none.py]"], "plugins=[none.py]", "plugins"),
        (["seed=1", "optim.name=sgd"], "optim.name=sgd", "optim"),
        (["data.train=s3://KEY:SECRET@host/b", "data.train=7"], "data.train=7", "data.train"),
    ],
)
def test_an_override_is_told_as_it_was_typed(recipe: Path, overrides: list[str], given: str, key: str) -> None:
    assert any(line.startswith(f"{given} on the command line: {key}") for line in said(recipe, *overrides))


def test_a_secret_in_an_override_is_not_printed(recipe: Path) -> None:
    (line, *_) = said(recipe, "init.weights=s3://AKIAIOSFODNN7EXAMPLE:hushhush@host/b", "init.wieghts=3")
    assert "hushhush" not in line


@pytest.mark.parametrize(
    ("file", "old", "new", "line", "key"),
    [
        ("mine", "lr: 0.002", "lrr: 0.002", 4, "optim.lrr"),
        ("mine", "- classification", "- clasification", 6, "evaluators[0].name"),
        ("base", "warmup: 2", "warmup: 2h #", 10, "schedule.warmup"),
        ("base", "weight_decay", "weight_dcay", 7, "optim.weight_dcay"),
        ("base", "vit-test", "vit-tst", 5, "model.name"),
        ("base", "num_classes: 4", "num_classes: four", 11, "data.num_classes"),
        ("base", "global_batch", "global_bath", 4, "global_bath"),
    ],
)
def test_a_key_of_a_file_has_its_line(recipe: Path, file: str, old: str, new: str, line: int, key: str) -> None:
    path = recipe.with_name(f"{file}.yaml")
    path.write_text(path.read_text().replace(old, new))
    assert any(one.startswith(f"{path}, line {line}: {key}: ") for one in said(recipe, "seed=3"))


def test_a_key_that_stands_nowhere_is_of_the_file(recipe: Path) -> None:
    base = recipe.with_name("base.yaml")
    base.write_text(base.read_text().replace("horizon: 10 steps\n", ""))
    (line,) = said(recipe)
    assert line.startswith(f"{recipe}: horizon: is required and missing")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("augment=none", "'data.augment'"),
        ("agument=none", "'data.augment'"),
        ("lr=3", "'optim.lr'"),
        ("data.lr=3", "'optim.lr'"),
        ("subset=30M", "'data.subset' or 'data.mixture.NAME.subset'"),
        ("width=8", "'model.width'"),
        ("keep_best=val/top1", "'checkpoint.keep_best'"),
        ("zero_stage=2", "'engine.zero_stage'"),
        ("mixup={}", "'data.mixup'"),
        ("epochs=3", "'horizon'"),
        ("batch_size=3", "'global_batch'"),
        ("optm.lr=1", "'optim'"),
        ("optim.lrr=1", "'optim.lr'"),
        ("data.subest=3", "'data.subset'"),
        ("data.vall=x", "'data.val'"),
        ("vall=x", "'eval' or 'data.val'"),
        ("checkpoint.evry=3", "'checkpoint.every'"),
        ("data.mixture.a.trian=x", "'data.mixture.a.train'"),
        ("data.mixup.alpa=1", "'data.mixup.alpha'"),
        ("data.augment.erase.are=1", "'data.augment.erase.area'"),
        ("evaluators=[{name: fewshot, trian: x}]", "'evaluators[0].train'"),
        ("horizn=3 steps", "'horizon'"),
        ("optim.warmup=3", "'schedule.warmup'"),
    ],
)
def test_a_name_that_is_a_key_elsewhere_is_led_there(recipe: Path, override: str, meant: str) -> None:
    assert any(f"did you mean {meant}?" in line for line in said(recipe, override))


def test_a_study_and_a_cluster_tell_it_the_same_way(recipe: Path, tmp_path: Path) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(f"name: s\nrecipe: {recipe}\nsubsets: [10]\nmodels: [vit-test]\nmetrik: val/loss\n")
    with pytest.raises(ConfigError, match=r"study\.yaml, line 5: metrik: unknown key; did you mean 'metric'"):
        load_study(str(study))
    study.write_text(study.read_text().replace("metrik", "metric"))
    with pytest.raises(ConfigError, match=r"^seeds=\[x\] on the command line: seeds"):
        load_study(str(study), ["seeds=[x]"])
    with pytest.raises(ConfigError, match=r"^augment=none on the command line: augment: .* 'data\.augment'"):
        plan(load_study(str(study), ["augment=none"]))
    with pytest.raises(ConfigError, match=r"^partion=gpu on the command line: partion"):
        load_cluster("generic", ["partion=gpu"])
    cluster = tmp_path / "c.yaml"
    cluster.write_text("base: generic\n\npartion: gpu\n")
    with pytest.raises(ConfigError, match=r"c\.yaml, line 3: partion: "):
        load_cluster(str(cluster))


@pytest.mark.parametrize(
    ("path", "place"),
    [("a.b", "a.b=1 on the command line"), ("a.bc", "w"), ("ab", "w"), ("a", "a.b=1 on the command line"), ("", "w")],
)
def test_names_that_only_begin_alike_are_others(path: str, place: str) -> None:
    assert Sources("w", ["a.b=1"]).of(path) == place
