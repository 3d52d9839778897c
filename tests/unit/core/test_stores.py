"""A store that refuses credentials, ranges or everything: what is asked of it again, and what is told."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vit_dist.core.errors import DataError
from vit_dist.core.files import exists, file_system, read_bytes, write_bytes
from vit_dist.data.ranges import RangeReader, open_file

DATA = bytes(range(256)) * 64


class Store(ThreadingHTTPServer):
    """As much of S3 as reading and writing one object takes, for those whose key is `allowed`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.allowed, self.known, self.ranges = "", "", True
        self.refusing: Callable[[], object] = lambda: None
        self.asked: list[tuple[str, str]] = []


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Store

    def do_GET(self) -> None:
        sent = self.headers.get("Authorization", "")
        key = sent.partition("Credential=")[2].partition("/")[0]
        self.server.asked.append((self.command, key))
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if key != self.server.allowed:
            self.server.refusing()
            return self.answer(400, b"<Error><Code>ExpiredToken</Code><Message>no</Message></Error>")
        if self.command == "PUT":
            return self.answer(200, b"", {"ETag": '"x"'})
        asked = self.headers.get("Range", "")
        if not asked or not self.server.ranges:
            return self.answer(200, DATA, {"ETag": '"x"', "Last-Modified": "Thu, 26 Nov 2026 06:00:00 GMT"})
        first, last = (int(x) for x in asked.removeprefix("bytes=").split("-"))
        part = DATA[first : last + 1]
        return self.answer(206, part, {"Content-Range": f"bytes {first}-{first + len(part) - 1}/{len(DATA)}"})

    do_PUT = do_HEAD = do_GET  # noqa: N815

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


Renew = Callable[[str], None]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Path]]:
    """A store, and the file that its credentials are read from: one for all tests, since clients are dear to make."""
    folder = tmp_path_factory.mktemp("aws")
    with pytest.MonkeyPatch.context() as patch, Store() as server:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
        patch.setenv("AWS_CONFIG_FILE", str(folder / "config"))
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server, folder / "credentials"
        server.shutdown()
        thread.join()


@pytest.fixture
def renew(environment: tuple[Store, Path]) -> Renew:
    """renew(key): write other credentials into the file, as `aws sso login` and its like do; only they are allowed."""

    def write(key: str) -> None:
        text = f"[default]\naws_access_key_id={key}\naws_secret_access_key=s\naws_session_token=t-{key}\n"
        environment[1].write_text(text, encoding="utf-8")
        environment[0].allowed = environment[0].known = key

    return write


@pytest.fixture
def store(environment: tuple[Store, Path], renew: Renew) -> Store:
    """The store, where the key of now is allowed and known; whatever was asked before is forgotten."""
    server = environment[0]
    if not server.known:
        renew("KEY")
        assert exists("s3://bkt/x")
        assert range_of("s3://bkt/x") == DATA[100:200]
    server.allowed, server.ranges, server.refusing = server.known, True, lambda: None
    server.asked.clear()
    return server


def range_of(url: str) -> bytes:
    reader = RangeReader(tries=2, first_wait_s=0.01)
    try:
        return bytes(reader.read(url, 100, 200))
    finally:
        reader.close()


def put(url: str) -> None:
    system, path = file_system(url)
    system.put_file(__file__, path)


USES: dict[str, Callable[[str], object]] = {
    "a range": range_of,
    "a whole file": read_bytes,
    "whether it is there": exists,
    "writing": lambda url: write_bytes(url, b"new"),
    "uploading": put,
    "as a file": lambda url: open_file(url).read(300),
}


@pytest.mark.parametrize("use", USES)
def test_credentials_that_were_renewed_are_read_anew(store: Store, renew: Renew, use: str) -> None:
    new = f"{store.allowed}x"
    renew(new)
    USES[use]("s3://bkt/x")
    keys = [key for _, key in store.asked]
    assert keys[0] != keys[-1] == new
    store.asked.clear()
    USES[use]("s3://bkt/x")
    assert {key for _, key in store.asked} == {new}


@pytest.mark.parametrize("use", ["a range", "a whole file", "writing", "whether it is there"])
def test_credentials_that_are_the_same_as_before_are_an_error_at_once(store: Store, use: str) -> None:
    store.allowed = "ANOTHER"
    with pytest.raises(DataError, match=r"s3://bkt/x: .*these credentials have expired, and no others were found"):
        USES[use]("s3://bkt/x")
    # An answer to HEAD says nothing: botocore asks for the bucket's region then, and what lies there is listed.
    assert len(store.asked) == (1 if store.asked[0][0] != "HEAD" else 3)


def test_credentials_may_be_renewed_again_and_again(store: Store, renew: Renew) -> None:
    for key in (f"{store.allowed}1", f"{store.allowed}2"):
        renew(key)
        assert read_bytes("s3://bkt/x") == DATA


def test_many_threads_renew_once(store: Store, renew: Renew) -> None:
    old = store.allowed
    renew(f"{old}y")
    reader = RangeReader(tries=2, first_wait_s=0.01)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda i: bytes(reader.read("s3://bkt/x", i, i + 9)), range(64)))
    reader.close()
    assert got == [DATA[i : i + 9] for i in range(64)]
    assert sum(key == old for _, key in store.asked) <= 8


def test_credentials_that_cannot_be_read_leave_the_stores_own_words(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.allowed = "ANOTHER"
    monkeypatch.setenv("AWS_PROFILE", "nosuch")
    with pytest.raises(DataError, match="renew them"):
        range_of("s3://bkt/x")


def test_a_store_that_gives_the_whole_file_for_a_range_is_told(store: Store) -> None:
    store.ranges = False
    reader = RangeReader(tries=2, first_wait_s=0.01)
    assert reader.read("s3://bkt/x", 0, 50) == DATA[:50]
    with pytest.raises(DataError, match=r"does not serve byte ranges \(asked for 50 bytes, it gave 16,384\)"):
        reader.read("s3://bkt/x", 50, 100)
    reader.close()
    assert len(store.asked) == 2


def test_a_file_in_a_store_is_read_from_anywhere(store: Store) -> None:
    with open_file("s3://bkt/x") as file:
        assert file.read(10) == DATA[:10]
        file.seek(-5, 2)
        assert file.read() == DATA[-5:]
        file.seek(1000)
        assert (file.tell(), file.read(3)) == (1000, DATA[1000:1003])
        assert file.read() == DATA[1003:]
        assert file.read() == b""


@pytest.fixture
def helper(environment: tuple[Store, Path], store: Store, renew: Renew) -> Iterator[Callable[[str, str], Path]]:
    """helper(key, more): credentials come from a program; `key` is in the words of a shell. -> its folder."""
    folder, known = environment[1].parent, store.known

    def write(key: str, more: str = "") -> Path:
        environment[1].unlink()
        script = folder / "helper.sh"
        said = f'{{"Version":1,"AccessKeyId":"\'{key}\'","SecretAccessKey":"s","SessionToken":"t"{more}}}'
        script.write_text(f"cd {folder}; echo >> calls; echo '{said}'\n")
        (folder / "config").write_text(f"[default]\ncredential_process = /bin/sh {script}\n")
        return folder

    yield write
    (folder / "config").unlink()
    renew(f"{known}z")
    assert read_bytes("s3://bkt/x") == DATA
    assert range_of("s3://bkt/x") == DATA[100:200]


@pytest.mark.parametrize("use", ["a range", "a whole file", "writing", "whether it is there"])
def test_a_program_that_always_has_other_credentials_is_not_asked_for_ever(
    store: Store, helper: Callable[..., Path], use: str
) -> None:
    helper("$(grep -c ^ calls)")
    store.allowed = "ANOTHER"
    with pytest.raises(DataError, match=r"s3://bkt/x: .*these credentials have expired"):
        USES[use]("s3://bkt/x")
    assert 2 <= len({key for _, key in store.asked}) <= 6


def test_credentials_that_have_renewed_themselves_meanwhile_are_tried(
    store: Store, helper: Callable[..., Path]
) -> None:
    # Soon: they are read again before each use.
    soon = datetime.now(UTC) + timedelta(minutes=2)
    key = helper("$(cat key)", f',"Expiration":"{soon:%Y-%m-%dT%H:%M:%SZ}"') / "key"
    key.write_text("A")
    store.allowed = "A"
    assert range_of("s3://bkt/x") == DATA[100:200]
    store.allowed = "B"
    store.refusing = lambda: key.write_text("B")
    assert range_of("s3://bkt/x") == DATA[100:200]
