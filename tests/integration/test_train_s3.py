"""Training straight from S3: a real server, the same examples and the same losses as from the local disk."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vit_dist.core.events.reader import read_run
from vit_dist.core.files import write_bytes

pytestmark = [pytest.mark.s3, pytest.mark.distributed]


@pytest.mark.parametrize(
    "lanes", [pytest.param("null", id="whole shards", marks=pytest.mark.drill), pytest.param("8", id="lanes")]
)
def test_a_run_from_s3_equals_the_run_from_disk(
    s3: str,
    small_set: str,
    tmp_path: Path,
    vit_dist: Callable[..., subprocess.CompletedProcess[str]],
    lanes: str,
) -> None:
    for file in sorted(Path(small_set).parent.iterdir()):
        write_bytes(f"{s3}/train-set/{file.name}", file.read_bytes())
    (tmp_path / "recipe.yaml").write_text(
        f"""
global_batch: 16
horizon: 15 steps
precision: fp32
model: vit-test
data: {{num_classes: 4, image_size: 28, augment: inception, lanes: {lanes}}}
optim: {{name: adamw, lr: 1e-3}}
schedule: {{name: constant, warmup: 0 steps}}
engine: plain
log: {{every: 1 step}}
"""
    )
    losses = []
    for name, url in (("disk", small_set), ("s3", f"{s3}/train-set/manifest.json")):
        run_dir = tmp_path / name
        train = ("train", str(tmp_path / "recipe.yaml"), f"data.train={url}", f"data.val={url}")
        done = vit_dist(*train, "--nproc", "2", "--run-dir", str(run_dir))
        assert done.returncode == 0, done.stderr
        log = read_run(str(run_dir / "tb"))
        losses.append(log.scalars["train/loss"].values.tolist() + log.scalars["val/loss"].values.tolist())
        assert "test-secret-key" not in done.stderr + (run_dir / "recipe.yaml").read_text()
    assert len(losses[0]) >= 16
    assert losses[0] == losses[1]
