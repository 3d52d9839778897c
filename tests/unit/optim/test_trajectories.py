"""Every optimizer on one rank: where it ends after 50 steps, what it skips, and what of it a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim.adafactor_bv import AdafactorBigVision
from torch import nn

from tests import trajectories
from tests.conftest import trains_here
from tests.gpu.engines import FSDP, PLAIN
from tests.gpu.test_engines_gpu import written
from tests.host_reads import HostReads
from tests.trajectories import OPTIMIZERS, STEPS, TOLERANCE, batch, engine_of, furthest, rate, recipe, reference, train
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.engines._protocol import Engine
from vit_dist.optim._adafactor import Adafactor, factored_sides
from vit_dist.optim._muon import orthogonal
from vit_dist.train.process_group import process_group

ON_SHARDS = [name for name in OPTIMIZERS if not name.startswith("adafactor")]
FUSED = ("adamw", "adam", "sgd")
BF16, FP32 = {"momentum_dtype": "bf16"}, {"momentum_dtype": "fp32"}


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with trains_here(), process_group(World()):
        yield


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_after_50_steps_weights_are_those_of_float64(name: str) -> None:
    """Rates that fall by layer and clipping by the norm of all are in it; other forms of one go 12 steps."""
    steps = 12 if "-" in name else STEPS
    *_, expected = reference(OPTIMIZERS[name][1], 1.0, 0.7, steps=steps)
    trained = engine_of(name, PLAIN, layer_decay=0.7)
    train(trained, end=steps)
    assert furthest(trained, expected) < TOLERANCE


@pytest.mark.parametrize("settings", [{"clip": None}, {"clip_per": "block", "clip": 4.0}], ids=["never", "by-block"])
def test_without_clipping_and_by_block(settings: dict[str, Any]) -> None:
    clip, by_block = settings.get("clip", 1.0), "clip_per" in settings
    *_, expected = reference(OPTIMIZERS["sgd"][1], clip, per_block=by_block)
    trained = engine_of("sgd", PLAIN, **settings)
    train(trained)
    assert furthest(trained, expected) < TOLERANCE
    clipped = engine_of("sgd", PLAIN)
    train(clipped, end=10)
    *_, short = reference(OPTIMIZERS["sgd"][1], clip, per_block=by_block, steps=10)
    assert furthest(clipped, short) > 0.01


def held(engine: Engine) -> dict[tuple[str, str, int], torch.Tensor]:
    state = engine.state()
    return {(piece.kind, piece.name, piece.start): piece.data.clone() for piece in state.slices}


@pytest.mark.parametrize("engine", [PLAIN, FSDP], ids=["plain", "fsdp"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_is_not_finite_leaves_weights_and_state_as_they_are(name: str, engine: dict[str, Any]) -> None:
    if engine is FSDP and name not in ON_SHARDS:
        return
    trained = engine_of(name, engine)
    train(trained, end=2)
    before, scalars = held(trained), trained.state().scalars
    images, targets = batch(2)
    assert not trained.train_step([(images, targets * math.nan)], rate(2)).read().applied
    after = held(trained)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert trained.state().scalars == scalars


@pytest.mark.parametrize("engine", [PLAIN, FSDP], ids=["plain", "fsdp"])
@pytest.mark.parametrize("name", [*FUSED, "lion", "lamb", "muon", "adafactor"])
def test_a_step_is_read_by_the_host_once_or_where_the_kernel_is_fused_never(name: str, engine: dict[str, Any]) -> None:
    if engine is FSDP and name not in ON_SHARDS:
        return
    for by in ("all", "block"):
        trained = engine_of(name, engine, clip_per=by)
        train(trained, end=2)
        third = batch(2)
        with HostReads() as reads:
            pending = trained.train_step([third], rate(2))
        assert pending.read().applied
        assert len(reads.places) == (0 if name in FUSED else 1), reads.places


@pytest.mark.parametrize(
    ("name", "settings", "first", "then"),
    [
        ("adam", {}, FSDP, PLAIN),
        ("lion", {}, PLAIN, FSDP),
        ("lamb", {}, PLAIN, FSDP),
        ("lamb", {"layer_decay": 0.7}, FSDP, PLAIN),
        ("muon", {}, PLAIN, FSDP),
        ("muon", {"adamw_lr": 1e-3}, FSDP, PLAIN),
        ("adafactor", BF16, PLAIN, PLAIN),
        ("adafactor", {}, PLAIN, PLAIN),
    ],
)
def test_a_checkpoint_has_all_of_an_optimizer_whatever_the_engine(
    name: str, settings: dict[str, Any], first: dict[str, Any], then: dict[str, Any], tmp_path: Path
) -> None:
    whole, half, rest = (engine_of(name, engine, **settings) for engine in (then, first, then))
    train(whole, end=6)
    train(half, end=3)
    source = written(half, tmp_path / "part")
    assert rest.wanted().misfit(source.held, half.state().scalars) == ""
    rest.load(source)
    train(rest, begin=3, end=6)
    expected, found = held(whole), held(rest)
    assert expected.keys() == found.keys()
    for key in expected:
        assert expected[key].dtype == found[key].dtype
        # Engines sum in another order; on one engine nothing differs.
        near = torch.equal if first is then else torch.allclose
        assert near(expected[key], found[key]), key


def test_adafactors_momentum_is_kept_in_bf16_and_added_up_in_fp32() -> None:
    weight = nn.Parameter(torch.zeros(64, 48))
    settings = {"momentum": 0.9, "momentum_dtype": "bf16", "decay_rate": 0.8, "beta2_cap": 0.999, "min_factored": 32}
    ours = Adafactor([{"params": [weight], "lr": 1.0, "weight_decay": 0.0, **settings}])
    weight.grad = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    ours.step()
    state = ours.state[weight]
    assert state["exp_avg"].dtype == torch.bfloat16
    assert {key: tuple(value.shape) for key, value in state.items() if key.startswith("exp_avg_sq")} == {
        "exp_avg_sq_row": (1, 48),
        "exp_avg_sq_col": (64, 1),
    }
    # The step is the sum in fp32, of which the state keeps the rounding.
    taken = -weight.detach()
    assert torch.equal(taken.bfloat16(), state["exp_avg"])
    assert not torch.equal(taken, taken.bfloat16().float())


@pytest.mark.parametrize("shape", [(64, 48), (40, 33, 3, 3), (7, 64), (64,), (1, 50, 64)])
def test_adafactor_is_big_visions_as_timm_has_it(shape: tuple[int, ...]) -> None:
    draw = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    settings = {"momentum": 0.9, "decay_rate": 0.8, "beta2_cap": 0.999}
    mine = Adafactor(
        [{"params": [ours], "lr": 0.1, "weight_decay": 0.1, "momentum_dtype": "fp32", "min_factored": 32, **settings}]
    )
    timms = AdafactorBigVision(
        [theirs], lr=0.1, weight_decay=0.1, min_dim_size_to_factor=32, momentum_dtype="float32", **settings
    )
    for _ in range(5):
        ours.grad = theirs.grad = torch.randn(shape, generator=draw)
        mine.step()
        timms.step()
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "sides"),
    [((64, 32), (1, 0)), ((32, 64), (0, 1)), ((64, 64), (0, 1)), ((3, 64, 5, 32), (3, 1)), ((31, 64), None)],
)
def test_the_two_longest_sides_are_factored(shape: tuple[int, ...], sides: tuple[int, int] | None) -> None:
    assert factored_sides(torch.Size(shape), 32) == sides


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_newton_and_schulz_come_near_the_polar_factor(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = orthogonal(matrix, 5, dtype)
    assert found.dtype == dtype
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.3
    assert values.max() < 1.3
    polar = left @ right
    assert nn.functional.cosine_similarity(found.float().flatten(), polar.flatten(), dim=0) > 0.97


def test_muon_takes_the_matrices_of_blocks_and_adamw_all_else() -> None:
    model = trajectories.small()
    built = recipe({"name": "muon", "adamw_lr": 1e-4, "lr": 1e-3}, PLAIN).optim.over_layers(model)  # type: ignore[attr-defined]
    names = {id(weight): name for name, weight in model.named_parameters()}
    by_muon = {names[id(p)] for group in built.param_groups if "momentum" in group for p in group["params"]}
    assert by_muon == {f"blocks.{i}.fc{j}.weight" for i in (0, 1) for j in (1, 2)}
    for group in built.param_groups:
        assert group.get("lr_scale", 1.0) == pytest.approx(1.0 if "momentum" in group else 0.1)
        decayed = [p for p in group["params"] if names[id(p)].endswith("weight") and p.ndim > 1]
        assert group["weight_decay"] == (0.1 if decayed else 0.0)


REFUSED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"name": "lamb"}, {"name": "deepspeed"}, "'lamb' needs whole tensors, which ZeRO's .*engine.name=plain or fsdp"),
    ({"name": "muon"}, {"name": "deepspeed", "zero_stage": 3}, "'muon' needs whole tensors.*engine.name=plain or fsdp"),
    ({"name": "adafactor"}, {"name": "deepspeed"}, "'adafactor' needs whole tensors, .*use engine.name=plain$"),
    ({"name": "adafactor"}, FSDP, "'adafactor' needs whole tensors, which the shards of FSDP are not; use .*=plain"),
    (
        {"name": "sgd", "clip_per": "block"},
        {"name": "deepspeed"},
        "clip_per=block needs the norm of each block's.*fsdp",
    ),
    ({"name": "sgd", "clip_per": "block", "clip": None}, PLAIN, "clip_per=block beside clip=null, which clips nothing"),
    ({"name": "lion", "betas": [0.9, 1.0]}, PLAIN, "betas"),
    ({"name": "adafactor", "min_factored": 1}, PLAIN, "min_factored"),
    ({"name": "adamw", "layer_decay": 1.1}, PLAIN, "layer_decay"),
]


@pytest.mark.parametrize(("optim", "engine", "words"), REFUSED)
def test_what_cannot_train_is_refused_with_the_recipe(
    optim: dict[str, Any], engine: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe({"lr": 1e-3, **optim}, engine)


def test_muon_of_a_model_without_blocks_is_refused_in_words() -> None:
    optim: Any = recipe({"name": "muon"}, PLAIN).optim
    with pytest.raises(ConfigError, match=r"optim\.name=muon: the layers of this model \(Linear\).*optim.name=adamw"):
        optim.over_layers(nn.Linear(3, 3))


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [("adam", {}, 2), ("lion", {}, 1), ("lamb", {}, 2), ("adafactor", FP32, 1), ("adafactor", BF16, 0.5)],
)
def test_moments_are_what_memory_figures_count(name: str, settings: dict[str, Any], least: float) -> None:
    layer = nn.Linear(512, 256)
    optim: Any = recipe({"name": name, **settings}, PLAIN).optim
    built = optim.build(layer)
    layer(torch.ones(2, 512)).sum().backward()
    built.step()
    tensors = [v for state in built.state.values() for v in state.values() if isinstance(v, torch.Tensor) and v.ndim]
    kept = sum(v.numel() * v.element_size() for v in tensors) / 4 / sum(p.numel() for p in layer.parameters())
    assert least <= kept <= optim.moments <= least + 0.02
