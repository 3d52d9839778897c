"""MNIST's IDX files, one of images and one of labels for each split. No torch."""

from __future__ import annotations

import gzip
import io
import shutil
from collections.abc import Iterator
from pathlib import Path

from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.files import explained
from vit_dist.data.labels import read_classes
from vit_dist.data.pack.items import Item
from vit_dist.data.pack.sources import Source

_IDX_PARTS = {"train": "train", "test": "t10k", "t10k": "t10k", "val": "t10k"}


def find_idx(folder: Path) -> list[str]:
    """Which parts ('train', 't10k') of an IDX dataset a folder holds."""
    return [part for part in ("train", "t10k") if _idx_file(folder, part, "images-idx3-ubyte")]


def _idx_file(folder: Path, part: str, kind: str) -> Path | None:
    for suffix in ("", ".gz"):
        path = folder / f"{part}-{kind}{suffix}"
        if path.is_file():
            return path
    return None


def idx_source(folder: Path, part: str, work: Path) -> Source:
    """MNIST's format: {train,t10k}-{images-idx3,labels-idx1}-ubyte, gzipped or not, in one folder.

    Grey images, written as PNG. `classes.txt` beside the files names the classes, one a line. Keys are 'train-00012'.

    Args:
        folder: a local one.
        part: 'train' or 't10k' (also 'test', 'val'); '' where there is only one.
        work: where the pixels of a gzipped file are unpacked.

    Raises:
        ConfigError: no such part, or none chosen.
        DataError: files missing, damaged or not fitting together.
    """
    parts = find_idx(folder)
    if not parts:
        raise DataError(f"{folder}: no IDX files; expected train-images-idx3-ubyte[.gz] or t10k-images-idx3-ubyte[.gz]")
    if not part:
        if len(parts) > 1:
            raise ConfigError(f"{folder} holds two sets; choose one with --split-name train or --split-name test")
        part = parts[0]
    if part not in _IDX_PARTS:
        raise ConfigError(f"--split-name {part!r}: unknown set of IDX files{did_you_mean(part, _IDX_PARTS)}")
    part = _IDX_PARTS[part]
    images, labels = (_idx_file(folder, part, kind) for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    if images is None or labels is None:
        missing = "images-idx3-ubyte" if images is None else "labels-idx1-ubyte"
        raise DataError(f"{folder}: {part}-{missing}[.gz] is missing; an IDX set is two files")
    label_header, label_bytes = _read_idx(labels, 1)
    shape, pixels = _unpack_idx(images, work)
    if label_header[0] != shape[0]:
        raise DataError(
            f"{images} has {shape[0]} images, {labels} has {label_header[0]} labels; they do not fit together"
        )
    classes = _class_names(folder / "classes.txt")
    num_classes = max(len(classes), max(label_bytes, default=0) + 1)
    if classes and num_classes > len(classes):
        raise DataError(f"{labels}: label {num_classes - 1}, but classes.txt names only {len(classes)} classes")
    size = shape[1] * shape[2]

    def items() -> Iterator[Item]:
        digits = max(5, len(str(shape[0] - 1)))
        for i, label in enumerate(label_bytes):
            place = f"{images}: image {i}"
            yield Item(f"{part}-{i:0{digits}d}", str(pixels[0]), pixels[1] + i * size, size, (label,), where=place)

    name = f"{folder.resolve().name}-{'train' if part == 'train' else 'test'}"
    return Source("idx", name, "", items, classes, num_classes, pixels=(shape[1], shape[2]))


def _class_names(path: Path) -> tuple[str, ...]:
    return read_classes(path) if path.is_file() else ()


def _read_idx(path: Path, dimensions: int) -> tuple[list[int], bytes]:
    """Shape and bytes of a small IDX file."""
    buffer = io.BytesIO()
    with _opened_idx(path) as file:
        shape = _idx_header(path, file.read(4 + 4 * dimensions), dimensions)
        shutil.copyfileobj(file, buffer)
    if buffer.tell() != shape[0]:
        raise DataError(f"{path}: {buffer.tell()} bytes of data, its header says {shape[0]}; the file is damaged")
    return shape, buffer.getvalue()


def _unpack_idx(path: Path, work: Path) -> tuple[list[int], tuple[Path, int]]:
    """Shape of an IDX file of images; a file that holds its pixels, and where they begin in it."""
    with _opened_idx(path) as file:
        shape = _idx_header(path, file.read(16), 3)
        expected = shape[0] * shape[1] * shape[2]
        if path.suffix != ".gz":
            target, offset, num_bytes = path.resolve(), 16, path.stat().st_size - 16
        else:
            target, offset = work / f"{path.stem}.pixels", 0
            with explained(str(target), "written"):
                work.mkdir(parents=True, exist_ok=True)
                with target.open("wb") as out:
                    shutil.copyfileobj(file, out, 1 << 20)
            num_bytes = target.stat().st_size
    if num_bytes != expected or 0 in shape:
        raise DataError(
            f"{path}: {num_bytes} bytes of pixels, but its header says {shape[0]} images of {shape[1]} x {shape[2]}; "
            f"the file is damaged; copy it again"
        )
    return shape, (target, offset)


class _opened_idx:  # noqa: N801 - used as a function
    """An IDX file open for reading, gzipped or not; damage becomes a DataError."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> io.BufferedIOBase:
        with explained(str(self.path), "read"):
            self._file: io.BufferedIOBase = gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb")
        return self._file

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._file.close()
        if isinstance(error, EOFError | gzip.BadGzipFile | OSError) or type(error).__name__ == "error":
            raise DataError(f"{self.path}: damaged: {error}; copy it again") from None


def _idx_header(path: Path, header: bytes, dimensions: int) -> list[int]:
    if len(header) != 4 + 4 * dimensions or header[:4] != bytes([0, 0, 8, dimensions]):
        raise DataError(
            f"{path}: not an IDX file of bytes in {dimensions} dimensions (it begins with "
            f"{header[:4].hex()}); check the file"
        )
    return [int.from_bytes(header[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
