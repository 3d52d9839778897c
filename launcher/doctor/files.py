"""The doctor's checks of the shared file system: writable, atomic, lockable, with space, the same on every node."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from launcher.doctor.finding import Finding, Subject
from launcher.filesystem import NEVER_SHARED, ONE_MACHINE, file_system_kind
from launcher.slurm import commands as slurm
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import committed, read_marker
from vit_dist.core.run.names import CHECKPOINTS
from vit_dist.core.units import counted, format_bytes

_AREA = "Files"
_SPACE_WANTED = 20 << 30
_SPACE_NEEDED = 1 << 30
_SLOW_SYNC_S = 0.5


def run_root(subject: Subject) -> Iterator[Finding]:
    """The directory of runs, and node-local scratch."""
    root = subject.run_root.absolute()
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".doctor-", dir=root))
    except OSError as error:
        yield Finding(
            _AREA, "fail", f"{root} cannot be written: {error.strerror}", "mend it, or set run_root elsewhere"
        )
        return
    try:
        yield from _atomic(root, folder)
        yield from _seen_by_nodes(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield from _shared(root, subject)
    yield _free_space(root, "run root", _needed(subject))
    # A doctor changes nothing.
    if made:
        with contextlib.suppress(OSError):
            root.rmdir()
    scratch = Path((subject.cluster.scratch if subject.cluster else "") or tempfile.gettempdir())
    if scratch.is_dir():
        yield _free_space(scratch, "scratch", _SPACE_NEEDED)
    else:
        where = "here; it must be on every node" if subject.cluster else ""
        yield Finding(_AREA, "warn", f"scratch {scratch} does not exist {where}", "make it, or change `scratch`")


def _atomic(root: Path, folder: Path) -> Iterator[Finding]:
    """What checkpoints and locks rely on: write, fsync, rename over, O_EXCL, flock; and the server's clock."""
    path = folder / "file"
    try:
        began = time.monotonic()
        for content in (b"old", b"new"):
            temporary = folder / "file.tmp"
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
        took = (time.monotonic() - began) / 2
    except OSError as error:
        yield Finding(_AREA, "fail", f"{root}: writing, flushing and renaming fails: {error.strerror}", "see `dmesg`")
        return
    problems = [] if path.read_bytes() == b"new" else ["a file that was renamed over another shows the old one"]
    os.close(os.open(folder / "once", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        os.close(os.open(folder / "once", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        problems.append("a file can be created twice (O_EXCL does not hold)")
    except FileExistsError:
        pass
    lock = _lock_problem(folder / names.LOCK)
    if lock:
        problems.append(lock)
    if problems:
        yield Finding(
            _AREA, "fail", f"{root}: {'; '.join(problems)}", "keep runs on a file system with POSIX semantics"
        )
    else:
        yield Finding(
            _AREA, "ok", f"{root}: writing, fsync, rename, O_EXCL and locks work ({took * 1000:.0f} ms a file)"
        )
    if took > _SLOW_SYNC_S:
        yield Finding(_AREA, "warn", f"{root}: a small file takes {took:.1f} s to be safe", "is the server overloaded?")
    skew = path.stat().st_mtime - time.time()
    if abs(skew) > 5 + took:
        yield Finding(
            _AREA,
            "warn",
            f"the clock of the file system is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's",
            "look at the time service (chrony, ntp) on both",
        )


def _lock_problem(path: Path) -> str:
    """Whether a lock that is held keeps another out, as two attempts of one run would try it."""
    first, second = (os.open(path, os.O_CREAT | os.O_RDWR) for _ in range(2))
    try:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return ""
        return "a lock can be held twice (flock does not hold), so two attempts of a run would not notice each other"
    except OSError as error:
        return f"files cannot be locked: {error.strerror} (NFS: mount with locks)"
    finally:
        os.close(first)
        os.close(second)


def _seen_by_nodes(folder: Path) -> Iterator[Finding]:
    """Inside a job: whether each node sees what was written here."""
    nodelist, token = os.environ.get("SLURM_JOB_NODELIST", ""), secrets.token_hex(8)
    if not nodelist:
        return
    nodes = slurm.hostnames(nodelist)
    (folder / "seen").write_text(token)
    step = ["srun", "--overlap", f"--nodes={len(nodes)}", f"--ntasks={len(nodes)}", "--ntasks-per-node=1", "--label"]
    look = ["sh", "-c", 'echo "$SLURMD_NODENAME $(cat "$0")"', str(folder / "seen")]
    try:
        done = subprocess.run([*step, *look], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(_AREA, "warn", f"the nodes could not be asked what they see: {error}", "try `vit-dist preflight`")
        return
    seen = {line.split()[-2] for line in done.stdout.splitlines() if line.split()[-1:] == [token]}
    blind = [node for node in nodes if node not in seen]
    if blind:
        yield Finding(
            _AREA,
            "fail",
            f"{folder.parent}: not seen by {', '.join(blind[:8])} of {counted(len(nodes), 'node')}",
            "the run root must be on a file system that all nodes mount at the same place",
        )
    else:
        yield Finding(
            _AREA, "ok", f"all {counted(len(nodes), 'node')} of job {os.environ.get('SLURM_JOB_ID', '')} see it"
        )


def _shared(root: Path, subject: Subject) -> Iterator[Finding]:
    kind = file_system_kind(root)
    if kind in NEVER_SHARED | ONE_MACHINE and subject.cluster:
        yield Finding(
            _AREA,
            "warn",
            f"{root} is on {kind}, which only this machine sees, unless it is exported to others",
            "for jobs on other machines set run_root to a shared directory (NFS, Lustre, GPFS, FSx)",
        )
    elif kind:
        yield Finding(_AREA, "ok", f"{root} is on {kind}")


def _needed(subject: Subject) -> int:
    """Bytes that the recipe's checkpoints will take, where one was written already; else a fair amount."""
    if subject.recipe is None or subject.run_dir is None:
        return _SPACE_WANTED
    for path in committed(subject.run_dir / CHECKPOINTS):
        marker, problem = read_marker(path)
        if not problem:
            size: int = sum(entry["bytes"] for entry in marker["files"].values())
            return (subject.recipe.checkpoint.keep + 1) * size
    return _SPACE_WANTED


def _free_space(path: Path, what: str, wanted: int) -> Finding:
    free = shutil.disk_usage(path).free
    verdict = "fail" if free < min(wanted, _SPACE_NEEDED) else "warn" if free < wanted else "ok"
    advice = "" if verdict == "ok" else f"{format_bytes(wanted)} are wanted: clear some, or choose another place"
    return Finding(_AREA, verdict, f"{what} {path}: {format_bytes(free)} free", advice)  # type: ignore[arg-type]
