"""What we import is what we ask pip for, by name: a package that another one brings along may leave with it."""

from __future__ import annotations

import ast
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.places import ROOT

OURS = ("vit_dist", "launcher", "slurm")


def required() -> list[Requirement]:
    """Of requirements.txt and of the `data` extra."""
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["data"]
    return [Requirement(line) for line in [*lines, *extra] if line and not line.startswith("#")]


def imported(path: Path) -> set[str]:
    """Top-level names of every absolute import in a file, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def test_every_package_that_is_imported_is_named_in_the_requirements() -> None:
    named = {canonicalize_name(one.name) for one in required()}
    distributions = packages_distributions()
    missing = set()
    for path in (path for folder in OURS for path in (ROOT / folder).rglob("*.py")):
        for module in imported(path) - sys.stdlib_module_names - set(OURS):
            if not named & {canonicalize_name(name) for name in distributions.get(module, [module])}:
                missing.add(f"{path.relative_to(ROOT)} imports {module}")
    assert not missing


def test_no_requirement_admits_a_release_that_was_not_tested() -> None:
    assert not [str(one) for one in required() if not {spec.operator for spec in one.specifier} & {"==", "<="}]
