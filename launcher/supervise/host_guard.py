"""Guards the node that the supervisor runs on, from another node of the same job.

A job with spare nodes outlives nodes that die (`--no-kill`), and so it outlives its own batch script: Slurm would keep
it running for ever with nobody in charge. So one small step on another node asks Slurm whether the batch script's node
still belongs to the job, and queues the job again where it does not.
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


def guard_host(job_id: str, restart: int, *, poll_s: float = _POLL_S) -> bool:
    """Poll until the job ends or starts anew. Returns True where it had to be queued again."""
    while True:
        time.sleep(poll_s)
        try:
            job = slurm.job(job_id)
            # Of another start of the job another guard takes care; this one must not queue that again.
            if job is None or not job.running or (job.restarts or 0) != restart:
                return False
            # Slurm takes a dead node out of the list of a job with --no-kill, and leaves it standing as BatchHost.
            if job.batch_host and job.nodelist and job.batch_host not in slurm.hostnames(job.nodelist):
                log(f"  guard: {job.batch_host}, on which the supervisor of job {job_id} ran, is lost: queued again")
                slurm.requeue(job_id)
                return True
        except VitDistError as error:
            # A controller that is away comes back: to end here would leave the job without a guard.
            log(f"  guard: {error}")


def main(job_id: str, restart: int) -> None:
    """Guard from a process in a session of its own, and wait for it."""
    # The srun of this step runs on the very node that is guarded. Where it is killed there it still ends its step, and
    # would take the guard with it just when that is needed; a session of its own does not get the step's signals.
    child = os.fork()
    if child == 0:
        os.setsid()
        guard_host(job_id, restart)
        os._exit(0)
    # A SIGTERM is the supervisor's, who needs it no more (HostGuard.stop). It stands until this process ends, so the
    # handler is never restored.
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
