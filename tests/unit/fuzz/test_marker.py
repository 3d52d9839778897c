"""Markers and parts of checkpoints with any damage: a value, or one error of ours, in bounded memory and time.

Fields are changed behind the checksums too: what was changed is sealed anew, so that whoever reads it comes to them.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.places import GOLDEN
from tests.unit.fuzz.budget import fuzz
from tests.unit.train.checkpoint.forging import Forged, forge, small_checkpoint
from vit_dist.core.errors import CheckpointError, VitDistError
from vit_dist.core.run.checkpoints import MARKER, committed, lacks, marker_in_place, rank_file, seal_marker
from vit_dist.engines._fit import wanted_of
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.store import missing_part, saved_of
from vit_dist.train.checkpoint.weights import checkpoint_weights

ODD: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 16, 2**31, 2**53, 2**53 + 1, 2**63, -(2**63), 10**39, 0.5, -0.0, 1e308, 1e-320),
    *(float("nan"), float("inf"), "", " ", "0", "\0", "\ud800", "a\nb", "../../x", "/etc/passwd", "x" * 9000),
    *("9" * 5000, "weight:fc.weight", "exp_avg:x", "F32", "I8", "4 steps", "1e9 epochs", "vit-test", "timm"),
    *([], {}, [[]], [{}], {"": None}, [0] * 300, [2**40, 2**40], [1, 0], [0, 0], [16, 3], {"x": {"x": {"x": []}}}),
]
GOLDEN_STEP = committed(GOLDEN / "checkpoint")[0]
MARKER_TEXT = (GOLDEN_STEP / MARKER).read_bytes()


@st.composite
def damaged_bytes(draw: st.DrawFn, seed: bytes) -> bytes:
    """A file after some edits: bytes that flip, are lost, put in or doubled, a cut end."""
    content = bytearray(seed)
    for _ in range(draw(st.integers(1, 5))):
        begin, length = draw(st.integers(0, len(content))), draw(st.integers(0, 40))
        match draw(st.sampled_from(("flip", "put", "lose", "double", "cut"))):
            case "flip" if begin < len(content):
                content[begin] ^= draw(st.integers(1, 255))
            case "put":
                content[begin:begin] = draw(st.binary(max_size=8) | st.sampled_from([b"[" * 100, b"9" * 60, b"1e999"]))
            case "lose":
                del content[begin : begin + length]
            case "double":
                content[begin:begin] = content[begin : begin + length] * draw(st.sampled_from((1, 500)))
            case "cut":
                del content[begin:]
    return bytes(content)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield (*at, key)
        yield from _places(part, (*at, key))


def edit(draw: st.DrawFn, value: Any) -> Any:
    """The same with some of its parts replaced, lost, renamed or put elsewhere."""
    value = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(value))
        if not places:
            return value
        *way, last = draw(st.sampled_from(places))
        holder = value
        for key in way:
            holder = holder[key]
        match draw(st.sampled_from(("replace", "replace", "lose", "rename", "move"))):
            case "lose":
                del holder[last]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=4) | st.sampled_from(places).map(lambda at: str(at[-1])))] = holder.pop(
                    last
                )
            case "move":
                there = value
                for key in draw(st.sampled_from(places)):
                    there = there[key]
                holder[last] = copy.deepcopy(there)
            case _:
                holder[last] = copy.deepcopy(draw(st.sampled_from(ODD) | st.integers() | st.text(max_size=6)))
    return value


def used(marker: dict[str, Any], problem: str) -> None:
    """What is asked of a marker wherever one is read."""
    assert bool(marker) != bool(problem)
    if marker:
        saved = saved_of(marker)
        assert saved is None or missing_part(saved.parts, {}).endswith("is missing")
        assert isinstance(lacks(marker), str)
        assert float(marker.get("wrote_s", 0)) >= 0


@fuzz
@given(content=damaged_bytes(MARKER_TEXT))
def test_any_damage_to_a_marker_is_a_finding(content: bytes) -> None:
    used(*marker_in_place(content, GOLDEN_STEP.name))


@fuzz
@given(data=st.data())
def test_any_change_to_a_marker_that_is_sealed_anew_is_a_finding_or_harmless(data: st.DataObject) -> None:
    used(*marker_in_place(seal_marker(edit(data.draw, json.loads(MARKER_TEXT))), GOLDEN_STEP.name))


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(GOLDEN_STEP, tmp_path_factory.mktemp("golden") / "checkpoints" / GOLDEN_STEP.name))


@fuzz
@given(data=st.data())
def test_weights_of_a_marker_that_lies_are_an_error_or_those_of_its_model(golden: Path, data: st.DataObject) -> None:
    marker = json.loads(MARKER_TEXT)
    key = data.draw(st.sampled_from(("model", "model", "data", "whole")))
    if key == "whole":
        marker["recipe"] = edit(data.draw, marker["recipe"])
    else:
        marker["recipe"][key] = edit(data.draw, marker["recipe"][key])
    (golden / MARKER).write_bytes(seal_marker(marker))
    try:
        weights = checkpoint_weights(golden)
        found = "" if len(weights.state["head.bias"]) == weights.num_classes else "weights of another model"
    except VitDistError as error:
        found = "" if 0 < len(str(error)) < 5000 else f"an error that nobody reads: {error}"
    assert found == ""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small_checkpoint(folder, 1)
    return folder


def read_all(folder: Path) -> None:
    """The tensors of a checkpoint, or one error that names the file or folder."""
    module = nn.ModuleDict({"fc": nn.Linear(3, 4)})
    source, said = None, ""
    try:
        source = SliceSource([folder / rank_file(rank) for rank in (0, 1)])
    except CheckpointError as error:
        said = str(error)
    if source is None:
        assert str(folder) in said
        assert len(said) < 5000
        return
    held = sum(source.tensor(kind, name).nbytes for kind, name in source.names())
    # Every element stands in a file, once: no file can promise more than it has.
    assert held <= sum((folder / rank_file(rank)).stat().st_size for rank in (0, 1))
    assert isinstance(source.misfit(wanted_of(module, torch.optim.AdamW(module.parameters()), masters=None)), str)


@fuzz
@given(data=st.data(), rank=st.integers(0, 1))
def test_any_damage_to_a_part_is_a_finding(small: Path, data: st.DataObject, rank: int) -> None:
    path = small / rank_file(rank)
    before = path.read_bytes()
    try:
        path.write_bytes(data.draw(damaged_bytes(before)))
        read_all(small)
    finally:
        path.write_bytes(before)


@fuzz
@given(data=st.data(), rank=st.integers(0, 1))
def test_any_change_to_what_a_part_says_is_a_finding(small: Path, data: st.DataObject, rank: int) -> None:
    before = {path: path.read_bytes() for path in small.iterdir()}

    def lie(part: Forged) -> None:
        for name in ("header", "slices", "scalars"):
            setattr(part, name, edit(data.draw, getattr(part, name)))

    try:
        forge(small, rank, lie)
        read_all(small)
    finally:
        for path, content in before.items():
            path.write_bytes(content)
