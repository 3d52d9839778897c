"""A run whose decoder is slow tells so: in its event file, on its log, in its history for `vit-dist status`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.conftest import trains_here
from tests.laws.test_resume import recipe_file
from vit_dist.config.load import load_recipe
from vit_dist.core.events.reader import read_run
from vit_dist.core.run import history
from vit_dist.core.world import World
from vit_dist.data.decode import Encoded
from vit_dist.train.attempt import attempt
from vit_dist.train.progress import loading

SETTINGS = [
    "engine.name=plain",
    "precision=fp32",
    "horizon=9 steps",
    "guards.hang=0s",
    "eval.every=9 steps",
    "checkpoint.every=9 steps",
    "log.every=4 steps",
    "data.decode_threads=2",
    "data.prefetch_batches=1",
]


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with trains_here():
        yield


def test_a_slow_decoder_is_told_in_the_log_the_event_file_and_the_history(
    tmp_path: Path, small_set: str, small_val: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Encoded.whole

    def slow(image: Encoded) -> torch.Tensor:
        time.sleep(0.02)
        return whole(image)

    monkeypatch.setattr(loading, "_STALL_S", 0.0)
    monkeypatch.setattr(Encoded, "whole", slow)
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    attempt(load_recipe(str(recipe), SETTINGS), run_dir, World())
    log = read_run(str(run_dir / "tb"))
    told = [line for line in capsys.readouterr().err.splitlines() if "waits for data" in line]
    assert len(told) == 1, "once, not at every log"
    assert "decoding is the cause: 2 threads" in told[0]
    assert history.read(run_dir).progress.stall.startswith("training waits for data")
    scalars = {tag: series.values.tolist() for tag, series in log.scalars.items() if tag.startswith("data/")}
    assert log.scalars["data/requests"].steps.tolist() == [4, 8, 9]
    assert scalars["data/decode_ms"][0] > 0
    assert scalars["data/decoders_busy"][1] > scalars["data/decoders_starved"][1]
    assert scalars["data/replaced"] == [0, 0, 0]
    assert scalars["data/held_mib"][-1] > 0
