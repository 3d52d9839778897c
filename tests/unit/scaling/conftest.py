"""What the tests of scaling share: a cache of their own."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_DIST_CACHE", str(tmp_path_factory.mktemp("cache")))
