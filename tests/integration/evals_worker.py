"""Ranks that look at an untrained model in all ways but few-shot's.

python evals_worker.py OUT TRAIN VAL
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tests.evaluating import EVALUATORS, context_of
from vit_dist.cli.main import leave
from vit_dist.core.world import launched_world
from vit_dist.train.process_group import process_group


def main() -> None:
    out, train, val = sys.argv[1:]
    world = launched_world()
    with process_group(world) as device:
        context = context_of(train, val, EVALUATORS, world, device, Path(out).with_suffix(""))
        found = {tag: value for evaluator in context.recipe.evaluators for tag, value in evaluator.run(context)}
    # Every rank writes: the ranks must agree.
    Path(out).with_suffix(f".{world.rank}").write_text(json.dumps(found))
    if world.is_main:
        Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    leave(0)
