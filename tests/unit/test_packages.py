"""What a wheel holds: no folder of files that it brings is forgotten, which setuptools would warn of at length."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
import setuptools

from tests.places import ROOT


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Those that setup.py names."""
    given: dict[str, Any] = {}
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(setuptools, "setup", lambda **keywords: given.update(keywords))
    runpy.run_path(str(ROOT / "setup.py"))
    found: list[str] = given["packages"]
    return found


@pytest.mark.parametrize("room", ["configs", "slurm"])
def test_every_folder_of_data_is_named(room: str, packages: list[str]) -> None:
    folders = {path.parent for path in (ROOT / room).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert len(folders) > 1
    for folder in folders:
        assert ".".join(["vit_dist", f"_{room}", *folder.relative_to(ROOT / room).parts]) in packages


def test_every_package_with_code_is_named(packages: list[str]) -> None:
    rooms = {path.parent for top in ("vit_dist", "launcher") for path in (ROOT / top).rglob("__init__.py")}
    assert {".".join(room.relative_to(ROOT).parts) for room in rooms} <= set(packages)
    assert not [name for name in packages if name.startswith(("tests", "benchmarks"))]
