"""One rank's process of a preflight: tests itself, then its links to the others. Started by launcher/preflight/run.py.

It reports in lines on stdout, each `vit-dist-preflight {json}`, and takes commands, a JSON object a line, on stdin; so
nothing needs to work but the launcher's pipes. A thread sends a heartbeat every second: that of a rank that waits in a
collective keeps coming, that of one that is stopped, dead or cut off does not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from launcher.slurm.addresses import node_address
from vit_dist.core.errors import ConfigError
from vit_dist.core.network import free_port, listen, own_address
from vit_dist.core.process import heavy_imports
from vit_dist.core.world import gpu_of

MARK = "vit-dist-preflight "
_BEAT_S = 1.0
_LINK_S = 5.0
_GEMM_S = 0.4
_lock = threading.Lock()


def main(argv: Sequence[str] | None = None) -> int:
    """Report, then run commands until the one to end."""
    parser = argparse.ArgumentParser("preflight")
    parser.add_argument("--reads", default="[]", help="JSON: [[url, bytes], ...] of shards to read from")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds after which this process ends itself")
    parser.add_argument("--shm-bytes", type=int, default=64 << 20)
    args = parser.parse_args(argv)
    # SIGALRM ends the process even where Python itself hangs in a driver's call that can be interrupted.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(max(1, round(args.timeout)))
    rank = int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))
    local_rank = int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))
    me = _Rank(rank, local_rank)
    me.send("hello", host=socket.gethostname(), boot=_boot_id(), cpus=len(os.sched_getaffinity(0)))
    threading.Thread(target=me.heartbeat, daemon=True).start()
    listener = _listen()
    me.test("shm", lambda: _shared_memory(args.shm_bytes))
    reads = [(str(url), int(size)) for url, size in json.loads(args.reads)]
    if reads and local_rank == 0:
        me.test("reads", lambda: _read(reads))
    me.test("device", lambda: _device(local_rank))
    me.test("gemm", lambda: _gemm(local_rank))
    me.send("ready", address=_address(), port=listener.getsockname()[1], store_port=free_port())
    for command in _commands():
        if command["do"] == "end":
            break
        if rank in command["ranks"]:
            _execute(me, command)
    me.send("bye")
    sys.stdout.flush()
    # Without clean-up: torch's threads may still wait for a rank that does not answer.
    os._exit(0)


class _Rank:
    """Reports for this rank."""

    def __init__(self, rank: int, local_rank: int) -> None:
        self.rank, self.local_rank = rank, local_rank
        self.node = os.environ.get("VIT_DIST_NODE") or os.environ.get("SLURMD_NODENAME") or socket.gethostname()

    def send(self, what: str, **facts: Any) -> None:
        """Write one line."""
        message = {"what": what, "rank": self.rank, "node": self.node, "pid": os.getpid(), "wall": time.time(), **facts}
        with _lock:
            # One write: lines of ranks that share a pipe must not mix.
            os.write(1, f"{MARK}{json.dumps(message)}\n".encode())

    def heartbeat(self) -> None:
        """Report every second that this process runs."""
        while True:
            time.sleep(_BEAT_S)
            try:
                self.send("alive")
            except OSError:
                # The launcher has closed its end of the pipe: nobody will ever end this process but itself.
                os._exit(1)

    def test(self, what: str, work: Any) -> None:
        """Report what a test finds, or that it failed."""
        self.send("begin", test=what)
        try:
            facts = work()
        # Whatever a sick node raises is a finding.
        except Exception as error:
            self.send("failed", test=what, error=f"{type(error).__name__}: {error}"[:400])
        else:
            self.send("found", test=what, **facts)


def _commands() -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        with contextlib.suppress(ValueError):
            yield json.loads(line)


def _execute(me: _Rank, command: dict[str, Any]) -> None:
    if command["do"] == "reach":
        me.test("reach", lambda: _reach(command["peers"][me.node]))
    elif command["do"] == "reduce":
        if command.get("same_host"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        me.test("reduce", lambda: _reduce(me, command))


def _boot_id() -> str:
    """Names the running kernel: two "nodes" with the same one are one machine."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def _address() -> str:
    """This machine's address towards others, or its name where no route leads out."""
    with contextlib.suppress(ConfigError):
        return own_address() or node_address(os.environ.get("SLURMD_NODENAME") or socket.gethostname())
    return "127.0.0.1"


def _listen() -> socket.socket:
    listener = listen(backlog=256)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            with contextlib.suppress(OSError), connection:
                connection.sendall(b"here")

    threading.Thread(target=accept, daemon=True).start()
    return listener


def _shared_memory(num_bytes: int) -> dict[str, Any]:
    """Free bytes of /dev/shm, and how fast it is written and read."""
    root = Path("/dev/shm")  # noqa: S108 - it is what is tested
    status = os.statvfs(root)
    free = status.f_bavail * status.f_frsize
    size = min(num_bytes, free // 2)
    path, content = root / f"vit-dist-preflight-{os.getpid()}", os.urandom(1 << 20)
    began = time.perf_counter()
    try:
        with path.open("wb", buffering=0) as file:
            for _ in range(max(1, size >> 20)):
                file.write(content)
        with path.open("rb", buffering=0) as file:
            while part := file.read(1 << 20):
                if part != content[: len(part)]:
                    raise OSError("what was written to /dev/shm is not what is read from it")
    finally:
        path.unlink(missing_ok=True)
    return {"free": free, "rate": 2 * max(1 << 20, size) / (time.perf_counter() - began)}


def _read(files: Sequence[tuple[str, int]]) -> dict[str, Any]:
    from vit_dist.data.readrate import measure

    rate = measure(files, seconds=1.5)
    if rate.error:
        raise OSError(str(rate.error))
    return {"rate": rate.bytes_per_s, "first_s": rate.first_s}


def _device(local_rank: int) -> dict[str, Any]:
    with heavy_imports():
        import torch

    if not torch.cuda.is_available():
        return {"device": "cpu", "torch": torch.__version__}
    index = gpu_of(local_rank, torch.cuda.device_count())
    torch.cuda.set_device(index)
    properties = torch.cuda.get_device_properties(index)
    return {"device": f"{properties.name} #{index}", "torch": torch.__version__, "memory": properties.total_memory}


def _gemm(local_rank: int) -> dict[str, Any]:
    """FLOP/s of a matrix product, which is also checked: whole numbers, so that every sum is exact in fp32."""
    import torch

    gpu = torch.cuda.is_available()
    device = torch.device("cuda", gpu_of(local_rank, torch.cuda.device_count())) if gpu else torch.device("cpu")
    size, dtype = (8192, torch.bfloat16) if gpu else (768, torch.float32)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(-2, 3, (size, size), generator=generator).to(device, dtype) for _ in range(2))
    # Freivalds' check: (A B) x = A (B x), in whole numbers that double precision holds.
    x = torch.randint(-4, 5, (size, 1), generator=generator).to(device, torch.float64)
    expected = a.double() @ (b.double() @ x)
    product = a @ b
    # bf16 rounds the product; its inputs are exact, so a product in fp32 is too.
    if gpu:
        checked = a.float() @ b.float()
        torch.cuda.synchronize()
    else:
        checked = product
    wrong = int((checked.double() @ x != expected).sum())
    if wrong:
        raise ArithmeticError(f"{wrong} of {size} rows of a matrix product are wrong")
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _GEMM_S:
        for _ in range(4):
            torch.mm(a, b, out=product)
        if gpu:
            torch.cuda.synchronize()
        count += 4
    return {"rate": 2 * size**3 * count / (time.perf_counter() - began)}


def _reach(peers: dict[str, list[Any]]) -> dict[str, Any]:
    """Which of the other nodes do not answer a connection."""

    def probe(peer: tuple[str, list[Any]]) -> str:
        node, (host, port) = peer
        try:
            with socket.create_connection((host, int(port)), timeout=_LINK_S) as connection:
                connection.settimeout(_LINK_S)
                return "" if connection.recv(4) == b"here" else node
        except OSError:
            return node

    with ThreadPoolExecutor(32) as pool:
        return {"unreachable": sorted(node for node in pool.map(probe, peers.items()) if node)}


def _reduce(me: _Rank, command: dict[str, Any]) -> dict[str, Any]:
    """Rate of an all-reduce over the ranks of the command, checked; then of exchanges with one node after another."""
    import torch
    from torch import distributed
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    ranks: list[int] = command["ranks"]
    place, size, gpu = ranks.index(me.rank), len(ranks), torch.cuda.is_available()
    limit = timedelta(seconds=float(command["timeout"]))
    store = TCPStore(str(command["address"]), int(command["port"]), size, place == 0, timeout=limit)
    distributed.init_process_group("nccl" if gpu else "gloo", store=store, rank=place, world_size=size, timeout=limit)
    me.send("joined")
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    values = torch.empty((256 << 20 if gpu else 4 << 20) // 4, device=device)
    rate = 0.0
    for turn in range(5 if gpu else 3):
        values.fill_(float(place + 1))
        distributed.barrier()
        _finish(gpu)
        began = time.perf_counter()
        distributed.all_reduce(values)
        _finish(gpu)
        seconds = time.perf_counter() - began
        # The first one opens connections.
        if turn:
            rate = max(rate, 2 * (size - 1) / size * values.nbytes / seconds)
        if not bool((values == size * (size + 1) / 2).all()):
            raise ArithmeticError("the sum over all ranks is wrong")
    pairs = _exchange(command, me, values, gpu)
    distributed.barrier()
    distributed.destroy_process_group()
    return {"rate": rate, "pairs": pairs}


def _exchange(command: dict[str, Any], me: _Rank, values: Any, gpu: bool) -> list[list[Any]]:
    """[node, bytes per second both ways] for each round of pairs; every rank takes part in every barrier."""
    from torch import distributed

    place_of = {rank: place for place, rank in enumerate(command["ranks"])}
    received, pairs = values.clone(), []
    for partners in command["rounds"]:
        peer = partners.get(str(me.rank))
        distributed.barrier()
        if peer is None:
            continue
        other = place_of[peer[1]]
        work = [
            distributed.P2POp(distributed.isend, values, other),
            distributed.P2POp(distributed.irecv, received, other),
        ]
        for timed in (False, True):
            _finish(gpu)
            began = time.perf_counter()
            for request in distributed.batch_isend_irecv(work):
                request.wait()
            _finish(gpu)
            if timed:
                pairs.append([peer[0], 2 * values.nbytes / (time.perf_counter() - began)])
    return pairs


def _finish(gpu: bool) -> None:
    if gpu:
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    sys.exit(main())
