"""Packing lists, Parquet and tars: labels of every kind arrive, and what cannot be read is named."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.shards import noise_bytes, write_tar
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.data.pack.choose import SourceOptions, open_source
from vit_dist.data.pack.items import Item
from vit_dist.data.pack.keys import repeated_hashes
from vit_dist.data.pack.run import PackOptions, merge, pack
from vit_dist.data.pack.sources import Source


def run(source: Path | str, dest: Path, *, per_shard: int = 100, **reading: Any) -> ShardManifest:
    pack(
        lambda scratch: open_source(str(source), scratch, SourceOptions(**reading)),
        str(dest),
        PackOptions(samples_per_shard=per_shard),
        max_bad=Fraction(0),
        quiet=True,
    )
    return read_manifest(str(dest))


def samples(manifest: ShardManifest) -> dict[str, dict[str, Any]]:
    """By key: members as webdataset reads them, and `labels` and `weights` from our index."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    found: dict[str, dict[str, Any]] = {}
    for shard in range(len(manifest.shards)):
        url = manifest.shard_url(shard)
        with Path(url).open("rb") as stream:
            for sample in group_by_keys(tar_file_expander([{"url": url, "stream": stream}])):
                found[sample["__key__"]] = {k: v for k, v in sample.items() if not k.startswith("__")}
        index = manifest.read_index(shard)
        for i, key in enumerate(index.keys()):
            labels, weights = index.sample_labels(i)
            found[key] |= {"labels": labels.tolist(), "weights": [round(float(w), 4) for w in weights]}
    return found


@pytest.fixture
def images(tmp_path: Path) -> Path:
    (tmp_path / "img").mkdir()
    for i in range(4):
        (tmp_path / "img" / f"{i}.png").write_bytes(noise_bytes(i))
    return tmp_path


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_a_jsonl_list_brings_one_label_several_soft_ones_and_metadata(images: Path) -> None:
    rows = [
        {"image": "img/0.png", "label": 2},
        {"image": "img/1.png", "label": [0, 3], "author": "me"},
        {"image": "img/2.png", "label": {"1": 0.75, "3": 0.25}},
        {"image": str(images / "img" / "3.png"), "label": [1, 2], "weights": [0.5, 1]},
    ]
    manifest = run(write_jsonl(images / "list.jsonl", rows), images / "out")
    found = samples(manifest)
    assert (manifest.num_classes, manifest.max_labels, manifest.classes) == (4, 2, ())
    assert found["000000000"]["cls"] == b"2"
    assert json.loads(found["000000000"]["json"]) == {"path": "img/0.png"}
    assert "cls" not in found["000000001"]
    assert json.loads(found["000000001"]["json"]) == {"author": "me", "labels": [0, 3], "path": "img/1.png"}
    assert [(s["labels"], s["weights"]) for _, s in sorted(found.items())] == [
        ([2], [1]),
        ([0, 3], [1, 1]),
        ([1, 3], [0.75, 0.25]),
        ([1, 2], [0.5, 1]),
    ]
    assert [s["png"] for _, s in sorted(found.items())] == [noise_bytes(i) for i in range(4)]


@pytest.mark.parametrize(("suffix", "comma"), [("csv", ","), ("tsv", "\t")])
def test_a_csv_list_brings_names_several_labels_and_keys(images: Path, suffix: str, comma: str) -> None:
    rows = ["file,species,id", "img/0.png,dog,a.1", "img/1.png,cat|dog,b", "img/2.png,cat:0.7|emu:0.3,c"]
    (images / f"list.{suffix}").write_text("\n".join(row.replace(",", comma) for row in rows) + "\n")
    manifest = run(images / f"list.{suffix}", images / "out", label_field="species", key_field="id")
    found = samples(manifest)
    assert manifest.classes == ("cat", "dog", "emu")
    assert {k: (s["labels"], s["weights"]) for k, s in found.items()} == {
        "a%2E1": ([1], [1]),
        "b": ([0, 1], [1, 1]),
        "c": ([0, 2], [0.7, 0.3]),
    }


def test_given_classes_decide_the_numbers(images: Path) -> None:
    path = write_jsonl(images / "list.jsonl", [{"image": "img/0.png", "label": "b"}])
    manifest = run(path, images / "out", classes=("c", "b", "a"))
    assert (manifest.classes, manifest.num_classes) == (("c", "b", "a"), 3)
    assert samples(manifest)["000000000"]["labels"] == [1]


@pytest.mark.parametrize(
    ("text", "reading", "message"),
    [
        ('{"image": "img/0.png", "label": 1}\nno json\n', {}, r"list\.jsonl:2: not JSON"),
        ("[1, 2]\n", {}, "expected a JSON object"),
        ('{"picture": "img/0.png", "label": 1}\n', {}, "which field is the image.*picture, label"),
        ('{"image": "img/0.png", "lable": 1}\n', {"label_field": "label"}, "no field 'label'.*did you mean 'lable'"),
        ('{"image": "img/0.png", "label": 1}\n{"image": "img/1.png"}\n', {}, r"list\.jsonl:2: no 'label'"),
        (
            '{"image": "img/0.png", "label": "x"}\n',
            {"classes": ("y", "z")},
            r"list\.jsonl:1: this row has the label 'x', which is no class",
        ),
        ('{"image": "img/0.png", "label": 5}\n', {"num_classes": 5}, "the label 5, but there are 5 classes"),
        ('{"image": "img/0.png", "label": -1}\n', {}, "the label -1, but class numbers begin at 0"),
        ('{"image": "img/0.png", "label": [1, "x"]}\n', {}, r"some labels are numbers and some are names \('x'\)"),
        ('{"image": "img/0.png", "label": [1], "weights": [1, 2]}\n', {}, "1 labels but weights"),
        ('{"image": "img/0.png", "label": {"1": -0.5}}\n', {}, "the weight -0.5, which is no number from 0 to 1"),
        ('{"image": 7, "label": 1}\n', {}, "'image' is 7, expected a path or a URL"),
        ("", {}, "no images in it"),
    ],
)
def test_a_list_that_cannot_be_read_is_named_by_its_line(
    images: Path, text: str, reading: dict[str, Any], message: str
) -> None:
    (images / "list.jsonl").write_text(text)
    with pytest.raises(DataError, match=message):
        run(images / "list.jsonl", images / "out", **reading)
    assert not (images / "out" / "manifest.json").exists()


def test_a_csv_row_with_a_field_too_many_is_named(images: Path) -> None:
    (images / "list.csv").write_text("image,label\nimg/0.png,1\nimg/1.png,1,2\n")
    with pytest.raises(DataError, match=r"list\.csv:3: .* another number of fields.*image, label"):
        run(images / "list.csv", images / "out")
    (images / "list.csv").write_bytes(b"image,label\nimg/\xff.png,1\n")
    with pytest.raises(DataError, match="not text in UTF-8"):
        run(images / "list.csv", images / "out")


def test_a_missing_file_of_a_list_is_a_bad_image_that_names_its_line(images: Path) -> None:
    path = write_jsonl(images / "list.jsonl", [{"image": f"img/{i}.png", "label": 1} for i in (0, 9)])
    with pytest.raises(DataError, match="1 of 2 images cannot be read"):
        run(path, images / "out")
    line = json.loads((images / "out" / "bad.jsonl").read_text())
    assert line["image"].endswith("list.jsonl:2: img/9.png")
    assert "no such file" in line["reason"]


@pytest.mark.parametrize(
    "url", ["http:///x?sig=s3cr3t", "s3:///x?sig=s3cr3t", "no-such-scheme://k:s3cr3t@h/x", "s3:/x?sig=s3cr3t"]
)
def test_an_address_that_is_none_is_a_bad_image_whose_secrets_stay_here(
    images: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": image, "label": 1} for image in ("img/0.png", url)]
    with pytest.raises(DataError, match="1 of 2 images cannot be read") as error:
        run(write_jsonl(images / "list.jsonl", rows), images / "out")
    line = json.loads((images / "out" / "bad.jsonl").read_text())
    assert "list.jsonl:2: " in line["image"]
    assert "s3cr3t" not in f"{line} {error.value} {capsys.readouterr()}"


REPEATED = [["same", "same"], [7, 7, 8], ["a", "b", "c", "a"], ["a b", "x", "a b"], ["k" * 300, "k" * 300], [1, "1"]]


@pytest.mark.parametrize("keys", REPEATED)
@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_key_given_twice_is_refused_whichever_shards_it_falls_into(keys: list[Any], form: str, images: Path) -> None:
    rows = [{"image": f"img/{i}.png", "label": 1, "id": key} for i, key in enumerate(keys)]
    if form == "jsonl":
        source = write_jsonl(images / "list.jsonl", rows)
    elif form == "csv":
        source = images / "list.csv"
        source.write_text("image,label,id\n" + "".join(f"{r['image']},1,{r['id']}\n" for r in rows))
    else:
        content = [{"bytes": noise_bytes(i), "path": None} for i in range(len(rows))]
        source = write_parquet(
            images / "a.parquet", {"image": content, "label": [1] * len(rows), "id": [str(key) for key in keys]}
        )
    first, second = (i + 1 for i, key in enumerate(map(str, keys)) if list(map(str, keys)).count(key) > 1)
    for per_shard in (100, 1):
        with pytest.raises(DataError, match="keys must be unique in the whole set") as caught:
            run(source, images / "out", key_field="id", per_shard=per_shard)
        if form == "jsonl":
            assert f"list.jsonl:{second}: img" in str(caught.value).partition("its key")[0]
            assert f"list.jsonl:{first}: img" in str(caught.value).partition("its key")[2]
        assert not list((images / "out").glob("*.tar"))


def test_keys_that_differ_are_packed_into_any_number_of_shards(images: Path) -> None:
    rows = [{"image": f"img/{i}.png", "label": 1, "id": key} for i, key in enumerate(["a", "A", "a.", "%61"])]
    for per_shard in (100, 1):
        found = samples(
            run(write_jsonl(images / "list.jsonl", rows), images / f"{per_shard}", key_field="id", per_shard=per_shard)
        )
        assert sorted(found) == ["%2561", "A", "a", "a%2E"]


@pytest.mark.parametrize("in_memory", [1, 7, 1000])
def test_hashes_that_stand_twice_are_found_in_any_number_of_passes(
    in_memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_dist.data.pack.keys._HASHES_IN_MEMORY", in_memory * 16)
    draws = random.Random(0)
    hashes = [draws.getrandbits(64) for _ in range(300)]
    twice = {hashes[3], hashes[200]}
    hashes += [hashes[3], hashes[3], hashes[200]]
    draws.shuffle(hashes)
    (tmp_path / "keys").write_bytes(b"".join(h.to_bytes(8, "little") for h in hashes))
    assert repeated_hashes(tmp_path / "keys", len(hashes)) == twice
    (tmp_path / "keys").write_bytes(b"")
    assert repeated_hashes(tmp_path / "keys", 0) == set()


def test_keys_of_one_hash_are_two_keys(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_dist.data.pack.items.key_hash", len)
    rows = [{"image": f"img/{i}.png", "label": 1, "id": f"k{i}"} for i in range(3)]
    assert len(samples(run(write_jsonl(images / "list.jsonl", rows), images / "out", key_field="id"))) == 3


def write_parquet(path: Path, columns: dict[str, list[Any]], metadata: dict[str, Any] | None = None) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(columns)
    if metadata is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
    pq.write_table(table, path, row_group_size=2)
    return path


def test_parquet_with_embedded_images_keeps_bytes_labels_names_and_paths(tmp_path: Path) -> None:
    told = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    (tmp_path / "set" / "data").mkdir(parents=True)
    for part in range(2):
        columns = {
            "image": [{"bytes": noise_bytes(3 * part + i), "path": f"{part}{i}.png"} for i in range(3)],
            "label": [0, 1, 1],
            "caption": ["x", "y", "z"],
        }
        write_parquet(tmp_path / "set" / "data" / f"train-{part}.parquet", columns, told)
    manifest = run(tmp_path / "set", tmp_path / "out", per_shard=4)
    found = samples(manifest)
    assert manifest.classes == ("cat", "dog")
    assert [found[f"{i:09d}"]["png"] for i in range(6)] == [noise_bytes(i) for i in range(6)]
    assert [found[f"{i:09d}"]["labels"] for i in range(6)] == [[0], [1], [1]] * 2
    assert json.loads(found["000000004"]["json"]) == {"caption": "y", "path": "11.png"}
    assert not (tmp_path / "out" / ".pack").exists()


def test_parquet_of_plain_bytes_and_several_labels(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"jpg": [noise_bytes(0), noise_bytes(1)], "labels": [[1, 2], [0]]})
    found = samples(run(path, tmp_path / "out"))
    assert [s["labels"] for _, s in sorted(found.items())] == [[1, 2], [0]]


def test_a_part_copies_only_its_own_images_of_parquet_and_the_parts_make_the_same_set(tmp_path: Path) -> None:
    columns = {"image": [noise_bytes(i) for i in range(40)], "label": [i % 4 for i in range(40)]}
    path = write_parquet(tmp_path / "a.parquet", columns)
    total = sum(len(image) for image in columns["image"])
    copied = []

    def opened(scratch: Path) -> Source:
        source = open_source(str(path), scratch, SourceOptions())
        items = source.items

        def watched() -> Iterator[Item]:
            yield from items()
            copied.append((scratch / "parquet.images").stat().st_size)

        source.items = watched
        return source

    options = PackOptions(samples_per_shard=5)
    for part in range(4):
        pack(opened, str(tmp_path / "parts"), options, part=(part, 4), quiet=True)
    assert sum(copied) == total
    assert max(copied) < total / 2
    joined = merge(str(tmp_path / "parts"))
    whole = pack(opened, str(tmp_path / "whole"), options, quiet=True)
    assert copied[-1] == total
    assert joined.manifests[0][1].fingerprint == whole.manifests[0][1].fingerprint


def test_parquet_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"image": [noise_bytes(0)] * 9, "label": list(range(9))})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"a\.parquet: not a Parquet file, or damaged"):
        run(path, tmp_path / "out")
    path = write_parquet(tmp_path / "b.parquet", {"image": [{"bytes": None, "path": "x.png"}], "label": [0]})
    with pytest.raises(DataError, match=r"row 0: image: no embedded bytes, only 'x\.png'"):
        run(path, tmp_path / "out")
    path = write_parquet(tmp_path / "c.parquet", {"n": [1], "label": [0]})
    with pytest.raises(DataError, match="which field is the image"):
        run(path, tmp_path / "out")


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"pip install 'vit_dist\[data\]'"):
        run(tmp_path / "a.parquet", tmp_path / "out")


def test_tars_are_packed_anew_with_all_their_members(tmp_path: Path) -> None:
    for t in range(2):
        members = []
        for i in range(3):
            members += [(f"s{i}.png", noise_bytes(3 * t + i)), (f"s{i}.cls", b"%d" % i), (f"s{i}.txt", b"caption")]
        members.append((f"{'long' * 40}.png", noise_bytes(9)))
        members += [(f"{'long' * 40}.json", b'{"labels": [0, 2], "who": "x"}')]
        write_tar(tmp_path / f"{t:03d}.tar", members)
    manifest = run(f"{tmp_path}/{{000..001}}.tar", tmp_path / "out")
    found = samples(manifest)
    assert manifest.num_classes == 3
    assert len(found) == 8
    assert found["001/s2"] == {
        "png": noise_bytes(5),
        "cls": b"2",
        "txt": b"caption",
        "labels": [2],
        "weights": [1],
    }
    (cut,) = (k for k in found if k.startswith("000/long"))
    assert json.loads(found[cut]["json"]) == {"labels": [0, 2], "who": "x"}


def test_options_that_mean_nothing_for_a_source_are_refused(images: Path) -> None:
    path = write_jsonl(images / "list.jsonl", [{"image": "img/0.png", "label": 1}])
    with pytest.raises(ConfigError, match=r"--split-name: .* is read as a list"):
        run(path, images / "out", split_name="train")
    with pytest.raises(ConfigError, match=r"--format 'lists'.*did you mean 'list'"):
        run(path, images / "out", kind="lists")
    (images / "x.bin").write_bytes(b"x")
    with pytest.raises(DataError, match="a file of an unknown kind"):
        run(images / "x.bin", images / "out")
