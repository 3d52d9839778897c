"""Batches on their way to a GPU: what arrives is what was decoded, and mixes to the same bits as on the CPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.streams import recipe
from vit_dist.config.schema import MixupConfig
from vit_dist.core.world import World
from vit_dist.data.mixup import draw_mix, mix_micro_batches
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

pytestmark = pytest.mark.gpu


def test_pinned_batches_arrive_whole_through_a_hundred_overlapping_copies(device: torch.device, small_set: str) -> None:
    config = recipe(small_set, "global_batch=64", "data.lanes=1")
    busy = torch.randn(1024 if device.type == "cuda" else 64, device=device).unsqueeze(0).T
    weights = torch.arange(64 * 3 * 28 * 28, dtype=torch.int64, device=device) % 1009
    expected, arrived = [], []
    with TrainStream(open_training_set(config), config, World(), 0) as stream:
        for batch, _ in itertools.islice(stream, 100):
            assert batch.images.is_pinned() == (device.type == "cuda")
            expected.append(int((batch.images.flatten().long() * weights.cpu()).sum()))
            # The device has work to do first, so that the copy is still to come when the host goes on.
            for _ in range(20):
                busy = (busy @ busy.T @ busy).clamp(-1, 1)
            images = batch.images.to(device, non_blocking=True)
            arrived.append((images.flatten().long() * weights).sum())
            # The host's last hold on it: the stream may use the memory for its next batches.
            del batch, images
    assert torch.stack(arrived).tolist() == expected
    assert len(set(expected)) > 90


@pytest.mark.parametrize("settings", [{"alpha": 0.8}, {"cutmix_alpha": 1.0}, {"alpha": 0.8, "cutmix_alpha": 1.0}])
def test_mixing_on_the_device_gives_the_bits_of_the_cpu(device: torch.device, settings: dict[str, float]) -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 56, 56), dtype=torch.uint8, generator=draw)
    targets = torch.rand(32, 10, generator=draw)
    mixes = [draw_mix(MixupConfig(**settings), 7, position, 56) for position in range(16)]
    assert len({mix.lam for mix in mixes}) > 8
    for here, there in zip(
        mix_micro_batches(images, targets, mixes, 8, torch.device("cpu")),
        mix_micro_batches(images, targets, mixes, 8, device),
        strict=True,
    ):
        assert there[0].device.type == device.type
        assert torch.equal(here[0], there[0].cpu())
        assert torch.equal(here[1], there[1].cpu())
        assert not torch.equal(here[0], images[:8])
