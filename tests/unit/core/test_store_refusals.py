"""What a store refuses is told by its reason: what is wrong, who was asked, and what to do; never a secret."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import botocore.exceptions as boto  # type: ignore[import-untyped]
import pytest
from s3fs.errors import translate_boto_error

from tests.conftest import free_ports
from vit_dist.core import store_patience
from vit_dist.core.errors import AwayError, DataError, MissingError, RefusedError
from vit_dist.core.files import exists, read_bytes, write_bytes
from vit_dist.core.run.copies import check_place
from vit_dist.core.store_errors import explained, is_expired
from vit_dist.core.store_refusals import REFUSALS, credentials_from
from vit_dist.core.stores import _store, storage_options

SECRET, TOKEN = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLE", "IQoJb3JpZ2luX2VjEXAMPLETOKEN"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    _store.cache_clear()
    yield
    _store.cache_clear()


def error_of(code: str, status: int = 403, text: str = "told by the store") -> BaseException:
    response = {"Error": {"Code": code, "Message": text}, "ResponseMetadata": {"HTTPStatusCode": status}}
    found: BaseException = translate_boto_error(boto.ClientError(response, "GetObject"))
    return found


def told(error: BaseException, url: str = "s3://photos/train/manifest.json", doing: str = "read") -> DataError:
    with pytest.raises(DataError) as caught, explained(url, doing):
        raise error
    return caught.value


KEYS = "with credentials from the environment variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


@pytest.mark.parametrize(
    ("code", "status", "what", "advice", "of_credentials"),
    [
        ("SignatureDoesNotMatch", 403, "the secret key does not belong to the access key", "AWS_SECRET_ACCESS_", True),
        ("InvalidAccessKeyId", 403, "the store does not know this access key", "correct the key, or the addr", True),
        ("ExpiredToken", 400, "these credentials have expired", "renew them", True),
        ("InvalidToken", 400, "the store takes the session token for none of its own", "unset AWS_SESSION_TO", True),
        ("AccessDenied", 403, "these credentials are known, and may not do this", "bucket 'photos' allow it", True),
        ("RequestTimeTooSkewed", 403, "the clock of this machine is not the store's", "date -u", False),
        ("PermanentRedirect", 301, "bucket 'photos' lies in another region", "set AWS_REGION", False),
        ("AuthorizationHeaderMalformed", 400, "bucket 'photos' lies in another region", "set AWS_REGION", False),
        ("301", 301, "bucket 'photos' lies in another region", "get-bucket-location", False),
        ("NoSuchBucket", 404, "there is no bucket 'photos'", "aws s3 mb s3://photos", False),
        ("InvalidBucketName", 400, "'photos' can be no bucket's name", "small letters", False),
        ("InvalidObjectState", 403, "the file is archived", "restore it", False),
    ],
)
def test_each_reason_has_words_of_its_own(code: str, status: int, what: str, advice: str, of_credentials: bool) -> None:
    error = told(error_of(code, status))
    text = str(error)
    assert text.startswith(f"s3://photos/train/manifest.json: cannot be read: {what}")
    assert f"({code}: told by the store)" in text
    assert "; asked was http://store:9000, from the environment variable AWS_ENDPOINT_URL_S3" in text
    assert advice in text.rpartition("; ")[2] + text
    assert (KEYS in text) == of_credentials
    assert type(error) is (MissingError if code == "NoSuchBucket" else RefusedError)
    assert "\n" not in text


def test_a_wrong_secret_is_not_called_expired() -> None:
    for code in ("SignatureDoesNotMatch", "InvalidAccessKeyId", "AccessDenied", "RequestTimeTooSkewed"):
        assert "expired" not in str(told(error_of(code)))
    # Others are looked for all the same: they may have been renewed meanwhile.
    assert is_expired(error_of("SignatureDoesNotMatch"))
    assert not is_expired(error_of("AccessDenied"))


@pytest.mark.parametrize("code", sorted(REFUSALS))
def test_no_secret_is_told(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://me:hunter2@store:9000")
    echoed = f"no: x-amz-security-token={TOKEN}&Signature=abc123def AWSAccessKeyId=AKIAIOSFODNN7EXAMPLE"
    text = str(told(error_of(code, text=echoed)))
    for secret in (SECRET, TOKEN, "hunter2", "abc123def", "AKIAIOSFODNN7EXAMPLE"):
        assert secret not in text


@pytest.mark.parametrize(
    ("environ", "source"),
    [
        ({"AWS_ACCESS_KEY_ID": "x"}, "the environment variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ({"AWS_ACCESS_KEY_ID": "x", "AWS_PROFILE": "lab"}, "the environment variables AWS_ACCESS_KEY_ID and AWS_SECR"),
        ({"AWS_PROFILE": "lab"}, "the profile 'lab' (AWS_PROFILE) in ~/.aws"),
        ({}, "the default profile in ~/.aws, or the role of this machine"),
    ],
)
def test_it_is_told_where_credentials_come_from(
    environ: dict[str, str], source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert credentials_from().startswith(source)


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"])
@pytest.mark.parametrize("value", [f"{SECRET}\n", f" {SECRET}", f"{SECRET}\r", f"{SECRET[:9]} {SECRET[9:]}"])
def test_a_secret_with_a_line_break_is_refused_by_its_name_alone(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=f"the environment variable {name} holds a blank or a line break") as caught:
        storage_options("s3")
    assert SECRET[:9] not in str(caught.value)


@pytest.mark.parametrize(
    "ask",
    [exists, check_place],
    ids=["exists", "checkpoint.remote"],
)
def test_a_store_that_refuses_connections_is_asked_until_the_moment_that_is_told(
    ask: Callable[[str], object], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not until the library has had enough, which is before it or after it."""
    monkeypatch.setattr(store_patience, "_state", store_patience._State())
    monkeypatch.setattr(store_patience, "UNKNOWN_S", 1.0)
    monkeypatch.setattr(store_patience, "SILENT_S", 0.05)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_ports(1)[0]}")
    began = time.monotonic()
    with pytest.raises(AwayError):
        ask("s3://bucket/file")
    assert "asked again until " in capsys.readouterr().err
    assert time.monotonic() - began >= 1.0


SECRET_IS_WRONG = ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "s3://vit-dist-test/x", "the secret key does not belong to")


@pytest.mark.s3
@pytest.mark.parametrize(
    ("environ", "url", "what", "ask"),
    [
        (*SECRET_IS_WRONG, check_place),
        # An answer to HEAD has no body, so that another question is asked.
        (*SECRET_IS_WRONG, exists),
        (*SECRET_IS_WRONG, lambda url: write_bytes(url, b"x")),
        ({"AWS_ACCESS_KEY_ID": "wrong"}, "s3://vit-dist-test/x", "the store does not know this access key", read_bytes),
        ({}, "s3://nobody-has-made-it/x", "there is no bucket 'nobody-has-made-it'", check_place),
    ],
)
def test_a_real_store_is_understood(
    s3: str,
    environ: dict[str, str],
    url: str,
    what: str,
    ask: Callable[[str], object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert s3
    monkeypatch.undo()
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    _store.cache_clear()
    with pytest.raises(DataError, match=what) as caught:
        ask(url)
    assert "from the environment variable AWS_ENDPOINT_URL_S3" in str(caught.value)
