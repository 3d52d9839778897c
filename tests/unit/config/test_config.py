"""Recipes: what is read, what is refused and how it is said, what a run's identity holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vit_dist.config.load import (
    config_dirs,
    differences,
    find_config,
    identity,
    load_recipe,
    merge,
    parse_overrides,
    parse_yaml,
    recipe_hash,
    recipe_yaml,
    resolve,
    shipped_set,
)
from vit_dist.config.schema import dump
from vit_dist.core.errors import ConfigError, MissingError
from vit_dist.core.world import World
from vit_dist.train.plan import open_training

RECIPES = sorted(p.stem for p in (config_dirs()[0] / "recipes").glob("*.yaml"))


def minimal(**keys: Any) -> dict[str, Any]:
    return {
        "horizon": "1 epoch",
        "model": "vit-test",
        "data": {"num_classes": 10, "image_size": 28},
        "optim": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant", "warmup": "0 steps"},
        **keys,
    }


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_resolves_to_its_golden(name: str, golden) -> None:
    recipe = load_recipe(name)
    golden(f"recipes/{name}", {**dump(recipe), "hash": recipe_hash(recipe)})


@pytest.mark.parametrize("name", RECIPES)
def test_a_resolved_recipe_reads_back_as_itself(name: str) -> None:
    recipe = load_recipe(name)
    again = resolve(parse_yaml(recipe_yaml(recipe), "test"))
    assert again == recipe
    assert recipe_hash(again) == recipe_hash(recipe)


def test_yaml_1_2_numbers() -> None:
    read = parse_yaml("a: 3e-4\nb: 010\nc: 1:30\nd: on\ne: 30M\nf: 1_000\ng: .5\nh: ~\ni: true\nj: 1.", "test")
    assert read == {
        "a": 3e-4, "b": 10, "c": "1:30", "d": "on", "e": "30M", "f": "1_000", "g": 0.5, "h": None, "i": True, "j": 1.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [1", "line 1, column 6"),
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("a: !!python/object:os.system x", "not valid YAML"),
    ],
)
def test_bad_yaml_is_named_with_its_place(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match="test") as caught:
        parse_yaml(text, "test.yaml")
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["optim.lr=fast"], "optim.lr: must be a valid number, got 'fast'"),
        (["optim.lr=-1"], "optim.lr: must be greater than 0, got -1"),
        (["optm.lr=1"], "optm: unknown key; did you mean 'optim'?"),
        (["optim.momentum=0.9"], "optim.momentum: unknown key here; it belongs to optim.name=adafactor or "),
        (["engine.name=fsdp", "engine.zero_stage=2"], "unknown key here; it belongs to engine.name=deepspeed"),
        (
            ["model=vit-test", "model.groups=3"],
            "model.groups: unknown key here; it belongs to model.name=bit or model.name=hybrid",
        ),
        (["optim.lrr=1"], "optim.lrr: unknown key; did you mean 'optim.lr'?"),
        (["data.subest=30M"], "data.subest: unknown key; did you mean 'data.subset'?"),
        (["model=ViT-B16"], "model.name: unknown model 'ViT-B16'; did you mean 'ViT-B/16'?"),
        (["engine.name=deepsped"], "engine.name: unknown engine 'deepsped'; did you mean 'deepspeed'?"),
        (
            ["engine.attention=fast"],
            "engine.attention: must be 'auto', 'flash', 'efficient', 'cudnn' or 'math', got 'fast'",
        ),
        (["engine.compile=yes please"], "engine.compile: must be 'auto', true or false, got 'yes please'"),
        (["engine.reduce_dtype=fp16"], "engine.reduce_dtype: must be 'fp32' or 'bf16', got 'fp16'"),
        (["engine.zero_stage=0"], "engine.zero_stage: must be 1, 2 or 3, got 0"),
        (["schedule.warmup=10"], "schedule.warmup: 10 has no unit; write '10 steps', '10 examples' or '10 epochs'"),
        (["checkpoint.mtbf=24"], "checkpoint.mtbf: 24 has no unit; write '24min' or '24h'"),
        (["checkpoint.mtbf=3 steps"], "checkpoint.mtbf: '3 steps' is not a span of time"),
        (["guards.hang=10"], "guards.hang: 10 has no unit; write '10min' or '10h'"),
        (["checkpoint.keep_every=1h"], "checkpoint.keep_every: '1h' is a span of time; give steps, examples or epochs"),
        (
            ["eval.every=10"],
            "eval.every: 10 has no unit; write '10 steps', '10 examples', '10 epochs', '10min' or '10h'",
        ),
        (["log.norms=1k"], "log.norms: 1k has no unit"),
        (["data.memory_limit=4"], "data.memory_limit: 4 has no unit; write '4 MiB', '4 GiB' or '4 B'"),
        (["engine.reduce_bucket=100 MiB"], "engine.reduce_bucket: expected a count such as 30000 or '30k'"),
        (["horizon=2h"], "horizon: '2h' is a span of time"),
        (["horizon=0 steps"], "a run of length 0 trains nothing"),
        (["global_batch=0"], "global_batch: must be greater than or equal to 1, got 0"),
        (["precision=fp8"], "precision: must be 'fp32', 'tf32' or 'bf16', got 'fp8'"),
        (["data.subset=0"], "data.subset: a subset of 0 examples cannot be trained on"),
        (["data.crop_area=[0.5, 0.1]"], "data.crop_area: expected two numbers [low, high]"),
        (["data.num_classes=ten"], "data.num_classes: must be a valid integer, got 'ten'"),
        (["evaluators=classification"], "evaluators: must be a list in brackets, [classification] or [classification,"),
        (["data.crop_area=0.5"], "data.crop_area: must be a list in brackets, [0.5] or [0.5, ...]; got 0.5"),
        (["seed=1.5"], "seed: must be a valid integer, got 1.5"),
        (["evaluators=[clasification]"], "evaluators[0].name: unknown evaluator 'clasification'; did you mean"),
        (["name=0"], 'name: must be text, got 0; write it in quotes, such as name: "0"'),
        (["study=1.5"], 'study: must be text, got 1.5; write it in quotes, such as study: "1.5"'),
        (["family=true"], 'family: must be text, got True; write it in quotes, such as family: "true"'),
        (["data.train=7"], 'data.train: must be text, got 7; write it in quotes, such as train: "7"'),
        (["checkpoint.remote=0"], 'remote: "0"'),
        (["data.train=[a]"], "data.train: must be a valid string, got ['a']"),
        (["data=fashion"], "no dataset 'fashion'"),
        (["lr"], "override 'lr': expected key=value"),
    ],
)
def test_every_mistake_is_one_line_with_path_value_and_nearest_name(overrides: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(minimal(), overrides, where="r.yaml")
    (line,) = str(caught.value).splitlines()
    assert says in line


def test_all_mistakes_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(minimal(), ["optim.lr=x", "sed=3", "data.num_classes=0", "model=no-such"], where="r.yaml")
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    given = ("optim.lr=x", "sed=3", "data.num_classes=0", "model=no-such")
    assert {line.partition(" on the command line: ")[0] for line in lines} == set(given)


def test_missing_sections_are_named() -> None:
    with pytest.raises(ConfigError) as caught:
        resolve({"data": {}}, where="r.yaml")
    for key in ("horizon", "model", "optim", "schedule", "data.num_classes"):
        assert f"r.yaml: {key}: is required and missing" in str(caught.value)


@pytest.mark.parametrize(
    "override",
    [
        "name=other", "data.train=s3://bucket/m.json", "data.decode_threads=7", "engine.zero_stage=3",
        "engine.name=plain", "engine.max_micro_batch=8", "engine.channels_last=true",
        "checkpoint.every=1k steps", "log.every=1 step", "eval.every=10 steps", "study=s", "evaluators=[]",
    ],
)  # fmt: skip
def test_the_identity_does_not_know_the_site(override: str) -> None:
    assert recipe_hash(resolve(minimal(), [override])) == recipe_hash(resolve(minimal()))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "global_batch=8", "horizon=2 epochs", "precision=fp32", "model=bit-test", "model.depth=3",
        "optim.lr=2e-3", "schedule.warmup=1 step", "data.subset=30", "data.subset_seed=1", "data.lanes=2",
        "data.window=3", "data.image_size=14", "data.augment=none", "loss.label_smoothing=0.1",
    ],
)  # fmt: skip
def test_the_identity_knows_everything_that_is_learned_from(override: str) -> None:
    assert recipe_hash(resolve(minimal(), [override])) != recipe_hash(resolve(minimal()))


def test_equal_durations_in_other_words_are_the_same_run() -> None:
    same = [resolve(minimal(), [f"horizon={text}"]) for text in ("10k steps", "10000 steps", "10_000 step")]
    assert len({recipe_hash(r) for r in same}) == 1


def test_differences_name_path_and_both_values() -> None:
    a, b = (identity(resolve(minimal(), [f"optim.lr={lr}"])) for lr in ("1e-3", "3e-3"))
    assert differences(a, b) == ["optim.lr: 0.001 here, 0.003 there"]


def test_overrides_nest_and_later_ones_win() -> None:
    tree = parse_overrides(["a.b=1", "a.c=[1, x]", "a.b=2", "d=", "e=null"])
    assert tree == {"a": {"b": 2, "c": [1, "x"]}, "d": "", "e": None}


def test_another_plugin_replaces_the_keys_of_the_one_below() -> None:
    below = {"model": {"name": "a", "width": 3}, "optim": {"name": "x", "lr": 1}, "data": "set"}
    assert merge(below, {"model": "b"})["model"] == {"name": "b"}
    assert merge(below, {"model": {"width": 4}})["model"] == {"name": "a", "width": 4}
    assert merge(below, {"data": {"augment": "none"}})["data"] == {"dataset": "set", "augment": "none"}


def test_a_base_is_merged_below_and_circles_are_refused(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text("horizon: 1 epoch\nmodel: vit-test\ndata: {num_classes: 3, image_size: 28}\n")
    (tmp_path / "high.yaml").write_text(
        "base: low\nseed: 4\noptim: {name: sgd, lr: 1e-2}\nschedule: {name: constant, warmup: 0 steps}\n"
    )
    recipe = load_recipe(str(tmp_path / "high.yaml"))
    assert (recipe.seed, recipe.data.num_classes) == (4, 3)
    (tmp_path / "low.yaml").write_text("base: high\n")
    with pytest.raises(ConfigError, match="goes round in a circle"):
        load_recipe(str(tmp_path / "high.yaml"))


def test_a_recipe_that_is_not_there_shows_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean 'demo'"):
        load_recipe("dmo")
    with pytest.raises(ConfigError, match="is a directory"):
        load_recipe(str(tmp_path))


def test_a_recipe_is_frozen() -> None:
    recipe = resolve(minimal())
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3  # type: ignore[misc]


def test_a_shipped_set_is_meant_only_where_it_is_trained_on() -> None:
    assert shipped_set(load_recipe("demo")) == find_config("fashion-mnist-mini", "data")
    assert shipped_set(load_recipe("demo", ["data.train=s3://bucket/cats"])) is None
    # The paper's sets have no place: whoever trains on one says where it lies.
    assert shipped_set(load_recipe("vit-l16-jft300m", ["data.train=s3://bucket/jft"])) is not None
    assert shipped_set(load_recipe("demo", ["data.dataset=custom", "data.train=x", "data.num_classes=3"])) is None


def test_images_that_are_shipped_and_not_packed_are_told_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MissingError, match="not packed yet: `make demo` does it, or `vit-dist data pack"):
        open_training(load_recipe("demo"), World())
    with pytest.raises(MissingError) as error:
        open_training(load_recipe("demo", ["data.train=elsewhere"]), World())
    assert "make demo" not in str(error.value)


def test_a_list_with_one_wrong_item_is_blamed_for_that_item_alone() -> None:
    with pytest.raises(ConfigError, match=r"measure\.0: must be .*got 'top2'") as caught:
        load_recipe("demo", ["evaluators=[{name: classification, measure: [top2]}]"])
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(ConfigError, match=r"measure: must have 1 item or more, got \[\]"):
        load_recipe("demo", ["evaluators=[{name: classification, measure: []}]"])
