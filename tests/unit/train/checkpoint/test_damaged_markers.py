"""A damaged marker is a finding, the older whole checkpoint is used; nothing is removed or written through a link."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vit_dist.core import locks
from vit_dist.core.files import append_json, remove_tree
from vit_dist.core.run.checkpoints import (
    FORMAT,
    MARKER,
    committed,
    lacks,
    measured_save_s,
    parse_marker,
    read_marker,
    seal_marker,
    step_name,
)
from vit_dist.core.run.names import CHECKPOINTS
from vit_dist.core.stores import file_system
from vit_dist.train.checkpoint.store import Retention, prune, remove, sweep

PART = {"bytes": 7, "xxh128": "0" * 32}


def whole(step: int = 4, **changes: Any) -> dict[str, Any]:
    state = {
        "step": step,
        "position": step * 16,
        "skipped": 0,
        "quarantined": [3],
        "losses": [1.5, float("nan")][:step],
    }
    state |= {"bad_in_row": 0, "spikes": 1, "passed_over": [], "order": {"seed": 0}}
    marker: dict[str, Any] = {"format": FORMAT, "layout": {"world_size": 2}, "recipe": {"global_batch": 16}}
    files = {"rank-00000.safetensors": PART, "rank-00001.safetensors": PART}
    return {**marker, "state": state, "files": files, "wrote_s": 0.5, "metrics": {"a": float("nan")}, **changes}


def state(**changes: Any) -> dict[str, Any]:
    return whole(state={**whole()["state"], **changes})


def test_a_whole_marker_reads_back_with_and_without_its_checksum() -> None:
    for text in (seal_marker(whole()), json.dumps(whole()).encode()):
        marker, problem = parse_marker(text)
        assert (problem, lacks(marker), marker["state"]["step"]) == ("", "", 4)
    rewound = state(passed_over=[[32, 64], [64, 80]], position=64 + 48)
    assert parse_marker(json.dumps(rewound))[1] == ""


@pytest.mark.parametrize(
    ("marker", "says"),
    [
        (whole(files={}), "files has no rank-00000.safetensors"),
        (whole(files={"rank-00001.safetensors": PART, "rank-00002.safetensors": PART}), "files has no rank-00000"),
        (whole(files={"rank-00000.safetensors": PART}), "parts of 1 ranks, layout says world_size 2"),
        (whole(files={name: {**PART, "bytes": "7"} for name in whole()["files"]}), "files is "),
        (whole(files={name: {**PART, "xxh128": "z" * 32} for name in whole()["files"]}), "files is "),
        (whole(files={"../x": PART}), "'../x' is not the name of a rank's part"),
        (whole(metrics=[1]), "metrics is"),
        (whole(metrics={"a": "b"}), "metrics is"),
        (whole(goodput={"train": "x"}), "goodput is"),
        (whole(probe={"examples": 4}), "probe is"),
        (whole(wrote_s=-1), "wrote_s is"),
        (whole(classes="ab"), "classes is"),
        (whole(format=[2]), "it is of format"),
        (whole(layout=[]), "layout is not a mapping"),
        (whole(recipe={"global_batch": "x"}), "is not step 4 x global_batch"),
        (state(step="x"), "state: step is"),
        (state(step=True), "state: step is"),
        (state(position=56), "state: position 56 is not step 4 x global_batch 16"),
        (state(step=5), "is not step 5 x"),
        (state(losses=["x"]), "state: losses is"),
        (state(loss_steps=["x", 2]), "state: loss_steps is"),
        (state(loss_steps=[3]), "no steps of 2 losses, up to 4"),
        (state(loss_steps=[4, 3]), "no steps of 2 losses, up to 4"),
        (state(loss_steps=[4, 5]), "no steps of 2 losses, up to 4"),
        (state(loss_steps=[0, 4]), "no steps of 2 losses, up to 4"),
        (state(quarantined=[-1]), "state: quarantined is"),
        (state(passed_over=[[9, 3]]), "state: passed_over is"),
        (state(passed_over=[[0, 16]]), "4 x global_batch 16 \\+ 16 that a rewind passed over"),
        (state(order=[]), "state: order is"),
        (state(skipped=5), "state: skipped is 5, of 4 steps"),
        (state(bad_in_row=1), "state: bad_in_row is 1, and 0 steps were not applied"),
        (state(skipped=3, losses=[1.0, 2.0]), "state: losses are 2, of 1 steps that were applied"),
        (state(spikes=5), "state: spikes is 5, of the 4 steps up to position 64"),
        (state(quarantined=[3, 3]), "state: quarantined is not sorted, or names a sample twice"),
        (state(quarantined=[4, 3]), "state: quarantined is not sorted"),
        (state(passed_over=[[70, 86]], position=80), "state: passed_over is .* no whole batches of 16"),
        (state(passed_over=[[80, 96]], position=80), "state: passed_over ends at 96, behind position 80"),
        (whole(recipe={"global_batch": 0}), "is not step 4 x global_batch 0"),
        (whole(recipe={"global_batch": 16, "horizon": "3 steps"}), "step 4 is beyond the recipe's horizon of 3 steps"),
        (whole(recipe={"global_batch": 16, "horizon": "40 examples"}), "beyond the recipe's horizon of 3 steps"),
        (whole(recipe={"global_batch": 16, "horizon": "soon"}), "state: the recipe's horizon: expected a duration"),
        (
            {**state(order={"seed": 0, "num_samples": 20}), "recipe": {"global_batch": 16, "horizon": "2 epochs"}},
            "beyond the recipe's horizon of 3 steps",
        ),
        (whole(recipe={"global_batch": 16, "seed": 1}), "state: order: seed is 0, the recipe's is 1"),
        (whole(recipe={"global_batch": 16, "data": {"num_classes": 1}}, classes=["a", "b"]), "num_classes is 1"),
        (whole(recipe={"global_batch": 16, "data": 3}), "recipe: data is 3"),
        (whole(goodput={"train": -1.0}), "goodput: .train. is -1.0 seconds"),
        (
            whole(
                files={f"rank-{rank:05d}.safetensors": PART for rank in range(3)},
                layout={"world_size": 3},
            ),
            "global_batch 16 does not fall to the 3 ranks",
        ),
    ],
)
def test_a_field_that_is_none_is_a_finding(marker: dict[str, Any], says: str) -> None:
    # With a checksum that fits, too: whoever forges one can do that.
    for text in (json.dumps(marker), seal_marker(marker)):
        found, problem = parse_marker(text)
        assert found == {}
        assert re.search(says, problem), problem


def _flip(text: bytes) -> bytes:
    return text.replace(b'"spikes": 1', b'"spikes": 3')


@pytest.mark.parametrize(
    "damage",
    [
        _flip,
        lambda text: text.replace(b'"seed": 0', b'"seed": 1'),
        lambda text: text.replace(b'"wrote_s": 0.5', b'"wrote_s": 0.6'),
        lambda text: text.replace(b"1.5", b"1.25"),
        lambda text: text.replace(b'"xxh128": "00', b'"xxh128": "01'),
        lambda text: text.replace(b'"global_batch"', b'"global_botch"'),
    ],
)
def test_what_fits_its_type_is_still_found_by_the_checksum(damage: Callable[[bytes], bytes]) -> None:
    text = seal_marker(whole())
    assert damage(text) != text
    assert "its checksum does not fit its content" in parse_marker(damage(text))[1]


def test_a_marker_in_the_place_of_another_step_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "step-0000000008"
    path.mkdir()
    (path / MARKER).write_bytes(seal_marker(whole()))
    assert "it is of step 4, in the place of step 8" in read_marker(path)[1]


def test_a_damaged_newest_marker_does_not_hide_what_the_one_before_says(tmp_path: Path) -> None:
    for step in (3, 4):
        path = tmp_path / CHECKPOINTS / step_name(step)
        path.mkdir(parents=True)
        (path / MARKER).write_bytes(seal_marker(whole(step, wrote_s=float(step))))
    assert measured_save_s(tmp_path) == 4.0
    (path / MARKER).write_bytes(seal_marker(whole(3)))
    assert measured_save_s(tmp_path) == 3.0
    (tmp_path / CHECKPOINTS / step_name(3) / MARKER).write_text("{")
    assert measured_save_s(tmp_path) is None


@pytest.mark.parametrize("name", ["step-4", "step-00000000004", "step-0000000004.bak", "step-4000000000000000000000"])
def test_a_name_that_is_not_how_a_step_is_written_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / MARKER).write_bytes(seal_marker(whole()))
    assert committed(tmp_path) == []


@pytest.mark.parametrize("name", sorted(whole()["state"]))
def test_a_state_that_lacks_a_field_is_not_gone_on_from(name: str) -> None:
    marker, problem = parse_marker(json.dumps(whole(state={k: v for k, v in whole()["state"].items() if k != name})))
    assert problem == ""
    assert f"state has no '{name}'" in lacks(marker)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Checkpoints of a run A, and of a run B whose first one is a link to A's."""
    a, b = tmp_path / "a", tmp_path / "b"
    for path in (a / step_name(1), a / step_name(2), b / step_name(2), b / step_name(3)):
        path.mkdir(parents=True)
        for name in whole()["files"]:
            (path / name).write_bytes(b"content")
        (path / MARKER).write_bytes(seal_marker(whole(int(path.name[-1]))))
    (b / "step-0000000001").symlink_to(a / "step-0000000001")
    return a, b


@pytest.mark.parametrize(
    "act",
    [
        lambda b: prune(b, Retention(1)),
        lambda b: remove(b / "step-0000000001"),
        lambda b: remove_tree(b / "step-0000000001"),
        lambda b: file_system("x")[0].rm_tree(str(b / "step-0000000001")),
        lambda b: file_system("x")[0].rm_tree(str(b)),
        lambda b: ((b / "step-0000000001").rename(b / ".removing-step-0000000001.x"), sweep(b)),
    ],
    ids=["prune", "remove", "tree", "store", "around", "sweep"],
)
def test_removing_a_link_takes_the_link_away(act: Callable[[Path], object], runs: tuple[Path, Path]) -> None:
    a, b = runs
    act(b)
    assert [p.name[-1] for p in committed(a)] == ["2", "1"]
    assert not [p for p in b.glob("*") if p.is_symlink()] + [p for p in b.glob(".*") if p.is_symlink()]


def test_nothing_is_appended_or_locked_through_a_link(tmp_path: Path) -> None:
    theirs, link = tmp_path / "theirs", tmp_path / "link"
    theirs.write_text("kept\n")
    link.symlink_to(theirs)
    with pytest.raises(OSError, match="a symbolic link, through which nothing is written; remove it"):
        append_json(link, {"a": 1})
    with pytest.raises(OSError, match="symbolic link"), locks.held(link, "me"):
        pass
    assert theirs.read_text() == "kept\n"
