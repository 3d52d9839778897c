"""A head of many more outputs than its set has classes is said, where people look before and when a run starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.slurm.cluster import load_cluster
from launcher.submit.run import SubmitRequest, warnings
from vit_dist.config.load import load_recipe
from vit_dist.data.sets import idle_outputs, open_training_set

MIXTURE = "data.mixture={{a: {{train: {url}}}, b: {{train: {url}, label_offset: 4}}}}"


@pytest.mark.parametrize(
    ("head", "known", "said"),
    [
        (10, 10, False),
        (1001, 1000, False),
        (1100, 1000, False),
        (11, 10, False),
        (1000, 10, True),
        (1000, 100, True),
        (12, 10, True),
        (4, 1, True),
        (21843, 1000, True),
    ],
)
def test_many_more_outputs_than_classes_are_said(head: int, known: int, said: bool) -> None:
    assert (f"data.num_classes={known}" in idle_outputs(head, known)) is said


@pytest.mark.parametrize(
    ("sets", "known"),
    [
        (["data.train={url}"], 4),
        (
            [
                "data.train=",
                MIXTURE,
                "horizon=9 steps",
            ],
            8,
        ),
        (["data.train=s3://nowhere/x"], None),
        (["data.train=/nowhere/x"], None),
        (["data.train="], None),
    ],
)
def test_submit_says_it_of_sets_that_lie_here(
    sets: list[str], known: int | None, small_set: str, tmp_path: Path
) -> None:
    cadences = ["data.num_classes=1000", "eval.every=5 steps", "checkpoint.every=5 steps", "schedule.warmup=0 steps"]
    recipe = load_recipe("demo", [*(word.format(url=small_set) for word in sets), *cadences, "evaluators=[]"])
    found = [
        text for text in warnings(SubmitRequest(recipe, load_cluster("dev"), 1, 0, "", tmp_path)) if "head" in text
    ]
    assert len(found) == (known is not None)
    if known is not None:
        assert open_training_set(recipe).num_classes == known
        assert f"the training set has {known} classes" in found[0]
