"""Bytes from object storage, without decoding: our range reads against plain clients that read the same ranges.

From a real S3 server on this machine (SeaweedFS), and from a slow store made up here: 50 ms to the first byte, 85 MB/s
a connection. Repetitions are interleaved; median and range of each, MB/s and seconds of CPU time of this process a GB.
Aims: at least 0.85 of the fastest plain client, and 4 times a single stream of the slow store.

    python -m benchmarks.object_store [--megabytes 512] [--threads 8] [--repetitions 7] [--only fast]

obstore takes part where it is installed (pip install obstore).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import importlib.util
import multiprocessing
import os
import resource
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.s3_server import running_s3
from vit_dist.core.files import file_system
from vit_dist.core.stores import storage_options
from vit_dist.data.buffers import Buffers
from vit_dist.data.ranges import LEAST_RANGE_BYTES, RangeReader

FIRST_BYTE_S, CONNECTION_MB_S = 0.05, 85.0
_OBJECTS = 4
_CHUNK = 1 << 18

Read = Callable[[str, int, int], object]


class _Slow(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the body waits for the client's word that it has the headers.
    disable_nagle_algorithm = True
    content = memoryview(os.urandom(1 << 20) * 16)

    def do_GET(self) -> None:
        size = int(urlsplit(self.path).path.rpartition("-")[2])
        asked = self.headers.get("Range", f"bytes=0-{size - 1}").removeprefix("bytes=")
        first, last = (int(x) for x in asked.split("-"))
        last = min(last, size - 1)
        time.sleep(FIRST_BYTE_S)
        self.send_response(206)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", '"slow"')
        self.end_headers()
        began, sent = time.perf_counter(), 0
        while sent < last - first + 1:
            part = self.content[: min(_CHUNK, last - first + 1 - sent)]
            self.wfile.write(part)
            sent += len(part)
            time.sleep(max(0.0, began + sent / (CONNECTION_MB_S * 1e6) - time.perf_counter()))

    def log_message(self, format: str, *args: object) -> None:
        pass


def _serve(ports: Any) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Slow) as server:
        ports.put(server.server_port)
        server.serve_forever()


@contextlib.contextmanager
def slow_store() -> Iterator[str]:
    """URL of a bucket in the made-up store, in a process of its own, with the AWS_* variables set."""
    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=_serve, args=(ports,), daemon=True)
    process.start()
    os.environ |= {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{ports.get()}"
    try:
        yield "s3://slow"
    finally:
        process.kill()
        process.join()


def ours() -> Read:
    """What training reads by: `RangeReader` into memory that goes round."""
    reader, buffers = RangeReader(), Buffers()

    def read(url: str, start: int, end: int) -> object:
        content = buffers.take(end - start)
        reader.read_into(url, start, content)
        return content[0]

    return read


def _client(connections: int) -> Any:
    import botocore.session
    from botocore.config import Config

    options = storage_options("s3")
    config = Config(**options["config_kwargs"] | {"max_pool_connections": connections, "signature_version": "s3v4"})
    return botocore.session.Session().create_client("s3", endpoint_url=options.get("endpoint_url"), config=config)


def plain(threads: int) -> Read:
    """http.client with a kept connection and one buffer a thread, by URLs that were signed before."""
    client, kept, signed = _client(threads), threading.local(), dict[str, str]()

    def read(url: str, start: int, end: int) -> object:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if url not in signed:
            signed[url] = client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key})
        parts = urlsplit(signed[url])
        if not hasattr(kept, "connection"):
            kept.connection = http.client.HTTPConnection(parts.netloc)
            kept.buffer = memoryview(bytearray(LEAST_RANGE_BYTES))
        kept.connection.request("GET", f"{parts.path}?{parts.query}", headers={"Range": f"bytes={start}-{end - 1}"})
        answer, got = kept.connection.getresponse(), 0
        while got < end - start:
            count = answer.readinto(kept.buffer[got : end - start])
            assert count, answer.status
            got += count
        answer.read()
        return got

    return read


def botocore_stream(threads: int) -> Read:
    """botocore's get_object, read in pieces into one buffer a thread."""
    client, kept = _client(threads), threading.local()

    def read(url: str, start: int, end: int) -> object:
        if not hasattr(kept, "buffer"):
            kept.buffer = memoryview(bytearray(LEAST_RANGE_BYTES))
        bucket, _, key = url.removeprefix("s3://").partition("/")
        body, got = client.get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}")["Body"], 0
        while piece := body.read(_CHUNK):
            kept.buffer[got : got + len(piece)] = piece
            got += len(piece)
        assert got == end - start
        return got

    return read


def s3fs_ranges(_: int) -> Read:
    """s3fs's cat_file: what read ranges before."""

    def read(url: str, start: int, end: int) -> object:
        system, path = file_system(url)
        return len(system.cat_file(path, start, end))

    return read


def obstore_ranges(_: int) -> Read:
    """obstore's get_range."""
    import obstore
    from obstore.store import S3Store

    stores: dict[str, Any] = {}

    def read(url: str, start: int, end: int) -> object:
        bucket, _, key = url.removeprefix("s3://").partition("/")
        if bucket not in stores:
            stores[bucket] = S3Store(
                bucket,
                endpoint=os.environ["AWS_ENDPOINT_URL_S3"],
                client_options={"allow_http": True},
                virtual_hosted_style_request=False,
            )
        return len(obstore.get_range(stores[bucket], key, start=start, end=end))

    return read


def rate(read: Read, ranges: list[tuple[str, int, int]], threads: int) -> tuple[float, float]:
    """MB/s, and seconds of CPU time of this process a GB."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(read, *one) for one in ranges]:
            done.result()
    spent, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF)
    size = sum(end - start for _, start, end in ranges)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return size / 1e6 / spent, cpu / (size / 1e9)


def compare(contestants: dict[str, tuple[Read, int]], urls: list[str], size: int, repetitions: int) -> dict[str, float]:
    """The median rate of each, in MB/s; printed with its range."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
    starts = range(0, size, LEAST_RANGE_BYTES)
    ranges = [(url, start, min(size, start + LEAST_RANGE_BYTES)) for url in urls for start in starts]
    for repetition in range(repetitions + 1):
        for name, (read, threads) in contestants.items():
            one = rate(read, ranges, threads)
            # The first one makes connections.
            if repetition:
                found[name].append(one)
    for name, rates in found.items():
        speeds, cpu = [one for one, _ in rates], statistics.median(cpu for _, cpu in rates)
        spread = f"{min(speeds):.0f} to {max(speeds):.0f}"
        print(f"  {name:44} {statistics.median(speeds):6.0f} MB/s ({spread}), {cpu:.2f} CPU s/GB", flush=True)
    return {name: statistics.median(one for one, _ in rates) for name, rates in found.items()}


def fast(args: argparse.Namespace) -> None:
    size, threads = args.megabytes * 1_000_000 // _OBJECTS, args.threads
    with tempfile.TemporaryDirectory() as folder, running_s3(Path(folder)) as bucket:
        urls = [f"{bucket}/bytes/{number}.tar" for number in range(_OBJECTS)]
        for url in urls:
            system, path = file_system(url)
            system.pipe_file(path, os.urandom(1 << 20) * (size // (1 << 20)) + bytes(size % (1 << 20)))
        print(f"SeaweedFS on this machine, {_OBJECTS} x {size / 1e6:.0f} MB, {threads} ranges of 8 MiB in flight")
        others = {"http.client, signed before, one buffer": plain(threads), "botocore": botocore_stream(threads)}
        if importlib.util.find_spec("obstore"):
            others["obstore"] = obstore_ranges(threads)
        contestants = {"ours": (ours(), threads), **{name: (read, threads) for name, read in others.items()}}
        contestants["s3fs, as it was"] = s3fs_ranges(threads), threads
        found = compare(contestants, urls, size, args.repetitions)
        best = max(others, key=lambda name: found[name])
        print(f"  ours over the fastest plain client ({best}): {found['ours'] / found[best]:.2f} (aim: 0.85 at least)")


def slow(args: argparse.Namespace) -> None:
    size, threads = args.megabytes * 1_000_000 // _OBJECTS, args.threads
    with slow_store() as bucket:
        urls = [f"{bucket}/{number}-{size}" for number in range(_OBJECTS)]
        print(f"a slow store: {FIRST_BYTE_S * 1e3:.0f} ms to the first byte, {CONNECTION_MB_S:.0f} MB/s a connection")
        contestants = {"ours": (ours(), threads), "one range after the other": (plain(1), 1)}
        found = compare(contestants, urls, size, max(1, args.repetitions // 2))
        # One that reads an object from its begin to its end waits once.
        stream = size / 1e6 / (FIRST_BYTE_S + size / 1e6 / CONNECTION_MB_S)
        print(
            f"  ours over a single stream ({stream:.0f} MB/s at most): {found['ours'] / stream:.1f} (aim: 4 at least)"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--only", choices=["fast", "slow"])
    args = parser.parse_args()
    if args.only != "slow":
        fast(args)
    if args.only != "fast":
        slow(args)


if __name__ == "__main__":
    main()
