"""Errors of torch, gloo and NCCL in the run's words: who is the cause, what it said, what takes less memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vit_dist.config.load import resolve
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, DataError, RunError
from vit_dist.core.world import World
from vit_dist.engines._numerics import numerics
from vit_dist.optim import ScheduleConfig
from vit_dist.train.failures import PeerLostError, explained
from vit_dist.train.plan import Plan

RANK_3 = World(3, 8, 3, "gpu07")
NCCL_ITSELF = """\
NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, unhandled cuda error, NCCL version 2.29.3
ncclUnhandledCudaError: Call to CUDA function failed.
Last error:
Cuda failure 2 'out of memory'"""
NCCL_REMOTE = """\
NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:1, remote process exited or there was a network error
ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.
Last error:
NET/IB: Got completion from peer 10.0.0.3<41034> with status=12"""
OUT_OF_MEMORY = """\
CUDA out of memory. Tried to allocate 2.25 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.19 GiB is free. \
Including non-PyTorch memory, this process has 77.91 GiB memory in use."""


def recipe(engine: str) -> Recipe:
    return resolve(
        {
            "model": "vit-test",
            "global_batch": 64,
            "horizon": "4 steps",
            "data": {"train": "m.json", "num_classes": 4, "image_size": 28},
            "optim": {"name": "adamw", "lr": 1e-3},
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": engine if isinstance(engine, dict) else {"name": engine},
        }
    )


def explain(error: Exception, folder: Path, *, world: World = RANK_3, engine: object = "deepspeed") -> Exception:
    return explained(error, recipe(engine), folder, world, Plan(4, ScheduleConfig(name="none"), 8, 1))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer [10.0.0.4]:4182"),
        RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:534] Read error [10.0.0.4]:4182: Connection reset by peer"),
        RuntimeError("Timed out waiting 660000ms for recv operation to complete"),
        torch.distributed.DistNetworkError("Broken pipe"),
        torch.distributed.DistBackendError(NCCL_REMOTE),
        torch.distributed.DistBackendError("[Rank 3] NCCL communicator was aborted on rank 3."),
        torch.distributed.DistBackendError("NCCL: [Rank 3] Watchdog caught collective operation timeout: WorkNCCL(1)"),
    ],
)
def test_what_says_that_another_rank_is_gone_is_a_lost_peer(error: Exception, tmp_path: Path) -> None:
    lost = explain(error, tmp_path)
    assert isinstance(lost, PeerLostError)
    assert str(error).splitlines()[-1] in str(lost)


OPERATIONS = {
    # As an evaluator, a guard or a solver may ask for them; none of them has a deterministic kernel, not even on a CPU.
    "put_": lambda: torch.zeros(4).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False),
    "put_ of doubles": lambda: torch.zeros(4, dtype=torch.float64).put_(torch.tensor([1]), torch.ones(1).double()),
    "in no-grad": lambda: torch.no_grad()(lambda: torch.zeros(4).put_(torch.tensor([1]), torch.ones(1)))(),
}
WORDS = {
    "kthvalue CUDA": "kthvalue CUDA does not have a deterministic implementation, but you set "
    "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation.",
    "cumsum_cuda_kernel": "cumsum_cuda_kernel does not have a deterministic implementation, but you set it.",
    "_histc_cuda": "_histc_cuda with floating point input does not have a deterministic implementation.",
    "cuBLAS": "Deterministic behavior was enabled with either `torch.use_deterministic_algorithms(True)` or "
    "`at::Context::setDeterministicAlgorithms(true)`, but this operation is not deterministic because it uses CuBLAS "
    "and you have CUDA >= 10.2.",
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_of_an_evaluator_that_is_not_deterministic_is_named_with_the_option(
    name: str, tmp_path: Path
) -> None:
    strict = recipe({"name": "plain", "deterministic": True})  # type: ignore[arg-type]
    with numerics(strict), pytest.raises(RuntimeError) as raised:
        OPERATIONS[name]()
    told = explained(raised.value, strict, tmp_path, RANK_3)
    assert type(told) is ConfigError
    assert str(told).startswith("engine.deterministic=true: torch has no deterministic kernel for put_ on ")
    assert "use engine.deterministic=false" in str(told)


@pytest.mark.parametrize("name", WORDS)
def test_gpus_words_for_what_is_not_deterministic_are_the_runs(name: str, tmp_path: Path) -> None:
    told = explain(RuntimeError(WORDS[name]), tmp_path)
    assert type(told) is ConfigError
    assert str(told).startswith("engine.deterministic=true: ")
    assert name in str(told)
    assert "torch.use_deterministic_algorithms" not in str(told)


def test_an_error_of_nccl_itself_is_whole_and_names_the_rank_that_has_the_cause(tmp_path: Path) -> None:
    told = explain(torch.distributed.DistBackendError(NCCL_ITSELF), tmp_path)
    assert type(told) is RunError
    assert str(told).startswith("rank 3 on gpu07: NCCL has failed")
    assert str(told).endswith(NCCL_ITSELF)


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("shapes differ"), DataError("request timed out")])
def test_all_else_is_left_as_it_is(error: Exception, tmp_path: Path) -> None:
    assert explain(error, tmp_path) is error


def test_memory_that_does_not_suffice_says_what_was_asked_and_what_takes_less(tmp_path: Path) -> None:
    told = explain(torch.cuda.OutOfMemoryError(OUT_OF_MEMORY), tmp_path)
    assert type(told) is RunError
    for words in (
        "rank 3 on gpu07: the GPU's memory does not suffice: 2.25 GiB were asked for, 1.19 GiB of 79.11 GiB are free",
        "engine.max_micro_batch=4 (the micro-batch is 8)",
        "engine.activation_checkpointing=full (is none)",
        "engine.zero_stage=2 (is 1)",
    ):
        assert words in str(told)
    summary = tmp_path / "out-of-memory" / "rank-00003.txt"
    assert str(summary) in str(told)
    assert OUT_OF_MEMORY in summary.read_text()


def test_the_machine_s_own_memory_has_words_too(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    told = explain(caught.value, tmp_path)
    assert type(told) is RunError
    assert str(told).startswith(
        "rank 3 on gpu07: the machine's memory does not suffice: 1048576.0 TiB were asked for. What"
    )
    assert "engine.max_micro_batch=4 (the micro-batch is 8)" in str(told)


def test_only_settings_that_apply_are_named(tmp_path: Path) -> None:
    error = torch.OutOfMemoryError(OUT_OF_MEMORY)
    assert "zero_stage" not in str(explain(error, tmp_path, engine="plain"))
    assert "zero_stage" not in str(explain(error, tmp_path, world=World()))
    engine = {"name": "deepspeed", "zero_stage": 3, "activation_checkpointing": "full"}
    told = str(explained(error, recipe(engine), tmp_path, RANK_3, Plan(4, ScheduleConfig(name="none"), 1, 8)))  # type: ignore[arg-type]
    assert "engine." not in told
    assert "more memory, or more GPUs" in told


@pytest.mark.parametrize(("resharded", "told"), [(False, True), (True, False)])
def test_weights_that_stay_gathered_are_named_where_they_do(tmp_path: Path, resharded: bool, told: bool) -> None:
    engine = {"name": "fsdp", "reshard_after_forward": resharded}
    error = torch.OutOfMemoryError(OUT_OF_MEMORY)
    advice = str(explained(error, recipe(engine), tmp_path, RANK_3, Plan(4, ScheduleConfig(name="none"), 1, 8)))  # type: ignore[arg-type]
    assert ("engine.reshard_after_forward=true (is false)" in advice) is told
    alone = str(explained(error, recipe(engine), tmp_path, World(), Plan(4, ScheduleConfig(name="none"), 1, 8)))  # type: ignore[arg-type]
    assert "reshard_after_forward" not in alone


def test_a_summary_that_cannot_be_written_does_not_hide_the_error(tmp_path: Path) -> None:
    (tmp_path / "out-of-memory").write_text("in the way")
    told = str(explain(torch.OutOfMemoryError("CUDA out of memory."), tmp_path))
    assert "does not suffice: CUDA out of memory." in told
    assert "rank-00003.txt" not in told
