"""DeepSpeed and FSDP are held to plain torch: real engines, real processes, the same losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

pytestmark = pytest.mark.distributed

TOLERANCE = {"vit-test": 1e-5, "hybrid-test": 1e-5, "bit-test": 5e-5}
"""Relative, in fp32, over 20 steps."""
BF16_TOLERANCE = 5e-3
NORMS = 5
"""The norm of a gradient may differ by so many times what a loss may: a loss is a mean over examples."""
STEPS = {1: 20, 2: 8}
"""By the number of processes: the drills' and the suite's."""
LAST = (("deepspeed:1", "bit-test"), ("plain:0", "hybrid-test"))


def worst(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The greatest relative difference of two runs' losses, and a part of that of their gradients' norms.

    Losses alone cannot tell a gradient from three times that: Adam divides by its size, and clipping takes it away.
    """
    assert len(a["losses"]) == len(b["losses"]) >= 6
    losses, norms = (
        max(abs(x - y) / abs(x) for x, y in zip(a[key], b[key], strict=True)) for key in ("losses", "norms")
    )
    return max(losses, norms / NORMS)


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.drill), 2])
def test_zero_1_and_2_train_as_plain_torch_does(run_world: Callable[..., Any], nproc: int) -> None:
    steps = STEPS[nproc]
    plain = {model: f"plain:0:fp32:{model}:1:{steps}" for model in TOLERANCE}
    sharded = {model: [f"deepspeed:{stage}:fp32:{model}:1:{steps}" for stage in (1, 2)] for model in TOLERANCE}
    kinds = (("plain:0", 1), ("deepspeed:1", 1), ("deepspeed:2", 2))
    bf16 = [f"{engine}:bf16:vit-test:{times}:{steps}" for engine, times in kinds]
    kinds = (("plain:0", 4), ("deepspeed:1", 4), ("deepspeed:2", 2))
    wide = [f"{engine}:fp32:vit-test:{times}:{steps}" for engine, times in kinds]
    last = {model: f"{engine}:fp32:{model}+channels-last:1:{steps}" for engine, model in LAST}
    engines = ("plain:0", "deepspeed:1", "deepspeed:2")
    steep = [f"{engine}:fp32:vit-test:2:12:sgd:layers" for engine in engines]
    cases = [*plain.values(), *(c for cs in sharded.values() for c in cs), *bf16, *wide, *last.values(), *steep]
    found = run_world("integration/engine_worker.py", nproc, *cases)
    for model, tolerance in TOLERANCE.items():
        assert found[plain[model]]["losses"][-1] != found[plain[model]]["losses"][0]
        for case in sharded[model]:
            assert worst(found[plain[model]], found[case]) < tolerance, case
    for model, case in last.items():  # the layout of the images changes nothing but rounding
        assert worst(found[plain[model]], found[case]) < TOLERANCE[model], case
    for case in bf16[1:]:
        assert worst(found[bf16[0]], found[case]) < BF16_TOLERANCE, case
    for case in steep[1:]:  # no clipping, steps as long as the gradients, and rates by layer
        assert worst(found[steep[0]], found[case]) < 1e-5, case
    for case in wide:  # accumulation changes nothing but rounding
        assert worst(found[plain["vit-test"]], found[case]) < 1e-5, case
    assert found[bf16[1]]["description"].endswith("ZeRO stage 1, bf16")
    # Its import takes two seconds of each rank's start, and nothing is compiled.
    assert not any(case["compiler"] for case in found.values())


@pytest.mark.parametrize("nproc", [pytest.param(1, marks=pytest.mark.drill), 2])
def test_zero_3_trains_as_plain_torch_does(run_world: Callable[..., Any], nproc: int) -> None:
    # A process of its own: stage 3 replaces torch's linear function for good.
    steps = STEPS[nproc]
    cases = [f"{engine}:fp32:{model}:1:{steps}" for model in TOLERANCE for engine in ("plain:0", "deepspeed:3")]
    bf16 = [f"{engine}:bf16:vit-test:1:{steps}" for engine in ("plain:0", "deepspeed:3")]
    steep = ["plain:0:fp32:vit-test:2:12:sgd", "deepspeed:3:fp32:vit-test:2:12:sgd"]
    found = run_world("integration/engine_worker.py", nproc, *cases, *bf16, *steep)
    assert worst(*(found[case] for case in steep)) < 1e-5
    for model, tolerance in TOLERANCE.items():
        pair = (f"{engine}:fp32:{model}:1:{steps}" for engine in ("plain:0", "deepspeed:3"))
        assert worst(*(found[case] for case in pair)) < tolerance, model
    assert worst(*(found[case] for case in bf16)) < BF16_TOLERANCE


@pytest.mark.parametrize(
    "nproc", [pytest.param(1, marks=pytest.mark.drill), 2, pytest.param(3, marks=pytest.mark.drill)]
)
def test_fsdp_trains_as_plain_torch_does(run_world: Callable[..., Any], nproc: int) -> None:
    several, resharded = nproc if nproc > 1 else 2, "+recompute+engine.reshard_after_forward=true"
    plain = {model: f"plain:0:fp32:{model}:1:8" for model in TOLERANCE}
    alike = {model: [f"fsdp:0:fp32:{model}:1:8", f"fsdp:0:fp32:{model}{resharded}:{several}:8"] for model in TOLERANCE}
    alike["vit-test"].append(f"fsdp:0:fp32:vit-test:{several}:8")
    alike["bit-test"].append("fsdp:0:fp32:bit-test+channels-last:1:8")
    bf16 = ["plain:0:bf16:vit-test:1:8", f"fsdp:0:bf16:vit-test:{several}:8", f"fsdp:0:bf16:vit-test{resharded}:1:8"]
    half = [f"fsdp:0:bf16:vit-test+engine.reduce_dtype=bf16{more}:{several}:8" for more in ("", resharded)]
    steep = ["plain:0:fp32:vit-test:1:12:sgd", f"fsdp:0:fp32:vit-test:{several}:12:sgd"]
    skipped = ["fsdp:0:bf16:vit-test:1:6:nan", f"fsdp:0:bf16:vit-test{resharded}:{several}:6:nan"]
    positions = [
        f"{engine}:fp32:vit-test+recompute+position_embedding=relative+positions_at=shared:1:6"
        for engine in ("plain:0", "fsdp:0")
    ]
    cases = [*plain.values(), *(c for cs in alike.values() for c in cs), *bf16, *half, *steep, *skipped, *positions]
    found = run_world("integration/engine_worker.py", nproc, *cases)
    for model, tolerance in TOLERANCE.items():
        for case in alike[model]:
            # Three ranks' gradients are summed in another order, from which a hybrid departs as a BiT does.
            limit = max(TOLERANCE.values()) if nproc > 2 else tolerance
            assert worst(found[plain[model]], found[case]) < limit, case
    for case in [*bf16[1:], *half]:
        assert worst(found[bf16[0]], found[case]) < BF16_TOLERANCE, case
    for some in (steep, positions):
        assert worst(found[some[0]], found[some[1]]) < 1e-5, some
    for case in skipped:
        assert found[case]["applied"] == [True, True, False, True, True, True], case
        assert math.isnan(found[case]["losses"][2])
    for case in (case for case in cases if case.startswith("fsdp")):
        assert found[case]["differing_masters"] == [], case
        assert {"float32", "bfloat16"} & {*found[case]["reduced"]} == (
            {"bfloat16" if case in half else "float32"} if nproc > 1 else set()
        ), case
    # Two blocks and what is in none: gathered and reduced once a step, or once a pass each; the latter stays gathered.
    once, often = found[alike["vit-test"][2]], found[alike["vit-test"][1]]
    assert once["collectives"] == ([3, 3] if nproc > 1 else [0, 0])
    assert often["collectives"] == ([5 * several, 3 * several] if nproc > 1 else [0, 0])
    # Sums are not kept whole in bf16: each micro-batch is reduced, and added up in fp32.
    assert found[half[0]]["collectives"] == ([3, 3 * several] if nproc > 1 else [0, 0])


def test_a_step_with_a_gradient_that_is_not_finite_is_skipped_on_every_engine(run_world: Callable[..., Any]) -> None:
    cases = [f"{engine}:bf16:vit-test:1:6:nan" for engine in ("plain:0", "deepspeed:1", "deepspeed:2")]
    found = run_world("integration/engine_worker.py", 2, *cases)
    for case in cases:
        assert found[case]["applied"] == [True, True, False, True, True, True]
        assert math.isnan(found[case]["losses"][2])
        assert all(math.isfinite(loss) for i, loss in enumerate(found[case]["losses"]) if i != 2)


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.drill), 3])
def test_every_kind_of_position_trains_under_zero_as_in_plain_torch(run_world: Callable[..., Any], stage: int) -> None:
    places = {
        "learned-2d": "layers",
        "learned": "shared",
        "relative": "shared",
        "sincos": "shared",
        "conditional": "layers",
    }
    models = [f"vit-test+recompute+position_embedding={kind}+positions_at={at}" for kind, at in places.items()]
    models.append("vit-test+recompute+position_embedding=relative+positions_at=layers+pool=mean")
    cases = {f"plain:0:fp32:{model}:1:6": f"deepspeed:{stage}:fp32:{model}:1:6" for model in models}
    bf16 = {f"plain:0:fp32:{model}:1:6": f"deepspeed:{stage}:bf16:{model}:1:6" for model in models[2:5]}
    found = run_world("integration/engine_worker.py", 2, *cases, *cases.values(), *bf16.values())
    for plain, sharded in cases.items():
        assert worst(found[plain], found[sharded]) < 1e-5, sharded
    for plain, half in bf16.items():
        assert worst(found[plain], found[half]) < 5e-2, half


def test_a_narrow_copy_of_every_family_learns_in_bf16_under_zero_1_and_3(run_world: Callable[..., Any]) -> None:
    models = [
        "vit-test+pool=map+representation=true",
        "vit-test+pool=cls+representation=true+dropout=0.1",
        "hybrid-test+pool=mean+gelu=exact",
        "bit-test",
        "timm~test_vit+args={patch_size~ 7, depth~ 2}",
    ]
    # Stage 3 last: it replaces torch's linear function for good.
    cases = [f"deepspeed:{stage}:bf16:{model}:1:4:same" for stage in (1, 3) for model in models]
    found = run_world("integration/engine_worker.py", 2, *cases)
    for case in cases:
        losses = found[case]["losses"]
        assert all(math.isfinite(loss) for loss in losses), case
        assert found[case]["applied"] == [True] * 4, case
        assert losses[-1] < min(losses[:2]), (case, losses)


def test_gradients_in_bf16_are_summed_over_ranks_in_fp32_and_no_timer_waits(run_world: Callable[..., Any]) -> None:
    # Stage 3 last: it replaces torch's linear function for good.
    cases = [f"deepspeed:{stage}:bf16:vit-test:2:4" for stage in (1, 2, 3)]
    found = run_world("integration/engine_worker.py", 2, *cases)
    for case in cases:
        assert "float32" in found[case]["reduced"], case
        assert "bfloat16" not in found[case]["reduced"], case
        assert not found[case]["timed"], case
    # A sum of two micro-batches and two ranks that was rounded to bf16 on its way is a bf16 number everywhere.
    shares = found[cases[0]]["bf16_shares"]
    assert len(shares) == 4
    assert max(shares) < 0.9, shares


def test_ranks_sum_gradients_in_bf16_where_the_recipe_says_so(run_world: Callable[..., Any]) -> None:
    half = "vit-test+engine.reduce_dtype=bf16"
    plain = {model: f"plain:0:fp32:{model}:2:6" for model in ("vit-test", half)}
    # Stage 3 last: it replaces torch's linear function for good.
    cases = [f"deepspeed:{stage}:bf16:{half}:2:6" for stage in (1, 2, 3)]
    found = run_world("integration/engine_worker.py", 2, *plain.values(), *cases)
    for case in (plain[half], *cases):
        assert "bfloat16" in found[case]["reduced"], case
        assert found[case]["applied"] == [True] * 6
    assert worst(found[plain["vit-test"]], found[plain[half]]) < BF16_TOLERANCE
    assert max(found[plain["vit-test"]]["bf16_shares"]) < 0.9
    for case in (plain[half], cases[0]):
        assert found[case]["bf16_shares"] == [1.0] * 6, case


def test_masters_of_a_fresh_run_are_the_seeds_weights_and_not_their_rounding(run_world: Callable[..., Any]) -> None:
    # Stage 3 last: it replaces torch's linear function for good.
    cases = [f"deepspeed:{stage}:bf16:hybrid-test:1:1" for stage in (1, 2, 3)]
    found = run_world("integration/engine_worker.py", 2, *cases)
    for case in cases:
        assert found[case]["seeded_bf16_share"] < 0.1
        assert found[case]["differing_masters"] == [], case
        assert found[case]["mismatch"] == "", case


def test_plain_torch_sends_no_constant_buffers_and_keeps_one_copy_of_the_gradients(
    run_world: Callable[..., Any],
) -> None:
    case = "plain:0:fp32:vit-test+recompute+position_embedding=sincos:2:3"  # its positions are a buffer
    found = run_world("integration/engine_worker.py", 2, case)[case]
    assert found["applied"] == [True] * 3
    assert found["broadcasts"] == 0
    places = found["gradients"]
    assert len(places) > 20
    assert len(set(places)) < len(places) / 5  # views of the buckets that are summed


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.drill)])
def test_compiled_blocks_train_as_eager_ones_on_every_engine_and_where_one_rank_cannot_none_does(
    run_world: Callable[..., Any], stage: int
) -> None:
    model = "vit-test+recompute+dropout=0.1+stochastic_depth=0.2"
    compiled = f"{model}+engine.compile=true"
    engines = ["plain:0:bf16", f"deepspeed:{stage}:bf16"]
    cases = {f"{engine}:{model}:2:6": f"{engine}:{compiled}:2:6" for engine in engines}
    refused = f"plain:0:bf16:{compiled}:2:6:refused"
    found = run_world("integration/engine_worker.py", 2, *cases, *cases.values(), refused)
    for eager, case in cases.items():
        assert (found[eager]["compiled"], found[case]["compiled"]) == (False, True)
        assert worst(found[eager], found[case]) < BF16_TOLERANCE, case
        # Both blocks, forward and recomputed, in two micro-batches of six steps, and no graph more than was tried.
        assert found[case]["blocks_ran"] == 2 * 2 * 2 * 6, case
        assert found[case]["graphs"][0] == found[case]["graphs"][1], case
    assert found[refused]["compiled"] is False
    assert found[refused]["blocks_ran"] == 0
    eager = found[f"{engines[0]}:{model}:2:6"]
    assert (found[refused]["losses"], found[refused]["norms"]) == (eager["losses"], eager["norms"])


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.drill)])
def test_compiled_blocks_of_fsdp_train_as_in_plain_torch_and_no_rank_waits_for_one_that_cannot(
    run_world: Callable[..., Any], every: bool
) -> None:
    # One process tries all cases in unit/engines/test_compile_gathered.py.
    model = "vit-test+recompute+dropout=0.1+stochastic_depth=0.2"
    resharded, compiled = f"{model}+engine.reshard_after_forward=true", "+engine.compile=true"
    plain = f"plain:0:fp32:{model}:2:6"
    cases = {f"fsdp:0:fp32:{spec}:2:6": f"fsdp:0:fp32:{spec}{compiled}:2:6" for spec in (model, resharded)[not every :]}
    cases[f"fsdp:0:bf16:{resharded}:2:6"] = f"fsdp:0:bf16:{resharded}{compiled}:2:6"
    whens = {"refused-late": resharded}
    if every:
        whens |= {"refused": model, "refused-backward": resharded, "refused-all": model}
    refused = {f"fsdp:0:fp32:{spec}{compiled}:2:2:{when}": f"fsdp:0:fp32:{spec}:2:6" for when, spec in whens.items()}
    found = run_world("integration/engine_worker.py", 2, plain, *cases, *cases.values(), *refused)
    for eager, case in cases.items():
        assert (found[eager]["compiled"], found[case]["compiled"]) == (False, True)
        for reference in (plain, eager):
            assert worst(found[reference], found[case]) < (1e-5 if "fp32" in case else BF16_TOLERANCE), case
        # Both blocks, forward and recomputed, in two micro-batches of six steps, and no graph more than was tried.
        assert found[case]["blocks_ran"] == 2 * 2 * 2 * 6, case
        assert found[case]["graphs"][0] == found[case]["graphs"][1] > 0, case
        assert found[case]["collectives"] == found[eager]["collectives"], case
        assert found[case]["differing_masters"] == [], case
    for case, eager in refused.items():
        assert (found[case]["compiled"], found[case]["blocks_ran"]) == (False, 0), case
        assert found[case]["losses"] == found[eager]["losses"][:2], case
        assert found[case]["norms"] == found[eager]["norms"][:2], case


@pytest.mark.drill
@pytest.mark.parametrize("stage", [1, 3])
def test_what_came_later_in_a_vit_trains_alike_on_one_rank_and_on_two(
    run_world: Callable[..., Any], stage: int
) -> None:
    keys = ["qk_norm=true", "layer_scale=0.1", "registers=3", "mlp=swiglu", "position_embedding=rope"]
    models = [f"vit-test+{key}" for key in [*keys, "+".join(keys)]]
    # Which patches are dropped is drawn by rank: on one number of ranks alone engines agree.
    dropping = "vit-test+patch_dropout=0.5"
    engines = ["plain:0", "fsdp:0", f"deepspeed:{stage}"]
    cases = [f"{engine}:fp32:{model}:1:8" for engine in engines for model in [*models, dropping]]
    found = {n: run_world("integration/engine_worker.py", n, *cases, timeout=900) for n in (1, 2)}
    furthest = 0.0
    for case in cases:
        model = case.split(":")[3]
        for ranks in (1, 2):
            reference = found[ranks if model == dropping else 1][f"plain:0:fp32:{model}:1:8"]
            furthest = max(furthest, off := worst(reference, found[ranks][case]))
            assert off < 1e-5, (case, ranks)
    print(f"stage {stage}: {2 * len(cases)} runs, furthest {furthest:.1e}")
