"""A store that breaks off, stalls, lies and refuses: the stream's digest stays, or an error says what and where."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.s3_faults import FaultyS3, faulty
from tests.shards import write_set
from tests.streams import digest, global_batches, recipe
from vit_dist.core.errors import DataError
from vit_dist.core.files import write_bytes
from vit_dist.data.ranges import RangeReader

pytestmark = pytest.mark.s3
CONTENT = bytes(range(256)) * 4096
CLIENTS = ("direct", "fsspec")


@pytest.fixture(scope="module")
def proxy(s3: str) -> Iterator[FaultyS3]:
    """In front of the server for all tests of this file: clients are dear to make."""
    write_bytes(f"{s3}/faults/a b.tar", CONTENT)
    with faulty(os.environ["AWS_ENDPOINT_URL_S3"]) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", server.url)
        yield server


@pytest.fixture
def store(proxy: FaultyS3) -> FaultyS3:
    proxy.troubles.clear()
    proxy.asked.clear()
    proxy.together = None
    return proxy


@pytest.fixture
def url(s3: str) -> str:
    return f"{s3}/faults/a b.tar"


@pytest.fixture
def reader() -> Iterator[RangeReader]:
    ranges = RangeReader(tries=4, first_wait_s=0.01, timeout_s=0.5)
    yield ranges
    ranges.close()


MENDED = {
    "reset in mid-body": ["reset 300000", "reset 7"],
    "broken in mid-body": ["break 300000", "break 1"],
    "reset before the body": ["reset 0", "reset 0"],
    "internal error": ["500", "500"],
    "silent in mid-body": ["stall 200000"],
    "silent at once": ["stall 0"],
    "a shorter part": ["short 100000", "short 1"],
    "another part": ["other 1000", "other 1"],
    "no HTTP": ["garbage"],
    "elsewhere": ["redirect"],
    "another region": ["region eu-central-1"],
    "much at once": ["500", "break 9", "other 5", "reset 100", "short 50", "stall 10", "redirect"],
}


@pytest.mark.parametrize("troubles", MENDED.values(), ids=MENDED)
def test_a_range_is_whole_after_any_trouble_that_passes(
    store: FaultyS3, reader: RangeReader, url: str, troubles: list[str]
) -> None:
    store.troubles = list(troubles)
    assert reader.read(url, 1000, 1_000_000) == CONTENT[1000:1_000_000]
    assert not store.troubles


@pytest.mark.parametrize("harm", ["reset", "break", "short"])
def test_what_came_is_not_asked_for_again(store: FaultyS3, reader: RangeReader, url: str, harm: str) -> None:
    store.troubles = [f"{harm} 300000"]
    reader.read(url, 1000, 1_000_000)
    begins = [int(asked.removeprefix("bytes=").partition("-")[0]) for _, asked, _ in store.asked]
    assert len(begins) == 2
    assert begins[0] == 1000
    # What a reset finds in the buffers of the system is lost with the connection.
    assert begins[1] == 301_000 if harm != "reset" else 1000 <= begins[1] <= 301_000


@pytest.mark.parametrize("trouble", ["503 2", "503"])
def test_a_store_that_wants_less_is_left_alone_a_while(
    store: FaultyS3, reader: RangeReader, url: str, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(reader._stopped, "wait", waits.append)
    store.troubles = [trouble] * 3
    assert reader.read(url, 0, 100) == CONTENT[:100]
    assert all(2 <= wait <= 2.5 for wait in waits)
    assert len(set(waits)) == len(waits) == 3, "all ranks would be back at once"


def test_an_index_that_came_short_is_read_on(store: FaultyS3, reader: RangeReader, url: str) -> None:
    store.troubles = ["short 1000", "break 70000", "503", "reset 5", "cut 9", "other 3"]
    assert reader.read_all(url) == CONTENT
    assert not store.troubles


@pytest.mark.parametrize(
    ("trouble", "cause", "asked"),
    [
        ("500", "InternalError", 4),
        ("reset 0", "(?i)reset|abort", 4),
        ("stall 0", "timed out", 4),
        ("other 10", r"asked for bytes 500000 to 500999, it sent 'bytes 500010-501009/1048576'", 4),
        ("garbage", "BadStatusLine|ProtocolError|Connection", 4),
        ("denied", "these credentials are known, and may not do this", 1),
        ("expired", "have expired, and no others were found", 1),
        ("page", "does not serve byte ranges|web page", 1),
        ("cut 10", "-", 101),
    ],
)
def test_trouble_that_stays_is_told_with_shard_range_cause_and_tries(
    store: FaultyS3, reader: RangeReader, url: str, trouble: str, cause: str, asked: int
) -> None:
    if trouble == "cut 10":
        # Ten bytes a try are few, and still no reason to give up.
        store.troubles = [trouble] * 100
        assert reader.read(url, 500_000, 501_001) == CONTENT[500_000:501_001]
        assert len(store.asked) == asked
        return
    store.troubles = [trouble] * 99
    with pytest.raises(DataError, match=cause) as told:
        reader.read(url, 500_000, 501_000)
    assert len(store.asked) == asked
    assert "faults/a b.tar: " in str(told.value)
    if asked > 1:
        assert f"after {asked} tries at bytes 500000 to 500999" in str(told.value)


@pytest.mark.parametrize(
    ("trouble", "what"), [("tag", r"its ETag was .*, and is '\"another\"'"), ("longer", "had 1,048,576 bytes, and has")]
)
@pytest.mark.parametrize("client", ["direct"])
def test_a_shard_that_is_written_again_in_mid_run_is_told(
    store: FaultyS3, reader: RangeReader, url: str, trouble: str, what: str, client: str
) -> None:
    reader.read(url, 0, 100)
    store.troubles = ["break 50", trouble]
    with pytest.raises(DataError, match=rf"a b\.tar: was written again while it was read: .*{what}"):
        reader.read(url, 100, 200)


def test_all_who_asked_in_the_wrong_region_ask_in_the_right_one(store: FaultyS3, reader: RangeReader, url: str) -> None:
    # None is answered before all have asked.
    store.together, store.troubles = threading.Barrier(4), ["region eu-south-2"] * 4
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda start: bytes(reader.read(url, start, start + 9)), range(4)))
    assert found == [CONTENT[start : start + 9] for start in range(4)]
    assert [signed.split("/")[2] for _, _, signed in store.asked[4:]] == ["eu-south-2"] * 4


def test_credentials_that_expire_in_mid_run_are_read_anew(
    store: FaultyS3, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(token: str) -> None:
        lines = f"[default]\naws_access_key_id=test-access-key\naws_secret_access_key=test-secret-key\n{token}"
        (tmp_path / "credentials").write_text(lines)

    write("")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    # Asked by another name, so that this client is one of its own.
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", store.url.replace("127.0.0.1", "localhost"))
    reader = RangeReader(tries=2, first_wait_s=0.01)
    assert reader.read(url, 0, 100) == CONTENT[:100]
    write("aws_session_token=renewed\n")
    store.troubles = ["expired"]
    # The server knows no sessions: what it says of this one shows that it was sent.
    with pytest.raises(DataError):
        reader.read(url, 100, 200)
    assert [asked for _, asked, _ in store.asked] == ["bytes=0-99", "bytes=100-199", "bytes=100-199"]
    reader.close()


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("shape", [(), ("data.lanes=8", "data.window=5")])
def test_the_stream_is_the_same_through_every_fault(
    tmp_path: Path,
    s3: str,
    store: FaultyS3,
    monkeypatch: pytest.MonkeyPatch,
    shape: tuple[str, ...],
    client: str,
) -> None:
    local = write_set(tmp_path, num_samples=60, samples_per_shard=20, num_classes=4)
    for path in tmp_path.iterdir():
        write_bytes(f"{s3}/faulty-stream/{path.name}", path.read_bytes())
    expected = digest(global_batches(recipe(local, *shape), 1, 0, 6))
    monkeypatch.setenv("VIT_DIST_S3_CLIENT", client)
    monkeypatch.setattr(
        "vit_dist.data.segments.RangeReader", lambda: RangeReader(tries=6, first_wait_s=0.01, timeout_s=0.5)
    )
    troubles = ["", "500", "break 100", "", "reset 2000"]
    if client == "direct":
        # fsspec gives no ground to tell these by.
        troubles += ["short 999", "cut 7", "other 7", "stall 300", "redirect", "garbage", "region eu-central"]
    # Names that no test before has left behind: who asks in a region and is sent to it has nowhere to go.
    named = [
        [f"{trouble}-{place}{len(shape)}" if "region" in trouble else trouble for trouble in troubles] for place in "ab"
    ]
    store.troubles = [*named[0], *named[1]]
    assert digest(global_batches(recipe(f"{s3}/faulty-stream/manifest.json", *shape), 1, 0, 6)) == expected
    assert len(store.troubles) < len(troubles)


def test_whoever_may_read_without_a_name_sends_none(
    s3: str, store: FaultyS3, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VIT_DIST_S3_ANONYMOUS", "1")
    reader = RangeReader(tries=2, first_wait_s=0.01)
    write_name = f"{s3}-open/a.tar"
    with pytest.raises(DataError, match="without credentials this may not be done"):
        reader.read(url, 0, 10)
    monkeypatch.delenv("VIT_DIST_S3_ANONYMOUS")
    from vit_dist.core.files import file_system

    # Another module may have made it, on the same server.
    if not file_system(s3)[0].exists("vit-dist-test-open"):
        file_system(s3)[0].mkdir("vit-dist-test-open")
    write_bytes(write_name, CONTENT)
    monkeypatch.setenv("VIT_DIST_S3_ANONYMOUS", "1")
    store.asked.clear()
    for client in CLIENTS:
        monkeypatch.setenv("VIT_DIST_S3_CLIENT", client)
        assert reader.read(write_name, 5, 1000) == CONTENT[5:1000]
    assert {signed for _, _, signed in store.asked} == {""}
    reader.close()
