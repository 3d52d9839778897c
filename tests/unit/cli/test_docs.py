"""What README, docs and `--help` name is there: verbs, options, recipes, keys, paths, links."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from functools import cache
from pathlib import Path

import pytest

from tests.commands import Command, anchors, blocks, commands, is_placeholder, leaves, lines, parsed, spans
from tests.places import ROOT
from vit_dist.cli.explain import FILES, all_keys, explain, file_keys
from vit_dist.cli.main import main
from vit_dist.cli.models.options import model_config
from vit_dist.config.keys import search
from vit_dist.config.load import config_dirs, find_config, load_recipe, recipe_hash
from vit_dist.core.errors import ConfigError, VitDistError
from vit_dist.core.run.log import METRICS, RECIPE, RUN, STATUS, TAKEDOWN
from vit_dist.study.grid import StudyConfig, load_study, plan

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OWN = re.compile(r"[a-z0-9-]+\.yaml")
"""A file of the reader's, who has copied a shipped one; shipped ones are named without `.yaml`, or by their path."""


def page_id(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def help_of(words: tuple[str, ...]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), pytest.MonkeyPatch.context() as patch, contextlib.suppress(SystemExit):
        patch.setenv("COLUMNS", "120")
        main([*words, "--help"])
    return out.getvalue()


HELPS = [(), *dict.fromkeys((path[0],) for path in leaves()), *(path for path in leaves() if len(path) > 1)]


def of_page(page: Path) -> list[Command]:
    text = page.read_text()
    found = [c for line in blocks(text) for c in commands(line, page.name, partial=False)]
    return found + [c for span in spans(text) for c in commands(span, page.name, partial=True)]


def of_help(words: tuple[str, ...]) -> list[Command]:
    name = f"{' '.join(words)} --help"
    text = help_of(words)
    examples = "\n".join(re.sub(r"`[^`]*`", "", line) for line in text.splitlines() if line.startswith("  "))
    found = [c for line in lines(examples) for c in commands(line, name, partial=False)]
    return found + [c for span in spans(text) for c in commands(span, name, partial=True)]


def problem(command: Command, folder: Path) -> str:
    """Why a command cannot be given as it is written; '' where it can."""
    if not command.words or is_placeholder(command.words[0]) or command.words[0] in {"--help", "--version"}:
        return ""
    try:
        args = parsed(command)
        if args is None:
            return ""
        values = vars(args)
        study, *more = values.get("words") or [None] if command.words[0] == "study" else [None]
        overrides = [text for text in [*(values.get("overrides") or []), *more] if "=" in text]
        recipe, cluster = values.get("recipe"), values.get("cluster")
        if command.words[:2] == ("data", "order") and not re.search(r"[/:]", values["set"]):
            recipe = values["set"]
        models = [values.get(key) for key in ("model", "models", *(["name"] if command.words[0] == "models" else []))]
        for name in ",".join(name for name in models if isinstance(name, str)).split(","):
            if name and not is_placeholder(name):
                model_config(name, values.get("settings") or [])
        if isinstance(cluster, str) and cluster and not OWN.fullmatch(cluster) and not is_placeholder(cluster):
            find_config(cluster, "clusters")
        # `study report` takes event files too, wherever they lie.
        if isinstance(study, str) and not is_placeholder(study) and "://" not in study:
            plan(load_study(str(folder / "study.yaml") if OWN.fullmatch(study) else study, overrides))
        elif isinstance(recipe, str) and not is_placeholder(recipe):
            load_recipe(str(folder / "recipe.yaml") if OWN.fullmatch(recipe) else recipe, overrides)
        else:
            known = [*all_keys(), *(key for which in FILES for key in file_keys(which))]
            for key in (text.partition("=")[0] for text in overrides):
                if not search(key, known) and key not in StudyConfig.model_fields:
                    return f"{command}: no key {key}"
    except (ValueError, VitDistError) as error:
        return f"{command}: {error}"
    return ""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the reader's, as the texts have him copy them."""
    found = tmp_path_factory.mktemp("reader")
    shutil.copy(config_dirs()[0] / "studies" / "demo.yaml", found / "study.yaml")
    shutil.copy(config_dirs()[0] / "recipes" / "vit-b16-imagenet.yaml", found / "recipe.yaml")
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_of_a_page_can_be_given(page: Path, folder: Path) -> None:
    assert not [said for command in of_page(page) if (said := problem(command, folder))]


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_every_command_of_a_help_can_be_given(words: tuple[str, ...], folder: Path) -> None:
    assert help_of(words)
    assert not [said for command in of_help(words) if (said := problem(command, folder))]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("vit-dist sumbit demo", "no verb 'sumbit'"),
        ("vit-dist data pak photos/ out", "unknown verb 'pak'"),
        ("vit-dist train demo --nprocs 2", "no option --nprocs"),
        ("vit-dist train demoo", "no recipe 'demoo'"),
        ("vit-dist config demo optim.lrr=1", "optim.lrr: unknown key"),
        ("vit-dist submit demo --cluster nowhere", "no cluster 'nowhere'"),
        ("vit-dist study plan nope", "no study 'nope'"),
        ("vit-dist study run demo seds=[0]", "seds"),
        ("vit-dist models show ViT-B17", "unknown model 'ViT-B17'"),
        ("vit-dist compare --models vit-demo,nope", "unknown model 'nope'"),
        ("vit-dist resume RUN lgo.every=1", "no key lgo.every"),
        ("vit-dist logs RUN --attempt first", "--attempt"),
        ("vit-dist submit demo --nodes 2", "--cluster"),
        ("photos: vit-dist data info", "required"),
        ("srun vit-dist train demo --runs-dir x | tee log", "no option --runs-dir"),
        ('for run in $(vit-dist list --stat failed); do vit-dist resume "$run"; done', "no option --stat"),
    ],
)
def test_a_command_that_cannot_be_given_is_noticed(line: str, says: str, folder: Path) -> None:
    (said,) = (text for command in commands(line, "a page", partial=False) if (text := problem(command, folder)))
    assert says in said


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("```\nvit-dist list runs   # all\nvit-dist list \\\n  recipes\n```\n", ["list runs", "list recipes"]),
        ("```yaml\na: vit-dist list\n```\n", []),
        (
            "Text\n\n    vit-dist status RUN     one run\n    vit-dist logs RUN -f\n\nmore",
            ["status RUN", "logs RUN -f"],
        ),
        ("1. Do\n\n       cp a b\n       vit-dist stop RUN\n", ["stop RUN"]),
        ("say `vit-dist data\npack` here, `vit-dist train ... --model X`", ["data pack", "train"]),
        (
            "```sh\neval $(vit-dist list --names) && vit-dist list > x; vit-dist list data\n```",
            ["list --names", "list", "list data"],
        ),
    ],
)
def test_commands_are_taken_out_of_a_page(page: str, found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(page)
    assert [" ".join(command.words) for command in of_page(path)] == found


CHEAP = [
    command
    for command in (*(c for page in PAGES for c in of_page(page)), *(c for words in HELPS for c in of_help(words)))
    if not command.partial
    and not any(is_placeholder(word) for word in command.words)
    and (
        command.words[0] == "config"
        or command.words[:2] in {("study", "plan"), ("models", "show")}
        or (command.words[0] == "submit" and "--dry-run" in command.words)
    )
]


@pytest.mark.parametrize("command", dict.fromkeys(CHEAP), ids=str)
def test_what_is_cheap_is_done_as_it_is_written(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("my-site.yaml", "site.yaml"):
        shutil.copy(ROOT / "configs" / "clusters" / "generic.yaml", tmp_path / name)
    own = "study.yaml" if command.words[0] == "study" else "recipe.yaml"
    for name in ("my.yaml", "recipe.yaml"):
        shutil.copy(folder / own, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(list(command.words)) == 0
    assert capsys.readouterr().out


def test_commands_are_found_at_all() -> None:
    assert sum(len(of_page(page)) for page in PAGES) > 100
    assert sum(len(of_help(words)) for words in HELPS) > 100


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            wrong.append(target)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_path_of_the_repository_is_there(page: Path) -> None:
    wrong = []
    text = page.read_text()
    for word in (word for code in (*spans(text), *blocks(text)) for word in code.split()):
        path = word.partition(":")[0].strip("'\"(),;")
        top = path.partition("/")[0]
        if path in {RUN, RECIPE, METRICS, STATUS, TAKEDOWN}:
            continue
        named = top in {"configs", "docs", "slurm", "tests", "benchmarks", "vit_dist", "launcher"} and "/" in path
        if (named or re.fullmatch(r"[a-z_]+(/[a-z_]+)+\.py", path)) and not re.search(r"[A-Z<>]{2,}|\.\.\.", path):
            places = (page.parent, ROOT, ROOT / "vit_dist", ROOT / "launcher", ROOT / "vit_dist" / "data")
            # configs/{recipes,clusters}/x
            names = [path.replace(m[0], one) for m in [re.search(r"\{([^}]*)\}", path)] if m for one in m[1].split(",")]
            for name in names or [path]:
                if not any(list(place.glob(name.rstrip("/"))) for place in places):
                    wrong.append(word)
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_key_of_a_recipe_is_one(page: Path) -> None:
    assert not [span for span in spans(page.read_text()) if is_wrong_key(span)]


def is_wrong_key(text: str) -> bool:
    """Whether a text begins like a key of a section of recipes, and is none."""
    sections = {key.path.partition(".")[0].strip("[]") for key in keys() if "." in key.path}
    found = re.fullmatch(r"([a-z]+)((?:\.[a-z_0-9]+)+)(?:[=:] ?.*)?", text)
    if found is None or found[1] not in sections:
        return False
    try:
        return not explain(f"{found[1]}{found[2]}")
    except ConfigError:
        return True


@cache
def keys() -> tuple:  # type: ignore[type-arg]
    return tuple(all_keys())


@pytest.mark.parametrize(
    "text", [*PAGES, *HELPS], ids=lambda text: page_id(text) if isinstance(text, Path) else "-".join(text)
)
def test_a_run_directory_has_the_name_that_its_recipe_gives_it(text: Path | tuple[str, ...]) -> None:
    words = text.read_text() if isinstance(text, Path) else help_of(text)
    for name, digest in re.findall(r"\bruns/([a-z0-9-]+)-([0-9a-f]{8})\b", words):
        assert recipe_hash(load_recipe(name)).startswith(digest)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_make_target_is_one(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    text = page.read_text()
    found = [m for code in (*spans(text), *blocks(text)) for m in re.findall(r"^(?:[A-Z]+=\S+ )?make ([a-z-]+)", code)]
    assert set(found) <= targets
