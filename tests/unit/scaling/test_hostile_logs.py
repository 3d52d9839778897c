"""One log that is damaged or forged harms itself alone, and what logs say neither steers nor runs anything."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
import struct
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.unit.scaling.logged_runs import info, log_run
from vit_dist.core.errors import DataError
from vit_dist.core.events.crc import masked_crc
from vit_dist.core.events.reader import read_events
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.run.log import METRICS, RUN, STATUS
from vit_dist.scaling.collect import collect
from vit_dist.scaling.report.figures import few_shot_figures
from vit_dist.scaling.report.tensorboard import export_tensorboard
from vit_dist.scaling.report.write import write_report
from vit_dist.scaling.results import analyse
from vit_dist.scaling.tagmap import LogMap


def forged(root: Path, run: object = None, status: object = None, *, value: float = 0.5, step: int = 10) -> None:
    """The log of a run called 'bad' whose entries hold anything; texts stand as they are."""
    writer = EventWriter(root / "bad" / "tb")
    begun = info(name="bad", subset=800).model_dump()
    begun.update(run if isinstance(run, dict) else {})
    ended = {"status": "done", "step": 10, "examples": 640}
    ended.update(status if isinstance(status, dict) else {})
    writer.text(RUN, run if isinstance(run, str) else json.dumps(begun))
    writer.scalars(step, {"val/top1": value, "val/loss": 1.0})
    writer.text(STATUS, status if isinstance(status, str) else json.dumps(ended), 10)
    writer.close()


@pytest.mark.parametrize(
    ("run", "status", "says"),
    [
        ({"base_lr": float("nan")}, None, "NaN is no number"),
        ({"weight_decay": float("inf")}, None, "Infinity is no number"),
        ({"base_lr": 1e305}, None, "base_lr is 1e[+]305"),
        ('{"name": "x", "num_params": ' + "9" * 5000 + "}", None, "a number of 5,000 digits"),
        ({"subset": 10**30}, None, "subset is 1000.* no count"),
        ({"global_batch": -1}, None, "global_batch is -1"),
        ({"family": "v" * 100_000}, None, "family is no name: 'vvv.* 100,000 characters"),
        ({"name": "two\nlines"}, None, r"name is no name: 'two\\nlines'"),
        ({"dataset": "\ud800"}, None, "cannot be understood"),
        ("[" * 100_000, None, "nested too deeply|not JSON"),
        ('{"a": ' * 70 + "1" + "}" * 70, None, "nested more than 60 levels"),
        ("[]", None, "cannot be understood"),
        ('{"name": "cut', None, "not JSON"),
        (None, {"step": 2**70}, "step is 118.* no count"),
        (None, {"examples": True}, "cannot be understood"),
        (None, {"reason": "x" * 200_000, "status": "failed"}, "reason is no name"),
        (None, "]" * 1000, "not JSON"),
    ],
)
def test_a_forged_entry_leaves_its_own_run_out(run: object, status: object, says: str, tmp_path: Path) -> None:
    log_run(tmp_path)
    forged(tmp_path, run, status)
    found = collect(str(tmp_path))
    assert [one.run for one in found.observations] == ["vit-500-s0"]
    (left_out,) = found.excluded
    assert left_out.directory == "bad/tb"
    assert re.search(says, left_out.reason)
    assert len(left_out.reason) < 1000
    # The reason ends up in tables, on a page and on a terminal.
    left_out.reason.encode()


@pytest.mark.parametrize(
    ("value", "step", "says"),
    [
        (64.0, 10, "val/top1 at step 10: 64 is outside its range"),
        (-3.0, 10, "is outside its range"),
        (float("nan"), 10, "diverged"),
        (float("-inf"), 10, "diverged"),
        (3e38, 10, "diverged: val/top1 is 3"),
        (0.5, 2**62, "last measured at step 4611686018427387904"),
        (0.5, -5, "last measured at step -5"),
    ],
)
def test_impossible_values_leave_their_own_run_out(value: float, step: int, says: str, tmp_path: Path) -> None:
    log_run(tmp_path)
    forged(tmp_path, value=value, step=step)
    found = collect(str(tmp_path))
    assert [one.run for one in found.observations] == ["vit-500-s0"]
    assert says in found.excluded[0].reason


@pytest.mark.parametrize("text", ['{"score": {"better": NaN}}', "[" * 5000, "{}}", '{"score": 7}', "\x00", '["score"]'])
def test_a_forged_entry_of_metrics_leaves_its_own_run_out(text: str, tmp_path: Path) -> None:
    for name, said in (("good", '{"score": {"better": "higher", "range": [0, 1]}}'), ("bad", text)):
        path = log_run(tmp_path, folder=name, subset=500 if name == "good" else 800)
        writer = EventWriter(path.parent)
        writer.text(METRICS, said)
        writer.scalars(10, {"score": 0.5})
        writer.close()
    found = collect(str(tmp_path), metric="score")
    assert [one.directory for one in found.observations] == ["good/tb"]
    assert found.excluded[0].reason.startswith("vit_dist/metrics cannot be understood")


def record(payload: bytes, length: int | None = None) -> bytes:
    header = struct.pack("<Q", len(payload) if length is None else length)
    return header + struct.pack("<I", masked_crc(header)) + payload + struct.pack("<I", masked_crc(payload))


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 2**60, 65 << 20])
def test_a_record_of_exabytes_takes_no_memory_and_ends_the_file(length: int, tmp_path: Path) -> None:
    log_run(tmp_path)
    path = log_run(tmp_path, subset=800, status=None)
    with path.open("ab") as file:
        file.write(record(b"", length) + bytes(1000))
    read = read_events(str(path))
    assert read.scalars["val/top1"].steps.tolist() == [5, 10]
    assert f"left out: a record of {length:,} bytes" in str(read.problem)
    found = collect(str(tmp_path))
    assert any(f"a record of {length:,} bytes" in remark for remark in found.remarks)


@pytest.mark.parametrize(
    "payload",
    [
        b"\x3a\x02\x0a\x00",  # a status of a restart that is an empty text, at the end of the record
        b"\x2a\x80\x80\x80\x80\x80\x80\x80\x80\x80\x7f",  # a summary longer than all numbers
        b"\x2a" + b"\xff" * 11,
        b"\x07",
        b"\x2a\x04\x0a\x02\x42\x00\x00",
        b"\x08" * 9,
    ],
)
def test_a_record_that_is_no_event_costs_itself_alone(payload: bytes, tmp_path: Path) -> None:
    path = log_run(tmp_path)
    clean = read_events(str(path)).scalars["val/top1"].values.tolist()
    path.write_bytes(path.read_bytes() + record(payload) * 6)
    assert read_events(str(path)).scalars["val/top1"].values.tolist() == clean


def test_giant_tags_and_texts_are_left_out_and_said(tmp_path: Path) -> None:
    path = log_run(tmp_path)
    writer = EventWriter(path.parent)
    writer.text("note", "x" * (5 << 20))
    writer.scalars(10, {"t" * 5000: 1.0})
    writer.close()
    read = read_events(str(writer.path))
    assert read.problem == "1 damaged record left out; left out: a text of 5,242,880 bytes of note"
    assert not read.scalars


def test_tags_and_values_of_one_file_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_dist.core.events.decode._MOST_TAGS", 3)
    monkeypatch.setattr("vit_dist.core.events.decode._MOST_VALUES", 10)
    writer = EventWriter(tmp_path)
    for step in range(50):
        writer.scalars(step, {f"tag{step % 5}": 1.0})
    writer.close()
    read = read_events(str(writer.path))
    assert len(read.scalars) <= 3
    assert sum(len(series.steps) for series in read.scalars.values()) <= 10
    assert "what comes after 10 values" in str(read.problem)
    monkeypatch.undo()
    monkeypatch.setattr("vit_dist.core.events.decode._MOST_TAGS", 3)
    read = read_events(str(writer.path))
    assert len(read.scalars) == 3
    assert read.problem == "left out: what is not of the first 3 tags"


NASTY = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "$\\frac{1}{",
    "$$$x^{y",
    "--><script>alert(2)</script><!--",
    "<style>*{display:none}</style>",
    "=HYPERLINK(1)",
    "@SUM(A1)",
    "-2+3",
    "../../up",
    "{{ 7*7 }}",
    "</svg><script>",
    "vit\x1b]0;title\x07\x00",
)


class Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Runs whose families, models and directories are hostile, with a left-out one; and their report."""
    root = tmp_path_factory.mktemp("nasty")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIT_DIST_CACHE", str(root / "cache"))
        for i, name in enumerate(NASTY):
            changes: dict[str, Any] = {
                "model": name,
                "dataset": name,
                "engine": name,
                "macs_method": name,
                "code_version": name,
            }
            log_run(root / "logs", name, 500 * (i % 2 + 1), folder=os.fsdecode(b"\x1b[31m%d\t=\xff" % i), **changes)
        log_run(root / "logs", "bit", 700, folder="left\x07out", status="failed")
        found = collect(str(root / "logs"))
        write_report(found, root / "report")
    return root, root / "report"


def test_names_from_logs_become_no_markup_and_no_formulas_of_figures(nasty: tuple[Path, Path]) -> None:
    page = (nasty[1] / "report.html").read_text(encoding="utf-8")
    parser = Elements()
    parser.feed(page)
    assert not {"script", "img", "iframe"} & {tag for tag, _ in parser.found}
    assert not [names for _, names in parser.found if any(name.startswith("on") for name in names)]
    assert [tag for tag, _ in parser.found].count("style") == 1
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    assert "&lt;script&gt;alert(1)" in page


def test_cells_from_logs_are_no_formulas_and_numbers_stay_numbers(nasty: tuple[Path, Path]) -> None:
    for path in nasty[1].glob("*.csv"):
        for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8"))):
            for cell in row:
                assert not re.search("[\x00-\x08\x0b-\x1f]", cell)
                assert not cell.startswith(("=", "@", "+", "\t", "\r"))
                assert not cell.startswith("-") or float(cell) < 0
    rows = list(csv.DictReader(io.StringIO((nasty[1] / "observations.csv").read_text(encoding="utf-8"))))
    assert {row["family"] for row in rows} >= {"'=HYPERLINK(1)", "'@SUM(A1)", "'-2+3", "<script>alert(1)</script>"}
    assert {float(row["value"]) for row in rows} == {0.5}


def test_names_from_logs_lead_to_no_path_outside(nasty: tuple[Path, Path], tmp_path: Path) -> None:
    made = export_tensorboard(collect(str(nasty[0] / "logs")), tmp_path / "tb")
    assert len(set(made)) == 2 * len(NASTY)
    for path in made:
        assert path.parent.parent == tmp_path / "tb"
        assert path.resolve().is_relative_to((tmp_path / "tb").resolve())
        assert path.name.isprintable()


def test_few_shot_tags_become_plain_file_names(tmp_path: Path) -> None:
    path = log_run(tmp_path)
    writer = EventWriter(path.parent)
    tags = ["fewshot/../../up_5shot", "fewshot/a\\b\x00c_5shot", f"fewshot/{'y' * 400}_5shot"]
    writer.scalars(10, dict.fromkeys(tags, 0.5))
    writer.close()
    names = [drawing.name for drawing in few_shot_figures(analyse(collect(str(tmp_path))))]
    assert len(set(names)) == 3
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]{1,120}", name) for name in names)


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: raw[:30],
        lambda raw: b"PK\x05\x06" + bytes(18),
        lambda raw: raw.replace(b"report.html", b"../evilhtml"),
        lambda raw: raw[:200] + b"\xff" * 100 + raw[300:],
        lambda raw: raw.replace(b"report.html", b"/tmp/x.html"),
    ],
)
def test_a_forged_cache_entry_of_a_report_is_made_again(
    damage: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import xxhash

    from vit_dist.core.events.cache import cache_directory

    log_run(tmp_path / "logs")
    monkeypatch.setattr(
        "vit_dist.scaling.report.write.render", lambda _: {"report.html": b"<p>page</p>" * 40, "report.json": b"{}"}
    )
    found = collect(str(tmp_path / "logs"))
    first = write_report(found, tmp_path / "a").html.read_bytes()
    (entry,) = (path for path in (cache_directory() / "reports").rglob("*") if path.is_file())
    content = damage(entry.read_bytes()[16:])
    entry.write_bytes(xxhash.xxh3_128_digest(content) + content)
    files = write_report(found, tmp_path / "b")
    assert files.html.read_bytes() == first
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "logs"]


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(.*)*x", "((a|aa)+)$", "(?:\\w+_?)*!", "(?P<family>(x{1,99}){1,99})", "a" * 501]
)
def test_patterns_that_may_take_for_ever_are_refused(pattern: str) -> None:
    with pytest.raises(ValidationError, match=r"may take for ever|501 characters"):
        LogMap(directory=pattern, metric="m", examples_per_step=1.0, constants={"family": "x", "subset": 1})


@pytest.mark.parametrize(
    "pattern", [r"timm/(?P<family>\w+)_(?P<subset>\d+k?)_s(?P<seed>\d+)", "(vit|bit)-.*", r"x(_\d+)?$"]
)
def test_patterns_as_people_write_them_are_taken(pattern: str) -> None:
    LogMap(directory=pattern, metric="m", examples_per_step=1.0, constants={"family": "x", "subset": 1})


def test_an_event_file_with_any_damage_is_read_or_told(tmp_path: Path) -> None:
    draw, raw = random.Random(0), log_run(tmp_path / "a").read_bytes()
    for _ in range(400):
        content = bytearray(raw)
        for _ in range(draw.randint(1, 4)):
            at, width = draw.randrange(len(content)), draw.randint(1, 30)
            kind = draw.randrange(4)
            if kind == 0:
                content[at] ^= 1 << draw.randrange(8)
            elif kind == 1 and len(content) > 100:
                del content[at : at + width]
            elif kind == 2:
                content[at:at] = draw.randbytes(width)
            else:
                other = draw.randrange(len(content))
                content[at : at + width] = content[other : other + width]
        # With checksums that hold, so that the damage reaches what lies within.
        records = [bytes(content[i : i + 90]) for i in range(0, len(content), 90)]
        for form in (bytes(content), b"".join(map(record, records))):
            path = tmp_path / "events.out.tfevents.1.x"
            path.write_bytes(form)
            read = read_events(str(path))
            assert read.problem or read.scalars


def test_more_runs_than_a_report_takes_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        log_run(tmp_path, seed=seed)
    monkeypatch.setattr("vit_dist.scaling.collect._MOST_RUNS", 3)
    assert len(collect(str(tmp_path)).observations) == 3
    log_run(tmp_path, seed=3)
    with pytest.raises(DataError, match="4 directories with event files; a report takes 3 runs: give a directory"):
        collect(str(tmp_path))


def test_what_has_more_values_than_a_report_takes_is_left_out_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(3):
        log_run(tmp_path, seed=seed)
    # Two tags of two values each a run.
    monkeypatch.setattr("vit_dist.scaling.collect._MOST_POINTS", 9)
    found = collect(str(tmp_path))
    assert [one.seed for one in found.observations] == [0, 1]
    assert found.remarks == ("vit-500-s2/tb: left out with all after it: a report takes 9 values",)
