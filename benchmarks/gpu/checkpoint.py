"""How long training waits for the first checkpoint, whose memory was pinned at the start, and for later ones."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.gpu.engines import LR, build_engine, make_batch, one_rank, zero
from benchmarks.gpu.kit import Kit
from vit_dist.cli.models.options import model_config, usual_size
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import committed
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.train.checkpoint.saver import Contents, Saver
from vit_dist.train.checkpoint.store import Retention

_MOMENTS = 2
"""Of AdamW, for each weight."""
_BEFORE_FIRST_S = 6.0
"""Seconds of steps before the first save: a run saves after minutes."""


def measure(kit: Kit) -> None:
    """The case is MODEL:BATCH; ZeRO-1 in bf16 on one rank, to the disk or memory that stages have for their files."""
    model, _, batch = kit.case.rpartition(":")
    size = usual_size(model_config(model))
    with one_rank(), tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        run.write_json(names.OWNER, {"token": "bench"})
        saver = Saver(run, World(), "bench", Retention(1))
        engine = build_engine(kit, model, zero(1), micro_batch=int(batch), image_size=size)
        data = make_batch(kit, int(batch), size)
        saver.prepare(engine, _MOMENTS)
        quiet = _train(kit, lambda: engine.train_step([data], LR))
        waits, beside = [], []
        for number in range(2 if kit.smoke else 4):
            saver.save(engine, Contents({"step": number, "position": number}, {}, engine.layout, {}))
            waits.append(saver.blocked_s)
            beside.append(kit.seconds(lambda: engine.train_step([data], LR), 1 if kit.smoke else 4))
            saver.settle()
        (newest,) = committed(run.checkpoints)
        kit.record(
            "",
            GB=sum(file.stat().st_size for file in newest.iterdir()) / 1e9,
            first_wait_s=waits[0],
            later_wait_s=statistics.median(waits[1:]),
            written_s=saver.wrote_s,
            step_ms=1e3 * quiet,
            step_beside_writing_ms=1e3 * statistics.median(beside),
        )


def _train(kit: Kit, step: Callable[[], Any]) -> float:
    """Steps for some seconds; the time of one of the last."""
    ends = time.monotonic() + (0 if kit.smoke else _BEFORE_FIRST_S)
    spent = kit.seconds(step, 2)
    while time.monotonic() < ends:
        spent = kit.seconds(step, 2)
    return spent
