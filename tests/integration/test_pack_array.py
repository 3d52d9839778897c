"""A packing as arrays on a real Slurm: the same bytes as alone, and what is missing after a failure is made up for."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.slurm.cluster import load_cluster
from launcher.slurm.render import Site, check_no_secrets, spans
from launcher.submit.pack import PackJobs
from tests.places import FASHION
from tests.slurm.cluster import wait_for
from vit_dist.cli.data.pack_jobs import words_of_jobs
from vit_dist.core.errors import ConfigError
from vit_dist.core.process import code_root
from vit_dist.data.manifest import read_manifest

SOURCE = [str(FASHION), "--split-name", "test", "--samples-per-shard", "500"]


def jobs_of(tmp_path: Path, **changes: Any) -> PackJobs:
    given = {"parts": 6, "missing": (0, 1, 2, 3, 4, 5), "largest": 1001, **changes}
    site = Site.of(load_cluster("dev"), code_root(), run_root=tmp_path)
    return PackJobs(site, tmp_path / "pack", ("data", "pack", "a", "b"), ("data", "merge", "b"), **given)


def test_spans_name_elements_as_slurm_does() -> None:
    assert spans([3, 0, 1, 2, 7, 9, 10]) == "0-3,7,9-10"
    assert spans([5]) == "5"


def test_an_array_larger_than_slurm_allows_is_cut_up_and_every_part_is_packed_once(tmp_path: Path) -> None:
    jobs = jobs_of(tmp_path, parts=10, missing=(0, 1, 2, 5, 9), largest=4, throttle=2)
    assert jobs.chunks == [(0, (0, 1, 2)), (4, (1,)), (8, (1,))]
    scripts = jobs.scripts()
    assert list(scripts) == ["pack.sbatch", "pack-4.sbatch", "pack-8.sbatch", "merge.sbatch"]
    assert "#SBATCH --array=0-2%2\n" in scripts["pack.sbatch"]
    assert "#SBATCH --array=1%2\n" in scripts["pack-8.sbatch"]
    assert '"$((SLURM_ARRAY_TASK_ID + 8))/10"' in scripts["pack-8.sbatch"]
    assert str(jobs.log_dir(8)) in scripts["pack-8.sbatch"]


def test_the_jobs_get_the_words_of_the_command_without_those_about_slurm() -> None:
    words = ["s", "d", "--cluster", "x", "--val=5%", "--parts=7", "--dry-run", "--max-parallel", "2", "--seed", "1"]
    assert words_of_jobs(words) == ["s", "d", "--val=5%", "--seed", "1"]


def test_a_url_with_a_secret_is_not_written_into_a_script() -> None:
    with pytest.raises(ConfigError, match=r"readable") as raised:
        check_no_secrets(["https://me:hunter2@host/images.csv"])
    assert "hunter2" not in str(raised.value)


def test_a_dry_run_prints_a_script_that_bash_and_slurm_read_and_needs_neither(
    vit_dist: Callable[..., Any], tmp_path: Path
) -> None:
    dest = tmp_path / "it's $(touch x), a set"
    words = ["data", "pack", *SOURCE[:1], str(dest), "--split-name", "test", "--cluster", "dev", "--dry-run"]
    done = vit_dist(*words, "--run-root", str(tmp_path / "r"), PATH="/usr/bin:/bin", SLURM_CONF="/nowhere")
    assert done.returncode == 0, done.stderr
    script = tmp_path / "script"
    script.write_text(done.stdout.replace("exec ", "printf '%s\\n' "))
    shown = subprocess.run(["bash", str(script)], capture_output=True, text=True, env={"SLURM_ARRAY_TASK_ID": "3"})
    assert str(dest) in shown.stdout.splitlines()
    assert shown.stdout.splitlines()[-1] == "3/16"
    assert not (tmp_path / "x").exists()
    assert f"vit-dist data merge {shlex.quote(str(dest))}" in done.stdout
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--cluster", "dev", "--part", "1/2"], "--part: cannot be given with --cluster"),
        (["--cluster", "dev", "--force"], "--force: cannot be given with --cluster"),
        (["--parts", "4"], "--parts: means something with --cluster only"),
        (["--cluster", "dev", "--time", "soon"], "--time: expected a time"),
        (["--cluster", "nowhere"], "nowhere"),
    ],
)
def test_options_that_do_not_fit_are_refused(words: list[str], message: str, tmp_path: Path) -> None:
    from vit_dist.cli.data.pack import main

    with pytest.raises(ConfigError, match=message):
        main([SOURCE[0], str(tmp_path / "d"), "--split-name", "test", *words])


@pytest.mark.slurm
def test_parts_packed_as_an_array_are_merged_and_a_lost_part_is_made_up_for(
    slurm: Any, tmp_path: Path, vit_dist: Callable[..., Any]
) -> None:
    alone, dest, root = str(tmp_path / "alone"), str(tmp_path / "set"), tmp_path / "runs"
    assert vit_dist("data", "pack", SOURCE[0], alone, *SOURCE[1:]).returncode == 0
    words = ["data", "pack", SOURCE[0], dest, *SOURCE[1:], "--name", Path(alone).name, "--cluster", "dev"]
    words += ["--parts", "3", "--max-parallel", "2", "--run-root", str(root)]
    # Part 2 cannot write its scratch: a file stands where its directory must be.
    from vit_dist.data.pack.shards import STATE_FOLDER

    broken = tmp_path / "set" / STATE_FOLDER / "work-2-of-3"
    broken.parent.mkdir(parents=True)
    broken.write_text("")
    done = vit_dist(*words)
    assert done.returncode == 0, done.stderr
    (folder,) = (root / "pack").iterdir()
    first = json.loads((folder / "jobs.json").read_text())
    ids = ",".join([*first["arrays"], first["merge"]])
    assert first["missing"] == 3
    again = vit_dist(*words)
    assert again.returncode == 1
    assert "packs this already" in again.stderr
    wait_for("the arrays end", lambda: not slurm.run("squeue", "-h", "-j", ids, check=False).stdout.strip(), 200)
    assert not (tmp_path / "set" / "manifest.json").exists()  # the merge was not run over a missing part

    broken.unlink()
    done = vit_dist(*words)
    assert done.returncode == 0, done.stderr
    assert "2 of 3 parts are packed already" in done.stderr
    assert json.loads((folder / "jobs.json").read_text())["missing"] == 1
    manifest = tmp_path / "set" / "manifest.json"
    wait_for("the merge", manifest.exists, 200, lambda: "\n".join(p.read_text() for p in folder.rglob("*.log")))
    assert read_manifest(str(manifest)).fingerprint == read_manifest(f"{alone}/manifest.json").fingerprint
    wait_for("no job", lambda: not slurm.run("squeue", "-h").stdout.strip())
    done = vit_dist(*words)
    assert "merged already; nothing was submitted" in done.stdout
