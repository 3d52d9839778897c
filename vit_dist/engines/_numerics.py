"""How exactly a process computes: TF32, deterministic kernels, the kernel of attention, and what a device lacks."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError
from vit_dist.engines import Attention, EngineConfig
from vit_dist.engines._protocol import Compilation, EngineInputs

P = ParamSpec("P")
R = TypeVar("R")

_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
# Of torch's two errors in deterministic mode, the first names the operation, in one word or several.
_NOT_DETERMINISTIC = re.compile(r"([^\n]*\S) does not have a deterministic implementation")
_CUBLAS_NOT_DETERMINISTIC = "not deterministic because it uses CuBLAS"
# With one kernel allowed and no other to fall back to, as CPUs and GPUs say it.
_NO_ATTENTION = ("No viable backend for scaled_dot_product_attention", "No available kernel")


class _Computes(Protocol):
    """An engine, as far as `computed` asks."""

    @property
    def _config(self) -> EngineConfig: ...

    @property
    def _in(self) -> EngineInputs: ...

    @property
    def _compiled(self) -> Compilation: ...


E = TypeVar("E", bound=_Computes)


def uses_tf32(precision: str) -> bool:
    """Whether fp32 products are rounded to TF32 first. CPUs have none: there `tf32` is `fp32`."""
    return precision == "tf32" and torch.cuda.is_available()


@contextlib.contextmanager
def numerics(recipe: Recipe) -> Iterator[None]:
    """Set what a recipe says about a whole process, for as long as the block lasts. Before CUDA is used."""
    deterministic = bool(getattr(recipe.engine, "deterministic", False))
    with _tf32(uses_tf32(recipe.precision)), strictly_deterministic() if deterministic else contextlib.nullcontext():
        yield


def full_products() -> contextlib.AbstractContextManager[None]:
    """For as long as the block lasts fp32 products are of fp32, also where a recipe rounds them to TF32."""
    return _tf32(False)


@contextlib.contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    # These two and not torch.backends.*.fp32_precision: torch refuses to answer one way what was set the other, and
    # inductor asks this way. cuDNN's is on unless it is switched off.
    cudnn: Any = torch.backends.cudnn
    cublas: Any = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, cublas.allow_tf32
    cudnn.allow_tf32 = cublas.allow_tf32 = allowed
    try:
        yield
    finally:
        cudnn.allow_tf32, cublas.allow_tf32 = before


@contextlib.contextmanager
def strictly_deterministic() -> Iterator[None]:
    """For as long as the block lasts torch refuses what has no deterministic kernel. Before CUDA is used."""
    cudnn: Any = torch.backends.cudnn
    memory: Any = torch.utils.deterministic
    mode = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = os.environ.get(_WORKSPACE), memory.fill_uninitialized_memory, cudnn.benchmark
    # cuBLAS reads it once, when it is first used. A value that the user gave is as good.
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    torch.use_deterministic_algorithms(True)
    # It would write every torch.empty, for programs that read what they have not written.
    memory.fill_uninitialized_memory = False
    # It times convolutions anew in each process, and takes what was fastest.
    cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode[0], warn_only=mode[1])
        workspace, memory.fill_uninitialized_memory, cudnn.benchmark = before
        if workspace is None:
            os.environ.pop(_WORKSPACE, None)


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse what the device would emulate in software, or leave out in silence.

    Raises:
        ConfigError: the GPU has no bf16, or no TF32.
    """
    if device.type != "cuda" or precision == "fp32":
        return
    # ROCm's own rules, of which torch asks none.
    if torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0):
        return
    raise ConfigError(
        f"precision={precision}: {torch.cuda.get_device_name(device)} (cuda:{device.index}) computes no {precision}, "
        f"which NVIDIA's GPUs have from Ampere on (compute capability 8.0); use precision=fp32, or other GPUs"
    )


def slow_bf16(precision: str, device: torch.device) -> str:
    """What to say of bf16 on a CPU without kernels for it, or ''.

    A step of a small ViT took eight times as long as in fp32 on an x86 CPU with AVX2 alone.
    """
    if device.type != "cpu" or precision != "bf16" or torch.backends.cpu.get_cpu_capability() != "AVX2":
        return ""
    return "this CPU has no AVX-512, without which bf16 is slow in torch: precision=fp32 is several times as fast here"


def attention_kernel(attention: Attention) -> contextlib.AbstractContextManager[Any]:
    """For as long as the block lasts, scaled_dot_product_attention has this kernel alone."""
    return contextlib.nullcontext() if attention == "auto" else sdpa_kernel(_KERNELS[attention])


def computed(method: Callable[Concatenate[E, P], R]) -> Callable[Concatenate[E, P], R]:
    """An engine's method with the config's kernel of attention and its compiled blocks.

    Where torch has no kernel as asked, that is said in our words.
    Around a whole step: what activation checkpointing computes again in the backward pass must take the same kernel.
    """

    @functools.wraps(method)
    def with_kernels(engine: E, /, *args: P.args, **kwargs: P.kwargs) -> R:
        attention = engine._config.attention
        try:
            with attention_kernel(attention), engine._compiled.running():
                return method(engine, *args, **kwargs)
        except RuntimeError as error:
            refusal = _refused_by_torch(str(error), attention, engine._in)
            if not refusal:
                raise
            raise ConfigError(refusal) from error

    return with_kernels


def _refused_by_torch(message: str, attention: str, inputs: EngineInputs) -> str:
    """What keeps a step from being computed as asked, and what to do; '' where the error is of another kind."""
    if any(words in message for words in _NO_ATTENTION):
        return (
            f"engine.attention={attention}: torch has no such kernel for this model's attention in {inputs.precision} "
            f"on {inputs.device.type}; use engine.attention=auto, or math, which is always there"
        )
    return not_deterministic(message, inputs.device.type)


def not_deterministic(message: str, device: str, what: str = "model") -> str:
    """What torch's error in deterministic mode means for the recipe; '' where the error is of another kind.

    Args:
        message: of torch.
        device: on which it was computed: cpu, cuda.
        what: asks for the operation.
    """
    without = _NOT_DETERMINISTIC.search(message)
    if without is not None:
        return (
            f"engine.deterministic=true: torch has no deterministic kernel for {without.group(1)} on {device}; use "
            f"engine.deterministic=false, with which a resumed run may differ in last bits, or a {what} without this "
            f"operation"
        )
    if _CUBLAS_NOT_DETERMINISTIC in message:
        return (
            f"engine.deterministic=true: cuBLAS is not deterministic with "
            f"{_WORKSPACE}={os.environ.get(_WORKSPACE, '')!r} in the environment; set it to :4096:8, or unset it"
        )
    return ""
