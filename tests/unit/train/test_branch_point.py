"""Which checkpoint RUN@STEP means, what a branch may be given, and how refusals read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT
from vit_dist.cli.explain import all_keys
from vit_dist.config.branch_keys import RULES, check_changes, rule_of, table
from vit_dist.config.load import identity, load_recipe, recipe_hash, recipe_yaml
from vit_dist.core.errors import CheckpointError, ConfigError
from vit_dist.core.run.checkpoints import seal_marker, step_name
from vit_dist.core.run.lineage import Trunk, checkpoint_digest, described, is_lineage, multiply_adds
from vit_dist.data.sets import open_training_set
from vit_dist.data.takedown import find
from vit_dist.train.branch_point import branch_recipe, find_point
from vit_dist.train.branch_state import carried_state

WORDS = ["data.train=set/manifest.json", "data.val=other/manifest.json", "global_batch=16", "horizon=40 steps"]
WORDS += ["schedule.warmup=2 steps", "checkpoint.keep_best=val/top1"]


def marker_of(step: int, top1: float, plain: dict[str, Any], wrote_s: float = 1.0) -> dict[str, Any]:
    state = {"step": step, "position": 16 * step, "skipped": 0, "quarantined": [], "losses": [], "bad_in_row": 0}
    return {
        "format": 2,
        "vit_dist": "0",
        "layout": {"world_size": 1},
        "recipe": plain,
        "state": {**state, "spikes": 0, "passed_over": [], "order": {"num_samples": 200}},
        "files": {"rank-00000.safetensors": {"bytes": 8, "xxh128": f"{step:032x}"}},
        "wrote_s": wrote_s,
        "metrics": {"val/top1": top1},
    }


def run_with(folder: Path, *words: str, steps: dict[int, float] | None = None, copies: bool = False) -> Path:
    """The directory of a run with checkpoints at steps, each with a value of val/top1; or such copies of it."""
    recipe = load_recipe("demo", [*WORDS, *words])
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe_yaml(recipe))
    (folder / "run.json").write_text(json.dumps({"identity": identity(recipe), "recipe_hash": recipe_hash(recipe)}))
    root = folder if copies else folder / "checkpoints"
    for step, top1 in (steps or {10: 0.5, 20: 0.7, 30: 0.6}).items():
        (root / step_name(step)).mkdir(parents=True)
        content = seal_marker(marker_of(step, top1, {**identity(recipe), "fingerprint": "f00d"}))
        (root / step_name(step) / "COMMITTED.json").write_bytes(content)
    return folder


@pytest.mark.parametrize(("step", "found"), [("10", 10), ("latest", 30), ("best", 20), ("0.02k", 20)])
@pytest.mark.parametrize("copies", [False, True])
def test_a_checkpoint_is_named_by_its_step_or_as_the_latest_or_best(
    step: str, found: int, copies: bool, tmp_path: Path
) -> None:
    run = run_with(tmp_path / "a@b", copies=copies)
    point = find_point(f"{run}@{step}", [])
    assert (point.step, point.run) == (found, "a@b")
    assert Path(point.checkpoint) == (run if copies else run / "checkpoints") / step_name(found)
    assert find_point(f"a@b@{step}", [tmp_path]).checkpoint == point.checkpoint


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{}", r"give RUN@STEP: a run, and the step of one of its checkpoints, latest or best"),
        ("@3", r"give RUN@STEP"),
        ("{}@", r"give RUN@STEP"),
        ("{}@17", r"run@17: no checkpoint of step 17; nearest: 10 and 20; there are 10, 20, 30\."),
        ("{}@31", r"no checkpoint of step 31; nearest: 30; there are"),
        ("{}@third", r"'third' is no step; give a number, latest or best"),
    ],
)
def test_a_step_without_a_checkpoint_is_told_the_nearest_ones(text: str, error: str, tmp_path: Path) -> None:
    run = run_with(tmp_path / "run")
    with pytest.raises(ConfigError, match=error):
        find_point(text.format(run), [tmp_path])


def test_what_cannot_be_branched_from_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"best: its checkpoint\.keep_best names no metric"):
        find_point(f"{run_with(tmp_path / 'unrated', 'checkpoint.keep_best=')}@best", [])
    for folder in (tmp_path / "unrated" / "checkpoints").iterdir():
        (folder / "COMMITTED.json").unlink()
    with pytest.raises(ConfigError, match="no checkpoint in it to branch from"):
        find_point(f"{tmp_path / 'unrated'}@latest", [])
    damaged = run_with(tmp_path / "damaged")
    marker = damaged / "checkpoints" / step_name(30) / "COMMITTED.json"
    marker.write_bytes(marker.read_bytes().replace(b'"step": 30', b'"step": 29'))
    with pytest.raises(CheckpointError, match=r"its checksum does not fit its content"):
        find_point(f"{damaged}@latest", [])
    (damaged / "recipe.yaml").unlink()
    with pytest.raises(ConfigError, match=r"holds no recipe\.yaml"):
        find_point(f"{damaged}@10", [])


def test_a_branch_keeps_all_of_its_trunk_but_what_is_given_and_what_is_its_own(tmp_path: Path) -> None:
    trunk = run_with(tmp_path / "run", "study=grid", "checkpoint.remote=s3://b/x", "init={weights: w.npz, head: new}")
    point = find_point(f"{trunk}@20", [])
    recipe, _, left = branch_recipe(point, ["optim.lr=1e-4"])
    assert recipe.branch is not None
    assert (recipe.name, recipe.study, recipe.init, recipe.checkpoint.remote) == ("demo-from-20", "", None, "")
    assert (recipe.branch.step, recipe.branch.digest) == (20, checkpoint_digest(point.marker))
    assert ["grid" in text or "checkpoint.remote" in text for text in left] == [True, True]
    changes = check_changes(point.marker["recipe"], identity(recipe))
    assert [(key, b) for key, _, b in changes] == [("optim.lr", 1e-4)]

    given, _, left = branch_recipe(point, ["name=x", "study=more", "checkpoint.remote=s3://b/y", "optim.lr=1e-4"])
    assert (given.name, given.study, given.checkpoint.remote, left) == ("x", "more", "s3://b/y", [])
    # Names, places and when it was written are no part of what it is; the checkpoint is.
    assert recipe_hash(given) == recipe_hash(recipe)
    assert recipe_hash(recipe) != recipe_hash(branch_recipe(find_point(f"{trunk}@30", []), ["optim.lr=1e-4"])[0])
    slower = marker_of(20, 0.9, dict(point.marker["recipe"]), wrote_s=7.0)
    assert checkpoint_digest(slower) == checkpoint_digest(point.marker)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["seed=1"], r"seed \(0 -> 1\): a branch cannot change it: the order of examples rests on it"),
        (["data.window=8"], r"data\.window \(none -> 8\): a branch cannot change it: the order"),
        (
            ["global_batch=32"],
            r"global_batch \(16 -> 32\): .* curves would not join[^\n]*\n.*alone may .*init\.weights=CH",
        ),
        (
            ["model=vit-test"],
            r"model\.name .*model\.width \(64 -> 32\): a branch cannot change it: the trunk's weights",
        ),
        (
            ["optim={name: sgd, lr: 0.1}"],
            r"optim\.name \(adamw -> sgd\): the moments .*; branch\.optimizer=new begins it",
        ),
        (["data.num_classes=11"], r"data\.num_classes=11: the trunk's head has 10 outputs; branch\.head=new begins"),
        (["init.weights=w.npz"], r"init\.weights: a branch cannot be given it: a branch begins from its checkpoint"),
        (["branch.digest=0"], r"branch\.digest: a branch cannot be given it: RUN@STEP says it"),
        (["branch={head: new}"], r"branch: a branch cannot be given it"),
    ],
)
def test_a_key_that_a_branch_may_not_change_is_named_with_the_reason(
    words: list[str], error: str, tmp_path: Path
) -> None:
    point = find_point(f"{run_with(tmp_path / 'run')}@20", [])

    def refused() -> None:
        check_changes(point.marker["recipe"], identity(branch_recipe(point, words)[0]))

    with pytest.raises(ConfigError, match=error):
        refused()


def test_what_a_branch_may_change_is_allowed(tmp_path: Path) -> None:
    point = find_point(f"{run_with(tmp_path / 'run')}@20", [])
    words = ["horizon=60 steps", "schedule={name: linear, warmup: 1 step}", "optim.lr=1e-4", "optim.clip=null"]
    words += ["precision=fp32", "loss.label_smoothing=0.1", "guards.spike=skip", "data.train=more", "data.subset=50"]
    words += ["data.augment=inception", "data.image_size=56", "data.num_classes=3", "branch.head=new"]
    words += ["model.dropout=0.1", "model.head_bias=-3", "engine=plain", "log.every=3 steps", "eval.every=0 steps"]
    changes = check_changes(point.marker["recipe"], {**identity(branch_recipe(point, words)[0]), "fingerprint": "2"})
    found = {key for key, _, _ in changes}
    assert {"horizon", "schedule.name", "optim.lr", "data.subset", "data.num_classes", "fingerprint"} <= found
    assert not found & {"engine.name", "log.every", "data.train"}


def test_what_begins_anew_is_a_change_also_where_nothing_else_is(tmp_path: Path) -> None:
    point = find_point(f"{run_with(tmp_path / 'run')}@20", [])

    def changes(*words: str) -> list[tuple[str, str, str]]:
        return check_changes(point.marker["recipe"], identity(branch_recipe(point, words)[0]))

    assert changes() == []
    assert changes("branch.head=new") == [("branch.head", "keep", "new")]
    other = changes("optim={name: sgd, lr: 0.1}", "branch.optimizer=new")
    assert ("optim.name", "adamw", "sgd") in other
    assert other[-1] == ("branch.optimizer", "keep", "new")
    assert "optimizer" not in recipe_yaml(branch_recipe(point, [])[0])


def test_the_page_has_the_table_and_every_key_of_it_is_one() -> None:
    assert table() in (ROOT / "docs" / "branch.md").read_text()
    of_runs = {
        "fingerprint",
        "trunk",
        "initial_weights",
        "teacher_weights",
        "class_weights",
        "plugins.model",
        "plugins.optim",
        "plugins.schedule",
    }
    known = [f"{key.path}." for key in all_keys()]
    for rule in RULES:
        for key in rule.keys:
            assert rule_of(key) is rule
            assert key in of_runs or any(path.startswith(f"{key}.") for path in known), key
    assert not rule_of("something.new").allowed


def test_what_a_lineage_has_cost_is_counted_at_each_model_it_went_through() -> None:
    def trunk(**given: Any) -> Trunk:
        return Trunk(run="a", recipe_hash="0", digest="1", **given)

    small = trunk(step=10, examples=160, macs_per_image=5)
    large = trunk(step=15, examples=240, macs_per_image=100)
    assert multiply_adds((), 7, 30) == 210
    assert multiply_adds((small,), 100, 200) == 160 * 5 + 40 * 100
    assert multiply_adds((small, large), 3, 300) == 160 * 5 + 80 * 100 + 60 * 3
    assert multiply_adds((trunk(step=1, examples=16),), 3, 300) is None
    assert multiply_adds((small,), None, 300) is None
    words = "a at step 15 (240 examples), which branched from a at step 10 (160 examples)"
    assert described((small, large)) == words
    assert not is_lineage([{"run": "a", "step": -1}])
    assert not is_lineage("x")
    assert is_lineage([small.model_dump(mode="json")])


def test_what_rests_on_the_trunks_shards_is_not_carried_to_others(small_set: str) -> None:
    recipe = load_recipe("demo", [f"data.train={small_set}", "data.val=", "data.num_classes=4", "data.subset=50"])
    data = open_training_set(recipe)
    key = "k000012"
    raw: dict[str, Any] = {"step": 3, "position": 48, "quarantined": [7], "losses": [1.0], "loss_steps": [3]}
    raw["taken_down"] = [[key, 16, [190]], ["nowhere", 32, [5]]]
    same = carried_state({**raw, "order": asdict(data.identity)}, data, ["optim.lr"], new_head=False)
    assert {name: same[name] for name in raw} == raw
    other = {**raw, "order": {**asdict(data.identity), "fingerprint": "another"}}
    moved = carried_state(other, data, ["fingerprint"], new_head=False)
    assert (moved["quarantined"], moved["losses"], moved["loss_steps"]) == ([], [], [])
    assert moved["taken_down"] == [[key, 16, list(find([key], data.parts)[key])], ["nowhere", 32, []]]
    assert find([key], data.parts)[key]
    assert moved["order"] == asdict(data.identity)
    assert carried_state({**raw, "order": same["order"]}, data, [], new_head=True)["losses"] == []
