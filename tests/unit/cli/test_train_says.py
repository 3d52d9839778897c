"""What `train` and `run` say before torch is there: where the run is, how it stands, and what will not be done."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_dist.cli.train import announce
from vit_dist.config.load import load_recipe
from vit_dist.core.run.checkpoints import MARKER, step_name


def new(_run: Path) -> None:
    pass


def begun(run: Path) -> None:
    run.mkdir()
    (run / "run.json").write_text("{}")


def saved(run: Path) -> None:
    for step in (900, 1000):
        (run / "checkpoints" / step_name(step)).mkdir(parents=True)
        (run / "checkpoints" / step_name(step) / MARKER).write_text("{}")


@pytest.mark.parametrize(
    ("make", "overrides", "ranks", "told", "untold"),
    [
        (new, ["data.val="], 1, ["(a new run)", "will be evaluated: data.val is empty", "a process imports"], []),
        (new, [], 2, ["(a new run)", "2 processes import PyTorch"], ["nothing will be evaluated"]),
        (begun, ["evaluators=[]"], 1, ["nothing saved yet", "nothing will be evaluated: evaluators is empty"], []),
        (new, ["checkpoint.remote=s3://b/r"], 1, ["(nothing of it here: s3://b/r is asked)"], ["a new run"]),
        (begun, ["checkpoint.remote=s3://b/r"], 1, ["no checkpoint here: s3://b/r is asked"], ["nothing saved yet"]),
        (saved, ["checkpoint.remote=s3://b/r"], 1, ["it goes on from step 1,000"], ["is asked"]),
        (saved, [], 8, ["it goes on from step 1,000", "8 processes import"], ["nothing will be evaluated"]),
        (new, ["data.val=", "evaluators=[{name: fewshot, set: x, train: a, test: b}]"], 1, [], ["nothing will be"]),
        (new, ["data.val=", "evaluators=[classification, {name: fewshot, set: x, train: a, test: b}]"], 1, [],
         ["nothing will be"]),
    ],
)  # fmt: skip
def test_where_a_run_is_and_what_will_not_be_evaluated_is_said_first(
    make: Callable[[Path], None],
    overrides: list[str],
    ranks: int,
    told: list[str],
    untold: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    make(run)
    announce(load_recipe("demo", ["data.val=v", *overrides]), run, ranks)
    said = capsys.readouterr().err
    for words in (f"in {run} (", f"logs in {run}/logs", *told):
        assert words in said
    for words in untold:
        assert words not in said


@pytest.mark.parametrize("verb", ["train", "run"])
@pytest.mark.parametrize("refused", [True, False])
def test_a_run_is_named_once_nothing_refuses_it_and_before_torch_is_imported(
    verb: str, refused: bool, small_set: str, tmp_path: Path
) -> None:
    code = (
        "import sys, launcher.processes.ranks as ranks\n"
        "def begun(*_, **__):\n"
        "    print('torch' in sys.modules, file=sys.stderr)\n"
        "    raise SystemExit(3)\n"
        "ranks.run_local = begun\n"
        f"from vit_dist.cli.{verb} import main\n"
        "main(['demo', *sys.argv[2:], '--run-dir', sys.argv[1]])\n"
    )
    words = [f"data.train={small_set}", "data.val=", "evaluators=[]", "checkpoint.every=1 epochs"]
    words += ["horizon=9 steps", f"schedule.warmup={10 if refused else 1} steps"]
    command = [sys.executable, "-c", code, str(tmp_path / "r"), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if refused:
        assert "longer than the whole run of 9 steps" in done.stderr
        assert "a new run" not in done.stderr
        assert not (tmp_path / "r").exists()
        return
    assert done.returncode == 3, done.stderr
    *said, torch = done.stderr.splitlines()
    assert torch == "False"
    assert f"in {tmp_path / 'r'} (a new run)" in said[0]
    assert "PyTorch now" in said[-1]
