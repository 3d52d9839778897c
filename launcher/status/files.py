"""What the files of a run say about it, read in one go and forgivingly: a damaged one is a finding, not an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.status.logs import attempts_with_logs
from vit_dist.core.run import history, names, records
from vit_dist.core.run.checkpoints import newest_checkpoint
from vit_dist.core.run.history import State
from vit_dist.core.small_files import noted_record


@dataclass(frozen=True)
class RunFiles:
    """What the files of a run directory say.

    Attributes:
        state: by its history.
        run: run.json; empty where there is none.
        saved: step of the newest committed checkpoint; None before the first.
        saved_at: when it was committed, seconds since 1970.
        logged: whether an attempt has left logs, and whether its supervisor has.
        problems: what cannot be read or cannot have been, each with why.
    """

    path: Path
    state: State = field(default_factory=State)
    run: Mapping[str, Any] = field(default_factory=dict)
    saved: int | None = None
    saved_at: float = 0.0
    logged: tuple[bool, bool] = (False, False)
    problems: tuple[str, ...] = ()


def read_run(path: Path, *, most: int | None = None) -> RunFiles:
    """Read the small files of a run directory. Never raises for what is missing or damaged.

    Args:
        path: of the run.
        most: as `history.read` takes it.
    """
    problems: list[str] = []
    run = noted_record(path / names.RUN, records.FIELDS.get(names.RUN), problems) or {}
    state = history.read(path, most=most, forgiving=True)
    saved, saved_at = newest_checkpoint(path)
    return RunFiles(
        path,
        state,
        run,
        saved=saved,
        saved_at=saved_at,
        logged=(bool(attempts_with_logs(path)), (path / names.LOGS / names.BATCH_LOG).is_file()),
        problems=(*problems, *state.findings),
    )
