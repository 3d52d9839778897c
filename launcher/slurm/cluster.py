"""A site as a YAML file: what a job asks of Slurm there, and what a node needs before training starts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from vit_dist.config.blame import Sources
from vit_dist.config.cache import ClusterCacheConfig
from vit_dist.config.load import find_config, merge, parse_overrides, read_mapping, validate
from vit_dist.core.errors import ConfigError
from vit_dist.core.registry import Config, LocalPath
from vit_dist.core.units import Duration, Span, no_unit

_TIME = re.compile(r"^(?:(\d+)-)?(\d+)(?::(\d{1,2}))?(?::(\d{1,2}))?$")
_MEMORY = re.compile(r"^\d+[KMGT]?$")
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_SECRET = re.compile(r"(?i)(secret|password|passwd|_token$|^token$|access_key|api_key|credential)")


def slurm_time(value: object) -> str:
    """A time limit as Slurm writes it, D-HH:MM:SS, from D-HH, D-HH:MM, HH:MM:SS or from '36h'.

    `24` and `24:00` are minutes for Slurm, which whoever writes them need not know: they are refused.

    Raises:
        ValueError: none of these, or 0, or one that may be minutes or hours.
    """
    text = str(value).strip()
    if text.lower() in {"unlimited", "infinite"}:
        return "UNLIMITED"
    match = _TIME.match(text)
    if match is None or isinstance(value, bool):
        try:
            span = Duration.parse(value)
        except ValueError:
            span = None
        if span is None or span.unit != "seconds":
            raise ValueError(f"expected a time such as '24:00:00', '2-12:00:00', '36h' or '90min', got {value!r}")
        seconds = int(span.value)
    else:
        days, first, second, third = match.groups()
        if days is None and second is None and int(first):
            raise ValueError(f"{no_unit(first, ('min', 'h'))}: Slurm reads it as minutes")
        if days is None and third is None and int(first):
            raise ValueError(
                f"{text} is minutes and seconds for Slurm, and may be meant as hours and minutes; write "
                f"'00:{text}' or '{text}:00'"
                if int(first) < 60
                else f"{text} is minutes and seconds for Slurm; write '{int(first)}min', or hours as '{text}:00'"
            )
        # D-HH[:MM[:SS]] or HH:MM:SS.
        seconds = int(days or 0) * 86400 + int(first) * 3600 + int(second or 0) * 60 + int(third or 0)
    if seconds <= 0:
        raise ValueError("a time limit of 0 lets nothing run")
    days_, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600:02d}:{rest % 3600 // 60:02d}:{rest % 60:02d}"
    return f"{days_}-{clock}" if days_ else clock


def slurm_seconds(text: str) -> float:
    """Seconds of what `slurm_time` gives; infinite where there is no limit."""
    if text == "UNLIMITED":
        return float("inf")
    days, _, clock = text.rpartition("-")
    hours, minutes, seconds = (int(part) for part in clock.split(":"))
    return int(days or 0) * 86400 + hours * 3600 + minutes * 60 + seconds


def _plain_text(value: object) -> object:
    # A control character would end an #SBATCH line and begin another; nothing that Slurm knows has one.
    if isinstance(value, str) and re.search(r"[\x00-\x1f\x7f]", value):
        raise ValueError(f"holds a line break or another control character: {value[:60]!r}")
    return value


def _memory(value: object) -> object:
    if not isinstance(value, bool) and re.fullmatch(r"0*[1-9]\d*", str(value)):
        raise ValueError(f"{no_unit(value, ('G', 'M'))}: Slurm reads it as megabytes")
    if isinstance(value, str) and value and not _MEMORY.match(value):
        raise ValueError(f"expected a size such as 200G or 64000M, or '0' for all of a node, got {value!r}")
    return value


Line = Annotated[str, BeforeValidator(_plain_text)]
Word = Annotated[str, BeforeValidator(_plain_text), Field(pattern=r"^\S*$")]
TimeLimit = Annotated[str, BeforeValidator(slurm_time)]
Memory = Annotated[Word, BeforeValidator(_memory)]
Lines = Annotated[tuple[Line, ...], Field(strict=False)]
PathLine = Annotated[LocalPath, BeforeValidator(_plain_text)]
PathLines = Annotated[tuple[PathLine, ...], Field(strict=False)]


class Container(Config):
    """In what the ranks run. The supervisor itself runs outside, where Slurm's commands are."""

    runtime: Literal["pyxis", "apptainer"] = Field(description="pyxis: `srun --container-image` (enroot); or apptainer")
    image: Annotated[Line, Field(min_length=1)] = Field(description="a .sqsh or .sif file, or a registry's URL")
    mounts: PathLines = Field(
        (), description="HOST or HOST:INSIDE; the run root and the code are mounted by themselves"
    )
    python: Annotated[PathLine, Field(min_length=1)] = Field("python3", description="the interpreter inside")
    options: Lines = Field((), description="further options of srun (pyxis) or of `apptainer exec`, each one word")


class Cluster(Config):
    """A site. Empty texts leave the choice to Slurm."""

    name: Annotated[Line, Field(min_length=1, max_length=100)] = Field(
        "cluster", description="default: the file's name"
    )
    description: Line = Field("", description="for `vit-dist list clusters`")

    partition: Word = Field("", description="that jobs go to, or several: 'a,b'")
    account: Word = Field("", description="that jobs are charged to")
    qos: Word = Field("", description="quality of service")
    constraint: Line = Field("", description="features of nodes, such as 'h100&ib'")
    reservation: Word = Field("", description="in which jobs run")
    exclude: Word = Field("", description="nodes never to use, such as 'n[7-9]'")

    devices_per_node: Annotated[int, Field(ge=0, le=64)] = Field(description="GPUs a job uses on a node; 0: none")
    device_kind: Word = Field("", description="the type that Slurm knows them by, such as h100")
    device_option: Literal["gpus-per-node", "gres", "none"] = Field(
        "gpus-per-node", description="how GPUs are asked for; none: the partition gives whole nodes anyway"
    )
    tasks_per_node: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        None, description="processes on a node; given where there are no GPUs, else one a GPU"
    )
    cpus_per_node: Annotated[int, Field(ge=1)] = Field(
        description="CPUs that a job uses on a node, shared by its tasks"
    )
    memory: Memory = Field("", description="of a node, such as 200G, which a job takes; '0': all of it")
    exclusive: bool = Field(False, description="no other job on the nodes")
    time_limit: TimeLimit = Field(description="of one job; a run that needs longer is queued again, again and again")

    max_nodes: Annotated[int, Field(ge=1)] | None = Field(None, description="more are refused before Slurm is asked")
    signal_lead: Span = Field(
        Duration.parse("5min"),
        description="how long before the time limit a run saves and ends, until the cost of a save has been measured",
    )
    signal_margin: Span = Field(
        Duration.parse("60s"),
        description="added to the measured cost of a save: signals come late, and two steps go by first",
    )
    preempt_grace: Span | None = Field(
        None, description="what a preempted job is given; a warning is printed where a save takes longer"
    )
    give_up_after: Annotated[int, Field(ge=1)] = Field(3, description="attempts in a row that save nothing new")
    preflight: bool = Field(False, description="test the nodes before training starts on them")

    run_root: PathLine = Field("", description="shared directory for run directories; empty: `runs` where one is")
    scratch: PathLine = Field("", description="node-local directory for temporary files; must exist on every node")
    cache: ClusterCacheConfig | None = Field(
        None, description="copies of shards on each node, for all recipes without a `data.cache`; left out: none"
    )
    python: PathLine = Field("", description="interpreter on the nodes; empty: the one that submits")
    setup: Lines = Field((), description="lines of shell before everything else: module load, source, ulimit")
    env: dict[str, Line] = Field({}, description="environment variables: NCCL, EFA, proxies. No secrets")
    container: Container | None = Field(None, description="in what the ranks run; left out: on the node itself")
    sbatch_options: Lines = Field((), description="further lines for the head of scripts, such as '--switches=1'")
    srun_options: Lines = Field((), description="further options of srun, each one word, such as '--mpi=none'")

    @field_validator("env")
    @classmethod
    def _is_environment(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not _VARIABLE.match(name):
                raise ValueError(f"{name!r} is not the name of an environment variable")
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} looks like a secret, and scripts are readable; set it in the shell that submits (jobs "
                    f"inherit its environment), or in ~/.aws/credentials"
                )
        return value

    @field_validator("sbatch_options", "srun_options")
    @classmethod
    def _are_options(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for option in value:
            if not option.startswith("-"):
                raise ValueError(f"{option!r}: an option begins with '-', such as '--switches=1'")
        return value

    @model_validator(mode="after")
    def _fits(self) -> Cluster:
        if self.devices_per_node and self.tasks_per_node not in (None, self.devices_per_node):
            raise ValueError(
                f"tasks_per_node: {self.tasks_per_node} beside devices_per_node={self.devices_per_node}: a task has "
                f"one GPU; leave it out"
            )
        if self.tasks > self.cpus_per_node:
            raise ValueError(
                f"cpus_per_node: {self.cpus_per_node} CPUs are fewer than the {self.tasks} tasks of a node"
            )
        return self

    @property
    def tasks(self) -> int:
        """Processes on a node: one a GPU, or `tasks_per_node`."""
        return self.devices_per_node or self.tasks_per_node or 1

    @property
    def cpus_per_task(self) -> int:
        """CPUs of one process."""
        return self.cpus_per_node // self.tasks

    @property
    def lead_s(self) -> float:
        """`signal_lead` in seconds."""
        return float(self.signal_lead.value)


def load_cluster(name: str, overrides: Sequence[str] = ()) -> Cluster:
    """Read and check a cluster file.

    Args:
        name: path of a YAML file, or the name of one in configs/clusters.
        overrides: 'key=value' texts, applied last.

    Raises:
        ConfigError: every mistake, a line each, with the nearest valid name.
    """
    path = find_config(name, "clusters")
    files: list[Path] = []
    raw = read_cluster_file(path, files=files)
    merged = {"name": path.stem, **merge(raw, parse_overrides(overrides))}
    return validate(Cluster, merged, Sources(str(path), overrides, files))


def read_cluster_file(path: Path, seen: tuple[Path, ...] = (), files: list[Path] | None = None) -> dict[str, object]:
    """A cluster file with the file that its `base:` names merged below it.

    Args:
        path: of the file.
        seen: those that have it as their base.
        files: is given the paths of all that were read, the one that wins first.

    Raises:
        ConfigError: missing, not YAML, or a base that leads back to itself.
    """
    if files is not None:
        files.append(path)
    raw = read_mapping(path)
    base = raw.pop("base", None)
    if path in seen:
        raise ConfigError(f"{path}: `base:` goes round in a circle: {' -> '.join(map(str, (*seen, path)))}")
    if base is None:
        return raw
    local = path.parent / f"{base}.yaml"
    return merge(
        read_cluster_file(local if local.is_file() else find_config(str(base), "clusters"), (*seen, path), files), raw
    )
