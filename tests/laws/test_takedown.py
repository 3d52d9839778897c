"""Keys that are taken down are not read from a position on, what was before replays as it was, and nothing forgets."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import vit_dist
from tests.shards import write_set
from tests.streams import recipe, recipe_of
from vit_dist.config.load import identity, recipe_hash, recipe_yaml
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import CheckpointError, ConfigError, DataError
from vit_dist.core.run import records
from vit_dist.core.run.marker import check_relations
from vit_dist.core.small_files import DamagedError, checked
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.data.seen import Reading, Readings
from vit_dist.data.sets import TrainingSet, open_training_set
from vit_dist.data.stream import EvalBatches, TrainStream
from vit_dist.data.takedown import TakenDown, extended, find, held_lines, hold, left_out, read_lines, summary
from vit_dist.train.state import TrainState

SHAPES = {
    "one window": (),
    "lanes": ("data.lanes=8", "data.window=5"),
    "odd lanes": ("data.lanes=3", "data.window=32"),
    "subset": ("data.subset=47", "data.lanes=3", "data.window=4"),
}
BROKEN = frozenset({3, 4, 40})
STEPS = {"horizon": "10 steps", "eval": {"every": "10 steps"}, "checkpoint": {"every": "10 steps"}}


@pytest.fixture(scope="module")
def broken_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_set(
        tmp_path_factory.mktemp("broken"), num_samples=60, samples_per_shard=17, num_classes=4, broken=BROKEN
    )


def read(config: Recipe, data: TrainingSet, world: int, begin: int, steps: int, taken: dict[int, int]) -> list[Any]:
    """(position, ordinal, epoch) that a world really reads, with the ordinals that were replaced at each position."""
    rows = []
    for rank in range(world):
        with TrainStream(data, config, World(rank, world), begin, taken_down=taken) as stream:
            for batch, _ in itertools.islice(stream, steps):
                rows += [(s.position, s.ordinal, s.epoch) for s in batch.samples]
    return sorted(rows)


def mixed(folder: Path, *overrides: str) -> Recipe:
    one = write_set(folder / "one", num_samples=40, samples_per_shard=13, num_classes=4, broken=frozenset({5}))
    two = write_set(folder / "two", num_samples=20, samples_per_shard=10, num_classes=4, first=20)
    sets = {"one": {"train": one, "weight": 2}, "two": {"train": two, "weight": 1}}
    return recipe_of({"num_classes": 4, "mixture": sets, "max_bad": 0.2}, *overrides, **STEPS)


def check_readings(config: Recipe, taken: dict[int, int], broken: frozenset[int], steps: int) -> None:
    """What the arithmetic says of every sample is what the stream has read, on any number of ranks."""
    data = open_training_set(config)
    rows = read(config, data, 1, 0, steps, taken)
    assert read(config, data, 3, 0, steps, taken) == rows
    assert [position for position, _, _ in rows] == list(range(steps * config.global_batch))
    readings = Readings(data, steps * config.global_batch, taken, broken)
    for ordinal in range(data.total_samples):
        expected = [(p, e) for p, o, e in rows if o == ordinal]
        assert [(one.position, one.epoch) for one in readings.of(ordinal)] == expected, ordinal
    for position, ordinal, _ in rows:
        assert ordinal not in broken
        assert taken.get(ordinal, position + 1) > position


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_taken_down_is_not_read_and_the_arithmetic_knows_who_stood_in(broken_set: str, shape: str) -> None:
    config = recipe(broken_set, *SHAPES[shape], "data.max_bad=0.2")
    # From the beginning, amid the first epoch, in the second; a whole run of neighbours; beside broken ones.
    taken = {0: 0, 5: 0, 39: 70, 41: 0, **dict.fromkeys(range(20, 30), 31), 7: 10_000}
    check_readings(config, taken, BROKEN, 12)


def test_windows_of_one_are_replaced_by_those_behind_them(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, num_samples=30, samples_per_shard=7, num_classes=4)
    config = recipe(manifest, "data.lanes=5", "data.window=1")
    check_readings(config, {**dict.fromkeys((1, 2, 3, 10, 17, 29), 0), 4: 30, 5: 40}, frozenset(), 6)


def test_a_whole_lane_may_be_taken_down(broken_set: str) -> None:
    config = recipe(broken_set, "data.lanes=6", "data.window=4")
    data = open_training_set(config)
    # The samples of lane 2 in the first epoch: ten in three windows.
    lane = [data.order.locate(position) for position in range(2, 60, 6)]
    taken = {int(read_manifest(broken_set).first_ordinals[w.shard]) + w.sample: 0 for w in lane}
    assert len(taken) == 10
    check_readings(config, taken, BROKEN, 10)


@pytest.mark.parametrize("shape", [(), ("data.lanes=12", "data.window=3")])
def test_mixtures_replace_within_a_set(tmp_path: Path, shape: tuple[str, ...]) -> None:
    config = mixed(tmp_path, *shape)
    # Ordinals of the second set count on from those of the first.
    taken = {0: 0, 6: 25, 40: 0, 41: 0, 42: 50, 59: 0}
    check_readings(config, taken, frozenset({5}), 15)
    data = open_training_set(config)
    for position, ordinal, _ in read(config, data, 1, 0, 10, taken):
        assert data.parts.of(ordinal) is data.parts.find(data.order.locate(position).shard)[0]


def test_what_lies_before_the_position_replays_as_it_was(broken_set: str) -> None:
    config = recipe(broken_set, "data.max_bad=0.2")
    data = open_training_set(config)
    plain, taken = read(config, data, 1, 0, 10, {}), dict.fromkeys((1, 2, 8, 20, 50), 36)
    later = read(config, data, 1, 0, 10, taken)
    assert later[:36] == plain[:36]
    assert later[36:] != plain[36:]
    for begin in range(0, 120, 12):
        assert read(config, data, 2, begin, (120 - begin) // 12, taken) == later[begin:]


def test_the_bytes_of_what_is_taken_down_may_be_wiped(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, num_samples=40, samples_per_shard=20, num_classes=4)
    index, tar = read_manifest(manifest).read_index(0), tmp_path / "shard-000000.tar"
    content = bytearray(tar.read_bytes())
    content[int(index.offsets[4]) : int(index.offsets[5])] = bytes(int(index.offsets[5] - index.offsets[4]))
    tar.write_bytes(content)
    config = recipe(manifest)
    data = open_training_set(config)
    with pytest.raises(DataError, match="sample 'k000004'"):
        read(config, data, 1, 0, 4, {})
    assert 4 not in {ordinal for _, ordinal, _ in read(config, data, 1, 0, 4, {4: 0})}


# Lists.


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"a\nb\n", ("a", "b")),
        (b"a\r\n\r\n  \nb", ("a", "b")),
        (b"\xef\xbb\xbfa\na\nb\n", ("a", "b")),
        ("d/é 1\n#b\n".encode(), ("d/é 1", "#b")),
        (b"photos\ta\na\n", ("photos\ta", "a")),
        ("a\x85b\u2028c\n".encode(), ("a\x85b\u2028c",)),
        (b"", ()),
    ],
)
def test_a_list_is_a_key_a_line(tmp_path: Path, content: bytes, lines: tuple[str, ...]) -> None:
    (tmp_path / "list").write_bytes(content)
    assert read_lines(str(tmp_path / "list")) == lines


def test_a_list_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_lines(str(tmp_path / "none"))
    (tmp_path / "list").write_bytes("a\n".encode("utf-16"))
    with pytest.raises(DataError, match="UTF-16, expected UTF-8"):
        read_lines(str(tmp_path / "list"))


def test_keys_are_found_wherever_they_are(tmp_path: Path) -> None:
    config = mixed(tmp_path)
    parts = open_training_set(config).parts
    # k20 to k39 are in both sets: 20 to 39 of the first, 40 to 59 of both together.
    found = find(("k000001", "k000020", "one\tk000021", "two\tk000021", "two\tk000001", "nobody"), parts)
    assert list(found.values()) == [(1,), (20, 40), (21,), (41,), (), ()]
    assert find((), parts) == {}


def test_what_is_new_counts_from_here_and_what_was_before_from_where_it_did(
    broken_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, url = open_training_set(recipe(broken_set)).parts, str(tmp_path / "list")
    hold(url, ("k000001", "k000002"))
    first = extended((), url, parts, 0)
    assert first == (TakenDown("k000001", 0, (1,)), TakenDown("k000002", 0, (2,)))
    hold(url, ("k000009", "k000002", "k000001", "k1"))
    capsys.readouterr()
    second = extended(first, url, parts, 120)
    assert second == (*first, TakenDown("k000009", 120, (9,)), TakenDown("k1", 120, ()))
    said = capsys.readouterr()
    assert "1 of 2 new keys are in no set of this run: 'k1'" in said.out + said.err
    assert extended(second, url, parts, 240) == second
    assert capsys.readouterr().out == ""
    assert left_out(second) == {1: 0, 2: 0, 9: 120}
    assert summary(second) == {"keys": 4, "examples": 3, "keys_since_position": {"0": 2, "120": 2}}


@pytest.mark.parametrize(
    ("lines", "says"),
    [
        (("k000001",), "lacks 1 of the 2 keys that were taken down before, from position 24 on: 'k000002'"),
        (("k000009",), "lacks 2 of the 2 keys"),
        (("K000001", "k000002"), "lacks 1 of the 2 keys .* 'k000001'"),
        (("k000001 ", "k000002"), "lacks 1 of the 2 keys .* 'k000001'"),
        (("one\tk000001", "k000002"), "lacks 1 of the 2 keys .* 'k000001'"),
        ((), "lacks 2 of the 2 keys"),
        (None, "no data.takedown is given that has 2 of the 2 keys"),
    ],
)
def test_a_shorter_list_is_refused(broken_set: str, lines: tuple[str, ...] | None, says: str) -> None:
    known = (TakenDown("k000001", 24, (1,)), TakenDown("k000002", 24, (2,)))
    url = "" if lines is None else "list"
    hold("list", lines or ())
    with pytest.raises(ConfigError, match=says):
        extended(known, url, open_training_set(recipe(broken_set)).parts, 48)


def test_a_list_of_everything_is_refused(broken_set: str) -> None:
    hold("all", tuple(f"k{i:06d}" for i in range(60)))
    with pytest.raises(ConfigError, match=r"names every sample of the set .*; nothing is left to read"):
        extended((), "all", open_training_set(recipe(broken_set)).parts, 0)
    hold("all", tuple(f"k{i:06d}" for i in range(59)))
    assert len(extended((), "all", open_training_set(recipe(broken_set)).parts, 0)) == 59
    with pytest.raises(ConfigError, match="nothing is left to read"):
        extended((), "all", open_training_set(recipe(broken_set, "data.subset=7")).parts, 0)


# The train state, recipes, validation, other loops.


def test_the_train_state_keeps_it_and_markers_without_are_as_before(broken_set: str) -> None:
    order = open_training_set(recipe(broken_set)).identity
    plain = TrainState(2, 24)
    assert "taken_down" not in plain.dump(order)
    state = replace(plain, taken_down=(TakenDown("a", 12, (1, 5)), TakenDown("b", 24, ())))
    dumped = json.loads(json.dumps(state.dump(order)))
    assert dumped["taken_down"] == [["a", 12, [1, 5]], ["b", 24, []]]
    assert TrainState.load(dumped, order, "here") == state
    assert plain.rewound(replace(state, position=48)).taken_down == state.taken_down
    with pytest.raises(CheckpointError):
        TrainState.load(dumped, replace(order, seed=9), "here")
    for wrong in ([["a", 12]], [["a", -1, []]], [[1, 12, []]], [["a", 12, ["1"]]], {"a": 1}, [["a", 12, 5]]):
        with pytest.raises(DamagedError, match="taken_down"):
            checked({**dumped, "taken_down": wrong}, {**records.STATE, **records.STATE_SINCE})
    marker = {"state": {**dumped, "taken_down": [["a", 36, []]]}, "recipe": {"global_batch": 12}, "layout": {}}
    with pytest.raises(DamagedError, match='"a" counts from position 36 on, behind position 24'):
        check_relations(marker)


@pytest.mark.parametrize(
    ("ranges", "steps"),
    [
        ((), {0: 1, 11: 1, 12: 2, 100: 9}),
        (((24, 48),), {23: 2, 24: None, 47: None, 48: 3, 60: 4}),
        (((12, 24), (24, 60)), {0: 1, 12: None, 59: None, 60: 2}),
        (((12, 24), (36, 48)), {24: 2, 36: None, 48: 3}),
    ],
)
def test_the_step_of_a_position_knows_of_rewinds(
    ranges: tuple[tuple[int, int], ...], steps: dict[int, int | None]
) -> None:
    state = TrainState(position=1200, skipped_ranges=ranges)
    assert {position: state.step_of(position, 12) for position in steps} == steps


def test_a_recipe_is_the_same_run_with_a_list_and_without_reads_as_before(broken_set: str) -> None:
    plain, listed = recipe(broken_set), recipe(broken_set, "data.takedown=list.txt")
    assert recipe_hash(plain) == recipe_hash(listed)
    assert identity(plain) == identity(listed)
    assert "takedown" not in recipe_yaml(plain)
    assert "takedown: list.txt" in recipe_yaml(listed)


def test_validation_leaves_it_out(broken_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "list")
    hold(url, ("k000010", "elsewhere\tk000011", "nobody"))
    config, manifest = recipe(broken_set, f"data.takedown={url}").data, read_manifest(broken_set)
    batches = [b for b in EvalBatches(manifest, config, World(), 7) if b is not None]
    seen = [s.ordinal for b in batches for s in b.samples]
    assert set(seen) == set(range(60)) - BROKEN - {10}
    assert seen[9:13] == [9, 11, 11, 12]
    said = capsys.readouterr()
    assert "1 validation examples are taken down" in said.out + said.err
    assert "3 validation examples cannot be decoded" in said.out + said.err


def test_the_stream_alone_holds_to_it(broken_set: str, tmp_path: Path) -> None:
    url = tmp_path / "list"
    url.write_text("k000010\n")
    given: dict[str, Any] = {"batch": 12, "image_size": 8, "max_bad": 0.2, "epochs": 2}

    def keys(**more: Any) -> tuple[list[str], dict[str, Any]]:
        with vit_dist.open_stream(broken_set, **given, **more) as stream:
            return [key for batch, _ in stream for key in batch.keys], stream.state

    plain, _ = keys()
    listed, state = keys(takedown=str(url))
    assert plain.count("k000010") >= 2
    assert "k000010" not in listed
    assert state["taken_down"] == [["k000010", 0, [10]]]
    with vit_dist.open_stream(broken_set, **given) as stream:
        middle = [state for _, state in itertools.islice(stream, 5)][-1]
    rest, state = keys(takedown=str(url), position=json.loads(json.dumps(middle)))
    assert "k000010" not in rest
    assert state["taken_down"] == [["k000010", 60, [10]]]
    with pytest.raises(ConfigError, match=r"no data\.takedown is given that has 1 of the 1 key"):
        keys(position=state)
    with pytest.raises(ConfigError, match="the state is damaged: taken_down"):
        keys(takedown=str(url), position={**state, "taken_down": [["k", 1]]})


def test_readings_of_what_is_in_no_subset_are_none(broken_set: str) -> None:
    data = open_training_set(recipe(broken_set, "data.subset=17"))
    assert Readings(data, 40, {}).of(30) == []
    assert [type(one) for one in Readings(data, 17, {}).of(3)] == [Reading]
    assert held_lines("") == ()
