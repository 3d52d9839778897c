"""What a run tells from its first step to its last: tags, documented; norms, a trace, the live line."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.laws.test_resume import recipe_file
from tests.places import ROOT
from vit_dist.core.events.reader import read_run
from vit_dist.core.run import history

pytestmark = pytest.mark.distributed

NAMED = re.compile(r"^((?:weight|gradient|update)_norm|attention_logit|data/epochs)/.+")


def documented() -> set[str]:
    rows = [line for line in (ROOT / "docs/logs.md").read_text().splitlines() if line.startswith("| `")]
    return {tag for row in rows for tag in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_a_run_tells_how_it_goes_and_every_tag_is_documented(
    tmp_path: Path, small_set: str, small_val: str, vit_dist: Callable[..., CompletedProcess[str]]
) -> None:
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    done = vit_dist(
        "train", str(recipe), "log.norms=4 steps", "engine.name=plain", "--profile=5:6",
        "--run-dir", str(run_dir), "--nproc", "2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = read_run(str(run_dir / "tb"))

    tags = {NAMED.sub(r"\1/NAME", tag) for tag in log.scalars}
    assert tags <= documented(), "a tag that docs/logs.md does not have"
    steps = {tag: series.steps.tolist() for tag, series in log.scalars.items()}
    assert steps["start/first_step_s"] == [1]
    assert steps["train/loss"] == steps["throughput/exaflops"] == steps["time_share/other"] == list(range(1, 11))
    timed = ("train/examples_per_s", "throughput/tflops_per_device", "step_time/median_s", "before_sync/slowest_rank")
    assert {tag: steps[tag] for tag in timed} == {key: list(range(2, 11)) for key in timed}
    assert steps["weight_norm/head.weight"] == steps["attention_logit/all"] == [4, 8]
    assert "throughput/mfu" not in tags, "a CPU has no peak that is known"
    at = {tag: series.values for tag, series in log.scalars.items()}
    assert at["gradient_norm/all"][0] == pytest.approx(at["train/grad_norm"][3], rel=1e-5)
    assert set(at["before_sync/slowest_rank"]) <= {0.0, 1.0}
    shares = [values for tag, values in at.items() if tag.startswith("time_share/")]
    assert sum(shares).tolist() == pytest.approx([1.0] * 10)

    (trace,) = (run_dir / "profile").iterdir()
    assert f"trace of steps 5 to 6: {trace} (open it in https://ui.perfetto.dev)" in done.stderr
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    names = [event.get("name") for event in events]
    assert {phase: names.count(phase) for phase in ("forward", "backward", "optimizer")} == {
        "forward": 2,
        "backward": 2,
        "optimizer": 2,
    }


def test_examples_and_flops_go_on_counting_over_a_restart(
    tmp_path: Path, small_set: str, small_val: str, vit_dist: Callable[..., CompletedProcess[str]]
) -> None:
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    words = ("engine.name=plain", "--run-dir", str(run_dir))
    (run_dir).mkdir()
    (run_dir / "request").write_text("stop")
    assert vit_dist("train", str(recipe), *words).returncode == 0
    stopped = history.read(run_dir).progress.step
    assert 0 < stopped < 10
    assert vit_dist("train", str(recipe), *words).returncode == 0
    log = read_run(str(run_dir / "tb")).scalars
    exaflops = log["throughput/exaflops"].values
    assert exaflops.tolist() == pytest.approx([exaflops[0] * step for step in range(1, 11)], rel=1e-6)
    assert log["start/first_step_s"].steps.tolist() == [1, stopped + 1]
