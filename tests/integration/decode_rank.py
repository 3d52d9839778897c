"""A rank whose batches processes decode: says who they are, reads on and on, and through Ctrl-C. For a test."""

from __future__ import annotations

import os
import signal
import sys

from tests.decoding import descendants
from tests.streams import recipe
from vit_dist.core.world import World
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream


def main(manifest: str, how: str) -> None:
    config = recipe(manifest, "data.decode_workers=2", "data.lanes=8", "data.window=5")
    stream = TrainStream(open_training_set(config), config, World(), 0, at_once=True)
    batches = iter(stream)
    for _ in range(5):
        next(batches)
    print(os.getpid(), *descendants(os.getpid()), flush=True)
    if how == "leave":
        # Without closing it.
        return
    if how == "fail":
        raise RuntimeError("something else went wrong")
    asked: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    print("listens", flush=True)
    while True:
        next(batches)
        if asked:
            asked.clear()
            # More than were made before.
            for _ in range(20):
                next(batches)
            print("went on", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
