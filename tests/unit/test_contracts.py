"""Each contract stands in one place: no second copy of a file's name, an exit code, a module started by name."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import filesystem
from tests.places import ROOT
from vit_dist.core import exit_codes, process
from vit_dist.core.run import checkpoints, names

NAMES = {value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)}
# Names that are words of everyday, and mean other things elsewhere: in paths alone, `x / "logs"`, they are ours.
WORDS = {name for name in NAMES if "." not in name}
CODES = {exit_codes.PEER_LOST, exit_codes.HUNG, exit_codes.SUPERSEDED, exit_codes.INTERRUPTED, exit_codes.TERMINATED}
MODULES = {process.CLI_MODULE, process.NODE_PROBE_MODULE, process.HOST_GUARD_MODULE, process.ADDRESS_MODULE}
KINDS = filesystem.NEVER_SHARED | filesystem.ONE_MACHINE

HOMES = {
    "vit_dist/core/run/names.py",
    "vit_dist/core/run/checkpoints.py",
    "vit_dist/core/exit_codes.py",
    "vit_dist/core/process.py",
    "launcher/filesystem.py",
    "vit_dist/data/tarheader.py",
}
OTHER_NUMBERS = {"vit_dist/core/events/layout.py"}
"""Where 70 is bits of a varint."""


def sources() -> list[str]:
    found = (path for top in ("vit_dist", "launcher") for path in (ROOT / top).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def copies(path: str, text: str) -> Iterator[str]:
    """What stands in a file that has its home elsewhere, each with its line. Docstrings do not count."""
    tree = ast.parse(text)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    parts = {id(node.right) for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Site":
            yield f"{path}:{node.lineno}: Site(...) in place of Site.of(...)"
        if isinstance(node, ast.Import) and "tarfile" in {name.name for name in node.names}:
            yield f"{path}:{node.lineno}: a second reader of tar headers"
        if not isinstance(node, ast.Constant) or id(node) in prose:
            continue
        value = node.value
        where = f"{path}:{node.lineno}: {value!r}"
        if isinstance(value, str):
            named = value in (NAMES - WORDS) | MODULES | {checkpoints.MARKER} or (value in WORDS and id(node) in parts)
            if named or value.startswith(("step-", ".step-", "attempt-{")) or f"/{checkpoints.MARKER}" in value:
                yield where
            if value in KINDS:
                yield where
        number = isinstance(value, int) and value in CODES and path not in OTHER_NUMBERS
        if number or (isinstance(value, bytes) and b"ustar" in value):
            yield where


def test_no_contract_is_written_down_twice() -> None:
    assert [copy for path in sources() if path not in HOMES for copy in copies(path, (ROOT / path).read_text())] == []


def test_what_became_of_a_run_is_written_and_read_in_one_place() -> None:
    state = {"BY_RANKS", "BY_SUPERVISOR", "BY_PEOPLE", "BY_EVALUATORS", "OWNER", "HEARTBEAT", "CANCEL", "REQUEST"}
    state |= {name for name in vars(names) if name.startswith("FORMER_")}
    assert state <= set(vars(names))
    for path in sources():
        if not path.startswith("vit_dist/core/run/"):
            used = {
                node.attr for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.Attribute)
            }
            assert not used & state, path


@pytest.mark.parametrize(
    "line",
    [
        'x = run / "status.json"',
        'x = run / "tb"',
        'x = path.glob("step-*/COMMITTED.json")',
        'x = f"step-{step:010d}"',
        "sys.exit(70)",
        'x = [sys.executable, "-m", "vit_dist.cli.main"]',
        "x = Site(cluster, cwd)",
        'x = kind in {"tmpfs"}',
        "import tarfile",
        'x = header[257:262] == b"ustar"',
    ],
)
def test_a_second_copy_is_found(line: str) -> None:
    assert len(list(copies("launcher/x.py", line))) == 1


def test_a_word_of_everyday_is_none() -> None:
    assert list(copies("launcher/x.py", '"""status.json"""\nx = {"order": 1, "logs": 70.0}')) == []


def test_the_templates_name_what_the_code_names() -> None:
    for path in sorted((ROOT / "slurm").glob("*.j2")):
        text = path.read_text()
        assert process.CLI_MODULE not in text, f"{path}: the module is handed in"
        for name in ("batch.log", "recipe.yaml"):
            assert (name in text) <= (name in NAMES)


def test_names_are_told_apart(tmp_path: Path) -> None:
    assert len(NAMES) == len([key for key, value in vars(names).items() if key.isupper() and isinstance(value, str)])
    assert [checkpoints.step_of(name) for name in ("step-0000000012", "step-x", "12", "step-²")] == [
        12,
        None,
        None,
        None,
    ]
    assert checkpoints.step_of(checkpoints.step_name(10**9)) == 10**9
    assert [exit_codes.signal_of(code) for code in (143, 137, 128, 72, 1)] == [15, 9, None, None, None]
    assert exit_codes.of_return_code(-9) == 137
    assert exit_codes.of_return_code(3) == 3
