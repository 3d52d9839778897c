"""Servers that lie, drip, pour, compress and mislead: one line each, in bounded time and memory."""

from __future__ import annotations

import contextlib
import re
import threading
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from vit_dist.core import web, web_answers
from vit_dist.core.errors import DataError
from vit_dist.core.files import read_bytes
from vit_dist.core.store_errors import explained
from vit_dist.core.stores import Store
from vit_dist.data.names import names_in
from vit_dist.data.ranges import RangeReader, file_size, open_file

Answer = Callable[[BaseHTTPRequestHandler], None]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        with contextlib.suppress(OSError):
            self.server.answer(self)  # type: ignore[attr-defined]

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, ThreadingHTTPServer]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.answer, server.asked = answer, 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", server
        server.shutdown()
        thread.join()


def say(status: int, headers: dict[str, str], *bodies: bytes, forever: bool = False, pause_s: float = 0.0) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        while True:
            for body in bodies:
                handler.wfile.write(body)
                time.sleep(pause_s)
            if not forever:
                return

    return answer


BOMB = zlib.compress(bytes(1 << 22), 9)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (say(200, {}, bytes(1 << 16), forever=True), "the server sends more; such a file may have 1,000,000"),
        (say(200, {"Content-Length": str(10**15)}, b"x"), "1,000,000,000,000,000 bytes, says the server"),
        (say(200, {"Content-Length": "1000001"}, b"x"), "it has 1,000,001 bytes"),
        (say(200, {"Content-Encoding": "gzip", "Content-Length": "9"}, b"x" * 9), "compressed .*gzip"),
        (say(200, {"Content-Encoding": "deflate"}, BOMB), "compressed .*deflate"),
        (say(200, {"Content-Encoding": "br, gzip"}, b"x"), "compressed"),
        (say(200, {"Transfer-Encoding": "chunked"}, b"ffffffffffffffff\r\nxxxx"), "cannot be read"),
        (say(200, {"Transfer-Encoding": "chunked"}, b"zz\r\n"), "cannot be read"),
        (say(200, {"Content-Length": "100000"}, b" ", forever=True, pause_s=0.02), "sends too slowly: .* bytes in"),
        (say(302, {"Location": "file:///etc/hostname"}), "leads from http to 'file:"),
        (say(302, {"Location": "ftp://127.0.0.1/x"}), "leads from http to 'ftp:"),
        (say(301, {"Location": "s3://bucket/key"}), "leads from http to 's3:"),
        (say(307, {"Location": "data:text/plain,x"}), "leads from http to 'data:"),
        (say(302, {"Location": "http://[/"}), "cannot be read"),
        (say(302, {"Location": "/again"}), "too many redirects"),
        (say(503, {"Retry-After": "\xb2"}), "HTTP 503"),
        (say(500, {}), "HTTP 500"),
        (say(418, {"X": "y" * 70_000}), "cannot be read"),
    ],
)
def test_a_hostile_server_is_one_line(answer: Answer, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (web, web_answers):
        monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    reader = RangeReader(tries=2, first_wait_s=0.01, timeout_s=2)
    with serving(answer) as (url, _):
        for read in (read_bytes, reader.read_all):
            with pytest.raises(DataError, match=says) as error:
                read(f"{url}/manifest.json", 1_000_000)
            assert "\n" not in str(error.value)
            assert len(str(error.value)) < 700
    reader.close()


def test_a_range_that_drips_counts_as_one_that_does_not_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_answers, "PATIENCE_S", 0.2)
    reader = RangeReader(tries=2, first_wait_s=0.01, timeout_s=0.2)
    headers = {"Content-Range": "bytes 0-99999/100000", "Content-Length": "100000"}
    answer = say(206, headers, b" ", forever=True, pause_s=0.02)
    with serving(answer) as (url, _), pytest.raises(DataError, match=r"too slowly: .* after 2 tries"):
        reader.read(f"{url}/a.tar", 0, 100_000)
    reader.close()


def test_what_pours_takes_no_more_memory_than_its_bound() -> None:
    with serving(say(200, {}, bytes(1 << 20), forever=True)) as (url, _):
        tracemalloc.start()
        with pytest.raises(DataError, match="the server sends more"):
            read_bytes(f"{url}/x", 4 << 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 32 << 20


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("7", 7.0),
        (" 3 ", 3.0),
        ("\xb2", 0.0),
        ("\u0663", 0.0),
        ("-5", 0.0),
        ("1e9", 0.0),
        ("nan", 0.0),
        ("", 0.0),
        ("9" * 400, 0.0),
        ("60", 60.0),
        ("61", 0.0),
        ("0", 0.0),
        ("1000000000", 0.0),
        ("soon", 0.0),
        ("Thu, 01 Jan 2099 00:00:00 GMT", 0.0),
        ("Fri, 31 Dec 99999 23:59:59 GMT", 0.0),
        ("Mon, 01 Jan 0001 00:00:00 +2400", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_is_a_time_or_nothing(text: str, seconds: float) -> None:
    headers = Message()
    headers["Retry-After"] = text
    assert web.retry_after_s({"Retry-After": text}) == seconds


HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "a status line": (b"", b"H"),
    "a header": (b"HTTP/1.1 200 OK\r\nX-A: ", b"x"),
    "a header's name": (b"HTTP/1.1 200 OK\r\n", b"X"),
    "what may come before an answer": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "a note of a chunk": (HEAD + b"5;note=", b"y"),
    "what follows the chunks": (HEAD + b"5\r\nhello\r\n0\r\n", b"X: y\r\n"),
    "a chunk's size": (HEAD, b"0"),
}


@pytest.mark.parametrize("what", ENDLESS)
def test_what_comes_byte_by_byte_has_one_deadline(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, more = ENDLESS[what]

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(begin)
        while True:
            handler.wfile.write(more)
            time.sleep(0.01)

    monkeypatch.setattr(web_answers, "_GRACE_S", 0.3)
    client = web.WebClient(0.2)
    with serving(drip) as (url, server), pytest.raises(OSError, match=r"(headers|chunks) do not end|line.*too long"):
        client.get(f"{url}/x")
    client.close()
    assert server.asked == 1  # type: ignore[attr-defined]


def test_redirects_share_the_deadline_of_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def slowly(handler: BaseHTTPRequestHandler) -> None:
        time.sleep(0.2)
        say(302, {"Location": "/again", "Content-Length": "0"})(handler)

    monkeypatch.setattr(web_answers, "_GRACE_S", 0.0)
    client = web.WebClient(0.5)
    with serving(slowly) as (url, server), pytest.raises(OSError, match="headers do not end"):
        client.get(f"{url}/x")
    client.close()
    assert server.asked < 5  # type: ignore[attr-defined]


def test_whoever_waits_for_a_server_is_told_for_what(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("vit_dist.data.ranges.log", told.append)
    reader = RangeReader(tries=2)
    monkeypatch.setattr(reader._stopped, "wait", lambda _: False)
    with serving(say(503, {"Retry-After": "9", "Content-Length": "0"})) as (url, _), pytest.raises(DataError):
        reader.read_all(f"{url}/m.json?key=secret")
    reader.close()
    (line,) = told
    # A quarter more at most, so that not all are back at once.
    assert re.search(r"/m\.json\?\*\*\*: HTTP 503 Service Unavailable; asked again in (9|10|11) s, try 2 of 2", line)


@pytest.mark.parametrize("length", ["\xb2", "-1", "1e3", "9" * 30, "ten", "0x10"])
def test_a_size_that_is_no_number_is_none(length: str) -> None:
    answer = say(206, {"Content-Range": f"bytes 0-0/{length}"}, b"x")
    with serving(answer) as (url, _), pytest.raises(DataError, match="does not say how long"):
        file_size(f"{url}/a.tar")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 500, 503])
def test_a_listing_that_is_not_to_be_had_is_one_line(status: int) -> None:
    with serving(say(status, {"Content-Length": "0"})) as (url, _), pytest.raises(DataError, match="listed"):
        names_in(f"{url}/folder/")


def test_a_listing_that_pours_or_is_compressed_fills_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "MAX_WHOLE_BYTES", 1 << 20)
    answer = say(200, {"Content-Type": "text/html"}, b"<a href='x'>" * 5000, forever=True)
    with serving(answer) as (url, _), pytest.raises(DataError, match="sends more than 1,048,576 bytes"):
        names_in(f"{url}/folder/")
    packed = zlib.compress(b"<a href='b.tar'>" * 100_000)
    with serving(say(200, {"Content-Type": "text/html", "Content-Encoding": "deflate"}, packed)) as (url, _):
        assert "b.tar" not in names_in(f"{url}/folder/")


def test_a_listing_names_what_lies_there() -> None:
    page = b"<a href='a.tar'>a</a><a href='b.tar'>b</a>"
    with serving(say(200, {"Content-Type": "text/html"}, page)) as (url, _):
        assert names_in(f"{url}/folder/") == ["a.tar", "b.tar"]


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_the_first_bytes_of_any_store_are_all_that_is_read(
    scheme: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = Store(scheme)
    path = str(tmp_path_factory.mktemp("store") / "x") if scheme == "file" else "/bounded/x"
    for content in (b"", b"abc", b"abcdef"):
        store.pipe_file(path, content)
        assert store.head(path, 4) == content[:4]
    with pytest.raises(DataError, match="larger than the 4 bytes"):
        read_bytes(path if scheme == "file" else f"memory:/{path}", 4)
    with pytest.raises(DataError, match="no such file"), explained("x", "read"):
        store.head(f"{path}-none", 4)


def test_a_file_without_ranges_is_still_read_whole_where_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_dist.data.ranges.MAX_WHOLE_BYTES", 10)
    with serving(say(200, {"Content-Length": "1000"}, bytes(1000))) as (url, _), open_file(f"{url}/t.csv") as file:
        assert len(file.read()) == 1000
