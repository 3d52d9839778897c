"""Blocks compiled by inductor: on a GPU by Triton, on a CPU by a C++ compiler."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.gpu.engines import FSDP, PLAIN, RESHARDED, SIZE, batch, build, steps
from tests.host_reads import HostReads

pytestmark = pytest.mark.gpu

ENGINES = {"plain": PLAIN, "fsdp": FSDP, "resharded": RESHARDED}


@pytest.fixture
def compiler(one_rank: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of its own, and whatever inductor needs there."""
    if one_rank.type == "cpu" and shutil.which("g++") is None:
        pytest.skip("g++ is not installed: NOTHING WAS COMPILED by inductor")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("precision", "recompute"), [("fp32", "none"), ("bf16", "full")])
def test_compiled_blocks_train_as_eager_ones_and_nobody_waits_for_a_step(
    one_rank: torch.device, engine: str, precision: str, recompute: str
) -> None:
    settings: dict[str, Any] = {**ENGINES[engine], "activation_checkpointing": recompute}
    eager = steps(build(one_rank, "vit-test", settings, precision, image_size=None), 3)
    # What `auto` does on a GPU a CPU does where it is told to.
    settings["compile"] = "auto" if one_rank.type == "cuda" else True
    compiled = build(one_rank, "vit-test", settings, precision, image_size=SIZE)
    assert compiled.layout["compile"] is True
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as seen:
        found = steps(compiled, 3)
    # Both blocks, and again where they are recomputed.
    ran = [event.name for event in seen.events() or ()].count("CompiledFunction")
    assert ran == 3 * 2 * (2 if recompute == "full" else 1)
    loss, norm = (1e-4, 5e-4) if precision == "fp32" else (5e-3, 25e-3)
    for a, b in zip(eager, found, strict=True):
        assert b.loss == pytest.approx(a.loss, rel=loss)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=norm)
    micro_batches = [tuple(tensor.to(one_rank) for tensor in batch(3))]
    with HostReads() as reads:
        pending = compiled.train_step(micro_batches, 1e-3)  # type: ignore[arg-type]
    assert reads.places == []
    assert pending.read().applied
