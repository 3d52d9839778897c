"""Small files of ours that are damaged, forged or no files: a plain value, or one reason, at once."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.histories import speak
from vit_dist.core.errors import RunError
from vit_dist.core.run import history, names
from vit_dist.core.run.checkpoints import MARKER, read_marker
from vit_dist.core.run.history.events import FIELDS
from vit_dist.core.small_files import DamagedError, parse_json, read_record, read_records, read_small

DAMAGED = {
    "nothing": (b"", "not JSON"),
    "cut": (b'{"step": 1', "not JSON"),
    "zeros": (b"\0" * 100, "not"),
    "not UTF-8": (b'{"host": "\xff\xfe"}', "not UTF-8"),
    "UTF-16": ('{"step": 1}'.encode("utf-16"), "not"),
    "a list": (b"[1, 2]", "not a JSON object"),
    "a number": (b"7", "not a JSON object"),
    "NaN": (b'{"time": NaN}', "NaN is no number"),
    "minus infinity": (b'{"time": -Infinity}', "-Infinity is no number"),
    "beyond": (b'{"time": 1e999}', "1e999 is beyond all numbers"),
    "many digits": (b'{"time": 1' + b"0" * 400 + b"}", "a number of 401 digits"),
    "more digits than Python reads": (b'{"time": ' + b"9" * 5000 + b"}", "a number of 5,000 digits"),
    "deep lists": (b"[" * 100_000, "nested too deeply"),
    "deep objects": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
    "somewhat deep": (b'{"a":' * 80 + b"1" + b"}" * 80, "nested more than 60 levels deep"),
    "a text for a step": (b'{"step": "7"}', 'step is "7"'),
    "half a step": (b'{"step": 1.5}', "step is 1.5"),
    "a step before the first": (b'{"step": -1}', "step is -1"),
    "a step that no float holds": (b'{"step": 9007199254740993}', "step is 9007199254740993"),
    "true for a step": (b'{"step": true}', "step is true"),
    "a year that no calendar has": (b'{"time": 1e300}', "time is 1e+300"),
    "goodput of texts": (b'{"goodput": {"train": "x"}}', 'goodput is {"train": "x"}'),
    "goodput of a list": (b'{"goodput": [1]}', "goodput is [1]"),
    "null": (b'{"status": null}', "status is null"),
    "a giant text": (b'{"reason": "' + b"x" * 200_000 + b'"}', 'reason is "xxx'),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_what_is_damaged_says_why_in_one_short_line(case: str, tmp_path: Path) -> None:
    content, says = DAMAGED[case]
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(DamagedError) as caught:
        read_record(tmp_path / "f", FIELDS["ended"])
    assert says in str(caught.value)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["fifo", "device", "endless device", "directory", "link to a fifo", "link to itself"])
def test_what_is_no_regular_file_is_never_waited_for(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "history-ranks.jsonl"
    if "fifo" in kind:
        os.mkfifo(tmp_path / "fifo" if "link" in kind else path)
        if "link" in kind:
            path.symlink_to(tmp_path / "fifo")
    elif "device" in kind:
        path.symlink_to("/dev/zero" if "endless" in kind else "/dev/null")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(path)
    with pytest.raises((DamagedError, OSError)) as caught:
        read_small(path)
    assert not isinstance(caught.value, FileNotFoundError)
    with pytest.raises(RunError, match=r"history-ranks\.jsonl"):
        history.read(tmp_path)
    (finding,) = history.read(tmp_path, forgiving=True).findings
    assert finding.startswith("history-ranks.jsonl cannot be read: ")


def test_a_file_that_is_too_large_is_not_read_whole(tmp_path: Path) -> None:
    with (tmp_path / "f").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DamagedError, match="larger than the 67,108,864 bytes"):
        read_small(tmp_path / "f")


def test_of_many_lines_the_sound_ones_are_read_and_damage_is_found(tmp_path: Path) -> None:
    lines = [
        '{"attempt": 1}',
        '{"attempt": 1e999}',
        "",
        '{"atte',
        '{"attempt": "x"}',
        "[1]",
        '{"attempt": 2}',
        '{"attempt": 3',
    ]
    (tmp_path / "f").write_text("\n".join(lines))
    findings: list[str] = []
    assert [line["attempt"] for line in read_records(tmp_path / "f", FIELDS["training"], findings)] == [1, 2]
    assert findings == [
        "line 2: 1e999 is beyond all numbers",
        'line 5: attempt is "x"',
        "line 6: not a JSON object",
    ]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda parts: st.lists(parts) | st.dictionaries(st.text(), parts),
)


@given(JSON)
def test_what_json_can_say_is_read_as_it_is(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value


@settings(max_examples=500, derandomize=True)
@given(st.binary(max_size=60) | st.text(st.sampled_from('{}[]",:0123456789.eE+-tfnrualseNI\\ud8\n ')).map(str.encode))
@example(b"\xef\xbb\xbf{}")
@example(b'"\\ud800"')
def test_any_bytes_are_a_plain_value_or_damage(content: bytes) -> None:
    try:
        value = parse_json(content)
    except DamagedError:
        return
    assert parse_json(json.dumps(value)) == value


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_line_is_a_finding_and_a_damaged_heartbeat_costs_its_times_alone(case: str, tmp_path: Path) -> None:
    speak(tmp_path, "running", 3, 30)
    with (tmp_path / names.BY_RANKS).open("ab") as file:
        # An event, so that the line is held to its fields.
        file.write(DAMAGED[case][0].replace(b"{", b'{"event": "ended", "attempt": 1, "at": 1, ', 1) + b"\n")
    (tmp_path / names.HEARTBEAT).write_bytes(DAMAGED[case][0])
    state = history.read(tmp_path)
    assert state.status is not None
    assert (state.status.status, state.status.attempt, state.progress.step) == ("running", 1, 0)
    assert 1 <= len(state.findings) <= 2
    # Neither is a field of the heartbeat.
    assert state.findings[-1].startswith(names.HEARTBEAT) or case in {"null", "a giant text"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is damaged: not JSON"),
        ("[" * 100_000, "is damaged: nested too deeply"),
        ("[1]", "is damaged: not a JSON object"),
        ("{}", "is damaged: it has no 'format'"),
        ('{"format": 1}', "is of format 1"),
        ('{"format": 2, "layout": {}, "recipe": {}, "state": [], "files": {}}', "is damaged: state is not a mapping"),
        ('{"format": 2, "layout": {}, "recipe": {}, "state": {}}', "is damaged: it has no 'files'"),
        ('{"format": ' + "2" * 5000 + "}", "is damaged: a number of 5,000 digits"),
    ],
)
def test_a_damaged_marker_says_why(content: str, says: str, tmp_path: Path) -> None:
    (tmp_path / MARKER).write_text(content)
    marker, why = read_marker(tmp_path)
    assert marker == {}
    assert says in why


def test_values_that_are_no_numbers_are_recorded_and_read_as_such(tmp_path: Path) -> None:
    evaluators = [{"name": "classification"}]
    history.evaluated(tmp_path, evaluators, 7, {"val/loss": float("nan"), "val/top1": 0.5})
    values = history.evaluation(tmp_path, evaluators, 7)
    assert values is not None
    assert str(values) == "{'val/loss': nan, 'val/top1': 0.5}"
    (tmp_path / names.BY_EVALUATORS).write_text(
        '{"event": "evaluated", "evaluators": [{"name": "classification"}], "step": 7}\n'
    )
    with pytest.raises(RunError, match="damaged: the values of step 7"):
        history.evaluation(tmp_path, evaluators, 7)


@pytest.mark.parametrize("most", [1 << 20, 1 << 28, 1 << 34, None])
@pytest.mark.parametrize("size", [0, 9, 3 << 20])
def test_a_file_takes_the_memory_that_it_has_and_not_what_it_might_have(
    size: int, most: int | None, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(bytes(size))
    tracemalloc.start()
    try:
        if most is not None and size > most:
            with pytest.raises(DamagedError, match="larger than"):
                read_small(tmp_path / "f", most)
        else:
            assert read_small(tmp_path / "f", most) == bytes(size)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
