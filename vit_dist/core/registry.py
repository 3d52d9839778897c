"""Open registries: a new model, optimizer or evaluator is one new file in its package.

A registry maps a name to a config class and the defaults of that name. The files of a plug-in package are
imported the first time a name is asked for; they import torch inside `build()` only, so that recipes can be
read without it. Modules whose name starts with `_` are left alone.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

from vit_dist.core.errors import ConfigError, did_you_mean


class Config(BaseModel):
    """Base of everything read from YAML: frozen, strict, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Plugin(Config):
    """Base of the config of one plug-in; `name` says which."""

    name: str


P = TypeVar("P", bound=Plugin)


class Registry:
    """The plug-ins of one kind, found in the files of one package."""

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._entries: dict[str, tuple[type[Plugin], dict[str, Any]]] = {}
        self._prefixes: dict[str, type[Plugin]] = {}
        self._discovered = False

    def register_prefix(self, prefix: str) -> Callable[[type[P]], type[P]]:
        """Class decorator: make a config class available under every name that begins with `prefix`."""

        def add(cls: type[P]) -> type[P]:
            self._prefixes[prefix] = cls
            return cls

        return add

    def register(self, name: str, **defaults: Any) -> Callable[[type[P]], type[P]]:
        """Class decorator: make a config class available under `name`, with defaults of that name."""

        def add(cls: type[P]) -> type[P]:
            if name in self._entries and self._entries[name][0] is not cls:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            self._entries[name] = (cls, {"name": name, **defaults})
            return cls

        return add

    def names(self) -> list[str]:
        """Every registered name, in the order of registration."""
        self._discover()
        return list(self._entries)

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
            raise ConfigError(f"unknown {self.kind} {name!r}{did_you_mean(name, self._entries)}")
        cls, defaults = self._entries[name]
        return cls, dict(defaults)

    def _discover(self) -> None:
        if self._discovered:
            return
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_") and not module.ispkg:
                importlib.import_module(f"{self._package}.{module.name}")
        self._discovered = True


MODELS = Registry("model", "vit_dist.models")
OPTIMIZERS = Registry("optimizer", "vit_dist.optim")
SCHEDULES = Registry("schedule", "vit_dist.optim")
ENGINES = Registry("engine", "vit_dist.engines")
EVALUATORS = Registry("evaluator", "vit_dist.evals")
