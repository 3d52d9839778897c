"""The last words of a command that trains: how it ended, where what it made is, and what to do next. No torch."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Sequence
from pathlib import Path

from vit_dist.core.errors import VitDistError
from vit_dist.core.exit_codes import ASKED, INVALID
from vit_dist.core.log import log
from vit_dist.core.run import history, names
from vit_dist.core.run.checkpoints import newest_step


def farewell(run_dir: Path, code: int, command: Sequence[str]) -> None:
    """Say it.

    Args:
        run_dir: of the run.
        code: that the command ends with.
        command: its words, by which it goes on.
    """
    status = None
    with contextlib.suppress(VitDistError):
        status = history.read(run_dir).status
    step, run, again = newest_step(run_dir), shlex.quote(str(run_dir)), shlex.join(command)
    saved = f"saved up to step {step:,} in {run_dir / names.CHECKPOINTS}" if step else "nothing is saved yet"
    where = f"  {run_dir}: {saved}; logs in {run_dir / names.LOGS}"
    if code == 0 and status is not None and status.status == "done":
        log(
            f"{where}\n  done; next: tensorboard --logdir {run}\n"
            f"              vit-dist evaluate {run}\n"
            f"              vit-dist models export {run} {shlex.quote(run_dir.name)}.safetensors"
        )
    elif code == 0 or code in ASKED:
        log(f"{where}\n  {'it goes on' if step else 'it begins'} with: {again}")
    elif code == INVALID:
        # Why was said a line above; the same command would be refused again.
        log(where)
    else:
        log(f"{where}\n  failed, exit code {code}; why: vit-dist logs {run} --first-error\n  again: {again}")
