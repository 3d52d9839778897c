"""What a run writes into its log and a study reads from it: the one contract between the two.

Scalars stand at the optimizer step after which they were measured, so that the n-th value follows n updates. The
number of examples seen by then is exactly `step * global_batch`; `progress/examples` charts it, in single precision.
Everything else that a study must know stands in four texts: `RunInfo`, the resolved recipe and how its metrics are read
at step 0, `RunStatus` at the last step. They are JSON and YAML, since the scalars of TensorBoard keep 24 bits only.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from vit_dist.core.errors import DataError
from vit_dist.core.metrics import Metric
from vit_dist.core.run.lineage import Lineage, Trunk
from vit_dist.core.run.measured import MeasuredOn
from vit_dist.core.small_files import MAX_TEXT, DamagedError, is_count, is_number, parse_json

if TYPE_CHECKING:
    from vit_dist.core.events.reader import RunLog
    from vit_dist.core.events.writer import EventWriter, HParam

SCHEMA = 1

_LONGEST_NAME = 500
_SEEDS = frozenset({"seed", "subset_seed"})

RUN = "vit_dist/run"
RECIPE = "vit_dist/recipe"
STATUS = "vit_dist/status"
METRICS = "vit_dist/metrics"
TAKEDOWN = "vit_dist/takedown"
"""Only where keys were taken down: how many, from which positions on."""
METRICS_OF = f"{METRICS}/"
"""A text for each metric that later evaluations measured."""
MEASURED_ON = "vit_dist/measured_on/"
"""A text for each metric, its tag behind this: what its values were measured on."""

TRAIN_LOSS = "train/loss"
TRAIN_LR = "train/lr"
TRAIN_GRAD_NORM = "train/grad_norm"
TRAIN_EXAMPLES_PER_S = "train/examples_per_s"
TRAIN_EPOCH = "train/epoch"
TRAIN_DATA_WAIT = "train/data_wait"
PROGRESS_EXAMPLES = "progress/examples"
VAL_TOP1 = "val/top1"
VAL_LOSS = "val/loss"

MFU = "throughput/mfu"
TFLOPS_PER_DEVICE = "throughput/tflops_per_device"
EXAMPLES_PER_S_PER_DEVICE = "throughput/examples_per_s_per_device"
EXAFLOPS = "throughput/exaflops"
STEP_TIME = "step_time"
BEFORE_SYNC = "before_sync"
SLOWEST_RANK = "before_sync/slowest_rank"
TIME_SHARE = "time_share"
MEMORY = "memory"
FIRST_STEP_S = "start/first_step_s"
DATA_READ = "data/read_mb_per_s"
DATA_REQUESTS = "data/requests"
DATA_RETRIES = "data/retries"
DATA_DECODE = "data/decode_ms"
DATA_REPLACED = "data/replaced"
DATA_HELD = "data/held_mib"
DATA_CACHE_HITS = "data/cache_hits"
DATA_DECODERS_BUSY = "data/decoders_busy"
DATA_DECODERS_STARVED = "data/decoders_starved"

WEIGHT_NORM = "weight_norm"
GRADIENT_NORM = "gradient_norm"
UPDATE_NORM = "update_norm"
ATTENTION_LOGIT = "attention_logit"
ALL = "all"
"""What follows the tags of norms and logits where they are over all parameters or layers, in place of a name."""

LAYOUT = {
    "Learning": {"loss": [TRAIN_LOSS, VAL_LOSS], "validation accuracy": [VAL_TOP1]},
    "Optimizer": {"learning rate": [TRAIN_LR], "gradient norm": [TRAIN_GRAD_NORM]},
    "Progress": {
        "examples": [PROGRESS_EXAMPLES],
        "epochs": [TRAIN_EPOCH],
        "examples per second": [TRAIN_EXAMPLES_PER_S],
    },
    "Speed": {
        "model FLOPs utilization": [f"^{MFU}$"],
        "TFLOP/s a device": [TFLOPS_PER_DEVICE],
        "where the time goes": [f"^{TIME_SHARE}/"],
        "seconds a step": [f"^{STEP_TIME}/"],
        "seconds before ranks meet": [f"^{BEFORE_SYNC}/.*_s$"],
        "memory, GiB": [f"^{MEMORY}/peak_.*_gib$"],
    },
    "Data": {
        "MB/s read": [DATA_READ],
        "ms of CPU time an image": [DATA_DECODE],
        "what decodes: at work, without bytes": [f"^({DATA_DECODERS_BUSY}|{DATA_DECODERS_STARVED})$"],
        "requests and retries": [f"^({DATA_REQUESTS}|{DATA_RETRIES})$"],
        "MiB of tars held": [DATA_HELD],
        "cache of the node: share of bytes": [DATA_CACHE_HITS],
    },
    "Norms": {"all layers": [f"^({WEIGHT_NORM}|{GRADIENT_NORM}|{UPDATE_NORM})/{ALL}$"]},
}
"""Charts of TensorBoard's CUSTOM SCALARS tab."""


class _Entry(BaseModel):
    """Base of the JSON entries: strict in types, and unknown keys pass, so that newer logs can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class RunInfo(_Entry):
    """Who a run is. Counts are of examples unless the name says otherwise."""

    schema_version: int = SCHEMA
    name: str
    study: str = ""
    family: str = ""
    model: str
    num_params: Annotated[int, Field(ge=0)]
    macs_per_image: int | None = Field(None, description="multiply-adds of one image's forward pass in training")
    macs_method: str = Field("", description="how they were counted")
    dataset: str
    dataset_fingerprint: str
    num_classes: int
    image_size: int
    subset: Annotated[int, Field(gt=0)] = Field(description="training examples that the run may see")
    subset_seed: int
    seed: int
    planned_examples: int
    planned_steps: int
    global_batch: int
    base_lr: float
    weight_decay: float
    precision: str
    engine: str = Field(description="for people: 'DeepSpeed ZeRO-1, bf16'")
    world_size: int
    code_version: str
    recipe_hash: str
    lineage: Annotated[Lineage, Field(strict=False)] = Field((), description="of a branch: the runs it has grown from")


class RunStatus(_Entry):
    """How a run ended, or paused."""

    status: Literal["done", "stopped", "failed"]
    step: int
    examples: int
    reason: str = ""


E = TypeVar("E", bound=_Entry)


def write_start(writer: EventWriter, info: RunInfo, recipe_yaml: str) -> None:
    """Say at step 0 who the run is. To be called by every attempt: a file alone must be enough to know its run."""
    # A run that is no branch says nothing of a lineage.
    writer.json(RUN, info.model_dump(mode="json", exclude=None if info.lineage else {"lineage"}))
    # Indented text is code to Markdown, and the same YAML to a reader.
    writer.text(RECIPE, textwrap.indent(recipe_yaml, "    "))
    writer.hparams(_hparams(info), [VAL_TOP1, VAL_LOSS, TRAIN_LOSS], group=info.name)
    writer.custom_scalars(LAYOUT)


def write_metrics(writer: EventWriter, metrics: Mapping[str, Metric], step: int = 0) -> None:
    """Say how the metrics that this file holds are read, so that a log alone is enough to compare runs by them."""
    if metrics:
        writer.json(METRICS, {tag: metric.model_dump(mode="json") for tag, metric in metrics.items()}, step)


def logged_metrics(log: RunLog) -> dict[str, Metric]:
    """How metrics are read, as a run's log says it; what a later step says counts.

    Raises:
        DataError: the entry is there but cannot be understood.
    """
    found: dict[str, Metric] = {}
    of_tags = [tag for tag in log.texts if tag.startswith(METRICS_OF)]
    said = [text for tag in (METRICS, *sorted(of_tags)) for _, text in sorted(log.texts.get(tag, {}).items())]
    for text in said:
        try:
            found |= TypeAdapter(dict[str, Metric]).validate_python(parse_json(text))
        except ValueError as error:
            raise DataError(f"{METRICS} cannot be understood: {_first_lines(error, 1)}") from None
    return found


def write_measured(
    writer: EventWriter, measured: Mapping[str, MeasuredOn | None], metrics: Mapping[str, Metric], step: int
) -> None:
    """Say beside the first values of tags on which set they were measured, and how they are read, where it is known."""
    # A text for each tag: of two files that write one text at one step only the later would count.
    for tag, one in measured.items():
        if one is not None:
            writer.json(f"{MEASURED_ON}{tag}", one.model_dump(mode="json"), step)
        if tag in metrics:
            writer.json(f"{METRICS_OF}{tag}", {tag: metrics[tag].model_dump(mode="json")}, step)


def logged_measured(log: RunLog, tag: str) -> MeasuredOn | None:
    """On which set the values of a tag were measured; None where a log does not say, as old ones and others'.

    Raises:
        DataError: the entry is there but cannot be understood.
    """
    text = log.last_text(f"{MEASURED_ON}{tag}")
    if text is None:
        return None
    try:
        return MeasuredOn.model_validate(parse_json(text))
    except ValueError as error:
        raise DataError(f"{MEASURED_ON}{tag} cannot be understood: {_first_lines(error, 3)}") from None


def write_status(writer: EventWriter, status: RunStatus) -> None:
    """Say how the run ended, at its last step."""
    writer.json(STATUS, status.model_dump(mode="json"), status.step)
    writer.flush()


def run_info(log: RunLog) -> RunInfo | None:
    """Who a run is, or None where its log does not say.

    Raises:
        DataError: the entry is there but cannot be understood.
    """
    return _read(log, RUN, RunInfo)


def run_status(log: RunLog) -> RunStatus | None:
    """How the run ended, or None where it has not.

    Raises:
        DataError: the entry is there but cannot be understood.
    """
    return _read(log, STATUS, RunStatus)


def _read(log: RunLog, tag: str, cls: type[E]) -> E | None:
    text = log.last_text(tag)
    if text is None:
        return None
    try:
        value = parse_json(text)
        version = value.get("schema_version", SCHEMA) if isinstance(value, dict) else SCHEMA
        if isinstance(version, int) and version > SCHEMA:
            raise DataError(f"{tag} is of schema {version}; this version reads up to {SCHEMA}: update vit_dist")
        entry = cls.model_validate(value)
        _check_bounds(entry)
    except ValueError as error:
        raise DataError(f"{tag} cannot be understood: {_first_lines(error, 3)}") from None
    return entry


def _check_bounds(entry: _Entry | Trunk) -> None:
    """Refuse what no run of ours says, and what a page, a figure or a table could not hold.

    Raises:
        DamagedError: names the field.
    """
    for name, value in entry:
        for trunk in value if name == "lineage" else ():
            _check_bounds(trunk)
        if isinstance(value, str):
            # A reason has lines, and may be long. Where a name is shown, control characters in it become escapes.
            told = name == "reason"
            if any("\ud800" <= letter <= "\udfff" for letter in value):
                raise DamagedError(f"{name} is no text: {value[:60]!a} has half a character")
            if len(value) > (MAX_TEXT if told else _LONGEST_NAME) or not (told or len(value.splitlines()) <= 1):
                raise DamagedError(f"{name} is no name: {value[:60]!a}, {len(value):,} characters")
        elif isinstance(value, int) and not (-(2**64) < value < 2**64 if name in _SEEDS else is_count(value)):
            raise DamagedError(f"{name} is {value}, which is no count")
        elif isinstance(value, float) and not is_number(value):
            raise DamagedError(f"{name} is {value}")


def _first_lines(error: Exception, count: int) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:count])[:_LONGEST_NAME]


def _hparams(info: RunInfo) -> dict[str, HParam]:
    shown = ("family", "model", "subset", "seed", "base_lr", "weight_decay", "global_batch", "planned_examples")
    return {name: getattr(info, name) for name in (*shown, "precision", "dataset")}
