"""`vit-dist data cache`: what it shows, what it clears, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_dist.cli import data as cli
from vit_dist.core.errors import ConfigError, DataError, MissingError
from vit_dist.core.locks import held
from vit_dist.core.node_cache import DIR_VARIABLE
from vit_dist.data import cache_ledger
from vit_dist.data.cache import ShardCache
from vit_dist.data.cache_files import CELL, CachedShard, folder_of


def fill(place: Path) -> ShardCache:
    cache = ShardCache(place, 64 << 20, "test")
    for number in range(3):
        shard = CachedShard.of(f"s3://b/{number}", 300 * CELL, "0" * 32)
        cache.read(shard, 255 * CELL, 257 * CELL, lambda start, end: b"x" * (end - start))
    return cache


def test_it_shows_what_there_is_and_clears_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = fill(tmp_path)
    assert cli.main(["cache", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{folder_of(tmp_path)}: 4" in text
    assert "KiB of 3 shards, in 6 files\nlast used between 0.0s and " in text
    monkeypatch.setenv(DIR_VARIABLE, str(tmp_path))
    assert cli.main(["cache", "--clear"]) == 0
    assert "KiB of 3 shards" in capsys.readouterr().out
    assert not list(folder_of(tmp_path).glob("?/*"))
    # Whoever uses it fills it again.
    shard = CachedShard.of("s3://b/1", 300 * CELL, "0" * 32)
    before = cache.counts()
    for _ in range(2):
        assert cache.read(shard, 0, CELL, lambda start, end: b"x" * (end - start)) == b"x" * CELL
    assert (cache.counts() - before).hits == 0.5
    assert cli.main(["cache"]) == 0
    assert "of 1 shard, in 1 file\n" in capsys.readouterr().out


def test_it_waits_for_writers_and_gives_up_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path)
    monkeypatch.setattr(cache_ledger, "_WAIT_AT_START_S", 0.05)
    with held(folder_of(tmp_path) / "ledger.lock"), pytest.raises(DataError, match="nothing was removed, try again"):
        cli.main(["cache", str(tmp_path), "--clear"])
    assert len(list(folder_of(tmp_path).glob("?/*"))) == 6


@pytest.mark.parametrize("clear", [[], ["--clear"]])
def test_what_is_no_cache_is_left_alone(tmp_path: Path, clear: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DIR_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=f"give the directory of the cache; {DIR_VARIABLE} names none here"):
        cli.main(["cache", *clear])
    with pytest.raises(MissingError, match="has no cache of shards of this user"):
        cli.main(["cache", str(tmp_path), *clear])
    other = folder_of(tmp_path) / "0"
    other.mkdir(parents=True)
    (other / "thesis").write_text("x")
    with pytest.raises(ConfigError, match="is no cache of shards of this version"):
        cli.main(["cache", str(tmp_path), *clear])
    assert (other / "thesis").exists()
