"""Errors that a user can act on: what failed, the value, where, and what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from vit_dist.core.exit_codes import FAILED, INVALID


class VitDistError(Exception):
    """Base of every error that is shown as one paragraph, without a traceback.

    `exit_code` is what the command line returns for it.
    """

    exit_code = FAILED


class ConfigError(VitDistError):
    """A recipe, study, cluster file or option that cannot mean what it says."""

    exit_code = INVALID


class DataError(VitDistError):
    """Images, shards, manifests or indexes that are missing, damaged or do not fit together."""


class MissingError(DataError):
    """A file that is not where it is looked for."""


class RefusedError(DataError):
    """A file that its store, or the file system, lets nobody have with these credentials; the text says what to do."""


class AwayError(DataError):
    """A store that does not answer, or not as one does: nothing is known of the file."""


class DataTimeoutError(DataError, TimeoutError):
    """A batch that does not come within the time that it was given; the text says what it waits for."""


class CheckpointError(VitDistError):
    """A checkpoint that is missing, damaged or belongs to something else."""


class RunError(VitDistError):
    """A run that cannot start or go on: directory in use, disk full, a rank lost."""


class RefusalError(RunError):
    """A run that cannot begin or go on as it was asked to: the same command would be refused again."""

    exit_code = INVALID


class OtherCheckpointError(CheckpointError):
    """A checkpoint of another recipe or another order of examples: nothing that waits or tries again would fit."""

    exit_code = INVALID


def is_refusal(error: BaseException) -> bool:
    """Whether something was asked for that cannot be, so that starting again changes nothing."""
    return isinstance(error, VitDistError) and error.exit_code == INVALID


def of_its_family(name: str, known: Iterable[str], count: int = 3) -> str:
    """A hint for a name among very many: the nearest of those that begin with its first word, else of all; or nothing.

    Args:
        name: what the user wrote, such as vit_foo.
        known: the valid names, such as vit_tiny_patch16_224.
        count: so many at most.
    """
    wanted, lowered = name.lower(), {k.lower(): k for k in sorted(known, reverse=True)}
    first = _first_word(wanted)
    family = [k for k in lowered if _first_word(k) == first]
    near = difflib.get_close_matches(wanted, lowered, n=1, cutoff=0.9)
    near += difflib.get_close_matches(wanted, family, n=count, cutoff=0.0) if first else []
    near = list(dict.fromkeys(near or difflib.get_close_matches(wanted, lowered, n=count, cutoff=0.5)))[:count]
    return f"; did you mean {' or '.join(repr(lowered[one]) for one in near)}?" if near else ""


def _first_word(name: str) -> str:
    return re.split(r"[^a-z0-9]+", name, maxsplit=1)[0]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: `; did you mean 'x'?`, or the valid names, or nothing.

    Args:
        name: what the user wrote.
        known: the valid names.
    """
    known = sorted(known)
    lowered = {k.lower(): k for k in reversed(known)}
    near = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {lowered[near[0]]!r}?"
    if known:
        shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
        return f"; valid names: {shown}"
    return ""
