"""Position embeddings, filters and receptive fields, each against what is known of it in closed form."""

from __future__ import annotations

import math

import pytest
import torch
from timm.layers import StdConv2d
from torch import nn

from tests.unit.inspect.test_attention import images, vit
from vit_dist.core.errors import ConfigError
from vit_dist.inspect.field import field_size, layers_of, receptive_fields
from vit_dist.inspect.tokens import tokens_of
from vit_dist.inspect.weights import filter_components, first_filters, position_similarity, positions_of
from vit_dist.models.bit import BiTConfig
from vit_dist.models.hybrid import HybridConfig


def bit(stages: tuple[int, ...] = (1, 1)) -> nn.Module:
    torch.manual_seed(0)
    config = BiTConfig(name="bit", blocks=stages, width=8, stem="small/2", groups=4)
    return config.build(num_classes=2, image_size=32).eval()


def test_sinusoidal_embeddings_have_their_known_similarity() -> None:
    net = vit(position_embedding="sincos")
    table, own = positions_of(net, tokens_of(net, 28))
    assert not own
    similar = position_similarity(table).reshape(4, 4, 4, 4)
    # sin a sin b + cos a cos b = cos(a - b), for each of the 8 frequencies of 1 ... 1/10000, by columns and by rows.
    frequencies = [10_000.0 ** (-i / 7) for i in range(8)]
    for (row, column), (y, x) in (((0, 0), (0, 0)), ((0, 0), (3, 1)), ((2, 1), (1, 3)), ((3, 3), (0, 0))):
        expected = sum(math.cos(f * (x - column)) + math.cos(f * (y - row)) for f in frequencies) / 16
        assert similar[row, column, y, x].item() == pytest.approx(expected, abs=1e-5)


def test_tables_by_column_and_row_are_compared_as_they_are_added() -> None:
    net = vit(position_embedding="learned-2d", positions_at="layers")
    table, own = positions_of(net, tokens_of(net, 28))
    assert own
    assert torch.equal(table, net.positions(0)[1:].detach())  # type: ignore[operator]
    # Two patches of a column share half of what they have.
    assert position_similarity(table)[0, 4] > position_similarity(table)[0, 5]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"position_embedding": "relative"}, "its positions are relative"),
        ({"position_embedding": "conditional"}, "its positions are conditional"),
        ({"position_embedding": "none"}, "adds no position embeddings"),
    ],
)
def test_positions_that_no_patch_has_are_refused_by_what_they_are(settings: dict[str, str], said: str) -> None:
    net = vit(**settings)
    with pytest.raises(ConfigError, match=said):
        positions_of(net, tokens_of(net, 28), "ViT")


def test_the_components_of_filters_made_of_a_known_basis_are_that_basis() -> None:
    draw = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(48, 3, generator=draw, dtype=torch.float64))[0].T
    # Three weights of each filter, uncorrelated and of mean 0, that vary in the ratio 4 : 2 : 1.
    weights = torch.linalg.qr(
        torch.randn(40, 4, generator=draw, dtype=torch.float64).index_fill_(1, torch.tensor([0]), 1)
    )[0]
    filters = weights[:, 1:] * torch.tensor([4.0, 2.0, 1.0]) @ basis + 0.7
    components, shares = filter_components(filters.reshape(40, 3, 4, 4).float())
    torch.testing.assert_close(shares[:4], torch.tensor([16 / 21, 4 / 21, 1 / 21, 0.0]), atol=1e-5, rtol=0)
    for found, known in zip(components[:3].flatten(1).double(), basis, strict=True):
        sign = known[known.abs().argmax()].sign()
        torch.testing.assert_close(found, known * sign, atol=1e-5, rtol=0)
    assert len(components) == 28
    assert len(filter_components(filters[:5].reshape(5, 3, 4, 4))[0]) == 5


def test_the_first_filters_are_those_on_pixels_standardised_as_they_are_used() -> None:
    filters, layer = first_filters(vit())
    assert (layer, filters.shape) == ("patch_embed.proj", (32, 3, 7, 7))
    conv = StdConv2d(3, 6, 5, bias=False, padding=2)
    filters, _ = first_filters(nn.Sequential(nn.Conv2d(1, 3, 1), conv))
    used = nn.functional.conv2d(images(1), filters, padding=2)
    torch.testing.assert_close(conv(images(1)), used, rtol=1e-4, atol=1e-5)
    hybrid = HybridConfig(
        name="hybrid", stages=(1, 1), stem="small/2", backbone_width=8, groups=4, width=32, depth=1, num_heads=2
    ).build(num_classes=2, image_size=32)
    assert first_filters(hybrid)[1] == "patch_embed.backbone.stem.conv"
    with pytest.raises(ConfigError, match="no convolution on the three colours"):
        first_filters(nn.Linear(3, 3), "mlp")


def fields_of_one(net: nn.Module, size: int = 15):  # type: ignore[no-untyped-def]
    middle = (size - 1) // 2
    layer = ("conv", net, lambda out: out[:, :, middle, middle])
    return receptive_fields(net, images(3, size), [layer], batch=2)[0]


def test_the_field_of_one_convolution_is_its_kernel() -> None:
    conv = nn.Conv2d(3, 4, 5, padding=2)
    nn.init.constant_(conv.weight, 0.3)
    found = fields_of_one(conv)
    assert found.size == 5
    expected = torch.zeros(15, 15)
    expected[5:10, 5:10] = 1
    torch.testing.assert_close(found.gradient, expected)


def test_the_field_of_two_convolutions_is_the_product_of_their_kernels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1))
    for conv in net:
        nn.init.constant_(conv.weight, 0.1)
    line = torch.tensor([1.0, 2, 3, 2, 1]) / 3
    expected = torch.zeros(15, 15)
    expected[5:10, 5:10] = line[:, None] * line
    found = fields_of_one(net)
    torch.testing.assert_close(found.gradient, expected)
    # The corners, a ninth, are over 4.55% too.
    assert found.size == 5
    assert field_size(torch.tensor([[1.0, 0.0456], [0.0454, 0]])) == math.sqrt(2)


def test_a_patch_that_attends_to_nobody_sees_itself() -> None:
    net = vit()
    for name, weight in net.named_parameters():
        if name.startswith("blocks") and ("proj" in name or "fc2" in name):
            nn.init.zeros_(weight)
    fields = receptive_fields(net, images(2), layers_of(net, 28))
    assert [found.layer for found in fields] == ["block 1", "block 2", "block 3"]
    for found in fields:
        # The patch in the third row and column.
        assert found.gradient[14:21, 14:21].min() > 0
        assert found.gradient.count_nonzero() == 49


def test_stages_of_resnets_see_more_and_more_and_hybrids_begin_with_theirs() -> None:
    net = bit((1, 1, 1))
    fields = receptive_fields(net, images(2, 64), layers_of(net, 64))
    assert [found.layer for found in fields] == ["stage 1", "stage 2", "stage 3"]
    sizes = [found.size for found in fields]
    assert sizes == sorted(sizes)
    assert 3 <= sizes[0] < sizes[-1] <= 64
    hybrid = HybridConfig(
        name="hybrid", stages=(1, 1), stem="small/2", backbone_width=8, groups=4, width=32, depth=7, num_heads=2
    ).build(num_classes=2, image_size=32)
    assert [name for name, *_ in layers_of(hybrid, 32)] == [
        "ResNet",
        "block 1",
        "block 3",
        "block 4",
        "block 6",
        "block 7",
    ]
    with pytest.raises(ConfigError, match="neither `stages`"):
        layers_of(nn.Linear(2, 2), 28)
