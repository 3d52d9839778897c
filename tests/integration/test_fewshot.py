"""Few-shot evaluation is the closed form that the protocol says, whatever the engine and the number of processes."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vit_dist.core.errors import ConfigError
from vit_dist.data.manifest import read_manifest
from vit_dist.data.subset import pick, select_shots
from vit_dist.evals._fewshot import Ridge
from vit_dist.evals.fewshot import FewShotConfig, draw


def reference(x: np.ndarray, labels: np.ndarray, classes: int, l2: float) -> Callable[[np.ndarray], np.ndarray]:
    """big_vision's fewshot_lsr in numpy, primal only: features -> scores."""
    mean, std = x.mean(0), x.std(0) + 1e-5

    def prepare(features: np.ndarray) -> np.ndarray:
        z = (features - mean) / std
        return np.concatenate([z, np.full((len(z), 1), 100.0)], axis=1)

    z, y = prepare(x), 2 * np.eye(classes)[labels] - 1
    w = np.linalg.solve(z.T @ z + l2 * np.eye(z.shape[1]), z.T @ y)
    return lambda features: prepare(features) @ w


@pytest.mark.parametrize(("examples", "width"), [(40, 7), (7, 40), (21, 20)])
@pytest.mark.parametrize("l2", [1e5, 1024.0, 0.1])
def test_ridge_is_the_solution_of_the_normal_equations(examples: int, width: int, l2: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(3.0, 2.0, (examples, width)) * np.linspace(0.01, 5, width)
    labels, new = rng.integers(0, 4, examples), rng.normal(3.0, 2.0, (9, width))
    weight, bias = Ridge(torch.from_numpy(x), torch.from_numpy(labels), 5).solve(l2)
    scores = torch.from_numpy(new) @ weight + bias
    np.testing.assert_allclose(scores.numpy(), reference(x, labels, 5, l2)(new), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(("examples", "width"), [(60, 7), (7, 60)])
def test_every_lambda_of_one_decomposition_is_scikit_learns_ridge(examples: int, width: int) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(1)
    x, new = rng.normal(2.0, 3.0, (examples, width)), rng.normal(2.0, 3.0, (9, width))
    labels = rng.integers(0, 4, examples)
    ridge = Ridge(torch.from_numpy(x), torch.from_numpy(labels), 4)
    mean, std = x.mean(0), x.std(0) + 1e-5
    z, z_new = (np.c_[(rows - mean) / std, np.full(len(rows), 100.0)] for rows in (x, new))
    for l2 in (0.01, 1.0, 1024.0, 1e5):
        model = linear_model.Ridge(alpha=l2, fit_intercept=False, solver="svd").fit(z, 2.0 * np.eye(4)[labels] - 1)
        weight, bias = ridge.solve(l2)
        scores = torch.from_numpy(new) @ weight + bias
        np.testing.assert_allclose(scores.numpy(), model.predict(z_new), rtol=1e-6, atol=1e-6)


def test_a_lambda_too_small_for_cholesky_has_the_solution_of_least_weight() -> None:
    # Features twice over: of rank 3, and with rounding alone between its zeros and a root.
    half = torch.randn(30, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, labels = torch.cat([half, half], 1), torch.arange(30) % 2
    weight, bias = Ridge(x, labels, 2).solve(1e-18)
    once, bias_once = Ridge(half, labels, 2).solve(1e-18)
    torch.testing.assert_close(x @ weight + bias, half @ once + bias_once, rtol=1e-6, atol=1e-6)


def test_a_feature_that_never_varies_does_no_harm() -> None:
    x = torch.ones(6, 3, dtype=torch.float64)
    weight, bias = Ridge(x, torch.tensor([0, 1, 0, 1, 0, 1]), 2).solve(1024.0)
    assert bool(torch.isfinite(weight).all())
    assert bool(torch.isfinite(bias).all())


def test_shots_are_so_many_of_each_class_the_same_again_and_fewer_are_the_first_of_more(small_set: str) -> None:
    manifest = read_manifest(small_set)
    labels = np.concatenate([manifest.read_index(s).labels for s in range(len(manifest.shards))])
    five, two, other = (select_shots(manifest, k, seed) for k, seed in ((5, 0), (2, 0), (5, 1)))
    assert five.shape == (4, 5)
    assert [set(labels[row].tolist()) for row in five] == [{0}, {1}, {2}, {3}]
    assert len(set(five.ravel().tolist())) == 20
    np.testing.assert_array_equal(five, select_shots(manifest, 5, 0))
    np.testing.assert_array_equal(five[:, :2], two)
    assert not np.array_equal(five, other)
    subset = pick(manifest, five)
    taken = [
        int(manifest.first_ordinals[s]) + int(i) for s, c in zip(subset.shards, subset.chosen, strict=True) for i in c
    ]
    assert taken == sorted(five.ravel().tolist())


def test_more_shots_than_a_class_has_are_refused(small_set: str) -> None:
    with pytest.raises(
        ConfigError, match=r"51 shots cannot be taken in the set .*: class \d \(\w+\) has only \d+ examples"
    ):
        select_shots(read_manifest(small_set), 51)


def all_features(manifest_url: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of an untrained vit-test for each image of a set, and the labels; no reader of ours."""
    from vit_dist.config.load import resolve

    recipe = resolve(
        {
            "horizon": "1 epoch",
            "model": "vit-test",
            "data": {"num_classes": 7, "image_size": 28},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
        }
    )
    torch.manual_seed(0)
    model = recipe.model.build(num_classes=7, image_size=28).eval()  # type: ignore[attr-defined]
    images, labels = [], []
    for tar in sorted(Path(manifest_url).parent.glob("*.tar")):
        with tarfile.open(tar) as members:
            for member in members:
                content = members.extractfile(member).read()  # type: ignore[union-attr]
                if member.name.endswith(".cls"):
                    labels.append(int(content))
                else:
                    # Squashed to 32 x 32, the middle 28 x 28 cut out.
                    image = Image.open(io.BytesIO(content)).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
                    images.append(np.asarray(image)[2:30, 2:30])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        return model.features(pixels).double().numpy(), np.array(labels)


@pytest.mark.distributed
def test_every_engine_on_every_number_of_processes_gives_the_accuracy_of_an_independent_solver(
    run_world: Callable[..., Any], small_set: str, small_val: str, tmp_path: Path
) -> None:
    x, labels = all_features(small_set)
    new, truth = all_features(small_val)
    expected, spreads = {}, {}
    for shots in (1, 5, 12):
        correct = []
        for ordinals in draw(small_set, 12, 2):
            rows = ordinals[:, :shots].ravel()
            scores = reference(x[rows], labels[rows], 4, 1.0)(new)
            correct.append((scores.argmax(1) == truth).mean())
        expected[f"fewshot/small_{shots}shot"] = float(np.mean(correct))
        spreads[f"fewshot_std/small_{shots}shot"] = float(np.std(correct, ddof=1))
    assert len(set(expected.values())) > 1
    assert max(expected.values()) > 0.35  # features of random weights, four classes
    found = {
        (engine, nproc): run_world("integration/fewshot_worker.py", nproc, small_set, small_val, *engines)[engine]
        for nproc, engines in ((1, ["plain"]), (2, ["plain", "fsdp", "deepspeed:3"]))
        for engine in engines
    }
    one_more_would_be = 1 / (45 * 2)
    # By the head: 45 examples, each once, also where two processes have 23 and 22 of them.
    scored = [{tag: values.pop(tag) for tag in ("val/top1", "val/loss")} for values in found.values()]
    for values in scored:
        assert values["val/top1"] * 45 == pytest.approx(round(scored[0]["val/top1"] * 45), abs=1e-9), scored
        assert values["val/loss"] == pytest.approx(scored[0]["val/loss"], rel=1e-6), scored
    for values in found.values():
        assert values.keys() == expected.keys() | spreads.keys()
        for tag, value in spreads.items():
            assert values[tag] == pytest.approx(value, abs=2.01 * one_more_would_be), found
        for tag, value in (
            (tag, values[tag]) for tag in expected
        ):  # resizing rounds pixels its own way: one example in a draw may tip over
            assert value == pytest.approx(expected[tag], abs=2.01 * one_more_would_be), found
    assert found["plain", 1] == found["plain", 2] == found["fsdp", 2]
    for ranks in tmp_path.glob("fewshot_worker-2-*.1"):
        assert json.loads(ranks.read_text()) == json.loads(ranks.with_suffix(".0").read_text())


def test_what_is_missing_is_said_before_training(small_set: str, small_val: str) -> None:
    from vit_dist.config.load import resolve

    raw = {
        "horizon": "1 epoch",
        "model": "vit-test",
        "data": {"num_classes": 4, "image_size": 28, "train": small_set},
        "optim": {"name": "adamw", "lr": 1e-3},
        "schedule": {"name": "constant", "warmup": "0 steps"},
    }
    recipe = resolve(raw)
    with pytest.raises(ConfigError, match="fewshot of 'x' has no test set"):
        FewShotConfig(name="fewshot", set="x").check_sets(recipe)
    with pytest.raises(ConfigError, match="60 shots cannot be taken"):
        FewShotConfig(name="fewshot", set="x", test=small_val, shots=(60,)).check_sets(recipe)
    FewShotConfig(name="fewshot", set="x", test=small_val, shots=(1, 5)).check_sets(recipe)
