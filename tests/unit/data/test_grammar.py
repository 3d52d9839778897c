"""One grammar of labels: every input gives the same answer, and what it refuses is named."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.shards import noise_bytes, write_tar
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.data.grammar import MAX_CLASSES, ClassSpace, check_classes, class_name, looks_like_a_number, read_text
from vit_dist.data.indexing import index_tars
from vit_dist.data.labels import LabelRule, read_classes
from vit_dist.data.pack.choose import SourceOptions, open_source
from vit_dist.data.pack.items import finite
from vit_dist.data.pack.run import PackOptions, pack
from vit_dist.data.pack.sources import Source, folder_source

REFUSED = "refused"
Answer = tuple[tuple[int, ...], tuple[float, ...] | None] | str


def asked(find: Callable[[], tuple[Any, Any]]) -> Answer:
    """Labels and weights, or that they are refused."""
    try:
        labels, weights = find()
    except (DataError, ValueError):
        return REFUSED
    return tuple(labels), None if weights is None else tuple(weights)


def packed(folder: Path, name: str, content: str | bytes, classes: tuple[str, ...]) -> Answer:
    """What the first row of a list or a Parquet file says."""
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    def find() -> tuple[Any, Any]:
        item = next(iter(open_source(str(folder / name), folder, SourceOptions(classes=classes)).items()))
        return item.labels, item.weights

    return asked(find)


def write_parquet(path: Path, images: list[bytes], labels: Any, **columns: Any) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": images, "label": labels, **columns}), path)
    return path.read_bytes()


def cell(text: str) -> str:
    quoted = text.replace('"', '""')
    return f'"{quoted}"'


def from_values(label: Any, weights: list[float] | None, classes: tuple[str, ...]) -> dict[str, Answer]:
    """What the inputs with types, and those that hold the same as JSON, say of a label."""
    row = {"image": "x.png", "label": label} | ({} if weights is None else {"weights": weights})
    record = json.dumps({k: v for k, v in row.items() if k != "image"}).encode()
    beside = ("" if weights is None else ",weights", "" if weights is None else f",{cell(json.dumps(weights))}")
    rule = LabelRule(classes=classes)
    more = {} if weights is None else {"weights": [weights]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = {
            ".jsonl": packed(folder, "a.jsonl", json.dumps(row), classes),
            ".json member": asked(lambda: rule.labels({"json": record})),
            ".parquet": packed(folder, "a.parquet", write_parquet(folder / "b", [b"x"], [label], **more), classes),
        }
        if isinstance(label, list):
            text = json.dumps(label)
            found[".csv"] = packed(folder, "a.csv", f"image,label{beside[0]}\nx,{cell(text)}{beside[1]}\n", classes)
            if weights is None:
                found[".cls"] = asked(lambda: LabelRule("cls", classes=classes).labels({"cls": text.encode()}))
    return found


def from_texts(text: str, classes: tuple[str, ...]) -> dict[str, Answer]:
    """What every input says of a label that is one text."""
    found = from_values(text, None, classes)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found[".csv"] = packed(folder, "a.csv", f"image,label\nx,{cell(text)}\n", classes)
        found[".tsv"] = packed(folder, "a.tsv", f"image\tlabel\nx\t{cell(text)}\n", classes)
        for kind in ("cls", "txt"):
            rule = LabelRule(kind, classes=classes)
            content = text.encode()
            found[kind] = asked(lambda rule=rule, content=content, kind=kind: rule.labels({kind: content}))  # type: ignore[misc]
        if text in classes and not {"/", "\0"} & set(text) and text[0] != "." and len(text.encode()) < 200:
            (folder / "set" / text).mkdir(parents=True)
            (folder / "set" / text / "x.png").write_bytes(b"x")
            source = folder_source(str(folder / "set"))
            (item,) = source.items()
            named = check_classes(source.classes, "set")[item.labels[0]]
            found["folder"] = asked(lambda: ((classes.index(named),), None))
    return found


odd = ["grade:1", "cat|black", "16:9", "1_000", "nan", "٣", "²", "[x]", "a, b", "x 5", "-1", "1.5", "tench, Tinca"]
names = st.one_of(
    st.sampled_from(odd), st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12)
)
class_lists = st.lists(names.map(class_name), min_size=1, max_size=5, unique=True).filter(
    lambda given: all(given) and not any(name.isascii() and name.replace(".", "").isdigit() for name in given)
)


@settings(max_examples=25)
@given(class_lists, st.data())
def test_a_known_name_is_its_class_from_every_input_whatever_it_looks_like(
    given: list[str], data: st.DataObject
) -> None:
    label = data.draw(st.integers(0, len(given) - 1))
    found = from_texts(given[label], tuple(given))
    assert found == dict.fromkeys(found, ((label,), None))
    several = data.draw(st.permutations(range(len(given))))
    values = [given[i] for i in several]
    weights = data.draw(
        st.none() | st.lists(st.sampled_from([0.25, 0.5, 1.0]), min_size=len(given), max_size=len(given))
    )
    found = from_values(values, weights, tuple(given))
    assert found == dict.fromkeys(found, (tuple(several), None if weights is None else tuple(weights)))


@settings(max_examples=15)
@given(class_lists.filter(lambda given: not any(looks_like_a_number(name) or name[0] in "[{" for name in given)))
def test_names_that_nobody_has_listed_are_numbered_alike_by_every_input(given: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [json.dumps({"image": "x", "label": name}) for name in given]
        (folder / "a.jsonl").write_text("\n".join(rows))
        cells = [cell(json.dumps([name])) for name in given]
        (folder / "a.csv").write_text("\n".join(["image,label", *(f"x,{text}" for text in cells)]))
        write_parquet(folder / "a.parquet", [b"x"] * len(given), given)
        urls = [folder / "a.jsonl", folder / "a.csv", folder / "a.parquet"]
        if not any({"/", "\0"} & set(name) or name[0] == "." or len(name.encode()) > 200 for name in given):
            for name in given:
                (folder / "set" / name).mkdir(parents=True)
                (folder / "set" / name / "x.png").write_bytes(b"x")
            urls.append(folder / "set")
        for url in urls:
            source = open_source(str(url), folder, SourceOptions())
            assert source.classes == tuple(sorted(given))
            assert sorted(item.labels for item in source.items()) == [(i,) for i in range(len(given))]


@settings(max_examples=25)
@given(
    st.one_of(st.integers(-3, 12), st.integers(MAX_CLASSES - 2, 2**70)),
    st.sampled_from(["{}", "0{}", "00{}", "{}.0", "{}.00", " {}", "{} "]),
    st.sampled_from([(), ("a", "b", "c")]),
)
def test_a_number_is_the_same_class_from_every_input(number: int, form: str, classes: tuple[str, ...]) -> None:
    right = 0 <= number < (len(classes) or MAX_CLASSES)
    expected = ((number,), None) if right else REFUSED
    # "0-3" is a name.
    found = from_texts((form if number >= 0 else "{}").format(number), classes)
    assert found == dict.fromkeys(found, expected)
    if abs(number) < 2**53:
        for value in (number, float(number), [number]):
            found = from_values(value, None, classes)
            assert found == dict.fromkeys(found, expected)


@pytest.mark.parametrize(
    "text",
    [
        "1_000",
        "1,000",
        "12,345,678",
        "٣",
        "\uff13",
        "²",
        "+1",
        "-0",
        "1.5",
        "1e3",
        "nan",
        "-Infinity",
        "",
        "  ",
        "[1",
        "{cat",
    ],
)
def test_a_text_that_is_no_class_number_becomes_no_name_in_any_input(text: str) -> None:
    found = from_texts(text, ())
    assert found == dict.fromkeys(found, REFUSED)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, "the label True, of type bool"),
        (None, "no 'label'"),
        (math.nan, "has no label: nan stands"),
        (math.inf, "the label inf, neither a class number"),
        (2.5, "the label 2.5, neither"),
        (-1, "the label -1, but class numbers begin at 0"),
        (2**24, "the label 16777216, but class numbers end at 16,777,215"),
        (2**63, "the label 9223372036854775808, but class numbers end at 16,777,215"),
        ([[1]], r"the label \[1\], of type list"),
        ([1, None], "None stands in its place"),
        ([], "has no label: every sample needs one"),
        ({}, "has no label: every sample needs one"),
        ([1, 0, 0, 1], r"class 1 twice among its labels \[1, 0, 0, 1\]; .* no one-hot"),
        ([0.0, 1.0, 0.0], "class 0 twice"),
        (["3", 3], "class 3 twice"),
        ({"1": 1.5}, "the weight 1.5, which is no number from 0 to 1"),
        ({"1": -0.5, "2": 0.5}, "the weight -0.5"),
        ({"1": math.nan}, "the weight nan"),
        ({"1": True}, "the weight True"),
        ({"1": "0.5"}, "the weight '0.5'"),
        ({"1": 0, "2": 0.0}, "the weight 0 for all its labels"),
        ({"1": 0.5, "01": 0.5}, "class 1 twice"),
        ("3|5", r"the label '3\|5', which is no class number"),
        ("3:0.5|5:0.5", r"the label '3:0\.5\|5:0\.5', which is no class number"),
        ("1, 2", "the label '1, 2', which is no class number"),
        (["1_0"], "the label '1_0', which is no class number"),
    ],
)
def test_a_value_that_is_no_label_is_refused_by_name_and_left_out_where_that_is_asked(
    tmp_path: Path, value: Any, says: str
) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"image": "x", "label": value}))
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{says}"):
        list(open_source(str(tmp_path / "a.jsonl"), tmp_path, SourceOptions()).items())
    good = [("good.png", b"x"), ("good.cls", b"1")]
    members = [("bad.png", b"x"), ("bad.json", json.dumps({"label": value}).encode()), *good]
    tar, out = str(write_tar(tmp_path / "a.tar", members)), str(tmp_path / "m.json")
    says = "has no label: .json has no field" if value is None else says
    with pytest.raises(DataError, match=rf"a\.tar: .*sample 'bad' .*{says}"):
        index_tars([tar], out, quiet=True)
    result = index_tars([tar], out, quiet=True, leave_out=True)
    assert [(key, result.manifest.num_samples) for _, key, _, _ in result.left_out] == [("bad", 1)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cat:1", "a name, or a label and its weight"),
        ("16:9", "the weight 9.0, which is no number from 0 to 1"),
        ("cat:0.5|dog", "some have a weight and some have none"),
        ("cat:-0.5|dog:0.5", "the weight '-0.5' in 'cat:-0.5'"),
        ("cat:nan", "the weight 'nan'"),
        ("cat:٣", "the weight '٣'"),
        ("cat|cat", "class 0 twice"),
        ("cat||dog", "an empty text stands in its place"),
    ],
)
def test_a_cell_of_a_list_with_separators_that_mean_nothing_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.csv").write_text(f"image,label\nx,dog\nx,cat\nx,{text}\n")
    with pytest.raises(DataError, match=rf"a\.csv:4: this row .*{says}"):
        list(open_source(str(tmp_path / "a.csv"), tmp_path, SourceOptions()).items())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3 5", ((3, 5), None)),
        ("3,5\n", ((3, 5), None)),
        ("3|5", ((3, 5), None)),
        ("3:0.5|5:1", ((3, 5), (0.5, 1.0))),
        ("3:0.25", ((3,), (0.25,))),
        ('{"3": 0.5, "5": 0.5}', ((3, 5), (0.5, 0.5))),
        ("﻿7", ((7,), None)),
    ],
)
def test_a_text_may_hold_several_labels_and_weights(text: str, expected: Answer) -> None:
    assert asked(lambda: LabelRule("cls").labels({"cls": text.encode()})) == expected
    with tempfile.TemporaryDirectory() as folder:
        content = f"image,label\nx,{cell(text.lstrip(chr(0xFEFF)))}\n"
        assert packed(Path(folder), "a.csv", content, ()) == expected


def test_a_name_that_a_list_brings_does_not_change_how_another_row_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('image,label\nx,"[""cat|dog""]"\nx,cat|dog\n')
    source = open_source(str(tmp_path / "a.csv"), tmp_path, SourceOptions())
    assert source.classes == ("cat", "cat|dog", "dog")
    assert [item.labels for item in source.items()] == [(1,), (0, 2)]


@pytest.mark.parametrize(
    ("classes", "label", "expected"),
    [
        (("0", "1", "2"), "1", ((1,), None)),
        (("10", "20", "30"), "20", ((1,), None)),
        (("10", "20", "30"), "1", ((1,), None)),
        (("0", "1", "10", "2"), "2", REFUSED),
        (("0", "1", "10", "2"), "10", ((2,), None)),
        (("1", "2", "3"), "3", ((2,), None)),
        (("1", "2", "3"), "2", REFUSED),
    ],
)
def test_digits_that_are_a_name_and_another_classes_number_are_refused(
    classes: tuple[str, ...], label: str, expected: Answer
) -> None:
    found = from_texts(label, classes) | from_values(int(label), None, classes)
    found.pop("folder", None)
    assert found == dict.fromkeys(found, expected)


def test_whole_numbers_of_a_class_label_column_are_numbers_whatever_the_names(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    told = {"info": {"features": {"label": {"names": ["0", "1", "10", "2"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": [b"x"] * 4, "label": [2, 3, 0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), tmp_path / "a.parquet")
    source = open_source(str(tmp_path / "a.parquet"), tmp_path, SourceOptions())
    assert [item.labels for item in source.items()] == [(2,), (3,), (0,), (1,)]


def test_parquet_brings_names_and_weights_as_json_does(tmp_path: Path) -> None:
    import pyarrow as pa

    def items(label: Any) -> Iterator[tuple[Any, ...]]:
        write_parquet(tmp_path / "a.parquet", [b"x"] * len(label), label)
        source = open_source(str(tmp_path / "a.parquet"), tmp_path, SourceOptions())
        yield from ((source.classes, item.labels, item.weights) for item in source.items())

    assert list(items(pa.array(["b", "a:1"]).dictionary_encode())) == [
        (("a:1", "b"), (1,), None),
        (("a:1", "b"), (0,), None),
    ]
    soft = pa.array([{"a": 0.5, "b": 0.5}, {"a": 1.0, "b": None}])
    assert list(items(soft)) == [(("a", "b"), (0, 1), (0.5, 0.5)), (("a", "b"), (0,), (1.0,))]


def test_one_hot_vectors_of_two_classes_are_noticed_over_the_whole_set(tmp_path: Path) -> None:
    rows = [{"image": f"{i}.png", "label": [i % 2, 1 - i % 2]} for i in range(4)]
    members = []
    for i, row in enumerate(rows):
        (tmp_path / f"{i}.png").write_bytes(noise_bytes(i))
        members += [(f"{i}.png", noise_bytes(i)), (f"{i}.json", json.dumps(row).encode())]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    tar = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=r"each of the 4 samples has both class 0 and class 1.*no one-hot"):
        index_tars([str(tar)], str(tmp_path / "m.json"), quiet=True)
    for more, says in (({}, "each of the 4 samples has both"), ({"label": 1}, "")):
        (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows[:3], rows[3] | more])))
        opened = [tmp_path / "a.jsonl"]

        def source(scratch: Path, opened: list[Path] = opened) -> Source:
            return open_source(str(opened[0]), scratch, SourceOptions())

        if says:
            with pytest.raises(DataError, match=says):
                pack(source, str(tmp_path / "out"), PackOptions(), quiet=True)
        else:
            assert pack(source, str(tmp_path / "out"), PackOptions(), quiet=True).manifests[0][1].num_classes == 2


def test_labels_of_a_key_that_stands_twice_are_refused(tmp_path: Path) -> None:
    for text, says in (
        ('{"image": "x", "label": 1, "label": 2}', "the field 'label' twice"),
        ('{"image": "x", "label": {"1": 0.5, "1": 0.25}}', "the label '1' twice"),
    ):
        (tmp_path / "a.jsonl").write_text(text)
        with pytest.raises(DataError, match=says):
            list(open_source(str(tmp_path / "a.jsonl"), tmp_path, SourceOptions()).items())
        with pytest.raises(ValueError, match=says):
            LabelRule().labels({"json": text.encode()})
    assert LabelRule().labels({"json": b'{"x": 1, "x": 2, "label": 3}'}) == ((3,), None)
    with pytest.raises(ValueError, match="not JSON: nested too deeply"):
        LabelRule().labels({"json": b"[" * 100_000})


def test_metadata_that_json_cannot_say_becomes_null(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(noise_bytes(0))
    (tmp_path / "a.jsonl").write_text(
        '{"image": "0.png", "label": 1, "x": NaN, "y": [-Infinity, {"z": 1e400}], "n": 1.5}'
    )
    result = pack(
        lambda scratch: open_source(str(tmp_path / "a.jsonl"), scratch, SourceOptions()),
        str(tmp_path / "out"),
        PackOptions(),
        quiet=True,
    )
    tar = Path(result.manifests[0][1].shard_url(0)).read_bytes()
    assert b'{"n": 1.5, "path": "0.png", "x": null, "y": [null, {"z": null}]}' in tar
    assert finite({"a": (1, True, "x", None)}) == {"a": [1, True, "x", None]}


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (b"", "no names in it"),
        (b"a\n\nb\n", "the name of class 1 is empty"),
        (b"a\nb\na \n", "the name 'a' stands twice"),
        ("e\u0301\n\u00e9\n".encode(), "the name '\u00e9' stands twice"),
        (b"\xff\n", "not text in UTF-8"),
    ],
)
def test_names_of_classes_that_cannot_be_told_apart_are_refused(tmp_path: Path, names: bytes, says: str) -> None:
    (tmp_path / "names.txt").write_bytes(names)
    with pytest.raises(DataError, match=says):
        read_classes(tmp_path / "names.txt")
    (tmp_path / "names.txt").write_bytes(b"\xef\xbb\xbfa\r\nb c \r\n\r\n")
    assert read_classes(tmp_path / "names.txt") == ("a", "b c")


def test_a_label_space_smaller_than_its_names_or_beyond_all_bounds_is_refused() -> None:
    for names, number in ((("a", "b"), 1), ((), MAX_CLASSES)):
        with pytest.raises(ConfigError, match=f"--num-classes {number}"):
            ClassSpace(names, number)
    assert ClassSpace(("a", "b"), 5).labels(read_text("4")) == ((4,), None)


def test_directories_are_classes_of_the_names_that_are_given(tmp_path: Path) -> None:
    for name in ("fox", "cat"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "x.png").write_bytes(b"x")

    def labels(*classes: str) -> dict[str, tuple[int, ...]]:
        source = open_source(str(tmp_path / "set"), tmp_path, SourceOptions(classes=classes))
        assert source.classes == (classes or ("cat", "fox"))
        assert source.num_classes == len(source.classes)
        return {item.key: item.labels for item in source.items()}

    assert labels() == {"cat/x": (0,), "fox/x": (1,)}
    assert labels("owl", "fox", "cat") == {"cat/x": (2,), "fox/x": (1,)}
    with pytest.raises(DataError, match="the directory 'fox' is no class of --classes; did you mean 'foxes'"):
        labels("cat", "foxes")
    for name in ("e\u0301", "\u00e9"):
        (tmp_path / "set" / name).mkdir()
    with pytest.raises(DataError, match="the name '\u00e9' stands twice"):
        labels()
