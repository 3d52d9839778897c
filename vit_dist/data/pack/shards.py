"""Pack one shard: fetch, check and perhaps resize its images, write the tar, index it. No torch."""

from __future__ import annotations

import contextlib
import errno
import io
import itertools
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, cast

from vit_dist.core.errors import DataError
from vit_dist.core.files import explained, file_system, is_remote, join_url, local_path, read_bytes, redact, write_bytes
from vit_dist.data.index import encode_index
from vit_dist.data.manifest import Shard, checksum
from vit_dist.data.pack.items import Catalogue, Item, shuffled_ordinals
from vit_dist.data.tarindex import IMAGE_EXTENSIONS, LabelRule, TarScanner, scan_file

RECEIPTS = ".pack"
# Member extension of each image format, and the formats that are accepted at all.
FORMATS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with more pictures behind it, as some cameras write
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tif",
    "PPM": "ppm",
}
_OPENED = [name for name in FORMATS if name != "MPO"]  # Pillow opens those as JPEG
_ORIENTATION = 0x0112  # EXIF's tag
_FETCHES_IN_FLIGHT = 16
_FETCH_ATTEMPTS = 3


@dataclass(frozen=True)
class ImageOptions:
    """What happens to an image; by default its original bytes are kept.

    Attributes:
        resize_shorter: pixels that the shorter side is reduced to, or None.
        resize_longer: pixels that the longer side is reduced to, or None.
        quality: of the JPEG that a resized image is written as; None: only resized images are written anew, at 90.
        upright: turn images as their EXIF orientation says; those that are turned are written anew.
    """

    resize_shorter: int | None = None
    resize_longer: int | None = None
    quality: int | None = None
    upright: bool = False


@dataclass(frozen=True)
class Job:
    """What all shards of one packing share.

    Attributes:
        pixels: (rows, columns) where items are raw pixels.
        image_member: where items are samples of a tar: the extension of the image, '' for the only one; else None.
    """

    dest: str
    work: Path
    catalogue: tuple[Path, int, str, int]
    base: str
    pixels: tuple[int, int] | None
    seed: int
    images: ImageOptions
    image_member: str | None = None


@dataclass(frozen=True)
class Task:
    """One shard: `folder`/shard-`number`, the places [first, first + count) of the packed set."""

    folder: str
    number: int
    first: int
    count: int

    @property
    def stem(self) -> str:
        """Path of the shard in the destination, without an extension."""
        name = f"shard-{self.number:06d}"
        return f"{self.folder}/{name}" if self.folder else name

    @property
    def receipt(self) -> str:
        """Path of its receipt in the destination."""
        return f"{RECEIPTS}/{self.stem.replace('/', '-')}.json"


@dataclass(frozen=True)
class Receipt:
    """What became of one shard: its entry of the manifest and the images that were left out, (place, reason)."""

    shard: Shard
    bad: tuple[tuple[str, str], ...]
    max_labels: int
    max_label: int

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes) -> Receipt:
        """From JSON. Raises ValueError, KeyError or TypeError where it is damaged."""
        raw = json.loads(content)
        bad = tuple((place, reason) for place, reason in raw["bad"])
        return cls(Shard(**raw["shard"]), bad, raw["max_labels"], raw["max_label"])


class BadImageError(Exception):
    """An image that cannot be used, and why."""


def check_image(content: bytes, options: ImageOptions) -> tuple[bytes, str]:
    """Decode an image whole; its bytes (new ones where it is resized) and its extension.

    Raises:
        BadImageError: truncated, damaged, or not an image of a known format.
    """
    from PIL import Image, ImageOps

    if not content:
        raise BadImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd EXIF data and large images are not the images' fault
            with Image.open(io.BytesIO(content), formats=_OPENED) as opened:
                opened.load()
                form, image = FORMATS[opened.format or ""], cast(Image.Image, opened)
                if options.upright and image.getexif().get(_ORIENTATION, 1) in range(2, 9):
                    image, content = ImageOps.exif_transpose(image), b""
                return _resized(image, content, options), form if _is_kept(image, content, options) else "jpg"
    except Exception as error:
        reason = str(error).replace("<_io.BytesIO object at ", "<")
        if type(error).__name__ == "UnidentifiedImageError":
            reason = "not an image of a known format"
        raise BadImageError(reason or type(error).__name__) from None


def _target_size(size: tuple[int, int], options: ImageOptions) -> tuple[int, int] | None:
    width, height = size
    scale = 1.0
    if options.resize_shorter is not None:
        scale = min(scale, options.resize_shorter / min(width, height))
    if options.resize_longer is not None:
        scale = min(scale, options.resize_longer / max(width, height))
    return None if scale == 1.0 else (max(1, round(width * scale)), max(1, round(height * scale)))


def _is_kept(image: Any, content: bytes, options: ImageOptions) -> bool:
    """The image's own bytes are what is packed; none are left of one that was turned."""
    return bool(content) and options.quality is None and _target_size(image.size, options) is None


def _resized(image: Any, content: bytes, options: ImageOptions) -> bytes:
    if _is_kept(image, content, options):
        return content
    from PIL import Image

    mode = "L" if image.mode in {"1", "L", "I;16", "I"} else "RGB"
    reduced = image.convert(mode)
    target = _target_size(image.size, options)
    if target is not None:
        reduced = reduced.resize(target, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    reduced.save(buffer, "JPEG", quality=options.quality if options.quality is not None else 90)
    return buffer.getvalue()


def png_from_pixels(pixels: bytes, shape: tuple[int, int]) -> bytes:
    """A grey PNG of raw pixels, rows x columns."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.frombytes("L", (shape[1], shape[0]), pixels).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def split_sample(content: bytes, image_member: str) -> tuple[bytes, dict[str, bytes]]:
    """The image and the other members of a sample, from its part of a tar.

    Raises:
        BadImageError: there is no image, or more than one.
    """
    import tarfile

    members: dict[str, bytes] = {}
    images: list[str] = []
    with tarfile.open(fileobj=io.BytesIO(content + bytes(1024))) as tar:
        for entry in tar:
            file = tar.extractfile(entry) if entry.isreg() else None
            if file is not None:
                extension = entry.name.rpartition("/")[2].partition(".")[2].lower()
                members[extension] = file.read()
                if extension in IMAGE_EXTENSIONS and (not image_member or extension == image_member):
                    images.append(extension)
    if len(images) != 1:
        raise BadImageError(f"{len(images)} images in the sample")
    image = members.pop(images[0])
    return image, {k: v for k, v in members.items() if k != "cls"}


def with_record(item: Item, others: dict[str, bytes]) -> Item:
    """The item with what the sample's `.json` tells as its metadata; that member is written anew."""
    record = others.pop("json", None)
    if record is None:
        return item
    try:
        meta = json.loads(record)
    except ValueError:
        meta = record.decode("utf-8", "replace")
    return replace(item, meta={**(meta if isinstance(meta, dict) else {"json": meta}), **(item.meta or {})})


def sample_members(item: Item) -> dict[str, bytes]:
    """The members of a sample besides its image.

    One hard label is `.cls`. Several, or soft ones, are `.json`: {"labels": [...], "weights": [...]}. What else the
    source tells of an image stands in the same `.json`.
    """
    single = len(item.labels) == 1 and item.weights is None
    members: dict[str, bytes] = {}
    record: dict[str, Any] = dict(item.meta or {})
    if single:
        members["cls"] = str(item.labels[0]).encode()
    else:
        record["labels"] = list(item.labels)
        if item.weights is not None:
            record["weights"] = list(item.weights)
    if record:
        members["json"] = json.dumps(record, sort_keys=True).encode()
    return members


class Fetcher:
    """Reads the bytes of items: files, parts of files, or URLs, the last several at a time."""

    def __init__(self, base: str) -> None:
        self.base = base
        self._files: dict[str, int] = {}

    def fetch_all(self, items: Iterable[Item]) -> Iterator[tuple[Item, bytes | DataError]]:
        """Items with their bytes, or with the error in their place, in the order given."""
        iterator = iter(items)
        first = next(iterator, None)
        if first is None:
            return
        items = itertools.chain([first], iterator)
        if not is_remote(join_url(self.base, first.url)):
            for item in items:
                yield item, self._try(item)
            return
        with ThreadPoolExecutor(_FETCHES_IN_FLIGHT, thread_name_prefix="fetch") as pool:
            waiting: list[tuple[Item, Future[bytes | DataError]]] = []
            for item in items:
                waiting.append((item, pool.submit(self._try, item)))
                if len(waiting) >= 2 * _FETCHES_IN_FLIGHT:
                    done, future = waiting.pop(0)
                    yield done, future.result()
            for done, future in waiting:
                yield done, future.result()

    def _try(self, item: Item) -> bytes | DataError:
        url = join_url(self.base, item.url)
        attempts = _FETCH_ATTEMPTS if is_remote(url) else 1
        for attempt in range(1, attempts + 1):
            try:
                return self._fetch(url, item)
            except DataError as error:
                if attempt == attempts or "no such file" in str(error):
                    return error
        raise AssertionError

    def _fetch(self, url: str, item: Item) -> bytes:
        if item.offset < 0:
            return read_bytes(url)
        with explained(url, "read"):
            if is_remote(url):
                system, path = file_system(url)
                content = bytes(system.cat_file(path, start=item.offset, end=item.offset + item.num_bytes))
            else:
                if url not in self._files:
                    if len(self._files) >= 256:
                        self.close()
                    self._files[url] = os.open(local_path(url), os.O_RDONLY)
                content = os.pread(self._files[url], item.num_bytes, item.offset)
        if len(content) != item.num_bytes:
            raise DataError(
                f"{redact(url)}: ends before byte {item.offset + item.num_bytes}; it changed while it was read"
            )
        return content

    def close(self) -> None:
        """Close the files it holds open."""
        for file in self._files.values():
            os.close(file)
        self._files.clear()


def pack_shard(job: Job, task: Task, catalogue: Catalogue, tick: Callable[[int], None]) -> Receipt:
    """Write one shard, its index and, last, its receipt.

    Args:
        tick: called with the number of bytes after each image.

    Raises:
        DataError: the disk is full, or the store refuses.
    """
    from webdataset.writer import TarWriter

    ordinals = shuffled_ordinals(task.first, task.count, catalogue.count, job.seed)
    fetcher = Fetcher(job.base)
    bad: list[tuple[str, str]] = []
    keys: set[str] = set()
    remote = is_remote(job.dest)
    scratch = job.work if remote else local_path(job.dest) / RECEIPTS
    temporary = scratch / f"{task.stem.replace('/', '-')}.{os.getpid()}.tar.tmp"
    tar_url, index_url = join_url(job.dest, f"{task.stem}.tar"), join_url(job.dest, f"{task.stem}.idx.npz")
    try:
        with _explained_disk(temporary):
            scratch.mkdir(parents=True, exist_ok=True)
            with temporary.open("w+b") as file:
                with contextlib.closing(_writer(TarWriter, file)) as writer:
                    for item, content in fetcher.fetch_all(catalogue[int(i)] for i in ordinals):
                        try:
                            if isinstance(content, DataError):
                                raise BadImageError(str(content))
                            others: dict[str, bytes] = {}
                            if job.pixels is not None:
                                content = png_from_pixels(content, job.pixels)
                            elif job.image_member is not None:
                                content, others = split_sample(content, job.image_member)
                                item = with_record(item, others)
                            image, extension = check_image(content, job.images)
                        except BadImageError as error:
                            bad.append((item.place, str(error)))
                            image = b""
                        else:
                            if item.key in keys:
                                raise DataError(
                                    f"{item.place}: its key {item.key!r} is another image's too; keys must be unique"
                                )
                            keys.add(item.key)
                            members = {**others, **sample_members(item), extension: image}
                            writer.write({"__key__": item.key, **members})
                        tick(len(image))
                file.flush()
                os.fsync(file.fileno())
                file.seek(0)
                scan = scan_file(file, TarScanner(redact(tar_url), LabelRule(), size=os.fstat(file.fileno()).st_size))
            index = encode_index(scan.index)
            if remote:
                with explained(tar_url, "written"):
                    system, path = file_system(tar_url)
                    system.put_file(str(temporary), path)
            else:
                local_path(tar_url).parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(local_path(tar_url))
    finally:
        fetcher.close()
        temporary.unlink(missing_ok=True)
    write_bytes(index_url, index)
    labels = scan.index.labels
    ends = scan.index.label_ends
    num_labels = [int(b) - int(a) for a, b in itertools.pairwise([0, *ends.tolist()])]
    name = task.stem.rpartition("/")[2]
    receipt = Receipt(
        shard=Shard(
            url=f"{name}.tar",
            num_samples=scan.index.num_samples,
            num_bytes=scan.num_bytes,
            checksum=scan.checksum,
            index_url=f"{name}.idx.npz",
            index_checksum=checksum(index),
        ),
        bad=tuple(bad),
        max_labels=max(num_labels, default=0),
        max_label=int(labels.max()) if len(labels) else -1,
    )
    write_bytes(join_url(job.dest, task.receipt), receipt.encode())
    return receipt


def _writer(writer: Any, file: Any) -> Any:
    # Everything in a header is fixed, so that equal images give equal bytes.
    return writer(file, user="", group="", mode=0o444, mtime=0, encoder=False, compress=False)


@contextlib.contextmanager
def _explained_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        explain_full_disk(path, error)


def explain_full_disk(path: Path, error: OSError) -> NoReturn:
    """Raise the DataError for a failed write."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
        raise DataError(
            f"{path}: the disk is full or the quota is used up ({error.strerror}); the unfinished shard was removed. "
            f"Free some space and start the same command again: it goes on where it stopped"
        ) from None
    raise DataError(f"{path}: cannot be written: {error}") from None
