"""The job that goes on with a fine-tuning behind others: it chooses, submits the last run, writes the table."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from launcher.slurm import commands as slurm
from launcher.slurm.cluster import Cluster
from launcher.slurm.render import Site, render_pack
from launcher.submit.snapshot import CODE_FOLDER, take_snapshot
from vit_dist.config.load import to_yaml
from vit_dist.config.schema import dump
from vit_dist.core.files import make_folder, write_bytes
from vit_dist.core.run import names
from vit_dist.core.small_files import DamagedError, is_text, parse_json, read_small

_RECORD = "goes-on.json"
_SCRIPT = "goes-on.sbatch"
_TIME_LIMIT = "00:30:00"
"""It submits and reads logs: minutes on any file system."""


def go_on_after(jobs: Sequence[str], directory: Path, cluster: Cluster, words: Sequence[str]) -> str:
    """Submit the job that goes on when these have ended, however they did, unless one waits already. Gives its number.

    Args:
        jobs: numbers in Slurm.
        directory: of the fine-tuning, absolute.
        cluster: where.
        words: options of `vit-dist finetune --resume DIRECTORY --cluster FILE`.

    Raises:
        ConfigError: Slurm refuses the script, or what was asked for cannot be.
        RunError: Slurm or the directory does not answer.
    """
    if before := waiting(directory):
        return before
    folder = directory / "jobs" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    make_folder(folder)
    cluster_file, code = folder / names.CLUSTER, take_snapshot(folder / CODE_FOLDER)
    write_bytes(str(cluster_file), to_yaml(dump(cluster)).encode())
    notes = [f"goes on with the fine-tuning in {directory} on cluster {cluster.name}"]
    site = Site.of(cluster, code, run_root=directory.parent, time_limit=_TIME_LIMIT, notes=notes)
    command = ["finetune", "--resume", str(directory), "--cluster", str(cluster_file), "--from-job", *words]
    script = folder / _SCRIPT
    job_name = names.safe_name(f"{directory.name}-goes-on")
    text = render_pack(site, job_name=job_name, command=command, log_dir=folder)
    write_bytes(str(script), text.encode())
    job = slurm.sbatch(script, args=[f"--dependency=afterany:{':'.join(jobs)}"]).job
    write_bytes(str(directory / "jobs" / _RECORD), (json.dumps({"job": job}) + "\n").encode())
    return job


def waiting(directory: Path) -> str:
    """The number of the job that is going to go on with a fine-tuning, other than the one that we are in; '' for none.

    Raises:
        RunError: Slurm does not answer.
    """
    try:
        job = parse_json(read_small(directory / "jobs" / _RECORD)).get("job")
    except (OSError, DamagedError, AttributeError):
        return ""
    if not is_text(job) or not job or job == os.environ.get("SLURM_JOB_ID"):
        return ""
    known = slurm.job(job)
    # Slurm gives a number anew some day, to a job of another name.
    ours = known is not None and not known.ended and known.name.startswith(names.safe_name(directory.name)[:8])
    return str(job) if ours else ""
