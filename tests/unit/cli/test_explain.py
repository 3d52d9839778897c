"""What a key means: the page and the command say what the schema says, all of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT
from vit_dist.cli.config import main
from vit_dist.cli.explain import FILES, WIDTH, all_keys, explain, file_keys, page
from vit_dist.config.keys import KINDS, REQUIRED, Key, keys_of, plugin_keys, recipe_keys
from vit_dist.config.load import identity, resolve
from vit_dist.core.errors import ConfigError
from vit_dist.core.metrics import Metric
from vit_dist.core.registry import Config

RECIPE: dict[str, Any] = {
    "horizon": "1 epoch",
    "model": "vit-test",
    "data": {"num_classes": 10, "image_size": 28},
    "optim": {"name": "adamw", "lr": 1e-3},
    "schedule": {"name": "constant", "warmup": "0 steps"},
}


def every_key() -> list[Key]:
    return [*all_keys(), *(key for which in FILES for key in file_keys(which)), *keys_of(Metric)]


def test_the_page_is_what_the_schema_says() -> None:
    assert (ROOT / "docs" / "recipe.md").read_text() == page(), "vit-dist config --page > docs/recipe.md"


@pytest.mark.parametrize("first", ["vit_dist.evals.fewshot", "vit_dist.models.vit", "vit_dist.optim.sgd"])
def test_the_page_does_not_hang_on_what_was_imported_first(first: str) -> None:
    code = f"import {first}; from vit_dist.cli.explain import page; print(page(), end='')"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown == page()


@pytest.mark.parametrize("key", every_key(), ids=lambda key: f"{key.path}{''.join(key.plugins)}")
def test_every_key_has_a_meaning_a_value_and_a_default(key: Key) -> None:
    assert len(key.meaning) > 5, f"{key.path}: give its field a description"
    assert key.value
    assert key.default
    assert "\n" not in key.meaning
    # A type of Python's in place of words.
    assert not re.search(r"[<>]class|Annotated|typing|\bint\b|\bstr\b|function", key.value)


def test_a_key_without_a_meaning_is_noticed() -> None:
    class Bare(Config):
        depth: int = 3

    assert keys_of(Bare)[0].meaning == ""


def test_a_plain_key_of_the_schema_is_missing_nowhere() -> None:
    shown = {key.path for key in every_key()}
    plain = resolve(RECIPE).model_dump()

    def paths(section: dict[str, Any], prefix: str = "") -> set[str]:
        found = set()
        for key, value in section.items():
            found |= paths(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}"}
        return found

    assert paths(plain) <= shown


AUGMENT_SECTIONS = tuple(f"data.augment.{name}." for name in ("randaugment", "jitter", "erase"))
LEFT_OUT = (
    "init.",
    "about.",
    "branch.",
    "ema.",
    "finetune.",
    "loss.teacher.",
    "data.mixup.",
    "data.cache.",
    *AUGMENT_SECTIONS,
)

DEFAULTS = [
    key
    for key in recipe_keys()
    if key.default not in {REQUIRED, "its defaults", "left out"}
    and "NAME" not in key.path
    and key.value != "plug-in"
    # Inside of a section that is left out.
    and not key.path.startswith(LEFT_OUT)
]


@pytest.mark.parametrize("key", DEFAULTS, ids=lambda key: key.path)
def test_a_default_may_be_copied_into_an_override(key: Key) -> None:
    bare = {k: v for k, v in RECIPE.items() if k != "data"} | {"data": {"num_classes": 10}}
    if key.path == "data.image_size":
        bare["model"] = "ViT-B/16"
    else:
        bare["data"] = RECIPE["data"]
        assert "data.image_size" not in key.path
    assert resolve(bare, [f"{key.path}={key.default}"]) == resolve(bare)


def test_what_counts_for_the_identity_is_what_the_identity_holds() -> None:
    recipe = resolve(
        RECIPE,
        [
            "init={weights: w.npz, average: true}",
            "ema={decay: 0.9}",
            "data.mixup={alpha: 0.2}",
            "data.augment={randaugment: {}, jitter: {hue: 0.1}, erase: {}}",
            "data.val_resize=32",
            "data.upright=true",
            "data.decoder=nvimgcodec",
            "model.layer_scale=1e-4",
            "model.qk_norm=true",
            "model.registers=1",
            "model.mlp=swiglu",
            "model.patch_dropout=0.1",
            "loss={name: bce, sum_classes: true, target_threshold: 0.2, class_weights: balanced}",
            "loss.teacher={weights: t.npz}",
            "schedule.cooldown=20%",
            "schedule.form=1-sqrt",
            "optim.layer_decay=0.9",
            "optim.clip_per=block",
            "engine={name: plain}",
            "global_batch=8",
            "data.train=",
            "data.mixture={a: {train: x}}",
            "horizon=9 steps",
            "eval.every=1 step",
            "checkpoint.every=1 step",
        ],
    )
    held: set[str] = set()

    def walk(section: dict[str, Any], prefix: str) -> None:
        for key, value in section.items():
            walk(value, f"{prefix}{key}.") if isinstance(value, dict) else held.add(f"{prefix}{key}")

    walk(identity(recipe), "")
    # In place of some that are given above.
    strength = resolve(RECIPE, ["data.augment.augreg=light2", "global_batch=8"])
    # In place of `init`.
    branched = resolve(RECIPE, [f"branch={{checkpoint: c, run: r, step: 1, digest: {'a' * 32}}}"])
    planned = resolve(RECIPE, [f"branch={{checkpoint: c, run: r, step: 1, trunk: {'a' * 16}, optimizer: new}}"])
    for other in (branched, planned):
        walk(identity(other)["branch"], "branch.")
    cut = resolve(RECIPE, ["data.augment={crop: random, resize: 32}", "data.held_out=2%", "data.val="])
    for other in (strength, cut):
        walk(identity(other)["data"]["augment"], "data.augment.")
    held |= {f"data.{key}" for key in identity(cut)["data"] if key == "held_out"}
    held = {path.replace("data.mixture.a.", "data.mixture.NAME.") for path in held}
    sections = {key.path.rpartition(".")[0] for key in all_keys()} | {"data.mixture", *KINDS}
    names = {recipe.model.name: "vit", recipe.optim.name: "adamw", recipe.schedule.name: "constant"}
    told = {
        key.path
        for key in all_keys()
        if key.identity and key.path not in sections and (not key.plugins or set(key.plugins) & set(names.values()))
    }
    assert told == held


@pytest.mark.parametrize("query", ["", *sorted({key.path.partition(".")[0].strip("[]") for key in all_keys()}), *FILES])
def test_what_is_printed_fits_80_columns_and_names_every_key(query: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--explain", *([query] if query else [])]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= WIDTH
    keys = file_keys(query) if query in FILES else all_keys()
    within = [k for k in keys if not query or query in FILES or k.path.partition(".")[0].strip("[]") == query]
    first = [line.split()[0] for line in shown.splitlines() if line and not line.startswith(" ")]
    assert within
    assert {key.path for key in within} <= set(first)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("optim.lr", "peak learning rate"),
        ("model.vit.depth", r"model\.depth +integer > 0 +required"),
        ("model.ViT-B/16.depth", r"model\.depth +integer > 0 +12"),
        ("model.R152x2", r"model\.width_factor +integer > 0 +2"),
        ("model.timm:convnext_tiny", r"model\.args"),
        ("evaluators.fewshot.shots", r"\[1, 5, 10, 25\]"),
        ("evaluators[].shots", "of fewshot; not identity"),
        ("engine.zero_stage", "of deepspeed; not identity; layout"),
        ("schedule.cosine.end_lr", r"number >= 0 0\.0"),
        ("horizon", r"unit: steps, examples, epochs"),
        ("data.mixture.NAME.weight", "relative to the other sets"),
        ("clusters.time_limit", "time limit +required"),
        ("clusters.container.image", "a .sqsh or .sif file"),
        ("studies.duration.equal", r"epochs \| examples \| compute"),
        ("studies.cells.when", "which cells"),
        ("Optim.LR", "peak learning rate"),
    ],
)
def test_a_key_is_found_by_section_plugin_or_name(query: str, says: str) -> None:
    assert re.search(says, " ".join(explain(query).split())), explain(query)


@pytest.mark.parametrize(
    ("query", "near"),
    [
        ("optim.lrr", "did you mean 'optim.lr'?"),
        ("optm.lr", "there is optim.lr"),
        ("lr", "there is optim.lr"),
        ("warmpu", "did you mean 'schedule.warmup'?"),
        ("vall", "did you mean 'data.val'"),
        ("lrr", "did you mean 'optim.lr'?"),
        ("trian", "did you mean 'data.train' or 'data.mixture.NAME.train'"),
        ("evry", "or 'checkpoint.every' or 'log.every'?"),
        ("data.subest", "did you mean 'data.subset'?"),
        ("zero_stage", "there is engine.zero_stage"),
        ("every", "there is evaluators[].every, eval.every, checkpoint.every, log.every"),
        ("model.vitt.depth", "there is model.depth"),
        ("qqqqqq", "sections: "),
        ("clusters.time_limt", "did you mean 'time_limit'?"),
        ("studies.seed", "did you mean 'seeds'?"),
    ],
)
def test_a_key_that_is_none_comes_with_the_nearest(query: str, near: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explain(query)
    assert near in str(caught.value)


def test_what_a_plugin_file_brings_is_explained(
    tmp_path: Path, plugins_forgotten: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugin.py").write_text(
        "from pydantic import Field\n"
        "from vit_dist.core.registry import OPTIMIZERS\n"
        "from vit_dist.optim import OptimizerConfig\n"
        "@OPTIMIZERS.register('lion-of-mine', beta=0.5)\n"
        "class Lion(OptimizerConfig):\n"
        "    '''Signs alone.'''\n"
        "    elementwise = True\n"
        "    beta: float = Field(0.9, description='of the momentum')\n"
    )
    (tmp_path / "mine.yaml").write_text("base: demo\nplugins: [plugin.py]\n")
    assert main([str(tmp_path / "mine.yaml"), "--explain", "optim.lion-of-mine.beta"]) == 0
    assert re.search(
        r"optim\.beta +number +0\.5\n +of the momentum \(of lion-of-mine; identity\)", capsys.readouterr().out
    )
    assert "lion-of-mine" in {name for plugin in plugin_keys("optim") for name in plugin.names}
    # The page is that of the package, whatever is installed.
    assert "lion-of-mine" not in page()


@pytest.mark.parametrize("words", [[], ["--hash"]])
def test_nothing_to_show_is_an_error_that_says_what_to_give(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"give a RECIPE, such as demo, or --explain \[KEY\]"):
        main(words)


def test_it_answers_without_torch_and_numpy() -> None:
    code = (
        "import sys, json; from vit_dist.cli.config import main; main(['--explain']); "
        "json.dump([m for m in ('torch', 'numpy', 'rich', 'scipy') if m in sys.modules], sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stderr) == []
