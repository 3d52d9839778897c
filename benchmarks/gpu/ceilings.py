"""What the device can do at best: bf16 matrix products, copies inside its memory, copies from and to the host."""

from __future__ import annotations

import time

import torch

from benchmarks.gpu.kit import Kit

_BATCH_BYTES = 512 * 3 * 224 * 224
"""A batch of 512 uint8 images."""
_SNAPSHOT_BYTES = 8 << 30
"""About what a checkpoint of ViT-H copies to the host."""


def measure(kit: Kit) -> None:
    """Products and copies on any device; what goes over the bus on a GPU alone."""
    _products(kit)
    _copies(kit)
    if kit.gpu:
        _to_device(kit)
        _to_host(kit)


def _products(kit: Kit) -> None:
    # Random numbers: the power, and so the clock, of a product depends on its bits.
    side = 128 if kit.smoke else 8192
    a, b = (torch.randn(side, side, device=kit.device, dtype=torch.bfloat16) for _ in range(2))
    kit.seconds(lambda: a @ b, 3)
    kit.record("bf16 product", side=side, TFLOPs=2 * side**3 / kit.best(lambda: a @ b, 10) / 1e12)


def _copies(kit: Kit) -> None:
    source = torch.zeros(1 << (20 if kit.smoke else 30), dtype=torch.uint8, device=kit.device)
    target = torch.empty_like(source)
    # Each byte is read and written.
    kit.record("copy in memory", TBps=2 * source.nbytes / kit.best(lambda: target.copy_(source), 5) / 1e12)


def _to_device(kit: Kit) -> None:
    target = torch.empty(_BATCH_BYTES, dtype=torch.uint8, device=kit.device)
    for memory, pinned in (("pinned", True), ("pageable", False)):
        source = torch.zeros(_BATCH_BYTES, dtype=torch.uint8, pin_memory=pinned)
        spent = kit.best(lambda source=source: target.copy_(source, non_blocking=True), 5)
        kit.record(f"host to device, {memory}", GBps=source.nbytes / spent / 1e9)


def _to_host(kit: Kit) -> None:
    size = _SNAPSHOT_BYTES >> (6 if kit.smoke else 0)
    began = time.perf_counter()
    target = torch.empty(size, dtype=torch.uint8, pin_memory=True)
    spent = time.perf_counter() - began
    kit.record("pinning", GiB=size / 2**30, seconds=spent)
    source = torch.zeros(size // 2, dtype=torch.uint8, device=kit.device)
    spent = kit.best(lambda: target[: size // 2].copy_(source, non_blocking=True), 2)
    kit.record("device to host, pinned", GBps=source.nbytes / spent / 1e9)
