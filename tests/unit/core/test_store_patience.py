"""A store that does not answer: what is said at once, and how soon it is given up where it never has answered."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# Where the first question of a process brings them in, it takes longer than these tests give an answer.
import s3fs  # noqa: F401

from tests.conftest import free_ports
from vit_dist.core import store_patience
from vit_dist.core.errors import AwayError, DataError, MissingError
from vit_dist.core.files import exists, read_bytes, write_bytes
from vit_dist.core.store_patience import asked_at, is_known, run_has_begun
from vit_dist.core.stores import _store
from vit_dist.data.ranges import RangeReader

TRIES = 5


@pytest.fixture(autouse=True)
def nobody_has_answered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(store_patience, "_state", store_patience._State())
    monkeypatch.setattr(store_patience, "SILENT_S", 0.05)
    monkeypatch.setattr(store_patience, "UNKNOWN_S", 1.0)
    monkeypatch.setattr(store_patience, "_LEAST_S", 0.2)
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    _store.cache_clear()
    yield
    _store.cache_clear()


@pytest.fixture
def reader() -> Iterator[RangeReader]:
    with contextlib.closing(RangeReader(tries=TRIES, first_wait_s=0.001, timeout_s=5)) as opened:
        yield opened


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are taken and nothing is said."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextlib.contextmanager
def answering(statuses: list[int]) -> Iterator[tuple[str, list[int]]]:
    """A web server that gives these statuses one after another, the last for ever; and what it gave."""
    given: list[int] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = statuses[min(len(given), len(statuses) - 1)]
            given.append(status)
            self.send_response(status)
            self.send_header("Content-Length", "4")
            self.end_headers()
            self.wfile.write(b"text")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/file", given
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
@pytest.mark.parametrize(
    "ask",
    [
        lambda url, reader: reader.read_all(url),
        lambda url, _: exists(url),
        lambda url, _: read_bytes(url),
        lambda url, _: write_bytes(url, b"x"),
    ],
    ids=["a set", "whether it is there", "a small file", "a write"],
)
def test_a_wrong_endpoint_is_told_at_once_with_its_setting_and_given_up_soon(
    ask: Callable[[str, RangeReader], object],
    variable: str,
    silent: int,
    reader: RangeReader,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{silent}")
    with pytest.raises(DataError) as error:
        ask("s3://bucket/file", reader)
    where = f"http://127.0.0.1:{silent}, from the environment variable {variable}"
    assert "no answer within" in str(error.value)
    assert f"it was looked for at {where}: check that address" in str(error.value)
    said = capsys.readouterr().err
    assert f"s3://bucket/file: no answer yet ({where}); asked again until " in said
    assert said.count("asked again") == 1


def test_it_is_told_too_where_all_its_time_was_gone_before_it_was_asked(
    silent: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{silent}")
    monkeypatch.setattr(store_patience, "UNKNOWN_S", 0.01)
    with pytest.raises(DataError, match="no answer within"):
        exists("s3://bucket/file")
    assert "no answer yet" in capsys.readouterr().err


def test_an_address_out_of_a_profile_is_named_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config").write_text("[profile lab]\nendpoint_url = http://minio:9000\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert asked_at("s3://b/x") == "Amazon's S3, as no AWS_ENDPOINT_URL_S3 is set"
    monkeypatch.setenv("AWS_PROFILE", "lab")
    assert asked_at("s3://b/x") == (
        "http://minio:9000, from endpoint_url of the profile 'lab' (AWS_PROFILE) in ~/.aws/config"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:secret@host")
    assert asked_at("S3://b/x") == "http://user:***@host, from the environment variable AWS_ENDPOINT_URL"
    assert asked_at("https://host/x") == asked_at("gs://b/x") == ""


def test_a_web_server_that_is_not_there_is_told_at_the_first_try(
    reader: RangeReader, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)
    with pytest.raises(DataError, match=r"refused, after \d tries"):
        reader.read_all(f"http://127.0.0.1:{port}/file")
    assert "refuses connections: nothing listens there; asked again until " in capsys.readouterr().err
    monkeypatch.setattr(store_patience, "_state", store_patience._State())
    monkeypatch.setattr(store_patience, "UNKNOWN_S", -1.0)
    with pytest.raises(DataError, match=r"refused, after 1 try"):
        reader.read_all(f"http://127.0.0.1:{port}/file")
    # What is asked once alone is not said to be asked again.
    assert not capsys.readouterr().err


NOBODY = {
    "a name": "no-such-host.invalid:9000",
    "a name that can be none": f"{'x' * 70}.invalid:9000",
    "a port": "127.0.0.1:{port}",
    "a port by its name": "localhost:{port}",
}


@pytest.mark.parametrize("place", NOBODY)
@pytest.mark.parametrize("scheme", ["s3", "http"])
@pytest.mark.parametrize("begun", [False, True])
def test_where_nobody_is_there_is_little_to_wait_for_unless_a_run_has_begun(
    place: str, scheme: str, begun: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(store_patience, "UNKNOWN_S", 300.0)
    monkeypatch.setattr(store_patience, "ABSENT_S", 0.2)
    monkeypatch.setattr(store_patience, "_KNOCK_S", 0.1)
    server = NOBODY[place].format(port=free_ports(1)[0])
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://{server}")
    if begun:
        run_has_begun()
    url = "s3://bucket/file" if scheme == "s3" else f"http://{server}/file"
    if begun:
        # All that is asked for then is that it is as patient as ever.
        assert store_patience.failed(url, "away", "for long") == float("inf")
        with store_patience.briefly():
            assert store_patience.failed(url, "away", "") <= 0.2
        return
    with pytest.raises(AwayError) as error, contextlib.closing(RangeReader(first_wait_s=0.01)) as opened:
        opened.read_all(url)
    said = capsys.readouterr().err
    # The library for the web refuses a name that can be none by itself.
    assert said.count("asked again") == (0 if (place, scheme) == ("a name that can be none", "http") else 1)
    if place == "a port":
        assert f"{server} refuses connections: nothing listens there" in said
    if scheme == "s3":
        assert f"it was looked for at http://{server}, from the environment variable" in str(error.value)
        # Whoever counts tries says how often the store was asked, and that is not known here.
        assert "after" not in str(error.value)
        assert any(what in str(error.value) for what in ("cannot be resolved", "refuses", "can be no host's name"))


def test_behind_a_proxy_and_of_amazons_own_nobody_is_asked_who_need_not_be_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (port,) = free_ports(1)
    assert store_patience.nobody_there(f"http://127.0.0.1:{port}/x")
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    assert store_patience.nobody_there(f"http://127.0.0.1:{port}/x") == ""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert store_patience.nobody_there(f"http://127.0.0.1:{port}/x")
    assert store_patience.nobody_there("s3://bucket/x") == store_patience.nobody_there("gs://bucket/x") == ""
    assert store_patience.nobody_there("http://[half/x") == store_patience.nobody_there("http://h:99999/x") == ""


@pytest.mark.parametrize("before", ["it has answered", "a run has begun", "it says that it is busy"])
def test_one_that_is_known_is_asked_as_often_as_ever(
    before: str, reader: RangeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not a moment for one that is unknown.
    monkeypatch.setattr(store_patience, "UNKNOWN_S", -1.0)
    first = [200] if before == "it has answered" else []
    with answering([*first, 503]) as (url, given):
        if before == "a run has begun":
            run_has_begun()
        if first:
            assert reader.read_all(url) == b"text"
            assert is_known(url)
        given.clear()
        if before == "it has answered":
            # What follows the first answer is the outage.
            given.append(200)
        with pytest.raises(DataError, match=f"HTTP 503 .*after {TRIES} tries"):
            reader.read_all(url)
        assert given.count(503) == TRIES


@pytest.mark.parametrize(("status", "kind"), [(404, MissingError), (403, DataError), (400, DataError)])
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_what_a_store_refuses_or_has_not_is_an_answer_too(
    scheme: str, status: int, kind: type[DataError], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_patience, "UNKNOWN_S", 30.0)
    with answering([status]) as (url, _):
        if scheme == "s3":
            monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url.removesuffix("/file"))
            url = "s3://bucket/file"
        with pytest.raises(kind) as error, contextlib.closing(RangeReader()) as patient:
            patient.read_all(url)
        assert "looked for at" not in str(error.value)
        assert is_known(url) or scheme == "http"
