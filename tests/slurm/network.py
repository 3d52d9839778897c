"""Nodes in network namespaces of their own, joined by a bridge: a link can be cut. Root alone."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from tests.slurm.cluster import running_cluster

INTERFACE = "lan0"
"""What a node calls its end of the link."""


class Network:
    """A bridge with one namespace a node: n1 is 10.213.77.1, n2 is 10.213.77.2, the controller .254."""

    def __init__(self, nodes: Sequence[str]) -> None:
        self._tag = f"vd{os.getpid() % 100000}"  # names of interfaces have at most 15 characters
        self.addresses = {"": "10.213.77.254", **{n: f"10.213.77.{i + 1}" for i, n in enumerate(nodes)}}
        self.inside = {n: ["nsenter", f"--net=/run/netns/{self._tag}{n}"] for n in nodes}

    def up(self) -> None:
        """Make it."""
        _ip("link", "add", f"{self._tag}br", "type", "bridge")
        _ip("addr", "add", f"{self.addresses['']}/24", "dev", f"{self._tag}br")
        _ip("link", "set", f"{self._tag}br", "up")
        for node in self.inside:
            space, end = f"{self._tag}{node}", self._end(node)
            _ip("netns", "add", space)
            _ip("link", "add", end, "type", "veth", "peer", "name", INTERFACE, "netns", space)
            _ip("link", "set", end, "master", f"{self._tag}br", "up")
            _ip("-n", space, "addr", "add", f"{self.addresses[node]}/24", "dev", INTERFACE)
            _ip("-n", space, "link", "set", INTERFACE, "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def cut(self, node: str) -> None:
        """Nothing that a node sends arrives, and it hears nothing; nobody is told."""
        _ip("link", "set", self._end(node), "down")

    def mend(self, node: str) -> None:
        """The link works again."""
        _ip("link", "set", self._end(node), "up")

    def down(self) -> None:
        """Remove it."""
        for node in self.inside:
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("link", "del", self._end(node))
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", f"{self._tag}{node}")
        with contextlib.suppress(subprocess.CalledProcessError):
            _ip("link", "del", f"{self._tag}br")

    def _end(self, node: str) -> str:
        return f"{self._tag}v{node}"


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextlib.contextmanager
def networked_cluster(nodes: int = 3) -> Iterator[tuple[Any, Network]]:
    """A cluster whose nodes have networks of their own; the test is skipped without root or without `ip`."""
    if os.geteuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root, and the command `ip` (package iproute2)")
    network = Network([f"n{i + 1}" for i in range(nodes)])
    try:
        try:
            network.up()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.decode().strip()}")
        with running_cluster(
            nodes=nodes, slurmd_timeout=8, addresses=network.addresses, inside=network.inside
        ) as cluster:
            yield cluster, network
    finally:
        network.down()
