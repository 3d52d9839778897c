"""Every option and key that names a place says whether it takes a path or a URL; no folder 's3:' comes of one."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from pydantic import AfterValidator, BaseModel

from launcher.slurm.cluster import Cluster, load_cluster
from vit_dist.cli.main import VERBS
from vit_dist.config.load import load_recipe
from vit_dist.config.schema import Recipe
from vit_dist.core import places
from vit_dist.core.errors import VitDistError
from vit_dist.core.places import Place, Takes
from vit_dist.core.registry import ENGINES, EVALUATORS, MODELS, OPTIMIZERS, SCHEDULES
from vit_dist.core.stores import file_system, storage_options
from vit_dist.study.grid import StudyConfig, load_study

LOCAL = {places.local_option, places.local_or_name, places.local_or_override}
TYPES = {*LOCAL, places.any_option, places.any_or_override}

# What takes a text that names no place.
TEXTS = {
    *("overrides", "settings", "site", "evaluator", "names", "set", "only", "name", "kind", "state", "where"),
    *(
        "profile",
        "time",
        "explain",
        "val_set",
        "after",
        "keep",
        "keys",
        "forget",
        "exclude",
        "device",
        "models",
        "examples",
        "match",
        "show",
        "sort",
    ),
    *(
        "precision",
        "head",
        "positions",
        "model",
        "metric",
        "utilisation",
        "x",
        "y",
        "group",
        "run",
        "form",
        "points",
        "at",
        "target",
    ),
    *("image_field", "label_field", "key_field", "labels", "split_name", "image"),
}
# Options of this name that take a place in one verb and a text in another: the verb's own type decides.
PLACES = {
    *("recipe", "run_dir", "run_root", "runs", "cluster", "plugin", "classes", "work_dir", "source", "dest", "out"),
    *(
        "urls",
        "manifest",
        "point",
        "images",
        "model_place",
        "files",
        "against",
        "grid",
        "data",
        "dir",
        "words",
        "logs",
        "tag_map",
        "tensorboard",
        "table",
        "json",
    ),
    *("list", "csv", "figure", "resume"),
}

URLS = ("s3://bucket/x", "S3://bucket/x", "gs://bucket/x", "https://host/x", "hdfs://host/x")
BROKEN = (
    "s3:///x",
    "s3:/x",
    "s3:x/y",
    "s3//b/x",
    "S3:",
    "http:/x",
    "https//host/x",
    "file://",
    "file://b/x",
    "file:/x",
    " s3://b",
)
BROKEN_URLS = ("s3://my bucket/x", "https://host/my photos", "s3://", "http://")


class CaughtError(Exception):
    """Carries the parser of a verb out of its function."""


def parsers() -> Iterator[tuple[list[str], argparse.ArgumentParser]]:
    """Every verb's words and its parser, as the verb builds it."""

    def caught(self: argparse.ArgumentParser, *_args: object, **_rest: object) -> None:
        raise CaughtError(self)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("parse_args", "parse_intermixed_args", "parse_known_args"):
            patch.setattr(argparse.ArgumentParser, name, caught)
        for verb, (module_name, _) in VERBS.items():
            module = import_module(f"vit_dist.cli.{module_name}")
            for words in [[inner] for inner in getattr(module, "VERBS", ())] or [[]]:
                with pytest.raises(CaughtError) as info:
                    module.main([*words, "x"])
                yield [verb, *words], info.value.args[0]


@cache
def actions() -> list[tuple[list[str], argparse.ArgumentParser, argparse.Action]]:
    found = [(words, parser, a) for words, parser in parsers() for a in parser._actions if a.nargs != 0]
    # Else the walk goes past most of them.
    assert len(found) > 150
    return found


def test_every_option_says_what_it_takes() -> None:
    for words, _, action in actions():
        where = f"{' '.join(words)}: {action.option_strings or action.dest}"
        if action.type in TYPES:
            assert action.dest in PLACES or (action.dest, words[0]) in {("set", "data"), ("run", words[0])}, where
        elif action.type is None:
            assert action.choices or action.dest in TEXTS, f"{where}: give it a type of core/places.py, or list it here"


@pytest.mark.parametrize("url", [*URLS, *BROKEN, *BROKEN_URLS])
def test_a_url_is_no_place_on_this_machine(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = 0
    for (verb, *inner), parser, action in actions():
        refused = LOCAL if url in URLS else TYPES
        if action.type not in refused:
            continue
        asked += 1
        option = f"{action.option_strings[0]}={url}" if action.option_strings else url
        # A positional argument is looked at once all that is required is there, and those before it are.
        needed = [f"{a.option_strings[0]}=1" for a in parser._actions if a.required and a.option_strings]
        is_second = (verb, action.dest) == ("inspect", "words")
        before = ["x"] if is_second or (action.dest in {"dest", "out"} and inner != ["merge"]) else []
        words = [option] if action.option_strings else [*needed, *before, option]
        with pytest.raises(SystemExit) as stopped:
            import_module(f"vit_dist.cli.{VERBS[verb][0]}").main([*inner, *words])
        said = capsys.readouterr().err
        assert stopped.value.code == 2, said
        assert any(
            words in said
            for words in ("not on a file system of this machine", "a URL is written", "names no", "blank", "a machine")
        ), said
    assert asked > 40
    assert list(tmp_path.iterdir()) == []


def models(cls: type[BaseModel], seen: set[type]) -> Iterator[type[BaseModel]]:
    """A config and every config inside it."""
    if cls in seen:
        return
    seen.add(cls)
    yield cls

    def inside(annotation: Any) -> Iterator[type[BaseModel]]:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from models(annotation, seen)
        for part in typing.get_args(annotation):
            yield from inside(part)

    for field in cls.model_fields.values():
        yield from inside(field.annotation)


def texts(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """What is said of each text that an annotation takes."""
    if annotation is str:
        yield metadata
    if typing.get_origin(annotation) is typing.Annotated:
        yield from texts(annotation.__origin__, (*metadata, *annotation.__metadata__))
    elif typing.get_origin(annotation) is not typing.Literal:
        for part in typing.get_args(annotation):
            yield from texts(part, metadata)


MAPPINGS = {"families", "metrics", "overrides", "mixture", "tags", "sets", "settings", "groups", "branches"}
"""Keys whose own keys are names."""
KEY_TEXTS = {
    # A hash.
    "trunk",
    *("name", "study", "family", "dataset", "keep_best", "description", "partition", "account", "qos", "constraint"),
    *("reservation", "exclude", "device_kind", "memory", "time_limit", "setup", "env", "options", "sbatch_options"),
    *("srun_options", "image", "metric", "models", "evaluations", "when", "apply", "set", "factory", "args"),
    *("held_out", "slice", "fingerprint", "values", "run", "digest"),
    *("source", "reported", "differs", "where"),
}
"""Keys that take a text which names no place of ours; `image` is a container's, of a registry as well."""


def test_every_key_says_what_it_takes() -> None:
    plugins = {
        registry.lookup(name)[0]
        for registry in (MODELS, OPTIMIZERS, SCHEDULES, ENGINES, EVALUATORS)
        for name in registry.names()
    }
    seen: set[type] = set()
    taken = {Takes.LOCAL: 0, Takes.EITHER: 0}
    for root in (Recipe, Cluster, StudyConfig, *sorted(plugins, key=lambda cls: cls.__name__)):
        for cls in models(root, seen):
            for key, field in cls.model_fields.items():
                for metadata in texts(field.annotation, tuple(field.metadata)):
                    said = [m.func for m in metadata if isinstance(m, AfterValidator) and isinstance(m.func, Place)]
                    assert said or key in KEY_TEXTS or key in MAPPINGS, (
                        f"{cls.__name__}.{key}: give it LocalPath or AnyPlace of core/registry.py, or list it here"
                    )
                    for place in said:
                        taken[place.takes] += 1
    assert taken[Takes.LOCAL] >= 7
    assert taken[Takes.EITHER] >= 7


@pytest.mark.parametrize("url", [*BROKEN, *BROKEN_URLS])
@pytest.mark.parametrize("key", ["data.train", "data.val", "checkpoint.remote", "init.weights", "data.mixture.a.train"])
def test_keys_refuse_what_is_no_url(key: str, url: str) -> None:
    over = f"{key}={url!r}"
    with pytest.raises(VitDistError, match=rf"{key}.*(a URL is written|names no|blank|a machine)"):
        load_recipe("demo", [over, *(["data.train="] if "mixture" in key else [])])


@pytest.mark.parametrize("key", ["run_root", "scratch", "python", "container={runtime: apptainer, image: x, mounts"])
@pytest.mark.parametrize("url", ["s3://b/runs", "S3://b", "s3:/b", "gs://b/x", "https://h/x", "s3//b"])
def test_a_cluster_has_its_directories_on_a_file_system(key: str, url: str) -> None:
    with pytest.raises(VitDistError, match=r"not on a file system of this machine|a URL is written"):
        load_cluster("generic", [f"{key}: ['{url}']}}" if "{" in key else f"{key}={url!r}"])


@pytest.mark.parametrize("name", ["s3://b/recipe.yaml", "https://h/demo.yaml", "s3:/b/recipe.yaml", "gs://b/r"])
def test_recipes_clusters_and_studies_are_local_files(name: str) -> None:
    for load in (load_recipe, load_cluster, load_study):
        with pytest.raises(VitDistError, match=r"not on a file system of this machine|a URL is written"):
            load(name)


def test_places_that_are_right_stay_as_they_are() -> None:
    for text in ("runs", "./s3:", "a b/c", "s3", "s3/b", "http/x", "C:x", "~/runs", "/x//y", "file:///a b"):
        assert Place(Takes.LOCAL)(text) == text
    for text in ("s3://b", "S3://b/my photos/x", "https://u:p@h/x%20y?a=b", "lmdb://x", "{000..3}.tar", "a?b*"):
        assert Place(Takes.EITHER)(text) == text
    assert places.local_option("file:///a%20b") == Path("/a b")


@pytest.mark.parametrize(
    "value",
    ["localhost:9000", "127.0.0.1", "s3://bucket", "/run/s3.sock", "http:/host", "http//host", "http://my host"],
)
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"])
def test_an_endpoint_is_the_url_of_a_server(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv(variable, value)
    with pytest.raises(
        VitDistError, match=f"the environment variable {variable}: .*(such as http://|is written|names no)"
    ):
        file_system("s3://bucket/x")
    monkeypatch.setenv(variable, "http://host:9000")
    assert storage_options("s3")["endpoint_url"] == "http://host:9000"


@pytest.mark.parametrize("variable", ["VIT_DIST_CACHE", "VIT_DIST_RUNS"])
def test_variables_that_name_folders_take_no_url(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.status.find import run_roots
    from vit_dist.core.events.cache import cache_directory

    monkeypatch.chdir(tmp_path)
    for value in ("s3://b/x", "S3://b", "gs://b"):
        monkeypatch.setenv(variable, value)
        with pytest.raises(VitDistError, match=variable):
            (cache_directory if variable == "VIT_DIST_CACHE" else run_roots)()
