"""The last words of `train` and `run`: what there is, where, and the next command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.histories import speak
from vit_dist.cli.farewell import farewell
from vit_dist.core.run.checkpoints import MARKER, step_name

COMMAND = ["vit-dist", "train", "demo", "data.train=a b", "--run-dir", "runs/x"]


@pytest.mark.parametrize(
    ("code", "status", "saved", "told"),
    [
        (
            0,
            "done",
            9,
            ["saved up to step 9", "vit-dist evaluate ", "vit-dist models export ", "tensorboard --logdir "],
        ),
        (0, "stopped", 7, ["saved up to step 7", "it goes on with: vit-dist train demo 'data.train=a b' --run-dir"]),
        (130, "stopped", 7, ["saved up to step 7", "it goes on with: vit-dist train demo"]),
        (143, "", 0, ["nothing is saved yet", "it begins with: vit-dist train demo"]),
        (140, "running", 5, ["saved up to step 5", "it goes on with: "]),
        (1, "failed", 3, ["saved up to step 3", "failed, exit code 1", "vit-dist logs ", "again: vit-dist train demo"]),
        (2, "stopped", 7, ["saved up to step 7"]),
        (71, "failed", 0, ["nothing is saved yet", "failed, exit code 71", "--first-error"]),
    ],
)
def test_they_say_where_everything_is_and_what_is_next(
    code: int, status: str, saved: int, told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "a run"
    if status:
        speak(run, status, saved)
    if saved:
        (run / "checkpoints" / step_name(saved)).mkdir(parents=True)
        (run / "checkpoints" / step_name(saved) / MARKER).write_text("{}")
    farewell(run, code, COMMAND)
    said = capsys.readouterr().err
    for words in (f"logs in {run}/logs", *told):
        assert words in said
    assert ("done; next" in said) == (status == "done")
    # Nobody is told to give again the command that was just refused.
    assert ("vit-dist train" in said) == (code != 2 and status != "done")
