"""`vit-dist train` as a user runs it, from tars to checkpoints: images a second, waiting for data, what saves cost."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

from benchmarks.gpu.kit import Kit, mfu
from benchmarks.gpu.photos import write_photos
from vit_dist.cli.models.options import model_config, usual_size
from vit_dist.core.events.reader import read_run

_SAVES = 3
_LAST = 6
"""Log lines that count: the first ones carry the start."""


def measure(kit: Kit) -> None:
    """The case is MODEL:BATCH. What the command prints goes to a file beside the results."""
    model, _, batch = kit.case.rpartition(":")
    with tempfile.TemporaryDirectory() as folder:
        command = _command(kit, model, int(batch), write_photos(kit, folder), f"{folder}/run")
        path = kit.out / f"e2e-{model.replace('/', '-')}.log"
        with path.open("w") as log:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
        if status:
            sys.exit(f"{' '.join(command)}\nexit status {status}; the end of {path}:\n{path.read_text()[-2000:]}")
        scalars = read_run(f"{folder}/run/tb").scalars

    def last(tag: str) -> list[float]:
        return [float(value) for value in scalars[tag].values[-_LAST:]]

    speed = statistics.median(last("train/examples_per_s"))
    # What the engine does on a batch that lies on the device already, if the stage `steps` has run.
    of_engine = kit.over(speed, "steps", kit.case, "compiled, zero1", "images_per_s")
    kit.record(
        "",
        images_per_s=speed,
        **mfu(model, speed),
        **({} if of_engine is None else {"of_engine": of_engine}),
        data_wait=statistics.median(last("train/data_wait")),
        saving_s=last("goodput/save_s")[-1],
        saves=_SAVES,
    )


def _command(kit: Kit, model: str, batch: int, manifest: str, run_dir: str) -> list[str]:
    """The paper's ImageNet recipe, shortened, without evaluation."""
    steps, every, threads = (6, 1, 2) if kit.smoke else (60, 5, max(2, (os.cpu_count() or 1) - 4))
    data = f"num_classes: 1000, train: {manifest}, image_size: {usual_size(model_config(model))}"
    return [
        *(sys.executable, "-m", "vit_dist.cli.main", "train", "vit-b16-imagenet", "--run-dir", run_dir),
        f"model={{name: {model}}}",
        f"data={{{data}, decode_threads: {threads}}}",
        f"global_batch={batch}",
        f"horizon={steps} steps",
        "schedule.warmup=1 steps",
        "evaluators=[]",
        f"log.every={every} steps",
        f"checkpoint={{every: {steps // _SAVES} steps}}",
    ]
