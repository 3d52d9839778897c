"""A value belongs to a metric, a set and a step: training and evaluations of one run never mix sets under one tag."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.conftest import trains_here
from tests.shards import write_set
from vit_dist.cli.evaluate import main
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.events.reader import read_run
from vit_dist.core.run.checkpoints import read_marker
from vit_dist.core.run.log import logged_measured, logged_metrics
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest, write_manifest
from vit_dist.scaling.collect import collect
from vit_dist.study.local import evaluated
from vit_dist.train.attempt import attempt
from vit_dist.train.evaluate import evaluate

RECIPE = """
global_batch: 12
horizon: 4 steps
precision: fp32
model: vit-test
data: {num_classes: 4, image_size: 28, augment: none}
optim: {name: adamw, lr: 1e-3}
schedule: {name: constant, warmup: 0 steps}
engine: plain
evaluators: [classification]
eval: {every: 2 steps}
checkpoint: {every: 2 steps, keep: 9, probe: 0}
"""


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    with trains_here():
        yield


@pytest.fixture(scope="module")
def other_val(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A set of other images, whose name is no part of a tag as it is."""
    folder = tmp_path_factory.mktemp("other-val")
    url = write_set(folder, num_samples=30, samples_per_shard=20, num_classes=4, first=50_000)
    return renamed(url, folder / "named.json", "Sketches / [2026]")


def renamed(url: str, path: Path, name: str, classes: Sequence[str] | None = None) -> str:
    """The same set under another name."""
    manifest = read_manifest(url)
    changes: dict[str, Any] = {} if classes is None else {"classes": tuple(classes)}
    write_manifest(replace(manifest, base="", name=name, shards=absolute(manifest), **changes), str(path))
    return str(path)


def absolute(manifest: Any) -> Any:
    return tuple(
        replace(s, url=f"{manifest.base}/{s.url}", index_url=f"{manifest.base}/{s.index_url}") for s in manifest.shards
    )


class Trained:
    """A run of four steps, and what is asked of it."""

    def __init__(self, folder: Path, train: str) -> None:
        self.recipe, self.dir, self.data_train = folder / "recipe.yaml", folder / "run", train

    def train(self, *overrides: str) -> None:
        words = [f"data.train={self.data_train}", *overrides]
        attempt(load_recipe(str(self.recipe), words), self.dir, World())

    def evaluate(self, *overrides: str, out: Path | None = None) -> dict[str, float]:
        return evaluate(load_recipe(str(self.dir / "recipe.yaml"), overrides), self.dir, World(), out=out)

    def back_to_step_2(self) -> None:
        shutil.rmtree(self.dir / "checkpoints" / "step-0000000004")

    def series(self) -> dict[str, list[tuple[int, float]]]:
        scalars = read_run(str(self.dir / "tb")).scalars
        found = {tag: s for tag, s in scalars.items() if tag.startswith(("val", "fewshot"))}
        return {tag: list(zip(s.steps.tolist(), s.values.tolist(), strict=True)) for tag, s in found.items()}

    def record(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.dir / "history-evaluations.jsonl").read_text().splitlines()]

    def edit_run(self, **changes: Any) -> None:
        path = self.dir / "run.json"
        plain = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({name: value for name, value in plain.items() if value is not None}))


@pytest.fixture(scope="module")
def once(alone: None, tmp_path_factory: pytest.TempPathFactory, small_set: str, small_val: str) -> Trained:
    made = Trained(tmp_path_factory.mktemp("trained"), small_set)
    made.recipe.write_text(RECIPE)
    made.train(f"data.val={small_val}")
    return made


@pytest.fixture
def run(once: Trained, tmp_path: Path) -> Trained:
    shutil.copytree(once.dir.parent, tmp_path, dirs_exist_ok=True)
    return Trained(tmp_path, once.data_train)


def test_another_set_is_measured_truly_under_tags_of_its_own(
    run: Trained, small_val: str, other_val: str, tmp_path: Path
) -> None:
    before, report = run.series(), collect(str(run.dir)).observations
    own = run.evaluate(out=tmp_path / "own.json")
    other = run.evaluate(f"data.val={other_val}", out=tmp_path / "other.json")
    fingerprint = read_manifest(other_val).fingerprint
    label = f"Sketches-2026-{fingerprint[:8]}"
    assert list(own) == ["val/top1", "val/loss"]
    assert list(other) == [f"val@{label}/top1", f"val@{label}/loss"]
    assert own["val/loss"] == pytest.approx(before["val/loss"][-1][1])
    assert abs(other[f"val@{label}/loss"] - own["val/loss"]) > 1e-6

    after = run.series()
    assert {tag: after[tag] for tag in before} == before
    assert after[f"val@{label}/loss"] == [(4, pytest.approx(other[f"val@{label}/loss"]))]
    assert collect(str(run.dir)).observations == report
    assert report[0].measured_on_fingerprint == read_manifest(small_val).fingerprint

    told = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("own", "other")}
    assert told["other"]["values"] == pytest.approx(
        {"val/top1": other[f"val@{label}/top1"], "val/loss": other[f"val@{label}/loss"]}
    )
    assert told["own"]["values"] == pytest.approx(own)
    described = told["other"]["set"]
    assert (described["name"], described["fingerprint"], described["examples"]) == (
        "Sketches / [2026]",
        fingerprint,
        30,
    )
    assert (described["subset"], described["image_size"], described["crop"]) == (None, 28, 0.875)
    assert told["other"]["tags"] == {"val/top1": f"val@{label}/top1", "val/loss": f"val@{label}/loss"}
    assert [entry["set"]["fingerprint"] for entry in run.record()] == [told[n]["set"]["fingerprint"] for n in told]

    log = read_run(str(run.dir / "tb"))
    assert logged_measured(log, f"val@{label}/top1").fingerprint == fingerprint
    assert logged_metrics(log)[f"val@{label}/loss"].better == "lower"


def label(url: str) -> str:
    manifest = read_manifest(url)
    return f"{manifest.name}-{manifest.fingerprint[:8]}"


def test_what_was_measured_is_known_again_wherever_the_set_lies_and_whatever_it_is_called(
    run: Trained, small_val: str, other_val: str, tmp_path: Path
) -> None:
    first = run.evaluate(f"data.val={other_val}")
    own = run.evaluate()
    written = sorted((run.dir / "tb").iterdir())
    moved = renamed(other_val, tmp_path / "moved.json", "moved")
    assert [run.evaluate(f"data.val={url}") for url in (other_val, moved, small_val)] == [first, first, own]
    assert run.evaluate("evaluators=[classification, classification]") == own
    assert sorted((run.dir / "tb").iterdir()) == written
    assert len(run.record()) == 2
    # Another step is another value.
    assert evaluate_at(run, "step-0000000002") != own
    assert len(run.record()) == 3


def evaluate_at(run: Trained, checkpoint: str) -> dict[str, float]:
    recipe = load_recipe(str(run.dir / "recipe.yaml"))
    return evaluate(recipe, run.dir, World(), checkpoint=checkpoint)


def test_a_run_that_goes_on_with_another_set_goes_on_under_other_tags(
    run: Trained, small_val: str, other_val: str
) -> None:
    before = run.series()["val/top1"]
    run.back_to_step_2()
    run.train(f"data.val={other_val}", "checkpoint.keep_best=val/top1")
    other = f"val@Sketches-2026-{read_manifest(other_val).fingerprint[:8]}/top1"
    after = run.series()
    assert after["val/top1"] == before[:1]
    assert [step for step, _ in after[other]] == [4]
    markers = {step: read_marker(run.dir / "checkpoints" / f"step-{step:010d}")[0]["metrics"] for step in (2, 4)}
    assert (sorted(markers[2])[1], sorted(markers[4])[1]) == ("val/top1", other)
    found = collect(str(run.dir))
    assert "val/top1 was last measured at step 2, not at its end, 4" in found.excluded[0].reason
    # Its own set again: the tag is still its own.
    assert list(run.evaluate(f"data.val={small_val}")) == ["val/top1", "val/loss"]
    assert run.series()["val/top1"] == [before[0], (4, pytest.approx(before[1][1], abs=0.5))]


def shots(train: str, test: str, **settings: object) -> str:
    fields = {"name": "fewshot", "set": "caps", "train": train, "test": test, "shots": [1, 2], "seeds": 1, **settings}
    return f"evaluators={json.dumps([fields])}"


def test_settings_of_few_shots_are_part_of_what_is_measured(
    run: Trained, small_set: str, small_val: str, other_val: str, tmp_path: Path
) -> None:
    first = run.evaluate(shots(small_set, small_val))
    assert sorted(first) == ["fewshot/caps_1shot", "fewshot/caps_2shot"]
    tags = {tuple(first)}
    for changed in (
        shots(small_set, other_val),
        shots(other_val, small_val),
        shots(small_set, small_val, seeds=2),
        shots(small_set, small_val, l2=1.0),
        shots(small_set, small_val, crop=0.5),
    ):
        found = run.evaluate(changed)
        # Nothing else was measured yet of which there is a deviation.
        spreads = {tag for tag in found if tag.startswith("fewshot_std/")}
        assert all(tag.startswith("fewshot@") and tag.endswith("shot") for tag in found.keys() - spreads)
        tags.add(tuple(found))
    assert len(tags) == 6
    # How many shots, and where the sets lie, are no settings.
    entries = len(run.record())
    assert run.evaluate(shots(renamed(small_set, tmp_path / "t.json", "t"), small_val, shots=[2])) == {
        "fewshot/caps_2shot": first["fewshot/caps_2shot"]
    }
    assert len(run.record()) == entries
    assert list(run.evaluate(shots(small_set, small_val, shots=[3]))) == ["fewshot/caps_3shot"]


def test_two_evaluators_of_one_name_keep_their_values_apart(
    run: Trained, small_set: str, small_val: str, other_val: str, tmp_path: Path
) -> None:
    both = [json.loads(shots(small_set, test, shots=[1]).partition("=")[2])[0] for test in (small_val, other_val)]
    found = run.evaluate(f"evaluators={json.dumps(both)}", out=tmp_path / "out.json")
    plain, other = found
    assert (plain, other.partition("@")[0]) == ("fewshot/caps_1shot", "fewshot")
    told = json.loads((tmp_path / "out.json").read_text())
    assert told["values"] == pytest.approx(found)
    assert [one["fingerprint"] for one in told["sets"]] == [
        read_manifest(u).fingerprint for u in (small_val, other_val)
    ]


def test_the_same_images_with_labels_of_other_meaning_are_another_set(
    run: Trained, small_set: str, small_val: str, tmp_path: Path
) -> None:
    hats, names = read_manifest(small_set), ("hat", "tie", "cap", "bag")
    assert hats.classes == names
    permuted = [
        renamed(small_val, tmp_path / f"{i}.json", "val", order)
        for i, order in enumerate((names, names[::-1], ("tie", "hat", "cap", "bag")))
    ]
    assert {read_manifest(url).fingerprint for url in permuted} == {read_manifest(small_val).fingerprint}
    found = [tuple(run.evaluate(f"data.val={url}")) for url in permuted]
    assert len({*found, ("val/top1", "val/loss")}) == 4


def test_a_run_of_an_older_version_has_the_set_of_its_recipe(run: Trained, small_val: str, other_val: str) -> None:
    run.edit_run(measured=None)
    assert next(iter(run.evaluate(f"data.val={other_val}"))).startswith("val@Sketches")
    assert list(run.evaluate()) == ["val/top1", "val/loss"]
    assert {"val/loss", "val/top1"} < set(json.loads((run.dir / "run.json").read_text())["measured"])


def test_where_the_set_of_an_older_run_is_gone_nothing_is_taken_for_it(
    run: Trained, small_val: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run.edit_run(measured=None)
    recipe = run.dir / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace(small_val, "/nowhere/gone.json"))
    assert next(iter(run.evaluate(f"data.val={small_val}"))).startswith("val@")
    assert "does not say on which set it was validated" in capsys.readouterr().err
    assert [step for step, _ in run.series()["val/top1"]] == [2, 4]


@pytest.mark.parametrize(
    "damage", [{"val/top1": 3}, {"val/top1": {"name": "x"}}, {"val/top1": {"fingerprint": "../x"}}]
)
def test_a_record_that_is_damaged_is_said(damage: dict[str, Any], run: Trained) -> None:
    run.edit_run(measured=damage)
    with pytest.raises(RunError, match=r"run\.json: damaged: measured: "):
        run.evaluate()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["data.val="], "data.val is empty, and classification needs it"),
        (["evaluators=[]"], "evaluators is empty"),
    ],
)
def test_an_evaluation_of_nothing_is_refused(words: list[str], says: str, run: Trained) -> None:
    with pytest.raises(ConfigError, match=says):
        main([str(run.dir), *words])


def test_a_study_asks_for_its_evaluation_on_the_set_of_the_run(run: Trained, small_set: str, other_val: str) -> None:
    evaluators = load_recipe(str(run.dir / "recipe.yaml")).evaluators
    cell = SimpleNamespace(evaluations=evaluators)
    run.evaluate(f"data.val={other_val}")
    assert not evaluated(cell, run.dir)  # type: ignore[arg-type]
    run.evaluate()
    assert evaluated(cell, run.dir)  # type: ignore[arg-type]


def test_a_run_says_at_its_start_that_its_head_has_idle_outputs(
    once: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Trained(tmp_path, once.data_train)
    other.recipe.write_text(RECIPE)
    other.train("data.num_classes=100", "horizon=1 steps", "evaluators=[]")
    assert "data.num_classes=100, but the training set has 4 classes: 96 outputs" in capsys.readouterr().err


def test_an_evaluator_looks_as_often_as_it_says_and_at_the_end_and_leaves_its_files_by_step(
    tmp_path: Path, small_set: str, small_val: str
) -> None:
    made = Trained(tmp_path, small_set)
    made.recipe.write_text(RECIPE)
    often = {"name": "classification", "every": "1 step", "measure": ["top1"], "confusion": True}
    seldom = {"name": "knn", "set": "caps", "k": [3], "every": "0 steps"}
    usual = {"name": "classification", "measure": ["loss"]}
    made.train(f"data.val={small_val}", f"evaluators={json.dumps([often, seldom, usual])}", "horizon=3 steps")
    scalars = read_run(str(made.dir / "tb")).scalars
    found = {tag: scalars[tag].steps.tolist() for tag in ("val/top1", "val/loss", "knn/caps_3nn")}
    assert found == {"val/top1": [1, 2, 3], "val/loss": [2, 3], "knn/caps_3nn": [3]}
    pictures = sorted(path.parent.parent.name for path in (made.dir / "evaluations").glob("*/*/confusion.png"))
    assert pictures == [f"step-{step:010d}" for step in (1, 2, 3)]
