"""Gives training steps a pace: Python imports this where its directory is on PYTHONPATH.

Each step of an engine sleeps first for as many seconds as the file VIT_DIST_TEST_PACE says; without a file it does not.
So a test can let something happen in the middle of a run, on a fast machine and on a slow one, and then let it run on.
"""

from __future__ import annotations

import importlib.abc
import os
import sys
import time
from pathlib import Path


class _Paced(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "vit_dist.engines._deepspeed":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            step = module.DeepSpeedEngine.train_step

            def paced(self, *args, **kwargs):
                time.sleep(_seconds())
                return step(self, *args, **kwargs)

            module.DeepSpeedEngine.train_step = paced

        spec.loader.exec_module = exec_module
        return spec


def _seconds() -> float:
    try:
        return float(Path(os.environ["VIT_DIST_TEST_PACE"]).read_text() or 0)
    except (OSError, ValueError):
        return 0.0


if "VIT_DIST_TEST_PACE" in os.environ:
    import importlib.util

    sys.meta_path.insert(0, _Paced())
