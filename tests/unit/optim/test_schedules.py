"""Learning-rate schedules, step by step."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.plugins import plugin_config
from vit_dist.config.schema import DataConfig, Recipe
from vit_dist.core.registry import OPTIMIZERS, SCHEDULES, Plugin
from vit_dist.core.units import Duration
from vit_dist.optim import ScheduleConfig

LENGTH = {"base_lr": 1e-3, "total_steps": 1000, "warmup_steps": 100}


def config(name: str, **changes: Any) -> ScheduleConfig:
    schedule = plugin_config(SCHEDULES, name, **changes)
    assert isinstance(schedule, ScheduleConfig)
    return schedule


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
def test_warmup_rises_evenly_and_wastes_no_step(name: str) -> None:
    rates = [config(name).lr_at(step, **LENGTH) for step in range(101)]
    assert rates[:100] == pytest.approx([1e-3 * (step + 1) / 100 for step in range(100)])
    assert rates[100] == pytest.approx(1e-3)


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
    assert config("constant").lr_at(10**9, **LENGTH) == 1e-3


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_the_rate_never_rises_after_warmup(name: str) -> None:
    rates = [config(name).lr_at(step, **LENGTH) for step in range(99, 1001)]
    assert rates == sorted(rates, reverse=True)


@pytest.mark.parametrize("name", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("total", "warmup"), [(10, 0), (10, 10), (10, 50), (1, 0)])
def test_every_length_has_a_rate_within_its_bounds(name: str, total: int, warmup: int) -> None:
    schedule = config(name)
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
