"""What a metric is: direction and range, from declarations or from whole words, and never by how a name begins."""

from __future__ import annotations

import math

import pytest

from vit_dist.core.errors import ConfigError
from vit_dist.core.metrics import ACCURACY, ERROR, LOSS, Metric, find_metric, known_metric, merged


@pytest.mark.parametrize(
    ("tag", "metric"),
    [
        ("val/top1", ACCURACY),
        ("eval/top_5", ACCURACY),
        ("test-acc@1", ACCURACY),
        ("Accuracy/valid", None),
        ("valid/Balanced Accuracy", ACCURACY),
        ("prec5", ACCURACY),
        ("fewshot/inet_a_25shot", ACCURACY),
        ("val/top1_err", ERROR),
        ("val/top1_error", ERROR),
        ("err@5", ERROR),
        ("val/error_top5", ERROR),
        ("test/Error-Rate", ERROR),
        ("val/acc_loss", LOSS),
        ("cross_entropy", LOSS),
        ("val/top1_loss", LOSS),
        ("val/perplexity", LOSS),
        ("train_nll", LOSS),
        # Whatever is not known word by word has to be declared, however it begins.
        ("val/top1_regret", None),
        ("val/acc_gap", None),
        ("val/accuracy_drop", None),
        ("val/accepted", None),
        ("val/topology", None),
        ("val/acc_pct", None),
        ("val/acc%", None),
        ("val/lossless", None),
        ("val/error_accuracy", None),
        ("fewshot/inet_time", None),
        ("score", None),
        ("top", None),
        ("", None),
    ],
)
def test_a_name_says_what_it_is_by_all_its_words_or_not_at_all(tag: str, metric: Metric | None) -> None:
    assert known_metric(tag) == metric


def test_an_unknown_metric_is_an_error_that_says_how_it_is_declared_and_a_declaration_wins() -> None:
    with pytest.raises(
        ConfigError, match=r"'val/score'.*declare it in the study, such as metrics: \{val/score: \{better"
    ):
        find_metric("val/score", {}, "the study")
    score = Metric(better="lower", range=(None, 3))
    assert find_metric("val/score", {"val/score": score}, "the study") == score
    assert find_metric("val/top1", {"val/top1": score}, "the study") == score


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        (ACCURACY, [0.5, math.nan, 0.7, 0.6], 2),
        (LOSS, [math.nan, 2.0, 1.0, math.inf], 2),
        (ACCURACY, [math.inf, 0.5, math.nan], 1),
        (LOSS, [-math.inf, 0.5, 0.5], 2),
        (ERROR, [math.nan, math.nan], None),
        (ACCURACY, [], None),
        (LOSS, [3.0, 2.0, math.nan], 1),
    ],
)
def test_nan_is_never_the_best(metric: Metric, values: list[float], best: int | None) -> None:
    assert metric.best(values) == best


@pytest.mark.parametrize(
    ("metric", "value", "says"),
    [
        (ACCURACY, 64.1, "64.1 is outside its range, 0 to 1, per cent? divide by 100"),
        (ERROR, 35.9, "per cent"),
        (ACCURACY, -0.1, "-0.1 is outside its range, 0 to 1"),
        (LOSS, -0.5, "-0.5 is outside its range, 0 to inf"),
        (Metric(better="higher", range=(None, 5)), 5.1, "5.1 is outside its range, -inf to 5"),
        (Metric(better="higher", range=(0, 100)), 101.0, "101 is outside its range, 0 to 100"),
        (ACCURACY, 1.0000001, ""),
        (LOSS, 1e9, ""),
        (Metric(better="lower"), -1e9, ""),
    ],
)
def test_a_value_out_of_range_is_a_problem(metric: Metric, value: float, says: str) -> None:
    assert says in metric.problem(value)
    assert bool(says) == bool(metric.problem(value))


def test_what_is_fitted_is_always_better_when_lower() -> None:
    assert ACCURACY.error(0.75) == 0.25
    assert ERROR.error(0.25) == 0.25
    assert Metric(better="higher", range=(0, 100)).error(75) == 25
    assert Metric(better="higher", range=(0, None)).error(3) is None


def test_two_places_that_disagree_on_a_metric_are_refused() -> None:
    assert merged(("a", {"x": LOSS}), ("b", {"x": LOSS, "y": ERROR})) == {"x": LOSS, "y": ERROR}
    with pytest.raises(
        ConfigError, match=r"'x' is \{better: lower, range: \[0, null\]\} by a and .* by b; say the same"
    ):
        merged(("a", {"x": LOSS}), ("b", {"x": ERROR}))
