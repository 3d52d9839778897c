"""Batches on their way to a GPU: what arrives is what was decoded, and mixes to the same bits as on the CPU."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch

from tests.streams import recipe
from vit_dist.config.schema import LossConfig, MixupConfig
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.data.mixup import draw_mix, mix_images, mix_targets
from vit_dist.data.sets import open_training_set
from vit_dist.data.shared_memory import Layout, SharedMemory
from vit_dist.data.stream import TrainStream
from vit_dist.train.feed import Feed
from vit_dist.train.losses import make_targets

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("workers", [0, 2], ids=["threads", "processes"])
def test_pinned_batches_arrive_whole_through_a_hundred_overlapping_copies(
    device: torch.device, small_set: str, workers: int
) -> None:
    # Processes write into memory that torch has not allocated: only the ring's events keep it from being written early.
    config = recipe(small_set, "global_batch=64", "data.lanes=4", f"data.decode_workers={workers}")
    busy = torch.randn(1024 if device.type == "cuda" else 64, device=device).unsqueeze(0).T
    weights = torch.arange(64 * 3 * 28 * 28, dtype=torch.int64, device=device) % 1009
    expected, arrived = [], []
    feed = Feed(config, 16, device)
    with TrainStream(open_training_set(config), config, World(), 0, reuse=True, at_once=bool(workers)) as stream:
        for batch, _ in itertools.islice(stream, 100):
            assert batch.images.is_pinned() == batch.labels.is_pinned() == (device.type == "cuda")
            expected.append(int((batch.images.flatten().long() * weights.cpu()).sum()))
            # The device has work to do first, so that it reads what was copied long after the host has gone on; the
            # buffer is written again as soon as the copies are done.
            for _ in range(20):
                busy = (busy @ busy.T @ busy).clamp(-1, 1)
            images = [images.clone() for images, _ in feed.micro_batches(batch)]
            arrived.append((torch.cat(images).flatten().long() * weights).sum())
    assert torch.stack(arrived).tolist() == expected
    assert len(set(expected)) > 90


def test_a_refusal_to_pin_is_not_taken_for_an_error_of_the_next_kernel(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("a CPU pins nothing")
    memory = SharedMemory(Layout(1, 2, 2, 28, 1))
    memory.pin()
    with pytest.raises(ConfigError, match=r"cannot be pinned for the GPU \(cudaHostRegister: error"):
        memory.pin()
    assert int(torch.ones(3, device=device).sum()) == 3
    memory.release()


@pytest.mark.parametrize("settings", [{"alpha": 0.8}, {"cutmix_alpha": 1.0}, {"alpha": 0.8, "cutmix_alpha": 1.0}])
def test_mixing_on_the_device_gives_the_bits_of_the_cpu(device: torch.device, settings: dict[str, float]) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 56, 56), dtype=torch.uint8, generator=draw)
    targets = torch.rand(32, 10, generator=draw)
    mixes = [draw_mix(MixupConfig(**settings), 7, position, 56) for position in range(16)]
    assert len({mix.lam for mix in mixes}) > 8
    here = mix_images(images[:16], images[16:], mixes), mix_targets(targets, mixes)
    on_device, soft = images.to(device), targets.to(device)
    there = mix_images(on_device[:16], on_device[16:], mixes), mix_targets(soft, mixes)
    assert there[0].device.type == there[1].device.type == device.type
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here, there, strict=True))
    assert not torch.equal(here[0], images)


@pytest.mark.parametrize("loss", ["softmax", "sigmoid"])
def test_targets_made_on_the_device_have_the_bits_of_the_cpu(
    device: torch.device, loss: Literal["softmax", "sigmoid"]
) -> None:
    draw = torch.Generator().manual_seed(1)
    labels = torch.stack([torch.randperm(1000, generator=draw)[:3] for _ in range(64)])
    labels[::2, 1:] = -1
    weights = (labels >= 0).float()
    for smoothing in (0.0, 0.1):
        config = LossConfig(name=loss, label_smoothing=smoothing)
        here = make_targets(labels, weights, 1000, config)
        assert torch.equal(here, make_targets(labels.to(device), weights.to(device), 1000, config).cpu())
        assert torch.equal(here.topk(1).indices[::2], labels[::2, :1])
