"""Lines for people, on stderr: never on stdout, which belongs to results. Secrets are taken out."""

from __future__ import annotations

import sys

from vit_dist.core.files import redact


def log(message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(redact(message) + "\n")
    sys.stderr.flush()


def on_terminal() -> bool:
    """True where stderr is a terminal that can redraw a line."""
    return sys.stderr.isatty()
