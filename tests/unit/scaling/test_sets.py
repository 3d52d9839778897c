"""A report compares values of one set: others are left out with their reason, and what nobody knows is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.scaling.logged_runs import GARMENTS, log_run, measured
from vit_dist.core.errors import DataError
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.run.log import MEASURED_ON, write_measured
from vit_dist.core.run.measured import MeasuredOn, Tags
from vit_dist.scaling.collect import collect
from vit_dist.scaling.observation import Collection
from vit_dist.scaling.results import analyse

SHOES = measured("shoes", "5" * 16)


def study(root: Path, *sets: MeasuredOn | None) -> Collection:
    for seed, on in enumerate(sets):
        log_run(root, seed=seed, on=on)
    return collect(str(root))


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (SHOES, "shoes"),
        (measured(examples=7, fingerprint="9" * 16), "fingerprint 9999999999999999, 7 examples"),
        (measured(classes="1" * 16), "garments-val"),
        (measured(subset=10), "10 of 100 examples"),
        (measured(settings={"seeds": 3}), "seeds 3"),
        (measured(name="<b>", fingerprint="0" * 16), "'<b>'"),
    ],
)
def test_runs_of_another_set_than_most_are_left_out(other: MeasuredOn, says: str, tmp_path: Path) -> None:
    found = study(tmp_path, other, GARMENTS, GARMENTS)
    assert [one.seed for one in found.observations] == [1, 2]
    assert {one.measured_on for one in found.observations} == {"garments-val"}
    (left_out,) = found.excluded
    assert left_out.directory == "vit-500-s0/tb"
    assert says in left_out.reason
    (remark,) = found.remarks
    assert "measured on 2 sets, which are not compared" in remark


@pytest.mark.parametrize("same", [measured(name="moved"), measured(examples=100), GARMENTS])
def test_a_set_under_another_name_is_the_same(same: MeasuredOn, tmp_path: Path) -> None:
    found = study(tmp_path, GARMENTS, same)
    assert (len(found.observations), found.excluded, found.remarks) == (2, (), ())


@pytest.mark.parametrize("view", [{"image_size": 56}, {"crop": 1.0}])
def test_other_views_of_one_set_are_compared_and_said(view: dict[str, Any], tmp_path: Path) -> None:
    found = study(tmp_path, GARMENTS, measured(**view))
    assert len(found.observations) == 2
    assert "images of different sizes" in found.remarks[0]


def test_logs_that_do_not_say_their_set_are_kept_and_said(tmp_path: Path) -> None:
    found = study(tmp_path, None, GARMENTS, None)
    assert len(found.observations) == 3
    assert "it is not known on which set val/top1 was measured" in found.remarks[0]
    assert "2 runs (vit-500-s0/tb, vit-500-s2/tb)" in found.remarks[0]
    assert [one.measured_on for one in found.observations] == ["", "garments-val", ""]


@pytest.mark.parametrize("wanted", ["shoes", "5555", "5" * 16])
def test_another_set_can_be_asked_for(wanted: str, tmp_path: Path) -> None:
    study(tmp_path, SHOES, GARMENTS, GARMENTS)
    found = collect(str(tmp_path), val_set=wanted)
    assert [one.seed for one in found.observations] == [0]
    with pytest.raises(DataError, match="no run's val/top1 was measured on it; sets are: the set 'shoes'"):
        collect(str(tmp_path), val_set="hats")


def test_few_shot_values_of_other_settings_are_not_shown_beside_the_rest(tmp_path: Path) -> None:
    for seed in range(3):
        path = log_run(tmp_path, seed=seed)
        writer = EventWriter(path.parent)
        write_measured(writer, {"fewshot/x_5shot": measured(settings={"seeds": 3 if seed else 5})}, {}, 10)
        writer.scalars(10, {"fewshot/x_5shot": 0.25 + seed / 10})
        writer.close()
    found = collect(str(tmp_path))
    assert len(found.observations) == 3
    assert "fewshot/x_5shot was measured on 2 sets" in found.remarks[0]
    assert [one.seed for one, _ in analyse(found).few_shot["fewshot/x_5shot"]] == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        json.dumps(GARMENTS.model_dump() | {"fingerprint": "../" * 5 + "x"}),
        json.dumps(GARMENTS.model_dump() | {"examples": -1}),
        json.dumps(GARMENTS.model_dump() | {"name": "two\nlines"}),
        json.dumps(GARMENTS.model_dump() | {"name": "\ud800"}),
        json.dumps(GARMENTS.model_dump() | {"name": "n" * 9999}),
        json.dumps(GARMENTS.model_dump() | {"crop": float("nan")}),
        '{"settings": ' * 70 + "1" + "}" * 70,
    ],
)
def test_a_forged_set_leaves_its_own_run_out(text: str, tmp_path: Path) -> None:
    log_run(tmp_path)
    path = log_run(tmp_path, seed=1, on=None)
    writer = EventWriter(path.parent)
    writer.text(f"{MEASURED_ON}val/top1", text, 10)
    writer.close()
    found = collect(str(tmp_path))
    assert [one.seed for one in found.observations] == [0]
    (left_out,) = found.excluded
    assert "vit_dist/measured_on/val/top1 cannot be understood" in left_out.reason
    left_out.reason.encode()


@pytest.mark.parametrize(
    ("tag", "name", "is_called"),
    [
        ("val/top1", "objectnet", "val@objectnet-55555555/top1"),
        ("val/top1", "a/b c@d", "val@a-b-c-d-55555555/top1"),
        ("val/top1", "../..", "val@set-55555555/top1"),
        ("val/top1", "", "val@set-55555555/top1"),
        ("score", "\x1b[31mred", "score@31mred-55555555"),
        ("fewshot/pets_5shot", "Ä" * 90, "fewshot@set-55555555/pets_5shot"),
    ],
)
def test_a_tag_of_another_set_names_it_plainly(tag: str, name: str, is_called: str) -> None:
    other = SHOES.model_copy(update={"name": name})
    tags = Tags()
    assert tags.claim(tag, GARMENTS) == tag
    assert [tags.claim(tag, one) for one in (other, GARMENTS, other)] == [is_called, tag, is_called]
    # The set that was met first under another name keeps its tag.
    assert tags.claim(tag, SHOES) == is_called
    assert Tags({tag: None}).claim(tag, GARMENTS) == GARMENTS.tag(tag)
