"""Law 4 across versions: a checkpoint that an earlier version wrote restores bit for bit, and says the same state.

tests/golden/checkpoint holds one of a ViT of 16 dimensions after 4 of 6 steps: ZeRO-1, bf16, two ranks, DeepSpeed
0.19.8 with torch 2.14.1; and the type, shape and SHA-256 of each of its tensors, as that version read them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.places import GOLDEN
from vit_dist.core.run.checkpoints import committed, read_marker
from vit_dist.core.run.names import CHECKPOINTS
from vit_dist.train.checkpoint.format import SliceSource

OLD = GOLDEN / "checkpoint"
ENGINES = {
    "plain": (1, {"name": "plain"}),
    "zero-1": (2, {"name": "deepspeed", "zero_stage": 1}),
    "zero-3": (2, {"name": "deepspeed", "zero_stage": 3}),
}


def digests(checkpoint: Path) -> dict[str, list[Any]]:
    source = SliceSource(sorted(checkpoint.glob("*.safetensors")))
    found = {}
    for kind, name in source.names():
        tensor = source.tensor(kind, name)
        content = hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:32]
        found[f"{kind}:{name}"] = [str(tensor.dtype), list(tensor.shape), content]
    return found


def test_an_old_checkpoint_reads_as_it_did() -> None:
    (path,) = committed(OLD)
    assert digests(path) == json.loads((OLD / "tensors.json").read_text())


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ENGINES)
def test_an_old_checkpoint_passes_through_every_engine_without_a_bit_changed(
    tmp_path: Path, run_world: Callable[..., Any], engine: str
) -> None:
    nproc, settings = ENGINES[engine]
    words = (str(OLD), json.dumps(settings), str(tmp_path / "copy"))
    state = run_world("laws/golden_worker.py", nproc, *words)
    (copy,) = committed(tmp_path / "copy" / CHECKPOINTS)
    expected = json.loads((OLD / "tensors.json").read_text())
    assert digests(copy) == expected
    before, after = read_marker(committed(OLD)[0])[0], read_marker(copy)[0]
    assert after["state"] == before["state"] | {"loss_steps": [1, 2, 3, 4]}  # which markers did not have then
    assert after["recipe"] == before["recipe"]
    assert (state["step"], state["position"]) == (4, 64)
    ours, theirs = (
        SliceSource(sorted(copy.glob("*.safetensors"))),
        SliceSource(sorted(OLD.glob("step-*/*.safetensors"))),
    )
    for _, name in theirs.names():
        assert ours.scalars(name) == theirs.scalars(name)
