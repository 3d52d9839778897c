"""What a user typed -> the files and folders it names: literally first, then by braces, then by * ? [ ]; no torch."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Sequence

from vit_dist.core.errors import DataError
from vit_dist.core.files import (
    explained,
    file_system,
    folder_url,
    identity,
    is_remote,
    is_web,
    local_path,
    redact,
    split_url,
)

_WILD = "*?["
_SLASHES = re.compile(r"(?<!:)/(?:\.?/)+")


def named(text: str) -> list[str]:
    """The files and folders that a path or URL names, in the order of their names; several where it is a pattern.

    What exists under exactly this name is meant, as in a shell: `part[1].tar`, `what?/0.tar`. Only otherwise {000..123}
    and {a,b} stand for texts, and * ? [ ] for letters of one name. A URL of a web server knows braces alone: there, '?'
    begins a query, and nothing can be listed. A name without any of these need not exist.

    Raises:
        DataError: nothing fits a pattern, braces that do not fit together, or a store that cannot be asked.
    """
    if is_web(text):
        urls = braces(text)
        return urls if len(urls) == 1 or not _web_file_is_there(text) else [text]
    if not _is_pattern(text):
        return [text]
    scheme, rest = split_url(text)
    if scheme not in {"", "file"}:
        bucket, _, rest = rest.partition("/")
        if _is_pattern(bucket):
            return [url for each in braces(text) for url in named(each)]
        file_system(text)[0].invalidate_cache()
        above = f"{scheme}://{bucket}/"
    else:
        above = (f"{scheme}://" if scheme else "") + ("/" if rest.startswith("/") else "")
        rest = rest.removeprefix("/")
    found = _expand(above, rest.rstrip("/").split("/"), guessed=False)
    if not found:
        raise DataError(f"{redact(text)}: no file of this name, and no file fits this pattern; check the spelling")
    return found


def braces(text: str) -> list[str]:
    """Every text that a pattern with {000..123} or {a,b} stands for.

    Raises:
        DataError: the braces do not fit together.
    """
    from braceexpand import braceexpand

    try:
        return list(braceexpand(text)) if "{" in text else [text]
    except ValueError as error:
        raise DataError(
            f"{redact(text)}: no file of this name, and as a pattern: {error}; write ranges as {{00000..01023}}"
        ) from None


def names_in(folder: str, *, hidden: bool = False) -> list[str]:
    """Names in a directory, sorted.

    Args:
        folder: path or URL.
        hidden: those that begin with a dot too.

    Raises:
        DataError: missing, or not to be listed.
    """
    with explained(folder, "listed"):
        if not is_remote(folder):
            names = [p.name for p in local_path(folder or ".").iterdir()]
        else:
            system, path = file_system(folder)
            names = system.names(path)
    return sorted(name for name in names if hidden or not name.startswith("."))


def is_directory(url: str) -> bool:
    """Whether a path or URL is a directory that can be listed; a URL of a web server is one where it ends in '/'.

    Raises:
        DataError: the store cannot be asked.
    """
    with explained(url, "listed"):
        if not is_remote(url):
            return local_path(url).is_dir()
        if is_web(url):
            return url.endswith("/")
        system, path = file_system(url)
        return system.isdir(path)


def refuse_twice(urls: Sequence[str]) -> None:
    """Refuse a file that stands twice among URLs, however it is spelled.

    Raises:
        DataError: one does.
    """
    seen: dict[str, str] = {}
    spelled: dict[str, str] = {}
    for url in urls:
        meant = identity(url)
        if meant in seen:
            raise _twice(url, seen[meant])
        seen[meant] = url
        if is_remote(url) and not is_web(url):
            # Keys are exact, but stores that keep them in folders take a//b for a/b.
            alike = spelled.setdefault(_SLASHES.sub("/", meant), url)
            if alike != url and _stamp(alike) == _stamp(url):
                raise _twice(url, alike)


def _twice(url: str, first: str) -> DataError:
    other = "" if first == url else f" (the other time as {redact(first)})"
    return DataError(f"{redact(url)}: named twice{other}; each tar may stand once in a manifest")


def _stamp(url: str) -> tuple[str, ...]:
    with explained(url, "read"):
        system, path = file_system(url)
        info = system.info(path)
    return tuple(str(info.get(key)) for key in ("size", "ETag", "LastModified"))


def _is_pattern(text: str) -> bool:
    return any(c in text for c in _WILD) or "{" in text


def _expand(above: str, parts: Sequence[str], *, guessed: bool) -> list[str]:
    """What names and patterns below a folder stand for.

    Args:
        above: the folder's URL with the slash behind it; '' is the current one.
        parts: names and patterns.
        guessed: whether a pattern led to the folder, so that what follows need not be there.
    """
    for i, part in enumerate(parts):
        if not _is_pattern(part) or _is_there(above + part):
            above += f"{part}/"
            continue
        rest = "/".join(parts[i:])
        texts = braces(rest)
        if texts != [rest]:
            return [url for text in texts for url in _expand(above, text.split("/"), guessed=guessed)]
        names = _fitting(above, part) if any(c in part for c in _WILD) else []
        return [url for name in names for url in _expand(f"{above}{name}/", parts[i + 1 :], guessed=True)]
    found = above.removesuffix("/")
    return [found] if not guessed or _is_there(found) else []


def _fitting(above: str, pattern: str) -> list[str]:
    folder = folder_url(above) or "."
    # As in a shell: only a pattern that begins with a dot means hidden names.
    names = names_in(folder, hidden=pattern.startswith(".")) if is_directory(folder) else []
    return [name for name in names if fnmatch.fnmatchcase(name, pattern)]


def _is_there(url: str) -> bool:
    with explained(url, "looked for"):
        if not is_remote(url):
            return os.path.lexists(local_path(url))
        system, path = file_system(url)
        return system.exists(path)


def _web_file_is_there(url: str) -> bool:
    try:
        return _is_there(url)
    except DataError:
        # Not to be had under this name: then it is a pattern.
        return False
