"""A packing as arrays of Slurm jobs, one element a part, and a job that merges once all parts are there.

Started again it submits only the parts that are not packed yet, and nothing while its jobs still wait or run.
What it submitted lies in RUN-ROOT/pack/NAME-HASH: pack.sbatch, merge.sbatch, jobs.json, the code and the logs.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher.slurm import commands as slurm
from launcher.slurm.render import Site, render_pack
from launcher.submit.snapshot import CODE_FOLDER, take_snapshot
from vit_dist.core.errors import RunError
from vit_dist.core.files import folder_url, is_remote, local_path, make_folder, url_name, write_bytes
from vit_dist.core.small_files import DamagedError, is_text, is_texts, read_record

_JOBS = "jobs.json"


@dataclass(frozen=True)
class PackJobs:
    """What is to be submitted.

    Attributes:
        site: where it runs; its code is that of the caller, of which `submit` takes a snapshot.
        folder: for scripts and logs.
        pack, merge: words after `vit-dist`.
        parts: into how many the packing is cut.
        missing: those that are not packed yet, from 0.
        throttle: elements at a time; 0: no limit.
        largest: elements that one array may have.
    """

    site: Site
    folder: Path
    pack: tuple[str, ...]
    merge: tuple[str, ...]
    parts: int
    missing: tuple[int, ...]
    throttle: int = 0
    largest: int = slurm.USUAL_ARRAY

    @property
    def chunks(self) -> list[tuple[int, tuple[int, ...]]]:
        """For each array: the part that its element 0 stands for, and its elements."""
        by_first: dict[int, list[int]] = {}
        for part in self.missing:
            first = part // self.largest * self.largest
            by_first.setdefault(first, []).append(part - first)
        return [(first, tuple(elements)) for first, elements in sorted(by_first.items())]

    def log_dir(self, first: int) -> Path:
        """Where the elements of an array write: each array counts its own from 0."""
        return self.folder / (f"parts-from-{first}" if first else "parts")

    def scripts(self) -> dict[str, str]:
        """Name of a file -> script: one an array, then the one that merges."""
        scripts = {}
        for first, elements in self.chunks:
            name = "pack.sbatch" if first == 0 else f"pack-{first}.sbatch"
            scripts[name] = render_pack(
                self.site,
                job_name=f"{self.folder.name}-pack",
                command=self.pack,
                log_dir=self.log_dir(first),
                elements=elements,
                first=first,
                parts=self.parts,
                throttle=self.throttle,
            )
        scripts["merge.sbatch"] = render_pack(
            self.site, job_name=f"{self.folder.name}-merge", command=self.merge, log_dir=self.folder
        )
        return scripts


def folder_of(run_root: Path, dest: str) -> Path:
    """Where scripts and logs of a packing lie: one place for each destination."""
    # A name alone would do for people; the digest keeps `a/train` and `b/train` apart.
    where = folder_url(dest) if is_remote(dest) else str(local_path(dest).resolve())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", url_name(where)).strip("-.") or "set"
    return run_root.absolute() / "pack" / f"{name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"


def submit(jobs: PackJobs) -> dict[str, Any]:
    """Submit the arrays, and the merge behind them; what jobs.json then says.

    Raises:
        ConfigError: Slurm refuses a script.
        RunError: jobs of this packing still wait or run.
    """
    _check_idle(jobs.folder)
    make_folder(jobs.folder)
    jobs = replace(jobs, site=replace(jobs.site, code=take_snapshot(jobs.folder / CODE_FOLDER)))
    scripts = jobs.scripts()
    for first, _ in jobs.chunks:
        # Slurm fails a job in silence where the directory of its output is missing.
        make_folder(jobs.log_dir(first))
    for name, text in scripts.items():
        write_bytes(str(jobs.folder / name), text.encode())
    # All are tested before the first is submitted: half a packing in the queue would be worse than none.
    for name in scripts:
        slurm.sbatch(jobs.folder / name, test_only=True)
    arrays: list[str] = []
    for name in scripts:
        if name == "merge.sbatch":
            continue
        # With a throttle, one array after another: else each would have its own.
        wait = [f"--dependency=afterany:{arrays[-1]}"] if arrays and jobs.throttle else []
        arrays.append(slurm.sbatch(jobs.folder / name, args=wait).job)
        # After each one, so that a submission that breaks off here is found by the next.
        _record(jobs, arrays, "")
    after = [f"--dependency=afterok:{':'.join(arrays)}"] if arrays else []
    merge = slurm.sbatch(jobs.folder / "merge.sbatch", args=after).job
    return _record(jobs, arrays, merge)


def _record(jobs: PackJobs, arrays: Sequence[str], merge: str) -> dict[str, Any]:
    record = {"arrays": list(arrays), "merge": merge, "parts": jobs.parts, "missing": len(jobs.missing)}
    record |= {"cluster": jobs.site.cluster.name, "submitted_at": time.time()}
    write_bytes(str(jobs.folder / _JOBS), (json.dumps(record, indent=1) + "\n").encode())
    return record


def _check_idle(folder: Path) -> None:
    try:
        record = read_record(folder / _JOBS, {"arrays": is_texts, "merge": is_text})
        ids = {i for i in [*record["arrays"], record["merge"]] if i}
    except (OSError, DamagedError, KeyError):
        return
    # Slurm begins its numbers anew some day, and one may be another job's by now: those of this packing bear its name.
    active = {j.array_id or j.id for j in slurm.jobs(ids) if not j.ended}
    packing = sorted(i for i in active if (job := slurm.job(i)) is not None and job.name.startswith(folder.name))
    if packing:
        raise RunError(
            f"{folder}: job {', '.join(packing)} packs this already; wait for it (`squeue -j {','.join(packing)}`), "
            f"or end it first: scancel {' '.join(sorted(ids))}"
        )
