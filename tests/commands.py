"""Commands that texts name: found in pages and in `--help`, and parsed by the real parsers of their verbs.

In a text, a word in CAPITALS, or in <angle brackets>, stands for something of the reader's (RUN, N, <node>); `...`
stands for whatever follows, so that what is there need not be whole; a mention in a sentence may leave arguments out.
"""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import patch

from vit_dist.cli.main import VERBS
from vit_dist.cli.verbs import Verb

_CAPITALS = re.compile(r"^<[^<>]+>$|^[A-Z][A-Z0-9_-]*$|^[A-Z-]+/[A-Z-]+$")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.S | re.M)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_SHELL = {"", "sh", "bash", "console"}


@dataclass(frozen=True)
class Command:
    """One command: where it is named, its words behind `vit-dist`, and whether it may leave arguments out."""

    where: str
    words: tuple[str, ...]
    partial: bool

    def __str__(self) -> str:
        return f"{self.where}: vit-dist {shlex.join(self.words)}"


class Reached(BaseException):
    """A verb has made its parser, and is about to parse."""

    def __init__(self, parser: argparse.ArgumentParser, argv: list[str]) -> None:
        super().__init__()
        self.parser, self.argv = parser, argv


def blocks(page: str) -> Iterator[str]:
    """Lines of shell in a page: of fenced and of indented blocks, continued lines joined, comments left out."""
    rest = page
    for language, block in _FENCE.findall(page):
        if language in _SHELL:
            yield from lines(block)
    rest = _FENCE.sub("", rest)
    for block in re.findall(r"(?:(?<=\n\n)|^)(?: {4,}\S.*\n(?:\n(?= {4,}))?)+", rest, re.M):
        yield from lines(block)


def lines(block: str) -> Iterator[str]:
    """Lines of shell without what explains them: a comment, or what stands apart behind three blanks."""
    for line in re.sub(r"\\\n\s*", "", block).splitlines():
        yield re.split(r"\s#\s| {3,}(?=\S)", line.strip())[0].strip()


def spans(page: str) -> Iterator[str]:
    """Code within sentences, also where it goes over the end of a line."""
    for span in _SPAN.findall(_FENCE.sub("", page)):
        yield " ".join(span.split())


def commands(text: str, where: str, *, partial: bool) -> Iterator[Command]:
    """Those of `vit-dist` in a line of shell or a span of code."""
    for found in re.finditer(r"(?:^|[\s`(])vit-dist (?=[a-z-])", text):
        rest = re.split(r"\s(?:\||>|>>|&&|\|\|)\s|;|\)(?=\s|;|$)|`", text[found.end() :])[0]
        try:
            words = shlex.split(rest)
        except ValueError:
            words = rest.split()
        short = "..." in words
        yield Command(where, tuple(words[: words.index("...")] if short else words), partial or short)


def parser_of(words: list[str]) -> Reached:
    """The parser that a command's words reach, and what of them it gets.

    Raises:
        KeyError: there is no such verb.
        VitDistError: the verb has no such verb of its own.
    """
    module = importlib.import_module(f"vit_dist.cli.{VERBS[words[0]][0]}")

    def stop(self: argparse.ArgumentParser, args: list[str], *_: object) -> None:
        raise Reached(self, list(args))

    with (
        patch.object(argparse.ArgumentParser, "parse_args", stop),
        patch.object(argparse.ArgumentParser, "parse_intermixed_args", stop),
    ):
        try:
            module.main(list(words[1:]))
        except Reached as reached:
            return reached
    raise AssertionError(f"{words}: nothing is parsed")


@cache
def leaves() -> dict[tuple[str, ...], argparse.ArgumentParser]:
    """Every verb, also those of verbs -> its parser."""
    found = {}
    for verb, (module, _) in VERBS.items():
        inner = getattr(importlib.import_module(f"vit_dist.cli.{module}"), "VERBS", None)
        of_verb: dict[str, Verb] = inner if isinstance(inner, dict) else {}
        for path in [(verb, name) for name in of_verb] or [(verb,)]:
            more = ["--", "srun", "--", "x"] if verb == "supervise" else []
            found[path] = parser_of([*path, *more]).parser
    return found


def parsed(command: Command) -> argparse.Namespace | None:
    """What the real parser makes of a command; None where it is a partial one that lacks arguments.

    Raises:
        ValueError: a verb, an option or a value that there is not.
    """
    words = ["3" if re.fullmatch(r"[A-Z]", word) else word for word in command.words]
    if words[1:2] and is_placeholder(words[1]) and words[0] in {path[0] for path in leaves() if len(path) > 1}:
        return None
    try:
        reached = parser_of(words)
    except KeyError:
        raise ValueError(f"no verb {words[0]!r}") from None
    except AssertionError:
        if command.partial or words[1:] in ([], ["--help"]):
            return None
        raise
    parser = reached.parser
    for word in reached.argv:
        option = word.partition("=")[0]
        if option.startswith("--") and option != "--" and option not in parser._option_string_actions:
            raise ValueError(f"no option {option} of {parser.prog}")
    message: list[str] = []

    def fail(text: str) -> None:
        message.append(text)
        raise Reached(parser, [])

    parser.error = fail  # type: ignore[method-assign,assignment]
    if "--help" in reached.argv:
        return None
    try:
        return parser.parse_intermixed_args(reached.argv)
    except (Reached, TypeError):
        if command.partial:
            return None
        raise ValueError(f"{parser.prog}: {' '.join(message)}") from None


def is_placeholder(word: str) -> bool:
    """Whether a word stands for something of the reader's."""
    return _CAPITALS.match(word) is not None


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.replace("`", "")).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    """Those of a page's headings."""
    found: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.+?) *$", _FENCE.sub("", page.read_text()), re.M):
        found[slug(heading)] = found.get(slug(heading), -1) + 1
    return {f"{name}-{i}" if i else name for name, times in found.items() for i in range(times + 1)}
