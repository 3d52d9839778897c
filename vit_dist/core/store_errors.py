"""What goes wrong with a store: in one line for people, whether waiting may mend it, whether credentials are to blame.

The libraries (fsspec, s3fs, botocore, aiohttp, urllib3, those of Google and Azure) are known by name: none is loaded.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime

from vit_dist.core import certificates
from vit_dist.core.errors import AwayError, DataError, MissingError, RefusedError, VitDistError
from vit_dist.core.store_patience import NoAnswerError, asked_at
from vit_dist.core.store_refusals import CREDENTIALS_REFUSED, NO_BUCKET, REFUSALS, asked_as, refused
from vit_dist.core.urls import is_remote, is_web, redact

_LIBRARIES = frozenset(
    {"fsspec", "s3fs", "botocore", "aiobotocore", "aiohttp", "urllib3", "yarl", "gcsfs", "google", "adlfs", "azure"}
)
SLOW_DOWN_S = 2.0
_LONGEST_RETRY_AFTER_S = 60.0
_SLOW_DOWN = ("SlowDown", "Slow Down", "reduce your request rate", "TooManyRequests", "RequestLimitExceeded", "503")
BUSY_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})
"""HTTP statuses after which the same question may be answered."""

# Amazon's, whatever status they come with.
_BUSY_CODES = frozenset(
    {"RequestTimeout", "RequestTimeoutException", "InternalError", "ServiceUnavailable", "SlowDown", "OperationAborted"}
    | {"Throttling", "ThrottlingException", "RequestLimitExceeded", "IncompleteBody"}
)

# What may go better the next time, of each family of errors; the rest of the family is final.
_MAY_PASS = {
    "BotoCoreError": {
        *("HTTPClientError", "ConnectionError", "IncompleteReadError", "ResponseStreamingError"),
        *("MetadataRetrievalError", "CredentialRetrievalError", "FlexibleChecksumError", "ChecksumError"),
    },
    "OSError": {"ConnectionError", "TimeoutError", "InterruptedError", "BlockingIOError"},
}
_FINAL = {
    # aiohttp, urllib3
    *("InvalidURL", "TooManyRedirects", "ClientConnectorCertificateError", "ContentTypeError"),
    *("LocationValueError", "URLSchemeUnknown", "ProxySchemeUnknown", "ResponseError", "InvalidHeader"),
    # google, azure
    *("RefreshError", "DefaultCredentialsError", "ClientAuthenticationError", "CredentialUnavailableError"),
    # a question that makes no sense, or a library that is not there
    *("ValueError", "TypeError", "LookupError", "AttributeError", "AssertionError", "ImportError"),
    *("NotImplementedError", "MemoryError"),
    # a store has answered
    *("FileNotFoundError", "FileExistsError", "PermissionError", "IsADirectoryError", "NotADirectoryError"),
    "VitDistError",
}
_MAY_PASS_NUMBERS = frozenset(
    {errno.EBUSY, errno.EIO, errno.EAGAIN, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN, errno.ECONNRESET}
    | {getattr(errno, "EREMOTEIO", errno.EIO)}
)
_EXPIRED = CREDENTIALS_REFUSED | {"UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError"}
_DISK_PROBLEMS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file would be larger than its file system, or a limit of this process (ulimit -f), allows",
    errno.EROFS: "the file system is read-only",
}
_MAKE_ROOM = "free some space, or name another place"
_DISK_ADVICE = {errno.EROFS: "mount it for writing, or name another place"}
_NO_SCRATCH = "No usable temporary directory"
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "ConfigParseError"})
_NAME_CREDENTIALS = (
    "set AWS_PROFILE to one of ~/.aws/config, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or use a role"
)
_PAST_THE_END = ("InvalidRange", "not satisfiable")
_UNTOLD = frozenset({"400", "401", "403"})
_MOST_TEXT = 300


@contextlib.contextmanager
def explained(url: str, doing: str) -> Iterator[None]:
    """Turn a storage error into one line that says what was done to which URL, and what to do.

    Raises:
        MissingError: the file is not there.
        RefusedError: it may not be had with these credentials, there are none, or the server is not trusted.
        AwayError: its store does not answer, or fails.
        DataError: any other OSError.
    """
    try:
        yield
    except VitDistError:
        raise
    except FileNotFoundError as error:
        _raise_refusal(url, doing, error)
        raise MissingError(
            f"{redact(url)}: no such file, so it cannot be {doing}; check the path and its spelling"
        ) from None
    except PermissionError as error:
        _raise_refusal(url, doing, error)
        raise RefusedError(
            f"{redact(url)}: not allowed: it cannot be {doing} ({_text(error)}); {_credentials_advice(url, error)}"
        ) from None
    except Exception as error:
        if not isinstance(error, OSError) and not _is_of_a_library(error):
            raise
        _raise_refusal(url, doing, error)
        if isinstance(error, OSError) and (problem := disk_problem(error)):
            raise DataError(f"{redact(url)}: cannot be {doing}: {problem}") from None
        text = f"{redact(url)}: cannot be {doing}: {told(error)}"
        # Of a local file the system's own words say all: its texts name what the user has never heard of.
        if isinstance(error, OSError) and error.strerror and not is_remote(url):
            text = f"{redact(url)}: cannot be {doing}: {error.strerror}"
        if is_expired(error):
            raise RefusedError(f"{text}; {_credentials_advice(url, error)}") from None
        if any(type(e).__name__ in _NO_CREDENTIALS for e in _chain(error)):
            raise RefusedError(f"{text}; {_NAME_CREDENTIALS}") from None
        raise (AwayError if is_remote(url) else DataError)(text + _address_advice(url, error)) from None


def is_without_bucket(error: BaseException) -> bool:
    """Whether a file is not there because its bucket is not: nothing can be written beside it either."""
    return any(_code(e) == NO_BUCKET for e in _chain(error))


def told(error: BaseException) -> str:
    """An error in one line, without secrets; without the name of its type where that says nothing."""
    plain = type(error) is OSError or isinstance(error, NoAnswerError)
    return f"{'' if plain else f'{type(error).__name__}: '}{_text(error)}"


def says_why(error: BaseException) -> bool:
    """Whether a store has given a reason that is known."""
    return any(_code(e) in REFUSALS for e in _chain(error))


def _raise_refusal(url: str, doing: str, error: BaseException) -> None:
    """Raise what the store's code says, where it is known, and what is wrong with its certificate."""
    if problem := certificates.trouble(url, _texts(error)):
        raise RefusedError(f"{redact(url)}: cannot be {doing}: {problem}") from None
    for one in _chain(error):
        found = refused(url, doing, _code(one), _own_text(error))
        if found is not None:
            raise found from None


def _own_text(error: BaseException) -> str:
    """The store's text without what botocore and Python say around it."""
    return re.sub(r"^\[Errno \d+\] ", "", _text(error).rpartition(" operation: ")[2]).rstrip(".")


def disk_problem(error: OSError) -> str:
    """What is wrong with a disk that takes no more, and what to do; '' where the error is of another kind."""
    if _NO_SCRATCH in str(error):
        return f"there is no directory for temporary files that takes any ({error.strerror}); free some, or set TMPDIR"
    if error.errno not in _DISK_PROBLEMS:
        return ""
    advice = _DISK_ADVICE.get(error.errno, _MAKE_ROOM)
    return f"{_DISK_PROBLEMS[error.errno]} ({error.strerror or os.strerror(error.errno)}); {advice}"


def wait_s(error: BaseException) -> float | None:
    """How long to wait at the least before a store is asked again; None where waiting mends nothing."""
    chain = list(_chain(error))
    least = _least_wait_s(chain)
    return None if least is None else max([least, *(retry_after_s(_headers(e)) for e in chain)])


def _least_wait_s(chain: list[BaseException]) -> float | None:
    texts = _texts(chain[0])
    if certificates.is_of_a_certificate(texts):
        return None
    if any(_code(e) in _BUSY_CODES for e in chain):
        return SLOW_DOWN_S if any(sign in texts for sign in _SLOW_DOWN) else 0.0
    status = next((s for e in chain if (s := status_of(e))), 0)
    if any(sign in texts for sign in _SLOW_DOWN) and (not status or status in BUSY_STATUSES):
        return SLOW_DOWN_S
    if status:
        return 0.0 if status in BUSY_STATUSES else None
    return 0.0 if _may_pass(chain[0]) else None


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks a client to stay away, up to a minute; 0 where it does not, or asks for more."""
    text = headers.get("Retry-After", "")
    seconds = whole_number(text)
    if seconds is not None:
        return _bearable(seconds)
    try:
        wait = parsedate_to_datetime(text).timestamp() - time.time()
    except (TypeError, ValueError, OverflowError, IndexError):
        return 0.0
    return _bearable(wait)


def _bearable(seconds: float) -> float:
    # Whoever asks for hours, or has a clock of his own, is asked again at our own pace.
    return float(seconds) if math.isfinite(seconds) and 0 < seconds <= _LONGEST_RETRY_AFTER_S else 0.0


def whole_number(text: str) -> int | None:
    """A header's number of bytes or seconds; None where it is none."""
    # str.isdigit is true of digits that int() refuses, such as a raised 2.
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def is_answer(error: BaseException) -> bool:
    """Whether an error is what a store has said, so that it is there."""
    told = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)
    return any(isinstance(e, told) or status_of(e) or _code(e) for e in _chain(error))


def is_expired(error: BaseException) -> bool:
    """Whether a store refuses the credentials themselves, so that newer ones might do; it need not say so."""
    return _says_expired(error) or is_untold(error)


def is_untold(error: BaseException) -> bool:
    """Whether a store refuses without a word: an answer to HEAD has no body that could say why."""
    return any(_code(e) in _UNTOLD and _asked_for_the_head(e) for e in _chain(error))


def is_past_the_end(error: BaseException) -> bool:
    """Whether a store says that a file has no bytes where some were asked for."""
    text = f"{type(error).__name__}: {error}"
    return any(sign in text for sign in _PAST_THE_END)


def _says_expired(error: BaseException) -> bool:
    return any(type(e).__name__ in _EXPIRED or _code(e) in _EXPIRED for e in _chain(error))


def refuse_web_page(url: str, begin: bytes, content_type: str | None = None) -> None:
    """Refuse what begins like a page of HTML: a server that wants a login shows its form in place of the file.

    Args:
        url: of the file.
        begin: its first bytes.
        content_type: what the server calls it; None where that is not known.

    Raises:
        DataError: it does.
    """
    head = begin[:200].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    # Some servers call every file HTML, so that its bytes must look like it too.
    begins = (b"<!doctype html", b"<html") if content_type is None else (b"<",)
    if (content_type is None or "html" in content_type.lower()) and head.startswith(begins):
        raise DataError(
            f"{redact(url)}: the server answered with a web page in place of the file (a login, or a page about the "
            f"file?); give the URL of the file itself, with what it takes to be let in"
        )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        reason = getattr(error, "reason", None)
        error = error.__cause__ or (reason if isinstance(reason, BaseException) else None)


def _texts(error: BaseException) -> str:
    return " ".join(f"{type(e).__name__}: {e}" for e in _chain(error))


def _families(error: BaseException) -> set[str]:
    return {cls.__name__ for cls in type(error).__mro__}


def _may_pass(error: BaseException) -> bool:
    families = _families(error)
    if "BotoCoreError" in families:
        return bool(families & _MAY_PASS["BotoCoreError"])
    if families & _FINAL and not families & _MAY_PASS["OSError"]:
        return False
    if type(error).__module__.partition(".")[0] in _LIBRARIES:
        reason = getattr(error, "reason", None)
        return _may_pass(reason) if isinstance(reason, BaseException) else True
    if isinstance(error, OSError):
        return bool(families & _MAY_PASS["OSError"]) or error.errno is None or error.errno in _MAY_PASS_NUMBERS
    return True


def _code(error: BaseException) -> str:
    """The word by which one of Amazon's stores names an error; '' of others."""
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""


def _headers(error: BaseException) -> dict[str, str]:
    """The headers of the answer that an error tells of, as they are spelled here; {} where it tells none."""
    response = getattr(error, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPHeaders") if isinstance(response, dict) else None
    # botocore's are in small letters.
    return {name.title(): str(value) for name, value in (found or {}).items()}


def status_of(error: BaseException) -> int:
    """The HTTP status that an error tells; 0 where it tells none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        names = ("status", "status_code", "code")
        status = next((getattr(error, name) for name in names if hasattr(error, name)), None)
    return status if isinstance(status, int) and 400 <= status < 600 else 0


def _asked_for_the_head(error: BaseException) -> bool:
    return str(getattr(error, "operation_name", "")).startswith("Head")


def _is_of_a_library(error: BaseException) -> bool:
    """Whether an error was made, or was first raised, by a library that speaks to stores."""
    if isinstance(error, MemoryError):
        return False
    if any(cls.__module__.partition(".")[0] in _LIBRARIES for cls in type(error).__mro__):
        return True
    trace = error.__traceback__
    while trace is not None:
        # botocore says `ValueError: Invalid endpoint` of an address without http://
        if str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0] in _LIBRARIES:
            return True
        trace = trace.tb_next
    return False


def _text(error: BaseException) -> str:
    text = " ".join(redact(str(error)).split())
    return text if len(text) <= _MOST_TEXT else f"{text[:_MOST_TEXT]}..."


def _address_advice(url: str, error: BaseException) -> str:
    if is_answer(error) or wait_s(error) is None:
        return ""
    at = asked_at(url)
    return f"; it was looked for at {at}: check that address, or the network" if at else ""


def _credentials_advice(url: str, error: BaseException) -> str:
    if is_web(url):
        return "check the password or signature in the URL; a signed URL is good for a while only"
    if _says_expired(error):
        return (
            "the store takes these credentials no longer, and no others were found; renew them (such as by "
            "`aws sso login`), or look at AWS_PROFILE and ~/.aws"
        )
    at = asked_at(url)
    who = f"; asked was {at}, {asked_as()}" if at else ""
    untold = " (the store does not say what is wrong: they may have expired)" if is_untold(error) else ""
    return f"check permissions or credentials{untold}{who}"
