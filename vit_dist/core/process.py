"""Processes of ours that end with the one that started them, however that ends: none trains on unseen.

Each link of a chain (study, launcher, rank) is tied to the one before it, so that a SIGKILL at any of them takes all
that are below. What a shell, nohup, tmux or srun has started is tied to nobody.
"""

from __future__ import annotations

import os
import signal
import sys

_VARIABLE = "VIT_DIST_PARENT"
_PR_SET_PDEATHSIG = 1


def tied() -> dict[str, str]:
    """Variables for a `vit-dist` process that is to be killed when this one is gone.

    Linux kills it at the end of the *thread* that starts it: that thread has to wait for it.
    """
    return {_VARIABLE: str(os.getpid())}


def die_with_parent() -> None:
    """Tie this process to its parent, where that asked for it; what this one starts is not meant. Linux only."""
    parent = os.environ.pop(_VARIABLE, None)
    if parent is None or not sys.platform.startswith("linux"):
        return
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before we asked
        os._exit(1)
