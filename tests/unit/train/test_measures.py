"""A value belongs to a metric, a set and a step: training and evaluations of one run never mix sets under one tag."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

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
SHOTS = "{name: fewshot, set: caps, train: TRAIN, test: TEST, shots: [1, 2], seeds: 1}"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        monkeypatch.setenv("MASTER_PORT", str(probe.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")


@pytest.fixture(scope="session")
def other_val(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A set of other images, whose name is no part of a tag as it is."""
    folder = tmp_path_factory.mktemp("other-val")
    url = write_set(folder, num_samples=30, samples_per_shard=20, num_classes=4, first=50_000)
    return renamed(url, folder / "named.json", "Sketches / [2026]")


def renamed(url: str, path: Path, name: str, classes: Sequence[str] | None = None) -> str:
    """The same set under another name."""
    from dataclasses import replace

    manifest = read_manifest(url)
    changes: dict[str, Any] = {} if classes is None else {"classes": tuple(classes)}
    write_manifest(replace(manifest, base="", name=name, shards=absolute(manifest), **changes), str(path))
    return str(path)


def absolute(manifest: Any) -> Any:
    from dataclasses import replace

    return tuple(
        replace(s, url=f"{manifest.base}/{s.url}", index_url=f"{manifest.base}/{s.index_url}") for s in manifest.shards
    )


class Trained:
    """A run of four steps, and what is asked of it."""

    def __init__(self, folder: Path, train: str, val: str) -> None:
        self.recipe, self.dir, self.data_train = folder / "recipe.yaml", folder / "run", train
        self.recipe.write_text(RECIPE)
        self.train(f"data.val={val}")

    def train(self, *overrides: str) -> None:
        words = [f"data.train={self.data_train}", *overrides]
        attempt(load_recipe(str(self.recipe), words), self.dir, World())

    def evaluate(self, *overrides: str, out: Path | None = None) -> dict[str, float]:
        return evaluate(load_recipe(str(self.dir / "recipe.yaml"), overrides), self.dir, World(), out=out)

    def series(self) -> dict[str, list[tuple[int, float]]]:
        scalars = read_run(str(self.dir / "tb")).scalars
        measured = {tag: s for tag, s in scalars.items() if tag.partition("/")[0].partition("@")[0] in {"val", "fewshot"}}
        return {tag: list(zip(s.steps.tolist(), s.values.tolist(), strict=True)) for tag, s in measured.items()}

    def record(self) -> list[dict[str, Any]]:
        return json.loads((self.dir / "evaluated.json").read_text())["evaluations"]


@pytest.fixture
def run(alone: None, tmp_path: Path, small_set: str, small_val: str) -> Iterator[Trained]:
    yield Trained(tmp_path, small_set, small_val)


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
    assert told["other"]["values"] == pytest.approx({"val/top1": other[f"val@{label}/top1"], "val/loss": other[f"val@{label}/loss"]})
    assert told["own"]["values"] == pytest.approx(own)
    described = told["other"]["set"]
    assert (described["name"], described["fingerprint"], described["examples"]) == ("Sketches / [2026]", fingerprint, 30)
    assert (described["subset"], described["image_size"], described["crop"]) == (None, 28, 0.875)
    assert told["other"]["tags"] == {"val/top1": f"val@{label}/top1", "val/loss": f"val@{label}/loss"}
    assert [entry["set"]["fingerprint"] for entry in run.record()] == [told[n]["set"]["fingerprint"] for n in told]

    log = read_run(str(run.dir / "tb"))
    assert logged_measured(log, f"val@{label}/top1").fingerprint == fingerprint
    assert logged_metrics(log)[f"val@{label}/loss"].better == "lower"
