"""The sets of a study are looked at before anything is trained, each place once."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_dist.cli.study import main
from vit_dist.core.errors import ConfigError
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.study.cost import estimate_costs, problem_lines
from vit_dist.study.grid import load_study, plan
from vit_dist.study.sets import look_at_sets

RECIPE = """
global_batch: 20
horizon: 2 epochs
model: vit-test
data: {num_classes: 4, image_size: 28, augment: none, train: SET, val: VAL}
optim: {name: adamw, lr: 5e-4}
schedule: {name: cosine, warmup: 0 steps}
engine: {name: plain}
"""
STUDY = "{name: tiny, recipe: RECIPE, models: [vit-demo, bit-demo], subsets: [100, 200], seeds: [0]}"


@pytest.fixture
def study_file(tmp_path: Path, small_set: str, small_val: str) -> Path:
    (tmp_path / "base.yaml").write_text(RECIPE.replace("SET", small_set).replace("VAL", small_val))
    path = tmp_path / "tiny.yaml"
    path.write_text(STUDY.replace("RECIPE", str(tmp_path / "base.yaml")))
    return path


def lines_of(study: Path, *overrides: str) -> list[str]:
    cells = plan(load_study(str(study), overrides))
    return problem_lines(estimate_costs(cells, look_at_sets(cells)))


def test_a_study_whose_sets_are_there_has_nothing_to_say(study_file: Path) -> None:
    assert lines_of(study_file) == []


SHOTS = "{name: fewshot, set: far, shots: [1]"


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.train=gone/train", "data.train: gone/train/manifest.json: no such file"),
        ("data.val=gone/val", "data.val: gone/val/manifest.json: no such file"),
        ("data.train=", "data.train is empty: give the URL of a set"),
        ("data.val=pictures.tar", "data.val: pictures.tar: a set is given by its manifest.json"),
        ("data.train=photos", "data.train: photos: no manifest.json in it; there are images in it"),
        ("data.train=damaged.json", "data.train: damaged.json: not a manifest"),
        (f"evaluators=[{SHOTS}, train: gone/shots}}]", "evaluators: fewshot: train: gone/shots/manifest.json: no such"),
        (f"evaluations=[{SHOTS}, test: gone/test}}]", "evaluations: fewshot: test: gone/test/manifest.json: no such"),
    ],
)
def test_a_set_that_is_not_there_is_told_by_plan_and_refused_by_run(
    study_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    override: str,
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(b"")
    (tmp_path / "damaged.json").write_text("{}")
    named = ("metric=fewshot/far_1shot",) if "evaluators" in override else ()
    (line,) = lines_of(study_file, override, *named)
    assert line.startswith("cannot be read: vit-demo-100-s0, bit-demo-100-s0, vit-demo-200-s0, bit-demo-200-s0: ")
    assert told in line
    assert main(["plan", str(study_file), override, *named]) == 0
    assert told in " ".join(capsys.readouterr().out.split())
    with pytest.raises(ConfigError, match="4 of the 4 cells that are left cannot be trained:\ncannot be read: "):
        main(["run", str(study_file), override, *named])
    assert not (tmp_path / "runs").exists()


def test_the_sets_of_a_mixture_are_looked_at_too(study_file: Path) -> None:
    mixture = "data={train: '', mixture: {a: {train: gone/a}}}"
    cadences = ("horizon=1k examples", "eval.every=10 steps", "checkpoint.every=9 steps")
    (line,) = lines_of(study_file, "subsets=[all]", *cadences, mixture)
    assert line.startswith("cannot be read: vit-demo-all-s0, bit-demo-all-s0: data.mixture.a.train: gone/a/manifest")


def test_cells_without_their_set_are_told_apart_from_those_that_have_it(study_file: Path) -> None:
    rule = "cells=[{when: {family: bit-demo}, set: {data.val: gone}}]"
    (line,) = lines_of(study_file, rule)
    assert line.startswith("cannot be read: bit-demo-100-s0, bit-demo-200-s0: data.val: ")


def test_a_head_that_is_too_small_for_the_labels_is_told_before(study_file: Path) -> None:
    (line,) = lines_of(study_file, "data.num_classes=3")
    assert "data.num_classes=3, but the set has 4 classes; set data.num_classes=4" in line


def test_each_place_is_looked_at_once(study_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def read(url: str) -> ShardManifest:
        asked.append(url)
        return read_manifest(url)

    monkeypatch.setattr("vit_dist.study.sets.read_manifest", read)
    cells = plan(load_study(str(study_file), [f"evaluators=[{SHOTS}, train: gone}}]", "metric=fewshot/far_1shot"]))
    look_at_sets(cells)
    assert len(asked) == len(set(asked)) == 3


def test_a_model_that_this_machine_cannot_hold_is_refused(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("launcher.processes.device.available_memory", lambda: 3_000_000)
    monkeypatch.setattr("shutil.which", lambda _: None)
    needs = "weights, gradients and optimizer need .* each of 2 processes on this machine has 1.4 MiB"
    with pytest.raises(ConfigError, match=f"will not fit: .*-100-s0.*: {needs}"):
        main(["run", str(study_file), "--jobs", "2"])
    assert not (tmp_path / "runs").exists()
