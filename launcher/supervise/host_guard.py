"""Watches the node that the supervisor runs on, from another node of the same job.

A job with spare nodes outlives nodes that die (`--no-kill`), and so it outlives its own batch script: Slurm would keep
it running for ever with nobody in charge. So one small step on another node looks whether the batch script's node is
still the job's, and queues the job again where it is not.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from launcher.slurm import commands as slurm
from vit_dist.core.errors import VitDistError
from vit_dist.core.log import log

_POLL_S = 5.0


def guard(job_id: str, restart: int, *, poll_s: float = _POLL_S) -> bool:
    """Watch until the job ends or starts anew. Returns True where it had to be queued again."""
    while True:
        time.sleep(poll_s)
        try:
            job = slurm.job(job_id)
            if job is None or not job.running or (job.restarts or 0) != restart:
                return False
            if job.batch_host and job.nodelist and job.batch_host not in slurm.hostnames(job.nodelist):
                log(f"  guard: {job.batch_host}, on which the supervisor of job {job_id} ran, is lost: queued again")
                slurm.requeue(job_id)
                return True
        except VitDistError as error:
            log(f"  guard: {error}")


def main(job_id: str, restart: int) -> None:
    """Watch from a session of its own: an srun that is killed on the dying node ends its step with its last breath."""
    child = os.fork()
    if child == 0:
        os.setsid()
        guard(job_id, restart)
        os._exit(0)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))  # the supervisor needs it no more
    os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
