"""What keeps a run from beginning, or from going on as asked, told before a process is started."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.conftest import free_ports
from tests.unit.core.run.test_copies import run_of
from vit_dist.config.load import identity, load_recipe
from vit_dist.config.schema import Recipe
from vit_dist.core import store_patience
from vit_dist.core.errors import AwayError, ConfigError, RefusalError, is_refusal
from vit_dist.core.run import names
from vit_dist.core.run.copies import Copies
from vit_dist.core.store_patience import run_has_begun
from vit_dist.core.stores import _store
from vit_dist.core.world import World
from vit_dist.train.plan import check_beginning, check_named, open_training

WORDS = ["data.val=", "evaluators=[]", "horizon=9 steps", "schedule.warmup=0 steps", "checkpoint.every=5 steps"]


def begin(run: Path, url: str, *overrides: str) -> Recipe:
    recipe = load_recipe("demo", [f"data.train={url}", *WORDS, *overrides])
    data, val, _ = open_training(recipe, World())
    check_beginning(recipe, run, data, val)
    return recipe


def begun(run: Path, recipe: Recipe, fingerprint: str) -> None:
    """The directory of a run that has begun with this recipe."""
    run.mkdir(parents=True)
    who = {"identity": {**identity(recipe), "fingerprint": fingerprint}, "recipe_hash": "0" * 16}
    (run / names.RUN).write_text(json.dumps(who))
    (run / names.RECIPE).write_text(f"checkpoint: {{remote: {recipe.checkpoint.remote!r}}}\n")


def copies_of(run: Path, place: Path) -> None:
    Copies(run, str(place)).send()


@pytest.mark.parametrize("has_begun", [False, True])
@pytest.mark.parametrize("spelt", ["{}", "{}/", "file://{}"])
def test_copies_are_not_sent_to_where_those_of_another_run_lie(
    has_begun: bool, spelt: str, small_set: str, tmp_path: Path
) -> None:
    copies_of(run_of(tmp_path / "other"), tmp_path / "store")
    before, run = sorted(tmp_path.rglob("store/*")), tmp_path / "run"
    if has_begun:
        recipe = begin(tmp_path / "nowhere", small_set)
        begun(run, recipe, open_training(recipe, World())[0].fingerprint)
    with pytest.raises(RefusalError, match=r"checkpoint\.remote: .*another run lie there \(they differ in") as error:
        begin(run, small_set, f"checkpoint.remote={spelt.format(tmp_path / 'store')}")
    assert is_refusal(error.value)
    assert sorted(tmp_path.rglob("store/*")) == before
    assert run.exists() is has_begun


def test_copies_of_its_own_are_no_reason(small_set: str, tmp_path: Path) -> None:
    remote = f"checkpoint.remote={tmp_path / 'store'}"
    recipe = begin(tmp_path / "run", small_set, remote)
    begun(tmp_path / "run", recipe, open_training(recipe, World())[0].fingerprint)
    copies_of(tmp_path / "run", tmp_path / "store")
    begin(tmp_path / "run", small_set, remote)
    # A directory that was lost, and one that goes on elsewhere.
    begin(tmp_path / "again", small_set, remote)
    begin(tmp_path / "run", small_set, f"checkpoint.remote={tmp_path / 'store-2'}")


@pytest.mark.parametrize("remote", ["as before", "another"])
def test_a_store_that_is_away_keeps_no_run_from_going_on(
    remote: str,
    small_set: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(store_patience, "_state", store_patience._State())
    monkeypatch.setattr(store_patience, "ABSENT_S", 0.2)
    monkeypatch.setattr(store_patience, "_KNOCK_S", 0.1)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{free_ports(1)[0]}")
    _store.cache_clear()
    away = "checkpoint.remote=s3://bucket/run"
    with pytest.raises(AwayError, match=r"checkpoint\.remote: s3://bucket/run: .*refuses connections"):
        begin(tmp_path / "new", small_set, away)
    recipe = load_recipe("demo", [f"data.train={small_set}", *WORDS, *([away] if remote == "as before" else [])])
    begun(tmp_path / "run", recipe, open_training(recipe, World())[0].fingerprint)
    # As whoever finds a run there does: while it trains it waits for hours.
    run_has_begun()
    capsys.readouterr()
    began = time.monotonic()
    begin(tmp_path / "run", small_set, away)
    assert time.monotonic() - began < 30
    assert ("The run goes on, and tries it at each save" in capsys.readouterr().err) is (remote == "another")


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["data.num_classes=1000000"], "999,996 outputs of the head would never be right"),
        (["data.num_classes=105"], "give data.num_classes=4, or, where so large a head is meant, data.spare_outputs"),
        (["data.num_classes=104"], ""),
        (["data.num_classes=1000", "data.spare_outputs=true"], ""),
        (["data.num_classes=1000", "init.weights={weights}"], ""),
        (["data.num_classes=1000", "init.weights={weights}", "init.head=new"], "data.num_classes=1,000, but"),
        (["data.num_classes=1000", "data.train=", "data.mixture={{a: {{train: {set}}}, b: {{train: {set}}}}}"], "1,00"),
    ],
)
def test_a_head_that_its_set_cannot_fill_is_refused_unless_it_is_meant(
    words: list[str], problem: str, small_set: str, tmp_path: Path
) -> None:
    (tmp_path / "w.npz").write_bytes(b"")
    words = [word.format(set=small_set, weights=tmp_path / "w.npz") for word in words]
    if not problem:
        begin(tmp_path / "run", small_set, *words)
        return
    with pytest.raises(ConfigError, match=problem):
        begin(tmp_path / "run", small_set, *words)
    # Of a run that has begun it is what it is.
    recipe = load_recipe("demo", [f"data.train={small_set}", *WORDS, *words])
    begun(tmp_path / "run", recipe, "0" * 16)
    begin(tmp_path / "run", small_set, *words)


def test_that_a_large_head_is_meant_is_no_part_of_what_a_run_is() -> None:
    plain, meant = load_recipe("demo"), load_recipe("demo", ["data.spare_outputs=true"])
    assert identity(plain) == identity(meant)


def test_places_that_many_runs_name_are_asked_once(small_set: str, tmp_path: Path) -> None:
    weights = tmp_path / "w.npz"
    weights.write_bytes(b"")
    asked: set[str] = set()
    words = [f"init.weights={weights}", f"checkpoint.remote={tmp_path}/store/a"]
    check_named(load_recipe("demo", words), tmp_path / "a", asked)
    assert asked == {str(weights), f"{tmp_path}/store"}
    weights.unlink()
    check_named(load_recipe("demo", words), tmp_path / "b", asked)
    with pytest.raises(ConfigError, match="there is no such file or folder"):
        check_named(load_recipe("demo", words), tmp_path / "b")
