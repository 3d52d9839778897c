"""Names with signs of patterns, and other spellings, on a real S3 server."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vit_dist.cli import data as cli
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import exists, file_system, read_bytes, write_bytes
from vit_dist.core.run.checkpoints import FORMAT, rank_file
from vit_dist.data.manifest import read_manifest
from vit_dist.data.names import named
from vit_dist.data.tars import find_tars
from vit_dist.train.checkpoint.format import checksum
from vit_dist.train.checkpoint.remote import Uploader, fetch, remote_steps, upload
from vit_dist.train.checkpoint.store import Retention

pytestmark = pytest.mark.s3

PART = rank_file(0)


@pytest.fixture
def folder(s3: str) -> str:
    return f"{s3}/{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("src") / "photos [1]"
    for label, name in enumerate(("ant*", "bee")):
        (root / name).mkdir(parents=True)
        for i in range(4):
            pixels = np.random.default_rng(100 * label + i).integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize("name", ["set[1]", "all*", "what?x", "{a,b}", "a b+c%20d", "x[!y]"])
def test_a_destination_is_taken_literally(folder: str, source: Path, name: str) -> None:
    # What the name would fit as a pattern is somebody else's.
    others = [f"{folder}/{other}/.pack/keep" for other in ("set1", "allx", "whatax", "a", "xz")]
    for other in others:
        write_bytes(other, b"x")
    dest = f"{folder}/{name}"
    assert cli.main(["pack", str(source), dest, "--workers", "1", "--samples-per-shard", "4"]) == 0
    assert read_manifest(dest).num_samples == 8
    assert cli.main(["pack", str(source), f"{dest}/", "--workers", "1", "--force", "--seed", "1"]) == 0
    assert cli.main(["verify", dest]) == 0
    system, path = file_system(dest)
    system.invalidate_cache()
    assert not [p for p in system.find(path) if "/.pack/" in p]
    assert all(exists(other) for other in others)
    assert cli.main(["index", f"{dest}/shard-000000.tar", "--out", f"{dest}/again.json", "--workers", "1"]) == 0
    assert read_manifest(f"{dest}/again.json").shards[0].checksum == read_manifest(dest).shards[0].checksum


@pytest.mark.parametrize("name", ["part[1].tar", "a*.tar", "what?/0.tar", "{0..3}.tar", "{x,y}/[z].tar", "un{bal.tar"])
def test_a_key_that_exists_is_meant(folder: str, name: str) -> None:
    for key in (name, "part1.tar", "ab.tar", "whatx/0.tar", "0.tar", "x/z.tar"):
        write_bytes(f"{folder}/{key}", b"")
    assert named(f"{folder}/{name}") == [f"{folder}/{name}"]


def test_what_does_not_exist_is_a_pattern_behind_literal_folders(folder: str) -> None:
    for key in ("s[1]/a.tar", "s[1]/b.tar", "s1/no.tar", "t/a.tar"):
        write_bytes(f"{folder}/{key}", b"")
    assert named(f"{folder}/s[1]/*.tar") == [f"{folder}/s[1]/a.tar", f"{folder}/s[1]/b.tar"]
    assert named(f"{folder}/?/a.tar") == [f"{folder}/t/a.tar"]
    assert named(f"{folder}/{{t/a,s[1]/b}}.tar") == [f"{folder}/t/a.tar", f"{folder}/s[1]/b.tar"]
    with pytest.raises(DataError, match="no file fits this pattern"):
        named(f"{folder}/s[2]/*.tar")


@pytest.mark.parametrize(("one", "other"), [("a.tar", "/a.tar"), ("x/a.tar", "x//a.tar")])
def test_one_object_under_two_spellings_is_refused(folder: str, one: str, other: str) -> None:
    write_bytes(f"{folder}/{one}", b"x")
    if not exists(f"{folder}/{other}"):
        pytest.skip("this store keeps them apart")
    with pytest.raises(DataError, match="named twice"):
        find_tars([f"{folder}/{one}", f"{folder}/{other}"])
    with pytest.raises(DataError, match="named twice"):
        find_tars([f"{folder}/{one}", f"S3{folder[2:]}/{one}"])


def test_a_destination_below_its_source_is_refused(folder: str) -> None:
    for dest in (f"{folder}/photos/out", f"S3{folder[2:]}/photos/", f"{folder}/photos"):
        with pytest.raises(ConfigError, match="lies inside"):
            cli.main(["pack", f"{folder}/photos/", dest, "--workers", "1"])


def test_splits_in_a_store_are_chosen(folder: str, source: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for path in (source / "bee").iterdir():
            write_bytes(f"{folder}/p/{split}/bee/{path.name}", path.read_bytes())
    with pytest.raises(ConfigError, match="several splits: train, val"):
        cli.main(["pack", f"{folder}/p", str(tmp_path / "out"), "--workers", "1"])
    assert cli.main(["pack", f"{folder}/p", str(tmp_path / "out"), "--workers", "1", "--split-name", "val"]) == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["name"] == "p-validation"


def test_copies_of_checkpoints_are_removed_literally(folder: str, tmp_path: Path) -> None:
    remote, other = f"{folder}/run[1]", f"{folder}/run1"
    for step in (1, 2):
        checkpoint = tmp_path / f"step-{step:010d}"
        checkpoint.mkdir()
        (checkpoint / PART).write_bytes(b"x" * step)
        marker = {"format": FORMAT, "layout": {}, "recipe": {}, "state": {"step": step, "position": step}}
        marker["files"] = {PART: {"bytes": step, "xxh128": checksum(checkpoint / PART)}}
        (checkpoint / "COMMITTED.json").write_text(json.dumps(marker))
    upload(tmp_path / "step-0000000001", other)
    write_bytes(f"{folder}/run1/step-0000000001/beside", b"x")
    uploader = Uploader(tmp_path / "none", remote, Retention(keep=1))
    upload(tmp_path / "step-0000000001", remote)
    uploader.submit(tmp_path / "step-0000000002")
    uploader.finish(30)
    assert remote_steps(remote) == ["step-0000000002"]
    assert remote_steps(other) == ["step-0000000001"]
    assert (fetch(remote, "step-0000000002", tmp_path / "back") / PART).read_bytes() == b"xx"
    assert read_bytes(f"{other}/step-0000000001/{PART}") == b"x"
