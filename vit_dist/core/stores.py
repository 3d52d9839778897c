"""File systems by URL, through fsspec: paths taken literally, expired credentials read anew."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

from vit_dist.core.certificates import is_of_a_certificate, trusted_for_s3
from vit_dist.core.connections import CONNECTIONS
from vit_dist.core.errors import DataError, did_you_mean
from vit_dist.core.places import check_server
from vit_dist.core.store_errors import (
    is_answer,
    is_expired,
    is_past_the_end,
    is_untold,
    says_why,
    status_of,
    told,
    wait_s,
)
from vit_dist.core.store_patience import (
    NoAnswerError,
    NobodyThereError,
    answer,
    endpoint,
    failed,
    has_answered,
    is_known,
)
from vit_dist.core.store_refusals import is_anonymous, pays
from vit_dist.core.urls import SCHEMES, local_path, redact, split_url

MOST_RENEWALS = 3
"""Times that one question is asked with other credentials, since those before were refused."""
_REMOVALS_IN_FLIGHT = 16
_AGAIN_S = 1.0
_SECRET_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_OF_THE_WEB = frozenset({"http", "https"})
_VERSION = "?versionId="
_WITH_FOLDERS = frozenset({"", "file", "local"})
_TALKATIVE = ("botocore", "aiobotocore", "s3fs", "fsspec", "urllib3", "gcsfs", "google")

T = TypeVar("T")


def storage_options(scheme: str) -> dict[str, Any]:
    """Options of the file system of a scheme, from the environment.

    For s3:// the usual variables hold (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_REGION, ...), and so do
    AWS_ENDPOINT_URL[_S3], AWS_CA_BUNDLE, VIT_DIST_S3_PATH_STYLE=1, VIT_DIST_S3_REQUESTER_PAYS=1 and
    VIT_DIST_S3_ANONYMOUS=1.

    Raises:
        DataError: the endpoint is not the URL of a server, or credentials that cannot be any.
    """
    if scheme in _OF_THE_WEB:
        from vit_dist.core.web import bounded_client

        return {"get_client": bounded_client}
    if scheme not in {"s3", "s3a"}:
        return {}
    env = os.environ
    for name in _SECRET_VARIABLES:
        # Copied with the line's end: signatures would be wrong, or headers that no library sends.
        if any(c.isspace() for c in env.get(name, "")):
            raise DataError(f"the environment variable {name} holds a blank or a line break: set it again without one")
    options: dict[str, Any] = {}
    address, setting = endpoint()
    if address:
        options["endpoint_url"] = check_server(address, setting)
    config: dict[str, Any] = {"max_pool_connections": CONNECTIONS}
    # An own endpoint is seldom set up for names such as bucket.host: path style is what works there.
    style = env.get("VIT_DIST_S3_PATH_STYLE", "1" if address else "")
    if style in {"0", "1"}:
        # Left to itself, botocore takes path style for some addresses.
        config["s3"] = {"addressing_style": "path" if style == "1" else "virtual"}
    options["config_kwargs"] = config
    if pays():
        options["requester_pays"] = True
    if is_anonymous():
        options["anon"] = True
    return options


class Store:
    """What is asked of a file system of fsspec. A path means the file of that very name, whatever stands in it.

    fsspec takes the paths of many of its methods for patterns (`rm` of a folder, `get`, `put`, `cat`, `expand_path`);
    none of them is here. Where a store refuses the credentials, they are read anew (another session, another
    instance); only if they are the same as before is it an error.
    """

    def __init__(self, scheme: str) -> None:
        self._scheme = scheme
        self._system = self._opened()
        self._renewing = threading.Lock()

    def inside(self, url: str) -> str:
        """The path that a URL has in it: what its listings begin with."""
        return str(self._system._strip_protocol(url))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes:
        """The bytes of a file, or of a part of it."""
        return bytes(self._ask(path, lambda system: system.cat_file(path, start=start, end=end)))

    def head(self, path: str, size: int) -> bytes:
        """The first `size` bytes of a file; all, where it has fewer."""
        try:
            return self.cat_file(path, 0, size)
        except Exception as error:
            # Of an empty file stores have no part that they could give.
            if is_past_the_end(error):
                return b""
            raise

    def pipe_file(self, path: str, content: bytes) -> None:
        """Write a file."""
        self._ask(path, lambda system: system.pipe_file(path, content))

    def put_file(self, local: str, path: str) -> None:
        """Write a file from one on a disk."""
        self._ask(path, lambda system: system.put_file(local, path))

    def get_file(self, path: str, local: str) -> None:
        """Copy a file to a disk."""
        self._ask(path, lambda system: system.get_file(path, local))

    def info(self, path: str) -> dict[str, Any]:
        """What the store says of a file or folder: name, type, size, ..."""
        return dict(self._ask(path, lambda system: system.info(path)))

    def size(self, path: str) -> int:
        """Bytes of a file.

        Raises:
            OSError: the store does not say.
        """
        size = self.info(path).get("size")
        if size is None:
            raise OSError("the server does not say how long the file is (no Content-Length)")
        return int(size)

    def exists(self, path: str) -> bool:
        """Whether a file or folder is there."""
        if self._scheme in _OF_THE_WEB:
            return self._ask(path, lambda system: _is_on_the_web(system, path))
        return bool(self._ask(path, lambda system: system.exists(path)))

    def isdir(self, path: str) -> bool:
        """Whether a folder is there."""
        if self._scheme in _OF_THE_WEB:
            return self._ask(path, lambda system: _is_folder_on_the_web(system, path))
        return bool(self._ask(path, lambda system: system.isdir(path)))

    def ls(self, path: str) -> list[dict[str, Any]]:
        """What lies in a folder, as `info` has it."""
        return list(self._ask(path, lambda system: system.ls(path, detail=True)))

    def names(self, path: str) -> list[str]:
        """The names of what lies in a folder, sorted."""
        entries = (str(entry["name"]).rstrip("/") for entry in self.ls(path))
        return sorted(name.rpartition("/")[2] for name in entries if name != path.rstrip("/"))

    def find(self, path: str) -> dict[str, dict[str, Any]]:
        """The files at any depth below a folder, by their paths, as `info` has them."""
        return dict(self._ask(path, lambda system: system.find(path, detail=True)))

    def mkdir(self, path: str) -> None:
        """Make a folder, or a bucket."""
        self._ask(path, lambda system: system.mkdir(path))

    def rm_file(self, path: str) -> None:
        """Remove a file."""
        self._ask(path, lambda system: system.rm_file(path))

    def rm_tree(self, path: str) -> None:
        """Remove every file below a folder, and where the store has folders, that folder; never through a link."""
        if self._scheme in _WITH_FOLDERS:
            with contextlib.suppress(FileNotFoundError):
                # shutil refuses to go through a link that lies inside; of one that is the folder the link goes.
                Path(path).unlink() if Path(path).is_symlink() else shutil.rmtree(path)
            return
        with ThreadPoolExecutor(_REMOVALS_IN_FLIGHT, "remove") as pool:
            list(pool.map(self.rm_file, self.find(path)))

    def invalidate_cache(self) -> None:
        """Forget listings: fsspec remembers them, and others write."""
        self._system.invalidate_cache()

    def _ask(self, path: str, question: Callable[[Any], T]) -> T:
        if self._scheme in _WITH_FOLDERS:
            return question(self._system)
        url = f"{self._scheme}://{path.removeprefix(f'{self._scheme}://')}"
        first: Exception | None = None
        while True:
            try:
                return answer(url, partial(self._ask_until_let_in, path, question))
            except Exception as error:
                if is_answer(error):
                    has_answered(url)
                if isinstance(error, NobodyThereError):
                    raise
                if isinstance(error, NoAnswerError) or is_known(url) or wait_s(error) is None:
                    # That a later try had no time left says less than what went wrong before.
                    raise first or error from (first or error).__cause__
                # Until the moment that is told, not until the library has had enough, which is any time before.
                first = first or error
                left = failed(url, told(error), "")
                time.sleep(max(0.0, min(_AGAIN_S, left)))
                if left <= _AGAIN_S:
                    raise

    def _ask_until_let_in(self, path: str, question: Callable[[Any], T]) -> T:
        renewals = 0
        while True:
            system = self._system
            try:
                return question(system)
            except Exception as error:
                renewals += 1
                if is_expired(error) and renewals <= MOST_RENEWALS and self._renew(system):
                    continue
                reason = _reason(system, path) if is_untold(error) else None
                if reason is None:
                    raise
                raise reason from reason.__cause__

    def _opened(self) -> Any:
        import fsspec

        # What goes wrong is told in one line; without a handler of its own, the traceback that botocore logs of it
        # beforehand would go to the terminal. Whoever sets up logging still gets it.
        for name in _TALKATIVE:
            logger = logging.getLogger(name)
            if not logger.handlers:
                logger.addHandler(logging.NullHandler())
        options = storage_options(self._scheme)
        if self._scheme in {"s3", "s3a"}:
            options["session"] = _session()
        # fsspec's own cache would give the instance with the old credentials.
        return fsspec.filesystem(self._scheme, skip_instance_cache=True, **options)

    def _renew(self, refused: Any) -> bool:
        """Whether there are other credentials than those that were refused; from then on they are used."""
        if not hasattr(refused, "set_session"):
            return False
        with self._renewing:
            if self._system is not refused:
                # Another thread was first.
                return True
            fresh = self._opened()
            try:
                if _credentials(fresh) == _credentials(refused):
                    return False
            except Exception:
                # None can be read: what the store has said is the better message.
                return False
            self._system = fresh
            return True


def _is_on_the_web(system: Any, path: str) -> bool:
    """Whether a server has a file. Left to itself fsspec says that it has not, too, where it is not reached."""
    try:
        return bool(system.exists(path, strict=True))
    except Exception as error:
        # Servers also say 403 of what is not there.
        if 400 <= status_of(error) < 500:
            return False
        raise


def _is_folder_on_the_web(system: Any, path: str) -> bool:
    try:
        return bool(system.ls(path, detail=False))
    except FileNotFoundError:
        return False
    # A certificate that is not trusted is one of these, too.
    except ValueError as error:
        if is_of_a_certificate(str(error)):
            raise
        return False


def _session() -> Any:
    """A session of aiobotocore that asks no second time where no secure connection can come to be."""
    from aiobotocore.session import AioSession

    session = AioSession()
    trusted_for_s3(session)

    def once(caught_exception: Exception | None = None, **_: Any) -> None:
        if caught_exception is not None and is_of_a_certificate(str(caught_exception)):
            raise caught_exception

    # Asked before botocore's own, which would try five times.
    session.register("needs-retry.s3", once)
    return session


def _reason(system: Any, path: str) -> Exception | None:
    """Why a store has refused without a word, by a question whose answer has a body; None where it does not say."""
    if not hasattr(system, "call_s3"):
        return None
    bucket, _, key = path.partition("/")
    try:
        system.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
    except Exception as error:
        return error if says_why(error) else None
    return None


def _credentials(system: Any) -> tuple[Any, ...]:
    """The credentials that an instance of s3fs signs with."""
    from fsspec.asyn import sync

    async def load() -> tuple[Any, ...]:
        await system.set_session()
        found = await system.session.get_credentials()
        if found is None:
            return ()
        frozen = await found.get_frozen_credentials()
        return frozen.access_key, frozen.secret_key, frozen.token

    return tuple(sync(system.loop, load))


@cache
def _store(scheme: str, options: tuple[tuple[str, str], ...]) -> Store:  # noqa: ARG001 - the key of the cache
    return Store(scheme)


def file_system(url: str) -> tuple[Store, str]:
    """The file system of a URL, and the path inside it; absolute where it is a local one.

    Raises:
        DataError: no file system for this scheme, or a URL without a bucket.
    """
    scheme, rest = split_url(url)
    if scheme in {"", "file"}:
        # Not resolved: a link is what it is called.
        return _store("file", ()), os.path.abspath(local_path(url))  # noqa: PTH100
    if scheme in {"s3", "s3a"} and _VERSION in rest:
        # s3fs would read the newest one, without a word.
        raise DataError(
            f"{redact(url)}: names one version of an object ({_VERSION}...), and versions are not read: copy it to a "
            f"key of its own (`aws s3api copy-object --copy-source BUCKET/KEY{_VERSION}ID`)"
        )
    try:
        options = tuple(sorted((k, repr(v)) for k, v in storage_options(scheme).items()))
        store = _store(scheme, options)
    except (ImportError, ValueError) as error:
        hint = did_you_mean(scheme, SCHEMES) if scheme not in SCHEMES else ""
        raise DataError(f"{redact(url)}: no file system for {scheme!r}: {redact(str(error))}{hint}") from None
    return store, store.inside(f"{scheme}://{rest}")
