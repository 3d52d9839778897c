"""Where two sets meet a class is the one of the same name; what cannot be found is refused before the first step."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.shards import noise_bytes, write_set, write_tar
from tests.streams import recipe_of
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import World
from vit_dist.data.classes import Classes, lay_out, numbers_in
from vit_dist.data.indexing import index_tars
from vit_dist.data.labels import LabelRule
from vit_dist.data.manifest import ShardManifest, encode_manifest, read_manifest
from vit_dist.data.pack.choose import SourceOptions, open_source
from vit_dist.data.pack.run import PackOptions, merge, pack
from vit_dist.data.sets import open_training_set
from vit_dist.data.validation import open_validation_set
from vit_dist.evals.fewshot import FewShotConfig

ANIMALS = ("cat", "dog", "fox")


def of(what: str, names: tuple[str, ...], num_classes: int = 0) -> Classes:
    return Classes.listed(what, num_classes or len(names), names)


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        (of("a", ANIMALS), of("b", ANIMALS), None),
        (of("a", ("cat", "dog")), of("b", ANIMALS), None),
        (of("a", ("cat", "fox")), of("b", ANIMALS), (0, 2)),
        (of("a", ("fox", "cat")), of("b", ANIMALS), (2, 0)),
        (of("a", ("fox",)), of("b", (*ANIMALS, "owl")), (2,)),
        (of("a", (" dog", "cafe\u0301")), of("b", ("caf\u00e9", "dog ")), (1, 0)),
        (of("a", ("dog",)), Classes("a mixture", 9, {4: "dog", 7: "cat"}), (4,)),
        (of("a", (), 2), of("b", ANIMALS), None),
        (of("a", ANIMALS), of("b", (), 3), None),
        (of("a", (), 3), of("b", (), 5), None),
        (of("a", ANIMALS, 5), of("b", ANIMALS, 5), None),
        (of("a", ("0", "1")), of("b", (), 10), None),
    ],
)
def test_a_class_is_found_by_its_name_and_numbers_that_agree_stay(
    own: Classes, other: Classes, expected: tuple[int, ...] | None
) -> None:
    assert numbers_in(own, other) == expected


@pytest.mark.parametrize(
    ("own", "other", "says"),
    [
        (of("a", (*ANIMALS, "owl")), of("b", ANIMALS), "a has the class 'owl', which b has not; no class is"),
        (
            of("a", ("cat", "emu", "owl")),
            of("b", ANIMALS),
            r"b has the 2 classes 'dog', 'fox', which it has not \(class 1 is 'emu' here, 'dog' there\)",
        ),
        (of("a", ("Cat",)), of("b", ("cat",)), "the class 'Cat', which b has not; b has the class 'cat'"),
        (of("a", tuple("uvwxyz")), of("b", ANIMALS), r"the 6 classes 'u', 'v', 'w', 'x', 'y', \.\.\., which"),
        (of("a", ("dog",)), of("b", ("cat", "dog", "dog")), "b has 2 classes of the name 'dog'"),
        (of("a", ("dog",), 2), of("b", ANIMALS), "a names 1 of its 2 classes and numbers them unlike b"),
        (of("a", (), 4), of("b", ANIMALS), "a has 4 classes, b 3: the labels from 3 on mean nothing there"),
        (of("a", ANIMALS), of("b", (), 2), "a has 3 classes, b 2"),
        (of("a", (), 9), of("b", (), 7), "a has 9 classes, b 7"),
        (of("a", ANIMALS, 5), of("b", ANIMALS, 4), "a has 5 classes, b 4"),
        (of("a", ("0", "1", "10", "2")), of("b", (), 11), "a calls class 2 '10', b gives numbers without names"),
        (of("a", (), 3), of("b", ("1", "2", "3")), "b calls class 0 '1', a gives numbers"),
    ],
)
def test_classes_that_cannot_be_found_are_named_with_what_to_do(own: Classes, other: Classes, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        numbers_in(own, other)
    assert "--classes FILE" in str(caught.value) or "by it" in str(caught.value)


def labels_of(manifest: ShardManifest) -> list[int]:
    return np.concatenate([manifest.read_index(s).labels for s in range(len(manifest.shards))]).tolist()


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Sets of 3 animals, of 2 of them, of the same without names, and of birds."""
    folder = tmp_path_factory.mktemp("classes")

    def write(name: str, classes: tuple[str, ...], num_classes: int = 0, first: int = 0) -> str:
        return write_set(
            folder / name,
            num_samples=24,
            samples_per_shard=9,
            num_classes=num_classes or len(classes),
            classes=classes,
            first=first,
        )

    return {
        "all": write("all", ANIMALS),
        "few": write("few", ("cat", "fox"), first=100),
        "bare": write("bare", (), 3, first=200),
        "birds": write("birds", ("emu", "owl"), first=300),
        "turned": write("turned", ("fox", "dog", "cat"), first=400),
    }


def test_a_renumbered_manifest_is_the_same_set_under_other_labels(sets: dict[str, str]) -> None:
    few = read_manifest(sets["few"])
    read = few.renumbered((0, 2), 3, ANIMALS)
    assert labels_of(read) == [2 * label for label in labels_of(few)]
    assert read.fingerprint == few.fingerprint
    assert (read.num_classes, read.classes) == (3, ANIMALS)
    with pytest.raises(AssertionError):
        encode_manifest(read)


def mixed(sets: dict[str, str], num_classes: int, **parts: Any) -> Recipe:
    often = {"every": "120 examples"}
    mixture = {name: {"train": sets[name], **more} for name, more in parts.items()}
    return recipe_of(
        {"num_classes": num_classes, "mixture": mixture}, horizon="120 examples", eval=often, checkpoint=often
    )


@pytest.mark.parametrize(
    ("parts", "names"),
    [
        ({"all": {}, "few": {}}, dict(enumerate(ANIMALS))),
        ({"few": {}, "turned": {}}, {0: "fox", 1: "dog", 2: "cat"}),
        ({"all": {}, "turned": {}, "few": {}}, dict(enumerate(ANIMALS))),
        ({"birds": {"label_offset": 3}, "few": {}}, {0: "cat", 1: "fox", 3: "emu", 4: "owl"}),
        ({"few": {}, "bare": {}}, {0: "cat", 1: "fox"}),
        ({"bare": {}, "birds": {"label_offset": 3}}, {3: "emu", 4: "owl"}),
    ],
)
def test_the_sets_of_a_mixture_teach_each_class_under_one_number(
    sets: dict[str, str], parts: dict[str, Any], names: dict[int, str]
) -> None:
    data = open_training_set(mixed(sets, 5, **parts))
    assert data.class_names == names
    for part in data.parts:
        own = read_manifest(sets[part.name])
        for label, number in zip(labels_of(own), labels_of(part.manifest), strict=True):
            there = number + part.label_offset
            assert names.get(there) == own.classes[label] if own.classes else there == label


def test_the_stream_of_a_mixture_gives_the_labels_of_the_head_and_its_identity_says_so(sets: dict[str, str]) -> None:
    from vit_dist.data.stream import TrainStream

    recipe = mixed(sets, 3, all={}, few={})
    data = open_training_set(recipe)
    expected = dict(
        enumerate([*labels_of(read_manifest(sets["all"])), *(2 * n for n in labels_of(read_manifest(sets["few"])))])
    )
    with TrainStream(data, recipe, World(), 0) as stream:
        for batch, _ in itertools.islice(stream, 6):
            found = dict(zip(batch.ordinals.tolist(), batch.labels[:, 0].tolist(), strict=True))
            assert found == {ordinal: expected[ordinal] for ordinal in found}
    plain = {name: read_manifest(sets[name]).fingerprint for name in sorted(sets)}

    def identity(*names: str) -> str:
        return hashlib.sha256("\n".join(f"{name} {plain[name]}" for name in names).encode()).hexdigest()[:16]

    assert data.fingerprint != identity("all", "few")
    # Where the sets agree, a run is the one that it was before names were compared.
    assert open_training_set(mixed(sets, 3, all={}, bare={})).fingerprint == identity("all", "bare")
    apart = open_training_set(mixed(sets, 5, all={}, birds={"label_offset": 3}))
    assert apart.fingerprint == identity("all", "birds")


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (
            {"all": {}, "birds": {}},
            r"data\.mixture\.birds: the set 'birds' has the 2 classes 'emu', 'owl', .* label_offset",
        ),
        ({"all": {}, "birds": {"label_offset": 2}}, r"'birds' with label_offset=2 calls class 2 'emu', .* 'fox'"),
        ({"few": {}, "birds": {}}, r"data\.mixture\.few: .* 'cat', 'fox', which the rest of the mixture has not"),
        ({"all": {}, "few": {"label_offset": 1}}, r"'few' with label_offset=1 calls class 1 'cat', .* 'dog'"),
    ],
)
def test_sets_of_a_mixture_that_give_one_number_to_two_classes_are_refused(
    sets: dict[str, str], parts: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError, match=says):
        open_training_set(mixed(sets, 6, **parts))


def test_laying_out_sets_without_names_leaves_them_as_they_are(sets: dict[str, str]) -> None:
    bare = read_manifest(sets["bare"])
    placed, names = lay_out({"a": (bare, 0), "b": (bare, 3)}, 6)
    assert placed == {"a": bare, "b": bare}
    assert names == {}


def trained(sets: dict[str, str], train: str, val: str, num_classes: int = 3, **fields: Any) -> Recipe:
    data = {"num_classes": num_classes, "train": sets[train], "val": sets[val]}
    return recipe_of(data, horizon="24 examples", evaluators=[{"name": "classification"}], **fields)


@pytest.mark.parametrize(
    ("train", "val", "numbers"),
    [
        ("all", "all", None),
        ("all", "few", (0, 2)),
        ("all", "turned", (2, 1, 0)),
        ("all", "bare", None),
        ("bare", "few", None),
    ],
)
def test_a_validation_set_is_counted_as_the_training_set_counts(
    sets: dict[str, str], train: str, val: str, numbers: tuple[int, ...] | None
) -> None:
    from vit_dist.data.stream import EvalBatches
    from vit_dist.train.plan import open_training

    recipe = trained(sets, train, val)
    _, opened, _ = open_training(recipe, World())
    assert opened is not None
    assert opened.numbers == numbers
    own = labels_of(read_manifest(sets[val]))
    found: list[int] = []
    for batch in EvalBatches(opened, recipe.data, World(), 7):
        found += [] if batch is None else batch.labels[:, 0].tolist()
    assert found == [label if numbers is None else numbers[label] for label in own]


@pytest.mark.parametrize(
    ("train", "val", "num_classes", "says"),
    [
        ("few", "all", 3, r"data\.val: the set 'all' has the class 'dog', which the training set 'few' has not"),
        (
            "all",
            "birds",
            3,
            r"'birds' has the 2 classes 'emu', 'owl', which the training set 'all' has not.*data\.val=''",
        ),
        ("few", "bare", 2, r"data\.val: the set 'bare' has 3 classes, the training set 'few' 2"),
    ],
)
def test_a_validation_set_with_classes_that_were_never_trained_is_refused(
    sets: dict[str, str], train: str, val: str, num_classes: int, says: str
) -> None:
    recipe = trained(sets, train, val, num_classes)
    with pytest.raises(ConfigError, match=says):
        open_validation_set(recipe, open_training_set(recipe))


def test_few_shot_sets_are_compared_with_each_other_and_not_with_the_head(sets: dict[str, str]) -> None:
    shots = {"name": "fewshot", "set": "x", "shots": [1], "train": sets["turned"]}
    recipe = trained(sets, "birds", "few", 2).model_copy(update={"evaluators": (FewShotConfig(**shots),)})
    val = open_validation_set(recipe, open_training_set(recipe))
    assert val is not None
    assert val.numbers is None
    (evaluator,) = recipe.evaluators
    assert isinstance(evaluator, FewShotConfig)
    evaluator.check_sets(recipe)
    train, test = evaluator.open_sets(recipe)
    assert labels_of(test) == [(2, 0)[label] for label in labels_of(read_manifest(sets["few"]))]
    assert labels_of(train) == labels_of(read_manifest(sets["turned"]))
    other = FewShotConfig(**{**shots, "test": sets["birds"]})
    with pytest.raises(
        ConfigError, match=r"fewshot of 'x': its test set 'birds' has .* which its train set 'turned' has not"
    ):
        other.check_sets(recipe)
    with pytest.raises(ConfigError, match=r"its test set 'bare' has 3 classes, its train set 'few' 2"):
        FewShotConfig(**{**shots, "train": sets["few"], "test": sets["bare"]}).check_sets(recipe)


def test_a_set_without_labels_is_refused_before_the_first_step(sets: dict[str, str], tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "a.tar", [("a.png", noise_bytes(0)), ("b.png", noise_bytes(1))])
    index_tars([str(tar)], str(tmp_path / "m.json"), rule=LabelRule("none"), quiet=True)
    bare = str(tmp_path / "m.json")
    with pytest.raises(ConfigError, match="the set 'm' has no labels to train on"):
        open_training_set(recipe_of({"num_classes": 3, "train": bare}, horizon="2 epochs"))
    recipe = trained({**sets, "none": bare}, "all", "none")
    with pytest.raises(ConfigError, match=r"data\.val: the set 'm' has no labels"):
        open_validation_set(recipe, open_training_set(recipe))


def test_tars_of_packed_sets_keep_the_names_of_their_classes(sets: dict[str, str], tmp_path: Path) -> None:
    def indexed(*urls: str, rule: LabelRule | None = None) -> tuple[str, ...]:
        index_tars(urls, str(tmp_path / "m.json"), rule=rule, quiet=True)
        return read_manifest(str(tmp_path / "m.json")).classes

    everything, few, bare = (str(Path(sets[name]).parent) for name in ("all", "few", "bare"))
    assert indexed(everything) == ANIMALS
    assert indexed(sets["all"]) == ANIMALS
    assert indexed(f"{everything}/shard-000001.tar", bare) == ANIMALS
    assert indexed(bare) == ()
    assert indexed(everything, rule=LabelRule("cls", classes=("x", "y", "z"))) == ("x", "y", "z")
    with pytest.raises(ConfigError, match=r"few/manifest\.json: .* calls class 1 'fox', .* 'dog': .* a mixture"):
        indexed(everything, few)
    source = open_source(everything, tmp_path, SourceOptions())
    assert (source.classes, source.num_classes) == (ANIMALS, None)


def test_parts_of_a_packing_with_other_names_are_refused(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(noise_bytes(i))

    def packed(names: tuple[str, str], part: int) -> None:
        rows = [f"{i}.png,{names[i % 2]}" for i in range(4)]
        (tmp_path / "a.csv").write_text("\n".join(["image,label", *rows]))
        source = str(tmp_path / "a.csv")
        options = PackOptions(samples_per_shard=2)
        where = str(tmp_path / "out")
        pack(lambda work: open_source(source, work, SourceOptions()), where, options, part=(part, 2), quiet=True)

    packed(("cat", "dog"), 0)
    with pytest.raises(ConfigError, match='name of class 1: "fox" now, "dog" there'):
        packed(("cat", "fox"), 1)
    packed(("cat", "dog"), 1)
    assert merge(str(tmp_path / "out")).manifests[0][1].classes == ("cat", "dog")
