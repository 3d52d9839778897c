"""Compiled blocks of the FSDP engine on one rank: what they are given, what trying them leaves alone, and what fails.

But for the test that needs a C++ compiler, graphs are made and differentiated as for inductor, and torch's eager
kernels run them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compilers import Counted, Refuses, refuses_all
from tests.conftest import trains_here
from tests.gpu.test_engines_gpu import same_bits, written
from tests.unit.engines.test_compile import BATCH, CLASSES, SIZE, Counting, Net, batch, build, losses, settings
from vit_dist.core.world import World
from vit_dist.engines import _compile
from vit_dist.engines._protocol import Engine
from vit_dist.train.process_group import process_group


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with trains_here(), process_group(World()):
        yield


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted = Counted()
    monkeypatch.setattr(_compile, "BACKEND", counted)
    yield counted
    # What is compiled belongs to the code of a class of blocks, wherever it was made.
    torch._dynamo.reset()


def fsdp(model: str | dict[str, Any], precision: str = "fp32", *, reshard: bool = True, **engine: Any) -> Any:
    return settings(model, precision, name="fsdp", reshard_after_forward=reshard, **engine)


@pytest.mark.parametrize(
    ("model", "recompute", "precision", "reshard"),
    [
        ("vit-test", "full", "bf16", True),
        ("bit-test", "none", "fp32", False),
    ],
)
def test_compiled_blocks_train_as_eager_ones_with_the_same_units_dropped(
    compiler: Counted, model: str, recompute: str, precision: str, reshard: bool
) -> None:
    engine = build(fsdp(model, precision, reshard=reshard, activation_checkpointing=recompute, compile=True))
    made, compiler.ran = compiler.made, 0
    found = losses(engine)
    # Two blocks in each of three steps, and again where they are recomputed: none was left eager, none compiled anew.
    assert (compiler.ran, compiler.made) == (3 * 2 * (2 if recompute == "full" else 1), made)
    assert made > 0
    tolerance = 1e-5 if precision == "fp32" else 5e-3
    eager = build(fsdp(model, precision, reshard=reshard, activation_checkpointing=recompute))
    assert found == pytest.approx(losses(eager), rel=tolerance)


class Block(nn.Module):
    """Of a plug-in's: it takes and returns features alone."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide = nn.LayerNorm(CLASSES), nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Any:
        return x + self.wide(self.norm(x))


class Paired(Block):
    """Takes and returns a pair."""

    def forward(self, x: Any) -> Any:
        first, second = x if isinstance(x, tuple) else (x, x)
        return super().forward(second), first + 1


class Named(Block):
    """Takes and returns features by name."""

    def forward(self, x: Any) -> Any:
        return {"x": super().forward(x["x"] if isinstance(x, dict) else x)}


class Rated(Block):
    """Has a number of its own, which a graph holds as it was."""

    rates = iter(())

    def __init__(self) -> None:
        super().__init__()
        self.rate = next(Rated.rates)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.rate  # type: ignore[no-any-return]


class Frozen(Block):
    """Its weights are not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)


class Told(nn.Module):
    """Gives its blocks more than features: a weight outside of them, whole numbers, and a flag by name."""

    class Block(Block):
        def forward(self, x: Tensor, scale: Tensor, order: Tensor, *, flip: bool) -> Any:  # type: ignore[override]
            x = super().forward(x[:, order] * scale)
            return -x if flip else x

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale = nn.Linear(3 * SIZE * SIZE, CLASSES), nn.Parameter(torch.ones(CLASSES))
        self.blocks = nn.ModuleList(self.Block() for _ in range(3))

    def forward(self, images: Tensor) -> Tensor:
        x, order = self.stem(images.flatten(1)), torch.arange(CLASSES - 1, -1, -1)
        for i, block in enumerate(self.blocks):
            x = block(x, self.scale, order, flip=i == 1)
        return x  # type: ignore[no-any-return]


class Ending(Net):
    """Makes logits of what its blocks return."""

    def forward(self, images: Tensor) -> Tensor:
        x: Any = super().forward(images)
        return x[0] + x[1] if isinstance(x, tuple) else x["x"] if isinstance(x, dict) else x


def of(block: Callable[[], nn.Module], *, trained_stem: bool = True) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        Rated.rates = iter((1.0, -2.0))
        model = Ending(block)
        model.stem.requires_grad_(trained_stem)
        return model

    return make


def own_forward() -> nn.Module:
    """A block with a forward pass in place of its class's."""
    model = Ending(Block)
    first: Any = model.blocks[0]
    first.forward = lambda x: 2 * Block.forward(first, x)
    return model


def shared() -> nn.Module:
    """Both blocks have one linear layer, and neither is gathered by itself."""
    model = Ending(Block)
    blocks: Any = model.blocks
    blocks[1].wide = blocks[0].wide
    return model


FORMS: dict[str, Callable[[], nn.Module]] = {
    "features": of(Block),
    "pairs": of(Paired),
    "names": of(Named),
    "rates of their own": of(Rated),
    "frozen": of(Frozen),
    "a frozen stem": of(Block, trained_stem=False),
    "a class of torch's": of(lambda: nn.Sequential(nn.Linear(CLASSES, CLASSES), nn.GELU())),
    "more than features": Told,
    "a forward pass of its own": own_forward,
    "a weight in common": shared,
}


def small(recipe: Any, form: str = "features", image_size: int | None = SIZE) -> Engine:
    """An engine with a model of few and small layers, the same each time."""
    torch.manual_seed(1)
    return build(recipe, FORMS[form](), image_size)


@pytest.mark.parametrize("form", FORMS)
def test_whatever_a_block_takes_and_returns_is_compiled_once_and_trains_as_eagerly(
    compiler: Counted, form: str
) -> None:
    eager = losses(small(fsdp("vit-test"), form))
    engine = small(fsdp("vit-test", compile=True), form)
    made, compiler.ran = compiler.made, 0
    assert engine.layout["compile"] is True
    assert losses(engine) == pytest.approx(eager, rel=1e-5)
    assert eager[0] != eager[-2]
    blocks: Any = engine.module.blocks
    assert (compiler.made, compiler.ran) == (made, 3 * len(blocks))


def test_trying_the_graphs_leaves_nothing_behind(compiler: Counted) -> None:
    model = Net(Counting)
    names = [*model.state_dict()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    engine = build(fsdp("vit-test", compile=True), model)
    assert compiler.made == 1  # both blocks have one graph
    assert torch.equal(torch.rand(3), expected)
    assert [*engine.module.state_dict()] == names
    found = {part.name: part.data for part in engine.state().slices}
    assert set(found) == set(names)
    assert all(torch.equal(tensor, before[name].flatten()) for name, tensor in found.items())
    # Between steps a rank has its shards alone, and nothing was summed.
    assert all(hasattr(p, "to_local") and p.grad is None for p in engine.module.parameters())
    assert engine.module.training
    assert not engine.state().scalars["stem.weight"]  # the optimizer has not stepped
    engine.train_step([batch(0)], 1e-3).read()
    assert float(model.state_dict()["blocks.0.steps"]) == 1


@pytest.mark.parametrize("reshard", [True, False])
def test_evaluation_and_batches_of_another_size_run_eagerly_and_compile_nothing(
    compiler: Counted, reshard: bool
) -> None:
    engine = small(fsdp("vit-test", reshard=reshard, compile=True))
    eager = small(fsdp("vit-test", reshard=reshard))
    made, compiler.ran = compiler.made, 0
    for count in (BATCH, 3, 1):
        assert torch.equal(engine.predict(batch(0, count)[0]), eager.predict(batch(0, count)[0]))
    torch.manual_seed(0)
    odd = engine.train_step([batch(0, 3)], 1e-3).read()
    torch.manual_seed(0)
    assert odd == eager.train_step([batch(0, 3)], 1e-3).read()
    assert (compiler.made, compiler.ran) == (made, 0)


def test_the_layout_and_the_description_say_what_was_compiled_and_the_timer_how_long(compiler: Counted) -> None:
    for recipe, size in ((fsdp("vit-test"), SIZE), (fsdp("vit-test", compile=True), None)):
        engine = small(recipe, image_size=size)  # not wanted on a CPU; no step will be taken
        assert engine.layout["compile"] is False
        assert "compiled" not in engine.description
        assert engine.timer.compiling_s == compiler.made == 0
    engine = small(fsdp("vit-test", compile=True))
    assert engine.layout["compile"] is True
    assert engine.description.endswith("resharded after the forward pass), fp32, blocks compiled")
    assert engine.timer.compiling_s > 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_crosses_to_plain_torch_and_back_bit_for_bit(compiler: Counted, precision: str, tmp_path: Path) -> None:
    first = small(fsdp("vit-test", precision, compile=True))
    losses(first, 2)
    before = written(first, tmp_path / "before")
    others = [settings("vit-test", precision), fsdp("vit-test", precision, reshard=False, compile=True)]
    found = []
    for i, recipe in enumerate(others):
        other = small(recipe)
        losses(other, 1)
        other.load(before)
        assert same_bits(before, written(other, tmp_path / str(i)))
        found.append(losses(other, 1))
    assert losses(first, 1) == found[1]
    # A norm may differ by five times what a loss may, as on any two engines.
    for i, tolerance in enumerate((1e-5, 5e-5) if precision == "fp32" else (5e-3, 25e-3)):
        assert found[0][i] == pytest.approx(found[1][i], rel=tolerance)


class Returning(Block):
    """Returns nothing in which there is a tensor to differentiate."""

    def forward(self, x: Tensor) -> Any:
        super().forward(x)
        return "nothing"


class Stemmed(Net):
    """Makes logits of its stem alone."""

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.flatten(1))
        for block in self.blocks:
            block(x)
        return x  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("failing", "why"),
    [
        ({"backend": Refuses()}, "no compiler of any kind"),
        ({"backend": Refuses(after=1)}, "no compiler of any kind"),
        ({"backend": Refuses(backward=True)}, "no compiler of any kind"),
        ({"backend": "no such"}, "no such"),
        ({"compile": refuses_all}, "OSError: no compiler of any kind"),
        ({"form": "words"}, "Returning returns a str, in which no tensor was found"),
    ],
    ids=["at once", "at the second", "backward", "unknown", "torch.compile", "no tensor"],
)
def test_what_cannot_be_compiled_runs_eagerly_in_words(
    failing: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(FORMS, "words", lambda: Stemmed(Returning))
    form = failing.get("form", "rates of their own")  # both blocks have a graph of their own
    eager = losses(small(fsdp("vit-test"), form))
    monkeypatch.setattr(_compile, "BACKEND", failing.get("backend", Counted()))
    if "compile" in failing:
        monkeypatch.setattr(torch, "compile", failing["compile"])
    engine = small(fsdp("vit-test", compile=True), form)
    said = capsys.readouterr().err
    assert "blocks could not be compiled on rank 0, so that all ranks run eagerly" in said
    assert why in said
    assert engine.layout["compile"] is False
    assert not any("forward" in vars(module) for module in engine.module.modules())
    assert losses(engine) == eager
    torch._dynamo.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: NOTHING WAS COMPILED by inductor")
def test_inductor_compiles_a_block_that_trains_as_the_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager = losses(small(fsdp("vit-test")))
    engine = small(fsdp("vit-test", compile=True))
    assert "compiled 2 blocks in" in capsys.readouterr().err
    assert any(tmp_path.rglob("*.so"))
    found = losses(engine)
    assert found == pytest.approx(eager, rel=1e-5)
    # Fused sums are taken in another order: had the block been left eager, nothing would differ.
    assert found != eager
    torch._dynamo.reset()
