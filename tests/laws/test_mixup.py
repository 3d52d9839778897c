"""Law 1 for MixUp and CutMix: the mixed global batch is the same at every world size, micro-batch and restart."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tests.streams import recipe
from vit_dist.config.augment import MixupConfig
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.data.mixup import PairMix, draw_mix, mix_images, mix_targets
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream
from vit_dist.train.feed import Feed
from vit_dist.train.plan import make_plan

MIXES = {
    "mixup": ("data.mixup.alpha=0.8",),
    "cutmix": ("data.mixup.cutmix_alpha=1.0",),
    "both": ("data.mixup.alpha=0.8", "data.mixup.cutmix_alpha=1.0", "data.mixup.probability=0.75"),
}


def mixed_batches(config: Recipe, size: int, micro_limit: int, first: int, steps: int) -> list[torch.Tensor]:
    """Images [B, 3, S, S] and targets [B, K] of global batches, put together from all ranks' micro-batches."""
    data, total = open_training_set(config), config.global_batch
    images = torch.zeros((steps, total, 3, 28, 28), dtype=torch.uint8)
    targets = torch.zeros((steps, total, config.data.num_classes))
    limited = config.model_copy(update={"engine": SimpleNamespace(max_micro_batch=micro_limit)})
    for rank in range(size):
        world = World(rank, size)
        plan = make_plan(limited, data, world)
        feed = Feed(config, plan.micro_batch, torch.device("cpu"))
        with TrainStream(data, config, world, first * total, reuse=True) as stream:
            for step, (batch, _) in enumerate(itertools.islice(stream, steps)):
                micros = [(some.clone(), soft) for some, soft in feed.micro_batches(batch)]
                assert [len(some) for some, _ in micros] == [plan.micro_batch] * plan.accumulation
                half, pairs = len(batch.images) // 2, plan.micro_batch // 2
                for k, (some, soft) in enumerate(micros):
                    rows = torch.arange(k * pairs, (k + 1) * pairs)
                    slots = rank + size * torch.cat((rows, rows + half))
                    images[step, slots], targets[step, slots] = some, soft
    return [torch.cat((images[s].flatten(1).float(), targets[s]), 1) for s in range(steps)]


@pytest.mark.parametrize("mix", MIXES)
def test_the_mixed_batch_is_the_same_on_every_world_micro_batch_and_restart(small_set: str, mix: str) -> None:
    config = recipe(small_set, *MIXES[mix], "global_batch=16", "data.lanes=8", "data.window=5")
    whole = mixed_batches(config, 1, 16, 0, 14)
    for size, limit in (1, 3), (2, 8), (2, 4), (4, 4), (4, 2), (8, 2):
        assert all(map(torch.equal, whole, mixed_batches(config, size, limit, 0, 14)))
    for first in (1, 12):
        assert all(map(torch.equal, whole[first : first + 2], mixed_batches(config, 2, 4, first, 2)))
    plain = mixed_batches(recipe(small_set, "global_batch=16", "data.lanes=8", "data.window=5"), 1, 16, 0, 14)
    assert not any(map(torch.equal, whole, plain))


def test_a_pair_shares_what_it_has_and_targets_follow_the_pixels(small_set: str) -> None:
    config = recipe(small_set, *MIXES["cutmix"], "global_batch=16")
    (mixed,) = mixed_batches(config, 1, 16, 0, 1)
    (plain,) = mixed_batches(recipe(small_set, "global_batch=16"), 1, 16, 0, 1)
    pixels = 3 * 28 * 28
    assert torch.equal(mixed[:8, :pixels] + mixed[8:, :pixels], plain[:8, :pixels] + plain[8:, :pixels])
    for j in range(8):
        own = (mixed[j, :pixels] == plain[j, :pixels]).float().mean()
        box = draw_mix(config.data.mixup, config.seed, j, 28)
        assert own >= box.lam - 1e-6  # and more only where the two images agree by chance
        expected = box.lam * plain[j, pixels:] + (1 - box.lam) * plain[8 + j, pixels:]
        torch.testing.assert_close(mixed[j, pixels:], expected)


def test_mixup_is_the_rounded_mean_of_two_images() -> None:
    images = torch.tensor([[0, 255, 10, 200], [255, 0, 30, 201]], dtype=torch.uint8).view(2, 1, 2, 2)
    targets = torch.eye(2)
    for share in (0.0, 0.25, 0.5, 1.0):
        mixes = [PairMix(share)]
        mixed, soft = mix_images(images[:1], images[1:], mixes), mix_targets(targets, mixes)
        a, b = images[0].double(), images[1].double()
        assert torch.equal(mixed[0], torch.floor(share * a + (1 - share) * b + 0.5).to(torch.uint8))
        assert torch.equal(mixed[1], torch.floor(share * b + (1 - share) * a + 0.5).to(torch.uint8))
        assert soft.tolist() == [[share, 1 - share], [1 - share, share]]


@pytest.mark.parametrize("alpha", [0.1, 0.4, 1.0, 3.0])
def test_shares_are_drawn_from_the_beta_distribution(alpha: float) -> None:
    shares = [draw_mix(MixupConfig(alpha=alpha), 5, position, 224).lam for position in range(4000)]
    points = np.linspace(0.01, 0.99, 50)  # nearer to 0 and 1 shares are rounded to 1/65536
    drawn = np.searchsorted(np.sort(shares), points) / len(shares)
    assert np.abs(drawn - stats.beta(alpha, alpha).cdf(points)).max() < 0.03


def test_probability_and_cutmix_share_are_kept() -> None:
    config = MixupConfig(alpha=1.0, cutmix_alpha=1.0, cutmix_share=0.25, probability=0.5)
    mixes = [draw_mix(config, 1, position, 224) for position in range(4000)]
    cut, untouched = sum(m.box is not None for m in mixes), sum(m.lam == 1.0 and m.box is None for m in mixes)
    assert abs(cut / 4000 - 0.125) < 0.03
    assert abs(untouched / 4000 - 0.5) < 0.03


@given(st.integers(0, 2**40), st.integers(1, 300))
@settings(max_examples=200)
def test_a_box_lies_inside_the_image_and_its_area_is_what_the_targets_say(position: int, size: int) -> None:
    mix = draw_mix(MixupConfig(cutmix_alpha=1.0), 2, position, size)
    assert mix.box is not None
    top, left, bottom, right = mix.box
    assert 0 <= top <= bottom <= size
    assert 0 <= left <= right <= size
    assert np.isclose(1 - mix.lam, (bottom - top) * (right - left) / size**2)


def test_ranks_that_would_part_a_pair_are_refused_with_the_nearest_batches(small_set: str) -> None:
    config = recipe(small_set, "data.mixup.alpha=0.2")  # global_batch 12
    with pytest.raises(ConfigError, match=r"global_batch=12 is not divisible by twice the 4 ranks.*nearest.*: 8, 16"):
        make_plan(config, open_training_set(config), World(0, 4))
    with pytest.raises(ConfigError, match=r"13 is odd, but data\.mixup pairs its halves; nearest that can be: 12, 14"):
        recipe(small_set, "data.mixup.alpha=0.2", "global_batch=13")
    alone = config.model_copy(update={"engine": SimpleNamespace(max_micro_batch=1)})
    with pytest.raises(ConfigError, match=r"engine.max_micro_batch=1 cannot hold the pairs"):
        make_plan(alone, open_training_set(config), World())
    with pytest.raises(ConfigError, match=r"alpha and cutmix_alpha are both 0"):
        recipe(small_set, "data.mixup.probability=0.5")


def test_a_strength_of_augreg_mixes_as_its_numbers_do(small_set: str) -> None:
    numbers = "data.augment.randaugment={magnitude: 15, ops: big_vision}", "data.mixup.alpha=0.5"
    named = recipe(small_set, "data.augment.augreg=medium2", "global_batch=16")
    spelt = recipe(small_set, *numbers, "global_batch=16")
    assert all(map(torch.equal, mixed_batches(named, 1, 16, 0, 2), mixed_batches(spelt, 2, 4, 0, 2)))
    unmixed = recipe(small_set, numbers[0], "global_batch=16")
    assert not any(map(torch.equal, mixed_batches(named, 1, 16, 0, 2), mixed_batches(unmixed, 1, 16, 0, 2)))
    with pytest.raises(ConfigError, match=r"the 4 ranks, so that data\.augment\.augreg cannot keep its pairs together"):
        make_plan(recipe(small_set, "data.augment.augreg=medium2"), open_training_set(named), World(0, 4))
