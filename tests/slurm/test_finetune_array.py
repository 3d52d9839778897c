"""A fine-tuning as Slurm jobs: one command, and in the end the table that it gives without Slurm."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from tests.slurm.cluster import wait_for
from tests.slurm.jobs import Site, vit_dist

pytestmark = [pytest.mark.drill, pytest.mark.slurm, pytest.mark.distributed]

TINY = [
    "model=vit-test",
    "data.image_size=28",
    "data.augment=none",
    "engine={name: plain}",
    "precision=fp32",
    "global_batch=24",
    "horizon=12 steps",
    "schedule.warmup=2 steps",
    "checkpoint.every=4 steps",
    "finetune.lrs=[0.01, 0.3, 1e30]",
    "finetune.held_out=20%",
]


def table(directory: Path) -> list[tuple[str, ...]]:
    """What results.csv says, without where the runs are."""
    rows = csv.DictReader((directory / "results.csv").read_text().splitlines())
    return [tuple(value for key, value in row.items() if key != "directory") for row in rows]


@pytest.mark.timeout(2400)
def test_one_command_gives_the_table_of_the_same_command_without_slurm(
    slurm, tmp_path: Path, small_set: str, small_val: str
) -> None:
    words = ["finetune", "none", small_set, f"data.val={small_val}", *TINY]
    done = vit_dist(*words, "--run-dir", str(tmp_path / "here"), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = table(tmp_path / "here")
    assert [row[0] for row in expected[:4]] == ["grid", "grid", "grid", "final"]
    assert "diverged" in expected[2]

    site, there = Site(slurm, tmp_path, small_set, tmp_path), tmp_path / "there"
    submit = [*words, "--run-dir", str(there), "--cluster", str(site.cluster_file())]
    done = vit_dist(*submit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chooses and submits the last run" in done.stdout
    # Again, while it is on its way: nothing is submitted twice.
    again = vit_dist(*submit)
    assert again.returncode == 0, again.stdout + again.stderr
    assert again.stdout.splitlines()[0] == done.stdout.splitlines()[0]

    def over() -> bool:
        return not slurm.run("squeue", "-h").stdout.strip()

    wait_for("all jobs have ended", over, 1800, lambda: slurm.run("squeue").stdout)
    logs = sorted((there / "jobs").rglob("*.log"))
    assert (there / "results.csv").is_file(), "\n".join(log.read_text() for log in logs)
    assert table(there) == expected
    assert len(logs) == 2, "a job that chooses, and one that writes the table"
