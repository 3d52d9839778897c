"""How the ranks of an attempt come together: the device of each, the store they meet at, and two process groups.

Tensors go over the default group, which DeepSpeed and DDP use too: NCCL where there are GPUs, gloo else. Objects and
flags go over a gloo group of their own (engines/_collectives.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from launcher.slurm.addresses import node_address
from vit_dist.core.errors import RunError
from vit_dist.core.log import log
from vit_dist.core.process import ended_by_stop_signals
from vit_dist.core.units import format_seconds
from vit_dist.core.world import World, gpu_of, rendezvous
from vit_dist.engines._collectives import message_group
from vit_dist.train.health import flight_recorder
from vit_dist.train.health.patience import DEFAULT, Patience

_POLL_S = 0.2
# To connect to a store that listens, and to ask it.
_STORE_S = timedelta(seconds=60)
_SHOWN = 8


@contextlib.contextmanager
def process_group(world: World, patience: Patience = DEFAULT, stacks: Path | None = None) -> Iterator[torch.device]:
    """Join the other ranks. Yields this rank's device. A collective.

    Args:
        world: this rank's place.
        patience: its time-outs.
        stacks: where the flight recorder writes; None: nowhere.

    Until it stands a stop signal ends the process at once: there is no run yet that could save.

    Raises:
        ConfigError: more ranks than GPUs on this node, or the node of rank 0 has no address here.
        RunError: ranks did not come in time, or several came with one GPU.
    """

    def say(name: str) -> None:
        log(
            f"rank {world.rank} of {world.size}: {name} before all ranks had come together: it ends; nothing has begun "
            f"that could be saved"
        )

    with contextlib.ExitStack() as stack:
        with ended_by_stop_signals(say):
            device = stack.enter_context(_joined(world, patience, stacks))
        yield device


@contextlib.contextmanager
def _joined(world: World, patience: Patience, stacks: Path | None) -> Iterator[torch.device]:
    gpu = torch.cuda.is_available()
    device = torch.device("cuda", gpu_of(world.local_rank, torch.cuda.device_count())) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    # DeepSpeed takes its device from LOCAL_RANK. Where a task sees one GPU alone that is device 0 on every rank.
    local_rank = world.local_rank if device.index is None else device.index
    address = rendezvous()
    # A name that leads nowhere would be tried for minutes.
    address["MASTER_ADDR"] = node_address(address["MASTER_ADDR"])
    os.environ.update(address, RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(local_rank))
    flight_recorder.configure(stacks, patience)
    store = join(world, address["MASTER_ADDR"], int(address["MASTER_PORT"]), patience.join_s, gpu=_identity(device))
    # What is asked of it from here on waits for ranks that are at work.
    store.set_timeout(patience.collective)
    # With its device NCCL connects now, in place of in the first step, and groups that are made of this one are split
    # from it.
    torch.distributed.init_process_group(
        "nccl" if gpu else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=patience.collective,
        device_id=device if gpu else None,
    )
    try:
        with message_group(world, patience.collective):
            yield device
    finally:
        torch.distributed.destroy_process_group()


def limit_collectives(patience: Patience) -> None:
    """Give every process group the attempt's time-out: DeepSpeed makes some, with torch's default."""
    c10d = torch.distributed.distributed_c10d
    # Public only since torch 2.14.
    set_timeout = getattr(torch.distributed, "set_timeout", None) or c10d._set_pg_timeout
    for group in list(c10d._world.pg_map):
        set_timeout(patience.collective, group)


def join(world: World, host: str, port: int, limit_s: float, *, gpu: str = "") -> Any:
    """Meet the other ranks at rank 0's store. Returns the store. A collective.

    Args:
        world: this rank's place.
        host: of rank 0.
        port: where its store listens.
        limit_s: so long all ranks together have.
        gpu: names this rank's GPU, the same for no two of them; '': there is none.

    Raises:
        RunError: ranks did not come in time (says which), or came with a GPU that another has.
    """
    deadline = time.monotonic() + limit_s
    store = _open_store(world, host, port, limit_s, deadline)
    try:
        store.set(f"came/{world.rank}", gpu)
        verdict = (
            _judge(world, host, port, store, limit_s, deadline) if world.is_main else _hear(world, store, deadline)
        )
        if verdict is None:
            verdict = _not_all(world, host, port, limit_s, _missing(store, world))
    except RuntimeError as error:
        raise RunError(f"rank {world.rank}: rank 0's store at {host}:{port} is gone: {error}") from None
    if verdict:
        raise RunError(verdict)
    return store


def _open_store(world: World, host: str, port: int, limit_s: float, deadline: float) -> Any:
    # torchrun's agent has one already, and lets its ranks use it.
    serves = world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    # Tried here, in Python: torch's own waiting prints C++ stacks, and hears no signal.
    while not serves and not _listens(host, port):
        if time.monotonic() >= deadline:
            raise RunError(
                f"rank {world.rank} of {world.size}: rank 0 did not come to {host}:{port} within "
                f"{format_seconds(limit_s)}. Look at what rank 0 logs; see that this node reaches that address "
                f"(MASTER_ADDR, MASTER_PORT), and that all {world.size} ranks were started"
            )
        time.sleep(_POLL_S)
    try:
        store = TCPStore(host, port, is_master=serves, timeout=_STORE_S, wait_for_workers=False, multi_tenant=True)
    except RuntimeError as error:
        raise RunError(
            f"rank {world.rank}: no store at {host}:{port}: {str(error).splitlines()[0]}. Give a free MASTER_PORT, and "
            f"as MASTER_ADDR an address of the node of rank 0"
        ) from None
    # torchrun's store outlives its ranks: those that it starts again must not meet the ones before them.
    return PrefixStore(f"restart_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _listens(host: str, port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection((host, port), timeout=5.0):
        return True
    return False


def _judge(world: World, host: str, port: int, store: Any, limit_s: float, deadline: float) -> str:
    """On rank 0: what all ranks are to hear once they have come, or once their time is up; '' where all is well."""
    waiting = _missing(store, world)
    while waiting and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        waiting = [rank for rank in waiting if not store.check([f"came/{rank}"])]
    verdict = _not_all(world, host, port, limit_s, waiting) if waiting else _shared_gpu(store, world)
    store.set("verdict", verdict)
    # The store ends with this process: those that came get to hear it.
    if verdict:
        heard = [f"heard/{rank}" for rank in range(1, world.size) if rank not in waiting]
        with contextlib.suppress(RuntimeError):
            store.wait(heard, timedelta(seconds=5))
    return verdict


def _hear(world: World, store: Any, deadline: float) -> str | None:
    """On the other ranks: what rank 0 says of all; None where it says nothing in time."""
    # A little longer than rank 0 itself waits.
    while not store.check(["verdict"]):
        if time.monotonic() >= deadline + 5.0:
            return None
        time.sleep(_POLL_S)
    verdict = store.get("verdict").decode()
    store.set(f"heard/{world.rank}", "")
    return str(verdict)


def _missing(store: Any, world: World) -> list[int]:
    return [rank for rank in range(world.size) if not store.check([f"came/{rank}"])]


def _not_all(world: World, host: str, port: int, limit_s: float, missing: list[int]) -> str:
    shown = ", ".join(map(str, missing[:_SHOWN])) + (", ..." if len(missing) > _SHOWN else "")
    return (
        f"{world.size - len(missing)} of {world.size} ranks came to {host}:{port} within {format_seconds(limit_s)}; "
        f"missing: {shown}. Look at what those log; see that they were started, with this MASTER_ADDR and MASTER_PORT, "
        f"and that their nodes reach that address"
    )


def _identity(device: torch.device) -> str:
    """Names a GPU among all of the job's; '' for a CPU."""
    if device.type != "cuda":
        return ""
    properties = torch.cuda.get_device_properties(device)
    # torch has it since 2.4; without it nothing is compared.
    uuid = getattr(properties, "uuid", "")
    return f"{properties.name} {uuid} of {socket.gethostname()}" if uuid else ""


def _shared_gpu(store: Any, world: World) -> str:
    """Ranks that came with one and the same GPU, in words; '' where there are none."""
    by_gpu: dict[str, list[int]] = {}
    for rank, gpu in enumerate(store.multi_get([f"came/{rank}" for rank in range(world.size)])):
        by_gpu.setdefault(gpu.decode(), []).append(rank)
    shared = next(((gpu, ranks) for gpu, ranks in by_gpu.items() if gpu and len(ranks) > 1), None)
    if shared is None:
        return ""
    gpu, ranks = shared
    return (
        f"ranks {ranks[:_SHOWN]} have come with one GPU ({gpu}), and NCCL wants one for each rank: start as many ranks "
        f"a node as it has GPUs (--nproc, --ntasks-per-node)"
    )
