"""Which of how many processes this is. The environment is read here and nowhere above."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from vit_dist.core.errors import ConfigError
from vit_dist.core.units import nearest_multiples

_OF_A_RANK = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"}
    | {"ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID"}
)


@dataclass(frozen=True)
class World:
    """Rank of this process among `size`, and its place on its node."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    node: str = "localhost"

    @property
    def is_main(self) -> bool:
        """True on rank 0, which writes logs and prints."""
        return self.rank == 0

    def rank_batch(self, global_batch: int) -> int:
        """Examples of a global batch that one rank owns.

        Raises:
            ConfigError: the ranks do not divide the batch.
        """
        if global_batch % self.size:
            shown = nearest_multiples(global_batch, self.size)
            raise ConfigError(
                f"global_batch={global_batch} is not divisible by {self.size} ranks; nearest that are: {shown}; "
                f"change global_batch or the number of processes"
            )
        return global_batch // self.size


def launched_world(environ: Mapping[str, str] | None = None) -> World | None:
    """The world a launcher has put this process in, or None where it was started by hand.

    RANK and WORLD_SIZE (torchrun, our own launcher) win over an `srun` step's SLURM_* variables.

    Raises:
        ConfigError: the variables contradict each other.
    """
    env = os.environ if environ is None else environ
    if "RANK" in env and "WORLD_SIZE" in env:
        rank, size, local = env["RANK"], env["WORLD_SIZE"], env.get("LOCAL_RANK", "0")
    elif "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        rank, size = env["SLURM_PROCID"], env.get("SLURM_STEP_NUM_TASKS", env.get("SLURM_NTASKS", "1"))
        local = env.get("SLURM_LOCALID", "0")
    else:
        return None
    try:
        world = World(int(rank), int(size), int(local), env.get("SLURMD_NODENAME", socket.gethostname()))
    except ValueError:
        raise ConfigError(f"the launcher's variables are not numbers: rank {rank!r}, world size {size!r}") from None
    if not 0 <= world.rank < world.size:
        raise ConfigError(f"rank {world.rank} is outside a world of {world.size}; check RANK and WORLD_SIZE")
    return world


def world_or_ranks(nproc: int | None, environ: Mapping[str, str] | None = None) -> tuple[World | None, int]:
    """Whether this process is a rank, and else how many ranks it is to start on this machine.

    A world of one, as in a shell on a compute node (`srun --pty bash`) or in a container that sets RANK and WORLD_SIZE,
    does not keep `--nproc` from starting ranks: they form a world of their own.

    Args:
        nproc: as asked for; None: not at all.
        environ: of this process.

    Returns:
        (its world, ranks in it) or (None, ranks to start).

    Raises:
        ConfigError: no number of ranks, or another one than a launcher has started.
    """
    if nproc is not None and nproc < 1:
        raise ConfigError(f"--nproc={nproc}: at least one rank is needed")
    world = launched_world(environ)
    if world is None or (world.size == 1 and (nproc or 1) > 1):
        return None, nproc or 1
    if nproc not in (None, world.size):
        raise ConfigError(
            f"--nproc={nproc}, but a launcher has started {world.size} ranks already "
            f"({_started_by(os.environ if environ is None else environ)}); leave it out"
        )
    return world, world.size


def starts_ranks(verb: str, nproc: int, environ: Mapping[str, str] | None = None) -> None:
    """Refuse to start ranks in a process that is itself one of several; a world of one is fine.

    Raises:
        ConfigError: it is, or no number of ranks is asked for.
    """
    if nproc < 1:
        raise ConfigError(f"--nproc={nproc}: at least one rank is needed")
    world = launched_world(environ)
    if world is not None and world.size > 1:
        raise ConfigError(
            f"`vit-dist {verb}` starts the ranks itself, but a launcher has started this process as one of "
            f"{world.size} ({_started_by(os.environ if environ is None else environ)}); start it once, or use "
            f"`vit-dist train` there"
        )


def without_world(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for a process that begins a world of its own: nothing of the one around it gets through."""
    # torchrun's agent keeps a store that ranks of another world must not wait for.
    return {k: v for k, v in environ.items() if k not in _OF_A_RANK and not k.startswith("TORCHELASTIC_")}


def _started_by(env: Mapping[str, str]) -> str:
    return "RANK, WORLD_SIZE" if "RANK" in env and "WORLD_SIZE" in env else "SLURM_PROCID, SLURM_STEP_NUM_TASKS"


def rendezvous(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """MASTER_ADDR and MASTER_PORT for the process group: given, or derived from a SLURM job.

    Raises:
        ConfigError: neither given nor derivable.
    """
    env = os.environ if environ is None else environ
    if "MASTER_ADDR" in env and "MASTER_PORT" in env:
        return {"MASTER_ADDR": env["MASTER_ADDR"], "MASTER_PORT": env["MASTER_PORT"]}
    if "SLURM_JOB_ID" in env:
        nodes = env.get("SLURM_STEP_NODELIST", env.get("SLURM_JOB_NODELIST", ""))
        step = env.get("SLURM_STEP_ID", "0")
        port = 20000 + (int(env["SLURM_JOB_ID"]) * 16 + (int(step) if step.isdigit() else 0)) % 10000
        return {"MASTER_ADDR": first_host(nodes), "MASTER_PORT": str(port)}
    raise ConfigError("MASTER_ADDR and MASTER_PORT are not set; start through `vit-dist train --nproc N` or `srun`")


def rank_cpus(environ: Mapping[str, str] | None = None) -> int:
    """How many CPUs this rank may keep busy, at least 1.

    The CPUs that the process may run on, or VIT_DIST_CPUS, which is set where several runs share a machine; divided by
    LOCAL_WORLD_SIZE, since ranks of torchrun and of our own launcher share them. In an `srun` step SLURM_CPUS_PER_TASK
    are the task's own, whether it is bound to them or not; without it the tasks of a node share what they see.
    """
    env = os.environ if environ is None else environ
    seen = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cpus = _number(env, "VIT_DIST_CPUS") or seen
    sharing = _number(env, "LOCAL_WORLD_SIZE")
    if sharing is None and "SLURM_STEP_ID" in env and "SLURM_PROCID" in env:
        own = _number(env, "SLURM_CPUS_PER_TASK")
        if own is not None:
            return min(cpus, own)
        sharing = _slurm_tasks(env)
    return max(1, cpus // (sharing or 1))


def gpu_of(local_rank: int, gpus: int, environ: Mapping[str, str] | None = None) -> int:
    """The GPU of this rank among those that it sees: the only one, where it sees one alone, else the one of its number.

    Raises:
        ConfigError: there are several, but fewer than ranks on this node.
    """
    if gpus <= 1:
        return 0
    env = os.environ if environ is None else environ
    tasks = max(local_rank + 1, _number(env, "LOCAL_WORLD_SIZE") or _slurm_tasks(env) or 1)
    if tasks > gpus:
        raise ConfigError(
            f"{tasks} ranks on this node share {gpus} GPUs, and NCCL wants one for each: start {gpus} ranks a node "
            f"(--nproc, --ntasks-per-node, tasks_per_node of the cluster file), or let each see the one that is its own"
        )
    return local_rank


def _slurm_tasks(env: Mapping[str, str]) -> int | None:
    return _number(env, "SLURM_STEP_TASKS_PER_NODE") or _number(env, "SLURM_NTASKS_PER_NODE")


def _number(env: Mapping[str, str], name: str) -> int | None:
    """The greatest of the counts of a variable such as '8' or SLURM's '2(x3),1'; None where there is none above 0."""
    counts = re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", env.get(name, ""))
    return max(map(int, counts), default=0) or None


def array_element(environ: Mapping[str, str] | None = None) -> int | None:
    """The number of this element of a SLURM job array, or None outside of one."""
    text = (os.environ if environ is None else environ).get("SLURM_ARRAY_TASK_ID", "")
    return int(text) if text.isdigit() else None


def first_host(nodelist: str) -> str:
    """The first name of a SLURM node list: 'gpu[003-007,9]' -> 'gpu003', 'a1,b2' -> 'a1', 'r[1-2]n[4,7]' -> 'r1n4'."""
    # Up to the first comma that is in no bracket; of each bracket its first number.
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodelist.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0] if first else "") or "127.0.0.1"
