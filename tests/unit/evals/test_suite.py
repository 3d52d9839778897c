"""A suite's values are those of its evaluators alone, and its mean is a metric as any other."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tests.evaluating import context_of
from tests.shards import write_set
from vit_dist.core.errors import VitDistError
from vit_dist.core.metrics import ACCURACY


@pytest.fixture(scope="module")
def fields(small_set: str, small_val: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    other = write_set(
        tmp_path_factory.mktemp("other"), num_samples=30, samples_per_shard=20, num_classes=4, first=70_000
    )
    sets = {"caps": {"train": small_set, "test": small_val, "settings": {"crop": 1.0}}}
    sets |= {"hats": {"train": small_set, "test": other}}
    return {
        "name": "suite",
        "set": "two",
        "by": "knn",
        "settings": {"k": [3]},
        "sets": sets,
        "groups": {"some": ["hats"]},
    }


def test_a_suite_gives_what_its_evaluators_give_alone_and_their_mean(
    fields: dict[str, Any], small_set: str, small_val: str, tmp_path: Path
) -> None:
    alone = [
        {"name": "knn", "set": name, "k": [3], **{k: one[k] for k in ("train", "test")}, **one.get("settings", {})}
        for name, one in fields["sets"].items()
    ]
    context = context_of(small_set, small_val, [fields, *alone], outputs=tmp_path)
    suite, *others = context.recipe.evaluators
    caps, hats = (dict(one.run(context)) for one in others)
    found = dict(suite.run(context))
    assert found == {
        "suite/two_caps": caps["knn/caps_3nn"],
        "suite/two_hats": hats["knn/hats_3nn"],
        "suite/two_some": hats["knn/hats_3nn"],
        "suite/two_mean": (caps["knn/caps_3nn"] + hats["knn/hats_3nn"]) / 2,
    }
    assert caps["knn/caps_3nn"] != hats["knn/hats_3nn"]
    rows = list(csv.DictReader(io.StringIO((tmp_path / "suite-two.csv").read_text())))
    assert [(row["dataset"], float(row["top1"])) for row in rows] == [(tag[10:], found[tag]) for tag in found]
    assert rows[1]["test_examples"] == "30"
    # What a study draws, and what a checkpoint may be kept by.
    assert context.recipe.metric("suite/two_mean", "metric") == ACCURACY
    # Another test set, or other settings of one dataset, make another measure; places do not.
    on = suite.measures_on(context.recipe, None)
    changed = {**fields, "sets": {**fields["sets"], "hats": {"train": small_set, "test": small_val}}}
    (other,) = context_of(small_set, small_val, [changed]).recipe.evaluators
    assert other.measures_on(context.recipe, None).key != on.key
    assert on.examples == 75


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"settings": {"kk": 3}}, r"sets.caps: settings.*kk"),
        ({"settings": {"set": "x"}}, r"settings: set is not one of them"),
        ({"groups": {"some": ["cats"]}}, r"no dataset 'cats'; there are caps, hats"),
        ({"by": "magic"}, r"by"),
        ({"sets": {}}, r"sets"),
        ({"settings": {"k": [500]}}, r"knn of 'caps': k=500 neighbours of 200 examples"),
    ],
)
def test_mistakes_are_said_before_any_dataset_is_looked_at(
    change: dict[str, Any], said: str, fields: dict[str, Any], small_set: str, small_val: str
) -> None:
    def check() -> None:
        context = context_of(small_set, small_val, [{**fields, **change}])
        context.recipe.evaluators[0].check_sets(context.recipe)  # type: ignore[attr-defined]

    with pytest.raises(VitDistError, match=said):
        check()


def test_a_dataset_that_is_not_there_is_named(fields: dict[str, Any], small_set: str, small_val: str) -> None:
    from vit_dist.study.sets import places

    sets = {**fields["sets"], "cats": {"train": small_set, "test": "gone/cats"}}
    context = context_of(small_set, small_val, [{**fields, "sets": sets}])
    assert ("evaluators: suite: sets.cats.test", "gone/cats") in places(context.recipe)
    with pytest.raises(VitDistError, match=r"suite of .*: sets\..*: .*: (train|test): .*gone/cats"):
        context.recipe.evaluators[0].check_sets(context.recipe)
