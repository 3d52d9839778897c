"""Checkpoints that are whole or are not there.

A step is written to a directory of its own under a temporary name, every file is flushed and checksummed, the
marker COMMITTED.json is written last, and the directory is renamed. The newest step whose files match their
checksums is restored; a damaged one is passed over, and said. No `latest` file exists to point at the wrong one.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vit_dist import __version__
from vit_dist.config.load import differences
from vit_dist.core.errors import CheckpointError, RunError
from vit_dist.core.files import write_bytes
from vit_dist.core.log import log
from vit_dist.core.units import format_bytes
from vit_dist.core.world import World
from vit_dist.engines._protocol import Engine

_MARKER = "COMMITTED.json"
_FORMAT = 1


@dataclass(frozen=True)
class Restored:
    """What a checkpoint says beside the weights."""

    path: Path
    state: dict[str, Any]


def save(root: Path, engine: Engine, state: dict[str, Any], identity: dict[str, Any], world: World, keep: int) -> Path:
    """Write one checkpoint and remove the oldest beyond `keep`. A collective.

    Args:
        root: the run's checkpoints directory, shared by all ranks.
        engine: writes its own files.
        state: the train state as plain data; state["step"] names the directory.
        identity: of the recipe.
        world: this rank's place.
        keep: how many committed checkpoints stay.

    Raises:
        RunError: on every rank, where any rank failed to write; nothing half-written is left.
    """
    final = root / f"step-{state['step']:010d}"
    partial = root / f".{final.name}.partial"
    problem = ""
    if world.is_main:
        problem = _prepare(root, partial)
    _agree(problem, partial, world)
    try:
        engine.save(partial)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        problem = f"{type(error).__name__}: {error}"
    _agree(problem, partial, world)
    try:
        files = _flush_share(partial, world)
    except OSError as error:
        files, problem = {}, f"{type(error).__name__}: {error}"
    gathered: list[Any] = [files]
    if world.size > 1:
        gathered = [None] * world.size
        torch.distributed.all_gather_object(gathered, files)
    _agree(problem, partial, world)
    if world.is_main:
        marker = {
            "format": _FORMAT,
            "vit_dist": __version__,
            "layout": engine.layout,
            "recipe": identity,
            "state": state,
            "files": {name: entry for part in gathered for name, entry in part.items()},
        }
        try:
            write_bytes(str(partial / _MARKER), json.dumps(marker, indent=1).encode())
            if final.exists():  # an attempt before this one got as far, and its step was passed over as damaged
                shutil.rmtree(final)
            partial.rename(final)
            _sync_directory(root)
            for old in committed(root)[keep:]:
                shutil.rmtree(old)
        except Exception as error:  # whatever it was, the other ranks must hear of it
            problem = f"{type(error).__name__}: {error}"
    _agree(problem, partial, world)
    return final


def restore(root: Path, engine: Engine, identity: dict[str, Any], world: World) -> Restored | None:
    """Load the newest valid checkpoint into the engine. A collective.

    Returns:
        What was restored, or None where there is no checkpoint at all.

    Raises:
        CheckpointError: of another recipe or layout (says what differs), or all are damaged.
    """
    candidates = committed(root)
    for path in candidates:
        marker, problem = _read_marker(path)
        problem = problem or _verify_share(path, marker, world)
        problems = _all_problems(problem, world)
        if problems:
            if world.is_main:
                log(f"checkpoint {path} is damaged and passed over: {problems[0]}")
            continue
        _check_belongs(path, marker, engine, identity)
        engine.load(path)
        return Restored(path, marker["state"])
    if candidates:
        raise CheckpointError(
            f"{root}: none of the {len(candidates)} checkpoints is whole; restore one from a copy, or start in another "
            f"--run-dir"
        )
    return None


def committed(root: Path) -> list[Path]:
    """Committed checkpoints, the newest step first."""
    return sorted((p.parent for p in root.glob(f"step-*/{_MARKER}")), reverse=True)


def _prepare(root: Path, partial: Path) -> str:
    try:
        for old in root.glob(".step-*.partial"):
            shutil.rmtree(old)
        partial.mkdir(parents=True)
        newest = committed(root)
        if newest:
            needed = sum(f.stat().st_size for f in newest[0].rglob("*") if f.is_file())
            free = shutil.disk_usage(root).free
            if free < needed:
                partial.rmdir()
                return f"{format_bytes(free)} free, about {format_bytes(needed)} needed"
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _agree(problem: str, partial: Path, world: World) -> None:
    """Raise on every rank what any rank met, and leave nothing half-written."""
    problems = _all_problems(problem, world)
    if problems:
        if world.is_main:
            shutil.rmtree(partial, ignore_errors=True)
        raise RunError(
            f"{partial.parent}: the checkpoint could not be written: {problems[0]}; free space or give another "
            f"--run-dir. The checkpoints before it are whole"
        )


def _all_problems(problem: str, world: World) -> list[str]:
    if world.size == 1:
        return [problem] if problem else []
    everyone: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(everyone, problem)
    return [p for p in everyone if p]


def _files(path: Path) -> list[Path]:
    return sorted(f for f in path.rglob("*") if f.is_file() and f.name != _MARKER)


def _flush_share(partial: Path, world: World) -> dict[str, dict[str, Any]]:
    entries = {}
    for file in _files(partial)[world.rank :: world.size]:
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
        entries[str(file.relative_to(partial))] = {"bytes": file.stat().st_size, "xxh128": _checksum(file)}
    return entries


def _checksum(file: Path) -> str:
    import xxhash

    digest = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while chunk := opened.read(16 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read_marker(path: Path) -> tuple[dict[str, Any], str]:
    try:
        marker = json.loads((path / _MARKER).read_text())
        if marker["format"] != _FORMAT:
            return {}, f"format {marker['format']}, this version reads {_FORMAT}"
        for key in ("layout", "recipe", "state", "files"):
            if not isinstance(marker[key], dict):
                raise ValueError(f"{key} is not a mapping")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return {}, f"{_MARKER} cannot be read: {type(error).__name__}: {error}"
    return marker, ""


def _verify_share(path: Path, marker: dict[str, Any], world: World) -> str:
    for name in sorted(marker["files"])[world.rank :: world.size]:
        entry, file = marker["files"][name], path / name
        try:
            size = file.stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes, {entry['bytes']} were written"
            if _checksum(file) != entry["xxh128"]:
                return f"{name} does not match its checksum"
        except OSError as error:
            return f"{name}: {error.strerror}"
    return ""


def _check_belongs(path: Path, marker: dict[str, Any], engine: Engine, identity: dict[str, Any]) -> None:
    changes = differences(identity, marker["recipe"])
    if changes:
        raise CheckpointError(
            f"{path}: a checkpoint of another recipe: {'; '.join(changes)}. Restore these settings, or start in "
            f"another --run-dir"
        )
    changes = differences(engine.layout, marker["layout"])
    if changes:
        raise CheckpointError(
            f"{path}: written by another layout: {'; '.join(changes)}. Resume with the same engine, versions and "
            f"number of processes"
        )
