"""A rank that trains nothing: it counts steps, saves them as a run would, and ends as a real rank would end.

For tests of the supervisor on a real Slurm without the seconds that torch takes. What it is to do stands in
RUN/plan.json: steps, pace_s, save_every, and `die`: {attempt: [step, exit code or -signal, rank]}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

from tests.histories import speak
from vit_dist.core.run import history
from vit_dist.core.run.directory import RunDir


def main() -> int:
    """One rank."""
    stopping: list[str] = []
    for number in (signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, lambda n, _frame: stopping.append(signal.Signals(n).name))
    run = RunDir(Path(sys.argv[sys.argv.index("--run-dir") + 1]))
    plan = json.loads((run.path / "plan.json").read_text())
    rank = int(os.environ["SLURM_PROCID"])
    if plan.get("refuse"):
        return int(plan["refuse"])
    saved = max((int(p.parent.name[5:]) for p in run.checkpoints.glob("step-*/COMMITTED.json")), default=0)
    attempt = int(Path(os.environ["VIT_DIST_SCRATCH"]).parent.name.removeprefix("attempt-"))
    if rank == 0:
        number, _, _ = history.take(run.path, ranks=int(os.environ["SLURM_NTASKS"]), saved=saved)
        assert number == attempt, f"the supervisor calls it attempt {attempt}, the ranks {number}"
    at, code, who = plan.get("die", {}).get(str(attempt), [-1, 0, -1])
    for step in range(saved + 1, plan["steps"] + 1):
        time.sleep(plan["pace_s"])
        if step == at and rank == who:
            if code < 0:
                os.kill(os.getpid(), -code)
            return int(code)
        if rank != 0:
            if stopping:
                return 0
            continue
        asked = history.take_request(run.path)
        speak(run.path, "running", step, step)
        if stopping or asked == "stop" or step == plan["steps"] or step % plan["save_every"] == 0:
            path = run.checkpoints / f"step-{step:010d}"
            path.mkdir(parents=True)
            (path / "COMMITTED.json").write_text(json.dumps({"wrote_s": 0.5}))
        if stopping or asked == "stop":
            speak(run.path, "stopped", step, step, (stopping or ["the request file"])[0])
            return 0
    if rank == 0:
        speak(run.path, "done", plan["steps"], plan["steps"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
