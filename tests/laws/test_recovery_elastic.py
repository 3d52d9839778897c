"""Law 4 across worlds: a checkpoint of any engine on any number of processes loads into any other, bit for bit.

Weights, moments and the average of the weights, which each engine also evaluates, and is as before.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.laws.test_resume import assert_same_bits, finish, kill_after, recipe_file, start
from vit_dist.core.events.reader import read_run

pytestmark = pytest.mark.distributed

LOSS_TOLERANCE = {"fp32": 1e-5, "bf16": 5e-3}
"""Relative, of the two steps after loading: only the order of sums, or the engine's own rounding, differs."""


@pytest.mark.parametrize("precision", [pytest.param("fp32", marks=pytest.mark.drill), "bf16"])
def test_weights_and_moments_cross_worlds_and_engines_without_a_bit_changed(
    tmp_path: Path, run_world: Callable[..., Any], precision: str
) -> None:
    def place(name: str) -> str:
        return str(tmp_path / name)

    zero = {stage: f"zero-{stage}-{precision}" for stage in (1, 2, 3)}
    fsdp, resharded = f"fsdp-{precision}", f"fsdp-resharded-{precision}"
    plain = f"plain-{precision}"
    two = [f"train:{engine}:{place(f'two-{engine}')}" for engine in (plain, fsdp, zero[1], zero[2], zero[3])]
    again = f"load:{fsdp}:{place(f'two-{fsdp}')}:{place('two-again')}"
    # On three ranks most weights are cut unevenly, and of some the last ranks hold no row.
    three = [
        f"load:{fsdp}:{place(f'two-{zero[1]}')}:{place('three-d')}",
        f"load:{resharded}:{place(f'two-{fsdp}')}:{place('three-e')}",
    ]
    # Stage 3 comes last in each process: it replaces torch's linear function for good.
    one = [
        f"load:{plain}:{place('three-e')}:{place('one-e')}",
        f"load:{fsdp}:{place(f'two-{plain}')}:{place('one-f')}",
        f"load:{zero[2]}:{place(f'two-{zero[1]}')}:{place('one-a')}",
        f"load:{plain}:{place(f'two-{zero[3]}')}:{place('one-b')}",
        f"load:{zero[3]}:{place(f'two-{plain}')}:{place('one-c')}",
    ]
    back = [
        f"load:{fsdp}:{place('one-e')}:{place('back-e')}",
        f"load:{resharded}:{place('one-f')}:{place('back-f')}",
        f"load:{zero[2]}:{place('three-d')}:{place('back-d')}",
        f"load:{zero[1]}:{place('one-a')}:{place('back-a')}",
        f"load:{zero[2]}:{place('one-c')}:{place('back-c')}",
        f"load:{zero[3]}:{place('one-b')}:{place('back-b')}",
    ]
    losses = run_world("laws/recovery_worker.py", 2, *two[:2], again, *two[2:])
    assert losses[again] == losses[two[1]][4:], "on an equal layout what follows is the same, bit for bit"
    losses |= run_world("laws/recovery_worker.py", 3, *three)
    losses |= run_world("laws/recovery_worker.py", 1, *one)
    losses |= run_world("laws/recovery_worker.py", 2, *back)
    step = "checkpoints/step-0000000004"
    for origin, copies, made in (
        (f"two-{zero[1]}", ("one-a", "back-a"), (one[2], back[3])),
        (f"two-{zero[3]}", ("one-b", "back-b"), (one[3], back[5])),
        (f"two-{plain}", ("one-c", "back-c"), (one[4], back[4])),
        (f"two-{plain}", ("one-f", "back-f"), (one[1], back[1])),
        (f"two-{fsdp}", ("two-again", "three-e", "one-e", "back-e"), (three[1], one[0], back[0])),
        (f"two-{zero[1]}", ("three-d", "back-d"), (three[0], back[2])),
    ):
        for copy in copies:
            assert_same_bits(tmp_path / origin / step, tmp_path / copy / step)
        trained = next(values for key, values in losses.items() if key.endswith(f":{place(origin)}"))
        for key in made:
            for continued, expected in zip(losses[key], trained[4:], strict=True):
                assert abs(continued - expected) <= LOSS_TOLERANCE[precision] * abs(expected), (
                    key,
                    continued,
                    expected,
                )


@pytest.mark.parametrize(("precision", "nproc"), [pytest.param("fp32", 2, marks=pytest.mark.drill), ("bf16", 1)])
def test_fsdp_takes_weights_and_moments_from_other_engines_and_worlds_and_gives_them(
    tmp_path: Path, run_world: Callable[..., Any], precision: str, nproc: int
) -> None:
    fsdp, resharded = f"fsdp-{precision}", f"fsdp-resharded-{precision}"
    # On three ranks most weights are cut unevenly, and of some the last ranks hold no row.
    three = [f"train:plain-{precision}:{tmp_path}/plain", f"train:{fsdp}:{tmp_path}/fsdp"]
    others = [
        f"load:{resharded}:{tmp_path}/plain:{tmp_path}/plain-a",
        f"load:plain-{precision}:{tmp_path}/fsdp:{tmp_path}/fsdp-a",
        f"load:zero-1-{precision}:{tmp_path}/fsdp:{tmp_path}/fsdp-b",
        f"load:{fsdp}:{tmp_path}/fsdp-b:{tmp_path}/fsdp-c",
        # Last: stage 3 replaces torch's linear function for good.
        f"load:zero-3-{precision}:{tmp_path}/fsdp:{tmp_path}/fsdp-d",
    ]
    again = f"load:{fsdp}:{tmp_path}/fsdp:{tmp_path}/fsdp-again"
    losses = run_world("laws/recovery_worker.py", 3, *three, again)
    losses |= run_world("laws/recovery_worker.py", nproc, *others)
    assert losses[again] == losses[three[1]][4:], "on an equal layout what follows is the same, bit for bit"
    step = "checkpoints/step-0000000004"
    for case in (again, *others):
        origin = case.rpartition("/")[2].partition("-")[0]
        assert_same_bits(tmp_path / origin / step, Path(case.rpartition(":")[2]) / step)
        trained = losses[three[origin == "fsdp"]][4:]
        assert losses[case] == pytest.approx(trained, rel=LOSS_TOLERANCE[precision]), case


def test_a_run_moves_from_two_processes_to_one_and_back(tmp_path: Path, small_set: str, small_val: str) -> None:
    recipe = recipe_file(tmp_path, small_set, small_val)
    options = ["model.dropout=0.0", "precision=fp32", "engine.zero_stage=2"]
    stayed, moved = tmp_path / "stayed", tmp_path / "moved"
    finish(start(recipe, stayed, *options))
    first = start(recipe, moved, *options)
    kill_after(first, moved / "checkpoints" / "step-0000000003" / "COMMITTED.json", signal.SIGKILL)
    first.communicate(timeout=60)
    second = start(recipe, moved, *options, "engine.zero_stage=1", nproc=1)
    kill_after(second, moved / "checkpoints" / "step-0000000006" / "COMMITTED.json", signal.SIGKILL)
    second.communicate(timeout=60)
    output = finish(start(recipe, moved, *options))

    assert "written by another layout" in output
    assert "world_size: 2 here, 1 there" in output
    losses = [read_run(str(path / "tb")).scalars["train/loss"] for path in (stayed, moved)]
    assert losses[0].steps.tolist() == losses[1].steps.tolist() == list(range(1, 11))
    for a, b in zip(losses[0].values, losses[1].values, strict=True):
        assert abs(a - b) <= 1e-4 * abs(a)


def test_a_bit_that_flips_on_one_rank_is_noticed(tmp_path: Path, run_world: Callable[..., Any]) -> None:
    engines = ("plain-fp32", "zero-1-bf16", "zero-3-fp32", "zero-3-bf16")
    cases = [f"drift:{engine}:{tmp_path / engine}" for engine in engines]
    mismatches = [f"mismatch:{engine}:{tmp_path / engine}" for engine in engines[2:]]
    reported = run_world("laws/recovery_worker.py", 2, *cases, *mismatches)
    own = "the weights that ranks [1] compute with are not those that their optimizers hold"
    # Of two ranks neither is the usual one: the guard may name either.
    for case in cases:
        differ = (
            "after step 5 the weights of ranks [1] differ" in reported[case] or "ranks [0] differ" in reported[case]
        )
        assert differ or own in reported[case]
        assert differ or "zero-1" in case, "under ZeRO-1 a rank's own run is compared with its master weight first"
    for case in mismatches:
        assert own in reported[case]
