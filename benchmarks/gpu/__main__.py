"""The command line: which stages run, for how long, and what is printed of them. No torch in this process."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.driver import Job, read_results, run_jobs
from benchmarks.gpu.plan import BUDGET_S, MACHINE, STAGES, Stage, in_order
from benchmarks.gpu.table import last_run, markdown
from vit_dist.core.errors import did_you_mean

_ABOUT = """
Measures one GPU in eight minutes: what it can do, whether the engines train alike there, whether they repeat their
bits, how near a training step comes to the device's peak, and what loading and saving take from it. Each figure stands
beside its goal and what was predicted of it.
"""

_MORE = """
Each case of a stage is a process of its own with a deadline. What dies or hangs is reported, the rest goes on, and the
exit status is 1. Figures are appended to OUT/results.jsonl as they are found, so none is lost; each run begins there
with a line that names device, versions and commit. OUT/results.md is the table of the run that ended last, with goals
and predictions from benchmarks/gpu/goals.csv; those that depend on the device hold for an H100 (SXM) and are left out
on others. Predictions were made before any GPU had run this. The budget holds what all cases are expected to take, not
their deadlines: what matters most comes first.

Nothing else should use the GPU or many cores meanwhile. Tars and checkpoints go to TMPDIR if it is set, else to
/dev/shm if 32 GB are free there, else to the usual place for temporary files; they are removed.

examples:
  python -m benchmarks.gpu                                 all stages, into runs/bench-gpu  (make bench-gpu)
  python -m benchmarks.gpu --list                          the stages, their cases and deadlines
  python -m benchmarks.gpu --only steps,e2e --budget 600   two of them, ten minutes at most
  python -m benchmarks.gpu --smoke --out runs/smoke        all of it with small models, on a CPU where no GPU is: does
                                                           the kit work? The speeds say nothing
"""


def main(argv: list[str]) -> int:
    args = _parse(argv)
    if args.list:
        print(_listing())
        return 0
    # The end of this process shall be that of the stage which runs: each is a session of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    args.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + (args.budget or (1800 if args.smoke else BUDGET_S))
    problems = run_jobs([_job(MACHINE, args.commit or _commit(), args)], args.out, ends)
    if problems:
        print(f"nothing was measured: {problems[0]}", file=sys.stderr)
        return 1
    jobs = [_job(stage, case, args) for stage, case in in_order(args.only, smoke=args.smoke)]
    problems = run_jobs(jobs, args.out, ends)
    table = markdown(last_run(read_results(args.out)))
    (args.out / "results.md").write_text(table)
    print(f"\n{table}\n{args.out / 'results.md'}, {args.out / 'results.jsonl'}")
    if problems:
        print(f"{len(problems)} of {len(jobs)} failed:", *problems, sep="\n  ", file=sys.stderr)
    return 1 if problems else 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=_ABOUT,
        epilog=_MORE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = ", ".join(stage.name for stage in STAGES)
    parser.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("runs/bench-gpu"), help="results (default runs/bench-gpu)"
    )
    parser.add_argument("--only", metavar="A,B,..", type=_stages, default=STAGES, help=f"stages, of {names}")
    parser.add_argument("--budget", metavar="S", type=float, help=f"seconds for all (default {BUDGET_S}; --smoke 1800)")
    parser.add_argument("--smoke", action="store_true", help="tiny models and few steps; needs no GPU")
    parser.add_argument("--commit", metavar="ID", default="", help="of this tree, for a copy without its .git")
    parser.add_argument("--list", action="store_true", help="say what would run, and stop")
    return parser.parse_args(argv)


def _stages(text: str) -> tuple[Stage, ...]:
    known = {stage.name: stage for stage in STAGES}
    for name in text.split(","):
        if name not in known:
            raise argparse.ArgumentTypeError(f"no stage {name!r}{did_you_mean(name, known)}")
    return tuple(known[name] for name in text.split(","))


def _listing() -> str:
    lines = []
    for stage in STAGES:
        lines.append(f"{stage.name:<14}{stage.measures}")
        cases = [case for case in (*stage.cases, *stage.later) if case]
        span = f"about {stage.usual_s:g} s, {stage.deadline_s:g} s at most"
        lines.append(f"{'':<14}{f'{len(cases)} cases, each {span}: ' + ', '.join(cases) if cases else span}")
    return "\n".join(lines)


def _job(stage: Stage, case: str, args: argparse.Namespace) -> Job:
    command = [sys.executable, "-m", "benchmarks.gpu.stage", stage.name, case, "--out", str(args.out)]
    # A smoke run shares its machine with whatever a CI does: only what hangs shall fail it.
    deadline = stage.deadline_s * (4 if args.smoke else 1)
    return Job(stage.name, case, tuple(command + ["--smoke"] * args.smoke), deadline)


def _commit() -> str:
    """The commit of this tree, '-dirty' where files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
