"""Evaluators give on any number of processes what independent formulas give, each example once."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluating import EVALUATORS, context_of, nearest_by_force
from vit_dist.data.manifest import read_manifest
from vit_dist.evals._features import features


def by_hand(context: Any, manifest: Any) -> tuple[np.ndarray, np.ndarray]:
    """Features and labels of a set, one batch after the other."""
    parts = list(features(context, manifest, crop=0.875))
    return torch.cat([x for _, x in parts]).numpy(), torch.cat([b.labels[:, 0] for b, _ in parts]).numpy()


@pytest.mark.distributed
def test_every_number_of_processes_gives_what_one_gives_and_the_votes_of_brute_force(
    run_world: Callable[..., Any], small_set: str, small_val: str, tmp_path: Path
) -> None:
    context = context_of(small_set, small_val, EVALUATORS, outputs=tmp_path / "one")
    alone = {tag: value for evaluator in context.recipe.evaluators for tag, value in evaluator.run(context)}
    x, labels = by_hand(context, read_manifest(small_set))
    new, truth = by_hand(context, read_manifest(small_val))
    for k in (1, 5, 20):
        guess = nearest_by_force(x, labels, new, k, 0.07, 4)
        assert alone[f"knn/small_{k}nn"] == (guess == truth).mean(), k
    assert len({alone[f"knn/small_{k}nn"] for k in (1, 5, 20)}) > 1
    for nproc in (2, 3):
        found = run_world("integration/evals_worker.py", nproc, small_set, small_val)
        assert found == pytest.approx(alone, rel=1e-5, abs=1e-6), nproc
        for tag in ("val/top1", "val/top5", *(f"knn/small_{k}nn" for k in (1, 5, 20))):
            assert found[tag] == alone[tag], (nproc, tag)
        (main,) = tmp_path.glob(f"evals_worker-{nproc}-*.json")
        for rank in range(1, nproc):
            assert json.loads(main.with_suffix(f".{rank}").read_text()) == found
        assert (main.with_suffix("") / "confusion.csv").read_bytes() == (tmp_path / "one/confusion.csv").read_bytes()
    rows = list(csv.reader(io.StringIO((tmp_path / "one/confusion.csv").read_text())))
    assert sum(int(cell) for row in rows[1:] for cell in row[1:]) == 45
    assert sum(int(row[i]) for i, row in enumerate(rows) if i) == round(alone["val/top1"] * 45)
    probes = csv.DictReader(io.StringIO((tmp_path / "one/linear-small.csv").read_text()))
    chosen = [row for row in probes if row["chosen"] == "1"]
    assert [float(row["heldout_top1"]) for row in chosen] == [alone["linear/small_heldout"]]
