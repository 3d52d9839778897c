"""Tars of every form: what one stage accepts every other accepts, and all find what webdataset reads."""

from __future__ import annotations

import dataclasses
import random
import re
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.shards import noise_bytes, write_tar
from tests.tars import (
    END,
    FORMS,
    GNU,
    OTHERS,
    by_info,
    by_repack,
    by_training_reader,
    by_verify,
    by_webdataset,
    file,
    header,
    indexed,
    octal,
    packed,
    pax,
)
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.data.index import encode_index
from vit_dist.data.indexing import index_tars
from vit_dist.data.labels import LabelRule, label_rule
from vit_dist.data.manifest import ShardManifest, checksum
from vit_dist.data.members import image_of, split_name
from vit_dist.data.pack.choose import SourceOptions, open_source
from vit_dist.data.scan import scan_tar
from vit_dist.data.tars import find_tars

IMAGES = [noise_bytes(number, "JPEG") for number in range(8)]
NAMES = ["k{}", "./k{}", ".//k{}", "d/k{}", "d.1/k{}", ".hidden/k{}", "d/__k__/{}", "ü/k{}"]


def samples(form: Callable[[str, bytes], bytes], name: str = "d/k{}", count: int = 3) -> list[bytes]:
    """Label and image of some samples, one piece of a tar each."""
    pieces = []
    for i in range(count):
        key = name.format(i)
        pieces += [form(f"{key}.cls", b"%d" % (i % 3)), form(f"{key}.{'JPG' if i == 1 else 'jpg'}", IMAGES[i])]
    return pieces


def all_stages_find_what_webdataset_does(pieces: list[bytes], work: Path) -> int:
    """How many samples."""
    content = b"".join([*pieces, END])
    (work / "t.tar").write_bytes(content)
    expected = by_webdataset(content)
    assert expected
    manifest = indexed(work / "t.tar", work)
    assert isinstance(manifest, ShardManifest), manifest
    assert by_verify(manifest) == []
    assert by_training_reader(manifest) == by_info(manifest) == expected
    again = packed(work / "t.tar", work)
    assert isinstance(again, ShardManifest), again
    assert by_repack(again, "t", list(expected)) == expected
    assert extensions_in(again) == {"jpg", "cls"}
    return len(expected)


def extensions_in(manifest: ShardManifest) -> set[str]:
    with tarfile.open(manifest.shard_url(0)) as tar:
        return {member.name.partition(".")[2] for member in tar}


@pytest.mark.parametrize("form", FORMS)
def test_every_stage_reads_every_form_of_header(form: str, tmp_path: Path) -> None:
    # Sums of signed bytes are others only where there are bytes of 128 and more.
    name = "ü/k{}" if form == "signed checksum" else "./d/k{}"
    assert all_stages_find_what_webdataset_does(samples(FORMS[form], name), tmp_path) == 3


@pytest.mark.parametrize("name", NAMES)
def test_every_stage_keeps_the_key_as_the_tar_writes_it(name: str, tmp_path: Path) -> None:
    assert all_stages_find_what_webdataset_does(samples(file, name), tmp_path) == 3
    found = indexed(tmp_path / "t.tar", tmp_path)
    assert isinstance(found, ShardManifest)
    assert found.read_index(0).keys() == [name.format(i) for i in range(3)]


@pytest.mark.parametrize("other", OTHERS)
def test_a_member_that_is_no_part_of_a_sample_is_passed_over_wherever_it_stands(other: str, tmp_path: Path) -> None:
    pieces = samples(file)
    # First, inside a sample, between two, and last.
    for place in (6, 4, 3, 0):
        pieces.insert(place, OTHERS[other])
    assert all_stages_find_what_webdataset_does(pieces, tmp_path) == 3


def test_a_tar_that_gnu_tar_wrote_of_a_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for i, image in enumerate(IMAGES):
        (tmp_path / "src" / f"im{i}.jpg").write_bytes(image)
        (tmp_path / "src" / f"im{i}.cls").write_text(str(i % 3))
    for options in (["--format=v7"], ["--format=gnu", "-g", str(tmp_path / "snap")], ["--format=posix"]):
        subprocess.run(
            ["tar", "--sort=name", *options, "-C", tmp_path / "src", "-cf", tmp_path / "t.tar", "."], check=True
        )
        manifest = indexed(tmp_path / "t.tar", tmp_path)
        assert isinstance(manifest, ShardManifest), manifest
        assert by_verify(manifest) == []
        assert by_training_reader(manifest) == {f"./im{i}": (b, [i % 3]) for i, b in enumerate(IMAGES)}


def test_the_prefix_field_holds_times_where_gnu_tar_wrote_the_header(tmp_path: Path) -> None:
    pieces = [
        file(n, c, magic=GNU, prefix=b"15123456701\x0015123456701") for n, c in (("k.cls", b"1"), ("k.jpg", b"x"))
    ]
    (tmp_path / "t.tar").write_bytes(b"".join([*pieces, END]))
    assert scan_tar(str(tmp_path / "t.tar")).index.keys() == ["k"]


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (file("k9.jpg", b"x", b"S", GNU), "holds the sparse file 'k9.jpg'"),
        (pax({"GNU.sparse.major": b"1"}) + file("k9.jpg", b"x"), "holds a sparse file"),
        (pax({"path": b"all.jpg"}, b"g") + file("k9.jpg", b"x"), "a global pax header that gives all members"),
        (pax({"size": b"7"}, b"g") + file("k9.jpg", b"x"), "a global pax header that gives all members"),
        (pax({"path": b""}) + file("k9.jpg", b"x"), "an empty name or a damaged size"),
        (pax({"size": b"-1"}) + file("k9.jpg", b"x"), "an empty name or a damaged size"),
        (pax({"size": b"9" * 30}) + file("k9.jpg", b"x"), "an empty name or a damaged size"),
        (file("pax", b"30 path=k9.jpg\n", b"x"), "damaged pax header"),
        (file("pax", b"14 path k9.jpg\n", b"x"), "damaged pax header"),
        (file("pax", b"15 path=k9.jpg.", b"x"), "damaged pax header"),
        (pax({"path": b"k9.jpg"}), "ends after an extended header, without its member"),
        (file("././@LongLink", b"k9.jpg\0", b"L", GNU), "ends after an extended header, without its member"),
        (pax({"comment": b"x"}, b"g"), "ends after an extended header, without its member"),
        (octal(b"%08o_")("k9.jpg", b"x"), "has a header whose size is"),
        (octal(b"-%o")("k9.jpg", b"x"), "has a header whose size is"),
        (file("k9.jpg", b"x", size_field=b"\0" + b"0000000001\0"), "has a header whose size is"),
        (file("k9.jpg", b"x", size_field=b"\xff" * 12), "would end after the end of the file"),
        (file("/k9.jpg", b"x"), "the name '/k9.jpg'; absolute names"),
        (file("a/../k9.jpg", b"x"), "absolute names and '..' are refused"),
        (file(b"caf\xe9.jpg", b"x"), "a member whose name is not UTF-8"),
        (pax({"path": b"caf\xe9.jpg"}) + file("x", b"x"), "a member whose name is not UTF-8"),
        (file("k9.__key__", b"x"), "an extension that webdataset keeps for itself"),
        (file("d/k2.JPG", b"x"), "'d/k2.JPG' twice"),
        (file("d/k0.jpg", b"x"), "the key 'd/k0' twice, apart from each other"),
        (END + file("k9.jpg", b"x"), "has data after its end marker"),
        (END + b"garbage", "has data after its end marker"),
        (header(b"k9.jpg", 5000) + b"x", "would end after the end of the file"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once_by_all_with_the_reason(
    piece: bytes, message: str, tmp_path: Path
) -> None:
    (tmp_path / "t.tar").write_bytes(b"".join([*samples(file), piece, END]))
    with pytest.raises(DataError, match=message):
        scan_tar(str(tmp_path / "t.tar"))
    for refused in (indexed(tmp_path / "t.tar", tmp_path), packed(tmp_path / "t.tar", tmp_path)):
        assert isinstance(refused, str)
        assert "at byte" in refused


@pytest.mark.parametrize(
    "bad",
    [
        [file("z.cls", b"1")],
        [file("z.jpg", IMAGES[7])],
        [file("z.jpg", IMAGES[7]), file("z.cls", b"cat")],
        [file("z.jpg", IMAGES[7]), file("z.png", IMAGES[6]), file("z.cls", b"1")],
        [file("z.jpg", IMAGES[7]), file("z.json", b"{")],
        [file("Thumbs.db", b"x")],
        [file("z.cls", b"1"), header(b"z.jpg", 0, b"2")],
    ],
)
def test_what_index_skips_pack_skips(bad: list[bytes], tmp_path: Path) -> None:
    pieces = samples(file)
    pieces[4:4] = bad
    content = b"".join([*pieces, *samples(file, "e/k{}", 1), END])
    path = tmp_path / "t.tar"
    path.write_bytes(content)
    for refused in (indexed(path, tmp_path), packed(path, tmp_path)):
        assert isinstance(refused, str)
        assert "leave such samples out (--skip-bad)" in refused
    manifest = index_tars([str(path)], str(tmp_path / "m.json"), leave_out=True, quiet=True).manifest
    found = by_training_reader(manifest)
    assert list(found) == ["d/k0", "d/k1", "d/k2", "e/k0"]
    assert by_verify(manifest) == []
    again = packed(path, tmp_path, skip_bad=True)
    assert isinstance(again, ShardManifest), again
    assert by_repack(again, "t", list(found)) == found


@pytest.mark.parametrize("kind", [b"1", b"2"])
def test_an_image_that_is_a_link_is_named_as_one(kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.tar").write_bytes(file("a.cls", b"1") + header(b"a.jpg", 0, kind) + END)
    with pytest.raises(DataError, match=r"sample 'a' has no image: its members are cls \('a.jpg' is a link; write"):
        scan_tar(str(tmp_path / "t.tar"))


@pytest.mark.parametrize("damage", ["another tar", "moved", "other key", "longer", "no header", "no tar"])
def test_training_and_verify_refuse_a_tar_that_does_not_fit_its_index(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    path.write_bytes(b"".join([*samples(file), END]))
    manifest = indexed(path, tmp_path)
    assert isinstance(manifest, ShardManifest)
    content = bytearray(path.read_bytes())
    image = int(manifest.read_index(0).image_offsets[0])
    if damage == "another tar":
        content = bytearray(b"".join([*samples(file, "e/k{}"), END]))
    elif damage == "moved":
        content[image - 512 : image] = file("README", b"") + content[image - 512 : image - 512]
    elif damage == "other key":
        content[image - 512 : image] = header(b"d/k9.jpg", len(IMAGES[0]))
    elif damage == "longer":
        content[image - 512 : image] = header(b"d/k0.jpg", len(IMAGES[0]) - 1)
    elif damage == "no header":
        content[image - 500] ^= 1
    else:
        content = bytearray(random.Random(0).randbytes(len(content)))
    path.write_bytes(content)
    assert by_verify(manifest)
    with pytest.raises(AssertionError):
        by_training_reader(manifest)


@pytest.mark.parametrize(
    ("field", "place", "by", "message"),
    [
        ("image_offsets", 0, 512, "sample 'd/k0' has members of 1 at byte 512 and "),
        ("image_offsets", 1, -512, "sample 'd/k1' has members of "),
        ("image_bytes", 2, 1, "sample 'd/k2' has members of "),
        ("image_bytes", 0, -600, "sample 'd/k0' has members of "),
        ("offsets", 1, 512, r"sample 'd/k1' begins at byte [\d,]+, its index says"),
        ("key_bytes", 2, 1, "of the index is not in the tar"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_verify_and_training_find_an_index_that_does_not_fit_its_tar(
    field: str, place: int, by: int, message: str, several: bool, tmp_path: Path
) -> None:
    path = tmp_path / "t.tar"
    pieces = samples(file)
    pieces.insert(2, file("d/k0.left.png" if not several else "d/k0.png", b"another image"))
    path.write_bytes(b"".join([*pieces, END]))
    manifest = indexed(path, tmp_path, LabelRule(image="jpg"))
    assert isinstance(manifest, ShardManifest)
    assert by_verify(manifest) == []
    index = manifest.read_index(0)
    values = getattr(index, field).copy()
    values[place] += by
    content = encode_index(dataclasses.replace(index, **{field: values}))
    (tmp_path / "other.idx.npz").write_bytes(content)
    shard = dataclasses.replace(manifest.shards[0], index_url="other.idx.npz", index_checksum=checksum(content))
    wrong = dataclasses.replace(manifest, shards=(shard,))
    found = by_verify(wrong)
    assert len(found) == 2
    assert re.search(message, found[0])
    with pytest.raises(AssertionError):
        by_training_reader(wrong)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", ("a", "jpg")),
        ("a.left.JPG", ("a", "left.jpg")),
        ("./a.b.c", ("./a", "b.c")),
        ("d.1/a.jpg", ("d.1/a", "jpg")),
        ("a.", ("a", "")),
        (".hidden/a.jpg", (".hidden/a", "jpg")),
        ("d/.jpg", ("d/", "jpg")),
        ("d/._a.jpg", None),
        ("d/.DS_Store", None),
        (".DS_Store", None),
        ("._a.jpg", None),
        ("__MACOSX/d/._a.jpg", None),
        ("d/.gitignore", None),
        ("d.1/.a.jpg", None),
        ("__meta__", None),
        ("__a__/b.jpg", None),
        ("README", None),
        ("d.1/README", None),
        ("d/", None),
        ("", None),
    ],
)
def test_key_and_extension_are_split_as_webdataset_does_but_for_hidden_files(
    name: str, expected: tuple[str, str] | None
) -> None:
    from webdataset.tariterators import base_plus_ext

    assert split_name(name) == expected
    if expected is not None:
        key, extension = base_plus_ext(name)
        assert (key, extension.lower()) == expected


def two_images(name: str = "k{}") -> list[tuple[str, bytes]]:
    members = []
    for i in range(3):
        key = name.format(i)
        members += [
            (f"{key}.input.jpg", IMAGES[i]),
            (f"{key}.Left.PNG", noise_bytes(i)),
            (f"{key}.jpg", b"a thumbnail"),
        ]
        members += [(f"{key}.output.cls", b"%d" % i), (f"{key}.meta.json", b'{"class": {"number": %d}}' % (2 - i))]
        members += [
            (f"{key}.seg.img", noise_bytes(i + 50)),
            (f"{key}.cls", b"0"),
            (f"{key}.output.txt", b"%d" % (1 - i % 2)),
        ]
    return members


@pytest.mark.parametrize(
    ("image", "member", "labels", "field", "expected"),
    [
        ("input.jpg", "input.jpg", "output.cls", "", [0, 1, 2]),
        (".Left.png", "Left.PNG", "auto", "", [0, 0, 0]),
        ("left.png", "Left.PNG", "meta.json", "class.number", [2, 1, 0]),
        ("INPUT.JPG", "input.jpg", ".Output.TXT", "", [1, 0, 1]),
        ("seg.img", "seg.img", "cls", "", [0, 0, 0]),
        ("input.jpg", "input.jpg", "META.JSON", "class.number", [2, 1, 0]),
    ],
)
def test_image_and_label_may_be_members_with_dots(
    image: str, member: str, labels: str, field: str, expected: list[int], tmp_path: Path
) -> None:
    members = two_images()
    write_tar(tmp_path / "t.tar", members)
    manifest = indexed(tmp_path / "t.tar", tmp_path, label_rule(labels, field, (), image))
    assert isinstance(manifest, ShardManifest), manifest
    assert by_verify(manifest) == []
    wanted = {f"k{i}": (dict(members)[f"k{i}.{member}"], [label]) for i, label in enumerate(expected)}
    assert by_training_reader(manifest) == wanted
    again = packed(tmp_path / "t.tar", tmp_path, image_field=image, labels=labels, label_field=field)
    assert isinstance(again, ShardManifest), again
    assert by_repack(again, "t", list(wanted)) == wanted
    # What is packed needs no options any more: one plain image, its label in .cls.
    shard = Path(again.shard_url(0))
    assert scan_tar(str(shard)).index.labels.tolist() == again.read_index(0).labels.tolist()
    kept = extensions_in(again)
    assert kept >= {"other.jpg", "output.cls", "meta.json", "output.txt", "cls"}
    assert len(kept) == 8


@pytest.mark.parametrize(
    ("others", "kept"),
    [
        ({"png": b"p"}, {"other.png"}),
        ({"png": b"p", "gif": b"g"}, {"other.png", "other.gif"}),
        ({"png": b"p", "other.png": b"q"}, {"other.png", "other.other.png"}),
        ({"": b"p"}, set()),
        ({"_info": b"p"}, {"_info"}),
        ({"txt": b"p", "json": b"{"}, {"txt", "json"}),
        ({"json": b"[" * 100_000}, {"json"}),
        ({"x" * 120: b"p"}, {"x" * 120}),
    ],
)
def test_no_neighbour_breaks_a_sample_that_is_packed_anew(
    others: dict[str, bytes], kept: set[str], tmp_path: Path
) -> None:
    members = [(f"k.{extension}", content) for extension, content in others.items()]
    write_tar(tmp_path / "t.tar", [("k.cls", b"1"), *members, ("k.jpg", IMAGES[0])])
    again = packed(tmp_path / "t.tar", tmp_path, image_field="jpg")
    assert isinstance(again, ShardManifest), again
    with tarfile.open(again.shard_url(0)) as tar:
        found = {m.name.partition(".")[2]: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    assert set(found) == kept | {"jpg", "cls"}
    assert (found["jpg"], found["cls"]) == (IMAGES[0], b"1")
    assert {found[name] for name in kept - {"json"}} <= set(others.values())


@pytest.mark.parametrize(
    ("extensions", "wanted", "message"),
    [
        (["cls"], "", "has no image: its members are cls$"),
        (["cls", "left.jpg", "right.jpg"], "", "has no image: .*; name one with --image left.jpg"),
        (["jpg", "png"], "", "has several images; name one with --image .*: its members are jpg, png"),
        (["jpg", "cls"], "left.jpg", "has no image, which is to be its member 'left.jpg': its members are cls, jpg"),
        (["left.jpg", "cls"], "jpg", "has no image, which is to be its member 'jpg': its members are cls, left.jpg"),
        ([""], "", "has no image"),
    ],
)
def test_a_sample_without_just_one_image_says_what_it_has(extensions: list[str], wanted: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        image_of(extensions, wanted)


def test_options_for_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    assert label_rule("auto", "", (), "") == LabelRule()
    assert label_rule("auto", "a.b", (), "") == LabelRule("json", "a.b")
    for labels, field, image in (
        ("cls", "x", ""),
        ("output.txt", "x", ""),
        ("", "", ""),
        (".", "", ""),
        ("jpg", "", ".JPG"),
    ):
        with pytest.raises(ConfigError, match=r"--label"):
            label_rule(labels, field, (), image)
    with pytest.raises(ConfigError, match="--labels none"):
        open_source("x.tar", tmp_path, SourceOptions(labels="none"))
    write_tar(tmp_path / "t.tar", [("k.jpg", IMAGES[0]), ("k.output.cls", b"1")])
    refused = indexed(tmp_path / "t.tar", tmp_path)
    assert isinstance(refused, str)
    assert "has no label: no .cls or .json member; its members are jpg, output.cls" in refused


@pytest.mark.parametrize("name", ["a.TAR", "a.Tar", "a.b.TAR", "A.tar", "ü.TAR", "a.tar.TAR"])
def test_a_tar_may_end_in_capitals(name: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(b"".join([*samples(file), END]))
    for given in (tmp_path / "in", tmp_path / "in" / name):
        assert [tar.url for tar in find_tars([str(given)])] == [str(tmp_path / "in" / name)]
        assert open_source(str(given), tmp_path).kind == "tar"


@pytest.mark.parametrize("given", ["", "/*.tar", "/?.tar", "/*", "/[!x]*.tar", "/{0,1}*.tar"])
def test_hidden_tars_of_a_folder_are_left_out(given: str, tmp_path: Path) -> None:
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(b"".join([*samples(file, f"{name[0]}-{{}}"), END]))
        (tmp_path / f"._{name}").write_bytes(b"\0\5\26\7" + bytes(116))
    assert [tar.url for tar in find_tars([f"{tmp_path}{given}"])] == [f"{tmp_path}/0.tar", f"{tmp_path}/1.tar"]
    assert [tar.url for tar in find_tars([f"{tmp_path}/._0*"])] == [f"{tmp_path}/._0.tar"]
