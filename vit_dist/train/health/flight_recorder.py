"""torch's flight recorder: which collectives each rank has entered, and which have not come to an end.

torch keeps the last ones in memory. They are written beside the stacks of a rank that hangs, a file a rank: by the
watchdog, and by NCCL itself where a collective runs into its time-out. To put those of all ranks side by side:
`torchfrtrace RUN/stacks --prefix nccl_trace_rank_`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path
from typing import Any

import torch

from vit_dist.core.files import write_bytes
from vit_dist.train.health.patience import Patience

PREFIX = "nccl_trace_rank_"
_ENTRIES = 2000
_WRITE_S = 5.0

# Name, the name before it, what it is set to. Whichever of both a person has set holds.
_Setting = tuple[str, str, str]


def configure(stacks: Path | None, patience: Patience) -> None:
    """Switch it on, before a process group is made: torch reads these variables then. A person's own values hold."""
    settings: list[_Setting] = [
        ("TORCH_FR_BUFFER_SIZE", "TORCH_NCCL_TRACE_BUFFER_SIZE", str(_ENTRIES)),
        ("TORCH_NCCL_DUMP_ON_TIMEOUT", "", "1"),
        # NCCL's own monitor ends the process, without stacks, when its thread has been silent for 8 minutes: less than
        # a step may take. As with collectives, the watchdog comes first.
        ("TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC", "", str(round(patience.collective.total_seconds()))),
    ]
    if stacks is not None:
        settings.append(("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE", str(stacks.absolute() / PREFIX)))
    for name, older, value in settings:
        # By the new name alone: torch warns on every rank where it finds the older one.
        if older not in os.environ:
            os.environ.setdefault(name, value)


def write_record(stacks: Path, rank: int) -> None:
    """Write this rank's last collectives. Returns after a few seconds at most, and never raises."""

    def write() -> None:
        library: Any = torch._C._distributed_c10d
        nccl = torch.distributed.is_initialized() and torch.distributed.get_backend() == "nccl"
        with contextlib.suppress(Exception):
            record = library._dump_nccl_trace() if nccl else library._dump_fr_trace()
            write_bytes(str(stacks / f"{PREFIX}{rank}"), record)

    # In a thread that is not waited for to its end: the library asks NCCL, which may be what hangs.
    thread = threading.Thread(target=write, name="flight recorder", daemon=True)
    thread.start()
    thread.join(_WRITE_S)
