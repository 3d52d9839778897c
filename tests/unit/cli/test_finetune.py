"""`vit-dist finetune`: in this process, on one rank; the ranks that it would start train here."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.processes import ranks
from tests.conftest import trains_here
from tests.shards import write_set
from vit_dist.cli import finetune
from vit_dist.cli.finetune import finetune_recipe
from vit_dist.config.load import load_recipe
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, VitDistError
from vit_dist.core.events.reader import read_run
from vit_dist.core.run import log as runlog
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import committed
from vit_dist.core.world import World

TINY = [
    "data.image_size=28",
    "data.augment=none",
    "engine={name: plain}",
    "precision=fp32",
    "global_batch=20",
    "horizon=6 steps",
    "schedule.warmup=1 step",
    "checkpoint.every=2 steps",
    "guards.hang=0s",
]


@pytest.fixture
def pretrained(tmp_path: Path) -> str:
    """Weights of ours for 10 classes, of a model with a representation layer and the bias of a sigmoid loss."""
    from vit_dist.cli.models import main as models

    path = str(tmp_path / "pretrained.safetensors")
    assert models(["export", "vit-test", path, "--num-classes", "10", "representation=true", "head_bias=-10"]) == 0
    return path


Started = list[tuple[str, float]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[Started]:
    """Directory and rate of each attempt; they train in this process."""
    from vit_dist.train.attempt import attempt

    seen: Started = []

    def train(recipe: Recipe, run_dir: Path, *, nproc: int, options: Any = ()) -> int:
        assert (nproc, tuple(options)) == (1, ())
        seen.append((run_dir.name, recipe.optim.lr))  # type: ignore[attr-defined]
        try:
            attempt(recipe, run_dir, World())
        except VitDistError:
            return 1
        return 0

    monkeypatch.setattr(ranks, "run_local", train)
    with trains_here():
        yield seen


def tune(pretrained: str, data: str, folder: Path, *more: str) -> int:
    return finetune.main([pretrained, data, "--run-dir", str(folder), *TINY, *more])


def test_the_best_rate_on_a_slice_of_train_trains_on_all_of_it_and_says_so(
    pretrained: str,
    small_set: str,
    small_val: str,
    tmp_path: Path,
    started: Started,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "tuned"
    words = [f"data.val={small_val}", "finetune.lrs=[0.003, 0.3, 1e30]", "finetune.held_out=20%", "guards.max_in_row=2"]
    assert tune(pretrained, small_set, folder, *words) == 0
    grid = [("lr-0.003-all-s0", 0.003), ("lr-0.3-all-s0", 0.3), ("lr-1e+30-all-s0", 1e30)]
    assert started[:3] == grid
    assert len(started) == 4
    assert started[3][0] == "final"

    # The choice is the one that the logs of the grid lead to; the rate that diverged is told, and no failure.
    last = {lr: read_run(str(folder / "grid" / run / "tb"), ["val/top1"]).scalars for run, lr in grid}
    assert not last[1e30]
    values = {lr: float(f"{last[lr]['val/top1'].values[-1]:.7g}") for _, lr in grid[:2]}
    assert values[0.003] != values[0.3], "else nothing is shown"
    best = max(values, key=lambda lr: values[lr])
    assert started[3] == ("final", best)
    chosen = load_recipe(str(folder / "final" / names.RECIPE)).finetune.chosen
    assert (chosen.best, chosen.examples, chosen.held_out) == (best, 40, "20%")
    assert chosen.values == {f"{lr:g}": value for lr, value in values.items()} | {"1e+30": None}
    logged = read_run(str(folder / "final" / "tb")).texts[runlog.RECIPE][0]
    assert f"slice: {chosen.slice}" in logged
    out = capsys.readouterr().out
    assert f"chosen: optim.lr={best:g}: val/top1" in out
    assert "1e+30 diverged" in out

    # On what each was measured: the grid knows of no validation set, the last run of no other.
    for run, on in [(folder / "grid" / grid[0][0], (200, 40)), (folder / "final", (45, None))]:
        measured = json.loads((run / names.RUN).read_text())["measured"]["val/top1"]
        assert (measured["examples"], measured["subset"]) == on
    assert load_recipe(str(folder / "grid" / grid[0][0] / names.RECIPE)).data.val == ""

    rows = list(csv.DictReader((folder / "results.csv").read_text().splitlines()))
    assert [(row["run"], row["optim.lr"], row["value"]) for row in rows if row["metric"] == "val/top1"][:3] == [
        ("grid", str(lr), str(values.get(lr, "diverged"))) for _, lr in grid
    ]
    final = float(read_run(str(folder / "final" / "tb"), ["val/top1"]).scalars["val/top1"].values[-1])
    assert [float(row["value"]) for row in rows if (row["run"], row["metric"]) == ("final", "val/top1")] == [
        pytest.approx(final, rel=1e-6)
    ]

    # Again: nothing is trained, nothing but the directory is needed, and the table comes once more.
    Path(pretrained).unlink()
    started.clear()
    assert finetune.main(["--resume", str(folder)]) == 0
    assert started == []
    assert capsys.readouterr().out.splitlines()[-2:] == out.splitlines()[-2:]
    with pytest.raises(ConfigError, match="another fine-tuning was begun there: init: None here"):
        tune("none", small_set, folder, *words, "model=vit-test", "seed=1")


def test_what_was_killed_goes_on_where_it_was_and_ends_with_the_same_bits(
    pretrained: str,
    small_set: str,
    small_val: str,
    tmp_path: Path,
    started: Started,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from vit_dist.train import loop

    words = [f"data.val={small_val}", "finetune.lrs=[0.01, 0.1]", "finetune.held_out=40", "horizon=4 steps"]
    words += ["ema={decay: 0.5}", "finetune.metric=ema/val/top1"]
    assert tune(pretrained, small_set, tmp_path / "straight", *words) == 0
    straight, queue, cuts = list(started), loop._queue, [3, 8]
    started.clear()

    class CutError(BaseException):
        """The process ends here."""

    count = 0

    def cut(*given: Any) -> Any:
        nonlocal count
        count += 1
        if count in cuts:
            raise CutError
        return queue(*given)

    monkeypatch.setattr(loop, "_queue", cut)
    for _ in cuts:
        with pytest.raises(CutError):
            tune(pretrained, small_set, tmp_path / "cut", *words)
    assert tune(pretrained, small_set, tmp_path / "cut", *words) == 0
    assert len(started) == len(straight) + len(cuts), "an attempt more for each cut, and none for what was done"
    assert started[-1] == straight[-1]
    assert load_recipe(str(tmp_path / "cut" / "final" / names.RECIPE)).finetune.chosen.metric == "ema/val/top1"
    for run in ("grid/lr-0.01-all-s0", "grid/lr-0.1-all-s0", "final"):
        (one,), (other,) = (committed(tmp_path / name / run / names.CHECKPOINTS)[:1] for name in ("straight", "cut"))
        tensors = [{p.name: p.read_bytes() for p in folder.glob("*.safetensors")} for folder in (one, other)]
        assert tensors[0] == tensors[1]


def test_a_recipe_of_weights_and_a_set_has_their_model_a_new_head_and_no_representation(
    pretrained: str, small_set: str, small_val: str, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    for name, url in (("train", small_set), ("val", small_val)):
        shutil.copytree(Path(url).parent, both / name)
    recipe = finetune_recipe("finetune-pets", pretrained, str(both), ["data.image_size=56"])
    model = recipe.model
    assert (model.name, model.representation, model.head_bias) == ("vit-test", False, 0.0)  # type: ignore[attr-defined]
    assert recipe.init is not None
    assert (recipe.init.weights, recipe.init.head) == (pretrained, "new")
    assert (recipe.data.train, recipe.data.val) == (f"{both}/train", f"{both}/val")
    assert recipe.data.num_classes == 4
    assert (str(recipe.horizon), recipe.finetune.lrs, recipe.finetune.held_out) == (  # type: ignore[union-attr]
        "500 steps",
        (0.001, 0.003, 0.01, 0.03),
        "10%",
    )
    # Whoever gives one rate is left with it.
    assert finetune_recipe("finetune", pretrained, small_set, ["data.image_size=28", "optim.lr=0.02"]).finetune is None


@pytest.mark.parametrize("form", ["w.npz", "w.safetensors", "w.timm.safetensors", "folder/"])
def test_weights_of_every_form_say_their_model_or_are_asked_for_it(form: str, small_set: str, tmp_path: Path) -> None:
    from vit_dist.cli.models import main as models

    where = str(tmp_path / form)
    assert models(["export", "vit-test", where, "--num-classes", "10"]) == 0
    recipe = finetune_recipe("finetune", where, small_set, ["data.image_size=28"])
    assert (recipe.model.width, recipe.model.depth, recipe.model.patch_size) == (32, 2, 7)  # type: ignore[attr-defined]
    if form != "w.npz":
        return
    # Nothing stands beside an .npz of others.
    (tmp_path / "w.npz.json").unlink()
    with pytest.raises(ConfigError, match=f"{form}: does not say its model; give it: model=ViT-B/16"):
        finetune_recipe("finetune", where, small_set, ["data.image_size=28"])
    recipe = finetune_recipe("finetune", where, small_set, ["data.image_size=28", "model=vit-test"])
    assert recipe.model.width == 32  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["WEIGHTS"], "give WEIGHTS and DATA, got 1"),
        (["WEIGHTS", "nowhere/set"], "DATA: nowhere/set.*no such|no manifest"),
        (["WEIGHTS", "nowhereset"], "DATA=nowhereset: no dataset 'nowhereset'.*nor is a set there"),
        (["nowhere", "SET"], "nowhere: no such file"),
        (["none", "SET"], "none: no weights say which model; give it: model="),
        (["WEIGHTS", "SET", "data.image_size=30"], "does not divide into the 7-pixel patches.*28, 35"),
        (
            ["WEIGHTS", "SET", "model=vit-demo", "data.image_size=28"],
            "holds vit-test, model=vit-demo was asked for: .*width 32, not 64",
        ),
        (["WEIGHTS", "SET", "data.image_size=28", "finetune.lrs=[0.1, 0.1]"], "finetune.lrs: given twice: 0.1"),
        (["WEIGHTS", "SET", "data.image_size=28", "finetune.held_out="], "nothing is held out to choose by"),
        (["WEIGHTS", "SET", "data.image_size=28", "finetune.held_out=0.1%"], "0.1% of 200 examples is not one of them"),
        (
            ["WEIGHTS", "SET", "data.image_size=28", "finetune.metric=val/top5x"],
            "no evaluator of the recipe measures it",
        ),
        (["WEIGHTS", "SET", "--nodes", "2"], "--nodes: means something with --cluster only"),
        (["--resume", "EMPTY"], "no fine-tuning was begun there"),
    ],
)
def test_what_cannot_be_fine_tuned_is_refused_before_anything_is_written(
    words: list[str], says: str, pretrained: str, small_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    named = {"WEIGHTS": pretrained, "SET": small_set, "EMPTY": str(tmp_path / "empty")}
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(VitDistError, match=says):
        finetune.main([named.get(word, word) for word in words])
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_validation_set_of_other_classes_is_refused_before_the_grid_is_paid(
    pretrained: str, small_set: str, tmp_path: Path
) -> None:
    val = write_set(tmp_path, num_samples=8, samples_per_shard=8, num_classes=4, classes=("hat", "tie", "cat", "bag"))
    with pytest.raises(ConfigError, match=r"data\.val: the set .* has the class 'cat'"):
        finetune.main([pretrained, small_set, f"data.val={val}", "data.image_size=28", "--dry-run"])


def test_small_sets_and_their_slices_are_remarked_on(pretrained: str, tmp_path: Path, capfd: Any) -> None:
    sets = {
        name: write_set(
            tmp_path / name, num_samples=n, samples_per_shard=n, num_classes=7, first=first, classes=tuple("abcdefg")
        )
        for name, n, first in (("train", 20, 0), ("val", 2, 90))
    }
    words = [pretrained, sets["train"], f"data.val={sets['val']}", "data.image_size=28", "finetune.held_out=3"]
    assert finetune.main([*words, "--dry-run"]) == 0
    said = capfd.readouterr().err
    assert "global_batch=512: a step is 25.6 epochs of the 20 examples" in said
    assert "in the held-out slice alone" in said
    assert "the held-out slice has 3 examples for" in said
    assert "in the training set alone" in said
