"""From the start of the demo's process to its first step, against what it cannot do without.

That is a process which imports torch, deepspeed and timm and initializes DeepSpeed with the demo's model and
configuration. Ours is `vit-dist train demo` as the one rank of a world, on a small set of images of 28 pixels, until
it says that its first step is done; the same with the launcher before it stands beside. The three take turns; each
round gives one ratio, by the wall clock and by processor time, children included. Reported are the medians and their
95% intervals by order statistics. At most 1.3 is the aim, without the launcher.

python -m benchmarks.start_up [--pairs 11]
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.models_against_timm import interval
from tests.shards import write_set
from vit_dist.core.network import free_port
from vit_dist.core.process import cli_command
from vit_dist.core.world import without_world

_GOAL = 1.3
# The marks that the processes print when they are where they are measured to.
_READY, _FIRST_STEP = "initialized", "first step"
_BARE = f"""
import io, os, warnings
warnings.simplefilter("ignore")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
import torch, deepspeed, timm
from contextlib import redirect_stdout
# It would be compiled now, for inference alone.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
torch.distributed.init_process_group("gloo")
with redirect_stdout(io.StringIO()):
    deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
    model = timm.models.VisionTransformer(
        img_size=28, patch_size=7, embed_dim=64, depth=4, num_heads=4, num_classes=10)
    deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(model.parameters(), fused=True), dist_init_required=False, config=dict(
            train_micro_batch_size_per_gpu=64, bf16=dict(enabled=True), gradient_clipping=1.0, steps_per_print=10**9,
            data_types=dict(grad_accum_dtype="fp32"), zero_optimization=dict(stage=1, reduce_bucket_size=10**6)))
print("{_READY}", flush=True)
import time; time.sleep(60)
"""
_TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=11)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train = write_set(folder / "set", num_samples=640, samples_per_shard=320, num_classes=10)
        rounds = [_round(folder, train, turn) for turn in range(args.pairs + 1)][1:]
    print(f"to the first step over imports and initialize, {args.pairs} rounds; aim, of a rank: {_GOAL}")
    print("{:24} {:22} {:22} {:>8} {:>8}".format("", "by the wall clock", "by processor time", "ours/s", "bare/s"))
    for name in ("a rank", "launcher and a rank"):
        ratios = [sorted(one[name][clock] / one["bare"][clock] for one in rounds) for clock in (0, 1)]
        cells = ["{:.3f} [{:.3f}, {:.3f}]".format(statistics.median(r), *interval(r)) for r in ratios]
        seconds = [statistics.median(one[who][0] for one in rounds) for who in (name, "bare")]
        print(f"{name:24} {cells[0]:22} {cells[1]:22} {seconds[0]:8.2f} {seconds[1]:8.2f}")
    return 0


def _round(folder: Path, train: str, turn: int) -> dict[str, tuple[float, float]]:
    """Seconds of each by the wall clock and of processors. The first round fills the page cache."""
    run = [
        *cli_command("train", "demo"),
        f"data.train={train}",
        f"data.val={train}",
        "data.num_classes=10",
        "--run-dir",
    ]
    alone = {**without_world(os.environ), "MASTER_ADDR": "127.0.0.1"}
    rank = {**alone, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": str(free_port())}
    work = {
        "bare": ([sys.executable, "-c", _BARE], rank, _READY),
        "a rank": ([*run, str(folder / f"rank-{turn}")], rank, _FIRST_STEP),
        "launcher and a rank": ([*run, str(folder / f"both-{turn}")], alone, _FIRST_STEP),
    }
    names = list(work) if turn % 2 == 0 else list(reversed(work))
    return {name: _until(*work[name]) for name in names}


def _until(command: list[str], environment: dict[str, str], mark: str) -> tuple[float, float]:
    """Start a command, and end it once it prints the mark."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        start_new_session=True,
    )
    said: list[str] = []
    try:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if mark in line:
                return time.perf_counter() - began, _cpu_s(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    raise SystemExit(f"{' '.join(command[:4])} ... ended without {mark!r}:\n{''.join(said)}")


def _cpu_s(session: int) -> float:
    """Processor seconds of all processes of a session so far, and of their children that have ended."""
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # Processes come and go meanwhile.
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += sum(int(field) for field in fields[11:15])
    return total / _TICKS


if __name__ == "__main__":
    sys.exit(main())
