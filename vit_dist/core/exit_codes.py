"""What the exit code of a process of ours says; docs/recovery.md explains them."""

from __future__ import annotations

import signal

FAILED = 1
INVALID = 2
"""Asked for something that cannot be: starting again changes nothing."""
PEER_LOST = 70
"""A rank that left since another one was gone: not the cause."""
HUNG = 71
"""A step took longer than guards.hang."""
SUPERSEDED = 72
"""A later attempt owns the run directory."""
SIGNAL_BASE = 128
"""A shell, srun and our launcher tell a process that died of signal n as 128 + n."""
INTERRUPTED = SIGNAL_BASE + signal.SIGINT
TERMINATED = SIGNAL_BASE + signal.SIGTERM
WARNED = SIGNAL_BASE + signal.SIGUSR2
"""The time limit is near, or a checkpoint was wanted, and the run had not begun."""

BY_PERSON = frozenset({INTERRUPTED, TERMINATED})
"""Ended because somebody asked for it; of a rank, before it could save."""
ASKED = BY_PERSON | {WARNED}
"""Ended by a signal that asks for it. Of whoever starts ranks also where they have saved; a rank ends with 0 then:
another code would make srun end those that still wait for the last commit."""
NOT_THE_CAUSE = frozenset({PEER_LOST, TERMINATED})
"""Codes of ranks that ended since another one had: what went wrong stands elsewhere."""
FINAL = frozenset({INVALID, SUPERSEDED}) | ASKED
"""Another attempt would end the same way, or is not wanted."""


def of_signal(number: int) -> int:
    """The exit code that tells of a death by this signal."""
    return SIGNAL_BASE + number


def signal_of(code: int) -> int | None:
    """The signal that an exit code tells of; None where the process ended by itself."""
    return code - SIGNAL_BASE if code > SIGNAL_BASE else None


def of_return_code(code: int) -> int:
    """The exit code for what `subprocess` returns, which is -n where the process died of signal n."""
    return of_signal(-code) if code < 0 else code
