"""Whatever a user may have written is read in one place, byte order mark or not; nothing else opens text."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import ROOT

HOME = "vit_dist/core/text.py"
READERS = {"user_text.read_text", "text.read_text"}
"""How it is called where it is not imported by its own name."""
OURS = {
    # what this program writes itself
    "launcher/processes/kill_test.py": "records of a rehearsal",
    "launcher/processes/side_by_side.py": "logs",
    "launcher/slurm/commands.py": "job scripts",
    "launcher/status/logs.py": "logs",
    "launcher/supervise/causes.py": "logs",
    "vit_dist/core/small_files.py": "records of runs, markers",
    "vit_dist/models/_timm_names.py": "sources of timm",
    "vit_dist/data/shared_memory.py": "what a decode process of ours has noted, cut at any byte",
    "vit_dist/data/pack/copies.py": "a text of base64",
    "vit_dist/core/pickles.py": "names in a pickle, whose encoding it says itself",
    "vit_dist/data/index.py": "keys of an index",
    "vit_dist/scaling/paper/__init__.py": "tables of the paper",
    "vit_dist/scaling/report/figure_style.py": "figures",
    "vit_dist/scaling/report/html.py": "the pages' templates and style sheet",
    "vit_dist/train/checkpoint/parts.py": "notes of ranks about their parts",
    "vit_dist/train/health/monitor.py": "messages between its processes",
    "vit_dist/train/process_group.py": "messages between ranks",
    # as it stands in a tar
    "vit_dist/data/tarheader.py": "names of members",
    "vit_dist/data/pack/shards.py": "shown where it is no JSON",
    # what the system or a program says
    "launcher/doctor/machine.py": "files of packages",
    "launcher/preflight/processes.py": "output of processes",
    "vit_dist/core/locks.py": "who holds a lock",
    "vit_dist/core/memory.py": "/proc",
    "vit_dist/train/health/node_probe.py": "/proc",
    "vit_dist/train/progress/clock.py": "/proc",
}
"""Where text is read that no user writes, and which it is."""


def readings(path: str, text: str) -> Iterator[str]:
    """Where a file opens or decodes text itself, each with its line."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of_pillow = isinstance(node.func, ast.Attribute) and getattr(node.func.value, "id", "") in {"Image", "tarfile"}
        modes = [a.value for a in [*node.args, *(k.value for k in node.keywords if k.arg == "mode")] if _is_mode(a)]
        reads = not any("b" in mode or (set(mode) & set("wax") and "+" not in mode) for mode in modes)
        plain_file = name == "open" and not of_pillow and reads and _is_file(node)
        ours = getattr(node.func, "id", "") == "read_text" or ast.unparse(node.func) in READERS
        if name in {"read_text", "TextIOWrapper"} and not ours:
            yield f"{path}:{node.lineno}: {name}"
        elif plain_file:
            yield f"{path}:{node.lineno}: open for text"
        elif name == "decode" and _is_text_codec(node):
            yield f"{path}:{node.lineno}: decode"


def _is_mode(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and set(node.value) <= set("rwxabt+")


def _is_file(node: ast.Call) -> bool:
    """Not os.open, gzip.open, a source's or a circuit breaker's `open`."""
    if isinstance(node.func, ast.Name):
        return True
    assert isinstance(node.func, ast.Attribute)
    if getattr(node.func.value, "id", "") in {"os", "gzip", "source", "self", "opened"}:
        return False
    return not node.args or _is_mode(node.args[0])


def _is_text_codec(node: ast.Call) -> bool:
    first = node.args[0] if node.args else None
    return first is None or (isinstance(first, ast.Constant) and str(first.value).lower().startswith("utf"))


def sources() -> list[str]:
    found = (path for top in ("vit_dist", "launcher") for path in (ROOT / top).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def test_text_of_users_is_read_in_one_place() -> None:
    found = [one for path in sources() if path not in {HOME, *OURS} for one in readings(path, _text(path))]
    assert found == [], "read it by vit_dist.core.text; or, where no user writes it, say so in OURS"


def test_the_list_of_what_is_ours_is_true() -> None:
    assert [path for path in OURS if not list(readings(path, _text(path)))] == []


@pytest.mark.parametrize(
    "line",
    [
        "x = path.read_text()",
        'x = path.read_text(encoding="utf-8").splitlines()',
        "x = open(path).read()",
        'x = open(path, encoding="utf-8-sig")',
        'x = path.open("r", newline="")',
        "x = path.open()",
        "x = io.TextIOWrapper(raw)",
        'x = content.decode("utf-8")',
        "x = read_bytes(url).decode()",
    ],
)
def test_another_reading_is_found(line: str) -> None:
    assert len(list(readings("vit_dist/x.py", line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "x = read_text(path)",
        'x = path.open("rb")',
        'x = open(path, "wb")',
        "x = os.open(path, flags)",
        "x = Image.open(f)",
        'x = path.open("a")',
        "x = user_text.read_text(p)",
    ],
)
def test_bytes_are_no_text(line: str) -> None:
    assert list(readings("vit_dist/x.py", line)) == []


def _text(path: str) -> str:
    return (Path(ROOT) / path).read_text(encoding="utf-8")
