"""Restores as one of two ranks that see different listings, and says which step each has taken.

python choice_worker.py OUT FOLDER: FOLDER/CASE/RANK holds the checkpoints that a rank sees.
"""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import torch

from vit_dist.cli.main import leave
from vit_dist.core.errors import CheckpointError
from vit_dist.core.world import launched_world
from vit_dist.engines._collectives import all_gather_object
from vit_dist.engines._fit import Wanted
from vit_dist.train.checkpoint import restore
from vit_dist.train.process_group import process_group


class OneNumber:
    """As much of an engine as is restored."""

    def __init__(self):
        self.layout, self.weight = {}, torch.zeros(4)

    def wanted(self):
        return Wanted({("weight", "w"): ((4,), frozenset({torch.float32}))}, frozenset(), None, True)

    def load(self, source):
        self.weight.copy_(source.read("weight", "w", 0, 4))


def main() -> None:
    out, folder = Path(sys.argv[1]), Path(sys.argv[2])
    world, seen = launched_world(), {}
    with process_group(world):
        for case in sorted(folder.iterdir()):
            restore._VISIBLE_S = 20.0 if case.name == "late" else 0.0
            root = case / str(world.rank)
            if case.name == "late" and world.rank == 1:
                threading.Timer(1.0, shutil.copytree, (case / "0", root)).start()
            engine = OneNumber()
            try:
                taken = restore.restore(root, engine, {}, world)
                mine = [taken.state["step"], float(engine.weight[0])] if taken else None
            except CheckpointError as error:
                mine = str(error)
            seen[case.name] = all_gather_object(mine, world)
        try:
            restore.agree_on_place((7, 70 + world.rank), folder / "step-0000000007", world)
        except CheckpointError as error:
            seen["place"] = all_gather_object(str(error), world)
        restore.agree_on_place((7, 70), folder / str(world.rank) / "step-0000000007", world)
    if world.is_main:
        out.write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
    leave(0)
