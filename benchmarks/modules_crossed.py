"""How many modules of this project a batch, a study's cell, and the way from a kill to the next step run through.

Counted while they run: a module counts once a function of it was entered, in any thread of any process; what only
runs while a module is imported does not count. Another checkout is counted with --code, for before and after:

    python -m benchmarks.modules_crossed
    python -m benchmarks.modules_crossed --code ../other-checkout --list
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_TRACER = """
import os, sys, threading
_root, _out = os.environ["CROSSED_ROOT"], os.environ["CROSSED_OUT"]
_seen, _gate = set(), os.environ.get("CROSSED_GATE", "")
def _enter(frame, event, _argument):
    code = frame.f_code
    # Without CO_OPTIMIZED it is the body of a module or of a class.
    if event != "call" or code in _seen or not code.co_flags & 1:
        return
    if _gate and not os.path.exists(_gate):
        return
    name = code.co_filename
    _seen.add(code)
    if name.startswith(_root) and ("/vit_dist/" in name or "/launcher/" in name):
        handle = os.open(_out, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(handle, (name[len(_root) + 1 :] + "\\n").encode())
        os.close(handle)
threading.setprofile(_enter)
sys.setprofile(_enter)
"""

_SET = """
import sys
from pathlib import Path
from tests.shards import write_set
folder = Path(sys.argv[1])
folder.mkdir()
print(write_set(folder, num_samples=200, samples_per_shard=31, num_classes=4))
"""

_BATCH = """
import sys
from pathlib import Path
from vit_dist.config.load import load_recipe
from vit_dist.core.world import World
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream
recipe = load_recipe(sys.argv[1])
with TrainStream(open_training_set(recipe), recipe, World(), 0) as stream:
    batches = iter(stream)
    for _ in range(8):
        next(batches)
    Path(sys.argv[2]).touch()
    for _ in range(8):
        next(batches)
"""

_RECIPE = """
name: crossed
global_batch: 16
horizon: {steps} steps
model: vit-test
precision: fp32
data: {{num_classes: 4, train: {manifest}, val: {manifest}, image_size: 28, prefetch_batches: 1}}
optim: {{name: adamw, lr: 1e-3}}
schedule: {{name: constant, warmup: 0 steps}}
engine: {{name: deepspeed, zero_stage: 1}}
checkpoint: {{every: 3 steps}}
log: {{every: 1 step}}
"""

_STUDY = """
name: crossed
recipe: {recipe}
families: {{ViT: {{model: vit-test}}}}
subsets: [100]
seeds: [0]
duration: {{equal: examples, length: 64 examples}}
"""


class Counter:
    """Runs commands of one checkout, and counts what they enter."""

    def __init__(self, code: Path, folder: Path) -> None:
        self._code, self._folder = code.resolve(), folder
        (folder / "tracer").mkdir()
        (folder / "tracer" / "sitecustomize.py").write_text(_TRACER)

    def start(self, what: str, command: list[str], *, traced: bool = True, gate: str = "") -> subprocess.Popen[str]:
        """Start `python COMMAND`; what it enters goes to a file of that name."""
        path = [str(self._code), *([str(self._folder / "tracer")] if traced else [])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
        environment |= {"CROSSED_ROOT": str(self._code), "CROSSED_OUT": str(self._folder / what), "CROSSED_GATE": gate}
        out = subprocess.PIPE
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self._folder,
            env=environment,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, what: str, command: list[str], *, traced: bool = True, gate: str = "") -> str:
        """The same, to its end; what it printed."""
        process = self.start(what, command, traced=traced, gate=gate)
        output = process.communicate(timeout=600)[0]
        if process.returncode:
            raise SystemExit(f"{what}: exit code {process.returncode}\n{output[-3000:]}")
        return output

    def entered(self, what: str) -> list[str]:
        """The modules."""
        return sorted(set((self._folder / what).read_text().split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--code", type=Path, default=Path(__file__).resolve().parent.parent, help="checkout to count")
    parser.add_argument("--list", action="store_true", help="also name the modules")
    args = parser.parse_args()
    vit_dist = ["-m", "vit_dist.cli.main"]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        counter = Counter(args.code, folder)
        manifest = counter.finish("set", ["-c", _SET, str(folder / "data")], traced=False).strip().splitlines()[-1]
        for name, steps in (("recipe", 4), ("long", 2000)):
            (folder / f"{name}.yaml").write_text(_RECIPE.format(manifest=manifest, steps=steps))
        (folder / "study.yaml").write_text(_STUDY.format(recipe=folder / "recipe.yaml"))

        gate = str(folder / "gate")
        counter.finish("batch", ["-c", _BATCH, str(folder / "long.yaml"), gate], gate=gate)
        counter.finish("study cell", [*vit_dist, "study", "run", str(folder / "study.yaml")])
        train = [*vit_dist, "train", str(folder / "recipe.yaml"), "--run-dir", str(folder / "run"), "--nproc", "1"]
        killed = counter.start("killed", train, traced=False)
        while not list((folder / "run").glob("checkpoints/step-0000000003/*.json")):
            if killed.poll() is not None:
                raise SystemExit(f"it ended before it could be killed:\n{killed.communicate()[0][-3000:]}")
            time.sleep(0.002)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        output = counter.finish("kill to next step", train)
        if "resumed from step 3" not in output and "this run is done" in output:
            raise SystemExit("it was killed too late; run this again")
        for what in ("batch", "study cell", "kill to next step"):
            entered = counter.entered(what)
            print(f"{what}: {len(entered)} modules")
            if args.list:
                print("  " + "\n  ".join(entered))


if __name__ == "__main__":
    main()
