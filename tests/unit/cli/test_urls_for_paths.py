"""A URL where something is kept on this machine is refused; no folder called 's3:' comes of it."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from vit_dist.core.errors import VitDistError


@pytest.mark.parametrize(
    "url", ["s3://bucket/x", "S3://bucket/x", "gs://bucket/x", "https://host/x", "s3:///x", "s3:/x"]
)
@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("train", ["demo", "--run-dir"]),
        ("run", ["demo", "--run-dir"]),
        ("evaluate", ["--list"]),
        ("compare", ["--csv"]),
        ("data", ["pack", "src", "out", "--work-dir"]),
        ("data", ["pack", "src", "out", "--classes"]),
        ("data", ["index", "x.tar", "--out", "m.json", "--classes"]),
        ("submit", ["demo", "--cluster", "generic", "--dry-run", "--run-dir"]),
    ],
)
def test_a_url_is_no_place_on_this_machine(
    verb: str, words: list[str], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main: Callable[[list[str]], int] = import_module(f"vit_dist.cli.{verb}").main
    with pytest.raises(VitDistError, match=r"not on a file system of this machine|names no bucket"):
        main([*words, url])
    assert list(tmp_path.iterdir()) == []
