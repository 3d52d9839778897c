"""A proxy in front of a real S3 server that does harm to ranges of objects: one trouble a request."""

from __future__ import annotations

import contextlib
import http.client
import socket
import ssl
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

_KEPT = ("Content-Type", "Content-Range", "ETag", "Last-Modified", "Accept-Ranges", "x-amz-request-id")


class FaultyS3(ThreadingHTTPServer):
    """Hands on what it is asked, signatures and all, to `target`. `troubles` are taken one a range.

    They are: `break N` and `reset N` (after N bytes of the body), `stall N` (silent after N bytes), `500`, `503 [S]`
    (SlowDown, with Retry-After), `short N` (a smaller part, and says so), `cut N` (no more than N bytes, as if it were
    all), `other N` (a part N bytes further on), `garbage` (no HTTP at all), `tag` (another ETag), `longer` (another
    length of the file), `expired` and `denied` (403), `deleted` (404, by a marker, of which SeaweedFS says nothing),
    `redirect` (to the server itself), `region NAME` (301), `page` (a login).
    """

    daemon_threads = True

    def __init__(self, target: str, tls: ssl.SSLContext | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            # Hands are shaken in the thread of the connection: whoever does not is waited for by nobody else.
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.target, self.troubles = target, list[str]()
        self.asked: list[tuple[str, str, str]] = []
        self.connections = 0
        self.lock, self.over = threading.Lock(), threading.Event()
        # Whether those are refused who do not say that they pay; what was asked of others, and of those.
        self.payer, self.paid, self.unpaid = False, list[str](), list[str]()
        # Of those who are turned away to another region: none is, before so many are.
        self.together: threading.Barrier | None = None

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up on a broken answer


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyS3

    def do_GET(self) -> None:
        asked = self.headers.get("Range", "")
        trouble = ""
        if asked and self.command == "GET":
            with self.server.lock:
                self.server.asked.append((self.path, asked, self.headers.get("Authorization", "")))
                trouble = self.server.troubles.pop(0) if self.server.troubles else ""
        if self.server.payer:
            pays = self.headers.get("x-amz-request-payer") == "requester"
            (self.server.paid if pays else self.server.unpaid).append(f"{self.command} {self.path}")
            trouble = trouble if pays else "denied"
        kind, _, value = trouble.partition(" ")
        if not self._refused(kind, value):
            self._handed_on(kind, value)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815

    def _refused(self, kind: str, value: str) -> bool:
        errors = {
            "500": (500, "InternalError"),
            "503": (503, "SlowDown"),
            "expired": (403, "ExpiredToken"),
            "denied": (403, "AccessDenied"),
            "region": (301, "PermanentRedirect"),
            "deleted": (404, "NoSuchKey"),
            "redirect": (307, "TemporaryRedirect"),
        }
        if kind == "garbage":
            self.wfile.write(b"\x00\x01 this is no HTTP\r\n\r\n")
            self.close_connection = True
        elif kind == "page":
            self._answer(200, {"Content-Type": "text/html"}, b"<!doctype html><title>Log in</title>")
        elif kind in errors:
            if kind == "region" and self.server.together is not None:
                self.server.together.wait(20)
            status, code = errors[kind]
            headers = {"Retry-After": value} if value and kind == "503" else {}
            headers |= {"x-amz-delete-marker": "true"} if kind == "deleted" else {}
            headers |= {"x-amz-bucket-region": value} if kind == "region" else {}
            headers |= {"Location": f"{self.server.target}{self.path}"} if kind == "redirect" else {}
            self._body()
            body = f"<Error><Code>{code}</Code><Message>because of a test</Message></Error>"
            self._answer(status, headers, body.encode())
        else:
            return False
        return True

    def _handed_on(self, kind: str, value: str) -> None:
        body = self._body()
        to = http.client.HTTPConnection(urlsplit(self.server.target).netloc, timeout=30)
        # All that is signed stays, Host too.
        dropped = {"connection", "transfer-encoding"}
        to.request(self.command, self.path, body, {k: v for k, v in self.headers.items() if k.lower() not in dropped})
        response = to.getresponse()
        content = response.read()
        told = {name: response.headers[name] for name in _KEPT if name in response.headers}
        if self.command == "HEAD":
            told["Content-Length"] = response.headers.get("Content-Length", "0")
        to.close()
        if kind in {"short", "other"}:
            span, _, total = told["Content-Range"].partition("/")
            first = int(span.removeprefix("bytes ").partition("-")[0])
            if kind == "short":
                content = content[: int(value)]
            else:
                first, content = first + int(value), content[::-1]
            told["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{total}"
        elif kind == "cut":
            content = content[: int(value)]
        elif kind == "tag":
            told["ETag"] = '"another"'
        elif kind == "longer":
            told["Content-Range"] = told["Content-Range"].partition("/")[0] + "/987654321"
        self._answer(response.status, told, content, kind if kind in {"break", "reset", "stall"} else "", value)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: dict[str, str], body: bytes, harm: str = "", after: str = "0") -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: int(after)] if harm else body)
        if not harm:
            return
        self.wfile.flush()
        self.close_connection = True
        if harm == "stall":
            self.server.over.wait(20)
        elif harm == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def faulty(target: str, tls: ssl.SSLContext | None = None) -> Iterator[FaultyS3]:
    """The proxy, while it runs; behind certificates where some are given."""
    with FaultyS3(target, tls) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
