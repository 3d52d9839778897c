"""Law 4: a run killed at any instant ends with the same weights, bit for bit, and a log without gaps."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests import forks
from tests.conftest import command
from vit_dist.core.events.reader import read_run
from vit_dist.core.exit_codes import INTERRUPTED, TERMINATED
from vit_dist.core.run import history
from vit_dist.train.checkpoint.format import SliceSource

pytestmark = pytest.mark.distributed

ENGINES = {
    "plain": ["engine.name=plain", "precision=bf16"],
    "fsdp": ["engine={name: fsdp, reshard_after_forward: true}", "precision=bf16"],
    "zero-1": ["engine.zero_stage=1", "precision=bf16"],
    "zero-3": ["engine.zero_stage=3", "precision=fp32"],
}


def recipe_file(folder: Path, train: str, val: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        f"""
name: law-4
global_batch: 16
horizon: 10 steps
model: {{name: vit-test, dropout: 0.1}}
data: {{num_classes: 4, train: {train}, val: {val}, image_size: 28, augment: inception, val_crop: 1.0}}
optim: {{name: adamw, lr: 3e-3}}
schedule: {{name: cosine, warmup: 2 steps}}
engine: {{name: deepspeed, reduce_bucket: 1000000, allgather_bucket: 1000000}}
checkpoint: {{every: 3 steps}}
eval: {{every: 5 steps}}
log: {{every: 1 step}}
"""
    )
    return path


def start(
    recipe: Path,
    run_dir: Path,
    *overrides: str,
    nproc: int = 2,
    popen: type[subprocess.Popen[str]] = forks.Popen,
) -> subprocess.Popen[str]:
    return popen(
        command(
            "train",
            str(recipe),
            *overrides,
            "engine.deterministic=true",
            "--run-dir",
            str(run_dir),
            "--nproc",
            str(nproc),
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout: float = 200, code: int = 0) -> str:
    try:
        output = process.communicate(timeout=timeout)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == code, output[-4000:]
    return output


def kill_after(process: subprocess.Popen[str], checkpoint: Path, signal_number: int, timeout: float = 200) -> None:
    """Send a signal to the parent of the ranks once a checkpoint is there."""
    deadline = time.monotonic() + timeout
    while not checkpoint.exists():
        assert process.poll() is None, process.stdout.read()[-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal_number)


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every whole tensor of a checkpoint, put together from the files of all ranks."""
    source = SliceSource(sorted(checkpoint.glob("*.safetensors")))
    by_name = {f"{kind}:{name}": source.tensor(kind, name) for kind, name in source.names()}
    for _, name in source.names():
        by_name[f"scalars:{name}"] = torch.tensor(sorted(source.scalars(name).values()))
    return by_name


def assert_same_bits(a: Path, b: Path) -> None:
    tensors_a, tensors_b = tensors(a), tensors(b)
    assert tensors_a.keys() == tensors_b.keys()
    assert len(tensors_a) > 10
    for name, tensor in tensors_a.items():
        same = torch.equal(tensor.flatten().view(torch.uint8), tensors_b[name].flatten().view(torch.uint8))
        assert same, f"{name} differs"


@pytest.mark.parametrize(
    "engine",
    [*(pytest.param(engine, marks=pytest.mark.drill) for engine in ("plain", "fsdp")), "zero-1", "zero-3"],
)
def test_ten_steps_equal_six_then_kill_minus_9_then_four(
    tmp_path: Path, small_set: str, small_val: str, engine: str
) -> None:
    # Under one engine what is killed and what goes on are whole commands that import for themselves.
    popen = forks.Popen if engine == "zero-3" else subprocess.Popen
    recipe = recipe_file(tmp_path, small_set, small_val)
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    options = [*ENGINES[engine], "ema={decay: 0.8, start: 2 steps}"]
    finish(start(recipe, straight, *options))

    first = start(recipe, killed, *options, popen=popen)
    kill_after(first, killed / "checkpoints" / "step-0000000006" / "COMMITTED.json", signal.SIGKILL)
    first.communicate(timeout=60)  # the ranks hold its output too: it ends when they have followed their parent
    assert not (killed / "checkpoints" / "step-0000000010").exists(), "the run ended before it could be killed"
    output = finish(start(recipe, killed, *options, popen=popen))

    assert "resumed from step 6" in output
    last = "checkpoints/step-0000000010"
    assert_same_bits(straight / last, killed / last)
    assert {"averaged:steps", "average:head.weight"} <= tensors(killed / last).keys()
    logs = [read_run(str(path / "tb")) for path in (straight, killed)]
    for tag in ("train/loss", "train/grad_norm", "val/top1", "val/loss", "ema/val/loss"):
        (steps, values), (other_steps, other_values) = (
            (log.scalars[tag].steps, log.scalars[tag].values) for log in logs
        )
        assert steps.tolist() == other_steps.tolist() == ([5, 10] if "val" in tag else list(range(1, 11)))
        assert values.tolist() == other_values.tolist()


def test_sigterm_saves_and_stops_and_the_same_command_resumes(tmp_path: Path, small_set: str, small_val: str) -> None:
    recipe, run_dir = recipe_file(tmp_path, small_set, small_val), tmp_path / "run"
    options = ["engine.name=plain", "horizon=2000 steps", "checkpoint.every=500 steps", "eval.every=500 steps"]
    first = start(recipe, run_dir, *options)
    deadline = time.monotonic() + 100
    while (began := history.read(run_dir).status) is None or began.status != "running":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(1)
    os.kill(first.pid, signal.SIGTERM)
    output = finish(first, code=TERMINATED)
    assert "SIGTERM: the ranks save what they have trained, and stop" in output
    assert "stopped at step" in output
    status = history.read(run_dir).status
    assert status is not None
    assert status.status == "stopped"
    assert 0 < status.step < 2000
    assert status.examples == status.step * 16
    again = start(recipe, run_dir, *options)
    while history.read(run_dir).status.status != "running":
        assert time.monotonic() < deadline + 100
        time.sleep(0.01)
    # As a terminal sends it: to all processes of the group.
    os.killpg(again.pid, signal.SIGINT)
    output = finish(again, code=INTERRUPTED)
    assert f"resumed from step {status.step:,}" in output
    assert "on Ctrl-C (SIGINT); the same command resumes" in output
    assert "Traceback" not in output


def test_a_damaged_checkpoint_is_skipped_and_logged(tmp_path: Path, small_set: str, small_val: str) -> None:
    recipe, intact, damaged = recipe_file(tmp_path, small_set, small_val), tmp_path / "intact", tmp_path / "damaged"
    finish(start(recipe, intact, "engine.name=plain", nproc=1))
    finish(start(recipe, damaged, "engine.name=plain", "checkpoint.keep=9", nproc=1))
    state = damaged / "checkpoints" / "step-0000000010" / "rank-00000.safetensors"
    content = bytearray(state.read_bytes())
    content[len(content) // 2] ^= 1
    state.write_bytes(content)
    (damaged / "checkpoints" / "step-0000000009" / "rank-00000.safetensors").write_bytes(b"short")
    output = finish(start(recipe, damaged, "engine.name=plain", "checkpoint.keep=9", nproc=1))
    assert "step-0000000010 is damaged and skipped" in output
    assert "rank-00000.safetensors does not match its checksum" in output
    assert "step-0000000009 is damaged and skipped" in output
    assert "resumed from step 6" in output
    assert_same_bits(intact / "checkpoints/step-0000000010", damaged / "checkpoints/step-0000000010")
