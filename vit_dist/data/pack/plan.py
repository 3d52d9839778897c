"""What a packing is going to be, and how far it is: the plan beside the shards, a done marker for each. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import exists, explained, file_system, folder_url, is_remote, join_url, read_bytes, redact
from vit_dist.core.small_files import (
    Check,
    DamagedError,
    is_count,
    is_flag,
    is_mapping,
    is_text,
    is_texts,
    or_none,
    parse_json,
    required,
    shown,
)
from vit_dist.data.grammar import MAX_CLASSES
from vit_dist.data.pack.shards import STATE_FOLDER, DoneMarker, Task

PLAN_FILE = "pack.json"
_VERSION = 1
_READS_IN_FLIGHT = 16
_MAX_SHARDS = 10_000_000
_COUNT = (is_count, "a whole number from 0")
_FIELDS: dict[str, tuple[Check, str]] = {
    "kind": (is_text, "a text"),
    "digest": (is_text, "a text"),
    "name": (is_text, "a text"),
    "num_images": _COUNT,
    "num_val": _COUNT,
    "samples_per_shard": (lambda value: is_count(value) and value > 0, "a whole number from 1"),
    "seed": (lambda value: type(value) is int, "a whole number"),
    "images": (
        lambda value: is_mapping(value) and all(map(or_none(lambda v: is_flag(v) or is_count(v)), value.values())),
        "an object of whole numbers, true, false and null",
    ),
    "num_classes": (lambda value: is_count(value) and value <= MAX_CLASSES, f"a whole number up to {MAX_CLASSES:,}"),
    "classes": (is_texts, "a list of names"),
}
_WORDS = {
    "kind": "--format",
    "name": "--name",
    "num_images": "images in SRC",
    "num_val": "--val, in images",
    "samples_per_shard": "--samples-per-shard",
    "seed": "--seed",
    "num_classes": "number of classes",
}
"""What the fields of a plan are called where they differ: the option that says them, or what is counted."""
_OF_THE_SOURCE = frozenset({"kind", "num_images"})
"""Fields that do not differ without the digest of the source's list."""
_LONGEST = 60


@dataclass(frozen=True)
class PackPlan:
    """What is packed, and into what: equal plans give equal bytes. Kept as `pack.json` beside the shards."""

    kind: str
    digest: str
    name: str
    num_images: int
    num_val: int
    samples_per_shard: int
    seed: int
    images: dict[str, int | None]
    num_classes: int
    classes: tuple[str, ...]

    def outputs(self) -> list[tuple[str, int, int]]:
        """Folder, first place and number of images of each set that comes out: one, or train and val."""
        return outputs_of(self.num_images, self.num_val)

    def tasks(self) -> Iterator[Task]:
        """Every shard."""
        return tasks_of(self.num_images, self.num_val, self.samples_per_shard)

    def changes(self, now: Mapping[str, Any]) -> str:
        """Where the fields of a plan of now differ from this one, which lies there, as options; '' for nowhere."""
        there = asdict(self)
        changed = [name for name, value in now.items() if there[name] != value]
        # What follows from another difference says less than that.
        if not _OF_THE_SOURCE.isdisjoint(changed):
            changed = [name for name in changed if name != "digest"]
        if "num_images" in changed and all(p.get("samples_per_shard") == p["num_images"] for p in (now, there)):
            changed = [name for name in changed if name != "samples_per_shard"]
        return "; ".join(text for name in changed for text in _changes_of(name, now[name], there[name]))

    def encode(self) -> bytes:
        """As JSON."""
        return (json.dumps({"version": _VERSION, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def decode(cls, content: bytes, where: str) -> PackPlan:
        """From JSON.

        Raises:
            DataError: damaged, or of another version.
        """
        try:
            raw = parse_json(content)
            version = required(raw, "version", is_count, f"{_VERSION}")
            if version != _VERSION:
                raise DataError(f"{where}: a plan of version {version!r}; this vit_dist reads {_VERSION}")
            values = {name: required(raw, name, *field) for name, field in _FIELDS.items()}
            if values["num_val"] > values["num_images"] or len(values["classes"]) > values["num_classes"]:
                raise DamagedError("num_val or classes: more than num_images or num_classes")
            if values["num_images"] > values["samples_per_shard"] * _MAX_SHARDS:
                raise DamagedError(f"num_images: {values['num_images']:,}, more than {_MAX_SHARDS:,} shards hold")
        except DamagedError as error:
            raise DataError(f"{where}: damaged plan of a packing: {error}; pack again with --force") from None
        # Plans of before there was a choice.
        values["images"].setdefault("upright", False)
        return cls(**{**values, "classes": tuple(values["classes"])})


def outputs_of(num_images: int, num_val: int) -> list[tuple[str, int, int]]:
    """Folder, first place and number of images of each set: one, or train and val."""
    if not num_val:
        return [("", 0, num_images)]
    return [("train", 0, num_images - num_val), ("val", num_images - num_val, num_val)]


def tasks_of(num_images: int, num_val: int, samples_per_shard: int) -> Iterator[Task]:
    """Every shard of a packing of this size."""
    for folder, first, count in outputs_of(num_images, num_val):
        for number, start in enumerate(range(0, count, samples_per_shard)):
            yield Task(folder, number, first + start, min(samples_per_shard, count - start))


def unpacked_parts(dest: str, parts: int, expected: Mapping[str, Any] | None = None) -> list[int]:
    """Which of `parts` parts, from 0, still have shards to pack into `dest`; none where it is merged already.

    Args:
        dest: URL of a directory.
        parts: into how many the packing is cut.
        expected: fields of the plan that must be those of the packing that lies there.

    Raises:
        ConfigError: another packing lies there.
        DataError: the store cannot be asked.
    """
    dest = folder_url(dest)
    url = join_url(dest, PLAN_FILE)
    if not exists(url):
        if exists(join_url(dest, "manifest.json")):
            raise ConfigError(
                f"{redact(dest)}: holds a manifest that `vit-dist data pack` did not write; choose another directory"
            )
        return list(range(parts))
    plan = PackPlan.decode(read_bytes(url), redact(url))
    changes = plan.changes(expected or {})
    if changes:
        raise ConfigError(f"{redact(dest)}: holds another packing ({changes}); choose another directory")
    if all_there(dest, plan):
        return []
    tasks = list(plan.tasks())
    packed = read_markers(dest, tasks)
    return sorted({i % parts for i, task in enumerate(tasks) if task not in packed})


def _changes_of(name: str, now: Any, there: Any) -> Iterator[str]:
    """How two values of a field of plans differ, in words that a user has typed or can count."""
    if name == "images":
        for key in dict.fromkeys([*now, *there]):
            if now.get(key) != there.get(key):
                yield f"--{key.replace('_', '-')}: {_told(now.get(key))} now, {_told(there.get(key))} there"
    elif name == "classes":
        if len(now) != len(there):
            yield f"names of classes: {len(now):,} now, {len(there):,} there"
        at = next((i for i, (a, b) in enumerate(zip(now, there, strict=False)) if a != b), None)
        if at is not None:
            yield f"name of class {at}: {_told(now[at])} now, {_told(there[at])} there"
    elif name == "digest":
        yield "SRC: other images or labels now than there"
    else:
        yield f"{_WORDS[name]}: {_told(now)} now, {_told(there)} there"


def _told(value: Any) -> str:
    """A value of a plan, cut short, for a message."""
    if value is None or isinstance(value, bool):
        return "given" if value else "none" if value is None else "not given"
    text = shown(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."


def all_there(dest: str, plan: PackPlan) -> bool:
    """True where the manifests are written: the packing is complete."""
    return all(exists(join_url(join_url(dest, f) if f else dest, "manifest.json")) for f, _, _ in plan.outputs())


def read_markers(dest: str, tasks: Sequence[Task]) -> dict[Task, DoneMarker]:
    """The done markers of the shards that are packed, in the order of the tasks: one listing, then a read for each."""
    folder = join_url(dest, STATE_FOLDER)
    system, path = file_system(folder)
    with explained(folder, "listed"):
        if is_remote(folder):
            # fsspec remembers listings: markers that other parts wrote since would be missed.
            system.invalidate_cache()
        names = set(system.names(path)) if system.isdir(path) else set()
    there = [task for task in tasks if task.marker.rpartition("/")[2] in names]
    with ThreadPoolExecutor(_READS_IN_FLIGHT, thread_name_prefix="markers") as pool:
        read = pool.map(lambda task: _marker(dest, task), there)
        return {task: marker for task, marker in zip(there, read, strict=True) if marker is not None}


def _marker(dest: str, task: Task) -> DoneMarker | None:
    try:
        return DoneMarker.decode(read_bytes(join_url(dest, task.marker)))
    except DamagedError:
        # Damaged: the shard is packed again.
        return None
