"""The doctor's checks of this machine: packages, limits, memory, GPUs. Torch's files are read, it is not imported."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from launcher.doctor.finding import Finding, Subject
from vit_dist import __version__
from vit_dist.core.devices import device_of
from vit_dist.core.process import code_root
from vit_dist.core.units import counted, format_bytes

_OLDEST_DRIVER = {11: 450, 12: 525, 13: 580}
"""By CUDA's major version: the oldest NVIDIA driver that runs it (CUDA Compatibility, NVIDIA's documentation)."""
_FILES_WANTED = 4096
_SHM_WANTED = 1 << 30


def environment(_subject: Subject) -> Iterator[Finding]:
    """Python and the packages against the bounds that were tested."""
    area = "Environment"
    python = platform.python_version()
    old = sys.version_info < (3, 11)
    yield Finding(
        area,
        "fail" if old else "ok",
        f"vit_dist {__version__} on Python {python} ({sys.executable}), {platform.system()} {platform.release()}",
        "Python 3.11 or newer is needed" if old else "",
    )
    wrong, missing, right = [], [], 0
    for requirement in _requirements():
        try:
            installed = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        # `2.14.1+cu130` satisfies `==2.14.1`
        if requirement.specifier.contains(installed.partition("+")[0], prereleases=True):
            right += 1
        else:
            wrong.append(f"{requirement.name} {installed} (tested: {requirement.specifier})")
    install = "pip install -r requirements.txt"
    if missing:
        yield Finding(area, "fail", f"not installed: {', '.join(missing)}", install)
    if wrong:
        yield Finding(area, "warn", f"outside the tested bounds: {'; '.join(wrong)}", install)
    if right:
        yield Finding(area, "ok", f"{counted(right, 'package')} within the tested bounds")


def _requirements() -> list[Requirement]:
    """What requirements.txt asks for; of an installed package, what its metadata says."""
    path = code_root() / "requirements.txt"
    if path.is_file():
        texts = [line.partition("#")[0].strip() for line in path.read_text().splitlines()]
    else:
        texts = importlib.metadata.requires("vit_dist") or []
    found = [Requirement(text) for text in texts if text]
    return [r for r in found if r.marker is None or r.marker.evaluate({"extra": ""})]


def machine(_subject: Subject) -> Iterator[Finding]:
    """Cores, memory, shared memory and limits of this process."""
    area = "Machine"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding(
        area, "ok", f"{platform.node()}: {counted(cores, 'CPU')} for this process, {format_bytes(memory)} of memory"
    )
    shm = Path("/dev/shm")  # noqa: S108 - it is what is looked at
    if shm.is_dir():
        free = shutil.disk_usage(shm).free
        small = free < _SHM_WANTED
        yield Finding(
            area,
            "warn" if small else "ok",
            f"{format_bytes(free)} free in /dev/shm",
            "NCCL puts its buffers there: clear it; in a container give --shm-size or --ipc=host" if small else "",
        )
    else:
        yield Finding(area, "warn", "there is no /dev/shm", "NCCL wants one: mount a tmpfs there")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < _FILES_WANTED
    yield Finding(
        area,
        "warn" if few else "ok",
        f"open files: {_limit(soft)} (hard limit {_limit(hard)})",
        f"`ulimit -n {_FILES_WANTED}` in the cluster's `setup` lines: shards, connections and ranks all take some"
        if few
        else "",
    )
    fabric = sorted(p.name for p in Path("/sys/class/infiniband").glob("*"))
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if fabric and locked != resource.RLIM_INFINITY:
        yield Finding(
            area,
            "warn",
            f"locked memory is limited to {format_bytes(locked)}, beside the fabric {', '.join(fabric)}",
            "RDMA needs `ulimit -l unlimited`: set it for slurmd (LimitMEMLOCK=infinity)",
        )
    elif fabric:
        yield Finding(area, "ok", f"fabric: {', '.join(fabric)}")


def _limit(value: int) -> str:
    return "unlimited" if value == resource.RLIM_INFINITY else f"{value:,}"


def gpus(subject: Subject) -> Iterator[Finding]:
    """GPUs, their driver, and whether the installed torch and NCCL fit them."""
    area, built = "GPUs", _torch_cuda()
    smi = shutil.which("nvidia-smi")
    wanted = subject.cluster.devices_per_node if subject.cluster else 0
    if smi is None:
        elsewhere = f"; the nodes of {subject.cluster.name} have {wanted}" if subject.cluster and wanted else ""
        yield Finding(area, "ok", f"no NVIDIA driver here: this machine trains on its CPUs, with gloo{elsewhere}")
    else:
        yield from _nvidia(smi, wanted, built)
    if built:
        nccl = _version("nvidia-nccl-cu13") or _version("nvidia-nccl-cu12")
        yield Finding(area, "ok", f"torch is built for CUDA {built}, NCCL {nccl or 'as torch brings it'}")
    elif wanted or smi:
        yield Finding(
            area,
            "fail" if smi else "warn",
            "the installed torch is built for CPUs alone",
            "install the CUDA build (https://pytorch.org/get-started/locally) where the nodes have GPUs",
        )


def _nvidia(smi: str, wanted: int, built: str) -> Iterator[Finding]:
    area = "GPUs"
    query = "--query-gpu=name,driver_version,memory.total,ecc.errors.uncorrected.volatile.total"
    try:
        done = subprocess.run(
            [smi, query, "--format=csv,noheader,nounits"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        yield Finding(
            area, "fail", f"nvidia-smi gives no answer: {error}", "the driver is sick: reboot, or ask the site"
        )
        return
    rows = [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.count(",") == 3]
    if done.returncode or not rows:
        message = (done.stderr or done.stdout).strip()[:200]
        yield Finding(
            area, "fail", f"nvidia-smi finds no GPU: {message}", "load the driver, or ask for GPUs in the job"
        )
        return
    kinds = sorted({f"{name} ({_gib(memory)}, {_peak(name)})" for name, _, memory, _ in rows})
    few = len(rows) < wanted
    yield Finding(
        area,
        "warn" if few else "ok",
        f"{len(rows)} x {', '.join(kinds)}, driver {rows[0][1]}",
        f"the cluster file says {wanted} a node (devices_per_node)" if few else "",
    )
    broken = [str(i) for i, row in enumerate(rows) if row[3].isdigit() and int(row[3])]
    if broken:
        yield Finding(
            area, "fail", f"uncorrected memory errors on GPU {', '.join(broken)}", "reset the GPU, or drain the node"
        )
    major, oldest = rows[0][1].partition(".")[0], _OLDEST_DRIVER.get(int(built.partition(".")[0] or 0), 0)
    if major.isdigit() and int(major) < oldest:
        yield Finding(
            area, "fail", f"driver {rows[0][1]} is too old for CUDA {built}", f"driver {oldest} or newer is needed"
        )


def _gib(mebibytes: str) -> str:
    return f"{int(mebibytes) // 1024 if mebibytes.isdigit() else '?'} GiB"


def _peak(name: str) -> str:
    device = device_of(name)
    peak = None if device is None else device.peak("bf16")
    return "peak not known: no MFU is told" if peak is None else f"peak {peak / 1e12:g} TFLOP/s"


def _torch_cuda() -> str:
    """The CUDA version that torch is built for, or ''; read from its file, since an import takes seconds."""
    spec = find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    path = Path(spec.submodule_search_locations[0]) / "version.py"
    found = re.search(r"^cuda\b[^=\n]*=\s*'([^']+)'", path.read_text() if path.is_file() else "", re.MULTILINE)
    return found[1] if found else ""


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
