"""How long a store or web server that does not answer is asked again, and what is said meanwhile. No torch.

One that has never answered this process is perhaps a wrong address: it is given up after seconds, and the first failed
try says what is asked, which setting led there and until when. Where nobody is at its address, a name that nothing
has or a port that refuses, there is less to wait for. One that has answered, and any once a run has begun, is
waited for as patiently as whoever asks can be: an outage is not to end a run.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from vit_dist.core.log import WARNING, log
from vit_dist.core.urls import is_s3, is_web, redact, split_url

UNKNOWN_S = 20.0
"""How long a server that has never answered is asked."""
ABSENT_S = 4.0
"""How long one is at whose address nobody is: time enough for a store that is being started, or a name that spreads."""
SILENT_S = 3.0
"""So long a question may take before something is said."""
_SAID_EVERY_S = 60.0
_LEAST_S = 2.0
_KNOCK_S = 1.0

T = TypeVar("T")


class NoAnswerError(OSError):
    """A store has not answered in the time that one unknown is given."""


class NobodyThereError(NoAnswerError):
    """At the address of a store is nobody who could answer."""


@dataclass(frozen=True)
class Known:
    """What a process knows of servers, for others that it starts and that ask the same ones.

    Attributes:
        begun: whether a run has begun, so that every store is waited for.
        answered: servers that have answered.
    """

    begun: bool = False
    answered: frozenset[str] = frozenset()


class _State:
    """Of this process, by server."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begun = False
        self.brief = 0
        self.answered: set[str] = set()
        self.failing_since: dict[str, float] = {}
        self.said: dict[str, float] = {}


_state = _State()


def server(url: str) -> str:
    """Who is asked for a URL: what answers for it once will answer again."""
    if is_web(url):
        return f"{urlsplit(url).scheme}://{urlsplit(url).netloc}"
    return f"s3 {endpoint()[0]}" if is_s3(url) else split_url(url)[0]


def endpoint() -> tuple[str, str]:
    """The address of S3, '' for Amazon's own, and the setting that says so."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            return os.environ[name], f"the environment variable {name}"
    return "", ""


def asked_at(url: str) -> str:
    """Where a URL is looked for and which setting says so, for people; '' where the URL says it all."""
    if not is_s3(url):
        return ""
    address, setting = endpoint()
    if not address:
        profile = os.environ.get("AWS_PROFILE", "")
        where = f"the profile {profile!r} (AWS_PROFILE)" if profile else "the default profile"
        address, setting = _endpoint_of_profile(), f"endpoint_url of {where} in ~/.aws/config"
    return f"{redact(address)}, from {setting}" if address else "Amazon's S3, as no AWS_ENDPOINT_URL_S3 is set"


def _endpoint_of_profile() -> str:
    try:
        import botocore.session

        return str(botocore.session.get_session().get_scoped_config().get("endpoint_url") or "")
    # A profile that does not exist, a file that cannot be read: the store's own message says it.
    except Exception:
        return ""


def nobody_there(url: str) -> str:
    """Why nobody can answer for a URL: its host's name is not known, or its port refuses; '' where somebody may.

    Asked is the network alone, in a second. Amazon's own addresses and those behind a proxy are not asked.
    """
    address = url if is_web(url) else (endpoint()[0] or _endpoint_of_profile()) if is_s3(url) else ""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)
    except ValueError:
        return ""
    if not host or not port or (parts.scheme in getproxies() and not proxy_bypass(host)):
        return ""
    try:
        socket.create_connection((host, port), _KNOCK_S).close()
    except socket.gaierror as error:
        return f"the name {host} cannot be resolved ({error.strerror})"
    except ConnectionRefusedError:
        return f"{host}:{port} refuses connections: nothing listens there"
    except UnicodeError:
        return f"{host} can be no host's name"
    # What else there is may pass.
    except OSError:
        return ""
    return ""


@contextlib.contextmanager
def briefly() -> Iterator[None]:
    """Within this block stores are asked as before a run has begun: nothing is lost by giving up."""
    with _state.lock:
        _state.brief += 1
    try:
        yield
    finally:
        with _state.lock:
            _state.brief -= 1


def run_has_begun() -> None:
    """From now on every store is waited for, answered or not: there is something to lose."""
    _state.begun = True


def known() -> Known:
    """What this process knows."""
    with _state.lock:
        return Known(_state.begun, frozenset(_state.answered))


def know(what: Known) -> None:
    """Know what another process knows, too: an outage that this one begins with is not to end what goes on there."""
    with _state.lock:
        _state.begun = _state.begun or what.begun
        _state.answered |= what.answered


def has_answered(url: str) -> None:
    """Note that whoever is asked for this URL is there."""
    name = server(url)
    with _state.lock:
        _state.answered.add(name)
        _state.failing_since.pop(name, None)


def is_known(url: str) -> bool:
    """Whether who is asked for this URL has answered before, or a run has begun."""
    return (_state.begun and not _state.brief) or server(url) in _state.answered


def failed(url: str, problem: str, otherwise: str, at_least: float = 0.0) -> float:
    """Note a try that got no answer; the first of a while is told.

    Args:
        url: that was asked for.
        problem: what went wrong.
        otherwise: until when a server that is known is asked again, for people: 'up to 9 times'.
        at_least: seconds it goes on being asked whatever has passed.

    Returns:
        Seconds that are left to ask again, perhaps none; infinite for a server that is known.
    """
    name, now = server(url), time.monotonic()
    is_there = is_known(url)
    absent = "" if is_there else nobody_there(url)
    with _state.lock:
        since = _state.failing_since.setdefault(name, now)
        left = float("inf") if is_there else min(UNKNOWN_S, ABSENT_S if absent else UNKNOWN_S) - (now - since)
        left = max(left, at_least)
        # Of one that is not asked again the error says all.
        tell = left > 0 and now - _state.said.get(name, -_SAID_EVERY_S) >= _SAID_EVERY_S
        if tell:
            _state.said[name] = now
    if tell:
        at = asked_at(url)
        until = otherwise if is_there else f"until {_clock(left)}"
        log(f"  {redact(url)}: {absent or problem}{f' ({at})' if at else ''}; asked again {until}", WARNING)
    return left


def answer(url: str, question: Callable[[], T]) -> T:
    """What a question to a store gives; of one unknown, within seconds.

    Raises:
        NoAnswerError: it has not answered, or nobody is there who could.
        Exception: what the question raises.
    """
    if is_known(url):
        return question()
    with _state.lock:
        since = _state.failing_since.setdefault(server(url), time.monotonic())
    while True:
        value, error = _outcome(url, question, since)
        if error is None:
            has_answered(url)
            return value  # type: ignore[return-value]
        why = nobody_there(url)
        if not why:
            raise error
        # Each library has words of its own for that, and some give up at once.
        failed(url, why, "")
        if time.monotonic() - since >= min(UNKNOWN_S, ABSENT_S):
            raise NobodyThereError(why) from error
        time.sleep(_KNOCK_S)


def _outcome(url: str, question: Callable[[], T], since: float) -> tuple[T | None, BaseException | None]:
    """What a question gives or raises, which began to be asked at `since`."""
    done, outcome = threading.Event(), list[tuple[T | None, BaseException | None]]()

    def ask() -> None:
        try:
            outcome.append((question(), None))
        except BaseException as error:
            outcome.append((None, error))
        done.set()

    # Left behind where it gets no answer: the libraries have time-outs of minutes that cannot be cut short.
    threading.Thread(target=ask, name="ask store", daemon=True).start()
    _wait_for_somebody(url, done, since)
    allowed = max(_LEAST_S, UNKNOWN_S - (time.monotonic() - since))
    silent = min(SILENT_S, allowed)
    if not done.wait(silent):
        failed(url, "no answer yet", "", at_least=allowed - silent)
        if not done.wait(allowed - silent):
            raise NoAnswerError(f"no answer within {allowed:.0f} s")
    return outcome[0]


def _wait_for_somebody(url: str, done: threading.Event, since: float) -> None:
    """Wait until somebody may answer at the address that was asked, or the question is through.

    Raises:
        NobodyThereError: nobody has come.
    """
    # The libraries ask such an address for longer than it is worth, and tell nothing meanwhile.
    while not done.is_set() and (why := nobody_there(url)):
        failed(url, why, "")
        if time.monotonic() - since >= min(UNKNOWN_S, ABSENT_S):
            raise NobodyThereError(why)
        done.wait(_KNOCK_S)


def _clock(seconds: float) -> str:
    at = datetime.now(UTC) + timedelta(seconds=max(0.0, seconds))
    return f"{at:%H:%M:%S} UTC ({max(0.0, seconds):.0f} s)"
