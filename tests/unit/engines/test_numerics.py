"""How exactly a process computes: TF32, deterministic kernels, the kernel of attention, devices without a precision."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conftest import trains_here
from tests.gpu.engines import FSDP, build
from tests.places import GOLDEN
from tests.plugins import build_model
from vit_dist.cli.explain import all_keys
from vit_dist.config.load import resolve
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.engines._layout import images_format
from vit_dist.engines._numerics import check_precision, numerics, slow_bf16
from vit_dist.engines._protocol import Engine, EngineInputs
from vit_dist.train.losses import make_loss
from vit_dist.train.process_group import process_group

SIZE, CLASSES = 28, 10


def recipe(precision: str = "fp32", **engine: Any) -> Recipe:
    return resolve(
        {
            "horizon": "1 epoch",
            "global_batch": 4,
            "precision": precision,
            "model": "vit-test",
            "data": {"num_classes": CLASSES, "image_size": SIZE},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {"name": "plain", **engine},
        }
    )


def plain(settings: Recipe, model: nn.Module) -> Engine:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss, device = make_loss(settings.loss), torch.device("cpu")
    inputs = EngineInputs(model, optimizer, loss, World(), device, settings.precision, None, 4, 1)
    return settings.engine.build(inputs)  # type: ignore[attr-defined, no-any-return]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return images, torch.eye(CLASSES)[:4]


def tf32() -> tuple[bool, bool, str]:
    return (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_tf32_is_on_for_convolutions_and_matmuls_of_that_precision_alone_and_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    before = tf32()
    assert before[0], "cuDNN's is on by default: what fp32 must switch off"
    with numerics(recipe(precision)):
        assert tf32() == (False, False, "highest")  # a CPU knows none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with numerics(recipe(precision)):
        assert tf32() == ((True, True, "high") if precision == "tf32" else (False, False, "highest"))
    assert tf32() == before


def test_deterministic_kernels_are_asked_for_as_long_as_a_run_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    memory: Any = torch.utils.deterministic
    with numerics(recipe()):
        assert not torch.are_deterministic_algorithms_enabled()
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    torch.backends.cudnn.benchmark = True
    try:
        with numerics(recipe(deterministic=True)):
            assert torch.are_deterministic_algorithms_enabled()
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
            assert not memory.fill_uninitialized_memory
            assert not torch.backends.cudnn.benchmark
        assert not torch.are_deterministic_algorithms_enabled()
        assert memory.fill_uninitialized_memory
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = False
    assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with numerics(recipe(deterministic=True)):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


class Scatters(nn.Module):
    """Writes to places by `put_`, for which torch has no deterministic kernel, not even on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        logits = torch.zeros(len(images), CLASSES).put_(torch.tensor([0, 1]), torch.ones(2))
        return logits * self.weight


def test_an_operation_without_a_deterministic_kernel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    free, strict = recipe(), recipe(deterministic=True)
    with numerics(free):
        assert plain(free, Scatters()).train_step([batch()], 0.1).read().applied
    engine = plain(strict, Scatters())
    with numerics(strict):
        for step in (lambda: engine.train_step([batch()], 0.1), lambda: engine.predict(batch()[0])):
            with pytest.raises(
                ConfigError, match=r"^engine.deterministic=true: torch has no deterministic kernel for put_ on cpu; "
            ) as error:
                step()
            assert "use engine.deterministic=false" in str(error.value)
    engine = plain(
        strict, Fails("this operation is not deterministic because it uses CuBLAS and you have CUDA >= 10.2")
    )
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "off")
    with pytest.raises(ConfigError, match=r"CUBLAS_WORKSPACE_CONFIG='off' in the environment; set it to :4096:8"):
        engine.predict(batch()[0])
    with pytest.raises(RuntimeError, match=r"^something else$"):
        plain(strict, Fails("something else")).predict(batch()[0])


class Fails(nn.Module):
    """Ends as a kernel of torch ends."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self.message, self.weight = message, nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        raise RuntimeError(self.message)


@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_attention_takes_the_kernel_of_the_recipe_in_the_backward_pass_too(
    monkeypatch: pytest.MonkeyPatch, checkpointing: str
) -> None:
    allowed: list[tuple[bool, bool]] = []
    usual = torch.nn.functional.scaled_dot_product_attention

    def noting(*args: Any, **kwargs: Any) -> Tensor:
        allowed.append((torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.math_sdp_enabled()))
        return usual(*args, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", noting)
    for attention, kernels in {"auto": (True, True), "math": (False, True), "flash": (True, False)}.items():
        model = build_model("vit-test", SIZE)
        model.set_activation_checkpointing(checkpointing)
        engine = plain(recipe(attention=attention), model)
        allowed.clear()
        engine.train_step([batch()], 0.1)
        engine.predict(batch()[0])
        passes = 3 if checkpointing == "full" else 2
        assert allowed == [kernels] * passes * len(model.blocks)
        assert engine.layout["attention"] == attention
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cuda.math_sdp_enabled()


def test_a_kernel_of_attention_that_is_not_there_is_refused_in_words() -> None:
    engine = plain(recipe("bf16", attention="cudnn"), build_model("vit-test", SIZE))
    with pytest.raises(ConfigError) as error:
        engine.train_step([batch()], 0.1)
    assert str(error.value) == (
        "engine.attention=cudnn: torch has no such kernel for this model's attention in bf16 on cpu; use "
        "engine.attention=auto, or math, which is always there"
    )


@pytest.mark.parametrize(
    ("precision", "capability", "refused"),
    [
        ("fp32", (6, 0), False),
        ("bf16", (7, 0), True),
        ("tf32", (7, 5), True),
        ("bf16", (8, 0), False),
        ("tf32", (9, 0), False),
        ("tf32", (12, 0), False),
    ],
)
def test_a_precision_that_the_gpu_lacks_is_refused_in_words(
    monkeypatch: pytest.MonkeyPatch, precision: str, capability: tuple[int, int], refused: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla V100-SXM2-16GB")
    check_precision(precision, torch.device("cpu"))
    if not refused:
        check_precision(precision, torch.device("cuda", 3))
        return
    with pytest.raises(ConfigError) as error:
        check_precision(precision, torch.device("cuda", 3))
    assert str(error.value).startswith(
        f"precision={precision}: Tesla V100-SXM2-16GB (cuda:3) computes no {precision}, "
    )
    assert "use precision=fp32" in str(error.value)


def test_the_keys_that_are_told_to_be_of_the_layout_are_in_it() -> None:
    marker = json.loads((GOLDEN / "checkpoint" / "step-0000000004" / "COMMITTED.json").read_text())
    with trains_here(), process_group(World()):
        fsdp = build(torch.device("cpu"), "vit-test", FSDP).layout
    written = {*plain(recipe(), build_model("vit-test")).layout, *fsdp, *marker["layout"]}
    told = {key.path.rpartition(".")[2] for key in all_keys() if key.layout}
    of_no_recipe = {"torch", "deepspeed", "world_size", "device", "tf32", "head"}
    assert {"engine" if name == "name" else name for name in told} == written - of_no_recipe


@pytest.mark.parametrize(
    ("capability", "precision", "device", "said"),
    [
        ("AVX2", "bf16", "cpu", True),
        ("AVX2", "fp32", "cpu", False),
        ("AVX512", "bf16", "cpu", False),
        ("SVE256", "bf16", "cpu", False),
        ("AVX2", "bf16", "cuda", False),
    ],
)
def test_bf16_is_said_to_be_slow_where_the_cpu_has_no_kernels_for_it(
    capability: str, precision: str, device: str, said: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert ("precision=fp32" in slow_bf16(precision, torch.device(device))) is said


@pytest.mark.parametrize(
    ("model", "device", "engine", "last"),
    [
        ("bit-test", "cuda", {}, True),
        ("hybrid-test", "cuda", {"compile": True}, True),
        ("vit-test", "cuda", {}, False),
        ("bit-test", "cuda", {"compile": False}, False),
        ("bit-test", "cuda", {"name": "deepspeed", "zero_stage": 3}, False),
        ("bit-test", "cuda", {"name": "deepspeed", "zero_stage": 1}, True),
        ("bit-test", "cpu", {"compile": True}, False),
        ("vit-test", "cpu", {"channels_last": True}, True),
        ("bit-test", "cuda", {"channels_last": False}, False),
    ],
)
def test_images_lie_as_nhwc_where_convolutions_are_compiled_on_a_gpu(
    model: str, device: str, engine: dict[str, Any], last: bool
) -> None:
    config: Any = recipe(**engine).engine
    found = images_format(config, build_model(model), torch.device(device))
    assert found is (torch.channels_last if last else torch.contiguous_format)
