"""A packing as arrays of Slurm jobs, one element a part, and a job that merges once all parts are there.

Started again it submits only the parts that are not packed yet, and nothing while its jobs still wait or run.
What it submitted lies in RUN-ROOT/pack/NAME-HASH: pack.sbatch, merge.sbatch, jobs.json and the logs.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import slurm
from launcher.cluster import Cluster
from launcher.render import Site, render_pack
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.files import redact, write_bytes

USUAL_ARRAY = 1001
"""MaxArraySize where nobody has set it."""
_JOBS = "jobs.json"


@dataclass(frozen=True)
class PackJobs:
    """What is to be submitted.

    Attributes:
        site: where it runs.
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
    largest: int = USUAL_ARRAY

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
        found = {}
        for first, elements in self.chunks:
            name = "pack.sbatch" if first == 0 else f"pack-{first}.sbatch"
            script = render_pack(
                self.site,
                job_name=f"{self.folder.name}-pack",
                command=self.pack,
                log_dir=self.log_dir(first),
                parts=min(self.largest, self.parts - first),
                first=first,
                total_parts=self.parts,
                throttle=self.throttle,
            )
            whole = f"--array=0-{min(self.largest, self.parts - first) - 1}"
            found[name] = script.replace(f"#SBATCH {whole}", f"#SBATCH --array={spans(elements)}", 1)
        found["merge.sbatch"] = render_pack(
            self.site, job_name=f"{self.folder.name}-merge", command=self.merge, log_dir=self.folder
        )
        return found


def spans(numbers: Sequence[int]) -> str:
    """'0-3,7' of 0, 1, 2, 3, 7: as Slurm names the elements of an array."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def site_of(cluster: Cluster, run_root: Path, time_limit: str = "") -> Site:
    """A site whose jobs run this very code, from the directory that we are in."""
    code = Path(__file__).resolve().parent.parent
    return Site(cluster, Path.cwd(), code, cluster.python or sys.executable, run_root.absolute(), time_limit)


def folder_of(run_root: Path, dest: str) -> Path:
    """Where scripts and logs of a packing lie: one place for each destination."""
    where = dest if "://" in dest else str(Path(dest).resolve())
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", where.rstrip("/").rpartition("/")[2]).strip("-.") or "set"
    return run_root.absolute() / "pack" / f"{name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"


def check_words(words: Sequence[str]) -> None:
    """Refuse words that hold a secret: scripts are readable.

    Raises:
        ConfigError: a URL with a password, a signature or a token in it.
    """
    for word in words:
        if redact(word) != word:
            raise ConfigError(
                f"{redact(word)}: holds a secret, and job scripts are readable; give credentials through the "
                f"environment or ~/.aws instead (jobs inherit the environment)"
            )


def largest_array() -> int:
    """How many elements this Slurm allows in an array.

    Raises:
        RunError: none at all.
    """
    told = slurm.config().get("MaxArraySize", "")
    size = int(told) if told.isdigit() else USUAL_ARRAY
    if size < 2:
        raise RunError("this Slurm allows no arrays (MaxArraySize); pack with `--part I/N` in jobs of your own")
    return size


def submit(jobs: PackJobs) -> dict[str, Any]:
    """Submit the arrays, and the merge behind them; what jobs.json then says.

    Raises:
        ConfigError: Slurm refuses a script.
        RunError: jobs of this packing still wait or run.
    """
    _check_idle(jobs.folder)
    scripts = jobs.scripts()
    for first, _ in jobs.chunks:
        jobs.log_dir(first).mkdir(parents=True, exist_ok=True)  # without it a job fails, and says nothing
    for name, text in scripts.items():
        write_bytes(str(jobs.folder / name), text.encode())
    for name in scripts:
        slurm.sbatch(jobs.folder / name, test_only=True)
    arrays: list[str] = []
    for name in scripts:
        if name == "merge.sbatch":
            continue
        # With a throttle, one array after another: else each would have its own.
        wait = [f"--dependency=afterany:{arrays[-1]}"] if arrays and jobs.throttle else []
        arrays.append(slurm.sbatch(jobs.folder / name, args=wait).job)
        _record(jobs, arrays, "")
    after = [f"--dependency=afterok:{':'.join(arrays)}"] if arrays else []
    merge = slurm.sbatch(jobs.folder / "merge.sbatch", args=after).job
    return _record(jobs, arrays, merge)


def _record(jobs: PackJobs, arrays: Sequence[str], merge: str) -> dict[str, Any]:
    told = {"arrays": list(arrays), "merge": merge, "parts": jobs.parts, "missing": len(jobs.missing)}
    told |= {"cluster": jobs.site.cluster.name, "submitted_at": time.time()}
    write_bytes(str(jobs.folder / _JOBS), (json.dumps(told, indent=1) + "\n").encode())
    return told


def _check_idle(folder: Path) -> None:
    try:
        told = json.loads((folder / _JOBS).read_text())
        ids = {str(i) for i in [*told["arrays"], told["merge"]] if i}
    except (OSError, ValueError, KeyError, TypeError):
        return
    # A number may have come round and be another job's by now: ours have our names.
    alive = {j.array_id or j.id for j in slurm.jobs(ids) if not j.ended}
    ours = sorted(i for i in alive if (found := slurm.job(i)) is not None and found.name.startswith(folder.name))
    if ours:
        raise RunError(
            f"{folder}: job {', '.join(ours)} packs this already; wait for it (`squeue -j {','.join(ours)}`), or end "
            f"it first: scancel {' '.join(sorted(ids))}"
        )
