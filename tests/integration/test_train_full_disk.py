"""A disk that is full for a while, and a log that cannot be written, end no run and lose nothing of its log."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_dist.core.events.reader import read_run
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import LOG, MARKER, step_name
from vit_dist.core.small_files import read_records

pytestmark = pytest.mark.distributed

Command = Callable[..., subprocess.CompletedProcess[str]]

# Evaluated every second step: a full disk from step 4 to 6, a log that cannot be written from 8 on, killed at 10.
PLUGIN = """
import os, resource, signal, time
from collections.abc import Iterator
from pathlib import Path

from vit_dist.core.metrics import Metric
from vit_dist.core.registry import EVALUATORS
from vit_dist.evals import EvalContext, EvaluatorConfig

RUN = Path({run!r})
seen = []


def full_disk() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


def room_again() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def log_away() -> None:
    for handle in os.listdir("/proc/self/fd"):
        try:
            path = os.readlink(f"/proc/self/fd/{{handle}}")
        except OSError:
            continue
        if "tfevents" in path:
            os.dup2(os.open(path, os.O_RDONLY), int(handle))


def killed() -> None:
    while not (RUN / "checkpoints" / "step-0000000008" / "COMMITTED.json").exists():
        time.sleep(0.01)
    (RUN / "killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)


@EVALUATORS.register("bad-days")
class BadDaysConfig(EvaluatorConfig):
    scores_head = False

    def metrics(self, recipe: object) -> dict[str, Metric]:
        return {{"val/calls": Metric(better="higher", range=(0, 100))}}

    def run(self, context: EvalContext) -> Iterator[tuple[str, float]]:
        seen.append(1)
        if not (RUN / "killed").exists():
            {{2: full_disk, 3: room_again, 4: log_away, 5: killed}}.get(len(seen), lambda: None)()
        yield "val/calls", float(len(seen))
"""


def test_a_full_disk_and_a_log_that_is_away_cost_no_run(vit_dist: Command, small_set: str, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (tmp_path / "bad_days.py").write_text(PLUGIN.format(run=str(run_dir)))
    (tmp_path / "recipe.yaml").write_text(
        f"""
name: bad-days
plugins: [bad_days.py]
global_batch: 16
horizon: 12 steps
precision: fp32
model: vit-test
data: {{num_classes: 4, train: {small_set}, image_size: 28, augment: none}}
optim: {{name: adamw, lr: 1e-3}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {{name: plain}}
evaluators: [bad-days]
checkpoint: {{every: 2 steps, keep: 9}}
eval: {{every: 2 steps}}
log: {{every: 1 step, order: true}}
"""
    )
    train = ("train", str(tmp_path / "recipe.yaml"), "--run-dir", str(run_dir))
    first = vit_dist(*train)
    assert first.returncode == 128 + signal.SIGKILL, first.stderr
    assert first.stderr.count(f"{run_dir}/alive.json: cannot be written: the file would be larger") == 1
    assert first.stderr.count("order/attempt-00001-rank-00000.jsonl: cannot be written") == 1
    assert first.stderr.count("the log cannot be written: the file would be larger") == 1
    assert first.stderr.count("the log cannot be written: Bad file descriptor") == 1
    assert first.stderr.count("is written again") == 2
    assert first.stderr.count("CHECKPOINT FAILED at step 4") == first.stderr.count("CHECKPOINT FAILED") == 1
    marker = json.loads((run_dir / "checkpoints" / step_name(8) / MARKER).read_text())
    # The values of step 8, and with them its loss, though that had been written.
    assert len(marker[LOG]["events"]) == 2
    assert marker[LOG]["purge_step"] == 8

    second = vit_dist(*train)
    assert second.returncode == 0, second.stderr
    assert "resumed from step 8" in second.stderr
    assert "Traceback" not in first.stderr + second.stderr
    status = history.read(run_dir).status
    assert status is not None
    assert (status.status, status.step) == ("done", 12)
    log = read_run(str(run_dir / "tb"))
    assert log.problems == ()
    assert log.scalars["train/loss"].steps.tolist() == list(range(1, 13))
    assert log.scalars["val/calls"].steps.tolist() == [2, 4, 6, 8, 10, 12]
    assert log.scalars["val/calls"].values.tolist() == [1, 2, 3, 4, 1, 2]
    order = run_dir / "order"
    trained = [line["step"] for path in sorted(order.iterdir()) for line in read_records(path)]
    assert trained == [*range(1, 11), *range(9, 13)]
