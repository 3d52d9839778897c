"""Errors of stores: each ends in one line; what waiting cannot mend is told from what it may."""

from __future__ import annotations

import errno
from typing import Any

import aiohttp
import botocore.exceptions as boto  # type: ignore[import-untyped]
import botocore.session  # type: ignore[import-untyped]
import pytest
import urllib3
import yarl
from fsspec.exceptions import FSTimeoutError
from s3fs.errors import translate_boto_error
from urllib3.exceptions import (
    MaxRetryError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    ResponseError,
    SSLError,
)

from vit_dist.core.errors import AwayError, DataError, MissingError, RefusedError
from vit_dist.core.store_errors import SLOW_DOWN_S, explained, is_expired, refuse_web_page, wait_s

POOL = urllib3.HTTPConnectionPool("h.invalid")
REQUEST: Any = aiohttp.RequestInfo(yarl.URL("http://h.invalid/a?sig=s3cr3t"), "GET", None, None)  # type: ignore[arg-type]


def s3(code: str, status: int, operation: str = "GetObject") -> boto.ClientError:
    response = {"Error": {"Code": code, "Message": "told by the store"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto.ClientError(response, operation)


def of_s3fs(code: str, status: int, operation: str = "GetObject") -> BaseException:
    error: BaseException = translate_boto_error(s3(code, status, operation))
    return error


FINAL = [
    boto.ProfileNotFound(profile="nosuch"),
    boto.NoCredentialsError(),
    boto.PartialCredentialsError(provider="env", cred_var="AWS_SECRET_ACCESS_KEY"),
    boto.SSOTokenLoadError(error_msg="no token"),
    boto.UnauthorizedSSOTokenError(),
    boto.InvalidConfigError(error_msg="x"),
    boto.ConfigParseError(path="~/.aws/config", error="x"),
    boto.NoRegionError(),
    boto.ParamValidationError(report="Invalid bucket name"),
    boto.UnknownEndpointError(service_name="s3", region_name="x"),
    boto.InvalidProxiesConfigError(),
    boto.EndpointProviderError(msg="x"),
    boto.SSLError(endpoint_url="https://h", error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed"),
    of_s3fs("AccessDenied", 403),
    of_s3fs("NoSuchBucket", 404),
    of_s3fs("ExpiredToken", 400),
    of_s3fs("InvalidArgument", 400),
    of_s3fs("PermanentRedirect", 301),
    of_s3fs("RequestTimeTooSkewed", 403),
    of_s3fs("InvalidObjectState", 403),
    of_s3fs("MadeUpByAnotherStore", 418),
    s3("NotImplemented", 501),
    aiohttp.InvalidURL("127.0.0.1:9000"),
    aiohttp.ClientResponseError(REQUEST, (), status=404),
    aiohttp.TooManyRedirects(REQUEST, ()),
    MaxRetryError(POOL, "/a", ResponseError("too many redirects")),
    MaxRetryError(POOL, "/a", SSLError("certificate verify failed: unable to get local issuer")),
    urllib3.exceptions.LocationParseError("http://["),
    ValueError("Invalid endpoint: 127.0.0.1:9000"),
    ImportError("no gcsfs"),
    NotImplementedError(),
    OSError(errno.EINVAL, "x"),
    OSError(errno.ENOSYS, "x"),
    IsADirectoryError(),
]
PASSING = [
    boto.EndpointConnectionError(endpoint_url="http://h"),
    boto.ConnectTimeoutError(endpoint_url="http://h"),
    boto.ReadTimeoutError(endpoint_url="http://h"),
    boto.ConnectionClosedError(endpoint_url="http://h"),
    boto.HTTPClientError(error="x"),
    boto.IncompleteReadError(actual_bytes=1, expected_bytes=2),
    boto.ResponseStreamingError(error="x"),
    boto.CredentialRetrievalError(provider="iam-role", error_msg="x"),
    boto.MetadataRetrievalError(error_msg="x"),
    of_s3fs("InternalError", 500),
    of_s3fs("RequestTimeout", 400),
    of_s3fs("500", 500, "HeadObject"),
    of_s3fs("MadeUpByAnotherStore", 502),
    of_s3fs("OperationAborted", 409),
    aiohttp.ServerDisconnectedError(),
    aiohttp.ClientPayloadError(),
    aiohttp.ClientResponseError(REQUEST, (), status=429),
    aiohttp.ClientConnectionError("x"),
    MaxRetryError(POOL, "/a", NewConnectionError(POOL, "refused")),  # type: ignore[arg-type]
    ReadTimeoutError(POOL, "/a", "x"),
    ProtocolError("broken"),
    FSTimeoutError(),
    TimeoutError(),
    ConnectionResetError(),
    TimeoutError("x"),
    OSError(errno.EIO, "x"),
]


@pytest.mark.parametrize("error", FINAL, ids=lambda e: f"{type(e).__name__} {e}"[:40])
def test_what_waiting_cannot_mend_is_not_waited_for(error: Exception) -> None:
    assert wait_s(error) is None


@pytest.mark.parametrize("error", PASSING, ids=lambda e: f"{type(e).__name__} {e}"[:40])
def test_what_may_pass_is_waited_for(error: Exception) -> None:
    assert wait_s(error) is not None


@pytest.mark.parametrize("error", [of_s3fs("SlowDown", 503), of_s3fs("503", 503), s3("RequestLimitExceeded", 400)])
def test_a_store_that_is_asked_too_often_is_left_alone_for_a_while(error: Exception) -> None:
    assert wait_s(error) == SLOW_DOWN_S


@pytest.mark.parametrize(
    "error",
    [
        *(of_s3fs(code, 400) for code in ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")),
        *(of_s3fs(code, 403) for code in ("RequestExpired", "InvalidAccessKeyId", "SignatureDoesNotMatch")),
        of_s3fs("400", 400, "HeadObject"),
        of_s3fs("403", 403, "HeadBucket"),
        boto.UnauthorizedSSOTokenError(),
        boto.SSOTokenLoadError(error_msg="x"),
    ],
    ids=repr,
)
def test_credentials_that_are_taken_no_longer_are_recognised(error: Exception) -> None:
    assert is_expired(error)


@pytest.mark.parametrize(
    "error",
    [of_s3fs("AccessDenied", 403), of_s3fs("400", 400), of_s3fs("404", 404, "HeadObject"), OSError("ExpiredToken")],
    ids=repr,
)
def test_other_refusals_are_no_matter_of_expiry(error: Exception) -> None:
    assert not is_expired(error)


@pytest.mark.parametrize(
    "error",
    [
        *(e for e in [*FINAL, *PASSING] if type(e) not in {ValueError, ImportError, NotImplementedError}),
        boto.BotoCoreError(),
        aiohttp.ClientError("several\nlines\nhttp://h.invalid/a?sig=s3cr3t"),
        urllib3.exceptions.HTTPError("http://me:s3cr3t@h.invalid/"),
    ],
    ids=lambda e: f"{type(e).__name__} {e}"[:40],
)
def test_every_error_of_a_store_ends_in_one_line_without_secrets(error: Exception) -> None:
    with pytest.raises(DataError) as caught, explained("s3://b/x", "read"):
        raise error
    text = str(caught.value)
    assert text.startswith("s3://b/x: ")
    assert "\n" not in text
    assert "s3cr3t" not in text


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (FileNotFoundError("x"), MissingError),
        (of_s3fs("NoSuchKey", 404), MissingError),
        (of_s3fs("AccessDenied", 403), RefusedError),
        (of_s3fs("InvalidAccessKeyId", 403), RefusedError),
        (s3("ExpiredToken", 400), RefusedError),
        (boto.NoCredentialsError(), RefusedError),
        (boto.ProfileNotFound(profile="nosuch"), RefusedError),
        (boto.EndpointConnectionError(endpoint_url="https://h"), AwayError),
        (aiohttp.ServerTimeoutError("x"), AwayError),
        (ConnectionResetError("x"), AwayError),
        (FSTimeoutError(), AwayError),
    ],
)
def test_an_error_says_whether_the_file_its_permission_or_the_store_is_missing(
    error: BaseException, kind: type[DataError]
) -> None:
    with pytest.raises(DataError) as caught, explained("s3://b/x", "read"):
        raise error
    assert type(caught.value) is kind


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), IsADirectoryError("x"), ConnectionResetError("x")])
def test_a_path_has_no_store_that_could_be_away(error: OSError) -> None:
    with pytest.raises(DataError) as caught, explained("/data/x", "read"):
        raise error
    assert type(caught.value) is DataError


def test_what_a_library_raises_of_its_own_is_told_as_well() -> None:
    session = botocore.session.Session()
    with pytest.raises(DataError, match="read: ValueError: Invalid endpoint"), explained("s3://b/x", "read"):
        session.create_client("s3", region_name="us-east-1", endpoint_url="127.0.0.1:9000")


@pytest.mark.parametrize("error", [KeyError("x"), ValueError("x"), AssertionError(), MemoryError(), TypeError("x")])
def test_a_mistake_of_ours_is_not_dressed_up(error: Exception) -> None:
    with pytest.raises(type(error)), explained("s3://b/x", "read"):
        raise error


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><html>", b"\xef\xbb\xbf \n<html lang=en>", b" <HTML>"])
def test_a_page_is_no_file(page: bytes) -> None:
    for told in ("text/html; charset=utf-8", None):
        with pytest.raises(DataError, match="web page"):
            refuse_web_page("https://h/a.tar", page, told)


@pytest.mark.parametrize(
    ("begin", "told"),
    [(b"a.jpg\0\0", "text/html"), (b"{}", "text/html"), (b"<html>", "application/x-tar"), (b"", ""), (b"<svg>", None)],
)
def test_a_file_is_no_page(begin: bytes, told: str | None) -> None:
    refuse_web_page("https://h/a.tar", begin, told)


@pytest.mark.parametrize(
    ("status", "code", "text", "seconds"),
    [
        (503, "SlowDown", "7", 7.0),
        (503, "SlowDown", "1", SLOW_DOWN_S),
        (503, "SlowDown", "", SLOW_DOWN_S),
        (503, "SlowDown", "3600", SLOW_DOWN_S),
        (500, "InternalError", "5", 5.0),
        (500, "InternalError", "-5", 0.0),
        (429, "TooManyRequests", "9", 9.0),
        (403, "AccessDenied", "9", None),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_store_of_amazons_that_says_when_to_come_back_is_heard(
    status: int, code: str, text: str, seconds: float | None, wrapped: bool
) -> None:
    said = {"HTTPStatusCode": status, "HTTPHeaders": {"retry-after": text} if text else {}}
    error: Exception = boto.ClientError({"Error": {"Code": code}, "ResponseMetadata": said}, "GetObject")
    if wrapped:
        # As s3fs does.
        error, error.__cause__ = OSError(5, code), error
    assert wait_s(error) == seconds
