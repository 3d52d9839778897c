"""The same images in a real S3 server on this machine (SeaweedFS), near or as if far away.

Far away is a relay before the server: it hands requests on as they come, and answers 50 ms later and with 85 MB/s a
connection.
"""

from __future__ import annotations

import contextlib
import http.client
import multiprocessing
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.object_store import CONNECTION_MB_S, FIRST_BYTE_S
from tests.s3_server import running_s3
from vit_dist.core.files import file_system

_CHUNK = 1 << 18
_UPLOADS = 4
# Of one connection each: what is said of them is not for the next one.
_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})


@contextlib.contextmanager
def stored(root: Path, folders: list[str], *, far: bool) -> Iterator[str]:
    """URL below which a server has the files of some folders of `root`, with the AWS_* variables set."""
    (root / "server").mkdir()
    with running_s3(root / "server") as bucket:
        files = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
        with ThreadPoolExecutor(_UPLOADS) as pool:
            list(pool.map(lambda path: _upload(path, f"{bucket}/{path.relative_to(root)}"), files))
        with _relay(os.environ["AWS_ENDPOINT_URL_S3"]) if far else contextlib.nullcontext():
            yield bucket


def _upload(path: Path, url: str) -> None:
    system, inside = file_system(url)
    system.put_file(str(path), inside)


class _Relay(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Else the body waits for the client's word that it has the headers.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.behind = http.client.HTTPConnection(self.server.behind)  # type: ignore[attr-defined]
        self.buffer = memoryview(bytearray(_CHUNK))

    def finish(self) -> None:
        self.behind.close()
        super().finish()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        # The host stays the one that was asked: it is signed.
        self.behind.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP:
                self.behind.putheader(name, value)
        self.behind.endheaders()
        answer = self.behind.getresponse()
        time.sleep(FIRST_BYTE_S)
        self.send_response_only(answer.status, answer.reason)
        for name, value in answer.headers.items():
            if name.lower() not in _HOP:
                self.send_header(name, value)
        whole = answer.length is None and self.command == "GET" and answer.status not in {204, 304}
        body = answer.read() if whole else b""
        if whole:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        began, sent = time.perf_counter(), 0
        while not whole and (count := answer.readinto(self.buffer)):
            self.wfile.write(self.buffer[:count])
            sent += count
            time.sleep(max(0.0, began + sent / (CONNECTION_MB_S * 1e6) - time.perf_counter()))

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Relay)
        self.behind = behind

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Loaders are killed amid an answer.
        pass


def _serve(behind: str, ports: Any) -> None:
    with _Server(behind) as server:
        ports.put(server.server_port)
        server.serve_forever()


@contextlib.contextmanager
def _relay(endpoint: str) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    ports = context.Queue()
    process = context.Process(target=_serve, args=(urlsplit(endpoint).netloc, ports), daemon=True)
    process.start()
    os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{ports.get()}"
    try:
        yield
    finally:
        os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
        process.kill()
        process.join()
