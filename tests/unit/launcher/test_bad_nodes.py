"""The list of nodes to stay away from."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from launcher import bad_nodes
from vit_dist.core.errors import RunError
from vit_dist.core.run.names import BAD_NODES


def test_a_node_is_on_the_list_until_its_time_is_over(tmp_path: Path) -> None:
    bad_nodes.add(tmp_path, "gpu-3", "GEMM gave a wrong result", keep_s=100, now=1000)
    bad_nodes.add(tmp_path, "gpu-1", "slow", keep_s=10, now=1000)
    assert list(bad_nodes.active(tmp_path, 1005)) == ["gpu-1", "gpu-3"]
    assert list(bad_nodes.active(tmp_path, 1010)) == ["gpu-3"]
    assert bad_nodes.active(tmp_path, 1100) == {}


def test_the_last_word_about_a_node_counts(tmp_path: Path) -> None:
    bad_nodes.add(tmp_path, "a", "first", keep_s=100, now=0)
    bad_nodes.add(tmp_path, "a", "second", keep_s=50, now=10)
    assert bad_nodes.active(tmp_path, 20)["a"].reason == "second"
    bad_nodes.remove(tmp_path, "a", now=21)
    assert bad_nodes.active(tmp_path, 22) == {}


def test_no_list_is_an_empty_list_and_the_directory_is_made(tmp_path: Path) -> None:
    assert bad_nodes.active(tmp_path / "none" / "there") == {}
    bad_nodes.add(tmp_path / "none" / "there", "a", "reason")
    assert list(bad_nodes.active(tmp_path / "none" / "there")) == ["a"]


def test_a_cut_line_and_strange_lines_cost_only_themselves(tmp_path: Path) -> None:
    bad_nodes.add(tmp_path, "a", "x", now=0)
    with (tmp_path / BAD_NODES).open("ab") as file:
        file.write(b'[1]\n{"node": "b"}\n{"node": "c", "reason": "", "until": NaN, "at": 0}\n\xff\xfe\n{"node": "cut')
    bad_nodes.add(tmp_path, "d", "two\nlines", now=0)
    assert {k: v.reason for k, v in bad_nodes.active(tmp_path, 1).items()} == {"a": "x", "d": "two lines"}


def test_many_writers_lose_no_line(tmp_path: Path) -> None:
    def write(first: int) -> None:
        for i in range(first, first + 25):
            bad_nodes.add(tmp_path, f"n{i}", "x" * 300)

    writers = [threading.Thread(target=write, args=(25 * w,)) for w in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(bad_nodes.active(tmp_path)) == 100
    lines = (tmp_path / BAD_NODES).read_text().splitlines()
    assert sum(bool(json.loads(line)) for line in lines if line) == 100


def test_a_list_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="list of bad nodes cannot be written"):
        bad_nodes.add(tmp_path / "file", "a", "x")
