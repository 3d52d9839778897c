"""No setting is accepted and then ignored: what a config file or a command line can say, some code reads."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import launcher
import vit_dist
from tests.places import ROOT
from vit_dist.core.registry import Config

TEMPLATES = ("slurm/*.j2", "vit_dist/scaling/report/*.j2")
CLI = ROOT / "vit_dist" / "cli"


def sources(*tops: str) -> list[Path]:
    return sorted(path for top in tops for path in (ROOT / top).rglob("*.py"))


def checks(node: ast.AST) -> bool:
    """A validator: it looks at a setting, which uses it for nothing."""
    if not isinstance(node, ast.FunctionDef):
        return False
    called = (d.func if isinstance(d, ast.Call) else d for d in node.decorator_list)
    return any(isinstance(d, ast.Name) and d.id.endswith("_validator") for d in called)


def reads(tree: ast.AST) -> Iterator[str]:
    """Names that are read of anything: `x.name`, `getattr(x, "name")`, words of a tuple that getattr may go through."""
    if checks(tree):
        return
    if isinstance(tree, ast.Attribute) and isinstance(tree.ctx, ast.Load):
        yield tree.attr
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in {"getattr", "at_least_one"}:
        yield from (a.value for a in tree.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
    if isinstance(tree, ast.comprehension | ast.For):
        words = tree.iter.elts if isinstance(tree.iter, ast.Tuple | ast.List) else []
        yield from (w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, str))
    for child in ast.iter_child_nodes(tree):
        yield from reads(child)


@cache
def read_in(path: Path) -> frozenset[str]:
    return frozenset(reads(ast.parse(path.read_text())))


def read_anywhere() -> frozenset[str]:
    found = {name for path in sources("vit_dist", "launcher") for name in read_in(path)}
    for pattern in TEMPLATES:
        found |= {word for path in ROOT.glob(pattern) for word in re.findall(r"\.(\w+)", path.read_text())}
    return frozenset(found)


def configs() -> list[type[Config]]:
    """Every class that reads a file of ours: recipes and their parts, plug-ins, clusters, studies, maps of tags."""
    for package in (vit_dist, launcher):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            # Those of plug-ins that need torch hold no configs.
            if not module.name.rpartition(".")[2].startswith("_") and ".train." not in module.name:
                importlib.import_module(module.name)

    def below(cls: type[Config]) -> Iterator[type[Config]]:
        for one in cls.__subclasses__():
            yield one
            yield from below(one)

    ours = (c for c in below(Config) if c.__module__.partition(".")[0] in {"vit_dist", "launcher"})
    return sorted(set(ours), key=lambda c: (c.__module__, c.__qualname__))


def never_read(classes: Iterable[type[Config]], read: frozenset[str]) -> list[str]:
    return [
        f"{c.__qualname__}.{name}"
        for c in classes
        for name in c.__annotations__
        if name in c.model_fields and name not in read
    ]


def flags(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(flag, attribute it is kept in) of every option that a module declares."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            words = [a.value for a in node.args if isinstance(a, ast.Constant)]
            named = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if words and named.get("action") not in {"help", "version"}:
                longest = next((w for w in words if w.startswith("--")), words[0])
                yield longest, str(named.get("dest") or longest.lstrip("-").replace("-", "_"))


def ignored(path: Path) -> list[str]:
    """Flags that nothing reads: neither the verb's own module nor those in its folder; of no verb, none at all."""
    text = path.read_text()
    readers = [path] if path.parent == CLI else list(path.parent.glob("*.py"))
    if not re.search(r"^def \w*main\(", text, re.MULTILINE):
        readers = list(CLI.rglob("*.py"))
    read = {name for reader in readers for name in read_in(reader)}
    return [f"{path.relative_to(CLI)}: {flag}" for flag, dest in flags(ast.parse(text)) if dest not in read]


def test_every_field_of_every_config_is_read() -> None:
    found = configs()
    assert len(found) > 40
    assert never_read(found, read_anywhere()) == []


def test_every_flag_of_every_verb_is_read() -> None:
    modules = sources("vit_dist/cli")
    assert sum(len(list(flags(ast.parse(path.read_text())))) for path in modules) > 100
    assert [line for path in modules for line in ignored(path)] == []


@pytest.mark.parametrize(
    ("text", "is_read"),
    [
        ("x = config.wait_s", True),
        ("x = getattr(config, 'wait_s', 0)", True),
        ("x = [getattr(config, n) for n in ('wait_s', 'other')]", True),
        ("for n in ('wait_s',):\n    use(getattr(config, n))", True),
        ("class C(Config):\n    wait_s: float = 600.0", False),
        ("config.wait_s = 3", False),
        ("x = {'wait_s': 3}", False),
        ("def f(wait_s): return wait_s", False),
        ("'config.wait_s'", False),
        ("@field_validator('wait_s')\ndef over_0(cls, value): return value > cls.wait_s", False),
        ("@model_validator(mode='after')\ndef fits(self): return self.wait_s > 0", False),
    ],
)
def test_what_counts_as_read(text: str, is_read: bool) -> None:
    assert ("wait_s" in set(reads(ast.parse(text)))) is is_read


def test_a_field_and_a_flag_that_nothing_reads_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Made(Config):
        communication_timeout_s: float = 600.0
        name: str = ""

    assert never_read([Made], read_anywhere()) == [f"{Made.__qualname__}.communication_timeout_s"]
    monkeypatch.setattr(f"{__name__}.CLI", tmp_path)
    verb = tmp_path / "verb.py"
    verb.write_text(
        "def main(argv):\n    parser.add_argument('-n', '--node-count', type=int)\n"
        "    parser.add_argument('--dry', dest='dry_run')\n    parser.add_argument('recipe')\n"
        "    use(args.recipe, args.dry)\n"
    )
    assert ignored(verb) == ["verb.py: --node-count", "verb.py: --dry"]
