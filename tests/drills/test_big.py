"""Models of full size on this machine: three steps from S3, a save, a kill, and on. `make big`; tens of minutes."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from launcher.processes.kill_test import Attempt
from vit_dist.cli.models.options import model_config
from vit_dist.compare.memory import Counted, count
from vit_dist.core.files import write_bytes
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import newest_step
from vit_dist.core.units import format_bytes
from vit_dist.data.manifest import read_manifest

pytestmark = [pytest.mark.big, pytest.mark.s3, pytest.mark.distributed]

CASES = [("ViT-L/16", 1), ("ViT-H/14", 3), ("R152x2", 1), ("R50+ViT-L/16", 1)]
CLASSES, BATCH, NPROC = 4, 4, 2
EMPTY = 1 << 29
"""Bytes that Python, torch and DeepSpeed hold on a rank."""
REPORT = Path("runs/drills/big.md")


class Memory(threading.Thread):
    """The greatest sum of what processes hold that this one starts meanwhile: no files, shared pages once."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._over, self._before = 0, threading.Event(), set(_tree(os.getpid()))

    def run(self) -> None:
        while not self._over.wait(0.5):
            self.peak = max(self.peak, sum(_pss(pid) for pid in set(_tree(os.getpid())) - self._before))

    def finish(self) -> int:
        self._over.set()
        self.join()
        return self.peak


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(p for child in children for p in _tree(int(child)))]


def _pss(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def arithmetic(found: Counted, stage: int, *, copied: bool) -> int:
    """Bytes that all ranks of a run need together at its peak, beside what a process holds without a model.

    Of each parameter, over all ranks: the fp32 weight, AdamW's moments and the gradient that is applied (16 bytes),
    once more weight and moments where a checkpoint is copied (12); on each rank the bf16 weight (2) and its gradient,
    in bf16 and summed in fp32 (6), of which stage 3 keeps only the rank's share, and the weights that are gathered.
    """
    a_rank = 2 * NPROC + 8 if stage == 3 else 8 * NPROC
    return found.params * (16 + a_rank + 12 * copied) + BATCH * found.checkpointed


@pytest.mark.parametrize(("name", "stage"), CASES)
@pytest.mark.timeout(5400)
def test_a_model_of_full_size_is_saved_killed_and_goes_on(
    name: str, stage: int, s3: str, small_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in sorted(Path(small_set).parent.iterdir()):
        write_bytes(f"{s3}/big-set/{file.name}", file.read_bytes())
    assert read_manifest(f"{s3}/big-set/manifest.json").num_samples >= 4 * BATCH
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"""
global_batch: {BATCH}
horizon: 4 steps
precision: bf16
model: {name}
data: {{num_classes: {CLASSES}, image_size: 224, train: {s3}/big-set/manifest.json}}
optim: {{name: adamw, lr: 1e-4}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {{name: deepspeed, zero_stage: {stage}, activation_checkpointing: full}}
checkpoint: {{every: 3 steps, keep: 1}}
log: {{every: 1 step}}
guards: {{hang: 30 min}}
"""
    )
    attempt, began, memory = Attempt(recipe, tmp_path / "run", NPROC), time.monotonic(), Memory()
    memory.start()
    first = attempt.kill_when(lambda: newest_step(tmp_path / "run") >= 3, 3600)
    killed_s = time.monotonic() - began
    output = attempt.finish(3600)
    peak = memory.finish()
    status = history.read(tmp_path / "run").status
    assert status is not None
    assert (status.status, status.step) == ("done", 4), output[-2000:]
    assert "step-0000000003" in output

    found = count(model_config(name), num_classes=CLASSES, image_size=224)
    copied = "do not fit a second time" not in first + output
    needed = arithmetic(found, stage, copied=copied) + NPROC * EMPTY
    line = f"| {name} | {stage} | {found.params:,} | {format_bytes(peak)} | {format_bytes(needed)} | "
    line += f"{'copied' if copied else 'in place'} | {killed_s:.0f} s | {time.monotonic() - began:.0f} s |\n"
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    if not REPORT.exists():
        head = "| model | ZeRO | parameters | peak of both ranks | arithmetic | checkpoint | to the kill | in all |"
        REPORT.write_text(f"{head}\n|{'---|' * 8}\n")
    with REPORT.open("a") as report:
        report.write(line)
    with capsys.disabled():
        print(line, end="")
    assert 0.75 * needed < peak < 1.25 * needed
