"""Tars of many gigabytes of which the disk holds kilobytes, and a server that gives ranges of them."""

from __future__ import annotations

import os
import re
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from vit_dist.data.tarindex import TarScan, TarScanner

_ZEROS = memoryview(bytes(64 << 20))


def with_hole(path: Path, name: str, size: int, small: Path, kind: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of a first member of `size` zeros, which take no room, and what stands in another one."""
    member = tarfile.TarInfo(name)
    member.size = size
    with path.open("wb") as file:
        file.write(member.tobuf(kind))
        file.seek(size + -size % 512, os.SEEK_CUR)
        file.write(small.read_bytes())
    return path


def scanned(path: Path, small: Path, scanner: TarScanner) -> TarScan:
    """What a scan of such a tar gives, without reading its zeros from the disk."""
    end = path.stat().st_size - small.stat().st_size
    with path.open("rb") as file:
        head = file.read(1 << 20)
        scanner.feed(memoryview(head))
        for start in range(len(head), end, len(_ZEROS)):
            scanner.feed(_ZEROS[: min(len(_ZEROS), end - start)])
        file.seek(end)
        scanner.feed(memoryview(file.read()))
    return scanner.finish()


class Server(ThreadingHTTPServer):
    """Serves ranges of the files of a folder, whatever bucket they are asked in."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder = folder

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        path = self.server.folder / self.path.rpartition("/")[2]
        if not path.is_file():
            return self._answer(404, {"Content-Length": "0"})
        size, asked = path.stat().st_size, re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        first, last = (int(asked[1]), min(int(asked[2]), size - 1)) if asked else (0, size - 1)
        if first >= size:
            return self._answer(416, {"Content-Length": "0"})
        headers = {"Content-Length": str(last + 1 - first), "ETag": '"large"'}
        self._answer(
            206 if asked else 200, headers | {"Content-Range": f"bytes {first}-{last}/{size}"} if asked else headers
        )
        if self.command == "GET":
            with path.open("rb") as file:
                self.connection.sendfile(file, first, last + 1 - first)
        return None

    do_HEAD = do_GET  # noqa: N815

    def _answer(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass
