"""YAML as we read it: safe, with the number syntax of YAML 1.2, and bounded in size, depth and what aliases unfold to.

3e-4 is a float, 1:30, `on` and 2026-11-26 are texts, keys given twice are refused, merge keys (`<<`) work.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from vit_dist.core.errors import ConfigError

MAX_CHARACTERS = 1 << 20
MAX_DEPTH = 60
MAX_VALUES = 100_000
"""Keys and values of a whole file, those behind an alias counted as often as it is used."""
MAX_DIGITS = 40

_CORE = "tag:yaml.org,2002:"
_TAGS = {f"{_CORE}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge", "value")}


class BoundedLoader(yaml.SafeLoader):
    """A safe loader; the bounds are held while nodes are composed: before a value is made of any."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        # Values under each finished node, its own included. The node is kept too, so that no id is used twice.
        self._sizes: dict[int, tuple[yaml.Node, int]] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node, within the bounds."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        mark = event.start_mark
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_DEPTH} levels deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if isinstance(event, yaml.AliasEvent):
            # The node it stands for is not finished, so that the alias lies inside it.
            if id(node) not in self._sizes:
                raise yaml.composer.ComposerError(None, None, f"*{event.anchor} contains itself", mark)
            return node
        if node.tag not in _TAGS:
            raise yaml.composer.ComposerError(None, None, f"the tag {_shown(node.tag)} is not read here", mark)
        size = 1 + sum(self._sizes[id(part)][1] for part in _parts(node))
        if size > MAX_VALUES:
            raise yaml.composer.ComposerError(None, None, f"more than {MAX_VALUES:,} values", mark)
        self._sizes[id(node)] = node, size
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """A value; what does not fit its tag is an error with a place, as all others are."""
        try:
            return super().construct_object(node, deep)
        except yaml.YAMLError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError):
            value = (
                repr(node.value[:40])
                if isinstance(node, yaml.ScalarNode)
                else f"a {type(node).__name__.removesuffix('Node').lower()}"
            )
            problem = f"{value} is not {_shown(node.tag)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


def _shown(tag: str) -> str:
    return tag.replace(_CORE, "!!", 1)[:80]


BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in {"null", "merge"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
BoundedLoader.add_implicit_resolver(f"{_CORE}bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
BoundedLoader.add_implicit_resolver(f"{_CORE}int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789"))
BoundedLoader.add_implicit_resolver(
    f"{_CORE}float",
    re.compile(
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _construct_int(loader: BoundedLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    if len(text) > MAX_DIGITS:
        problem = f"a number of {len(text):,} characters; {MAX_DIGITS} are read at most"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    # Base 10 always: YAML 1.1 reads 010 as 8.
    return int(text)


def _construct_mapping(loader: BoundedLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        if key_node.tag == f"{_CORE}merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str | int | float | bool) or key in seen:
            what = "given twice" if isinstance(key, str) and key in seen else "not a name"
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is {what}", key_node.start_mark)
        seen.add(key)
    # A key of its own wins over one that is merged.
    loader.flatten_mapping(node)
    return yaml.constructor.BaseConstructor.construct_mapping(loader, node, deep=True)


BoundedLoader.add_constructor(f"{_CORE}int", _construct_int)
BoundedLoader.add_constructor(f"{_CORE}map", _construct_mapping)


def parse_yaml(text: str, where: str) -> Any:
    """Read YAML safely.

    Args:
        text: of one document.
        where: what the text is, for errors: a file, an option.

    Raises:
        ConfigError: not YAML, or beyond one of the bounds, with line and column.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{where}: {len(text):,} characters; {MAX_CHARACTERS:,} are read at most")
    try:
        return yaml.load(text, BoundedLoader)  # noqa: S506 - BoundedLoader is a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(f"{where}{place}: not valid YAML: {problem}") from None
