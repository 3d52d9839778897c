"""`vit-dist data`: what each verb prints and writes, its exit codes, and its errors."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFilter

from tests.shards import noise_bytes, write_tar
from vit_dist.cli import data as cli
from vit_dist.cli.main import main as vit_dist
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.seeding import hash64
from vit_dist.data.dedup import NearHashes
from vit_dist.data.index import encode_index
from vit_dist.data.manifest import ShardManifest, checksum, encode_manifest, read_manifest
from vit_dist.data.order import GlobalOrder, resolve_lanes
from vit_dist.data.sets import open_training_set
from vit_dist.data.subset import Subset, key_hashes, select, select_balanced


def picture(number: int, size: int = 64) -> Image.Image:
    """A smooth picture of its own, as photographs are."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path, quality: int = 90) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=quality)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 images of three classes (30, 20, 10) in shards of 16."""
    root = tmp_path_factory.mktemp("packed")
    number = 0
    for name, count in (("ant", 30), ("bee", 20), ("cow", 10)):
        for i in range(count):
            save(picture(number), root / "src" / name / f"{i:02d}.jpg")
            number += 1
    assert cli.main(["pack", str(root / "src"), str(root / "set"), "--samples-per-shard", "16"]) == 0
    return root / "set"


def encoded(image: Image.Image, form: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def lines(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    capsys.readouterr()
    assert cli.main([str(a) for a in argv]) == 0
    return capsys.readouterr().out.splitlines()


def keys_of(manifest: ShardManifest) -> list[str]:
    indexes = [manifest.read_index(shard) for shard in range(len(manifest.shards))]
    return [index.key(i) for index in indexes for i in range(index.num_samples)]


def test_order_prints_keys_alone_each_once_an_epoch(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epoch = lines(capsys, "order", str(packed))
    assert sorted(epoch) == sorted(keys_of(read_manifest(str(packed))))
    assert lines(capsys, "order", str(packed / "manifest.json"), "--epoch", "1") != epoch
    assert lines(capsys, "order", str(packed), "--seed", "1") != epoch


def test_order_is_that_of_the_stream(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = read_manifest(str(packed))
    subset = select(manifest, 50, 3)
    lanes, window = resolve_lanes(50, subset.num_bytes, 4, 5)
    order = GlobalOrder(subset.counts, seed=7, lanes=lanes, window=window)
    expected = []
    for position in range(50 + 13, 50 + 13 + 60):
        _, shard, sample = order.locate(position)
        real_shard, real_sample = subset.sample(shard, sample)
        expected.append(manifest.read_index(real_shard).key(real_sample))
    options = ["--subset", "50", "--subset-seed", "3", "--lanes", "4", "--window", "5", "--seed", "7", "--epoch", "1"]
    assert lines(capsys, "order", str(packed), *options, "--start", "13", "--count", "60") == expected


def test_order_goes_on_into_the_next_epoch(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (lines(capsys, "order", str(packed), "--epoch", e) for e in "01")
    assert lines(capsys, "order", str(packed), "--start", "55", "--count", "9") == first[55:] + second[:4]
    assert lines(capsys, "order", str(packed), "--start", "60") == second
    assert lines(capsys, "order", str(packed), "--start", "75", "--count", "2") == second[15:17]
    assert lines(capsys, "order", str(packed), "--start", "58") == first[58:]
    assert lines(capsys, "order", str(packed), "--count", "0") == []


def test_order_takes_counts_with_units_and_prints_a_digest(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "".join(f"{k}\n" for k in lines(capsys, "order", str(packed), "--start", "0.01k", "--count", "20"))
    assert text.count("\n") == 20
    digest = lines(capsys, "order", str(packed), "--start", "10", "--count", "20", "--digest")
    assert digest == [hashlib.sha256(text.encode()).hexdigest()]


def test_order_of_a_set_in_its_own_order_draws_its_subset_by_hash(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["index", str(packed), "--out", str(tmp_path / "m.json")]) == 0
    small, large = (set(lines(capsys, "order", str(tmp_path / "m.json"), "--subset", n)) for n in ("20", "40"))
    assert len(small) == 20
    assert small < large


def test_order_of_a_recipe_is_that_of_the_same_options(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"data.train={packed}", "data.val=", "data.subset=50", "data.lanes=4", "seed=7"]
    options = ["--subset", "50", "--lanes", "4", "--seed", "7"]
    place = ["--epoch", "1", "--start", "13", "--count", "60"]
    assert lines(capsys, "order", "demo", *words, *place) == lines(capsys, "order", str(packed), *options, *place)
    with pytest.raises(ConfigError, match=r"--seed: demo is a recipe; give seed=7"):
        cli.main(["order", "demo", *words, "--seed", "7"])
    with pytest.raises(ConfigError, match=r"seed=7: k=v is for a recipe, and .* is neither a \.yaml file nor"):
        cli.main(["order", str(packed), "seed=7"])


def test_order_of_a_mixture_names_the_set_of_each_example_as_training_reads_it(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["index", str(packed), "--out", str(tmp_path / "other.json")]) == 0  # the same, in its own order
    recipe = tmp_path / "mixed.yaml"
    sets = {"big": {"train": str(packed), "weight": 3}, "few": {"train": str(tmp_path / "other.json"), "subset": 20}}
    data = {"train": "", "val": "", "mixture": sets, "window": 5}
    cadences = {"horizon": "10 steps", "eval": {"every": "10 steps"}, "checkpoint": {"every": "10 steps"}}
    recipe.write_text(json.dumps({"base": "demo", **cadences, "data": data}))
    mixed = open_training_set(load_recipe(str(recipe)))
    expected = []
    for position in range(150, 350):
        _, shard, sample = mixed.order.locate(position)
        part, own = mixed.parts.find(shard)
        real_shard, real_sample = part.subset.sample(own, sample)
        expected.append(f"{part.name}\t{part.manifest.read_index(real_shard).key(real_sample)}")
    assert lines(capsys, "order", str(recipe), "--start", "150", "--count", "200") == expected
    names = Counter(line.partition("\t")[0] for line in expected)
    assert names == {"big": 150, "few": 50}
    assert len(lines(capsys, "order", str(recipe), "--start", "70")) == 80
    with pytest.raises(ConfigError, match="--epoch 2: the sets of a mixture have epochs of their own; give --start"):
        cli.main(["order", str(recipe), "--epoch", "2"])


def test_order_starts_fast_without_torch_and_bears_a_closed_pipe(packed: Path) -> None:
    code = (
        "import sys; from vit_dist.cli.main import main; code = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "data", "order", str(packed), "--count", "200k"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    # 200,000 lines are more than a pipe holds: the first is here while the process still writes.
    assert process.stdout.readline().strip()
    assert process.poll() is None
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(30) == 0, said
    assert "Traceback" not in said
    assert "Broken" not in said


def test_help_of_every_verb_gives_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as caught:
            cli.main([verb, "--help"])
        assert caught.value.code == 0
        text = capsys.readouterr().out
        assert "examples:" in text
        assert f"vit-dist data {verb}" in text.partition("examples:")[2]
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert [verb for verb in cli.VERBS if f"\n  {verb}" not in text] == []


def test_mistakes_on_the_command_line_are_named(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match="unknown verb 'ordre'; did you mean 'order'"):
        cli.main(["ordre"])
    for argv, message in (
        (["order", str(packed), "--count", "many"], "expected a count such as 30000 or '30k', got 'many'"),
        (["pack", "a", "b", "--max-bad", "200%"], "expected a fraction between 0 and 100%"),
        (["pack", "a", "b", "--part", "5/4"], "expected a part such as 3/16"),
        (["pack", "a", "b", "--bytes-per-shard", "1 parsec"], "expected a size such as"),
    ):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"data\.subset=61 examples cannot be taken from 60"):
        cli.main(["order", str(packed), "--subset", "61"])
    with pytest.raises(ConfigError, match="lies inside"):
        cli.main(["pack", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(ConfigError, match="--quality 101"):
        cli.main(["pack", str(packed), str(tmp_path / "x"), "--quality", "101"])


def test_max_bad_reads_percent_and_fractions_and_sets_the_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in range(50):
        save(picture(i, 16), tmp_path / "src" / "a" / f"{i}.jpg")
    (tmp_path / "src" / "a" / "bad.jpg").write_bytes(b"bad")
    assert vit_dist(["data", "pack", str(tmp_path / "src"), str(tmp_path / "out")]) == 1
    assert "1 of 51 images cannot be read, more than --max-bad 0.01 allows" in capsys.readouterr().err
    assert vit_dist(["data", "pack", str(tmp_path / "src"), str(tmp_path / "out"), "--max-bad", "2%"]) == 0
    assert "left out 1 unreadable image;" in capsys.readouterr().err
    assert vit_dist(["data", "pack", str(tmp_path / "src"), str(tmp_path / "new"), "--max-bad", "0.02"]) == 0


def test_parts_are_packed_and_merged_on_the_command_line(packed: Path, tmp_path: Path) -> None:
    for part in ("0/2", "1/2"):
        argv = ["pack", str(packed.parent / "src"), str(tmp_path / "set"), "--samples-per-shard", "16", "--part", part]
        assert cli.main(argv) == 0
    assert cli.main(["merge", str(tmp_path / "set")]) == 0
    assert (tmp_path / "set" / "manifest.json").read_bytes() == (packed / "manifest.json").read_bytes()


def test_info_counts_classes_and_draws_a_grid(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(lines(capsys, "info", str(packed), "--grid", str(tmp_path / "g.png"), "--columns", "4"))
    assert "examples     60" in text
    assert "shards       4 of 12 to 16 examples" in text
    for count, name in ((30, "0 ant"), (20, "1 bee"), (10, "2 cow")):
        assert f"{count}  {name}" in text
    assert "of 60 random images: shorter side 64 to 64" in text
    assert "JPEG 100%" in text
    with Image.open(tmp_path / "g.png") as grid:
        assert grid.size == (404, 460)
        assert len(np.unique(np.asarray(grid).reshape(-1, 3), axis=0)) > 1000


def damage(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def copy_set(packed: Path, to: Path) -> Path:
    to.mkdir()
    for path in packed.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    return to


def test_verify_is_content_with_what_was_packed(packed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = lines(capsys, "verify", str(packed))
    assert "bytes and indexes of 4 shards, 60 examples, are right" in line


def test_verify_images_names_those_that_training_would_replace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = [encoded(picture(i), "JPEG") for i in range(3)]
    bad = {"cut": good[0][:-40], "float": encoded(Image.new("F", (9, 9)), "TIFF"), "icon": encoded(picture(1), "ICO")}
    members = [
        *((f"good{i}.jpg", content) for i, content in enumerate(good)),
        *((f"{n}.jpg", c) for n, c in bad.items()),
    ]
    write_tar(tmp_path / "a.tar", [m for n, c in members for m in ((n, c), (f"{n.partition('.')[0]}.cls", b"1"))])
    assert cli.main(["index", str(tmp_path / "a.tar"), "--out", str(tmp_path / "m.json")]) == 0
    assert "bytes and indexes" in lines(capsys, "verify", str(tmp_path / "m.json"))[0]
    with pytest.raises(DataError, match="1 of 1 shard is not what the manifest says, or holds bad images"):
        cli.main(["verify", str(tmp_path / "m.json"), "--images"])
    found = capsys.readouterr().out.splitlines()
    assert len(found) == 3
    for name, reason in (("cut", "truncated"), ("float", "floating-point"), ("icon", "not an image of a known format")):
        assert any(f"the image of sample '{name}' is bad: " in line and reason in line for line in found)


def test_verify_names_every_shard_that_changed(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_set(packed, tmp_path / "set")
    damage(folder / "shard-000000.tar", 2000, b"!!!!")
    (folder / "shard-000001.tar").write_bytes((folder / "shard-000001.tar").read_bytes()[:-4096])
    damage(folder / "shard-000002.idx.npz", 300, b"!!!!")
    (folder / "shard-000003.tar").unlink()
    capsys.readouterr()
    with pytest.raises(DataError, match="4 of 4 shards are not what the manifest says"):
        cli.main(["verify", str(folder)])
    text = capsys.readouterr().out
    assert "shard-000000.tar: has checksum" in text
    assert "shard-000001.tar: has " in text
    assert "shard-000001.tar: at byte" in text
    assert "shard-000002.idx.npz: the index has checksum" in text
    assert "shard-000003.tar: no such file" in text
    assert "restore shard-000000.tar from its source" in text


@pytest.mark.parametrize(("image", "labels"), [("left.jpg", "output.cls"), (".Left.JPG", "OUTPUT.CLS")])
def test_image_and_label_members_with_dots_are_named_alike_to_index_and_pack(
    image: str, labels: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    members = []
    for i in range(4):
        members += [
            (f"k{i}.left.jpg", noise_bytes(i, "JPEG")),
            (f"k{i}.right.jpg", b""),
            (f"k{i}.output.cls", b"%d" % i),
        ]
    write_tar(tmp_path / "t.tar", [*members, ("bad.left.jpg", b"x")])
    tar, out, packed = (str(tmp_path / name) for name in ("t.tar", "m.json", "packed"))
    for argv in (["index", tar, "--out", out, "--image", image], ["pack", tar, packed, "--image-field", image]):
        assert "4 examples of 4 classes" in lines(capsys, *argv, "--labels", labels, "--skip-bad")[0]
    assert "are right" in lines(capsys, "verify", out)[0]
    assert sorted(lines(capsys, "order", out)) == ["k0", "k1", "k2", "k3"]
    assert sorted(lines(capsys, "order", packed)) == ["t/k0", "t/k1", "t/k2", "t/k3"]


def test_verify_names_samples_that_lie_elsewhere(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_set(packed, tmp_path / "set")
    manifest = read_manifest(str(folder))
    first, second = manifest.shards[:2]
    swapped = dataclasses.replace(first, index_url=second.index_url, index_checksum=second.index_checksum)
    changed = dataclasses.replace(manifest, shards=(swapped, *manifest.shards[1:]))
    (folder / "manifest.json").write_bytes(encode_manifest(changed))
    with pytest.raises(DataError, match="1 of 4 shards"):
        cli.main(["verify", str(folder)])
    text = capsys.readouterr().out
    assert text.count("of the index is not in the tar") == 5
    assert "and 11 more samples" in text
    assert "tar and index do not belong together" in text


def test_a_manifest_edited_by_hand_is_refused(packed: Path, tmp_path: Path) -> None:
    folder = copy_set(packed, tmp_path / "set")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"nsamples": 16', '"nsamples": 15', 1))
    with pytest.raises(DataError, match="edited by hand"):
        cli.main(["verify", str(folder)])


def test_a_subset_manifest_holds_the_subset_and_copies_no_tar(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {n: lines(capsys, "subset", str(packed), str(n)) for n in (20, 40)}
    assert keys[40][:20] == keys[20]
    lines(capsys, "subset", str(packed), "40", "--out", str(tmp_path / "s" / "m.json"))
    made = read_manifest(str(tmp_path / "s" / "m.json"))
    assert keys_of(made) == keys[40]
    assert made.shuffled
    assert sorted(p.name for p in (tmp_path / "s").rglob("*") if p.is_file()) == ["000002.idx.npz", "m.json"]
    assert lines(capsys, "subset", str(tmp_path / "s" / "m.json"), "20") == keys[20]
    lines(capsys, "verify", str(tmp_path / "s" / "m.json"))
    with pytest.raises(ConfigError, match="would overwrite the manifest"):
        cli.main(["subset", str(packed), "20", "--out", str(packed / "manifest.json")])


def chosen_keys(manifest: ShardManifest, subset: Subset) -> set[tuple[int, str]]:
    assert subset.chosen is not None
    return {
        (int(shard), manifest.read_index(int(shard)).key(int(i)))
        for shard, samples in zip(subset.shards, subset.chosen, strict=True)
        for i in samples
    }


@pytest.mark.parametrize("shuffled", [True, False])
def test_balanced_subsets_nest_and_are_balanced(packed: Path, shuffled: bool) -> None:
    manifest = dataclasses.replace(read_manifest(str(packed)), shuffled=shuffled)
    before: set[tuple[int, str]] = set()
    for n in (1, 2, 3, 4, 11, 20, 30):
        found = chosen_keys(manifest, select_balanced(manifest, n, seed=5))
        counts = [sum(key.startswith(name) for _, key in found) for name in ("ant", "bee", "cow")]
        assert sum(counts) == n
        assert max(counts) - min(counts) <= 1
        assert before < found
        before = found


def test_a_class_too_small_to_balance_is_named_with_what_can_be_done(packed: Path) -> None:
    with pytest.raises(ConfigError, match=r"class 2 \(cow\) has only 10; at most 30 can"):
        cli.main(["subset", str(packed), "40", "--balanced", "--out", "x.json"])


def test_keys_are_hashed_as_one_by_one(packed: Path) -> None:
    from vit_dist.data.index import IndexedSample, build_index

    keys = ["", "a", "12345678", "123456789", "x" * 40, "ü" * 5]
    index = build_index([IndexedSample(k, 0, 0, 0, []) for k in keys], 0)
    expected = []
    for key in keys:
        raw = key.encode()
        words = [int.from_bytes(raw[i : i + 8], "little") for i in range(0, len(raw), 8)]
        expected.append(hash64(77, len(raw), *words))
    assert key_hashes(index, 77).tolist() == expected


def test_near_hashes_finds_what_comparing_all_pairs_finds() -> None:
    draws = np.random.default_rng(0)
    known = draws.integers(0, 1 << 63, 300, dtype=np.uint64) * np.uint64(2)
    asked = known[draws.integers(0, 300, 400)].copy()
    for i in range(400):
        for bit in draws.integers(0, 64, i % 9):
            asked[i] ^= np.uint64(1) << np.uint64(bit)
    every = np.bitwise_count(asked[:, None] ^ known[None, :])
    for distance in (0, 1, 4, 7):
        rows, _, distances = NearHashes(known, distance).find(asked)
        near = np.flatnonzero(every.min(axis=1) <= distance)
        assert rows.tolist() == near.tolist()
        assert distances.tolist() == every.min(axis=1)[near].tolist()


def test_dedup_leaves_out_resized_and_recompressed_copies(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i in (3, 17, 41):
        save(picture(i).resize((48, 48), Image.Resampling.LANCZOS), tmp_path / "src" / "a" / f"{i}.jpg", 75)
    save(picture(5).filter(ImageFilter.GaussianBlur(0.5)), tmp_path / "src" / "a" / "5.jpg")
    for i in range(100, 110):
        save(picture(i), tmp_path / "src" / "a" / f"{i}.jpg")
    cli.main(["pack", str(tmp_path / "src"), str(tmp_path / "val")])
    out = tmp_path / "clean" / "m.json"
    (line,) = lines(capsys, "dedup", str(packed), "--against", str(tmp_path / "val"), "--out", str(out))
    assert "4 of 60 examples left out" in line
    told = [json.loads(text) for text in (tmp_path / "clean" / "m.excluded.jsonl").read_text().splitlines()]
    assert {(t["key"], t["same_as"]) for t in told} == {
        ("ant/03", "a/3"),
        ("ant/17", "a/17"),
        ("bee/11", "a/41"),
        ("ant/05", "a/5"),
    }
    original, made = read_manifest(str(packed)), read_manifest(str(out))
    assert set(keys_of(original)) - set(keys_of(made)) == {"ant/03", "ant/17", "bee/11", "ant/05"}
    assert made.fingerprint != original.fingerprint
    assert made.excluded is not None
    assert (made.excluded["fingerprint"], made.excluded["num_samples"]) == (original.fingerprint, 4)
    assert made.shuffled
    lines(capsys, "verify", str(out))
    assert sorted(lines(capsys, "order", str(out))) == sorted(keys_of(made))
    for shard in range(len(made.shards)):
        index, tar = made.read_index(shard), Path(made.shard_url(shard)).read_bytes()
        for i in range(index.num_samples):
            begin = int(index.image_offsets[i])
            with Image.open(io.BytesIO(tar[begin : begin + int(index.image_bytes[i])])) as image:
                image.load()


def test_dedup_without_imagehash_names_the_extra(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(ConfigError, match=r"pip install 'vit_dist\[data\]'"):
        cli.main(["dedup", str(packed), "--against", str(packed), "--out", str(tmp_path / "m.json")])
    with pytest.raises(ConfigError, match="--distance 16"):
        cli.main(["dedup", str(packed), "--against", "x", "--out", "y", "--distance", "16"])


def _with_labels(folder: Path, name: str, labels: Any) -> None:
    """Write the first shard's index anew with other labels, and a manifest that fits it."""
    manifest = read_manifest(str(folder / name))
    index = dataclasses.replace(manifest.read_index(0), labels=labels(manifest.read_index(0).labels))
    (folder / "forged.npz").write_bytes(encode_index(index))
    forged = dataclasses.replace(
        manifest.shards[0], index_url="forged.npz", index_checksum=checksum(encode_index(index))
    )
    old = folder / manifest.shards[0].index_url
    # What lies beside an index speaks of it only where the checksum fits.
    beside = old.with_name(old.name.removesuffix(".idx.npz") + ".json")
    if beside.exists():
        entry = json.loads(beside.read_bytes())
        entry["shard"]["index_checksum"] = forged.index_checksum
        (folder / "forged.npz").rename(folder / "forged.idx.npz")
        (folder / "forged.json").write_text(json.dumps(entry))
        forged = dataclasses.replace(forged, index_url="forged.idx.npz")
    changed = dataclasses.replace(manifest, shards=(forged, *manifest.shards[1:]))
    (folder / name).write_bytes(encode_manifest(changed))


def test_verify_compares_labels_with_those_of_packed_tars(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = copy_set(packed, tmp_path / "set")
    _with_labels(folder, "manifest.json", lambda labels: (labels + 1) % 2)
    with pytest.raises(DataError, match="1 of 4 shards"):
        cli.main(["verify", str(folder)])
    text = capsys.readouterr().out
    assert re.search(r"shard-000000\.tar: sample '.*' has the labels [01], its index says [01]", text)
    assert "more samples with other labels" in text


@pytest.mark.parametrize("labels", [("cls", b"%d"), ("json", b'{"labels": [%d]}'), ("y.txt", b"class%d")])
def test_verify_compares_labels_by_the_rule_that_indexed_them(
    labels: tuple[str, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extension, text = labels
    members = [(f"{i}.{e}", c) for i in range(4) for e, c in (("jpg", b"x"), (extension, text % (i % 3)))]
    write_tar(tmp_path / "t.tar", members)
    (tmp_path / "names.txt").write_text("class0\nclass1\nclass2\n")
    classes = ["--classes", str(tmp_path / "names.txt")] if extension == "y.txt" else []
    out = str(tmp_path / "m.json")
    assert cli.main(["index", str(tmp_path / "t.tar"), "--out", out, "--labels", extension, *classes]) == 0
    assert "are right" in lines(capsys, "verify", out)[0]
    _with_labels(tmp_path, "m.json", lambda labels: labels * 0)
    with pytest.raises(DataError, match="1 of 1 shard is"):
        cli.main(["verify", out])
    text_out = capsys.readouterr().out
    assert "sample '1' has the labels 1, its index says 0" in text_out
    assert "sample '0'" not in text_out
