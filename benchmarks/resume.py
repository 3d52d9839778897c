"""How long a run that was killed takes to its first step, and where the seconds go.

Trains two steps and a checkpoint, then goes on from it in new processes, and prints what these say of their start. Not
a ratio: it depends on the machine, its disk and on what its page cache holds of the Python packages.

python -m benchmarks.resume [--model ViT-B/16] [--nproc 2]
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from launcher.processes.kill_test import Attempt
from tests.shards import write_set
from vit_dist.core.run.checkpoints import MARKER, committed
from vit_dist.core.run.names import CHECKPOINTS
from vit_dist.core.units import format_bytes

_RECIPE = """
name: resume
global_batch: 4
horizon: 4 steps
precision: bf16
model: {{name: {model}}}
data: {{num_classes: 4, train: {train}, image_size: 224, augment: none}}
optim: {{name: adamw, lr: 1e-4}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {{name: deepspeed, zero_stage: {stage}}}
checkpoint: {{every: 2 steps, probe: 4}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B/16")
    parser.add_argument("--zero-stage", type=int, default=1)
    parser.add_argument("--nproc", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train = write_set(folder / "set", num_samples=64, samples_per_shard=16, num_classes=4)
        recipe, run_dir = folder / "recipe.yaml", folder / "run"
        recipe.write_text(_RECIPE.format(model=args.model, train=train, stage=args.zero_stage))
        attempt = Attempt(recipe, run_dir, args.nproc)
        attempt.finish(1800)
        newest, before = committed(run_dir / CHECKPOINTS)[:2]
        (newest / MARKER).unlink()  # as if killed before it was there
        said = f"{before.name}, {format_bytes(sum(f.stat().st_size for f in before.iterdir()))}"
        output = attempt.finish(1800)
    found = re.search(r"first step (.*)", output)
    assert found, output
    assert "resumed from step 2" in output
    print(f"{args.model}, ZeRO-{args.zero_stage}, {args.nproc} processes, from {said}: first step {found.group(1)}")


if __name__ == "__main__":
    main()
