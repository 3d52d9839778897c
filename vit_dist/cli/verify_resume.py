"""`vit-dist verify-resume`: kill tests of a recipe: killed and resumed runs are compared with an undisturbed one."""

from __future__ import annotations

import argparse
import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.files import write_bytes
from vit_dist.core.folders import refuse_others
from vit_dist.core.places import local_option, local_or_name
from vit_dist.core.run import names
from vit_dist.core.scratch import scratch

if TYPE_CHECKING:
    from vit_dist.config.schema import Recipe

SUMMARY = "prove on this machine that a recipe survives kills and other numbers of processes"

_EXAMPLES = """
Trains STEPS steps undisturbed; again, killed twice with SIGKILL and resumed; and, for each of --worlds, killed, resumed
on that many processes, killed, and resumed on as many as before. Then every run's examples, step by step, must be those
of the undisturbed one; weights and moments too: bit for bit on the same number of processes, within --tolerance on
others, where sums are rounded in another order. Dropout draws by rank, so with dropout other worlds are held to the
order alone.
Cadences, evaluation and the horizon are replaced, and engine.deterministic is on, without which GPUs do not repeat
their bits; model, data, engine and optimizer are the recipe's.

examples:
  vit-dist verify-resume demo --nproc 2
  vit-dist verify-resume vit-l16-imagenet21k data.train=s3://bucket/in21k/train --nproc 8 --worlds 4 2 --steps 12
"""
_TIMEOUT_S = 3600.0
_LOOK_S = 0.5


@dataclass(frozen=True)
class _Comparison:
    """What was done, whether the run equals the undisturbed one, and in what it does or does not."""

    done: str
    holds: bool
    found: str


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist verify-resume",
        description=SUMMARY,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "recipe", type=local_or_name, metavar="RECIPE", help="a YAML file, or the name of one in configs/recipes"
    )
    parser.add_argument("overrides", metavar="k=v", nargs="*", help="dotted overrides, applied last")
    parser.add_argument("--nproc", metavar="N", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--worlds", metavar="W", type=int, nargs="+", help="other numbers (default: half of --nproc)")
    parser.add_argument("--steps", metavar="S", type=int, default=8, help="length of the kill test (default 8)")
    parser.add_argument("--tolerance", metavar="T", type=float, help="relative, on losses (default 1e-3, bf16 5e-2)")
    parser.add_argument("--dir", type=local_option, metavar="DIR", help="keep the test's runs there (default: removed)")
    args = parser.parse_intermixed_args(argv)

    from vit_dist.config.load import load_recipe, sources_of
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.world import World, starts_ranks
    from vit_dist.train.plan import open_training

    for count in (args.nproc, *(args.worlds or ())):
        starts_ranks("verify-resume", count)
    if args.steps < 6:
        raise ConfigError(f"--steps={args.steps}: two kills and what follows them need at least 6")
    worlds = args.worlds if args.worlds is not None else [w for w in (args.nproc // 2,) if w]
    recipe = load_recipe(args.recipe, [*args.overrides, *_overrides(args.steps)])
    for size in (args.nproc, *worlds):
        World(size=size).rank_batch(recipe.global_batch)
    if args.dir is not None:
        refuse_others(args.dir, lambda _: False, what="a new kill test", do="give another --dir")
    # Before the first attempt: a set that cannot be opened would be told with its whole output.
    open_training(recipe, World(size=args.nproc), sources_of(args.recipe, args.overrides, recipe))
    tolerance = args.tolerance or {"fp32": 1e-3, "tf32": 1e-2, "bf16": 5e-2}[recipe.precision]
    with scratch(Path(tempfile.gettempdir()), "vit-dist-verify") as folder:
        base = args.dir or folder
        comparisons = _kill_test(recipe, base, args.nproc, worlds, args.steps, tolerance)
    return _verdict(recipe, args.steps, comparisons)


def _overrides(steps: int) -> list[str]:
    return [
        f"horizon={steps} steps",
        "engine.deterministic=true",
        "schedule.warmup=1 steps",
        "checkpoint={every: 1 step, keep: 1000, keep_best: ''}",
        "evaluators=[]",
        "log={every: 1 step, order: true}",
    ]


def _kill_test(
    recipe: Recipe, base: Path, nproc: int, worlds: Sequence[int], steps: int, tolerance: float
) -> list[_Comparison]:
    from launcher.processes.kill_test import Attempt
    from vit_dist.config.load import recipe_yaml
    from vit_dist.core.log import log
    from vit_dist.core.run.checkpoints import newest_step

    file = base / names.RECIPE
    write_bytes(str(file), recipe_yaml(recipe).encode())
    kills = (max(1, steps // 4), max(3, steps // 2 + 1))
    count, stage = 2 + len(worlds), 0

    def run(name: str, sizes: Sequence[int], proves: str) -> Path:
        nonlocal stage
        stage, run_dir = stage + 1, base / name
        word = "process" if set(sizes) == {1} else "processes"
        killed = f", killed after steps {kills[0]} and {kills[1]}" if len(sizes) > 1 else f", {steps} steps"
        log(f"  {stage} of {count}, {name}: {' -> '.join(map(str, sizes))} {word}{killed}: {proves}")
        with _shown(name, run_dir, steps, len(sizes)) as begun:
            for size, step in zip(sizes[:-1], kills, strict=False):
                begun()
                Attempt(file, run_dir, size).kill_when(lambda step=step: newest_step(run_dir) >= step, _TIMEOUT_S)  # type: ignore[misc]
            begun()
            Attempt(file, run_dir, sizes[-1]).finish(_TIMEOUT_S)
        return run_dir

    attempts = 1 + 3 * (1 + len(worlds))
    log(f"  {count} runs of {steps} steps in {attempts} attempts, each of which imports PyTorch first; in {base}")
    undisturbed = run("undisturbed", [nproc], "what the others are held to")
    many = f"{nproc} process{'es' if nproc > 1 else ''}"
    same = run("killed-twice", [nproc] * 3, "shows that kills cost no bit")
    comparisons = [_order(f"killed twice, {many}", undisturbed, same, steps)]
    comparisons.append(_bits(f"killed twice, {many}", undisturbed, same, steps))
    for size in worlds:
        done = f"killed, {nproc} -> {size} -> {nproc} processes"
        held = "" if getattr(recipe.model, "dropout", 0) else f", and losses within {tolerance:g}"
        other = run(f"world-{size}", [nproc, size, nproc], f"shows that the order stays on any number of them{held}")
        comparisons.append(_order(done, undisturbed, other, steps))
        if held:
            comparisons.append(_losses(done, undisturbed, other, tolerance))
    return comparisons


@contextlib.contextmanager
def _shown(name: str, run_dir: Path, steps: int, attempts: int) -> Iterator[Callable[[], None]]:
    """While this lasts, how many steps a run has saved and since when it runs are shown; then how long it took.

    Yields what is to be called when an attempt begins.
    """
    from vit_dist.core.log import log
    from vit_dist.core.progress import Progress
    from vit_dist.core.run.checkpoints import newest_step
    from vit_dist.core.units import format_seconds

    began, over, attempt = time.monotonic(), threading.Event(), 0

    def begin() -> None:
        nonlocal attempt
        attempt += 1

    def spent() -> str:
        return format_seconds(time.monotonic() - began)

    with Progress(f"    {name}", steps, "step", summary=False, estimate=False) as progress:

        def watch() -> None:
            while not over.wait(_LOOK_S):
                known = {"attempt": f"{attempt} of {attempts}", "after": spent()}
                progress.update(newest_step(run_dir), metrics=known)

        watcher = threading.Thread(target=watch, name="progress", daemon=True)
        watcher.start()
        try:
            yield begin
        finally:
            over.set()
            watcher.join()
    log(f"    {name}: done after {spent()}")


def _order(done: str, undisturbed: Path, other: Path, steps: int) -> _Comparison:
    from launcher.processes.kill_test import trained_order

    expected, got = trained_order(undisturbed), trained_order(other)
    wrong = [step for step in range(1, steps + 1) if expected.get(step) is None or expected.get(step) != got.get(step)]
    if wrong:
        return _Comparison(done, False, f"steps {wrong[:8]} were trained on other examples")
    return _Comparison(done, True, f"the same {sum(map(len, expected.values()))} examples in the same order")


def _bits(done: str, undisturbed: Path, other: Path, steps: int) -> _Comparison:
    import torch

    from vit_dist.core.run.checkpoints import step_name
    from vit_dist.train.checkpoint.format import SliceSource

    sources = [
        SliceSource(sorted((run / names.CHECKPOINTS / step_name(steps)).glob("*.safetensors")))
        for run in (undisturbed, other)
    ]
    expected, got = sources
    if expected.names() != got.names():
        return _Comparison(done, False, "the checkpoints hold other tensors")
    for kind, name in expected.names():
        a, b = (s.tensor(kind, name).contiguous().reshape(-1).view(torch.uint8) for s in sources)
        if not torch.equal(a, b):
            return _Comparison(done, False, f"the {kind} of {name} differs after step {steps}")
    return _Comparison(done, True, f"{len(expected.names())} tensors of weights and moments are the same, bit for bit")


def _losses(done: str, undisturbed: Path, other: Path, tolerance: float) -> _Comparison:
    from vit_dist.core.events.reader import read_run
    from vit_dist.core.run import log as runlog

    expected, got = (read_run(str(run / names.EVENTS)).scalars[runlog.TRAIN_LOSS] for run in (undisturbed, other))
    if expected.steps.tolist() != got.steps.tolist():
        return _Comparison(done, False, f"the log has steps {got.steps.tolist()}, not {expected.steps.tolist()}")
    worst = max(abs(a - b) / max(abs(a), 1e-9) for a, b in zip(expected.values, got.values, strict=True))
    return _Comparison(done, worst <= tolerance, f"losses differ by {worst:.1e} at most (tolerance {tolerance:g})")


def _verdict(recipe: Recipe, steps: int, comparisons: Sequence[_Comparison]) -> int:
    from vit_dist.core.tables import columns, to_lines
    from vit_dist.study.local import engine_line

    table = columns([("ok" if f.holds else "FAIL", f.done, f.found) for f in comparisons])
    lines = [f"{recipe.name}: {steps} steps of {recipe.global_batch}, {engine_line(recipe)}"]
    lines += [f"  {line}" for line in to_lines(table)]
    passed = all(f.holds for f in comparisons)
    lines.append("PASS: this recipe can be killed and resumed" if passed else "FAIL: see above")
    print("\n".join(lines))  # noqa: T201
    return 0 if passed else 1
