"""The average of weights: against a reference in float64, over skipped steps, and while it is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import trains_here
from tests.gpu.engines import FSDP, PLAIN, batch, build, recipe, zero
from vit_dist.config.ema import EmaConfig
from vit_dist.core.errors import CheckpointError, ConfigError
from vit_dist.core.world import World
from vit_dist.engines._average import Average, Averaging, averaging_of, check_averages
from vit_dist.engines._fit import Held
from vit_dist.engines._protocol import Engine
from vit_dist.engines._slices import AVERAGE, AVERAGED, WEIGHT
from vit_dist.train.checkpoint.host_memory import expected_bytes
from vit_dist.train.process_group import process_group

CPU = torch.device("cpu")
ENGINES = {"plain": PLAIN, "fsdp": FSDP, "zero-1": zero(1), "zero-2": zero(2)}
"""Stage 3 replaces torch's linear function for good: tests/laws/test_recovery_elastic.py has it, and more ranks."""


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    with trains_here(), process_group(World()):
        yield


def reference(weights: list[np.ndarray], decay: float | None) -> np.ndarray:
    """Of the weights after each step that counts, in float64."""
    if decay is None:
        return np.mean(weights, axis=0, dtype=np.float64)
    average = weights[0].astype(np.float64)
    for one in weights[1:]:
        average = decay * average + (1 - decay) * one.astype(np.float64)
    return average


@pytest.mark.parametrize("decay", [0.9, 0.999, None])
def test_it_is_the_reference_over_many_steps_and_stands_still_in_skipped_ones(decay: float | None) -> None:
    draw = torch.Generator().manual_seed(0)
    master = torch.randn(1000, generator=draw)
    average, seen = Average(Averaging(decay), [master], CPU), []
    for step in range(200):
        before = average.of(master).clone()
        applied: Any = torch.tensor(step % 7 != 3) if step % 2 else step % 7 != 3
        if applied:
            master.add_(torch.randn(1000, generator=draw), alpha=0.1)
            seen.append(master.numpy().copy())
        average.update(applied)
        assert applied or torch.equal(before, average.of(master))
    assert average.counted() == len(seen)
    np.testing.assert_allclose(average.of(master).numpy(), reference(seen, decay), rtol=2e-5, atol=2e-6)


def test_the_first_step_that_counts_is_copied_whatever_was_skipped_before() -> None:
    master = torch.full((3,), 2.0)
    average = Average(Averaging(0.9), [master], CPU)
    average.update(torch.tensor(False))
    master.fill_(5.0)
    average.update(torch.tensor(True))
    assert average.of(master).tolist() == [5.0] * 3
    assert average.counted() == 1


def pieces(engine: Engine, *kinds: str) -> dict[tuple[str, str], torch.Tensor]:
    found = {(piece.kind, piece.name): piece.data.clone() for piece in engine.state().slices}
    return {key: data for key, data in found.items() if not kinds or key[0] in kinds}


@pytest.mark.parametrize(("name", "decay"), [*((name, 0.7) for name in ENGINES), ("plain", None)])
def test_every_engine_averages_its_masters_and_leaves_out_skipped_steps(name: str, decay: float | None) -> None:
    engine = build(CPU, "vit-test", ENGINES[name], averaging=Averaging(decay))
    average, seen = engine.average, []
    assert average is not None
    for step in range(6):
        images, targets = batch(step)
        before = pieces(engine, AVERAGE, AVERAGED)
        # The third gives NaN, the fifth is over the limit.
        pending = engine.train_step(
            [(images, targets * float("nan") if step == 2 else targets)], 1e-2, skip_over=0.0 if step == 4 else 1e9
        )
        average.update(pending.applied)
        assert pending.read().applied == (step not in {2, 4})
        if pending.read().applied:
            seen.append(pieces(engine, WEIGHT))
        else:
            assert all(torch.equal(data, before[key]) for key, data in pieces(engine, AVERAGE, AVERAGED).items())
    found = pieces(engine, AVERAGE)
    assert {key[1] for key in found} == {key[1] for key in seen[0]}
    for (_, weight), data in found.items():
        expected = reference([one[WEIGHT, weight].numpy() for one in seen], decay)
        np.testing.assert_allclose(data.numpy(), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "precision"),
    [("plain", "fp32"), ("fsdp", "bf16"), ("zero-1", "bf16"), ("zero-1", "fp32"), ("zero-2", "bf16")],
)
def test_the_average_computes_as_a_model_of_these_weights_and_not_a_bit_of_training_changes(
    name: str, precision: str
) -> None:
    def trained(looks: bool) -> tuple[Engine, dict[tuple[str, str], torch.Tensor]]:
        engine = build(CPU, "vit-test", ENGINES[name], precision, averaging=Averaging(0.5))
        assert engine.average is not None
        for step in range(3):
            engine.average.update(engine.train_step([batch(step)], 1e-2).applied)
            if looks:
                with engine.averaged():
                    engine.predict(batch(9)[0])
        return engine, pieces(engine)

    engine, state = trained(looks=True)
    straight = trained(looks=False)[1]
    assert all(torch.equal(data, straight[key]) for key, data in state.items())
    with engine.averaged():
        said = engine.predict(batch(9)[0])
    # Another engine, whose weights these are.
    fresh = build(CPU, "vit-test", ENGINES[name], precision, seed=1)
    fresh.load(Given({(WEIGHT, key[1]): data for key, data in state.items() if key[0] == AVERAGE}, fresh))
    assert torch.equal(said, fresh.predict(batch(9)[0]))
    assert not torch.equal(said, engine.predict(batch(9)[0]))
    assert engine.master_mismatch() == ""


class Given:
    """See engines/_slices.Source: tensors as they are, flat."""

    def __init__(self, tensors: dict[tuple[str, str], torch.Tensor], engine: Engine) -> None:
        self._tensors = tensors
        self._shapes: Callable[[tuple[str, str]], tuple[int, ...]] = lambda key: engine.wanted().tensors[key][0]

    def kinds(self, name: str) -> list[str]:
        return sorted(kind for kind, of in self._tensors if of == name and kind not in {WEIGHT, AVERAGE})

    def scalars(self, name: str) -> dict[str, float]:
        return {}

    def holds(self, kind: str, name: str) -> bool:
        return (kind, name) in self._tensors

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        return self._shapes((kind, name))

    def read(self, kind: str, name: str, start: int, stop: int) -> torch.Tensor:
        return self._tensors[kind, name][start:stop]


def test_an_engine_that_loads_weights_alone_averages_anew() -> None:
    engine = build(CPU, "vit-test", PLAIN, averaging=Averaging(0.5))
    assert engine.average is not None
    engine.average.update(engine.train_step([batch(0)], 1e-2).applied)
    weights = {key: torch.ones_like(data) for key, data in pieces(engine, WEIGHT).items()}
    engine.load(Given(weights, engine))
    assert engine.average.counted() == 0
    assert all(torch.equal(data, torch.ones_like(data)) for data in pieces(engine, AVERAGE).values())


@pytest.mark.parametrize("count", [float("nan"), float("inf"), -1.0, 2.5])
def test_a_checkpoint_whose_count_is_no_number_of_steps_is_refused(count: float) -> None:
    engine = build(CPU, "vit-test", PLAIN, averaging=Averaging(0.5))
    forged = {**pieces(engine), (AVERAGED, "steps"): torch.tensor([count], dtype=torch.float64)}
    with pytest.raises(CheckpointError, match="steps count in its average"):
        engine.load(Given(forged, engine))


def test_an_engine_of_a_plug_in_that_keeps_none_is_refused() -> None:
    asked = recipe("vit-test", PLAIN).model_copy(update={"ema": EmaConfig()})
    with pytest.raises(ConfigError, match=r"engine\.name=plain keeps no average of the weights"):
        check_averages(asked, object())
    check_averages(asked, build(CPU, "vit-test", PLAIN, averaging=averaging_of(asked)))
    check_averages(recipe("vit-test", PLAIN), object())


@pytest.mark.parametrize("name", ["plain", "zero-1"])
def test_host_memory_for_the_first_checkpoint_counts_the_average(name: str) -> None:
    engine = build(CPU, "vit-test", ENGINES[name], averaging=Averaging(0.5))
    expected = expected_bytes(engine.state(), 2)
    engine.train_step([batch(0)], 1e-2)
    held = sum(piece.data.numel() * piece.data.element_size() for piece in engine.state().slices)
    assert held <= expected <= held + 2 * 4096


@pytest.mark.parametrize(
    ("wrote", "reads", "problem"),
    [
        (None, Averaging(0.5), "no part has the average"),
        (Averaging(0.5), None, "the recipe's `ema` keeps none"),
        (Averaging(0.5), Averaging(0.5), ""),
    ],
)
def test_a_checkpoint_has_an_average_where_the_recipe_keeps_one_and_else_none(
    wrote: Averaging | None, reads: Averaging | None, problem: str
) -> None:
    state = build(CPU, "vit-test", PLAIN, averaging=wrote).state()
    held = {(piece.kind, piece.name): Held(piece.shape, piece.data.dtype, "part") for piece in state.slices}
    found = build(CPU, "vit-test", PLAIN, averaging=reads).wanted().misfit(held, state.scalars)
    assert (problem in found) if problem else not found
