"""Lines beside a run: a file that cannot be written costs nothing but its lines, and those only beyond a bound."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vit_dist.core import lines as module
from vit_dist.core.lines import Lines
from vit_dist.core.small_files import read_records


def read(path: Path) -> list[int]:
    return [line["n"] for line in read_records(path)]


def _folder_is_a_file(path: Path) -> Callable[[], object]:
    path.parent.write_text("")
    return path.parent.unlink


def _a_folder(path: Path) -> Callable[[], object]:
    path.mkdir(parents=True)
    return path.rmdir


def _a_link(path: Path) -> Callable[[], object]:
    path.parent.mkdir()
    path.symlink_to(path.parent / "elsewhere")
    return path.unlink


@pytest.mark.parametrize("spoil", [_folder_is_a_file, _a_folder, _a_link])
def test_lines_wait_until_they_can_be_written(
    tmp_path: Path, spoil: Callable[[Path], Callable[[], object]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "order.jsonl"
    mend = spoil(path)
    lines = Lines(path)
    lines.add({"n": 1})
    lines.add({"n": 2}, {"n": 3})
    told = capsys.readouterr().err
    assert told.count(f"{path}: cannot be written: ") == 1
    assert "Training goes on" in told
    mend()
    lines.add({"n": 4})
    assert read(path) == [1, 2, 3, 4]
    assert "is written again" in capsys.readouterr().err
    lines.add({"n": 5})
    assert read(path) == [1, 2, 3, 4, 5]
    assert capsys.readouterr().err == ""


def test_of_too_many_the_newest_are_kept_and_the_others_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 50)
    path = tmp_path / "lines.jsonl"
    path.mkdir()
    lines = Lines(path)
    for n in range(100, 120):
        lines.add({"n": n})
    path.rmdir()
    lines.add({"n": 120})
    kept = read(path)
    assert kept == list(range(121 - len(kept), 121))
    assert 2 < len(kept) < 8
    assert f"{21 - len(kept)} lines are lost" in capsys.readouterr().err
