"""Bytes by URL, through fsspec: local paths, s3://, https://, gs://. Errors say what to do and hide secrets."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from vit_dist.core.errors import DataError

_SECRETS = re.compile(
    # user:password@host
    r"(?i)(//[^/@\s:]+:)[^/@\s]+(@)"
    r"|((?:x-amz-signature|x-amz-credential|x-amz-security-token|awsaccesskeyid|signature|sig|token|password|"
    r"secret[a-z_]*|access_key)=)[^&\s'\"]+"
)


def redact(text: str) -> str:
    """The text with passwords, signatures and tokens of URLs replaced by ***."""
    return _SECRETS.sub(lambda m: f"{m.group(1) or m.group(3)}***{m.group(2) or ''}", text)


def is_remote(url: str) -> bool:
    """True for URLs with a scheme other than file://."""
    scheme, sep, _ = url.partition("://")
    return bool(sep) and scheme != "file"


def local_path(url: str) -> Path:
    """The path of a local URL (a plain path or file://)."""
    return Path(url.removeprefix("file://"))


def join_url(base: str, name: str) -> str:
    """`name` relative to the directory `base`, unless it is absolute or has a scheme of its own."""
    if "://" in name or name.startswith("/"):
        return name
    return f"{base.rstrip('/')}/{name}" if base else name


def parent_url(url: str) -> str:
    """The directory of a URL: 's3://b/x/m.json' -> 's3://b/x', 'm.json' -> ''."""
    return url.rpartition("/")[0] if "/" in url else ""


def storage_options(url: str) -> dict[str, Any]:
    """Options of the file system of a URL, from the environment.

    For s3:// the usual variables hold (AWS_PROFILE, AWS_ACCESS_KEY_ID, AWS_REGION, ...), and so do
    AWS_ENDPOINT_URL[_S3], VIT_DIST_S3_PATH_STYLE=1 and VIT_DIST_S3_REQUESTER_PAYS=1.
    """
    if not url.startswith("s3://"):
        return {}
    env = os.environ
    options: dict[str, Any] = {}
    endpoint = env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL")
    if endpoint:
        options["endpoint_url"] = endpoint
    config: dict[str, Any] = {"max_pool_connections": 32}
    # An own endpoint is seldom set up for names such as bucket.host: path style is what works there.
    if env.get("VIT_DIST_S3_PATH_STYLE", "1" if endpoint else "0") == "1":
        config["s3"] = {"addressing_style": "path"}
    options["config_kwargs"] = config
    if env.get("VIT_DIST_S3_REQUESTER_PAYS") == "1":
        options["requester_pays"] = True
    return options


@cache
def _file_system(scheme: str, options: tuple[tuple[str, str], ...]) -> Any:  # noqa: ARG001 - the key of the cache
    import fsspec

    return fsspec.filesystem(scheme, **storage_options(f"{scheme}://"))


def file_system(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL, and the path inside it.

    Raises:
        DataError: no file system for this scheme.
    """
    scheme, sep, path = url.partition("://")
    if not sep:
        scheme, path = "file", url
    try:
        options = tuple(sorted((k, repr(v)) for k, v in storage_options(url).items()))
        system = _file_system(scheme, options)
    except (ImportError, ValueError) as error:
        raise DataError(f"{redact(url)}: no file system for {scheme!r}: {error}") from None
    return system, url if scheme in {"http", "https"} else path


@contextlib.contextmanager
def explained(url: str, doing: str) -> Iterator[None]:
    """Turn a storage error into one that says what was done to which URL, and what to do.

    Raises:
        DataError: instead of any OSError inside the block.
    """
    try:
        yield
    except FileNotFoundError:
        raise DataError(
            f"{redact(url)}: no such file, so it cannot be {doing}; check the path and its spelling"
        ) from None
    except PermissionError as error:
        raise DataError(
            f"{redact(url)}: not allowed: it cannot be {doing} ({redact(str(error))}); check permissions or credentials"
        ) from None
    except Exception as error:
        name = type(error).__name__
        if not isinstance(error, OSError) and name not in {
            "NoCredentialsError",
            "EndpointConnectionError",
            "ClientError",
        }:
            raise
        raise DataError(f"{redact(url)}: cannot be {doing}: {name}: {redact(str(error))}") from None


def read_bytes(url: str) -> bytes:
    """All bytes of a file.

    Raises:
        DataError: missing, forbidden or unreadable.
    """
    with explained(url, "read"):
        if not is_remote(url):
            return local_path(url).read_bytes()
        system, path = file_system(url)
        return bytes(system.cat_file(path))


def write_bytes(url: str, content: bytes) -> None:
    """Write a whole file; on a local disk atomically, so that a reader sees the old file, the new one, or none.

    Raises:
        DataError: forbidden, disk full, or the store refused.
    """
    with explained(url, "written"):
        if is_remote(url):
            system, path = file_system(url)
            system.pipe_file(path, content)
        else:
            target = local_path(url)
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
            try:
                with temporary.open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                # Only now: the name must never point at bytes that a power loss could still take.
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)


def append_json(path: Path, entry: Mapping[str, Any]) -> None:
    """Append a line of JSON to a local file, through to the disk; after a line that a crash cut short, on a new one.

    Where another writes at the same moment, its line may look cut short: then an empty line comes between.

    Raises:
        OSError: it cannot be written.
    """
    line = (json.dumps(entry) + "\n").encode()
    with path.open("a+b") as file:
        if file.tell() and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def exists(url: str) -> bool:
    """True where a file is there.

    Raises:
        DataError: the store cannot be asked.
    """
    with explained(url, "looked for"):
        if not is_remote(url):
            return local_path(url).exists()
        system, path = file_system(url)
        return bool(system.exists(path))
