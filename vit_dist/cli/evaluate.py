"""`vit-dist evaluate`: the evaluators of a run, or others, on its newest checkpoint."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

SUMMARY = "evaluate a trained run: its newest checkpoint, into its own log"

_EXAMPLES = """
examples:
  vit-dist evaluate runs/demo/vit-2000-s0                       # the evaluators of its recipe, once more
  vit-dist evaluate runs/l16 --nproc 8 \\
      'evaluators=[{name: fewshot, set: inet, train: s3://b/inet/train, test: s3://b/inet/val, shots: [1, 5, 10]}]'
  vit-dist evaluate runs/l16 data.val=s3://b/other/manifest.json
  srun vit-dist evaluate --list runs.txt --element 3            # the run in line 4 of a list: an array's element

What is found goes to a new event file in RUN-DIR/tb, at the step of the checkpoint, and to RUN-DIR/evaluated.json.
What the same evaluators have looked at already is not looked at again. Overrides may change where things are and what
is evaluated, not what was trained.
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist evaluate",
        description=SUMMARY,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", metavar="RUN-DIR [k=v ...]", nargs="*", help="a run directory, and overrides")
    parser.add_argument("--list", metavar="FILE", type=Path, help="in place of RUN-DIR: run directories, a line each")
    parser.add_argument("--element", metavar="I", type=int, help="line of --list, from 0 (SLURM_ARRAY_TASK_ID)")
    parser.add_argument("--nproc", metavar="N", type=int, default=1, help="ranks to start on this machine (1)")
    args = parser.parse_intermixed_args(argv)

    from vit_dist.config.load import load_recipe
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.world import array_element, launched_world

    names = [word for word in args.words if "=" not in word]
    overrides = [word for word in args.words if "=" in word]
    if len(names) != (args.list is None):
        raise ConfigError(f"vit-dist evaluate: give one run directory or --list FILE, got {len(names)} directories")
    if args.nproc < 1:
        raise ConfigError(f"--nproc {args.nproc}: at least one rank is needed")
    element = array_element() if args.element is None else args.element
    run_dir = Path(names[0]) if names else _line(args.list, element)
    recipe_file = run_dir / "recipe.yaml"
    if not recipe_file.is_file():
        raise ConfigError(f"{run_dir}: no recipe.yaml in it: not the directory of a run that has begun")
    world = launched_world()
    if world is None:
        from launcher.local import run_ranks

        with tempfile.TemporaryDirectory(prefix="vit-dist-") as scratch:
            return run_ranks(["evaluate", str(run_dir), *overrides], nproc=args.nproc, scratch=Path(scratch))
    from vit_dist.train.evaluate import evaluate

    evaluate(load_recipe(str(recipe_file), overrides), run_dir, world)
    return 0


def _line(path: Path, element: int | None) -> Path:
    from vit_dist.core.errors import ConfigError

    if element is None:
        raise ConfigError(f"--list {path}: give --element I, or run it as an element of a job array")
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"--list {path}: cannot be read: {error.strerror}") from None
    if not 0 <= element < len(lines):
        raise ConfigError(f"--element {element}: {path} has {len(lines)} lines")
    return Path(lines[element])
