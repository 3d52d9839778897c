"""A set that is not there is told with its key, and with where that was given."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vit_dist.config.load import load_recipe, sources_of
from vit_dist.core.errors import DataError, MissingError
from vit_dist.core.world import World
from vit_dist.train.plan import open_training

_NONE = r".*/manifest\.json: no such file"


@pytest.mark.parametrize(
    ("recipe", "words", "told"),
    [
        ("", ["data.train=SET"], rf"fashion-mnist-mini\.yaml, line 6: data\.val: runs/data/{_NONE}"),
        ("", ["data.train=SET"], r"the recipe names it: give data\.val=URL of a set, or data\.val= for none"),
        ("", ["data.train=SET", "data.val=y"], rf"^data\.val=y on the command line: data\.val: y{_NONE}"),
        ("", ["data.train=SET", "data.val=y"], r"spelling; give data\.val=URL of a set"),
        ("", ["data.train=x"], rf"^data\.train=x on the command line: data\.train: x{_NONE}.*; give data\.train=URL"),
        ("data: {val: z}", ["data.train=SET"], rf"r\.yaml, line 2: data\.val: z{_NONE}"),
        ("data:\n  train: z", [], rf"r\.yaml, line 3: data\.train: z{_NONE}.*the recipe names it"),
        ("data: {dataset: custom, num_classes: 4, mixture: {a: {train: z, weight: 1}, b: {train: SET, weight: 1}}}", [],
         rf"r\.yaml, line 2: data\.mixture\.a\.train: z{_NONE}"),
        ("", ["data={train: x, num_classes: 4, image_size: 28}"],
         rf"^data=\{{train: x.* on the command line: data\.train: x{_NONE}"),
        ("", [], r"fashion-mnist-mini\.yaml, line 5: data\.train: .* are not packed yet: `make demo` does it"),
    ],
)  # fmt: skip
def test_the_key_and_its_place_are_told(
    recipe: str, words: list[str], told: str, small_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "r.yaml"
    file.write_text("base: demo\n" + recipe.replace("SET", f"'{small_set}'") + "\n")
    words = ["horizon=2 steps", *(word.replace("SET", small_set) for word in words)]
    wanted = load_recipe(str(file), words)
    with pytest.raises(MissingError) as missing:
        open_training(wanted, World(), sources_of(str(file), words, wanted))
    assert re.search(told, str(missing.value)), missing.value


def test_what_is_no_set_is_told_with_its_key_where_nothing_is_known_of_its_source(
    small_set: str, tmp_path: Path
) -> None:
    (tmp_path / "0.tar").touch()
    with pytest.raises(DataError, match=r"^data\.val: .*there are tars in it"):
        open_training(load_recipe("demo", [f"data.train={small_set}", f"data.val={tmp_path}"]), World())
