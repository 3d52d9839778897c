"""The names of timm's models, read out of its sources: importing timm, and torch with it, takes many seconds."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path

_DEFINED = re.compile(r"^@register_model\b[^\n]*\n(?:@[^\n]*\n)*def (\w+)\(", re.MULTILINE)
_RENAMED = re.compile(r"^register_model_deprecations\(__name__, \{(.*?)^\}", re.MULTILINE | re.DOTALL)
_KEY = re.compile(r"^\s*['\"]([\w.]+)['\"]\s*:", re.MULTILINE)


@lru_cache(maxsize=1)
def timm_names() -> frozenset[str]:
    """Names that timm registers, without tags of pretrained weights; none where its sources cannot be read."""
    spec = importlib.util.find_spec("timm")
    found: set[str] = set()
    for place in (spec.submodule_search_locations if spec else None) or ():
        for path in Path(place, "models").glob("*.py"):
            try:
                text = path.read_text(encoding="utf-8")
            except (OSError, ValueError):
                return frozenset()
            found |= set(_DEFINED.findall(text))
            for renamed in _RENAMED.findall(text):
                found |= {key.partition(".")[0] for key in _KEY.findall(renamed)}
    return frozenset(found)
