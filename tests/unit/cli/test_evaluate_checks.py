"""What `vit-dist evaluate` refuses before it starts a rank: what was trained is as it is, and sets are there or not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from launcher.processes import ranks
from tests.shards import write_set
from vit_dist.cli import evaluate
from vit_dist.config.load import identity, load_recipe, recipe_yaml
from vit_dist.core.errors import ConfigError, VitDistError
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import MARKER, step_name
from vit_dist.data.manifest import read_manifest


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The evaluations whose ranks would be started; none is."""
    calls: list[object] = []

    def start(words: list[str], **_: object) -> int:
        calls.append(words)
        return 0

    monkeypatch.setattr(ranks, "run_ranks", start)
    return calls


@pytest.fixture
def trained(small_set: str, tmp_path: Path) -> Path:
    """The directory of a run that has saved a checkpoint."""
    recipe = load_recipe("demo", [f"data.train={small_set}", f"data.val={small_set}", "data.num_classes=4"])
    kept = {**identity(recipe), "fingerprint": read_manifest(small_set).fingerprint, "plugins": {}}
    run = tmp_path / "done"
    saved = run / names.CHECKPOINTS / step_name(8)
    saved.mkdir(parents=True)
    (saved / MARKER).write_text("{}")
    (run / names.RUN).write_text(json.dumps({"name": "demo", "identity": kept}))
    (run / names.RECIPE).write_text(recipe_yaml(recipe))
    return run


@pytest.mark.parametrize("begun", [True, False], ids=["run.json", "recipe.yaml alone"])
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data.num_classes=2"], "the run has 4 classes; leave data.num_classes out"),
        (["data.num_classes=10", "eval.batch=8"], "the run has 4 classes; leave data.num_classes out"),
        (["seed=3"], "seed=3 on the command line: the run has seed=0; leave seed out"),
        (["optim.lr=2e-3"], "the run has optim.lr=0.001; leave optim.lr out"),
        (["horizon=3 steps"], "the run has horizon=30k examples; leave horizon out"),
        (["data.image_size=35"], "the run has data.image_size=28; leave data.image_size out"),
        (["model=bit-demo"], "; leave model out"),
        (["init.weights=x.npz"], "the run has no init; leave init.weights out"),
        (["seed=3", "global_batch=8"], "the run has global_batch=64; leave global_batch out; seed=3 on the"),
    ],
)
def test_what_was_trained_cannot_be_changed(
    words: list[str], told: str, begun: bool, trained: Path, started: list[object]
) -> None:
    if not begun:
        (trained / names.RUN).unlink()
    with pytest.raises(ConfigError) as refused:
        evaluate.main([str(trained), *words])
    assert f"{trained}: an evaluation cannot change what was trained: " in str(refused.value)
    assert told in str(refused.value)
    assert "run-dir" not in str(refused.value)
    assert not started


@pytest.mark.parametrize(
    "words", [[], ["data.num_classes=4"], ["seed=0"], ["eval.batch=7"], ["evaluators=[classification]"], ["name=x"]]
)
def test_what_an_evaluation_may_say_is_no_change(words: list[str], trained: Path, started: list[object]) -> None:
    assert evaluate.main([str(trained), *words]) == 0
    assert len(started) == 1


@pytest.mark.parametrize(
    ("make", "key", "told"),
    [
        ([], "data.val", r"no such file"),
        (["cat/1.jpg", "dog/2.jpg"], "data.val", r"there are images in it"),
        (["0.tar"], "data.val", r"there are tars in it"),
        (["list.csv"], "data.val", r"there are tables in it"),
        (["notes.txt"], "data.val", r"what lies in it"),
        ([], "data.train", r"no such file"),
    ],
)
def test_a_set_is_looked_at_first(
    make: list[str], key: str, told: str, trained: Path, started: list[object], tmp_path: Path
) -> None:
    for name in make:
        (tmp_path / "x" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x" / name).touch()
    with pytest.raises(VitDistError, match=told):
        evaluate.main([str(trained), f"{key}={tmp_path}/x"])
    assert not started


def test_a_training_set_of_other_content_is_refused(trained: Path, started: list[object], tmp_path: Path) -> None:
    write_set(tmp_path / "other", num_samples=12, samples_per_shard=4, num_classes=4)
    with pytest.raises(ConfigError, match=r"the run was trained on .*is evaluated with data.val=URL"):
        evaluate.main([str(trained), f"data.train={tmp_path}/other"])
    assert not started
    assert evaluate.main([str(trained), f"data.val={tmp_path}/other"]) == 0


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ("nowhere", "no run 'nowhere': not the directory of a run, nor the name"),
        ("runs/nowhere", "no run 'runs/nowhere': not the directory of a run, nor the name"),
        ("don", ""),
        ("runs/don", "no run 'runs/don': not the directory of a run"),
        ("done", ""),
        ("done/checkpoints/step-0000000008", ""),
        ("runs/done/checkpoints/step-0000000009", "no such checkpoint; the newest are step-0000000008"),
        ("nowhere/checkpoints/step-0000000008", "no run 'nowhere': not the directory of a run"),
        ("empty", "'empty': no run is in this directory, nor in the 3 levels below it"),
        ("runs", "'runs': a directory that holds 1 run, and is none; give one:\n  runs/done"),
        ("file", "no run 'file': a file, where the directory of a run is needed"),
        ("claimed", "claimed: the directory of a run that has not begun: it holds no recipe.yaml yet"),
        ("", "no run ''"),
    ],
)
def test_what_is_no_run_is_told_by_what_it_is(
    wanted: str, told: str, trained: Path, started: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = trained.parent
    monkeypatch.chdir(here)
    (here / "runs").mkdir()
    trained.rename(here / "runs" / "done")
    (here / "empty").mkdir()
    (here / "file").write_text("x")
    (here / "claimed").mkdir()
    (here / "claimed" / names.RUN).write_text("{}")
    if not told:
        assert evaluate.main([wanted]) == 0
        return
    with pytest.raises(VitDistError, match=f"^{re.escape(told)}|{re.escape(told)}"):
        evaluate.main([wanted])
    (here / "list").write_text(f"runs/done\n{wanted}\n")
    if "checkpoint;" not in told and wanted:
        with pytest.raises(ConfigError, match=f"--list list, line 2: {re.escape(told)}"):
            evaluate.main(["--list", "list", "--cluster", "dev", "--dry-run"])
    assert not started


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://bucket/run", "`aws s3 sync s3://bucket/run DIR --exclude 'step-*'`"),
        ("S3://bucket/run/", "DIR --exclude 'step-*'`"),
        ("gs://bucket/run", "Fetch its records all but its step-*"),
        ("https://user:secret@host/run", "evaluate DIR checkpoint.remote=https://"),
        ("s3://", "s3://: names no bucket"),
        ("s3:/bucket/run", "a URL is written s3://bucket/run"),
        ("file://host/run", "stands where a URL has the name of a machine"),
    ],
)
def test_of_a_run_in_a_store_it_is_said_how_it_is_evaluated(
    url: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        evaluate.main([url])
    said = " ".join(capsys.readouterr().err.split())
    assert told in said
    assert "secret" not in said
