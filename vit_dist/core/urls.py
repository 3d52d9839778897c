"""What a path or URL means: its scheme, its name, what lies beside it, and whether two of them mean the same file.

URLs of web servers are taken apart by urllib. Those of object stores are not: a key may hold '?', '#' and '%'.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit, urlunsplit

from vit_dist.core.errors import DataError

_WEB = frozenset({"http", "https"})
_BUCKETS = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "r2"})
SCHEMES = _BUCKETS | _WEB | {"file", "hdfs"}
"""Of URLs that people write."""
# `s3:`, `s3:/photos`: what is left of a URL whose bucket was an empty variable, or a slash that was forgotten.
_BROKEN = re.compile(rf"(?i)({'|'.join(sorted(SCHEMES))}):(?:/(?!/)|$)")
_PORTS = {"http": 80, "https": 443}
_SIGNING = re.compile(
    # Amazon, Google, Azure, CloudFront
    r"(?i)x-(amz|goog)-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id|"
    r"sig|se|sp|sv|sr|st|spr|sip|ss|srt|skoid|sktid|skt|ske|sks|skv|"
    r"(access_?)?token|download"
)
# Each part has a bound where it might look on to the end of a text from every place of it: servers send the texts.
_SECRETS = re.compile(
    # user:password@host; a password may hold slashes, but host:80/x@y is none
    r"(?i)(//[^/@\s:]+:)(?!\d+/)(?:[^/\s]{1,2000}(?=@)|[^@\s]{1,2000}(?=@))"
    # token@host
    r"|(?<=//)[^/@\s:]+(?=@)"
    r"|((?:x-(?:amz|goog)-(?:signature|credential|security-token)|awsaccesskeyid|signature|sig|token|password|"
    r"secret[a-z_]{0,40}|access_key|api_?key)=)[^&\s'\"]+"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"
)
# Of a URL: there are more ways to sign one than can be listed here, and whoever has a signed one may read the file.
_QUERY = re.compile(r"(?<=[^\s?])\?[\w.~%+-]+=[^\s'\"<>)\]]*")


def redact(text: str) -> str:
    """The text with passwords, keys and the queries of URLs replaced by ***."""
    return _SECRETS.sub(lambda m: f"{m.group(1) or m.group(2) or ''}***", _QUERY.sub("?***", text))


def holds_secret(text: str) -> bool:
    """Whether a password, a key or a signature stands in a text."""
    return _SECRETS.search(text) is not None


def split_url(url: str) -> tuple[str, str]:
    """Scheme in lower case ('' for a plain path), and what follows it.

    Raises:
        DataError: a URL without bucket or server, which else would be written to as a folder here.
    """
    scheme, sep, rest = url.partition("://")
    if not sep or "/" in scheme:
        broken = _BROKEN.match(url)
        if broken:
            raise DataError(
                f"{redact(url)}: names no {'server' if broken[1].lower() in _WEB else 'bucket'}; write "
                f"{broken[1].lower()}://NAME/... (is a variable empty?); a folder of this name is ./{redact(url)}"
            )
        return "", url
    scheme = scheme.lower()
    if scheme in _BUCKETS and not rest.partition("/")[0].strip():
        raise DataError(f"{redact(url)}: names no bucket; write {scheme}://BUCKET/... (is a variable empty?)")
    if scheme in _WEB and not re.split(r"[/?#]", rest, maxsplit=1)[0]:
        raise DataError(f"{redact(url)}: names no server; write {scheme}://SERVER/... (is a variable empty?)")
    return scheme, rest


def is_remote(url: str) -> bool:
    """True for URLs with a scheme other than file://.

    Raises:
        DataError: a URL without bucket or server.
    """
    return split_url(url)[0] not in {"", "file"}


def is_web(url: str) -> bool:
    """True for http:// and https://."""
    return split_url(url)[0] in _WEB


def is_s3(url: str) -> bool:
    """True for s3:// and s3a://."""
    return split_url(url)[0] in {"s3", "s3a"}


def local_path(url: str) -> Path:
    """The path of a local URL: a plain path, or file://, where %20 is a blank unless a file is really named so.

    Raises:
        DataError: a URL that is not local.
    """
    scheme, rest = split_url(url)
    if scheme == "":
        return Path(url)
    if scheme != "file":
        raise DataError(f"{redact(url)}: not on a file system of this machine, which is needed here; copy it to one")
    path = rest.removeprefix("localhost") if rest.startswith("localhost/") else rest
    return Path(path) if "%" not in path or os.path.lexists(path) else Path(unquote(path))


def join_url(base: str, name: str) -> str:
    """`name` relative to the directory `base`, unless it is absolute or has a scheme of its own."""
    if name.startswith("/") or split_url(name)[0]:
        return name
    if not base:
        return name
    if is_web(base):
        parts = urlsplit(base)
        return urlunsplit((parts.scheme, parts.netloc, f"{parts.path.rstrip('/')}/{name}", "", ""))
    return f"{base.rstrip('/')}/{name}"


def parent_url(url: str) -> str:
    """The directory of a URL: 's3://b/x/m.json' -> 's3://b/x', 'm.json' -> '', 's3://b' -> 's3://b'."""
    scheme, rest = split_url(url)
    if scheme in _WEB:
        parts = urlsplit(url)
        return urlunsplit((parts.scheme, parts.netloc, parts.path.rpartition("/")[0], "", ""))
    folder, slash, _ = rest.rpartition("/")
    if not scheme:
        return folder or slash
    return f"{scheme}://{folder}" if folder or scheme == "file" else f"{scheme}://{rest}"


def url_name(url: str) -> str:
    """The last name of a URL, without what follows a '?' in one of a web server: 'https://h/x/a.tar?k=1' -> 'a.tar'."""
    path = urlsplit(url).path if is_web(url) else url
    return path.rstrip("/").rpartition("/")[2]


def folder_url(url: str) -> str:
    """The URL of a directory without slashes at its end.

    Raises:
        DataError: it names no bucket.
    """
    scheme, rest = split_url(url)
    if scheme in _WEB:
        parts = urlsplit(url)
        return urlunsplit(parts._replace(path=parts.path.rstrip("/")))
    stripped = rest.rstrip("/")
    if not scheme:
        return stripped or ("/" if rest else "")
    return f"{scheme}://{stripped or '/'}" if scheme == "file" else f"{scheme}://{stripped}"


def destination(url: str, what: str) -> str:
    """The URL of a directory that something is written to, without slashes at its end.

    Args:
        url: as the user wrote it.
        what: for people: 'DEST'.

    Raises:
        DataError: empty, or without a bucket.
    """
    if not url.strip():
        raise DataError(f"{what} is empty (is a variable empty?); name a directory, '.' for this one")
    return folder_url(url)


def identity(url: str) -> str:
    """What a path or URL means, however it is spelled: equal for two names of one file.

    Local files are told apart by what they are, so that links count as what they lead to. Of a web URL host, percent
    signs, dots and whatever is known to sign it do not matter. A store's keys are exact: there, a//b is not a/b.
    """
    scheme, rest = split_url(url)
    if scheme in {"", "file"}:
        path = local_path(url)
        try:
            status = path.stat()
        except OSError:
            return f"file:{os.path.realpath(path)}"
        return f"inode:{status.st_dev}:{status.st_ino}"
    if scheme not in _WEB:
        return f"{'s3' if scheme == 's3a' else scheme}://{rest.rstrip('/')}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return url
    host = (parts.hostname or "").rstrip(".")
    where = host if port in (None, _PORTS[scheme]) else f"{host}:{port}"
    name = quote(unquote(_without_dots(parts.path)), safe="/~!$&'()*+,;=:@")
    query = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if not _SIGNING.fullmatch(k)]
    return urlunsplit((scheme, where, name.rstrip("/"), urlencode(sorted(query)), ""))


def lies_in(url: str, folder: str) -> bool:
    """Whether a directory is another one, or lies inside it."""
    if is_remote(url) != is_remote(folder):
        return False
    if not is_remote(url):
        inner, outer = local_path(url).resolve(), local_path(folder).resolve()
        return inner == outer or outer in inner.parents
    return f"{identity(url)}/".startswith(f"{identity(folder)}/")


def _without_dots(path: str) -> str:
    """A path of a URL without './', '../' and '//'."""
    names: list[str] = []
    for name in path.split("/"):
        if name == "..":
            names = names[:-1]
        elif name not in {"", "."}:
            names.append(name)
    return "/" + "/".join(names)
