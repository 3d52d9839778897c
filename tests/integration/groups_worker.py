"""Trains a recipe as one rank, and notes which collectives of ours go over the default group, and every time-out.

python groups_worker.py OUT RECIPE RUN_DIR SLOW_S

SLOW_S: so long rank 0 takes to ask the store of copies, while the others wait for its answer.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import torch

from vit_dist.cli.main import leave
from vit_dist.config.load import load_recipe
from vit_dist.core.world import launched_world
from vit_dist.train import attempt as attempts
from vit_dist.train.checkpoint import restore

OF_OBJECTS = ("all_gather_object", "broadcast_object_list", "gather_object", "scatter_object_list", "barrier")
OF_TENSORS = ("all_reduce", "broadcast", "all_gather_into_tensor", "all_gather")


def note(calls: list[list]) -> None:
    """Fill a list with what vit_dist itself calls: [name, over the default group, about objects or flags]."""

    def noting(name, collective, of_objects):
        def call(*given, **named):
            if sys._getframe(1).f_globals["__name__"].startswith("vit_dist"):
                default = named.get("group") in (None, torch.distributed.group.WORLD)
                tensor = given[0] if given else None
                flags = isinstance(tensor, torch.Tensor) and not tensor.is_floating_point() and tensor.numel() < 64
                calls.append([name, default, of_objects or flags])
            return collective(*given, **named)

        return call

    for names, of_objects in ((OF_OBJECTS, True), (OF_TENSORS, False)):
        for name in names:
            setattr(torch.distributed, name, noting(name, getattr(torch.distributed, name), of_objects))


def time_outs() -> list[float]:
    groups = torch.distributed.distributed_c10d._world.pg_map
    return [g._get_backend(torch.device("cpu")).options._timeout.total_seconds() for g in groups]


def main() -> None:
    out, recipe, run_dir, slow_s = sys.argv[1:]
    world, calls, seconds = launched_world(), [], []
    note(calls)
    ask, train = restore.remote_steps, attempts.train

    def slow(remote):
        time.sleep(float(slow_s))
        return ask(remote)

    def trained(run):
        seconds.extend(time_outs())
        train(run)

    restore.remote_steps, attempts.train = slow, trained
    attempts.attempt(load_recipe(recipe), Path(run_dir), world)
    if world.is_main:
        Path(out).write_text(json.dumps({"calls": calls, "time_outs": seconds}))


if __name__ == "__main__":
    main()
    leave(0)
