"""Blocks by torch.compile: what they compute, what building them leaves alone, and what is said where it fails.

But for tests that need a C++ compiler, graphs are made and differentiated as for inductor, and torch's eager kernels
run them.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compilers import Counted, Refuses
from tests.plugins import build_model
from vit_dist.config.load import resolve
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.engines import _compile
from vit_dist.engines._protocol import Engine, EngineInputs
from vit_dist.models._base import repeated_blocks
from vit_dist.train.losses import make_loss

SIZE, CLASSES, BATCH = 28, 10, 4
FAMILIES = {
    "vit-test": {"dropout": 0.2, "stochastic_depth": 0.3},
    "bit-test": {"stochastic_depth": 0.3},
    "hybrid-test": {"dropout": 0.1},
    "timm:test_vit": {"args": {"patch_size": 7, "depth": 2, "drop_path_rate": 0.3}},
}


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    counted = Counted()
    monkeypatch.setattr(_compile, "BACKEND", counted)
    yield counted
    # What is compiled belongs to the code of a class of blocks, wherever it was made.
    torch._dynamo.reset()


def settings(model: str | dict[str, Any], precision: str = "fp32", **engine: Any) -> Any:
    return resolve(
        {
            "horizon": "1 epoch",
            "global_batch": BATCH,
            "precision": precision,
            "model": {"name": model, **FAMILIES.get(model, {})} if isinstance(model, str) else model,
            "data": {"num_classes": CLASSES, "image_size": SIZE},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {"name": "plain", **engine},
        }
    )


def build(recipe: Any, model: nn.Module | None = None, image_size: int | None = SIZE) -> Engine:
    torch.manual_seed(0)
    if model is None:
        model = recipe.model.build(num_classes=CLASSES, image_size=SIZE)
        nn.init.normal_(model.head.weight, std=0.05)
        model.set_activation_checkpointing(recipe.engine.activation_checkpointing)
    inputs = EngineInputs(
        model,
        recipe.optim.over_layers(model),
        make_loss(recipe.loss),
        World(),
        torch.device("cpu"),
        recipe.precision,
        1.0,
        BATCH,
        1,
        image_size=image_size,
    )
    return recipe.engine.build(inputs)  # type: ignore[no-any-return]


def batch(step: int, count: int = BATCH) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=draw)
    return images, nn.functional.one_hot(torch.arange(count), CLASSES).float()


def losses(engine: Engine, steps: int = 3) -> list[float]:
    found = []
    for step in range(steps):
        torch.manual_seed(step)
        result = engine.train_step([batch(step)], 1e-3).read()
        found += [result.loss, result.grad_norm]
    return found


@pytest.mark.parametrize(
    ("model", "recompute", "precision"),
    [
        ("vit-test", "full", "fp32"),
        ("vit-test", "none", "bf16"),
        ("bit-test", "none", "fp32"),
        ("hybrid-test", "full", "bf16"),
        ("timm:test_vit", "full", "fp32"),
    ],
)
def test_compiled_blocks_train_as_eager_ones_with_the_same_units_dropped(
    compiler: Counted, model: str, recompute: str, precision: str
) -> None:
    eager = losses(build(settings(model, precision, activation_checkpointing=recompute)))
    engine = build(settings(model, precision, activation_checkpointing=recompute, compile=True))
    blocks, made = len(repeated_blocks(engine.module)), compiler.made
    assert made > 0
    compiler.ran = 0
    tolerance, compiled = 1e-5 if precision == "fp32" else 5e-3, losses(engine)
    assert compiled[::2] == pytest.approx(eager[::2], rel=tolerance)
    # A gradient's norm in bf16 sums what was rounded twice as often.
    assert compiled[1::2] == pytest.approx(eager[1::2], rel=tolerance * (1 if precision == "fp32" else 3))
    # Each block in each of three steps, and again where it is recomputed: none was left eager, none compiled anew.
    assert (compiler.ran, compiler.made) == (3 * blocks * (2 if recompute == "full" else 1), made)


class Counting(nn.Module):
    """A block with state that is no weight, and a random number of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(CLASSES, CLASSES)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        return self.inner(x) + torch.rand_like(x)  # type: ignore[no-any-return]


class Net(nn.Module):
    """A model of blocks."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Linear(3 * SIZE * SIZE, CLASSES)
        self.blocks = nn.Sequential(block(), block())

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.stem(images.flatten(1)))  # type: ignore[no-any-return]


def test_trying_the_graphs_leaves_nothing_behind(compiler: Counted) -> None:
    recipe, model = settings("vit-test", compile=True), Net(Counting)
    names = [*model.state_dict()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    engine = build(recipe, model)
    assert compiler.made == 1  # both blocks have one graph
    assert torch.equal(torch.rand(3), expected)
    assert [*engine.module.state_dict()] == names
    assert all(torch.equal(tensor, before[name]) for name, tensor in engine.module.state_dict().items())
    assert all(p.grad is None for p in engine.module.parameters())
    assert not engine.state().scalars["stem.weight"]  # the optimizer has not stepped
    engine.train_step([batch(0)], 1e-3).read()
    assert float(model.state_dict()["blocks.0.steps"]) == 1


def test_evaluation_and_batches_of_another_size_run_eagerly_and_compile_nothing(compiler: Counted) -> None:
    eager, engine = build(settings("vit-test")), build(settings("vit-test", compile=True))
    made, compiler.ran = compiler.made, 0
    for count in (BATCH, 3, 1):
        assert torch.equal(engine.predict(batch(0, count)[0]), eager.predict(batch(0, count)[0]))
    torch.manual_seed(0)
    odd = engine.train_step([batch(0, 3)], 1e-3).read()
    torch.manual_seed(0)
    assert odd == eager.train_step([batch(0, 3)], 1e-3).read()
    assert (compiler.made, compiler.ran) == (made, 0)


def test_the_layout_and_the_description_say_what_was_compiled_and_the_timer_how_long(compiler: Counted) -> None:
    for recipe, size in ((settings("vit-test"), SIZE), (settings("vit-test", compile=True), None)):
        engine = build(recipe, image_size=size)  # not wanted on a CPU; no step will be taken
        assert engine.layout["compile"] is False
        assert "compiled" not in engine.description
        assert engine.timer.compiling_s == compiler.made == 0
    engine = build(settings("vit-test", compile=True))
    assert engine.layout["compile"] is True
    assert engine.description.endswith(", blocks compiled")
    assert engine.timer.compiling_s > 0


def test_what_cannot_be_compiled_runs_eagerly_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    eager = losses(build(settings("vit-test")))
    monkeypatch.setattr(_compile, "BACKEND", Refuses())
    engine = build(settings("vit-test", compile=True))
    said = capsys.readouterr().err
    assert "blocks could not be compiled on rank 0, so that all ranks run eagerly" in said
    assert "no compiler of any kind" in said
    assert "engine.compile=false" in said
    assert engine.layout["compile"] is False
    assert losses(engine) == eager


class Leaf(nn.Linear):
    """Made of nothing else: no block."""

    def __init__(self) -> None:
        super().__init__(CLASSES, CLASSES)


def test_a_model_without_blocks_runs_eagerly_in_words(capsys: pytest.CaptureFixture[str], compiler: Counted) -> None:
    engine = build(settings("vit-test", compile=True), Net(Leaf))
    assert "Net: no blocks found to compile" in capsys.readouterr().err
    assert engine.layout["compile"] is False
    assert compiler.made == 0


@pytest.mark.parametrize(
    ("key", "device", "engine", "wanted"),
    [
        ("auto", "cpu", {}, False),
        ("auto", "cuda", {}, True),
        ("auto", "cuda", {"name": "fsdp"}, True),
        ("auto", "cuda", {"name": "deepspeed", "zero_stage": 2}, True),
        ("auto", "cuda", {"name": "deepspeed", "zero_stage": 3}, False),
        (True, "cpu", {}, True),
        (True, "cuda", {}, True),
        (False, "cuda", {}, False),
        (False, "cpu", {}, False),
    ],
)
def test_auto_compiles_on_gpus_where_the_engine_is_for_it(
    key: Any, device: str, engine: dict[str, Any], wanted: bool
) -> None:
    config = settings("vit-test", compile=key, **engine).engine
    assert _compile.is_wanted(config, torch.device(device)) is wanted


@pytest.mark.parametrize(
    ("model", "kinds"),
    [
        ("vit-test", {"Block": 2}),
        ("bit-test", {"PreActBottleneck": 2}),
        ("hybrid-test", {"Bottleneck": 2, "Block": 1}),
        ("timm:test_vit", {"Block": 2}),
        ("timm:test_convnext", {"ConvNeXtBlock": 9}),
    ],
)
def test_blocks_are_what_repeats_in_a_model(model: str, kinds: dict[str, int]) -> None:
    found = [type(block).__name__ for block in repeated_blocks(build_model(model, **FAMILIES.get(model, {})))]
    assert {kind: found.count(kind) for kind in found} == kinds


def test_stage_3_is_not_compiled_and_asking_for_it_is_refused() -> None:
    assert settings("vit-test", name="deepspeed", zero_stage=3).engine.compile == "auto"
    assert settings("vit-test", name="deepspeed", zero_stage=2, compile=True).engine.compile is True
    with pytest.raises(ConfigError, match=r"engine\.compile: true does not go with engine\.zero_stage=3"):
        settings("vit-test", name="deepspeed", zero_stage=3, compile=True)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed: NOTHING WAS COMPILED by inductor")
def test_inductor_compiles_a_block_that_trains_as_the_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = {"name": "vit-test", "depth": 1, "dropout": 0.2}
    eager = losses(build(settings(model, activation_checkpointing="full")))
    engine = build(settings(model, activation_checkpointing="full", compile=True))
    said = capsys.readouterr().err
    assert "compiled 1 blocks in" in said
    assert str(tmp_path) in said
    assert any(tmp_path.rglob("*.so"))
    found = losses(engine)
    assert found == pytest.approx(eager, rel=1e-5)
    # Fused sums are taken in another order: had the block been left eager, nothing would differ.
    assert found != eager


def test_without_a_cxx_compiler_blocks_are_eager_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch._inductor.config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    eager = losses(build(settings("vit-test")))
    # What torch has read from CXX in the environment. Not by monkeypatch, which would leave torch without the setting.
    with torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")}):
        engine = build(settings("vit-test", compile=True))
    assert "could not be compiled on rank 0" in capsys.readouterr().err
    assert engine.layout["compile"] is False
    assert losses(engine) == eager
    torch._dynamo.reset()
