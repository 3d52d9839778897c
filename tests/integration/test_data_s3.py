"""Packing to, indexing, verifying and ordering on a real S3 server."""

from __future__ import annotations

import io
import uuid
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_dist.cli import data as cli
from vit_dist.core.errors import DataError
from vit_dist.core.files import exists, file_system, read_bytes, write_bytes
from vit_dist.data.manifest import read_manifest
from vit_dist.data.pack.choose import open_source
from vit_dist.data.pack.run import PackOptions, pack

pytestmark = pytest.mark.s3


@pytest.fixture
def folder(s3: str) -> str:
    return f"{s3}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("src")
    for label, name in enumerate(("ant", "bee")):
        (root / name).mkdir()
        for i in range(20):
            pixels = np.random.default_rng(100 * label + i).integers(0, 256, (40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i:02d}.jpg")
    return root


def test_what_is_packed_to_s3_equals_what_is_packed_to_a_disk(folder: str, source: Path, tmp_path: Path) -> None:
    assert cli.main(["pack", str(source), f"{folder}/set", "--samples-per-shard", "15", "--name", "x"]) == 0
    assert cli.main(["pack", str(source), str(tmp_path / "set"), "--samples-per-shard", "15", "--name", "x"]) == 0
    names = sorted(p.name for p in (tmp_path / "set").iterdir())
    system, path = file_system(f"{folder}/set")
    system.invalidate_cache()
    # Not ls: this server goes on listing a folder after its last file has gone.
    assert sorted(e.removeprefix(f"{path}/") for e in system.find(path)) == names
    for name in names:
        assert read_bytes(f"{folder}/set/{name}") == (tmp_path / "set" / name).read_bytes()
    assert cli.main(["verify", f"{folder}/set"]) == 0


def test_a_packing_on_s3_that_broke_off_goes_on(
    folder: str, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vit_dist.data.pack import run as module

    packed = []
    pack_shard = module.pack_shard

    def dying(*args: object) -> object:
        if len(packed) == 2:
            raise KeyboardInterrupt
        packed.append(args[1])
        return pack_shard(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "pack_shard", dying)
    options = PackOptions(samples_per_shard=10)

    def run() -> None:
        pack(lambda s: open_source(str(source), s), f"{folder}/set", options, max_bad=Fraction(0), quiet=True)

    with pytest.raises(KeyboardInterrupt):
        run()
    assert not exists(f"{folder}/set/manifest.json")
    monkeypatch.setattr(module, "pack_shard", lambda *args: (packed.append(args[1]), pack_shard(*args))[1])
    run()
    assert len(packed) == 4
    assert read_manifest(f"{folder}/set").num_samples == 40
    system, path = file_system(f"{folder}/set")
    system.invalidate_cache()
    assert not [e for e in system.find(path) if "/.pack/" in e]


def test_a_folder_of_images_on_s3_is_packed(folder: str, source: Path, tmp_path: Path) -> None:
    for path in source.rglob("*.jpg"):
        write_bytes(f"{folder}/src/{path.relative_to(source)}", path.read_bytes())
    file_system(folder)[0].invalidate_cache()
    assert cli.main(["pack", f"{folder}/src", str(tmp_path / "a"), "--name", "x"]) == 0
    assert cli.main(["pack", str(source), str(tmp_path / "b"), "--name", "x"]) == 0
    for name in ("manifest.json", "shard-000000.tar", "shard-000000.idx.npz"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_tars_on_s3_are_indexed_and_ordered(
    folder: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["pack", str(source), f"{folder}/set", "--samples-per-shard", "15"])
    out = f"{folder}/other/index.json"
    assert cli.main(["index", f"{folder}/set/shard-{{000000..000002}}.tar", "--out", out, "--shuffled"]) == 0
    packed, indexed = read_manifest(f"{folder}/set"), read_manifest(out)
    assert [s.checksum for s in packed.shards] == [s.checksum for s in indexed.shards]
    assert [s.index_checksum for s in packed.shards] == [s.index_checksum for s in indexed.shards]
    capsys.readouterr()
    assert cli.main(["index", f"{folder}/set/", "--out", out, "--shuffled"]) == 0
    assert "3 of 3 tars are indexed already" in capsys.readouterr().err
    assert cli.main(["order", out, "--count", "40", "--digest"]) == 0
    digest = capsys.readouterr().out
    assert cli.main(["order", f"{folder}/set", "--count", "40", "--digest"]) == 0
    assert capsys.readouterr().out == digest
    assert cli.main(["info", out, "--grid", f"{folder}/grid.png"]) == 0
    with Image.open(io.BytesIO(read_bytes(f"{folder}/grid.png"))) as grid:
        assert grid.format == "PNG"


def test_a_truncated_tar_and_a_missing_folder_on_s3_are_named(folder: str, source: Path, tmp_path: Path) -> None:
    cli.main(["pack", str(source), f"{folder}/set", "--samples-per-shard", "40"])
    write_bytes(f"{folder}/set/shard-000000.tar", read_bytes(f"{folder}/set/shard-000000.tar")[:30_000])
    with pytest.raises(DataError, match="1 of 1 shard is not what the manifest says"):
        cli.main(["verify", f"{folder}/set"])
    with pytest.raises(DataError, match=r"shard-000000\.tar: at byte"):
        cli.main(["index", f"{folder}/set/shard-000000.tar", "--out", str(tmp_path / "m.json")])
    with pytest.raises(DataError, match="nothing-here: no such file"):
        cli.main(["pack", f"{folder}/nothing-here", str(tmp_path / "out")])


def test_bench_measures_a_set_in_a_store(folder: str, source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pack", str(source), f"{folder}/set", "--samples-per-shard", "15", "--name", "x"]) == 0
    capsys.readouterr()
    assert cli.main(["bench", f"{folder}/set", "--seconds", "1", "data.image_size=32"]) == 0
    shown = capsys.readouterr().out
    assert f"x ({folder}/set): 40 images in 3 shards" in " ".join(shown.split())
    assert "page cache" not in shown, "there is none of a store"
    assert "verdict    " in shown
