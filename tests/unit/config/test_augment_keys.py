"""`data.augment` and its neighbours: what may be said, what it counts for, and what is told of mistakes."""

from __future__ import annotations

from typing import Any

import pytest

from vit_dist.config.load import identity, recipe_hash, recipe_yaml, resolve
from vit_dist.config.safe_yaml import parse_yaml
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError

RECIPE: dict[str, Any] = {
    "horizon": "1 epoch",
    "global_batch": 64,
    "model": "vit-test",
    "data": {"num_classes": 10, "image_size": 28, "augment": "flip"},
    "optim": {"name": "adamw", "lr": 1e-3},
    "schedule": {"name": "constant", "warmup": "0 steps"},
}


def of(*overrides: str) -> Recipe:
    return resolve(RECIPE, overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.augment={crop: flip}",),
        ("data.augment.crop=flip",),
        ("data.augment.augreg=none",),
        ("data.augment={crop: flip, jitter: null, erase: null}",),
        ("data.augment.randaugment={}", "data.augment.randaugment=null"),
        ("data.augment.jitter.hue=0.1", "data.augment.jitter=null"),
        ("data.val_resize=null", "data.upright=false"),
    ],
)
def test_what_changes_nothing_keeps_a_recipes_identity_and_text(overrides: tuple[str, ...]) -> None:
    changed = of(*overrides)
    assert recipe_hash(changed) == recipe_hash(of())
    assert recipe_yaml(changed) == recipe_yaml(of())
    assert identity(changed)["data"]["augment"] == "flip"
    assert not {"val_resize", "upright"} & identity(changed)["data"].keys()


CHANGES = [
    "data.augment.augreg=light1",
    "data.augment.augreg=strong2",
    "data.augment.randaugment={}",
    "data.augment.randaugment.magnitude=10",
    "data.augment.randaugment.num_ops=3",
    "data.augment.randaugment.ops=big_vision",
    "data.augment.jitter.brightness=0.1",
    "data.augment.jitter={hue: 0.1, probability: 0.5}",
    "data.augment.erase={}",
    "data.augment.erase.fill=noise",
    "data.val_resize=32",
    "data.upright=true",
]


def test_what_changes_images_makes_another_run_and_is_read_back() -> None:
    recipes = [of(change) for change in CHANGES]
    assert len({recipe_hash(recipe) for recipe in [of(), *recipes]}) == len(CHANGES) + 1
    for recipe in recipes:
        again = resolve(parse_yaml(recipe_yaml(recipe), "text"))
        assert again == recipe
        assert recipe_hash(again) == recipe_hash(recipe)
        assert recipe.data.augment.crop == "flip"


@pytest.mark.parametrize(
    ("overrides", "crop", "hue"),
    [
        (("data.augment.jitter.hue=0.1",), "flip", 0.1),
        (("data.augment.jitter.hue=0.1", "data.augment=none"), "none", 0.1),
        (("data.augment=none", "data.augment.jitter.hue=0.1"), "none", 0.1),
        (("data.augment.crop=none", "data.augment.jitter.hue=0.1"), "none", 0.1),
        (("data={num_classes: 10, augment: {jitter: {hue: 0.2}}}",), "flip", 0.2),
        (("data.augment.jitter.hue=0.1", "data.augment.jitter.hue=0.3"), "flip", 0.3),
    ],
)
def test_a_crop_by_name_and_keys_beside_it_are_given_in_any_order(
    overrides: tuple[str, ...], crop: str, hue: float
) -> None:
    augment = of(*overrides).data.augment
    assert augment.jitter is not None
    assert (augment.crop, augment.jitter.hue) == (crop, hue)


def test_a_name_alone_takes_the_place_of_all_that_was_below() -> None:
    below = {**RECIPE, "data": {**RECIPE["data"], "augment": {"crop": "inception", "jitter": {"hue": 0.1}}}}
    assert recipe_hash(resolve(below, ["data.augment=flip"])) == recipe_hash(of())


@pytest.mark.parametrize(("name", "alpha"), [("light1", None), ("light2", 0.2), ("medium2", 0.5), ("strong2", 0.8)])
def test_a_strength_brings_its_mixup(name: str, alpha: float | None) -> None:
    mixing = of(f"data.augment.augreg={name}").data.pair_mixing
    assert (mixing.alpha if mixing else None) == alpha
    assert mixing is None or not mixing.cutmix_alpha
    assert of("data.mixup.alpha=0.3").data.pair_mixing == of("data.mixup.alpha=0.3").data.mixup


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("data.augment=incepton",), "data.augment.crop: must be .*, got 'incepton'; did you mean 'inception'?"),
        (
            ("data.augment.augreg=medium",),
            "data.augment.augreg: must be 'none', .*, got 'medium'; did you mean",
        ),
        (("data.augment.randaug={}",), "data.augment.randaug: unknown key; did you mean 'data.augment.randaugment'?"),
        (
            ("data.augment.erase.are=[0.1, 0.2]",),
            "data.augment.erase.are: unknown key; did you mean 'data.augment.erase.area'?",
        ),
        (("data.augment.randaugment.magnitude=31",), "randaugment.magnitude: must be less than or equal to 30, got 31"),
        (("data.augment.randaugment.magnitude=-1",), "randaugment.magnitude: must be greater than or equal to 0"),
        (("data.augment.randaugment.num_ops=0",), "randaugment.num_ops: must be greater than or equal to 1, got 0"),
        (("data.augment.randaugment.magnitude=9.5",), "randaugment.magnitude: must be a valid integer.*got 9.5"),
        (("data.augment.jitter={}",), "data.augment.jitter: brightness, contrast, saturation and hue are all 0"),
        (("data.augment.jitter.hue=0.6",), "jitter.hue: must be less than or equal to 0.5, got 0.6"),
        (("data.augment.jitter={hue: 0.1, probability: 0}",), "jitter.probability: must be greater than 0, got 0"),
        (("data.augment.jitter.hue=nan",), "jitter.hue: must be a .*number"),
        (("data.augment.erase.area=[0.1, 1.5]",), "erase.area: .*an image has no more than 1 of its area"),
        (("data.augment.erase.area=[0.3, 0.1]",), "erase.area: expected two numbers .low, high."),
        (("data.augment.erase.aspect=[0, 1]",), "erase.aspect: expected two numbers .low, high. with 0 < low"),
        (("data.augment.erase.fill=black",), "erase.fill: must be 'grey' or 'noise', got 'black'"),
        (("data.augment.augreg=light2", "data.augment.randaugment={}"), "randaugment beside augreg=light2, which is"),
        (("data.augment.augreg=light1", "data.mixup.alpha=0.1"), "mixup beside augment.augreg=light1, .* no MixUp"),
        (("data.augment.augreg=light2", "global_batch=9"), "9 is odd, but data.augment.augreg pairs .*: 8, 10"),
        (("data.val_resize=27",), "val_resize: 27 pixels are fewer than image_size=28.*give 28 or more"),
        (("data.val_resize=0",), "val_resize: must be greater than or equal to 1, got 0"),
        (("data.upright=1",), "data.upright: must be a valid boolean, got 1"),
    ],
)
def test_mistakes_are_named_with_their_key(overrides: tuple[str, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says.replace("?", r"\?")):
        of(*overrides)
