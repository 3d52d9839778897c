"""What messages tell to give is there: options of a verb, keys of a recipe, verbs, pages."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.commands import leaves
from tests.places import ROOT
from vit_dist.cli.explain import all_keys, explain
from vit_dist.cli.main import VERBS
from vit_dist.core.errors import ConfigError

SOURCES = sorted(path for top in ("vit_dist", "launcher") for path in (ROOT / top).rglob("*.py"))
PROGRAMS = {
    # sbatch, srun, salloc, squeue
    *("--account", "--constraint", "--container-image", "--container-mounts", "--cpus-per-task", "--dependency"),
    *("--exclusive", "--gpu-bind", "--gpus-per-node", "--gres", "--job-name", "--kill-on-bad-exit", "--label", "--me"),
    *("--mem", "--mem-per-cpu", "--mem-per-gpu", "--mpi", "--no-kill", "--nodelist", "--ntasks", "--ntasks-per-node"),
    *("--output", "--overlap", "--parsable", "--partition", "--pty", "--qos", "--quiet", "--requeue", "--reservation"),
    *("--switches", "--test-only", "--unbuffered", "--version", "--wait", "--wckey"),
    # aws
    *("--copy-source", "--version-id"),
    # apptainer, docker, nvidia-smi, git, tar, tensorboard
    *("--bind", "--nv", "--ipc", "--shm-size", "--format", "--query-gpu", "--porcelain", "--untracked-files"),
    *("--dereference", "--hard-dereference", "--logdir"),
    # a process of ours that nobody starts by hand
    *("--reads", "--shm-bytes"),
}
"""Options of programs that are not ours."""
STYLES = ROOT / "vit_dist" / "scaling" / "report" / "figure_style.py"
"""Its names of colours begin as options do."""

TRAINING = ("train/", "engines/", "models/", "optim/", "evals/", "config/")
READING = ("classes", "describe", "manifest", "mixture", "order", "ranges", "reader", "sets", "stream", "validation")
"""What is said here is said to whoever trains, and has a recipe in hand; much of it to others too."""


@cache
def texts(path: Path) -> tuple[str, ...]:
    return tuple(strings(path))


def strings(path: Path) -> Iterator[str]:
    """Those of a module that are no docstrings; {} in place of what is filled in."""
    tree = ast.parse(path.read_text())
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.value


@cache
def options() -> frozenset[str]:
    return frozenset(name for parser in leaves().values() for name in parser._option_string_actions)


@cache
def sections() -> frozenset[str]:
    return frozenset(path.partition(".")[0].strip("[]") for path in paths() if "." in path)


@cache
def paths() -> frozenset[str]:
    return frozenset(key.path for key in all_keys())


@cache
def is_key(path: str) -> bool:
    if path in paths():
        return True
    # Of a plug-in by its name: model.vit.depth
    try:
        return bool(explain(path))
    except ConfigError:
        return False


def options_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z](?!\w)", text))


def wrong(text: str) -> list[str]:
    """What a text names that is not there: an option, a key, a verb, a page."""
    found = sorted(options_in(text) - options() - PROGRAMS)
    for key in re.findall(r"(?<![\w./-])([a-z]+(?:\.[a-z_0-9]+)+)(?![\w./(])", text):
        # A file's name, such as model.safetensors.
        if key.partition(".")[0] in sections() and not re.search(r"\.(safetensors|json|py|npz|yaml|md|pkl)$", key):
            found += [] if is_key(key) else [key]
    found += [f"vit-dist {verb}" for verb in re.findall(r"vit-dist ([a-z][a-z-]+)", text) if verb not in VERBS]
    for verb, inner in re.findall(r"`vit-dist (data|models|study) ([a-z]+)", text):
        found += [f"vit-dist {verb} {inner}"] if (verb, inner) not in leaves() else []
    return found + [page for page in re.findall(r"docs/[\w-]+\.md", text) if not (ROOT / page).exists()]


def elsewhere(text: str) -> list[str]:
    """Options that whoever trains cannot give, and that are not said to be those of another verb."""
    verbs = re.findall(r"vit-dist ([a-z-]+)(?: ([a-z]+))?", text)
    named = {("train",), ("run",), *((verb,) for verb, _ in verbs), *verbs}
    known = {o for path, parser in leaves().items() if path in named for o in parser._option_string_actions}
    # What begins with an option is about one that was given.
    return sorted(o for o in options_in(text) & options() - known if not text.startswith(o))


def test_messages_name_nothing_that_is_not_there() -> None:
    of_ours = [path for path in SOURCES if path != STYLES]
    assert not [(path.name, text, said) for path in of_ours for text in texts(path) if (said := wrong(text))]


def test_messages_to_whoever_trains_say_whose_option_they_name() -> None:
    rooms = {f"data/{room}.py" for room in READING}
    # `names.Wording` has the words of commands and of recipes, and whoever reads says which; the probe is a process.
    rooms_of_both = {"models/weights/names.py", "train/health/node_probe.py"}
    said = []
    for path in SOURCES:
        name = str(path.relative_to(ROOT)).removeprefix("vit_dist/")
        if (name.startswith(TRAINING) or name in rooms) and name not in rooms_of_both:
            said += [(name, text, found) for text in texts(path) if (found := elsewhere(text))]
    assert not said


@pytest.mark.parametrize(
    "text",
    [
        "give --heads new",
        "set data.subest=30M",
        "use engine.zero_stages=2",
        "`vit-dist sumbit` again",
        "`vit-dist data pak` makes one",
        "see docs/recipies.md",
        "lower guards.spikes, or --nproccs",
    ],
)
def test_a_wrong_hint_is_noticed(text: str) -> None:
    assert wrong(text)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("start a new head of zeros (--head new)", ["--head"]),
        ("index its tars with --labels", ["--labels"]),
        ("`vit-dist data index --labels EXT`", []),
        ("`vit-dist models import x --head new`", []),
        ("`vit-dist data index --head new`", ["--head"]),
        ("give another --run-dir, or --nproc 2", []),
        ("--classes: 3 names", []),
        ("give init.head=new", []),
    ],
)
def test_an_option_of_another_verb_is_noticed(text: str, found: list[str]) -> None:
    assert elsewhere(text) == found
