"""Engines on a GPU: they train as on the CPU, keep state bit for bit, and skip what is not finite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.gpu.engines import FAMILIES, FSDP, PLAIN, RESHARDED, batch, build, losses, recipe, steps, zero
from vit_dist.core.world import World
from vit_dist.engines._protocol import Engine
from vit_dist.optim import ScheduleConfig
from vit_dist.train.checkpoint.format import SliceSource, Snapshot
from vit_dist.train.checkpoint.host_memory import HostMemory
from vit_dist.train.failures import explained
from vit_dist.train.plan import Plan

pytestmark = pytest.mark.gpu

# Stage 3 last wherever both are used: it replaces torch's linear function for good.
ENGINES = {"plain": PLAIN, "fsdp": FSDP, "resharded": RESHARDED, "zero1": zero(1), "zero2": zero(2), "zero3": zero(3)}


def written(engine: Engine, path: Path) -> SliceSource:
    """Its state as a checkpoint's file."""
    Snapshot(engine.state(), HostMemory()).write(path)
    return SliceSource([path])


def same_bits(a: SliceSource, b: SliceSource) -> bool:
    """Whether two checkpoints hold the same tensors, each element the same bits."""
    assert a.names() == b.names() != []
    return all(torch.equal(a.tensor(*name).view(torch.uint8), b.tensor(*name).view(torch.uint8)) for name in a.names())


def test_deepspeed_s_device_is_the_one_that_was_chosen(one_rank: torch.device) -> None:
    assert os.environ["LOCAL_RANK"] == str(one_rank.index or 0)
    if one_rank.type == "cuda":
        assert torch.cuda.current_device() == one_rank.index


def test_memory_that_does_not_suffice_is_told_with_what_takes_less(one_rank: torch.device, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 50, dtype=torch.uint8, device=one_rank)
    told = explained(
        caught.value, recipe("vit-test", PLAIN), tmp_path, World(), Plan(4, ScheduleConfig(name="none"), 8, 1)
    )
    whose, asked = ("GPU", "1048576.00 GiB") if one_rank.type == "cuda" else ("machine", "1024.0 TiB")
    assert f"the {whose}'s memory does not suffice: {asked} were asked for" in str(told)
    assert "What takes less: engine.max_micro_batch=4 (the micro-batch is 8); engine.activation_check" in str(told)
    # torch's own summary of what the GPU holds; a CPU has none.
    summaries = [path.read_text() for path in tmp_path.rglob("rank-00000.txt")]
    assert [("Allocated memory" in text) for text in summaries] == [True] * (one_rank.type == "cuda")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("family", FAMILIES)
def test_losses_and_gradient_norms_are_those_of_plain_torch_on_the_cpu(
    one_rank: torch.device, family: str, engine: str
) -> None:
    # The linear function that stage 3 leaves behind computes the same on the CPU.
    reference = steps(build(torch.device("cpu"), family, PLAIN), 6)
    found = steps(build(one_rank, family, ENGINES[engine]), 6)
    assert reference[-1].loss != reference[0].loss
    assert max(abs(a.loss - b.loss) / abs(a.loss) for a, b in zip(reference, found, strict=True)) <= 1e-3
    # Adam and clipping hide how long a gradient is.
    assert max(abs(a.grad_norm - b.grad_norm) / a.grad_norm for a, b in zip(reference, found, strict=True)) <= 5e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_state_crosses_engines_bit_for_bit(one_rank: torch.device, precision: str, tmp_path: Path) -> None:
    first = build(one_rank, "vit-test", PLAIN, precision)
    losses(first, 3)
    before = written(first, tmp_path / "plain")
    for number, name in enumerate(("zero1", "fsdp", "zero3", "resharded", "plain")):
        other = build(one_rank, "vit-test", ENGINES[name], precision, seed=1 + number)
        other.load(before)
        assert same_bits(before, written(other, tmp_path / f"{number}")), name
        # And it trains: a state that only looked restored would not.
        assert all(loss > 0 for loss in losses(other, 2, begin=3))


@pytest.mark.parametrize("engine", ["plain", "fsdp", "zero1"])
def test_a_snapshot_is_the_state_before_the_steps_that_follow(
    one_rank: torch.device, engine: str, tmp_path: Path
) -> None:
    trained = build(one_rank, "vit-test", ENGINES[engine], "bf16")
    losses(trained, 2)
    before = written(trained, tmp_path / "before")
    snapshot = Snapshot(trained.state(), HostMemory())
    losses(trained, 3, begin=2)
    snapshot.write(tmp_path / "during")
    assert same_bits(before, SliceSource([tmp_path / "during"]))
    assert not same_bits(before, written(trained, tmp_path / "after"))


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_weights_that_are_computed_with_are_the_masters_rounded(one_rank: torch.device, engine: str) -> None:
    trained = build(one_rank, "hybrid-test", ENGINES[engine], "bf16")
    losses(trained, 3)
    assert trained.master_mismatch() == ""
    if engine != "zero3":
        with torch.no_grad():
            dict(trained.module.named_parameters())["head.weight"].mul_(2)
        assert trained.master_mismatch() == "head.weight"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_that_is_not_finite_changes_nothing(one_rank: torch.device, engine: str, tmp_path: Path) -> None:
    trained = build(one_rank, "vit-test", ENGINES[engine], "bf16")
    losses(trained, 2)
    before = written(trained, tmp_path / "before")
    images, targets = batch(2)
    result = trained.train_step([(images, targets * float("nan"))], 1e-3).read()
    assert not result.applied
    assert same_bits(before, written(trained, tmp_path / "skipped"))
    assert trained.train_step([batch(3)], 1e-3).read().applied


@pytest.fixture
def strict() -> Iterator[None]:
    """Deterministic algorithms alone. cuBLAS reads its setting once: conftest.py sets it before anything runs."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("strict")
@pytest.mark.parametrize("engine", ["plain", "fsdp", "zero1"])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_needs_an_operation_that_strict_mode_refuses(
    one_rank: torch.device, family: str, engine: str, tmp_path: Path
) -> None:
    sources: list[Any] = []
    for run in range(2):
        trained = build(one_rank, family, ENGINES[engine], "bf16")
        losses(trained, 3)
        sources.append(written(trained, tmp_path / f"{run}"))
    assert same_bits(*sources)
