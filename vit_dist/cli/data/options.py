"""What the verbs of `vit-dist data` share: how options are read, how help looks. No torch."""

from __future__ import annotations

import argparse
import os
import sys
from fractions import Fraction

from vit_dist.cli.verbs import verb_parser
from vit_dist.core.files import redact
from vit_dist.core.units import parse_bytes, parse_count


def parser(verb: str, summary: str, details: str, examples: str) -> argparse.ArgumentParser:
    """The parser of one verb: what it does, then examples."""
    description = f"{summary}\n\n{details.strip()}" if details else summary
    return verb_parser(f"vit-dist data {verb}", description, f"examples:\n{examples.rstrip()}", allow_abbrev=False)


def count(text: str) -> int:
    """A count such as 30000 or '30k'."""
    try:
        return parse_count(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def positive(text: str) -> int:
    """A count of 1 or more."""
    number = count(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return number


def size(text: str) -> int:
    """Bytes such as '256 MiB'."""
    try:
        number = parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 byte or more, got {text!r}")
    return number


def fraction(text: str) -> Fraction:
    """A fraction such as '1%' or '0.01'."""
    try:
        number = Fraction(text[:-1].strip()) / 100 if text.endswith("%") else Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a fraction such as 1% or 0.01, got {text!r}") from None
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction between 0 and 100%, got {text!r}")
    return number


def fraction_or_count(text: str) -> Fraction:
    """A fraction below 1 ('5%', '0.05') or a count ('10k')."""
    try:
        return Fraction(parse_count(text))
    except ValueError:
        return fraction(text)


def default_workers() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def say(line: str) -> None:
    """A line for people, on stderr, without secrets."""
    sys.stderr.write(f"{redact(line)}\n")
    sys.stderr.flush()


def out(text: str) -> None:
    """Results, on stdout."""
    sys.stdout.write(text)
