"""What a metric is: whether more of it is better, and between which values it lies. The one place that knows. No torch.

Evaluators say it of what they yield; a recipe, a study or a tag map says it under `metrics` of any other. What nobody
says is read from the whole words of a tag's last part, where each of them is known: `eval/top1_err` is an error,
`val/acc_gap` is nothing that can be known, and has to be declared.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import Config

FEW_SHOT = "fewshot/"
"""Tags that begin so are few-shot accuracies: fewshot/<set>_<k>shot."""

Bound = float | None
# Tags are logged in single precision: 1 may come back as 1.0000001.
_ROUNDING = 1e-5


class Metric(Config):
    """How the values of one tag are read, as YAML: `{better: lower, range: [0, 1]}`."""

    better: Literal["higher", "lower"] = Field(description="which of two values is the better one")
    range: Annotated[tuple[Bound, Bound], Field(strict=False)] = Field(
        (None, None), description="the lowest and the highest value that there can be; null: none"
    )

    @field_validator("range")
    @classmethod
    def _is_range(cls, value: tuple[Bound, Bound]) -> tuple[Bound, Bound]:
        low, high = value
        if low is not None and high is not None and low >= high:
            raise ValueError("expected two numbers [low, high] with low < high; null: no bound")
        return value

    @property
    def is_fraction(self) -> bool:
        """Whether it lies between 0 and 1, and is shown in percent."""
        return self.range == (0, 1)

    @property
    def is_accuracy(self) -> bool:
        """Whether it is a fraction of what is right."""
        return self.is_fraction and self.better == "higher"

    @property
    def scale(self) -> float:
        """What values are multiplied by for people."""
        return 100.0 if self.is_fraction else 1.0

    def error(self, value: float) -> float | None:
        """What is fitted: the value where lower is better, else what is missing to the highest; None where none is."""
        if self.better == "lower":
            return value
        return None if self.range[1] is None else self.range[1] - value

    def problem(self, value: float) -> str:
        """Why a finite value cannot be one of this metric, or ''."""
        low, high = self.range
        slack = _ROUNDING * max([1.0, *(abs(bound) for bound in self.range if bound is not None)])
        if (low is None or value >= low - slack) and (high is None or value <= high + slack):
            return ""
        percent = ", per cent? divide by 100" if self.is_fraction and 0 < value <= 100 else ""
        ends = ("-inf" if low is None else f"{low:g}", "inf" if high is None else f"{high:g}")
        return f"{value:g} is outside its range, {ends[0]} to {ends[1]}{percent}"

    def best(self, values: Sequence[float]) -> int | None:
        """Where the best of some values is, the last of equals; None where none is finite: NaN is never the best."""
        sign = 1 if self.better == "higher" else -1
        rated = [(sign * value, i) for i, value in enumerate(values) if math.isfinite(value)]
        return max(rated)[1] if rated else None


ACCURACY = Metric(better="higher", range=(0, 1))
ERROR = Metric(better="lower", range=(0, 1))
LOSS = Metric(better="lower", range=(0, None))

_NOUNS = {
    **dict.fromkeys(("acc", "accuracy", "prec", "precision", "recall", "auc", "auroc"), ACCURACY),
    **dict.fromkeys(("err", "error", "errors"), ERROR),
    **dict.fromkeys(("loss", "losses", "nll", "perplexity", "ppl", "xent", "crossentropy", "entropy"), LOSS),
}
# They change nothing of what a metric is.
_QUALIFIERS = frozenset(
    re.findall(
        r"\w+",
        "avg balanced class classification cross ema eval mean model rate softmax student teacher test top total train "
        "training val valid validation",
    )
)


def known_metric(tag: str) -> Metric | None:
    """What the name of a tag says without doubt; None: it has to be declared."""
    if re.fullmatch(rf"{FEW_SHOT}.+_\d+shot", tag):
        return ACCURACY
    words = re.findall(r"[a-z]+|\d+|[^a-z\d\s_./@-]+", tag.rpartition("/")[2].lower())
    nouns = [_NOUNS[word] for word in words if word in _NOUNS]
    if any(word not in _NOUNS and word not in _QUALIFIERS and not word.isdecimal() for word in words):
        return None
    if not nouns:
        # 'top1', 'top_5': an accuracy, as everybody writes it.
        return ACCURACY if re.search(r"\btop \d", " ".join(words)) else None
    # The last noun is what it is, those before say of what: the loss of an accuracy is a loss. An accuracy of an error
    # is nothing that anybody can know.
    if any(noun is not nouns[-1] for noun in nouns[:-1]) and nouns[-1] is ACCURACY:
        return None
    return nouns[-1]


def find_metric(tag: str, declared: Mapping[str, Metric], where: str) -> Metric:
    """How a tag is read: as declared, or as its name says.

    Args:
        tag: of the metric.
        declared: what evaluators, recipe, study or tag map say of tags.
        where: who could declare it, for the error: 'the study', ...

    Raises:
        ConfigError: neither says it; tells how it is declared.
    """
    found = declared.get(tag) or known_metric(tag)
    if found is None:
        raise ConfigError(undeclared(tag, where))
    return found


def undeclared(tag: str, where: str) -> str:
    """The error for a metric of which nobody says how it is read."""
    return (
        f"metric {tag!r}: nothing says whether higher or lower is better; declare it in {where}, such as "
        f"metrics: {{{tag}: {{better: lower, range: [0, 1]}}}} (null in `range`: no bound)"
    )


def merged(*declarations: tuple[str, Mapping[str, Metric]]) -> dict[str, Metric]:
    """Declarations of several places as one.

    Args:
        declarations: where, for the error, and what is declared there.

    Raises:
        ConfigError: two say different things of one tag.
    """
    result: dict[str, Metric] = {}
    origin: dict[str, str] = {}
    for where, metrics in declarations:
        for tag, metric in metrics.items():
            if result.setdefault(tag, metric) != metric:
                raise ConfigError(
                    f"metric {tag!r} is {_words(result[tag])} by {origin[tag]} and {_words(metric)} by {where}; "
                    f"say the same in both"
                )
            origin.setdefault(tag, where)
    return result


def _words(metric: Metric) -> str:
    low, high = ("null" if bound is None else f"{bound:g}" for bound in metric.range)
    return f"{{better: {metric.better}, range: [{low}, {high}]}}"


def nearest(tag: str, measured: Iterable[str]) -> str:
    """A hint for a metric that is not measured: the nearest that is, and all that are."""
    names = sorted(measured)
    if not names:
        return ""
    kind = known_metric(tag)
    alike = [name for name in names if kind is not None and known_metric(name) == kind]
    near = difflib.get_close_matches(tag, names, 1, 0.75) or difflib.get_close_matches(tag, alike or names, 1, 0.0)
    return f"; did you mean {near[0]!r}? Measured are: {', '.join(names)}"
