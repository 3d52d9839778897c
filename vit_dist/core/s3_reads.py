"""Byte ranges of objects on S3, straight into memory: signed by botocore, fetched by urllib3 in threads. No torch.

s3fs gives a range as a text of its own, at three times the CPU time (docs/performance.md); it stays in charge of all
else, and of what is not read here (`reads`).
"""

from __future__ import annotations

import os
import re
import ssl
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass
from xml.etree import ElementTree

import urllib3

from vit_dist.core.certificates import trusted_for_s3
from vit_dist.core.errors import DataError, MissingError
from vit_dist.core.store_errors import is_answer, is_expired, is_past_the_end, refuse_web_page, wait_s, whole_number
from vit_dist.core.stores import MOST_RENEWALS, storage_options
from vit_dist.core.urls import is_s3, redact, split_url
from vit_dist.core.versions import Versions
from vit_dist.core.web_answers import Transient, ask, check_range, connections, finish, no_ranges, read_into, some
from vit_dist.core.web_answers import worth_waiting as worth_waiting_for

_MOST_ERROR_BYTES = 1 << 14
_SNIFFED = 200
_MOST_MOVES = 4
_MOVED = frozenset({301, 302, 307, 308})
_AMAZON = re.compile(r"\.amazonaws\.com(\.cn)?$")
# What urllib3 would take for steps between folders.
_STEPS = re.compile(r"(^|/)\.{1,2}(/|$)")
_CLIENT_VARIABLE = "VIT_DIST_S3_CLIENT"


def reads(url: str) -> bool:
    """Whether ranges of this URL are read here; else by fsspec, as where VIT_DIST_S3_CLIENT=fsspec is set.

    Raises:
        DataError: the variable says neither that nor `direct`.
    """
    chosen = os.environ.get(_CLIENT_VARIABLE, "direct")
    if chosen not in {"direct", "fsspec"}:
        raise DataError(f"the environment variable {_CLIENT_VARIABLE} is {chosen!r}: set it to direct or fsspec")
    if chosen != "direct" or not is_s3(url):
        return False
    bucket, _, key = split_url(url)[1].partition("/")
    # Access points and directory buckets are signed in other ways; `?versionId=` is s3fs's own spelling.
    special = bucket.startswith("arn:") or bucket.endswith("--x-s3") or "?versionId=" in key
    return bool(key) and not special and not _STEPS.search(key)


def s3_reads() -> S3Reads:
    """The one client of this process for the settings of now: connections and credentials are shared."""
    # A forked process must not speak over the connections of its parent.
    wanted = repr(sorted(storage_options("s3").items())), os.getpid()
    # All readers ask at once at the start: else each would make one, and look for credentials.
    with _making:
        return _client(*wanted)


_making = threading.Lock()


@cache
def _client(options: str, process: int) -> S3Reads:  # noqa: ARG001 - the key of the cache
    return S3Reads()


class _CapturedError(Exception):
    """The address that botocore would have asked."""


class _Account:
    """Credentials, and where buckets are, as botocore finds them."""

    def __init__(self) -> None:
        import botocore.session
        from botocore import UNSIGNED
        from botocore.config import Config

        self._options = storage_options("s3")
        self._session = botocore.session.Session()
        self._config = Config(
            signature_version=UNSIGNED, retries={"total_max_attempts": 1}, **self._options["config_kwargs"]
        )
        self.credentials = None if self._options.get("anon") else self._session.get_credentials()
        self.headers = {"x-amz-request-payer": "requester"} if self._options.get("requester_pays") else {}
        self._clients: dict[str, Any] = {}
        self._folders: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    def frozen(self) -> Any:
        """The credentials of now, renewed where they know how; None to sign nothing.

        Raises:
            botocore.exceptions.NoCredentialsError: there are none.
        """
        if self._options.get("anon"):
            return None
        if self.credentials is None:
            from botocore.exceptions import NoCredentialsError

            raise NoCredentialsError
        return self.credentials.get_frozen_credentials()

    def region(self, told: str) -> str:
        """The one to sign for, where a bucket's is `told`, or not."""
        region = told or str(self._client(told).meta.region_name or "")
        return "us-east-1" if region in {"", "aws-global"} else region

    def folder(self, bucket: str, region: str) -> str:
        """The URL below which a bucket's objects are, with a slash."""
        with self._lock:
            found = self._folders.get((bucket, region))
        if found is None:
            try:
                self._client(region).get_object(Bucket=bucket, Key="x")
                raise AssertionError("botocore asked a store that it was not to ask")
            except _CapturedError as captured:
                found = str(captured).removesuffix("x")
            with self._lock:
                self._folders[bucket, region] = found
        return found

    def trusted(self) -> ssl.SSLContext:
        """AWS_CA_BUNDLE or its like alone, as for all tools of Amazon; else the system's, and those of botocore."""
        from botocore.httpsession import get_cert_path

        bundle = trusted_for_s3(self._session)
        if bundle:
            return ssl.create_default_context(cafile=bundle)
        context = ssl.create_default_context()
        context.load_verify_locations(get_cert_path(True))
        return context

    def _client(self, region: str) -> Any:
        with self._lock:
            client = self._clients.get(region)
            if client is None:
                where = {"region_name": region} if region else {}
                if "endpoint_url" in self._options:
                    where["endpoint_url"] = self._options["endpoint_url"]
                client = self._clients[region] = self._session.create_client("s3", config=self._config, **where)
                client.meta.events.register("before-send.s3.GetObject", _capture)
        return client


def _capture(request: Any, **_: Any) -> None:
    raise _CapturedError(request.url)


@dataclass(frozen=True)
class _Ask:
    """One question: who asks, and for which bytes of what; `region` is the bucket's, '' where nobody has told it, and
    `credentials` sign it, None: nothing does."""

    account: _Account
    url: str
    bucket: str
    key: str
    region: str
    start: int
    into: memoryview
    timeout_s: float
    credentials: Any


class S3Reads:
    """Ranges of objects. Safe to use from many threads."""

    def __init__(self) -> None:
        self._account = _Account()
        self._renewing = threading.Lock()
        # Where buckets are not where they were looked for.
        self._regions: dict[str, str] = {}
        self._pools: dict[tuple[str, str], urllib3.PoolManager] = {}
        self._lock = threading.Lock()

    def fetch(self, url: str, start: int, into: memoryview, versions: Versions, timeout_s: float) -> int:
        """As `WebClient.fetch`. Credentials that the store takes no longer are read anew; buckets that lie in another
        region are asked there.

        Raises:
            Transient: nothing came, and may the next time.
        """
        bucket, _, key = split_url(url)[1].partition("/")
        account, moves, renewals = self._account, 0, 0
        credentials = None
        while True:
            region = self._regions.get(bucket, "")
            try:
                credentials = account.frozen()
                asked = _Ask(account, url, bucket, key, region, start, into, timeout_s, credentials)
                return self._fetch(asked, versions)
            except Transient:
                raise
            except Exception as error:
                if is_past_the_end(error):
                    return 0
                moves += 1
                if moves <= _MOST_MOVES and self._moved(bucket, region, error):
                    continue
                # A helper that makes new ones each time would be asked for ever.
                renewals += is_expired(error)
                may_renew = is_expired(error) and renewals <= MOST_RENEWALS
                fresh = self._renewed(account, credentials) if may_renew else None
                if fresh is None:
                    raise _told(url, error) from error
                account = fresh

    def _fetch(self, asked: _Ask, versions: Versions) -> int:
        response, complete = self._open(asked), False
        try:
            if response.status not in {200, 206}:
                raise _refusal(response, asked.timeout_s)
            size, length = len(asked.into), whole_number(response.headers.get("Content-Length", ""))
            if response.status == 200 and asked.start:
                raise no_ranges(asked.url, f"asked for {size:,} bytes, it gave {length or 0:,}")
            total = length if response.status == 200 else check_range(response.headers, asked.start, size)
            versions.check(asked.url, tag=response.headers.get("ETag", ""), total=total)
            got = 0 if length == 0 else read_into(response, asked.into, asked.timeout_s)
            if got < size:
                # The file's end, unless somebody on the way shows a login.
                refuse_web_page(asked.url, bytes(asked.into[: min(got, _SNIFFED)]))
            complete = True
            return got
        finally:
            finish(response, complete=complete)

    def _open(self, asked: _Ask) -> urllib3.BaseHTTPResponse:
        """The answer to a question, from where it is given."""
        region = asked.account.region(asked.region)
        address = asked.account.folder(asked.bucket, asked.region) + quote(asked.key, safe="/~-._")
        for _ in range(_MOST_MOVES):
            headers = self._signed(asked, address, region)
            try:
                response = ask(self._pool(address), address, headers, asked.timeout_s)
            except urllib3.exceptions.HTTPError as error:
                raise worth_waiting_for(error) from error
            where = response.headers.get("Location", "") if response.status in _MOVED else ""
            if not where or response.headers.get("x-amz-bucket-region"):
                return response
            there = urljoin(address, where)
            if not _is_of_the_same(address, there):
                return response
            response.close()
            address = there
        raise OSError("too many redirects")

    def _signed(self, asked: _Ask, address: str, region: str) -> dict[str, str]:
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest

        end = asked.start + len(asked.into) - 1
        headers = {"Range": f"bytes={asked.start}-{end}", "Accept-Encoding": "identity", **asked.account.headers}
        request = AWSRequest("GET", address, headers=headers)
        if asked.credentials is not None:
            S3SigV4Auth(asked.credentials, "s3", region).add_auth(request)
        return {name: str(value) for name, value in request.headers.items()}

    def _pool(self, address: str) -> urllib3.PoolManager:
        parts = urlsplit(address)
        server = (parts.scheme, parts.netloc)
        with self._lock:
            if server not in self._pools:
                proxy = "" if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme, "")
                if proxy and "://" not in proxy:
                    proxy = f"http://{proxy}"
                # Whoever is given keys is not taken for one that drips.
                self._pools[server] = connections(trusted=self._account.trusted(), proxy=proxy, bounded=False)
            return self._pools[server]

    def _moved(self, bucket: str, asked: str, error: Exception) -> bool:
        """Whether a store has named another region than the one that was asked; from now on that is asked."""
        region = getattr(error, "response", {}).get("Error", {}).get("Region", "")
        if not region or region == asked:
            return False
        with self._lock:
            self._regions[bucket] = region
        return True

    def _renewed(self, refused: _Account, credentials: Any) -> _Account | None:
        """Who has other credentials than those that were refused, to be used from then on; None where nobody has.

        Args:
            refused: who asked.
            credentials: that the question was signed with.
        """
        with self._renewing:
            if self._account is not refused:
                # Another thread was first.
                return self._account
            try:
                if refused.frozen() != credentials:
                    # They renew themselves before they expire, and have since.
                    return refused
                fresh = _Account()
                if fresh.frozen() == credentials:
                    return None
            except Exception:
                # None can be read: what the store has said is the better message.
                return None
            self._account = fresh
            return fresh


def _is_of_the_same(here: str, there: str) -> bool:
    """Whether a redirect stays with those who are trusted with a signature, and does not leave https."""
    a, b = urlsplit(here), urlsplit(there)
    hosts = (a.hostname or "", b.hostname or "")
    near = hosts[0] == hosts[1] or all(_AMAZON.search(host) for host in hosts)
    return near and (a.scheme, b.scheme) in {("http", "http"), ("https", "https"), ("http", "https")}


def _refusal(response: urllib3.BaseHTTPResponse, timeout_s: float) -> Exception:
    """What a store says in place of an object, as botocore says it."""
    from botocore.exceptions import ClientError

    body = bytearray()
    try:
        while len(body) < _MOST_ERROR_BYTES and (chunk := some(response, _MOST_ERROR_BYTES - len(body), timeout_s)):
            body += chunk
    except (urllib3.exceptions.HTTPError, OSError):
        # The status says something still.
        body.clear()
    said = _said(bytes(body))
    code = said.get("Code") or str(response.status)
    region = response.headers.get("x-amz-bucket-region") or said.get("Region", "")
    where = f" ({said['Endpoint']})" if said.get("Endpoint") else ""
    error: Exception = ClientError(
        {
            "Error": {
                "Code": code,
                "Message": f"{said.get('Message') or response.reason or ''}{where}",
                "Region": region,
            },
            "ResponseMetadata": {
                "HTTPStatusCode": response.status,
                "HTTPHeaders": {name.lower(): value for name, value in response.headers.items()},
            },
        },
        "GetObject",
    )
    return error


def _said(body: bytes) -> dict[str, str]:
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        return {}
    try:
        root = ElementTree.fromstring(body)  # noqa: S314 - bounded, and without entities
    except (ElementTree.ParseError, ValueError):
        return {}
    return {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in root}


def _told(url: str, error: Exception) -> Exception:
    """What to raise for an error: something to wait for, or what no waiting mends, in Python's own kinds."""
    if isinstance(error, DataError):
        return error
    response = getattr(error, "response", None)
    nothing: dict[str, Any] = {"HTTPStatusCode": 0, "HTTPHeaders": {}}
    answer: dict[str, Any] = response["ResponseMetadata"] if isinstance(response, dict) else nothing
    status = answer["HTTPStatusCode"]
    wait = wait_s(error)
    # Where a redirect that is not followed leads does not change.
    if wait is not None and status not in _MOVED:
        return Transient(redact(f"{type(error).__name__}: {error}"), wait, answered=is_answer(error))
    if status == 404 and answer["HTTPHeaders"].get("x-amz-delete-marker") == "true":
        return MissingError(
            f"{redact(url)}: was deleted: its newest version is a delete marker; remove it (`aws s3api delete-object "
            f"--version-id`, with the id that `list-object-versions` says), or write the file again"
        )
    if status == 404:
        return FileNotFoundError(str(error))
    return PermissionError(str(error)) if status in {401, 403} else error
