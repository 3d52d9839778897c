"""Regular expressions of tag maps: how long a text may be that one is searched in, so that it takes a second at most.

Python's engine tries all the ways in which a text may fit, and cannot be stopped. How many there are follows from the
parsed expression: a repetition whose next character decides whether it goes on leaves no choice, any other may end at
every place. What cannot be told counts as a choice.
"""

from __future__ import annotations

import functools
import math
import re
import sys
from typing import Any

_MOST_STEPS = 7e7
LONGEST = 500
"""Characters of a text for any expression."""
LEAST = 200
"""An expression must allow texts of so many characters."""

_FEW_TIMES = 4
# What stands for all characters, beside those that the expression names itself.
_ALPHABET = frozenset(map(chr, range(128))) | frozenset("éßΩ中²٣\u2028\xa0")
_CATEGORIES = {
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}

Chars = frozenset[str]


@functools.lru_cache(1000)
def longest_text(pattern: str) -> int:
    """How many characters a text may have that this expression is searched in; 500 at the most, 0 for none.

    Raises:
        re.error, RecursionError, OverflowError: not a regular expression, or nested too deeply.
    """
    re.compile(pattern)
    tree: Any = re._parser.parse(pattern)  # type: ignore[attr-defined]
    counted = _Count(tree.state.flags)
    counted.sequence(tree, frozenset())
    anchored = bool(tree) and str(tree[0][0]) == "AT" and str(tree[0][1]) == "AT_BEGINNING"
    degree = counted.choices + counted.scans + (0 if anchored else 1)
    # Places that follow one another: n over k of them, about n**k / k!.
    if counted.ways > math.log(_MOST_STEPS) or degree > 20:
        return 0
    room = math.log(_MOST_STEPS) - counted.ways + math.lgamma(degree + 1)
    return min(LONGEST, int(math.exp(room / degree))) if degree else LONGEST


class _Count:
    """Walks an expression from its end to its beginning.

    Attributes:
        choices: repetitions that may end at any place.
        scans: 1 where some other repetition walks over the text.
        ways: log of the number of further ways.
    """

    def __init__(self, flags: int) -> None:
        self.choices, self.scans, self.ways, self._flags = 0, 0, 0.0, flags

    def sequence(self, items: Any, follow: Chars) -> Chars:
        """With which characters may begin what stands here and goes on with `follow`."""
        for code, argument in reversed(list(items)):
            follow = self._one(str(code), argument, follow)
        return follow

    def _one(self, code: str, argument: Any, follow: Chars) -> Chars:
        if code in {"LITERAL", "NOT_LITERAL", "ANY", "IN"}:
            return self._characters(code, argument)
        if code == "AT":
            return follow
        if code == "SUBPATTERN":
            self._flags |= argument[1]
            return self.sequence(argument[3], follow)
        if code == "BRANCH":
            return self._branch(argument[1], follow)
        if code in {"MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"}:
            least, most, inner = argument
            return self._repeat(int(least), int(most), inner, follow)
        # Looking ahead, what a group held and the like.
        for part in argument if isinstance(argument, tuple | list) else (argument,):
            if isinstance(part, re._parser.SubPattern):  # type: ignore[attr-defined]
                self.sequence(part, _ALPHABET)
        self.scans = 1
        return _ALPHABET

    def _branch(self, branches: Any, follow: Chars) -> Chars:
        begins = [self.sequence(branch, follow) for branch in branches]
        if sum(map(len, begins)) > len(frozenset().union(*begins)):
            self.ways += math.log(len(begins))
        return frozenset().union(*begins)

    def _repeat(self, least: int, most: int, inner: Any, follow: Chars) -> Chars:
        before = (self.choices, self.ways)
        begins = self.sequence(inner, frozenset())
        self.choices, self.ways = before
        # Once more, now that it is known what may follow: the next time round, or what comes after.
        self.sequence(inner, begins | follow)
        within = self.ways - before[1] + (self.choices - before[0]) * math.log(LONGEST)
        self.choices, self.ways = before[0], before[1] + within * min(most, LONGEST)
        width = re._parser.SubPattern.getwidth(inner)[0]  # type: ignore[attr-defined]
        if most != least and (begins & follow or not width):
            if most - least > _FEW_TIMES:
                self.choices += 1
            else:
                self.ways += math.log(most - least + 1)
        elif most > _FEW_TIMES and follow:
            self.scans = 1
        return begins | follow if least == 0 or not width else begins

    def _characters(self, code: str, argument: Any) -> Chars:
        items = argument if code == "IN" else [(code, argument)]
        found: set[str] = set()
        negate = False
        for kind, value in items:
            name = str(kind)
            if name == "NEGATE":
                negate = True
            elif name == "LITERAL":
                found.add(chr(value))
            elif name == "RANGE":
                found |= {c for c in _ALPHABET if value[0] <= ord(c) <= min(value[1], sys.maxunicode)}
                found |= {chr(value[0]), chr(value[1])}
            elif name == "CATEGORY" and str(value) in _CATEGORIES:
                found |= {c for c in _ALPHABET if re.match(_CATEGORIES[str(value)], c)}
            elif name == "NOT_LITERAL":
                found |= _ALPHABET - {chr(value)}
            else:
                found |= _ALPHABET
        if self._flags & re.IGNORECASE:
            found |= {other for c in found for other in (c.lower(), c.upper(), c.swapcase())}
        return _ALPHABET - found if negate else frozenset(found)
