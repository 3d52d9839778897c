"""What a GPU must do, and where it is done: on the first GPU, or on the CPU that VIT_DIST_GPU_TESTS_ON=cpu names.

On a CPU they show that the tests themselves are right, and nothing of a GPU.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest
import torch

from vit_dist.core.world import World
from vit_dist.train.attempt import process_group

# Before CUDA is used: without it strict mode refuses cuBLAS.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tests run."""
    if os.environ.get("VIT_DIST_GPU_TESTS_ON") == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.skip(
            "NO GPU: what only a GPU shows was not tested (VIT_DIST_GPU_TESTS_ON=cpu tries these tests on a CPU)"
        )
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def one_rank(device: torch.device) -> Iterator[torch.device]:
    """A process group of this process alone; yields the device."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with process_group(World()) as chosen:
        assert chosen.type == device.type
        yield chosen
