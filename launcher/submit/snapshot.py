"""A copy of the code that a job runs: an edit in the checkout does not reach jobs that wait or are queued again."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

from vit_dist.core.errors import RunError
from vit_dist.core.files import disk_problem, replacing_folder
from vit_dist.core.process import code_root

CODE_FOLDER = "code"
"""Where a snapshot lies, beside the script that uses it."""
_PARTS = ("vit_dist", "launcher", "configs", "slurm")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", ".git", "runs", "*.gz", "*.npz")


def take_snapshot(target: Path) -> Path:
    """Copy the code to a directory, in place of what was there. Returns the directory.

    Raises:
        RunError: it cannot be written.
    """
    # Copied aside and renamed: a job that starts meanwhile finds all of the old code or all of the new.
    try:
        with replacing_folder(target) as fresh:
            for part in _PARTS:
                source = code_root() / part
                if source.is_dir():
                    shutil.copytree(source, fresh / part, ignore=_LEFT_OUT, copy_function=_copy)
    except OSError as error:
        # Of many files copytree gathers the errors, as text.
        raise RunError(f"{target}: the code cannot be copied there: {disk_problem(error) or error}") from None
    return target


def _copy(source: str, target: str) -> str:
    # Bytes alone: modes and times cost a round trip each on a shared file system.
    return shutil.copyfile(source, target)


def describe_code() -> str:
    """The commit of the checkout, with '+changes' where files differ from it; '' outside a checkout."""
    root = code_root()
    if not (root / ".git").exists():
        return ""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        head = _git(root, environment, "rev-parse", "HEAD")
        changed = _git(root, environment, "status", "--porcelain", "--untracked-files=no", "--", *_PARTS)
        return head + ("+changes" if changed else "")
    return ""


def _git(root: Path, environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], env=environment, capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
