"""Parts whose checksums fit and whose content does not: held against each other and the engine before it is loaded."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.unit.train.checkpoint.forging import Forged, forge, reseal, small_checkpoint, small_state
from vit_dist.core.errors import CheckpointError
from vit_dist.core.run.checkpoints import MARKER, committed, step_name
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.engines._fit import wanted_of
from vit_dist.engines._slices import load_whole
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.remote import Uploader, fetch, remote_steps, upload
from vit_dist.train.checkpoint.restore import restore
from vit_dist.train.checkpoint.saver import Contents, Saver
from vit_dist.train.checkpoint.store import Retention, prune
from vit_dist.train.checkpoint.weights import intact_checkpoint
from vit_dist.train.checkpoint.weights_remote import download

Edit = Callable[[Forged], object]


def _rename(part: Forged, old: str, new: str) -> None:
    for holder in (part.header, part.slices):
        holder[new] = holder.pop(old)


def _with(holder: Callable[[Forged], dict[str, Any]], **values: Any) -> Edit:
    return lambda part: holder(part).update(values)


W, M = "weight:fc.weight", "exp_avg:fc.weight"

FORGED: dict[str, tuple[Edit, str]] = {
    "a shape that is transposed": (_with(lambda p: p.slices[W], shape=[3, 4]), r"another|shape \[3, 4\]|\[4, 3\]"),
    "a shape with more elements": (_with(lambda p: p.slices[W], shape=[5, 3]), "shape|in no part"),
    "a shape beyond all numbers": (_with(lambda p: p.slices[W], shape=[2**50, 2**50]), "shape"),
    "a shape that is none": (_with(lambda p: p.slices[W], shape="4x3"), "expected a list of sizes"),
    "a negative size": (_with(lambda p: p.slices[W], shape=[-4, -3]), "expected a list of sizes"),
    "a start beyond the end": (_with(lambda p: p.slices[W], start=11), "elements 11 to"),
    "a start that overlaps or leaves a hole": (_with(lambda p: p.slices[W], start=1), "in another part|in no part"),
    "a start that is none": (_with(lambda p: p.slices[W], start=-1), "expected a whole number"),
    "another dtype": (_with(lambda p: p.header[W], dtype="I32"), "I32|int32"),
    "a dtype of half the bytes": (_with(lambda p: p.header[W], dtype="F16"), "bytes"),
    "a dtype that is unknown": (_with(lambda p: p.header[W], dtype="F31"), "F31"),
    "a tensor of another name": (lambda p: _rename(p, W, "weight:fc.weights"), "fc.weight"),
    "a kind that is none": (lambda p: _rename(p, W, "fc.weight"), "not the kind and name"),
    "a moment that the optimizer has not": (lambda p: _rename(p, M, "exp_avg_cube:fc.weight"), "exp_avg"),
    "a moment of no weight": (lambda p: _rename(p, M, "exp_avg:fc.wait"), "fc.wa|in no part"),
    "a slice that is not described": (lambda p: p.slices.pop(W), "not those that it holds"),
    "a slice that is described and not there": (lambda p: p.slices.update({"weight:x": {}}), "not those that it holds"),
    "numbers that are not finite": (lambda p: p.scalars["fc.weight"].update(step=float("nan")), "NaN"),
    "numbers beyond float32": (lambda p: p.scalars["fc.weight"].update(step=1e200), "scalars"),
    "numbers that are texts": (lambda p: p.scalars["fc.weight"].update(step="3"), "scalars"),
    "numbers on which parts differ": (lambda p: p.scalars["fc.weight"].update(step=4.0), "another part says"),
    "numbers of no weight": (lambda p: p.scalars.update(fc={"step": 3.0}), "no weight of this name"),
    "a number that the optimizer has not": (lambda p: p.scalars["fc.weight"].update(pace=3.0), "pace"),
    "bytes behind the last tensor": (lambda p: p.data.extend(b"12345678"), "bytes|byte"),
    "bytes that are cut off": (lambda p: p.data.__delitem__(slice(-4, None)), "bytes|byte"),
    "two tensors with the same bytes": (lambda p: p.header[W].update(data_offsets=p.header[M]["data_offsets"]), "byte"),
    "offsets that run backwards": (lambda p: p.header[W]["data_offsets"].reverse(), "bytes"),
    "metadata that is no text": (lambda p: p.metadata.update(more=[1]), "expected texts"),
    "a header nested without end": (lambda p: p.header.update(x=json.loads("[" * 70 + "]" * 70)), "nested"),
}


class Small:
    """As much of an engine as is restored: a linear layer, frozen but for its weight, with AdamW."""

    def __init__(self) -> None:
        self.layout = {"world_size": 1}
        self.module = nn.Linear(3, 4)
        self.module.bias.requires_grad_(False)
        self.holder = nn.ModuleDict({"fc": self.module})
        self.optimizer = torch.optim.AdamW([self.module.weight])
        self.loads = 0

    def wanted(self) -> Any:
        return wanted_of(self.holder, self.optimizer, masters=torch.float32)

    def load(self, source: Any) -> None:
        self.loads += 1
        for name, p in self.holder.named_parameters():
            load_whole(p, source, "weight", name)


def restored(root: Path, **options: Any) -> tuple[Small, Any]:
    engine = Small()
    return engine, restore(root, engine, {}, World(), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", FORGED)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_forged_part_is_skipped_in_words_before_anything_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str, rank: int
) -> None:
    for step in (1, 2):
        small_checkpoint(tmp_path / step_name(step), step)
    edit, says = FORGED[how]
    forge(tmp_path / step_name(2), rank, edit)
    engine, found = restored(tmp_path)
    assert (found.state["step"], engine.loads, found.damaged) == (1, 1, {2})
    assert torch.equal(engine.module.weight.detach(), torch.arange(12.0).view(4, 3) + 1)
    logged = capsys.readouterr().err
    assert f"{step_name(2)} is damaged and skipped: " in logged

    assert re.search(says, logged), logged


def test_what_does_not_fit_is_named_with_part_tensor_got_and_wanted(tmp_path: Path) -> None:
    for rank in (0, 1):
        small_checkpoint(tmp_path, 1)
        for each in (0, 1):
            forge(tmp_path, each, lambda part: part.slices[W].update(shape=[3, 4]))
        source = SliceSource(sorted(tmp_path.glob("*.safetensors")))
        expected = (
            'rank-00000.safetensors: the weight "fc.weight" is [3, 4] of float32; the model\'s is [4, 3] of float32'
        )
        assert source.misfit(Small().wanted()).startswith(expected), rank


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda part: part.scalars.clear(), 'have "exp_avg", "exp_avg_sq"; the optimizer keeps'),
        (lambda part: (part.header.clear(), part.slices.clear(), part.data.clear()), "no part has the weight"),
        (lambda part: _rename(part, M, "momentum:fc.weight"), "the optimizer keeps"),
        (lambda part: _rename(part, W, "buffer:fc.weight"), 'no part has the weight "fc.weight"'),
        (lambda part: part.slices[M].update(shape=[12]), "its weight is [4, 3] of float32"),
        (lambda part: part.header[M].update(dtype="I32"), 'the exp_avg "fc.weight" is [4, 3] of int32'),
    ],
)
def test_parts_that_lie_alike_do_not_fit_the_engine(tmp_path: Path, edit: Edit, says: str) -> None:
    small_checkpoint(tmp_path, 1)
    for rank in (0, 1):
        forge(tmp_path, rank, edit)
    assert says in SliceSource(sorted(tmp_path.glob("*.safetensors"))).misfit(Small().wanted())


def test_a_checkpoint_with_nothing_of_the_optimizer_yet_fits(tmp_path: Path) -> None:
    small_checkpoint(tmp_path, 1, moments=False)
    source = SliceSource(sorted(tmp_path.glob("*.safetensors")))
    assert source.misfit(Small().wanted()) == ""


def test_an_optimizer_that_keeps_shapes_of_its_own_is_not_held_to_those_of_the_weights() -> None:
    module = nn.Linear(8, 8)
    wanted = wanted_of(module, torch.optim.Adafactor(module.parameters()), masters=None)
    assert (wanted.kept, wanted.whole) == (None, False)
    for optimizer, moments, scalars in (
        (torch.optim.AdamW(module.parameters(), amsgrad=True), {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}, {"step"}),
        (torch.optim.SGD(module.parameters(), 0.1, momentum=0.9), {"momentum_buffer"}, set()),
        (torch.optim.SGD(module.parameters(), 0.1), set(), set()),
    ):
        kept = wanted_of(module, optimizer, masters=None).kept
        assert kept is not None
        assert (kept.moments, kept.scalars) == (moments, scalars)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a part is gone": lambda path: (path / "rank-00001.safetensors").unlink(),
    "a part is cut": lambda path: (path / "rank-00000.safetensors").write_bytes(b"half"),
    "a part is longer": lambda path: (path / "rank-00000.safetensors").write_bytes(b"x" * 9999),
    "the marker is cut": lambda path: (path / MARKER).write_text("{"),
    "the marker is of another step": lambda path: reseal(path, lambda m: m["state"].update(step=99, position=99)),
    "the marker has no step": lambda path: reseal(path, lambda m: m["state"].pop("step")),
}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_one_takes_no_whole_ones_place(tmp_path: Path, how: str, keep: int) -> None:
    for step in (1, 2, 3):
        small_checkpoint(tmp_path / step_name(step), step)
    DAMAGES[how](tmp_path / step_name(3))
    prune(tmp_path, Retention(keep))
    kept = [step_name(step) for step in (3, 2, 1)[: keep + 1]]
    assert [path.name for path in committed(tmp_path)] == kept
    assert restored(tmp_path)[1].state["step"] == 2


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_newer_copy_takes_no_whole_ones_place(tmp_path: Path, how: str) -> None:
    remote = tmp_path / "remote"
    for step in (1, 2, 3):
        small_checkpoint(tmp_path / "here" / step_name(step), step)
        if step > 1:
            upload(tmp_path / "here" / step_name(step), str(remote))
    DAMAGES[how](remote / step_name(3))
    uploader = Uploader(tmp_path / "none", str(remote), Retention(1))
    uploader.submit(tmp_path / "here" / step_name(1))
    uploader.finish(30)
    assert remote_steps(str(remote)) == [step_name(3), step_name(2)]
    assert restored(tmp_path / "b", remote=str(remote))[1].state["step"] == 2


@pytest.mark.parametrize("how", [*DAMAGES, *list(FORGED)[:12]])
def test_the_newest_whole_copy_is_downloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str) -> None:
    for step in (1, 2):
        small_checkpoint(tmp_path / "run" / step_name(step), step)
    newest = tmp_path / "run" / step_name(2)
    DAMAGES[how](newest) if how in DAMAGES else [forge(newest, rank, FORGED[how][0]) for rank in (0,)]
    found = download(f"file://{tmp_path}/run", tmp_path / "scratch")
    assert found.name == step_name(1)
    assert f"/run/{step_name(2)} is damaged and skipped: " in capsys.readouterr().err
    assert intact_checkpoint(found) == found
    DAMAGES["a part is gone"](tmp_path / "run" / step_name(1))
    with pytest.raises(CheckpointError, match=r"none of the 2 copies is intact: .*00001.safetensors is missing"):
        download(f"file://{tmp_path}/run", tmp_path / "scratch")


def test_a_checkpoint_that_was_skipped_counts_for_nothing_until_it_is_written_anew(tmp_path: Path) -> None:
    root = tmp_path / "checkpoints"
    for step in (1, 2, 5):
        small_checkpoint(root / step_name(step), step)
    part = root / step_name(5) / "rank-00000.safetensors"
    # Of the size that it should have: only reading it tells.
    part.write_bytes(part.read_bytes()[:-1] + b"\x7f")
    found = restored(root)[1]
    assert (found.state["step"], found.damaged, found.damaged_copies) == (2, {5}, set())
    RunDir(tmp_path).write_json("owner.json", {"token": "mine", "attempt": 2, "host": "h", "pid": 7})
    saver = Saver(RunDir(tmp_path), World(), "mine", Retention(1))
    saver.distrust(found.damaged, found.damaged_copies)

    def save(step: int) -> list[str]:
        state = {**found.state, "step": step, "position": step}
        engine = type("Engine", (), {"state": lambda _: small_state(step, World())})()
        saver.save(engine, Contents(state, {}, {"world_size": 1}, {}))
        saver.settle()
        return [path.name[-1] for path in committed(root)]

    assert save(3) == ["5", "3"]
    assert save(4) == ["5", "4"]
    assert save(5) == ["5"]
    assert restored(root)[1].state["step"] == 5


def test_a_copy_of_another_step_is_not_fetched(tmp_path: Path) -> None:
    small_checkpoint(tmp_path / "run" / step_name(2), 2)
    (tmp_path / "run" / step_name(2)).rename(tmp_path / "run" / step_name(7))
    with pytest.raises(CheckpointError, match="it is of step 2, in the place of step 7"):
        fetch(f"file://{tmp_path}/run", step_name(7), tmp_path)
