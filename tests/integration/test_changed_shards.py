"""Shards that are written again under a manifest, before a run, between its attempts, or while it reads them."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.laws.test_decode_processes import told
from tests.s3_faults import faulty
from tests.shards import write_set
from tests.streams import recipe
from tests.unit.data.test_ranges import Store
from vit_dist.core.errors import DataError, MissingError
from vit_dist.core.files import file_system, read_bytes, write_bytes
from vit_dist.core.world import World
from vit_dist.data.ranges import RangeReader, file_size
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream

pytestmark = pytest.mark.s3

PATHS = ("direct", "fsspec", "cache", "processes", "web", "disk")
SHAPE = ("data.lanes=2", "data.window=5", "data.prefetch_batches=1")


class Place:
    """Where a set lies, and how it is read.

    Attributes:
        url: of the manifest.
        keys: of the recipe.
        workers: processes that decode.
        write: writes a file of the set again.
    """

    def __init__(self, url: str, write: Callable[[str, bytes], None], keys: tuple[str, ...], workers: int) -> None:
        self.url, self.write, self.keys, self.workers = url, write, keys, workers

    def batches(self, steps: int, position: int = 0) -> list[tuple[object, ...]]:
        return told(recipe(self.url, *SHAPE, *self.keys), self.workers, position=position, steps=steps)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    write_set(folder, num_samples=60, samples_per_shard=20, num_classes=4)
    return folder


@pytest.fixture(params=PATHS)
def place(
    request: pytest.FixtureRequest, s3: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    how = request.param
    monkeypatch.setattr("vit_dist.core.versions._AGAIN_S", 0.0)
    if how in {"disk", "web"}:
        folder = tmp_path / "set"
        shutil.copytree(shards, folder)
        if how == "disk":
            yield Place(str(folder / "manifest.json"), lambda name, content: _put(folder / name, content), (), 0)
            return
        with Store({path.name: path.read_bytes() for path in folder.iterdir()}) as server:
            thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            yield Place(f"{server.url}/manifest.json", server.files.__setitem__, (), 0)
            server.shutdown()
            thread.join()
        return
    there = f"{s3}/changed-{request.node.name}"
    for path in shards.iterdir():
        write_bytes(f"{there}/{path.name}", path.read_bytes())
    if how == "fsspec":
        monkeypatch.setenv("VIT_DIST_S3_CLIENT", "fsspec")
    keys = (f"data.cache.dir={tmp_path}", "data.cache.size=64 MiB") if how == "cache" else ()
    write = lambda name, content: write_bytes(f"{there}/{name}", content)  # noqa: E731
    yield Place(f"{there}/manifest.json", write, keys, int(how == "processes"))


def _put(path: Path, content: bytes) -> None:
    # In place, as a copy does: what has it open sees the new bytes.
    path.write_bytes(content)


def _longer(shards: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() + bytes(10240) for path in shards.glob("*.tar")}


def test_a_set_that_has_changed_since_it_was_indexed_ends_the_next_attempt(place: Place, shards: Path) -> None:
    for name, content in _longer(shards).items():
        place.write(name, content)
    with pytest.raises(DataError, match=r"shard-00000\d\.tar: has [\d,]+ bytes, and its manifest says [\d,]+: it was"):
        place.batches(1)


def test_a_set_that_changes_between_two_epochs_ends_the_run(place: Place, shards: Path) -> None:
    config = recipe(place.url, *SHAPE, *place.keys)
    config = config.model_copy(update={"data": config.data.model_copy(update={"decode_workers": place.workers})})
    with TrainStream(open_training_set(config), config, World(), 0, at_once=bool(place.workers)) as stream:
        steps = iter(stream)
        found = [next(steps)]
        for name, content in _longer(shards).items():
            place.write(name, content)
        if place.keys:
            # What the cache of a node has of a shard is what was indexed, and stays right.
            found += itertools.islice(steps, 14)
            expected = told(recipe(str(shards / "manifest.json"), *SHAPE), 0, steps=15)
            assert [batch.images.numpy().tobytes() for batch, _ in found] == [bits[0][2] for bits, *_ in expected]
            return
        with pytest.raises(DataError, match=r"was written again while it was read|and its manifest says"):
            found += itertools.islice(steps, 14)


@pytest.mark.parametrize("client", ["direct", "fsspec"])
def test_another_object_of_the_same_length_is_told_by_its_tag(
    s3: str, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_DIST_S3_CLIENT", client)
    monkeypatch.setattr("vit_dist.core.versions._AGAIN_S", 0.0)
    url = f"{s3}/changed-tag-{client}/a.tar"
    write_bytes(url, b"one!" * 1000)
    reader = RangeReader(tries=2, first_wait_s=0.01)
    reader.expect(url, 4000)
    assert reader.read(url, 0, 4) == b"one!"
    write_bytes(url, b"two!" * 1000)
    with pytest.raises(DataError, match=r"a\.tar: was written again while it was read: its ETag was .*, and is "):
        reader.read(url, 4, 8)


def test_a_manifest_whose_shard_is_another_one_of_the_same_length(place: Place, shards: Path) -> None:
    # Of two shards of one length each takes the place of the other: what stands in their headers tells.
    a, b = (shards / f"shard-00000{number}.tar" for number in (0, 1))
    assert a.stat().st_size == b.stat().st_size
    place.write(a.name, b.read_bytes())
    place.write(b.name, a.read_bytes())
    with pytest.raises(
        DataError, match=r"shard-00000[01]\.tar: the index says sample 'k\d+' begins at byte \d+, the tar"
    ):
        place.batches(5)


def test_a_bucket_with_versions_gives_the_newest_and_says_what_was_deleted(
    s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    system, _ = file_system(s3)
    if not system.exists("vit-dist-test-versions"):
        system.mkdir("vit-dist-test-versions")
    on = {"Status": "Enabled"}
    system._system.call_s3("put_bucket_versioning", Bucket="vit-dist-test-versions", VersioningConfiguration=on)
    url = f"{s3}-versions/a.tar"
    write_bytes(url, b"one!" * 1000)
    reader = RangeReader(tries=2, first_wait_s=0.01)
    assert reader.read(url, 0, 4) == b"one!"
    old = system.info("vit-dist-test-versions/a.tar")["VersionId"]
    write_bytes(url, b"two!" * 1000)
    with pytest.raises(DataError, match="was written again while it was read"):
        reader.read(url, 4, 8)
    for ask in (lambda of: reader.read(of, 0, 4), read_bytes, file_size):
        with pytest.raises(DataError, match=r"names one version of an object .*and versions are not read: copy it"):
            ask(f"{url}?versionId={old}")
    system.rm_file("vit-dist-test-versions/a.tar")
    with pytest.raises(MissingError, match=r"a\.tar: no such file"):
        reader.read(url, 0, 4)
    with faulty(os.environ["AWS_ENDPOINT_URL_S3"]) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        server.troubles = ["deleted"]
        with pytest.raises(
            MissingError, match=r"a\.tar: was deleted: its newest version is a delete marker; remove it"
        ):
            reader.read(url, 0, 4)
    monkeypatch.undo()
    marker = next(
        one["VersionId"]
        for one in system._system.call_s3("list_object_versions", Bucket="vit-dist-test-versions")["DeleteMarkers"]
    )
    system._system.call_s3("delete_object", Bucket="vit-dist-test-versions", Key="a.tar", VersionId=marker)
    assert RangeReader().read(url, 0, 4) == b"two!"
