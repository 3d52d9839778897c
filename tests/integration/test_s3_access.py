"""A store whose certificate an authority of one's own has signed, one that lets whoever asks pay, one for everybody."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import signed
from tests.laws.test_decode_processes import told
from tests.s3_faults import FaultyS3, faulty
from tests.shards import write_set
from tests.streams import recipe
from vit_dist.core import s3_reads, stores
from vit_dist.core.errors import DataError, RefusedError
from vit_dist.core.files import exists, explained, file_system, read_bytes, write_bytes
from vit_dist.data.manifest import read_manifest, write_manifest
from vit_dist.data.ranges import RangeReader, file_size

pytestmark = pytest.mark.s3

_CA_VARIABLES = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "AWS_PROFILE", "AWS_CONFIG_FILE")


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment, in which nobody is trusted; what is asked is asked by clients made for it."""
    for name in _CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    _forget()
    yield monkeypatch
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    stores._store.cache_clear()
    s3_reads._client.cache_clear()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ssl.SSLContext]:
    return signed(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def local_set(s3: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A manifest on the disk of a set that lies at {s3}/access, too."""
    folder = tmp_path_factory.mktemp("access")
    manifest = write_set(folder, num_samples=40, samples_per_shard=20, num_classes=4)
    for path in folder.iterdir():
        write_bytes(f"{s3}/access/{path.name}", path.read_bytes())
    return manifest


@pytest.fixture
def secure(s3: str, settings: pytest.MonkeyPatch, authority: tuple[str, ssl.SSLContext]) -> Iterator[FaultyS3]:
    """The store behind TLS."""
    with faulty(os.environ["AWS_ENDPOINT_URL_S3"], authority[1]) as server:
        settings.setenv("AWS_ENDPOINT_URL_S3", server.url)
        yield server


def _trust(settings: pytest.MonkeyPatch, how: str, authority: str, folder: Path) -> None:
    if how == "profile":
        (folder / "config").write_text(f"[profile site]\nca_bundle = {authority}\n")
        settings.setenv("AWS_CONFIG_FILE", str(folder / "config"))
        settings.setenv("AWS_PROFILE", "site")
    else:
        settings.setenv(how, authority)


@pytest.mark.parametrize("how", ["AWS_CA_BUNDLE", "profile"])
def test_an_authority_of_ones_own_is_trusted_by_all_that_asks(
    s3: str,
    local_set: str,
    secure: FaultyS3,
    settings: pytest.MonkeyPatch,
    authority: tuple[str, ssl.SSLContext],
    how: str,
    tmp_path: Path,
) -> None:
    _trust(settings, how, authority[0], tmp_path)
    there, shape = f"{s3}/access/manifest.json", ("data.lanes=2", "data.window=5")
    threads = told(recipe(local_set, *shape), 0, steps=3)
    assert told(recipe(there, *shape), 0, steps=3) == threads
    if how == "AWS_CA_BUNDLE":
        assert told(recipe(there, *shape), 1, steps=3) == threads
    for asked in _questions(s3, tmp_path).values():
        asked()


def _questions(s3: str, folder: Path) -> dict[str, Callable[[], Any]]:
    """Whatever is asked of a store, for shards, copies of checkpoints, logs and reports, by the name of it."""
    system, path = file_system(f"{s3}/access")
    (folder / "file").write_bytes(b"1234")
    shard, reader = f"{s3}/access/shard-000000.tar", RangeReader(tries=2, first_wait_s=0.01)

    def by_fsspec() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VIT_DIST_S3_CLIENT", "fsspec")
            reader.read(shard, 0, 1000)

    return {
        "range": lambda: reader.read(shard, 0, 1000),
        "range by fsspec": by_fsspec,
        "whole": lambda: read_bytes(f"{s3}/access/manifest.json"),
        "size": lambda: file_size(shard),
        "is there": lambda: exists(shard),
        "is not there": lambda: exists(f"{s3}/access/none"),
        "is a folder": lambda: system.isdir(path),
        "names": lambda: system.names(path),
        "below": lambda: system.find(path),
        "written": lambda: write_bytes(f"{s3}/access-2/a", b"1"),
        "copied there": lambda: system.put_file(str(folder / "file"), f"{path}-2/b"),
        "copied here": lambda: system.get_file(f"{path}-2/b", str(folder / "back")),
        "removed": lambda: system.rm_file(f"{path}-2/b"),
        "all removed": lambda: system.rm_tree(f"{path}-2"),
    }


def test_who_is_not_trusted_is_told_at_once_with_what_to_set(
    s3: str, secure: FaultyS3, settings: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    server = secure.url.partition("://")[2]
    words = (
        rf"the certificate of {server} is not trusted \(.*local issuer certificate\); asked was https://{server}, from "
        r"the environment variable AWS_ENDPOINT_URL_S3; set AWS_CA_BUNDLE, or ca_bundle of the profile .*, to a file"
    )
    for name, asked in _questions(s3, tmp_path).items():
        secure.connections = 0
        with pytest.raises(RefusedError, match=words), explained(f"{s3}/access", name):
            asked()
        # Knocks at the port among them, of a server that has never answered.
        assert secure.connections <= 4, name
    assert "asked again" not in capfd.readouterr().err


def test_a_decode_process_says_it_too(
    s3: str, local_set: str, secure: FaultyS3, settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manifest = read_manifest(local_set)
    shards = (
        replace(shard, url=f"{s3}/access/{shard.url}", index_url=f"{manifest.base}/{shard.index_url}")
        for shard in manifest.shards
    )
    write_manifest(replace(manifest, shards=tuple(shards)), str(tmp_path / "mixed.json"))
    for workers in (0, 1):
        with pytest.raises(
            DataError, match=r"shard-00000.\.tar: .*the certificate of .* is not trusted.*AWS_CA_BUNDLE"
        ):
            told(recipe(str(tmp_path / "mixed.json")), workers, steps=1)


@pytest.mark.parametrize("setting", ["AWS_CA_BUNDLE", "profile"])
def test_a_file_of_certificates_that_is_none_is_told_before_anybody_is_asked(
    s3: str, secure: FaultyS3, settings: pytest.MonkeyPatch, setting: str, tmp_path: Path
) -> None:
    (tmp_path / "empty.pem").write_text("no certificate")
    named = "AWS_CA_BUNDLE" if setting == "AWS_CA_BUNDLE" else "ca_bundle of the profile 'site'"
    for file, problem in (("none.pem", "not there"), ("empty.pem", "holds no certificate"), (".", "is a folder")):
        _trust(settings, setting, str(tmp_path / file), tmp_path)
        for client in ("direct", "fsspec"):
            settings.setenv("VIT_DIST_S3_CLIENT", client)
            _forget()
            with pytest.raises(DataError, match=rf"{named}.* names /.*, which .*{problem}: give a file \(PEM\)"):
                RangeReader().read(f"{s3}/access/shard-000000.tar", 0, 10)


def test_trust_in_another_authority_or_under_another_name_is_told_as_that(
    s3: str, secure: FaultyS3, settings: pytest.MonkeyPatch, authority: tuple[str, ssl.SSLContext], tmp_path: Path
) -> None:
    other, _ = signed(tmp_path)
    settings.setenv("AWS_CA_BUNDLE", other)
    shard = f"{s3}/access/shard-000000.tar"
    with pytest.raises(RefusedError, match=r"AWS_CA_BUNDLE names .*, which does not hold the authority"):
        RangeReader().read(shard, 0, 10)
    settings.setenv("AWS_CA_BUNDLE", authority[0])
    settings.setenv("AWS_ENDPOINT_URL_S3", secure.url.replace("127.0.0.1", "localhost.localdomain"))
    settings.setattr("socket.getaddrinfo", _all_here)
    for client in ("direct", "fsspec"):
        settings.setenv("VIT_DIST_S3_CLIENT", client)
        with pytest.raises(RefusedError, match=r"(?i)hostname mismatch.*; ask by a name that the certificate holds"):
            RangeReader().read(shard, 0, 10)
    settings.setenv("AWS_ENDPOINT_URL_S3", secure.target.replace("http:", "https:"))
    with pytest.raises(RefusedError, match=r"does not speak TLS.*is its address http:// in place of https://"):
        RangeReader().read(shard, 0, 10)


def _all_here(host: str, port: int, family: int = 0, kind: int = 0, *_: Any, **__: Any) -> list[Any]:
    import socket

    return [(socket.AF_INET, kind or socket.SOCK_STREAM, 6, "", ("127.0.0.1", int(port)))]


@pytest.fixture
def paid(s3: str, local_set: str, settings: pytest.MonkeyPatch) -> Iterator[FaultyS3]:
    """The store, which refuses whoever does not say that he pays."""
    with faulty(os.environ["AWS_ENDPOINT_URL_S3"]) as server:
        server.payer = True
        settings.setenv("AWS_ENDPOINT_URL_S3", server.url)
        yield server


def test_whoever_asks_says_that_he_pays_whatever_he_asks(
    s3: str, paid: FaultyS3, settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings.setenv("VIT_DIST_S3_REQUESTER_PAYS", "1")
    for asked in _questions(s3, tmp_path).values():
        asked()
    kinds = {asked.partition(" ")[0] for asked in paid.paid}
    assert kinds >= {"GET", "HEAD", "PUT", "DELETE"}
    assert not paid.unpaid


def test_whoever_does_not_pay_is_told_the_setting(
    s3: str, paid: FaultyS3, settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = "requester pays.*set VIT_DIST_S3_REQUESTER_PAYS=1"
    for name, asked in _questions(s3, tmp_path).items():
        with pytest.raises(RefusedError, match=words), explained(s3, name):
            asked()


def test_without_credentials_what_is_for_everybody_is_read_and_the_rest_is_refused_as_that(
    s3: str, local_set: str, settings: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    open_to_all = f"{s3}-open"
    if not file_system(open_to_all)[0].exists("vit-dist-test-open"):
        file_system(open_to_all)[0].mkdir("vit-dist-test-open")
    for path in Path(local_set).parent.iterdir():
        write_bytes(f"{open_to_all}/access/{path.name}", path.read_bytes())
    expected = told(recipe(local_set), 0, steps=2)
    settings.setenv("VIT_DIST_S3_ANONYMOUS", "1")
    for client in ("direct", "fsspec"):
        settings.setenv("VIT_DIST_S3_CLIENT", client)
        assert told(recipe(f"{open_to_all}/access/manifest.json"), 0, steps=2) == expected
    for name, asked in _questions(s3, tmp_path).items():
        with pytest.raises(RefusedError) as refused, explained(s3, name):
            asked()
        said = str(refused.value)
        assert "without credentials this may not be done" in said
        assert "unset VIT_DIST_S3_ANONYMOUS and give credentials" in said
        assert "AWS_ACCESS_KEY_ID" not in said, "nobody was asked with them"
