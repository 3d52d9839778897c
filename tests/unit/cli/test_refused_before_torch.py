"""What is wrong and can be known without torch is refused before its import, which takes seconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from vit_dist.config.load import identity, load_recipe, recipe_yaml
from vit_dist.core.errors import VitDistError
from vit_dist.core.process import lives
from vit_dist.core.run import names
from vit_dist.core.run.directory import RunDir

_CODE = """
import contextlib, io, json, sys
from launcher.processes import ranks
from vit_dist.cli.main import main

class Refusing:
    def find_spec(self, name, *_):
        if name == "torch":
            raise SystemExit("torch was imported")

def started(*_, **__):
    raise SystemExit("a process was started")

sys.meta_path.insert(0, Refusing())
ranks._run_ranks = started
said = []
for words in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        try:
            code = main(words)
        except SystemExit as end:
            code = str(end)
    said.append([code, stderr.getvalue()])
print(json.dumps(said))
"""


def refused(*commands: Sequence[str]) -> list[str]:
    """What each of these commands says when it refuses, in one process that has no torch and starts no other."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE],
        input=json.dumps([list(words) for words in commands]),
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    answers = json.loads(done.stdout)
    for words, (code, said) in zip(commands, answers, strict=True):
        assert code in (1, 2), (words, code, said)
        assert ": error: " in said
    return [said for _, said in answers]


def _recipe(small_set: str) -> list[str]:
    return [f"data.train={small_set}", "data.val=", "data.num_classes=4"]


@pytest.fixture
def occupied(small_set: str, tmp_path: Path) -> Path:
    """The directory of a run that has begun and saved nothing."""
    kept = {**identity(load_recipe("demo", _recipe(small_set))), "fingerprint": "1234", "plugins": {}}
    (tmp_path / names.RUN).write_text(json.dumps({"name": "demo", "identity": kept}))
    return tmp_path


def test_another_run_in_an_occupied_directory(small_set: str, occupied: Path) -> None:
    wanted = [
        ("train", "seed=3", "seed: 3 here, 0 there"),
        ("run", "optim.lr=2e-3", "optim.lr: 0.002 here, "),
        ("train", "data.num_classes=5", "data.num_classes: 5 here, 4 there"),
        ("train", "model=bit-demo", "model."),
        ("run", "horizon=3 steps", "horizon: "),
        # The set is opened for this, without torch.
        ("train", "name=other", "fingerprint: "),
    ]
    commands = [[v, "demo", *_recipe(small_set), word, "--run-dir", str(occupied)] for v, word, _ in wanted]
    for said, (_, _, told) in zip(refused(*commands), wanted, strict=True):
        assert "holds another run: " in said
        assert told in said


def test_a_second_attempt(small_set: str, occupied: Path) -> None:
    (occupied / names.RECIPE).write_text(
        recipe_yaml(load_recipe("demo", [*_recipe(small_set), f"data.val={small_set}"]))
    )
    saved = occupied / "checkpoints" / "step-0000000001"
    saved.mkdir(parents=True)
    (saved / "COMMITTED.json").write_text("{}")
    training = ["demo", *_recipe(small_set), "--run-dir", str(occupied)]
    with RunDir(occupied).locked():
        for said in refused(["train", *training], ["run", *training], ["evaluate", str(occupied)]):
            assert f"process {os.getpid()} on " in said


def test_names_that_cannot_be(occupied: Path) -> None:
    run, b16 = str(occupied), ("--model", "ViT-B/16")
    with zipfile.ZipFile(occupied / "w.npz", "w"):
        pass
    wanted = [
        (["models", "export", "vit-test", "x.xyz"], "no form of weights has this ending"),
        (["models", "export", "vit-test", "x.pth"], "a pickle runs code"),
        (["models", "export", "vit-test", "s3://bucket/x.onnx"], "no form of weights has this ending"),
        (["models", "export", "none-such", "x.npz"], "no model has this name"),
        (["models", "export", "runs/none/such", "x.npz"], "no such checkpoint, run or file"),
        (["models", "export", run, "x.npz"], "no checkpoint in it to export; train it first"),
        (["models", "export", f"{run}/run.json", "x.npz"], "weights in a file of this name are not known"),
        (["models", "import", run, "x.npz"], "`vit-dist models export` reads it"),
        (["models", "import", "none.npz", "x.safetensors"], "no such file"),
        (["models", "import", f"{run}/run.json", "x.safetensors"], "weights in a file of this name are not known"),
        (["models", "import", "none.npz", "x.zip"], "no form of weights has this ending"),
        (["evaluate", run], "that has not begun: it holds no recipe.yaml yet"),
        (["predict", run, run], "no checkpoint in it to predict with"),
        (["predict", "none.npz", run], "no such file"),
        (["predict", f"{run}/w.npz", "none.jpg", *b16], "none.jpg: no such file or folder"),
        (["predict", f"{run}/w.npz", run, *b16], "no images there (2 other files there)"),
        (["predict", f"{run}/w.npz", f"{run}/w.npz", "--model", "none-such"], "unknown model 'none-such'"),
        (["predict", f"{run}/w.npz", f"{run}/w.npz", "--classes", f"{run}/none.txt", *b16], "none.txt"),
        (["compare", "--models", "ViT-B/99"], "ViT-B/99"),
        (["verify-resume", "demo", "--nproc", "3"], "not divisible by 3"),
        (["train", "demo", "--nproc", "3"], "not divisible by 3"),
    ]
    for said, (words, told) in zip(refused(*(words for words, _ in wanted)), wanted, strict=True):
        assert told in said, words


@pytest.mark.parametrize(
    ("holds", "told"),
    [
        (names.RECIPE, "no checkpoint in it to export; train it first"),
        (names.RUN, "no checkpoint in it to export; train it first"),
        (names.BY_RANKS, "no checkpoint in it to export; train it first"),
        (names.BY_SUPERVISOR, "no checkpoint in it to export; train it first"),
        (names.BY_PEOPLE, "no checkpoint in it to export; train it first"),
        (names.FORMER_STATUS, "no checkpoint in it to export; train it first"),
        ("model.safetensors", "no folder of Hugging Face, which has a config.json"),
        ("0.tar", "no run or checkpoint of ours"),
    ],
)
def test_a_folder_without_weights_is_not_exported(holds: str, told: str, tmp_path: Path) -> None:
    from vit_dist.cli.models.weights import export_main, import_main

    (tmp_path / holds).write_text("{}")
    with pytest.raises(VitDistError, match=told):
        export_main([str(tmp_path), "out.safetensors"])
    with pytest.raises(VitDistError, match="`vit-dist models export` reads it" if "to export" in told else told):
        import_main([str(tmp_path), "out.safetensors"])


def test_an_evaluation_of_what_is_not_there(small_set: str, occupied: Path) -> None:
    (occupied / names.RECIPE).write_text(
        recipe_yaml(load_recipe("demo", [*_recipe(small_set), f"data.val={small_set}"]))
    )
    none, other, folder = refused(
        ["evaluate", str(occupied)],
        ["evaluate", f"{occupied}/checkpoints/step-0000000009"],
        ["evaluate", str(occupied), "--out", str(occupied)],
    )
    assert "no checkpoint in it to evaluate" in none
    assert "step-0000000009: no such checkpoint; the run has none" in other
    assert "a directory; name a file" in folder


def test_a_process_that_was_killed_counts_as_dying_before_it_is_gone() -> None:
    held = subprocess.Popen([sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"],
                            stdout=subprocess.PIPE)  # fmt: skip
    assert held.stdout is not None
    held.stdout.readline()
    assert lives(held.pid)
    held.send_signal(signal.SIGKILL)
    # Not waited for: it is pending, or ending, or a zombie now.
    assert not lives(held.pid)
    held.wait()
    held.stdout.close()
    assert not lives(held.pid)


def test_a_folder_of_images_in_place_of_a_set(tmp_path: Path) -> None:
    (tmp_path / "raw" / "cats").mkdir(parents=True)
    (tmp_path / "raw" / "cats" / "one.jpg").touch()
    typed = f"data.train={tmp_path / 'raw'}"
    for said in refused(
        ["train", "demo", typed],
        ["verify-resume", "demo", typed],
        ["data", "show", "demo", typed, "--out", str(tmp_path / "views.png")],
    ):
        # What was typed is shortened where it is long.
        assert f"on the command line: data.train: {tmp_path / 'raw'}: no manifest.json in it; there are" in said
