"""Ranged reads over HTTP from a server that breaks connections, is busy, moves files or knows no ranges."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.certificates import signed
from tests.shards import write_set
from tests.streams import digest, global_batches, recipe
from vit_dist.core import s3_reads
from vit_dist.core.errors import DataError, RefusedError
from vit_dist.core.files import exists, read_bytes
from vit_dist.data.manifest import read_manifest
from vit_dist.data.ranges import RangeReader, file_size, open_file
from vit_dist.data.segments import coalesce
from vit_dist.data.tars import find_tars

CONTENT = np.random.default_rng(0).bytes(1 << 20)


class Store(ThreadingHTTPServer):
    """A file server with ranges. `troubles` are taken one a request: what to do instead of serving it well."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, files: dict[str, bytes], folder: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.folder = files, folder
        self.troubles: list[str] = []
        self.asked: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.lock = threading.Lock()
        self.connections = 0

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections += 1
        super().process_request(request, client_address)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up is what these tests are about


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, asked = self.path.lstrip("/"), self.headers.get("Range", "")
        self.kind = "text/html; charset=utf-8" if name.endswith(".html") else "application/octet-stream"
        with self.server.lock:
            self.server.asked.append((name, asked))
            self.server.headers.append({name.lower(): value for name, value in self.headers.items()})
            trouble = self.server.troubles.pop(0) if self.server.troubles and self.command == "GET" else ""
        kind, _, value = trouble.partition(" ")
        if kind.isdigit():
            return self.answer(int(kind), {"Retry-After": value} if value else {}, b"SlowDown")
        if kind.startswith("redirect"):
            return self.answer(int(kind.removeprefix("redirect") or 302), {"Location": value}, b"")
        if kind == "sleep":
            time.sleep(float(value))
        content = self.server.files.get(name)
        if content is None and self.server.folder is not None and (self.server.folder / name).is_file():
            content = (self.server.folder / name).read_bytes()
        if content is None:
            return self.answer(404, {}, b"")
        if not asked or kind == "no-ranges":
            return self.answer(200, {}, content)
        first, last = (int(x) for x in asked.removeprefix("bytes=").split("-"))
        if first >= len(content):
            return self.answer(416, {}, b"")
        part = content[first : last + 1]
        where = {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(content)}"}
        return self.answer(206, where, part, only=int(value) if kind == "break" else None)

    def answer(self, status: int, headers: dict[str, str], body: bytes, only: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:only])
        if only is not None:
            self.close_connection = True
            self.connection.close()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store({"a.tar": CONTENT}, tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def reader() -> Iterator[RangeReader]:
    ranges = RangeReader(tries=4, first_wait_s=0.01, timeout_s=0.5)
    yield ranges
    ranges.close()


def test_a_range_is_gone_on_with_at_the_byte_where_it_broke(store: Store, reader: RangeReader) -> None:
    store.troubles = ["break 300000", "break 300000", "503", "break 0", "break 5"]
    assert reader.read(f"{store.url}/a.tar", 1000, 1_000_000) == CONTENT[1000:1_000_000]
    starts = [int(asked.removeprefix("bytes=").partition("-")[0]) for _, asked in store.asked]
    assert starts == [1000, 301_000, 601_000, 601_000, 601_000, 601_005]


def test_what_gets_nowhere_is_given_up_and_says_after_how_many_tries(store: Store, reader: RangeReader) -> None:
    store.troubles = ["503"] * 99
    with pytest.raises(DataError, match=r"a\.tar: cannot be read: HTTP 503 .*, after 4 tries"):
        reader.read(f"{store.url}/a.tar", 0, 10)
    assert len(store.asked) == 4


@pytest.mark.parametrize("how", ["1", "date"])
def test_a_store_that_says_when_to_come_back_is_heard(store: Store, reader: RangeReader, how: str) -> None:
    store.troubles = [f"429 {how if how == '1' else formatdate(time.time() + 2, usegmt=True)}"]
    began = time.monotonic()
    assert reader.read(f"{store.url}/a.tar", 0, 10) == CONTENT[:10]
    assert time.monotonic() - began >= 0.95


def test_a_wait_ends_when_the_reader_is_stopped(store: Store, reader: RangeReader) -> None:
    store.troubles = ["503 50"] * 9
    threading.Timer(0.2, reader.stop).start()
    began = time.monotonic()
    with pytest.raises(DataError, match="503"):
        reader.read(f"{store.url}/a.tar", 0, 10)
    assert time.monotonic() - began < 40, "the store asked for a wait of 50 s"


def test_a_silent_store_is_asked_again(store: Store, reader: RangeReader) -> None:
    store.troubles = ["sleep 1"]
    assert reader.read(f"{store.url}/a.tar", 5, 10) == CONTENT[5:10]


def test_a_refused_connection_is_an_error_that_hides_the_password(reader: RangeReader) -> None:
    with pytest.raises(DataError, match=r"http://me:\*\*\*@127\.0\.0\.1:9/a\.tar: cannot be read: .* after 4 tries"):
        reader.read("http://me:secret@127.0.0.1:9/a.tar", 0, 10)


def test_redirects_are_followed_and_passwords_sent(store: Store, reader: RangeReader) -> None:
    store.troubles = [f"redirect {store.url}/a.tar?signature=x"]
    store.files["a.tar?signature=x"] = CONTENT
    url = store.url.replace("http://", "http://me:secret@")
    assert reader.read(f"{url}/moved.tar", 7, 20) == CONTENT[7:20]
    assert store.headers[0]["authorization"] == "Basic bWU6c2VjcmV0"


@pytest.mark.parametrize(
    ("trouble", "message"),
    [("403", "not allowed"), ("404", "no such file"), ("400", "HTTP 400"), ("410", "no such file")],
)
def test_final_answers_are_not_asked_for_twice(store: Store, reader: RangeReader, trouble: str, message: str) -> None:
    store.troubles = [trouble]
    with pytest.raises(DataError, match=message):
        reader.read(f"{store.url}/a.tar", 0, 10)
    assert len(store.asked) == 1


def test_a_file_that_is_too_short_and_a_server_without_ranges_are_told_apart(store: Store, reader: RangeReader) -> None:
    with pytest.raises(DataError, match=r"ends at byte 1048576, but its index reaches byte 1048600"):
        reader.read(f"{store.url}/a.tar", 1_048_500, 1_048_600)
    with pytest.raises(DataError, match=r"ends at byte 2000000, but its index reaches byte 2000009"):
        reader.read(f"{store.url}/a.tar", 2_000_000, 2_000_009)
    store.troubles = ["no-ranges"] * 2
    assert reader.read(f"{store.url}/a.tar", 0, 10) == CONTENT[:10]
    with pytest.raises(DataError, match="does not serve byte ranges"):
        reader.read(f"{store.url}/a.tar", 5, 10)


@pytest.mark.parametrize("whole", [True, False])
def test_redirects_in_a_circle_are_not_waited_out(store: Store, reader: RangeReader, whole: bool) -> None:
    store.troubles = [f"redirect {store.url}/a.tar"] * 99
    with pytest.raises(DataError, match="cannot be read: too many redirects"):
        reader.read_all(f"{store.url}/a.tar") if whole else reader.read(f"{store.url}/a.tar", 0, 10)
    assert len(store.asked) == 6


@pytest.mark.parametrize("page", [b"<!doctype html>\n<title>Log in</title>", b"\n <HTML><body>403", b"<html>" * 999])
def test_a_login_page_in_place_of_a_file_is_told(store: Store, reader: RangeReader, page: bytes) -> None:
    store.files["login.html"] = page
    for read in (lambda u: reader.read(u, 0, 5), lambda u: reader.read(u, 9, 12), reader.read_all, read_bytes):
        store.troubles = [f"redirect {store.url}/login.html", "no-ranges"]
        with pytest.raises(DataError, match=r"a\.tar: the server answered with a web page in place of the file"):
            read(f"{store.url}/a.tar")


def test_the_size_of_a_file_is_asked_patiently_and_without_head(store: Store) -> None:
    store.troubles = ["503", "break 0"]
    assert file_size(f"{store.url}/a.tar") == len(CONTENT)
    store.troubles = ["no-ranges"]
    assert file_size(f"{store.url}/a.tar") == len(CONTENT)
    for trouble, message in (("403", "not allowed"), ("404", "no such file"), ("400", "HTTP 400")):
        store.troubles = [trouble]
        with pytest.raises(DataError, match=message):
            file_size(f"{store.url}/a.tar")


@pytest.mark.parametrize("troubles", [[], ["no-ranges"] * 9, ["503", "", "break 7", "503"]])
def test_a_file_on_a_web_server_is_read_with_ranges_or_without(store: Store, troubles: list[str]) -> None:
    store.troubles = list(troubles)
    with open_file(f"{store.url}/a.tar") as file:
        assert file.read(10) == CONTENT[:10]
        file.seek(500_000)
        assert file.read() == CONTENT[500_000:]


@pytest.mark.parametrize("url", ["http://h.invalid:port/a.tar", "http://[/a.tar"])
def test_an_address_that_is_none_is_not_asked_nine_times(url: str) -> None:
    reader = RangeReader(first_wait_s=60)
    with pytest.raises(DataError, match="cannot be read"):
        reader.read(url, 0, 10)
    reader.close()


def test_small_files_are_read_as_patiently(store: Store, reader: RangeReader) -> None:
    store.troubles = ["503", "500"]
    assert reader.read_all(f"{store.url}/a.tar") == CONTENT


@pytest.mark.parametrize("shape", [(), ("data.lanes=8", "data.window=5")])
def test_training_from_a_flaky_server_gives_the_batches_of_the_disk(
    tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch, shape: tuple[str, ...]
) -> None:
    local = write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    expected = digest(global_batches(recipe(local, *shape), 1, 0, 10))
    monkeypatch.setattr("vit_dist.data.segments.RangeReader", lambda: RangeReader(first_wait_s=0.01))
    config = recipe(f"{store.url}/manifest.json", *shape)
    from vit_dist.data.sets import open_training_set

    store.troubles = ["503", "break 100"]  # of the manifest itself: a whole job starts with it
    open_training_set(config)
    assert not store.troubles
    begin = len(store.asked)
    store.troubles = [""] + ["503", "break 100", "", "break 7000"] * 10
    assert digest(global_batches(config, 1, 0, 10)) == expected
    assert len(store.asked) > begin + 6


@contextlib.contextmanager
def serving_tls(tmp_path: Path, files: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """The URL of a server, and the certificate of the authority that has signed its own."""
    authority, context = signed(tmp_path)
    with Store(files) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}", authority
        finally:
            server.shutdown()
            thread.join()


def test_https_works_with_the_certificates_that_the_system_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving_tls(tmp_path, {"a.tar": CONTENT}) as (url, certificate):
        server = url.removeprefix("https://")
        words = rf"the certificate of {server} is not trusted \(.*local issuer.*\); "
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        distrustful = RangeReader(first_wait_s=60)
        for ask in (
            lambda: distrustful.read(f"{url}/a.tar", 3, 9),
            lambda: exists(f"{url}/a.tar"),
            lambda: read_manifest(f"{url}/manifest.json"),
            lambda: find_tars([f"{url}/"]),
        ):
            with pytest.raises(RefusedError, match=words + r"set SSL_CERT_FILE to a file \(PEM\)"):
                ask()
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
        with pytest.raises(RefusedError, match=words + r".*SSL_CERT_FILE names .*none\.pem, which is not there"):
            distrustful.read(f"{url}/a.tar", 3, 9)
        distrustful.close()
        monkeypatch.setenv("SSL_CERT_FILE", certificate)
        trusting = RangeReader(tries=1)
        assert trusting.read(f"{url}/a.tar", 3, 9) == CONTENT[3:9]
        trusting.close()


@pytest.fixture
def amazon(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The settings of somebody who asks S3, and no others."""
    for name in [name for name in os.environ if name.startswith(("AWS_", "VIT_DIST_S3_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    return monkeypatch


def test_s3_is_read_with_the_certificates_that_it_is_told(tmp_path: Path, amazon: pytest.MonkeyPatch) -> None:
    with serving_tls(tmp_path, {"bkt/a.tar": CONTENT}) as (url, certificate):
        amazon.setenv("AWS_ENDPOINT_URL_S3", url)
        reader = RangeReader(tries=1)
        with pytest.raises(DataError, match=r"(?i)certificate"):
            reader.read("s3://bkt/a.tar", 3, 9)
        amazon.setenv("AWS_CA_BUNDLE", certificate)
        s3_reads._client.cache_clear()
        assert reader.read("s3://bkt/a.tar", 3, 9) == CONTENT[3:9]
        s3_reads._client.cache_clear()
        reader.close()


@pytest.mark.parametrize("where", ["web", "s3"])
def test_as_many_connections_are_kept_as_there_are_readers(
    store: Store, amazon: pytest.MonkeyPatch, where: str
) -> None:
    amazon.setenv("AWS_ENDPOINT_URL_S3", store.url)
    store.files["bkt/a.tar"] = CONTENT
    url, readers = "s3://bkt/a.tar" if where == "s3" else f"{store.url}/bkt/a.tar", 72
    store.troubles = ["sleep 0", *["sleep 0.1"] * 3 * readers]
    together = threading.Barrier(readers)

    def read(number: int) -> None:
        for _ in range(3):
            together.wait(30)
            assert ranges.read(url, number, number + 9) == CONTENT[number : number + 9]

    with contextlib.closing(RangeReader()) as ranges, ThreadPoolExecutor(readers) as pool:
        # Nobody looks whether the server is there from here on.
        ranges.read(url, 0, 9)
        store.connections = 1
        list(pool.map(read, range(readers)))
    assert store.connections <= readers


def test_readers_that_begin_together_share_one_client_of_s3(amazon: pytest.MonkeyPatch) -> None:
    s3_reads._client.cache_clear()
    amazon.setenv("AWS_ENDPOINT_URL_S3", "http://s3.invalid")
    together = threading.Barrier(8)

    def client(_: int) -> s3_reads.S3Reads:
        together.wait(30)
        return s3_reads.s3_reads()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(client, range(8)))) == 1
    s3_reads._client.cache_clear()


ASKED = {
    "path style": ({}, "http://s3.invalid/bkt/a%20b.tar"),
    "the bucket in the host": ({"VIT_DIST_S3_PATH_STYLE": "0"}, "http://bkt.s3.invalid/a%20b.tar"),
    "requester pays": ({"VIT_DIST_S3_REQUESTER_PAYS": "1"}, "http://s3.invalid/bkt/a%20b.tar"),
    "anonymous": ({"VIT_DIST_S3_ANONYMOUS": "1"}, "http://s3.invalid/bkt/a%20b.tar"),
}


@pytest.mark.parametrize("how", ASKED)
def test_s3_is_asked_as_it_is_set_through_a_proxy(
    store: Store, reader: RangeReader, amazon: pytest.MonkeyPatch, how: str
) -> None:
    settings, address = ASKED[how]
    store.files[address] = CONTENT
    for name, value in {"AWS_ENDPOINT_URL_S3": "http://s3.invalid", "HTTP_PROXY": store.url, **settings}.items():
        amazon.setenv(name, value)
    amazon.delenv("http_proxy", raising=False)
    s3_reads._client.cache_clear()
    assert reader.read("s3://bkt/a b.tar", 3, 9) == CONTENT[3:9]
    sent = store.headers[0]
    assert (sent.get("x-amz-request-payer") == "requester") == (how == "requester pays")
    signed = sent.get("authorization", "")
    assert ("AWS4-HMAC-SHA256 Credential=key/" in signed and "/eu-west-1/s3/" in signed) == (how != "anonymous")
    s3_reads._client.cache_clear()


@pytest.mark.parametrize("status", ["301", "302", "307", "308"])
def test_a_signature_does_not_follow_a_redirect_to_others(
    store: Store, reader: RangeReader, amazon: pytest.MonkeyPatch, status: str
) -> None:
    amazon.setenv("AWS_ENDPOINT_URL_S3", store.url)
    store.troubles = [f"redirect{status} http://localhost:{store.server_port}/bkt/a.tar"]
    store.files["bkt/a.tar"] = CONTENT
    with pytest.raises(DataError, match=r"a\.tar: .*lies in another region, or behind another address"):
        reader.read("s3://bkt/a.tar", 3, 9)
    assert len(store.asked) == 1


@pytest.mark.parametrize("key", ["a/../b.tar", "./b.tar", "a/.", "b.tar?versionId=7"])
def test_keys_that_would_be_asked_for_by_another_name_are_left_to_s3fs(amazon: pytest.MonkeyPatch, key: str) -> None:
    assert s3_reads.reads("s3://bkt/a.tar")
    assert not s3_reads.reads(f"s3://bkt/{key}")
    assert not s3_reads.reads("gs://bkt/a.tar")
    amazon.setenv("VIT_DIST_S3_CLIENT", "fsspec")
    assert not s3_reads.reads("s3://bkt/a.tar")
    amazon.setenv("VIT_DIST_S3_CLIENT", "boto")
    with pytest.raises(DataError, match="VIT_DIST_S3_CLIENT is 'boto': set it to direct or fsspec"):
        s3_reads.reads("s3://bkt/a.tar")


def test_neighbours_are_read_at_once_and_far_ones_apart() -> None:
    def ranges(*pairs: tuple[int, int], gap: int = 10) -> list[tuple[int, int]]:
        begins, ends = (np.array(column, np.int64) for column in zip(*pairs, strict=True))
        return coalesce(begins, ends, gap)

    assert ranges((5, 7)) == [(5, 7)]
    assert ranges((0, 5), (15, 20), (31, 40)) == [(0, 20), (31, 40)]
    assert ranges((0, 50), (10, 20), (55, 56)) == [(0, 56)]
    assert ranges((0, 1), (100, 101), (200, 201)) == [(0, 1), (100, 101), (200, 201)]
