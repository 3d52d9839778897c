"""Learning-rate schedules, step by step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from tests.plugins import plugin_config
from vit_dist.config.lengths import in_steps
from vit_dist.config.load import resolve
from vit_dist.config.schema import DataConfig, Recipe, dump_identity
from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import OPTIMIZERS, SCHEDULES, Plugin
from vit_dist.core.units import Duration
from vit_dist.optim import ScheduleConfig

LENGTH = {"base_lr": 1e-3, "total_steps": 1000, "warmup_steps": 100}


def config(name: str, **changes: Any) -> ScheduleConfig:
    schedule = plugin_config(SCHEDULES, name, **changes)
    assert isinstance(schedule, ScheduleConfig)
    return schedule


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("linear", {}),
        ("cosine", {}),
        ("constant", {}),
        ("rsqrt", {}),
        ("step", {"drops": ["50%"]}),
        ("restarts", {"period": "300 steps"}),
    ],
)
def test_warmup_rises_evenly_and_wastes_no_step(name: str, changes: dict[str, Any]) -> None:
    found = [resolved(name, **changes).lr_at(step, **LENGTH) for step in range(101)]
    assert found[:100] == pytest.approx([1e-3 * (step + 1) / 100 for step in range(100)])
    assert found[100] == pytest.approx(1e-3)


def test_linear_decay_is_the_public_codes() -> None:
    schedule = config("linear")
    assert schedule.lr_at(550, **LENGTH) == pytest.approx(1e-5 + (1e-3 - 1e-5) * 0.5)
    assert schedule.lr_at(999, **LENGTH) == pytest.approx(1e-5 + (1e-3 - 1e-5) / 900)
    assert schedule.lr_at(1000, **LENGTH) == schedule.lr_at(5000, **LENGTH) == pytest.approx(1e-5)


def test_cosine_decay_passes_half_the_rate_half_way_and_ends_at_zero() -> None:
    schedule = config("cosine")
    quarter = schedule.lr_at(325, **LENGTH)
    assert quarter == pytest.approx(1e-3 * (1 + 0.5**0.5) / 2)
    assert schedule.lr_at(550, **LENGTH) == pytest.approx(0.5e-3)
    assert schedule.lr_at(1000, **LENGTH) == pytest.approx(0.0, abs=1e-12)
    assert config("cosine", end_lr=1e-4).lr_at(1000, **LENGTH) == pytest.approx(1e-4)


def test_constant_stays() -> None:
    assert resolved("constant").lr_at(10**9, **LENGTH) == 1e-3


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_rate_never_rises_after_warmup(name: str) -> None:
    found = [config(name).lr_at(step, **LENGTH) for step in range(99, 1001)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(10, 0), (10, 10), (10, 50), (1, 0)])
def test_every_length_has_a_rate_within_its_bounds(name: str, total: int, warmup: int) -> None:
    schedule = resolved(name)
    for step in range(max(total, warmup) + 2):
        assert 0 <= schedule.lr_at(step, base_lr=0.1, total_steps=total, warmup_steps=warmup) <= 0.1
    if warmup == 0:
        assert schedule.lr_at(0, base_lr=0.1, total_steps=total, warmup_steps=0) == 0.1


def test_warmup_is_10k_steps_unless_said_and_has_a_unit() -> None:
    assert config("linear").warmup == Duration.parse("10k steps")
    assert config("cosine", warmup="2 epochs").model_dump(mode="json")["warmup"] == "2 epochs"
    with pytest.raises(ValidationError, match="has no unit"):
        config("linear", warmup=10000)
    with pytest.raises(ValidationError, match="span of time"):
        config("linear", warmup="1h")


def test_a_recipe_that_would_decay_upwards_is_refused() -> None:
    cls, defaults = OPTIMIZERS.lookup("adamw")
    parts: dict[str, Any] = {
        "horizon": Duration.parse("1 epoch"),
        "model": Plugin(name="none"),
        "data": DataConfig(num_classes=10),
        "schedule": config("linear", end_lr=1e-3),
        "engine": Plugin(name="none"),
    }
    Recipe(optim=cls.model_validate({**defaults, "lr": 1e-3}), **parts)
    with pytest.raises(ValidationError, match=r"schedule\.end_lr=0\.001 is above optim\.lr=0\.0005"):
        Recipe(optim=cls.model_validate({**defaults, "lr": 5e-4}), **parts)


def resolved(name: str, *, total: int = 1000, **changes: Any) -> ScheduleConfig:
    """A schedule with its lengths in steps: batches of 10 of a set of 200."""
    return in_steps(config(name, **changes), global_batch=10, epoch_examples=200, total_steps=total)


def rates(schedule: ScheduleConfig, total: int = 1000) -> list[float]:
    """Of each step, for a peak of 1."""
    warmup = int(schedule.warmup.value)
    return [schedule.lr_at(step, base_lr=1.0, total_steps=total, warmup_steps=warmup) for step in range(total)]


def warmed(warmup: int, rate: Callable[[int], float], total: int = 1000) -> list[float]:
    return [rate(step) * min(1.0, (step + 1) / warmup) for step in range(total)]


def test_rsqrt_is_big_visions_with_its_cooldown() -> None:
    # 8 epochs of 20 steps, 500 examples of batches of 10, a fifth of 1,000 steps.
    schedule = resolved("rsqrt", warmup="100 steps", timescale="8 epochs", cooldown="20%")

    def expected(step: int) -> float:
        return 1 / math.sqrt(1 + max(0, step - 100) / 160) * min(1.0, (1000 - step) / 200)

    assert rates(schedule) == pytest.approx(warmed(100, expected), rel=1e-12)
    assert rates(schedule)[260] == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize(("form", "at_a_quarter"), [("linear", 0.75), ("1-sqrt", 0.5)])
def test_a_constant_rate_cools_down_in_both_forms_of_the_paper(form: str, at_a_quarter: float) -> None:
    schedule = resolved("constant", warmup="100 steps", cooldown="2k examples", form=form)
    found = rates(schedule)
    assert found[:801] == pytest.approx(warmed(100, lambda _: 1.0)[:801])
    assert found[850] == pytest.approx(at_a_quarter)
    assert found[801:] == sorted(found[801:], reverse=True)
    assert 0 < found[999] < 0.01
    assert schedule.lr_at(1000, base_lr=1.0, total_steps=1000, warmup_steps=100) == 0


def test_steps_drop_at_their_places_in_every_unit() -> None:
    schedule = resolved("step", warmup="50 steps", drops=["10 epochs", "6k examples", "800 steps", "90%"], factor=0.5)
    places = (200, 600, 800, 900)
    assert rates(schedule) == pytest.approx(warmed(50, lambda step: 0.5 ** sum(p <= step for p in places)))


@pytest.mark.parametrize("growth", [1.0, 1.5, 2.0])
def test_restarts_begin_anew_after_periods_that_grow(growth: float) -> None:
    schedule = resolved("restarts", warmup="40 steps", period="5 epochs", growth=growth, end_lr=0.1)
    begins = [40.0]
    while begins[-1] < 1000:
        begins.append(begins[-1] + 100 * growth ** (len(begins) - 1))

    def expected(step: int) -> float:
        since = [max(0.0, step - begin) for begin in begins if begin <= max(step, 40)][-1]
        period = next(b - a for a, b in itertools.pairwise(begins) if step < b)
        return 0.1 + 0.9 * (1 + math.cos(math.pi * since / period)) / 2

    assert rates(schedule) == pytest.approx(warmed(40, expected))
    assert rates(schedule)[140] == 1.0


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("constant", {"cooldown": "95%"}, "of 100 steps and schedule.cooldown of 950 are longer than the whole run"),
        ("rsqrt", {"cooldown": "901 steps"}, "give a cooldown of 900 steps or fewer"),
        ("rsqrt", {"timescale": "0 steps"}, "schedule.timescale is less than half a step"),
        (
            "step",
            {"drops": ["50%", "30 epochs", "500 steps"]},
            "drops[2] at step 500 is not after drops[1] at step 600",
        ),
        ("step", {"drops": ["99 steps"]}, "drops[0] at step 99 is in the warm-up of 100 steps"),
        ("step", {"drops": ["50 epochs"]}, "drops[0] at step 1,000 is beyond the last of the run's 1,000 steps"),
        ("restarts", {"period": "900 steps"}, "900 steps is no shorter than the 900 steps after the warm-up"),
        ("restarts", {"period": "4 examples"}, "schedule.period is less than half a step"),
        ("constant", {"cooldown": "90%"}, ""),
        ("step", {"drops": ["100 steps", "999 steps"]}, ""),
        ("restarts", {"period": "899 steps"}, ""),
    ],
)
def test_what_does_not_fit_a_run_is_said_with_what_to_give(name: str, changes: dict[str, Any], problem: str) -> None:
    found = resolved(name, warmup="100 steps", **changes).misfit(1000)
    assert (problem in found) if problem else not found


@pytest.mark.parametrize(
    ("name", "changes", "problem"),
    [
        ("constant", {"form": "1-sqrt"}, "there is none; give cooldown too"),
        ("constant", {"cooldown": "120%"}, "more than the whole run"),
        ("constant", {"cooldown": "x%"}, "a share of the run such as '20%'"),
        ("constant", {"cooldown": 20}, "has no unit"),
        ("step", {"drops": []}, "at least 1"),
        ("step", {"drops": ["1 h"]}, "span of time"),
        ("rsqrt", {"timescale": "20%"}, "expected a duration"),
    ],
)
def test_what_is_no_schedule_is_refused(name: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        config(name, **changes)


def test_a_mixture_refuses_epochs_in_every_length_of_a_schedule_and_takes_shares() -> None:
    below: dict[str, Any] = {
        "horizon": "1k steps",
        "model": "vit-test",
        "data": {"num_classes": 10, "image_size": 28, "mixture": {"a": {"train": "a"}}},
        "optim": {"name": "sgd", "lr": 0.1},
        "eval": {"every": "0 steps"},
        "checkpoint": {"every": "1k steps"},
        "engine": "plain",
    }
    drops = ["50%", "900 steps"]
    resolve({**below, "schedule": {"name": "step", "warmup": "1 step", "drops": drops}}, [])
    with pytest.raises(ConfigError, match=r"schedule\.drops\[2\]: '3 epochs' says nothing for data\.mixture"):
        resolve({**below, "schedule": {"name": "step", "warmup": "1 step", "drops": [*drops, "3 epochs"]}}, [])


def test_a_schedule_that_cools_down_is_another_run_and_one_that_does_not_is_as_before() -> None:
    plain = config("constant", warmup="1 step")
    assert dump_identity(plain) == plain.model_dump(mode="json") == {"name": "constant", "warmup": "1 step"}
    cooled = config("constant", warmup="1 step", cooldown="12.5%", form="1-sqrt")
    assert dump_identity(cooled) == cooled.model_dump(mode="json")
    assert dump_identity(cooled) == {"name": "constant", "warmup": "1 step", "cooldown": "12.5%", "form": "1-sqrt"}
