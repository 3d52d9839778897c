"""What one of Amazon's stores means by the code of an error: what is wrong, and what to do. One table for all who ask.

A code counts, never the status alone: 403 stands for a wrong secret, an unknown key, a clock that is wrong, and for
what these credentials may not do. The source of the credentials is told, and never what they are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from vit_dist.core.errors import DataError, MissingError, RefusedError
from vit_dist.core.store_patience import asked_at
from vit_dist.core.urls import redact, split_url


@dataclass(frozen=True)
class Refusal:
    """One kind.

    Attributes:
        what: is wrong; {bucket} stands for its name.
        advice: what to do.
        of_credentials: whether they are to blame, so that it is told where they come from.
        kind: the error that is raised.
    """

    what: str
    advice: str
    of_credentials: bool = True
    kind: type[DataError] = RefusedError


ANONYMOUS_VARIABLE, PAYS_VARIABLE = "VIT_DIST_S3_ANONYMOUS", "VIT_DIST_S3_REQUESTER_PAYS"
NO_BUCKET = "NoSuchBucket"
_WRONG_SECRET = Refusal(
    "the secret key does not belong to the access key",
    "correct AWS_SECRET_ACCESS_KEY, or the profile's aws_secret_access_key (copied whole? of another store?)",
)
_UNKNOWN_KEY = Refusal(
    "the store does not know this access key",
    "it was removed, is of another store than the one that is asked, or lacks its AWS_SESSION_TOKEN: correct the key, "
    "or the address",
)
_EXPIRED = Refusal(
    "these credentials have expired, and no others were found",
    "renew them (such as by `aws sso login`), or look at AWS_PROFILE and ~/.aws",
)
_BAD_TOKEN = Refusal(
    "the store takes the session token for none of its own",
    "unset AWS_SESSION_TOKEN where it is left from other credentials, or renew them all",
)
_NOT_ALLOWED = Refusal(
    "these credentials are known, and may not do this",
    "let whoever runs bucket {bucket!r} allow it (s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket), or use "
    "other credentials",
)
_NOT_PAID = Refusal(
    _NOT_ALLOWED.what,
    f"{_NOT_ALLOWED.advice}; where whoever asks is to pay for it (requester pays), set {PAYS_VARIABLE}=1",
)
_NOT_FOR_ALL = Refusal(
    "without credentials this may not be done",
    f"unset {ANONYMOUS_VARIABLE} and give credentials, or let whoever runs bucket {{bucket!r}} open it to everybody",
)
_CLOCK = Refusal(
    "the clock of this machine is not the store's",
    "set it (`date -u` shows it; chrony or NTP keep it right): signatures are good for 15 minutes",
    of_credentials=False,
)
_ELSEWHERE = Refusal(
    "bucket {bucket!r} lies in another region, or behind another address",
    "set AWS_REGION to its region (`aws s3api get-bucket-location` tells it), or correct the address",
    of_credentials=False,
)
_NO_BUCKET = Refusal(
    "there is no bucket {bucket!r}",
    "correct its name or the address, or make it by `aws s3 mb s3://{bucket}`",
    of_credentials=False,
    kind=MissingError,
)
_BAD_NAME = Refusal(
    "{bucket!r} can be no bucket's name",
    "names have 3 to 63 small letters, digits, dots and hyphens",
    of_credentials=False,
)
_ARCHIVED = Refusal(
    "the file is archived and cannot be read at once",
    "restore it (`aws s3api restore-object`), or move it to a class of storage that is read at once",
    of_credentials=False,
)
_ACCOUNT = Refusal("the store has closed the account, or it is not signed up", "ask whoever runs the account")

REFUSALS: Mapping[str, Refusal] = {
    "SignatureDoesNotMatch": _WRONG_SECRET,
    **dict.fromkeys(("InvalidAccessKeyId", "InvalidClientTokenId", "UnrecognizedClientException"), _UNKNOWN_KEY),
    **dict.fromkeys(("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"), _EXPIRED),
    "InvalidToken": _BAD_TOKEN,
    **dict.fromkeys(("AccessDenied", "AccessDeniedException", "AllAccessDisabled", "InvalidPayer"), _NOT_ALLOWED),
    "RequestTimeTooSkewed": _CLOCK,
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "Redirect", "301", "302", "307", "308"), _ELSEWHERE),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"), _ELSEWHERE),
    NO_BUCKET: _NO_BUCKET,
    "InvalidBucketName": _BAD_NAME,
    "InvalidObjectState": _ARCHIVED,
    **dict.fromkeys(("AccountProblem", "NotSignedUp"), _ACCOUNT),
}
"""By code. Others are told by the store's own text."""
CREDENTIALS_REFUSED = frozenset(
    code for code, refusal in REFUSALS.items() if refusal in (_WRONG_SECRET, _UNKNOWN_KEY, _EXPIRED, _BAD_TOKEN)
)
"""Codes by which a store refuses the credentials themselves: others might do."""


def refused(url: str, doing: str, code: str, text: str) -> DataError | None:
    """The error for a code that is known; None for any other.

    Args:
        url: that was asked for.
        doing: what could not be done: 'read'.
        code: of the store.
        text: its own words, without secrets.
    """
    refusal = REFUSALS.get(code)
    if refusal is None:
        return None
    if refusal is _NOT_ALLOWED:
        refusal = _NOT_FOR_ALL if is_anonymous() else refusal if pays() else _NOT_PAID
    bucket = split_url(url)[1].partition("/")[0]
    at = asked_at(url)
    asked = f"; asked was {at}" if at else ""
    who = f", {asked_as()}" if refusal.of_credentials and at else ""
    what, advice = (words.format(bucket=bucket) for words in (refusal.what, refusal.advice))
    told = "" if not text or text == code else f": {text}"
    return refusal.kind(f"{redact(url)}: cannot be {doing}: {what} ({code}{told}){asked}{who}; {advice}")


def is_anonymous() -> bool:
    """Whether S3 is asked without credentials."""
    return os.environ.get(ANONYMOUS_VARIABLE) == "1"


def pays() -> bool:
    """Whether S3 is told with each request that whoever asks pays for it."""
    return os.environ.get(PAYS_VARIABLE) == "1"


def asked_as() -> str:
    """With whose credentials S3 is asked, for people."""
    return (
        f"without credentials ({ANONYMOUS_VARIABLE}=1)"
        if is_anonymous()
        else f"with credentials from {credentials_from()}"
    )


def credentials_from() -> str:
    """Where credentials come from, for people, as the tools of Amazon look for them; nobody is asked over a network."""
    env = os.environ
    if env.get("AWS_ACCESS_KEY_ID"):
        return "the environment variables AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if env.get("AWS_PROFILE"):
        return f"the profile {env['AWS_PROFILE']!r} (AWS_PROFILE) in ~/.aws"
    return "the default profile in ~/.aws, or the role of this machine"
