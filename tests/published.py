"""Small archives in the true forms of published sets, by the standard library, numpy and scipy: no code of ours."""

from __future__ import annotations

import io
import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from tests.shards import noise_bytes, write_tar

# Sorted, their ids are others than the devkit's, and so are the words.
SYNSETS = {
    1: ("n02119789", "kit fox"),
    2: ("n01440764", "tench"),
    3: ("n02100735", "setter"),
    4: ("n01443537", "goldfish"),
}
WNIDS = tuple(sorted(wnid for wnid, _ in SYNSETS.values()))
TRUTH = (1, 3, 2, 2, 4, 1)
"""ILSVRC2012_ID of each validation image."""


def tar_bytes(members: Sequence[tuple[str, bytes]], mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def meta_mat() -> bytes:
    """The devkit's: a struct a synset, the last one an inner node of the tree."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    rows = [(number, wnid, words, 0) for number, (wnid, words) in SYNSETS.items()] + [(5, "n00001740", "entity", 2)]
    synsets = np.array([tuple(row) for row in rows], dtype=kinds)[:, None]
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


def devkit(truth: Sequence[object] = TRUTH) -> bytes:
    data = "ILSVRC2012_devkit_t12/data"
    text = "".join(f"{one}\n" for one in truth).encode()
    members = [(f"{data}/meta.mat", meta_mat()), (f"{data}/ILSVRC2012_validation_ground_truth.txt", text)]
    return tar_bytes(members, "w:gz")


def val_images(count: int = len(TRUTH)) -> list[tuple[str, bytes]]:
    return [(f"ILSVRC2012_val_{i:08d}.JPEG", noise_bytes(i, "JPEG")) for i in range(1, count + 1)]


def imagenet(folder: Path, *, train: bool = True, val: bool = True) -> Path:
    """A folder with the archives as they are downloaded."""
    folder.mkdir(parents=True)
    (folder / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit())
    if val:
        write_tar(folder / "ILSVRC2012_img_val.tar", val_images())
    if train:
        tars = []
        # As they lie in the true one: not in the order of the ids.
        for k, wnid in enumerate(reversed(WNIDS)):
            images = [(f"{wnid}_{i}.JPEG", noise_bytes(100 * k + i, "JPEG")) for i in range(1, 3 + k)]
            tars.append((f"{wnid}.tar", tar_bytes(images)))
        write_tar(folder / "ILSVRC2012_img_train.tar", tars, tarfile.GNU_FORMAT)
    return folder


CIFAR10 = ("airplane", "automobile", "bird")
FINE, COARSE = ("apple", "bear", "bee", "whale"), ("fruit", "animals")


def cifar_pixels(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def python2_pickle(batch: Mapping[str, Any]) -> bytes:
    """A dictionary as Python 2's cPickle wrote it: texts are bytes, an array of numpy by its old name."""
    out = b"\x80\x02}q\x01("
    for key, value in batch.items():
        out += _string(key.encode()) + _python2(value)
    return out + b"u."


def _string(raw: bytes) -> bytes:
    return b"U" + bytes([len(raw)]) + raw if len(raw) < 256 else b"T" + len(raw).to_bytes(4, "little") + raw


def _python2(value: Any) -> bytes:
    if isinstance(value, np.ndarray):
        shape = b"".join(b"J" + n.to_bytes(4, "little") for n in value.shape) + b"\x86"
        kind = (
            b"cnumpy\ndtype\nq\x02U\x02u1K\x00K\x01\x87Rq\x03(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        array = b"cnumpy.core.multiarray\n_reconstruct\nq\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87Rq\x06("
        return array + b"K\x01" + shape + kind + b"\x89" + _string(value.tobytes()) + b"tb"
    if isinstance(value, list):
        return b"](" + b"".join(_python2(one) for one in value) + b"e"
    return _string(value.encode()) if isinstance(value, str) else b"K" + bytes([value])


def cifar10_batches() -> dict[str, tuple[np.ndarray, list[int]]]:
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    return {name: (cifar_pixels(k, 2 + k % 2), [(k + i) % 3 for i in range(2 + k % 2)]) for k, name in enumerate(names)}


def cifar10(form: str) -> list[tuple[str, bytes]]:
    """Members of the archive: 'python2', 'python3' (a pickle as of today) or 'binary'."""
    if form == "binary":
        folder, names = "cifar-10-batches-bin", "".join(f"{name}\n" for name in CIFAR10) + "\n"
        members = [(f"{folder}/batches.meta.txt", names.encode())]
        for name, (pixels, labels) in cifar10_batches().items():
            records = b"".join(bytes([label]) + row.tobytes() for label, row in zip(labels, pixels, strict=True))
            members.append((f"{folder}/{name}.bin", records))
        return members
    folder = "cifar-10-batches-py"
    dump = python2_pickle if form == "python2" else lambda batch: pickle.dumps(batch, protocol=2)
    members = [(f"{folder}/batches.meta", dump({"label_names": list(CIFAR10), "num_vis": 255}))]
    for name, (pixels, labels) in cifar10_batches().items():
        files = [f"a_{i}.png" for i in range(len(labels))]
        batch = {"batch_label": f"of {name}", "labels": labels, "data": pixels, "filenames": files}
        members.append((f"{folder}/{name}", dump(batch)))
    return members


def cifar100(form: str) -> list[tuple[str, bytes]]:
    sets = {
        "train": (cifar_pixels(7, 5), [0, 3, 1, 2, 1], [0, 1, 1, 1, 1]),
        "test": (cifar_pixels(8, 2), [2, 0], [1, 0]),
    }
    if form == "binary":
        members = [
            ("cifar-100-binary/fine_label_names.txt", "\n".join(FINE).encode()),
            ("cifar-100-binary/coarse_label_names.txt", "\n".join(COARSE).encode()),
        ]
        for name, (pixels, fine, coarse) in sets.items():
            rows = zip(coarse, fine, pixels, strict=True)
            members.append(
                (f"cifar-100-binary/{name}.bin", b"".join(bytes([c, f]) + row.tobytes() for c, f, row in rows))
            )
        return members
    members = [
        ("cifar-100-python/meta", python2_pickle({"fine_label_names": [*FINE], "coarse_label_names": [*COARSE]})),
    ]
    for name, (pixels, fine, coarse) in sets.items():
        members.append(
            (f"cifar-100-python/{name}", python2_pickle({"data": pixels, "fine_labels": fine, "coarse_labels": coarse}))
        )
    return members


PETS = {"Abyssinian": 1, "american_bulldog": 2, "Bengal": 3}


def pets(folder: Path) -> Path:
    folder.mkdir(parents=True)
    images, rows = [], {"trainval": [], "test": []}
    for k, (breed, number) in enumerate(PETS.items()):
        for i in range(1, 5):
            images.append((f"images/{breed}_{i}.jpg", noise_bytes(10 * k + i, "JPEG")))
            rows["trainval" if i < 4 else "test"].append(f"{breed}_{i} {number} 1 {number}")
    images.append(("images/Abyssinian_1.mat", b"no image"))
    # The true archive has files of a Mac in it.
    images.append(("images/._Abyssinian_1.jpg", b"no image"))
    head = "#Image CLASS-ID SPECIES BREED ID\n#ID: 1:37 Class ids\n"
    lists = {**{name: "\n".join(found) + "\n" for name, found in rows.items()}}
    lists["list"] = head + lists["trainval"] + lists["test"]
    texts = [(f"annotations/{name}.txt", text.encode()) for name, text in lists.items()]
    (folder / "images.tar.gz").write_bytes(tar_bytes(images, "w:gz"))
    (folder / "annotations.tar.gz").write_bytes(tar_bytes(texts, "w:gz"))
    return folder


FLOWERS = [2, 1, 3, 1, 2, 3, 1]
FLOWER_SPLITS = {"trnid": [1, 4], "valid": [6], "tstid": [2, 3, 5, 7]}


def flowers(folder: Path, labels: Sequence[int] = FLOWERS, splits: Mapping[str, Sequence[int]] = FLOWER_SPLITS) -> Path:
    folder.mkdir(parents=True)
    images = [(f"jpg/image_{i:05d}.jpg", noise_bytes(i, "JPEG")) for i in range(1, len(FLOWERS) + 1)]
    (folder / "102flowers.tgz").write_bytes(tar_bytes(images, "w:gz"))
    # As MATLAB has them: one row, in bytes and in 16 bits.
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    savemat(folder / "setid.mat", {name: np.array([ids], np.uint16) for name, ids in splits.items()})
    return folder


def vtab(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = [(f"images/train800val200/{i:06d}.jpg", i % 3) for i in range(5)]
    tests = [(f"images/test/{i:06d}.jpg", i % 4) for i in range(4)]
    for number, (path, _) in enumerate([*rows, *tests]):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(noise_bytes(number, "JPEG"))
    lists = {"train800": rows[:4], "val200": rows[4:], "train800val200": rows, "test": tests}
    for name, listed in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{path} {label}\n" for path, label in listed))
    return folder
