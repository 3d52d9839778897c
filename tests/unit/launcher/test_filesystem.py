"""The mount that a path lies on, whatever its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.filesystem import file_system_kind, mount_name


@pytest.mark.parametrize(
    ("escaped", "name"),
    [
        (b"/data", "/data"),
        (rb"/my\040data", "/my data"),
        (rb"/a\134040b", r"/a\040b"),
        (rb"/tab\011here", "/tab\there"),
        ("/Größe".encode(), "/Größe"),
        ("/Größe\\040zwei".encode(), "/Größe zwei"),
        (b"/\xff", "/\udcff"),
    ],
)
def test_names_of_mounts_are_read_as_the_kernel_writes_them(escaped: bytes, name: str) -> None:
    assert mount_name(escaped) == name


def test_a_path_that_is_not_there_yet_lies_where_it_would(tmp_path: Path) -> None:
    assert file_system_kind(tmp_path / "a [1]" / "b") == file_system_kind(tmp_path) != ""
    assert file_system_kind(Path("/proc/self")) == "proc"
