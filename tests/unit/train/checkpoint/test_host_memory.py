"""The memory of the first copy is taken ahead where it is pinned; a GPU is played by a slow allocation."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins import build_model, plugin_config
from vit_dist.core.registry import OPTIMIZERS
from vit_dist.core.run.checkpoints import committed
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.engines._plain import PlainEngine
from vit_dist.engines._protocol import EngineInputs
from vit_dist.engines.plain import PlainConfig
from vit_dist.train.checkpoint import host_memory
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.host_memory import expected_bytes
from vit_dist.train.checkpoint.saver import Contents, Saver
from vit_dist.train.checkpoint.store import Retention

OPTIMIZER_SETTINGS = [
    ("adamw", {}),
    ("sgd", {}),
    ("sgd", {"momentum": 0.0}),
]


def engine_of(optimizer: str, settings: dict[str, Any], rank: int = 0, size: int = 1) -> PlainEngine:
    model = build_model("vit-test", num_classes=4)
    config = plugin_config(OPTIMIZERS, optimizer, lr=0.1, **settings)
    engine = PlainEngine(
        PlainConfig(name="plain"),
        EngineInputs(
            model=model,
            optimizer=config.build(model),  # type: ignore[attr-defined]
            loss=lambda logits, _: logits.square().mean(),
            world=World(),
            device=torch.device("cpu"),
            precision="fp32",
            clip=None,
            micro_batch=2,
            accumulation=1,
        ),
    )
    # Its state as one rank of several would cut it: no process group is needed for that.
    object.__setattr__(engine._in, "world", World(rank, size))
    return engine


def step(engine: PlainEngine) -> None:
    rank_of = engine._in.world
    object.__setattr__(engine._in, "world", World())
    engine.train_step([(torch.zeros(2, 3, 28, 28, dtype=torch.uint8), torch.zeros(2, 4))], 0.1)
    object.__setattr__(engine._in, "world", rank_of)


def bytes_of(engine: PlainEngine) -> int:
    return sum(piece.data.numel() * piece.data.element_size() for piece in engine.state().slices)


def contents(at: int) -> Contents:
    return Contents({"step": at, "position": at}, {"lr": 1.0}, {"engine": "plain"}, {})


@pytest.mark.parametrize(("optimizer", "settings"), OPTIMIZER_SETTINGS)
@pytest.mark.parametrize(("rank", "size"), [(0, 1), (0, 3), (2, 3)])
def test_what_a_first_checkpoint_takes_is_known_before_the_first_step(
    optimizer: str, settings: dict[str, Any], rank: int, size: int
) -> None:
    engine = engine_of(optimizer, settings, rank, size)
    moments = plugin_config(OPTIMIZERS, optimizer, lr=0.1, **settings).moments  # type: ignore[attr-defined]
    before = expected_bytes(engine.state(), moments)
    step(engine)
    actual = bytes_of(engine)
    assert actual <= before <= actual + 4096 * moments + 64
    assert expected_bytes(engine.state(), 0) == actual


@pytest.fixture
def slow_pinning(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], threading.Event]:
    """What happened, in order; an allocation waits for the event."""
    events: list[str] = []
    gate, allocate = threading.Event(), host_memory.allocate

    def pin(num_bytes: int) -> torch.Tensor:
        events.append(f"pinning in {threading.current_thread().name}")
        gate.wait(10)
        block = allocate(num_bytes)
        events.append("pinned")
        return block

    monkeypatch.setattr(host_memory, "allocate", pin)
    monkeypatch.setattr("vit_dist.train.checkpoint.saver.pins", lambda: True)
    return events, gate


def saver_in(tmp_path: Path) -> Saver:
    RunDir(tmp_path).write_json("owner.json", {"token": "mine", "attempt": 1, "host": "h", "pid": 7})
    return Saver(RunDir(tmp_path), World(), "mine", Retention(2))


def test_pinning_runs_beside_the_first_steps_and_the_first_save_waits_for_it(
    tmp_path: Path, slow_pinning: tuple[list[str], threading.Event]
) -> None:
    (events, gate), engine, saver = slow_pinning, engine_of("adamw", {}), saver_in(tmp_path)
    saver.prepare(engine, 2)
    step(engine)
    events.append("stepped")
    threading.Timer(0.2, gate.set).start()
    saver.save(engine, contents(1))
    events.append("saved")
    step(engine)
    saver.save(engine, contents(2))
    saver.finish()
    # One allocation for both saves, and not in the thread that trains.
    assert sorted(events[:2]) == ["pinning in checkpoint memory", "stepped"]
    assert events[2:] == ["pinned", "saved"]
    (newest, *_) = committed(tmp_path / "checkpoints")
    source = SliceSource(sorted(newest.glob("*.safetensors")))
    for name, weight in engine.module.named_parameters():
        assert torch.equal(source.tensor("weight", name), weight.detach())


def test_a_first_save_pins_for_itself_where_that_failed_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, allocate = [], host_memory.allocate

    def pin(num_bytes: int) -> torch.Tensor:
        threads.append(threading.current_thread())
        if len(threads) == 1:
            raise RuntimeError("CUDA error: out of memory")
        return allocate(num_bytes)

    monkeypatch.setattr(host_memory, "allocate", pin)
    monkeypatch.setattr("vit_dist.train.checkpoint.saver.pins", lambda: True)
    engine, saver = engine_of("sgd", {}), saver_in(tmp_path)
    saver.prepare(engine, 1)
    saver.save(engine, contents(1))
    saver.finish()
    assert threads[1:] == [threading.main_thread()]
    assert threads[0] is not threading.main_thread()
    assert len(committed(tmp_path / "checkpoints")) == 1


def test_without_a_gpu_nothing_is_taken_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, allocate = [], host_memory.allocate
    monkeypatch.setattr(host_memory, "allocate", lambda n: (sizes.append(n), allocate(n))[1])
    engine, saver = engine_of("adamw", {}), saver_in(tmp_path)
    saver.prepare(engine, 2)
    assert not saver._memory.is_taken
    step(engine)
    saver.save(engine, contents(1))
    saver.finish()
    assert sizes == [bytes_of(engine)]


def test_headroom_is_asked_for_what_pinning_rounds_up_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    engine = engine_of("adamw", {})
    step(engine)
    rounded = 1 << bytes_of(engine).bit_length()
    # Enough for the bytes themselves and a tenth, not for the power of two that they are rounded up to.
    available = int(1.2 * bytes_of(engine))
    assert available < rounded, "choose another model"
    monkeypatch.setattr("vit_dist.train.checkpoint.saver.available_memory", lambda: available)
    saver = saver_in(tmp_path)
    assert saver._all_have_headroom(bytes_of(engine))
    monkeypatch.setattr(host_memory, "pins", lambda: True)
    assert not saver._all_have_headroom(bytes_of(engine))
    assert "of pinned memory) do not fit a second time into the" in capsys.readouterr().err
