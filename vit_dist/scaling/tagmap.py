"""Tag maps: how to read the event files of other frameworks as runs of a study.

A map is a YAML file with one entry for each kind of log, the first whose `directory` matches counts:

    logs:
      - directory: 'timm/(?P<family>\\w+)_(?P<subset>\\d+k?)_s(?P<seed>\\d+)'   # a regular expression, found anywhere
        metric: eval/top1                                                      # their tag
        scale: 0.01                                                            # per cent -> fraction
        examples_per_step: 128
        steps: 1500                                                            # fewer: the run is unfinished
        constants: {model: vit-s16, dataset: fashion-mnist, num_params: 21665664, macs_per_image: 4600000000}

    metrics: {eval/score: {better: higher, range: [0, null]}}                    # of tags whose names do not say it

Named groups and constants may be family, model, subset, subset_seed, seed, study, dataset, num_params, macs_per_image.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from vit_dist.config.load import read_mapping, validate
from vit_dist.core.errors import DataError
from vit_dist.core.events.reader import RunLog, Series
from vit_dist.core.metrics import Metric
from vit_dist.core.registry import Config
from vit_dist.core.run.log import RunInfo, RunStatus
from vit_dist.core.small_files import is_count
from vit_dist.core.units import parse_count
from vit_dist.scaling.patterns import LEAST, longest_text

_COUNTS = ("subset", "subset_seed", "seed", "num_params", "macs_per_image")
_WORDS = ("family", "model", "study", "dataset")

_LONGEST_PATTERN = 500


class LogMap(Config):
    """How one kind of log is read."""

    directory: str = Field(".*", description="regular expression, searched in the directory's path below the logs")
    metric: str = Field(description="the tag that is read as the study's metric")
    scale: float = Field(1.0, allow_inf_nan=False, description="what its values are multiplied by")
    tags: dict[str, str] = Field(default_factory=dict, description="further tags: our name -> theirs")
    examples_per_step: Annotated[float, Field(gt=0, le=1e12)] = Field(
        description="training examples between steps s and s + 1"
    )
    steps: Annotated[int | None, Field(gt=0, le=2**53)] = Field(None, description="steps of a finished run")
    constants: dict[str, int | float | str] = Field(default_factory=dict)

    @field_validator("directory")
    @classmethod
    def _compiles(cls, value: str) -> str:
        if len(value) > _LONGEST_PATTERN:
            raise ValueError(f"a regular expression of {len(value):,} characters; at most {_LONGEST_PATTERN} are taken")
        try:
            most = longest_text(value)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        if most < LEAST:
            raise ValueError(
                "there are so many ways to search for it that it may take for ever: its repetitions may take each "
                "other's characters, as in (a+)+, (a|a)* or .*.*.*.*; write [^/]+ or [^_]+ for .+, or begin it with ^"
            )
        return value

    @model_validator(mode="after")
    def _knows_the_run(self) -> LogMap:
        known = {*re.compile(self.directory).groupindex, *self.constants}
        unknown = sorted(known - {*_COUNTS, *_WORDS})
        if unknown:
            valid = ", ".join((*_WORDS, *_COUNTS))
            raise ValueError(f"groups and constants may be {valid}; got {', '.join(unknown)}")
        missing = [name for name in ("subset",) if name not in known]
        if not known & {"family", "model"}:
            missing.insert(0, "family (or model)")
        if missing:
            raise ValueError(f"say the {' and the '.join(missing)} by a group of `directory` or in `constants`")
        return self


class TagMap(Config):
    """A tag map file."""

    logs: Annotated[tuple[LogMap, ...], Field(strict=False)] = ()
    metrics: dict[str, Metric] = Field({}, description="how metrics are read: {TAG: {better: lower, range: [0, 1]}}")

    @model_validator(mode="after")
    def _some(self) -> TagMap:
        if not self.logs and not self.metrics:
            raise ValueError("a tag map needs at least one entry of `logs`, or `metrics`")
        return self

    @property
    def all_tags(self) -> set[str]:
        """Every tag that some entry reads."""
        return {tag for one in self.logs for tag in (one.metric, *one.tags.values())}

    def entry(self, directory: str) -> LogMap | None:
        """The entry for the logs in a directory, or None."""
        for one in self.logs:
            # What is longer is of no entry: the search could take for ever.
            if len(directory) <= longest_text(one.directory) and re.search(one.directory, directory):
                return one
        return None


def load_tag_map(path: str | Path) -> TagMap:
    """Read a tag map.

    Raises:
        ConfigError: unreadable, or with mistakes.
    """
    return validate(TagMap, read_mapping(Path(path)), str(path))


def apply(entry: LogMap, log: RunLog, directory: str, metric: str) -> tuple[RunInfo, RunStatus, RunLog]:
    """Another framework's log as one of ours.

    Raises:
        DataError: a group's text is no number where one is needed.
    """
    match = re.search(entry.directory, directory)
    fields: dict[str, Any] = {**entry.constants}
    fields |= {name: text for name, text in (match.groupdict() if match else {}).items() if text is not None}
    for name in _COUNTS:
        if name in fields:
            try:
                fields[name] = parse_count(fields[name])
            except ValueError:
                raise DataError(f"tag map: {name} of {directory!r} is {fields[name]!r}, which is no count") from None
        if name in fields and not is_count(fields[name]):
            raise DataError(f"tag map: {name} of {directory!r} is {fields[name]}, which is no count of this world")
    scalars = _renamed(entry, log, metric)
    last = int(scalars[metric].steps[-1]) if metric in scalars else 0
    family = str(fields.get("family") or fields.get("model"))
    examples = round(last * entry.examples_per_step)
    if not is_count(examples):
        raise DataError(f"its last step, {last}, stands for {examples:,} examples")
    if fields["subset"] == 0:
        raise DataError(f"tag map: subset of {directory!r} is 0")
    info = RunInfo(
        name=directory,
        study=str(fields.get("study", "")),
        family=family,
        model=str(fields.get("model", family)),
        num_params=fields.get("num_params", 0),
        macs_per_image=fields.get("macs_per_image"),
        macs_method="given in the tag map" if "macs_per_image" in fields else "",
        dataset=str(fields.get("dataset", "not said")),
        dataset_fingerprint="",
        num_classes=0,
        image_size=0,
        subset=fields["subset"],
        subset_seed=fields.get("subset_seed", 0),
        seed=fields.get("seed", 0),
        planned_examples=round((entry.steps or last) * entry.examples_per_step),
        planned_steps=entry.steps or last,
        global_batch=max(1, round(entry.examples_per_step)),
        base_lr=0.0,
        weight_decay=0.0,
        precision="",
        engine="read through a tag map",
        world_size=0,
        code_version="",
        recipe_hash="",
    )
    short = entry.steps is not None and last < entry.steps
    reason = "its log ends there" if short else ""
    status = RunStatus(status="stopped" if short else "done", step=last, examples=examples, reason=reason)
    return info, status, RunLog(log.url, scalars, log.texts, log.files, log.problems)


def _renamed(entry: LogMap, log: RunLog, metric: str) -> dict[str, Series]:
    scalars = {ours: log.scalars[theirs] for ours, theirs in entry.tags.items() if theirs in log.scalars}
    series = log.scalars.get(entry.metric)
    if series is not None:
        scalars[metric] = Series(series.steps, series.values * entry.scale, series.wall_times)
    return scalars
