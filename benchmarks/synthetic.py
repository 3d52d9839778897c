"""A dataset of any size that nobody stores: WebDataset tars, indexes and manifest computed byte by byte on request.

Every sample is one of a few real images and a label, both functions of (shard, sample). So any range of any tar is
computed on its own, in time that does not depend on where it lies. The checksums of the indexes are real; those of the
tars, which nothing but `vit-dist data verify` reads, are not.
"""

from __future__ import annotations

import functools
import io
import json
import multiprocessing
import tarfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vit_dist.core.seeding import hash64
from vit_dist.data.index import ShardIndex, encode_index
from vit_dist.data.manifest import Shard, ShardManifest, checksum, encode_manifest

_TAG = 0x53594E5448  # "SYNTH"
_LABEL_BYTES = 1024  # a header and a block
_RECORD = 10240
_KEY = 12  # digits: shard, sample


def pool_of_photos(count: int) -> list[tuple[str, bytes]]:
    """JPEGs of 500 x 375 pixels and about 100 kB, as photographs have: shapes of all sizes under some noise."""
    rng, files = np.random.default_rng(2), []
    for _ in range(count):
        pixels = np.zeros((375, 500, 3))
        for side in (4, 12, 40, 120):
            coarse = Image.fromarray(rng.integers(0, 256, (side * 3 // 4, side, 3), dtype=np.uint8))
            pixels += np.asarray(coarse.resize((500, 375)), float) / 4
        pixels += rng.normal(0, 18, pixels.shape)
        buffer = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=88)
        files.append(("jpg", buffer.getvalue()))
    return files


def pool_of_images(count: int, size: int) -> list[tuple[str, bytes]]:
    """Small JPEG and PNG files: smooth noise, all different."""
    rng, files = np.random.default_rng(1), []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image, buffer, form = coarse.resize((size, size + i % 7)), io.BytesIO(), "PNG" if i % 4 == 0 else "JPEG"
        image.save(buffer, form)
        files.append(({"PNG": "png", "JPEG": "jpg"}[form], buffer.getvalue()))
    return files


@dataclass(frozen=True)
class SyntheticSet:
    """`num_shards` tars of `samples_per_shard` samples."""

    num_shards: int
    samples_per_shard: int
    num_classes: int = 1000
    image_size: int = 48
    photos: bool = False

    @functools.cached_property
    def pool(self) -> list[tuple[str, bytes]]:
        return pool_of_photos(64) if self.photos else pool_of_images(64, self.image_size)

    @functools.cached_property
    def _lengths(self) -> np.ndarray:
        return np.array([len(content) for _, content in self.pool])

    def picks(self, shard: int) -> np.ndarray:
        """Which image of the pool each sample is. int64 [n]."""
        return _picks(self, shard)

    def labels(self, shard: int) -> np.ndarray:
        """int64 [n]."""
        samples = np.arange(self.samples_per_shard, dtype=np.uint64)
        return (hash64(_TAG + 1, shard, samples) % np.uint64(self.num_classes)).astype(np.int64)

    def offsets(self, picks: np.ndarray) -> np.ndarray:
        """First byte of each sample, and of what follows the last. int64 [n + 1]."""
        sizes = 512 + -(-self._lengths[picks] // 512) * 512 + _LABEL_BYTES
        return np.concatenate(([0], np.cumsum(sizes)))

    def num_bytes(self, shard: int) -> int:
        return -(-(int(self.offsets(self.picks(shard))[-1]) + 1024) // _RECORD) * _RECORD

    def sample(self, shard: int, sample: int, pick: int, label: int) -> bytes:
        """The members of one sample, headers and padding included."""
        extension, content = self.pool[pick]
        return b"".join(
            _member(f"{shard:06d}{sample:06d}.{name}", data)
            for name, data in ((extension, content), ("cls", str(label).encode()))
        )

    def tar(self, shard: int, start: int, end: int) -> bytes:
        """Bytes [start, end) of a tar."""
        picks, labels = self.picks(shard), self.labels(shard)
        offsets = self.offsets(picks)
        end = min(end, self.num_bytes(shard))
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        last = int(np.searchsorted(offsets, end, side="left"))
        samples = range(first, min(last, self.samples_per_shard))
        content = b"".join(self.sample(shard, i, int(picks[i]), int(labels[i])) for i in samples)
        begin = int(offsets[first])
        return (content + bytes(max(0, end - begin - len(content))))[start - begin : end - begin]

    def index(self, shard: int) -> bytes:
        """The bytes of a shard's index."""
        n, picks = self.samples_per_shard, self.picks(shard)
        offsets = self.offsets(picks)
        keys = np.empty((n, _KEY), np.uint8)
        keys[:, :6], keys[:, 6:] = np.frombuffer(f"{shard:06d}".encode(), np.uint8), _sample_digits(n)
        ones = np.arange(1, n + 1)
        index = ShardIndex(
            offsets=offsets,
            image_offsets=offsets[:-1] + 512,
            image_bytes=self._lengths[picks],
            label_ends=ones,
            labels=self.labels(shard),
            label_weights=np.ones(n, np.float32),
            key_ends=ones * _KEY,
            key_bytes=keys.reshape(-1),
        )
        return encode_index(index)

    def entry(self, shard: int) -> Shard:
        """The manifest's line of a shard."""
        name, fake = f"train-{shard:06d}", f"{hash64(_TAG + 2, shard):032x}"
        index = checksum(self.index(shard))
        return Shard(f"{name}.tar", self.samples_per_shard, self.num_bytes(shard), fake, f"{name}.idx.npz", index)

    def manifest(self, processes: int = 1) -> bytes:
        """The bytes of the manifest; computes every index once."""
        if processes == 1:
            shards = tuple(map(self.entry, range(self.num_shards)))
        else:
            context = multiprocessing.get_context("forkserver")
            with ProcessPoolExecutor(processes, context) as pool:
                shards = tuple(pool.map(self.entry, range(self.num_shards), chunksize=100))
        return encode_manifest(ShardManifest("", "synthetic", shards, True, self.num_classes))


@functools.lru_cache(256)
def _picks(data: SyntheticSet, shard: int) -> np.ndarray:
    samples = np.arange(data.samples_per_shard, dtype=np.uint64)
    return (hash64(_TAG, shard, samples) % np.uint64(len(data.pool))).astype(np.int64)


@functools.cache
def _sample_digits(count: int) -> np.ndarray:
    return np.frombuffer("".join(f"{i:06d}" for i in range(count)).encode(), np.uint8).reshape(count, 6)


def write(data: SyntheticSet, folder: Path) -> str:
    """Store a set after all; returns the path of its manifest."""
    for shard in range(data.num_shards):
        (folder / f"train-{shard:06d}.tar").write_bytes(data.tar(shard, 0, data.num_bytes(shard)))
        (folder / f"train-{shard:06d}.idx.npz").write_bytes(data.index(shard))
    (folder / "manifest.json").write_bytes(data.manifest())
    return str(folder / "manifest.json")


def _member(name: str, content: bytes) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        data, manifest, counters, lock = self.server.state  # type: ignore[attr-defined]
        name, asked = self.path.lstrip("/"), self.headers.get("Range", "")
        time.sleep(self.server.first_byte_s)  # type: ignore[attr-defined]
        if name == "counters":
            with lock:
                body = json.dumps(counters).encode()
                counters.update(requests=0, bytes=0)
            return self._answer(200, body, counted=False)
        if name == "manifest.json":
            return self._answer(200, manifest)
        shard = int(name[6:12])
        if name.endswith(".idx.npz"):
            return self._answer(200, data.index(shard))
        size = data.num_bytes(shard)
        first, last = (int(x) for x in asked.removeprefix("bytes=").split("-")) if asked else (0, size - 1)
        last = min(last, size - 1)
        return self._answer(206 if asked else 200, data.tar(shard, first, last + 1), f"bytes {first}-{last}/{size}")

    def _answer(self, status: int, body: bytes, where: str = "", *, counted: bool = True) -> None:
        _, _, counters, lock = self.server.state  # type: ignore[attr-defined]
        if counted:
            with lock:
                counters["requests"] += 1
                counters["bytes"] += len(body)
        self.send_response(status)
        if where and status == 206:
            self.send_header("Content-Range", where)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def _serve(data: SyntheticSet, manifest: bytes, port: Any, first_byte_s: float) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.state = (data, manifest, {"requests": 0, "bytes": 0}, threading.Lock())  # type: ignore[attr-defined]
    server.first_byte_s = first_byte_s  # type: ignore[attr-defined]
    port.send(server.server_port)
    server.serve_forever()


@contextmanager
def served(data: SyntheticSet, processes: int = 1, first_byte_s: float = 0.0) -> Iterator[str]:
    """URL of a server, in a process of its own, that computes the set's files; /counters says what it gave.

    It waits for `first_byte_s` before it answers, as stores do.
    """
    manifest = data.manifest(processes)
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(data, manifest, theirs, first_byte_s), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}"
    finally:
        process.terminate()
        process.join()
