"""Open registries: a new model, optimizer or evaluator is one new file, in its package or outside ours.

A registry maps a name to a config class and the defaults of that name. The files of a plug-in package are
imported the first time a name is asked for; they import torch inside `build()` only, so that recipes can be
read without it. Modules whose name starts with `_` are left alone. Modules that installed
packages announce as entry points are imported then, too. Files from outside: see plugins.py.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

from vit_dist.core.errors import ConfigError, did_you_mean
from vit_dist.core.marks import WhenSet
from vit_dist.core.places import Place, Takes


class Config(BaseModel):
    """Base of everything read from YAML: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def is_unset(self, name: str) -> bool:
        """Whether a field is not to be written: one that came later (`WHEN_SET`), at its default."""
        field = type(self).model_fields[name]
        return any(isinstance(mark, WhenSet) for mark in field.metadata) and getattr(self, name) == field.default

    @model_serializer(mode="wrap")
    def _without_what_is_unset(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = handler(self)
        return {name: value for name, value in plain.items() if not self.is_unset(name)}


LocalPath = Annotated[str, AfterValidator(Place(Takes.LOCAL, empty=True))]
"""A key that takes a path on this machine; empty: none."""
AnyPlace = Annotated[str, AfterValidator(Place(Takes.EITHER, empty=True))]
"""A key that takes a path or a URL; empty: none."""


class Plugin(Config):
    """Base of the config of one plug-in; `name` says which."""

    name: str = Field(description="of the plug-in that brings the section's other keys")


P = TypeVar("P", bound=Plugin)


class Registry:
    """The plug-ins of one kind.

    Args:
        kind: for people, such as 'model'.
        base: 'module:Class' that every plug-in of this kind inherits.
        package: whose files are the built-in ones.
        modules: names of those files; (): all that do not begin with `_`.
    """

    _outsider: ClassVar[str] = ""
    """What registers from outside the package right now, for people; '' while our own files are imported."""

    def __init__(self, kind: str, base: str, package: str, modules: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self._base = base
        self._package = package
        self._modules = modules
        self._entries: dict[str, tuple[type[Plugin], dict[str, Any]]] = {}
        self._prefixes: dict[str, type[Plugin]] = {}
        self._origins: dict[str, str] = {}
        self._discovered = False

    def register_prefix(self, prefix: str) -> Callable[[type[P]], type[P]]:
        """Class decorator: make a config class available under every name that begins with `prefix`."""

        def add(cls: type[P]) -> type[P]:
            self._claim(prefix, cls, self._prefixes.get(prefix), is_prefix=True)
            self._prefixes[prefix] = cls
            return cls

        return add

    def register(self, name: str, **defaults: Any) -> Callable[[type[P]], type[P]]:
        """Class decorator: make a config class available under `name`, with defaults of that name."""

        def add(cls: type[P]) -> type[P]:
            self._claim(name, cls, self._entries.get(name, (None,))[0])
            self._entries[name] = (cls, {"name": name, **defaults})
            return cls

        return add

    def _claim(self, name: str, cls: type[Plugin], before: type[Plugin] | None, *, is_prefix: bool = False) -> None:
        """Note who registers `name`; ValueError where somebody else has, or where the class is of another kind."""
        origin = Registry._outsider or cls.__module__
        if before is not None and (before is not cls or self._origins[name] != origin):
            raise ValueError(f"two {self.kind}s are called {name!r}: one in {self._origins[name]}, one in {origin}")
        if Registry._outsider:  # our own files do it right, and may be imported before the base of their kind is there
            module, _, base = self._base.partition(":")
            if not (isinstance(cls, type) and issubclass(cls, getattr(importlib.import_module(module), base))):
                raise ValueError(f"{self.kind} {name!r}: {cls!r} must be a class that inherits {base} of {module}")
            others = [n for n in self._origins if n != name]
            shadows = (
                n for n in others if (n in self._prefixes and name.startswith(n)) or (is_prefix and n.startswith(name))
            )
            for other in shadows:
                raise ValueError(f"{self.kind} {name!r}: begins like {other!r}, which {self._origins[other]} has")
        self._origins[name] = origin

    def names(self) -> list[str]:
        """Every registered name: ours by file, then others'; those of one file in the order of registration."""
        self._discover()
        return sorted(self._entries, key=self._order)

    def classes(self) -> dict[type[Plugin], list[str]]:
        """The config classes -> the names of each, in the order of `names()`; a prefix ends in '...', behind names."""
        found: dict[type[Plugin], list[str]] = {}
        for name in self.names():
            found.setdefault(self._entries[name][0], []).append(name)
        for prefix in sorted(self._prefixes, key=self._order):
            found.setdefault(self._prefixes[prefix], []).append(f"{prefix}...")
        return found

    def _order(self, name: str) -> tuple[bool, str]:
        # Not the order of imports: it hangs on what a program happened to import before it asked for a name.
        origin = self._origins[name]
        ours = origin.startswith(f"{self._package}.")
        return not ours, origin if ours else ""

    def from_outside(self) -> dict[str, str]:
        """The names, and prefixes with '...' behind, that no file of ours has registered -> who has, for people."""
        self._discover()
        shown = {name: f"{name}..." if name in self._prefixes else name for name in self._origins}
        return {shown[n]: origin for n, origin in self._origins.items() if not origin.startswith("vit_dist.")}

    def lookup(self, name: str) -> tuple[type[Plugin], dict[str, Any]]:
        """The config class of `name` and the defaults of that name.

        Raises:
            ConfigError: nothing is registered under `name`.
        """
        self._discover()
        for prefix, plugin in self._prefixes.items():
            if name.startswith(prefix) and name != prefix:
                return plugin, {"name": name}
        if name not in self._entries:
            raise ConfigError(f"unknown {self.kind} {name!r}{did_you_mean(name, self.names())}{_unimportable()}")
        cls, defaults = self._entries[name]
        return cls, dict(defaults)

    def forget(self, origin: str) -> None:
        """Take back what somebody has registered: a file that failed half-way, or has changed."""
        for name in [n for n, who in self._origins.items() if who == origin]:
            del self._origins[name]
            self._entries.pop(name, None)
            self._prefixes.pop(name, None)

    def discover_built_in(self) -> None:
        """Import the package's own files."""
        if self._discovered:
            return
        package = importlib.import_module(self._package)
        found = [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_") and not m.ispkg]
        for name in self._modules or found:
            importlib.import_module(f"{self._package}.{name}")
        self._discovered = True

    def _discover(self) -> None:
        self.discover_built_in()
        load_installed()


def _unimportable() -> str:
    """Installed plug-ins that could not be imported: perhaps one of them has the name that was not found."""
    return "".join(f"; {plugin.problem}" for plugin in load_installed() if plugin.problem)


@contextlib.contextmanager
def registering(origin: str) -> Iterator[None]:
    """Whatever is registered inside the block comes from `origin`, outside our package; nothing of it stays on error.

    Args:
        origin: for people, such as the path of a file.
    """
    # First ours: else a plug-in that imports them would register them as its own, and could take their names.
    for registry in REGISTRIES:
        registry.discover_built_in()
    before, Registry._outsider = Registry._outsider, origin
    try:
        yield
    except BaseException:
        for registry in REGISTRIES:
            registry.forget(origin)
        raise
    finally:
        Registry._outsider = before


MODELS = Registry("model", "vit_dist.models:ModelConfig", "vit_dist.models")
OPTIMIZERS = Registry("optimizer", "vit_dist.optim:OptimizerConfig", "vit_dist.optim")
SCHEDULES = Registry("schedule", "vit_dist.optim:ScheduleConfig", "vit_dist.optim")
ENGINES = Registry("engine", "vit_dist.engines:EngineConfig", "vit_dist.engines")
EVALUATORS = Registry("evaluator", "vit_dist.evals:EvaluatorConfig", "vit_dist.evals")
SOURCES = Registry("kind of source", "vit_dist.data.pack.sources:SourceConfig", "vit_dist.data.pack", ("choose",))
REGISTRIES = (MODELS, OPTIMIZERS, SCHEDULES, ENGINES, EVALUATORS, SOURCES)


GROUP = "vit_dist.plugins"
"""The entry points that packages announce plug-ins with; the value is a module."""


@dataclass(frozen=True)
class InstalledPlugin:
    """An entry point: what it is called, its module, whose it is, and why it could not be imported, or ''."""

    name: str
    module: str
    distribution: str
    problem: str = ""

    @property
    def origin(self) -> str:
        """For people."""
        return f"plug-in {self.name!r} of {self.distribution} ({self.module})"


_installed: list[InstalledPlugin] | None = None


def load_installed() -> list[InstalledPlugin]:
    """Every plug-in that an installed package announces, imported once. One that fails says why, and harms no other."""
    global _installed
    if _installed is None:
        _installed = []  # a plug-in may look names up while it is imported
        _installed = [_import(entry) for entry in sorted(importlib.metadata.entry_points(group=GROUP))]
    return _installed


def _import(entry: importlib.metadata.EntryPoint) -> InstalledPlugin:
    distribution = f"{entry.dist.name} {entry.dist.version}" if entry.dist is not None else "an unknown package"
    plugin = InstalledPlugin(entry.name, entry.value, distribution)
    try:
        with registering(plugin.origin):
            entry.load()
    except (Exception, SystemExit) as error:
        problem = f"{plugin.origin} could not be imported: {error_text(error)}"
        return InstalledPlugin(entry.name, entry.value, distribution, problem)
    return plugin


def error_text(error: BaseException) -> str:
    """Type and message, in one line."""
    return f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}"
