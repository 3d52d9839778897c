"""Certificates of stores and web servers: which ones are trusted, and what to do about one that is not. No torch."""

from __future__ import annotations

import os
import re
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vit_dist.core.errors import DataError
from vit_dist.core.store_patience import asked_at, endpoint
from vit_dist.core.urls import is_s3, is_web, redact

_UNTRUSTED = re.compile(
    r"certificate[ _]verify[ _]failed\]?(?:[ :]+certificate verify failed)?(?:: )?(.*)", re.IGNORECASE
)
_PLAIN = re.compile(r"wrong[ _]version[ _]number", re.IGNORECASE)
_WHERE_IN_C = re.compile(r"\s*\(_ssl\.c:\d+\).*")
_WEB_VARIABLE = "SSL_CERT_FILE"


def is_of_a_certificate(text: str) -> bool:
    """Whether an error's text says that no secure connection can come to be, which no waiting mends."""
    return bool(_UNTRUSTED.search(text) or _PLAIN.search(text))


def trouble(url: str, text: str) -> str:
    """What is wrong with who answers at a URL, and what to do; '' where an error is about something else.

    Args:
        url: that was asked for.
        text: of the error, with the causes that it had.
    """
    at = asked_at(url)
    asked = f"; asked was {at}" if at else ""
    if _PLAIN.search(text):
        return f"{_host(url)} does not speak TLS{asked}; is its address http:// in place of https://?"
    found = _UNTRUSTED.search(text)
    if found is None:
        return ""
    reason = _WHERE_IN_C.sub("", found[1]).strip(" .'\")]")
    told = f"the certificate of {_host(url)} is not trusted{f' ({reason})' if reason else ''}{asked}"
    if "mismatch" in reason.lower():
        return f"{told}; ask by a name that the certificate holds, or give the server one with this name"
    if "expired" in reason.lower() or "not yet valid" in reason.lower():
        return f"{told}; the server needs a new one, unless the clock here is wrong (`date -u` shows it)"
    return f"{told}; {_what_to_set(url)}"


def trusted_for_s3(session: Any) -> str:
    """The file of certificates that alone are trusted for S3, of AWS_CA_BUNDLE or its like; '' where none is named.

    Args:
        session: of botocore.

    Raises:
        DataError: it holds none.
    """
    file, setting = _named(session)
    if file:
        _check(file, setting)
    return file


def _named(session: Any) -> tuple[str, str]:
    """The file that is named, and the setting that says so."""
    if os.environ.get("AWS_CA_BUNDLE"):
        return os.environ["AWS_CA_BUNDLE"], "the environment variable AWS_CA_BUNDLE"
    if bundle := session.get_config_variable("ca_bundle"):
        return str(bundle), f"ca_bundle of the profile {session.profile or 'default'!r} in ~/.aws/config"
    return os.environ.get("REQUESTS_CA_BUNDLE", ""), "the environment variable REQUESTS_CA_BUNDLE"


def _check(file: str, setting: str) -> None:
    problem = _problem(file)
    if problem:
        raise DataError(
            f"{setting} names {file}, {problem}: give a file (PEM) with the certificate of the authority that has "
            f"signed the store's, or unset it"
        )


def _problem(file: str) -> str:
    path = Path(file)
    if not path.exists():
        return "which is not there"
    # s3fs takes no folder, as the tools of Amazon do not.
    if path.is_dir():
        return "which is a folder"
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        return "which holds no certificate"
    except OSError as error:
        return f"which cannot be read ({error.strerror})"
    return ""


def _what_to_set(url: str) -> str:
    if is_s3(url):
        import botocore.session

        file, setting = _named(botocore.session.Session())
        if file:
            return f"{setting} names {file}, which does not hold the authority that has signed it: add that"
        return (
            "set AWS_CA_BUNDLE, or ca_bundle of the profile in ~/.aws/config, to a file (PEM) with the certificate of "
            "the authority that has signed it"
        )
    file = os.environ.get(_WEB_VARIABLE, "")
    if not file:
        return f"set {_WEB_VARIABLE} to a file (PEM) with the certificate of the authority that has signed it"
    problem = _problem(file) or "which does not hold the authority that has signed it: add that"
    return f"the environment variable {_WEB_VARIABLE} names {file}, {problem}"


def _host(url: str) -> str:
    address = url if is_web(url) else endpoint()[0] if is_s3(url) else ""
    return urlsplit(redact(address)).netloc.rpartition("@")[2] or "the store"
