"""The FSDP engine on one rank, in this process: which parts are blocks, what is refused, what the host waits for."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from tests.conftest import trains_here
from tests.gpu.engines import FSDP, PLAIN, RESHARDED, batch, build, losses
from tests.gpu.test_engines_gpu import same_bits, written
from tests.host_reads import HostReads
from vit_dist.cli.models.options import model_config
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.engines._fsdp import blocks_of
from vit_dist.engines._protocol import Engine, EngineInputs
from vit_dist.engines.fsdp import FSDPConfig
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.process_group import process_group

CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with trains_here(), process_group(World()):
        yield


class Layer(nn.Module):
    """A block of a plug-in's: normalised, widened, added."""

    def __init__(self, wide: nn.Linear | None = None) -> None:
        super().__init__()
        self.norm, self.wide, self.gain = nn.LayerNorm(6), wide or nn.Linear(6, 6), nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.wide(self.norm(x))


class Stage(nn.Module):
    """Blocks in a row, and a layer of its own."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.down, self.blocks = nn.Linear(6, 6), nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.blocks(self.down(x))
        return out


class Model(nn.Module):
    """Images [B, 3, 28, 28] -> logits [B, 10], by parts in a row."""

    def __init__(self, *parts: nn.Module, listed: bool = False) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(28, 6), nn.Linear(6, 10)
        self.parts: Any = nn.ModuleList(parts) if listed else nn.Sequential(*parts)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.mean((1, 2)))
        for part in self.parts:
            x = part(x)
        out: Tensor = self.head(x)
        return out


def shared() -> Model:
    """Two of its three blocks have one linear layer in common."""
    wide = nn.Linear(6, 6)
    return Model(Layer(wide), Layer(), Layer(wide), Layer())


def twice() -> Model:
    """One block, which is run twice."""
    layer = Layer()
    return Model(layer, layer)


FORMS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "in a list": (lambda: Model(Layer(), Layer(), listed=True), ["parts.0", "parts.1"]),
    "in a sequence": (lambda: Model(Layer(), Layer(), Layer()), ["parts.0", "parts.1", "parts.2"]),
    "among others": (lambda: Model(Layer(), nn.GELU(), Layer()), []),
    "in stages": (
        lambda: Model(Stage(Layer(), Layer()), Stage(Layer(), Layer(), Layer())),
        [*(f"parts.0.blocks.{i}" for i in range(2)), *(f"parts.1.blocks.{i}" for i in range(3))],
    ),
    "one in each stage": (lambda: Model(Stage(Layer()), Stage(Layer())), ["parts.0.blocks.0", "parts.1.blocks.0"]),
    "without a class of their own": (
        lambda: Model(*(nn.Sequential(nn.Linear(6, 6), nn.GELU()) for _ in range(3))),
        ["parts.0", "parts.1", "parts.2"],
    ),
    "sequences within blocks": (
        lambda: Model(*(Layer(nn.Sequential(nn.Linear(6, 6), nn.Sequential(nn.Linear(6, 6)))) for _ in range(2))),  # type: ignore[arg-type]
        ["parts.0", "parts.1"],
    ),
    "a weight in common": (shared, ["parts.1", "parts.3"]),
    "one that is run twice": (twice, []),
    "one alone": (lambda: Model(Layer()), ["parts.0"]),
    "layers alone": (lambda: Model(nn.Linear(6, 6), nn.Linear(6, 6)), []),
}


@pytest.mark.parametrize("form", FORMS)
def test_blocks_are_found_and_train_as_in_plain_torch(form: str) -> None:
    make, expected = FORMS[form]
    model = make()
    names = {id(module): name for name, module in model.named_modules()}
    assert [names[id(block)] for block in blocks_of(model)] == expected
    found = [losses(engine_of(make, engine), 3) for engine in (PLAIN, FSDP, RESHARDED)]
    assert found[0][0] != found[0][-1]
    for sharded in found[1:]:
        assert sharded == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "count", "share"),
    [
        ("ViT-B/16", 12, 0.98),
        ("R50x1", 16, 0.9),
        ("R50+ViT-B/16", 28, 0.97),
        ("timm:convnext_atto", 12, 0.9),
        ("timm:swin_tiny_patch4_window7_224", 12, 0.9),
    ],
)
def test_nearly_all_of_a_published_model_lies_in_its_blocks(name: str, count: int, share: float) -> None:
    with torch.device("meta"):
        if name.startswith("timm:"):
            model: nn.Module = timm.create_model(name.removeprefix("timm:"), num_classes=0)
        else:
            model = model_config(name, []).build(num_classes=1000, image_size=224)
    blocks = blocks_of(model)
    assert len(blocks) == count
    sizes = [sum(p.numel() for p in module.parameters()) for module in (model, *blocks)]
    assert sum(sizes[1:]) > share * sizes[0]


def engine_of(make: Callable[[], nn.Module], engine: dict[str, Any], precision: str = "fp32") -> Engine:
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    loss = nn.functional.cross_entropy
    recipe = load_recipe("demo", [f"engine={engine}".replace("True", "true")])
    return recipe.engine.build(EngineInputs(model, optimizer, loss, World(), CPU, precision, 1.0, 8, 1))  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("limit", [math.inf, 100.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("engine", [FSDP, RESHARDED], ids=["gathered", "resharded"])
def test_the_host_reads_nothing_amid_a_step(engine: dict[str, Any], precision: str, limit: float) -> None:
    trained = build(CPU, "vit-test", engine, precision)
    losses(trained, 2)
    micro_batches = [batch(2), batch(3)]
    with HostReads() as reads:
        pending = trained.train_step(micro_batches, 1e-3, skip_over=limit)
    assert reads.places == []
    assert pending.read().applied


@pytest.mark.parametrize("engine", [FSDP, RESHARDED], ids=["gathered", "resharded"])
def test_a_spike_is_skipped_and_changes_no_bit(engine: dict[str, Any]) -> None:
    trained = build(CPU, "vit-test", engine, "bf16")
    losses(trained, 2)
    before = [part.data.clone() for part in trained.state().slices]
    assert not trained.train_step([batch(2), batch(3)], 1e-3, skip_over=1e-3).read().applied
    assert all(torch.equal(a, part.data) for a, part in zip(before, trained.state().slices, strict=True))
    assert trained.train_step([batch(2)], 1e-3, skip_over=1e3).read().applied


def test_predictions_are_those_of_the_weights_as_they_are_now() -> None:
    trained = build(CPU, "hybrid-test", FSDP)
    images, _ = batch(0)
    first = trained.predict(images)
    losses(trained, 2)
    second = trained.predict(images)
    plain = build(CPU, "hybrid-test", PLAIN)
    torch.testing.assert_close(first, plain.predict(images))
    losses(plain, 2)
    torch.testing.assert_close(second, plain.predict(images))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_crosses_to_plain_torch_and_back_bit_for_bit(precision: str, tmp_path: Path) -> None:
    first = build(CPU, "vit-test", FSDP, precision)
    losses(first, 3)
    before = written(first, tmp_path / "before")
    for i, engine in enumerate((PLAIN, RESHARDED, FSDP)):
        other = build(CPU, "vit-test", engine, precision, seed=1 + i)
        other.load(before)
        assert same_bits(before, written(other, tmp_path / str(i)))
        assert losses(other, 2, begin=3) == pytest.approx(losses(build_from(before, precision), 2, begin=3), rel=5e-3)
    assert losses(build_from(before, precision), 2, begin=3) == losses(first, 2, begin=3)


def build_from(source: SliceSource, precision: str) -> Engine:
    engine = build(CPU, "vit-test", FSDP, precision, seed=9)
    engine.load(source)
    return engine


def test_a_frozen_weight_stays_as_it_is_and_is_saved() -> None:
    def make() -> nn.Module:
        model = Model(Layer(), Layer())
        model.parts[0].wide.weight.requires_grad_(False)
        return model

    trained = engine_of(make, FSDP, "bf16")
    before = {part.name: part.data.clone() for part in trained.state().slices if part.kind == "weight"}
    losses(trained, 2)
    kinds: dict[str, set[str]] = {}
    for part in trained.state().slices:
        kinds.setdefault(part.name, set()).add(part.kind)
        if part.kind == "weight":
            assert torch.equal(part.data, before[part.name]) is (part.name == "parts.0.wide.weight"), part.name
    assert kinds["parts.0.wide.weight"] == {"weight"}
    assert kinds["parts.1.wide.weight"] == {"weight", "exp_avg", "exp_avg_sq"}


class Scaled(Model):
    """Its scale is a number without dimensions."""

    def __init__(self) -> None:
        super().__init__(Layer(), Layer())
        self.scale = nn.Parameter(torch.tensor(1.0))


class Peeking(Model):
    """Reads a weight of a block outside of the block's own forward pass."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + self.parts[0].wide.weight.sum()


def test_collectives_go_over_the_group_of_tensors_that_there_is() -> None:
    groups = [*torch.distributed.distributed_c10d._world.pg_map]
    trained = build(CPU, "vit-test", RESHARDED)
    losses(trained, 1)
    assert [*torch.distributed.distributed_c10d._world.pg_map] == groups


def test_what_cannot_be_dealt_out_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"the weight scale is a single number .* give it the shape \[1\]"):
        engine_of(Scaled, FSDP)


@pytest.mark.parametrize("call", ["train", "predict"])
def test_a_weight_that_is_read_where_it_is_not_gathered_is_told(call: str) -> None:
    trained = engine_of(lambda: Peeking(Layer(), Layer()), RESHARDED)
    with pytest.raises(ConfigError, match="reads a weight of a block outside the block's own forward pass"):
        trained.predict(batch(0)[0]) if call == "predict" else losses(trained, 1)


def test_an_optimizer_that_needs_whole_tensors_is_refused() -> None:
    recipe = load_recipe("demo", ["engine={name: fsdp}"])
    FSDPConfig(name="fsdp").check(recipe)
    whole = type("Whole", (type(recipe.optim),), {"elementwise": False, "__annotations__": {}})
    other = recipe.model_copy(update={"optim": whole.model_construct(name="muon")})
    with pytest.raises(ValueError, match="'muon' needs whole tensors, which the shards of FSDP are not"):
        FSDPConfig(name="fsdp").check(other)
