"""What a recipe's field is marked with: whether it counts for a run's identity, and whether it is always written."""

from __future__ import annotations


class NonIdentity:
    """Marks a field that is free to differ between two attempts of one run: where, how often, how fast, not what."""


NON_IDENTITY = NonIdentity()


class Layout:
    """Marks a field that a checkpoint's layout says, since it decides how results are rounded."""


LAYOUT = Layout()


class WhenSet:
    """Marks a field that came later: at its default it is not written, and runs of before count as they did."""


WHEN_SET = WhenSet()
