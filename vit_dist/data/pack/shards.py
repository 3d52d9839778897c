"""Pack one shard: fetch, check and perhaps resize its images, write the tar, index it. No torch."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, NoReturn

from vit_dist.core.errors import DataError
from vit_dist.core.files import (
    disk_problem,
    explained,
    file_system,
    is_remote,
    join_url,
    local_path,
    redact,
    write_bytes,
)
from vit_dist.core.small_files import is_count, is_mapping, is_texts, parse_json, required
from vit_dist.data.images import FORMATS, DecodeError, is_turned, load
from vit_dist.data.index import encode_index
from vit_dist.data.labels import LabelRule
from vit_dist.data.manifest import Shard, checksum, decode_shard
from vit_dist.data.pack.copies import MOST_IMAGES, are_digests, digest, encode_digests
from vit_dist.data.pack.fetch import Fetcher
from vit_dist.data.pack.items import Item, Listing, finite, shuffled_ordinals
from vit_dist.data.pack.repack import split_sample
from vit_dist.data.scan import scan_file
from vit_dist.data.tarindex import TarScan, TarScanner

STATE_FOLDER = ".pack"


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
        work: where a tar is written until it is complete; on the disk of a local destination.
        pixels: (rows, columns) or (planes, rows, columns) where items are raw pixels.
        image_member: where items are samples of a tar: the extension of the image, '' for the only one; else None.
    """

    dest: str
    work: Path
    listing: tuple[Path, int, str, int]
    base: str
    pixels: tuple[int, ...] | None
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
    def marker(self) -> str:
        """Path of its done marker in the destination."""
        return f"{STATE_FOLDER}/{self.stem.replace('/', '-')}.json"


@dataclass(frozen=True)
class DoneMarker:
    """What became of one shard: its entry of the manifest and the images that were left out, (place, reason).

    `turned` counts the images whose EXIF orientation says that they are stored on their side or mirrored; `digests` is
    what the samples are compared by, '' where they are too many.
    """

    shard: Shard
    bad: tuple[tuple[str, str], ...]
    max_labels: int
    max_label: int
    turned: int = 0
    digests: str = ""

    def encode(self) -> bytes:
        """As JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, content: bytes) -> DoneMarker:
        """From JSON.

        Raises:
            DamagedError: it is not what was written.
        """
        raw = parse_json(content)
        shard = decode_shard(required(raw, "shard", is_mapping, "an object"))
        bad = required(raw, "bad", _is_pairs, "a list of pairs of texts")
        max_labels = required(raw, "max_labels", is_count, "a whole number from 0")
        max_label = required(raw, "max_label", lambda v: v == -1 or is_count(v), "a whole number from -1")
        # Markers of before these were counted have none.
        turned = required({"turned": 0, **raw}, "turned", is_count, "a whole number from 0")
        kept = (lambda value: are_digests(value, shard.num_samples), "two digests of each sample, in base64")
        digests = required({"digests": "", **raw}, "digests", *kept)
        return cls(shard, tuple((place, reason) for place, reason in bad), max_labels, max_label, turned, digests)


def _is_pairs(value: Any) -> bool:
    return isinstance(value, list) and all(is_texts(pair) and len(pair) == 2 for pair in value)


class BadImageError(Exception):
    """An image that cannot be used, and why."""


def check_image(content: bytes, options: ImageOptions) -> tuple[bytes, str]:
    """Decode a whole image; its bytes (new ones where it is resized) and its extension.

    Raises:
        BadImageError: not an image that training could decode, or one that no JPEG can hold.
    """
    try:
        loaded = load(content, upright=options.upright)
    except DecodeError as error:
        raise BadImageError(str(error)) from None
    if not loaded.turned and options.quality is None and _target_size(loaded.image.size, options) is None:
        return content, FORMATS[loaded.form][0]
    return _as_jpeg(loaded.image, options), "jpg"


def _target_size(size: tuple[int, int], options: ImageOptions) -> tuple[int, int] | None:
    width, height = size
    scale = 1.0
    if options.resize_shorter is not None:
        scale = min(scale, options.resize_shorter / min(width, height))
    if options.resize_longer is not None:
        scale = min(scale, options.resize_longer / max(width, height))
    return None if scale == 1.0 else (max(1, round(width * scale)), max(1, round(height * scale)))


def _as_jpeg(image: Any, options: ImageOptions) -> bytes:
    from PIL import Image

    target = _target_size(image.size, options)
    if target is not None:
        image = image.resize(target, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    try:
        image.save(buffer, "JPEG", quality=options.quality if options.quality is not None else 90)
    except OSError as error:
        raise BadImageError(f"cannot be written as a JPEG of {image.width} x {image.height} pixels: {error}") from None
    return buffer.getvalue()


def png_from_pixels(pixels: bytes, shape: tuple[int, ...]) -> bytes:
    """A PNG of raw pixels: grey ones, rows x columns, or the planes of red, green and blue one after the other."""
    from PIL import Image

    *planes, rows, columns = shape
    if planes:
        size = rows * columns
        bands = [Image.frombytes("L", (columns, rows), pixels[i * size : (i + 1) * size]) for i in range(planes[0])]
        image = Image.merge("RGB", bands)
    else:
        image = Image.frombytes("L", (columns, rows), pixels)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def with_record(item: Item, others: dict[str, bytes]) -> Item:
    """The item with what the sample's `.json` tells as its metadata; that member is written anew."""
    record = others.pop("json", None)
    if record is None:
        return item
    try:
        meta = json.loads(record)
    except (ValueError, RecursionError):
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
        members["json"] = json.dumps(finite(record), sort_keys=True, allow_nan=False).encode()
    return members


def pack_shard(job: Job, task: Task, listing: Listing, tick: Callable[[int], None]) -> DoneMarker:
    """Write one shard, its index and, last, its done marker.

    Args:
        tick: called with the number of bytes after each image.

    Raises:
        DataError: the disk is full, or the store refuses.
    """
    tar_url = join_url(job.dest, f"{task.stem}.tar")
    with _temporary(job, task) as temporary:
        with temporary.open("w+b") as file:
            bad, turned, digests = _write_samples(job, task, listing, file, tick)
            # On the disk before its marker says that it is there: a power loss must not leave a marker alone.
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            scan = scan_file(file, TarScanner(redact(tar_url), LabelRule(), size=os.fstat(file.fileno()).st_size))
        _deliver(temporary, tar_url)
    index = encode_index(scan.index)
    write_bytes(join_url(job.dest, f"{task.stem}.idx.npz"), index)
    marker = replace(_marker(task, scan, index, bad), turned=turned, digests=encode_digests(digests))
    write_bytes(join_url(job.dest, task.marker), marker.encode())
    return marker


@contextlib.contextmanager
def _temporary(job: Job, task: Task) -> Iterator[Path]:
    """Where the tar is written first; gone afterwards, whatever happens."""
    path = job.work / f"{task.stem.replace('/', '-')}.{os.getpid()}.tar.tmp"
    try:
        with _explained_disk(path):
            job.work.mkdir(parents=True, exist_ok=True)
            yield path
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _write_samples(
    job: Job, task: Task, listing: Listing, file: IO[bytes], tick: Callable[[int], None]
) -> tuple[list[tuple[str, str]], int, list[tuple[int, int]]]:
    """Write the samples of a shard as a tar.

    Returns:
        The images left out, (place, reason); how many are turned; what each sample is compared by, or nothing where
        the packing has too many.
    """
    from webdataset.writer import TarWriter

    ordinals = shuffled_ordinals(task.first, task.count, listing.count, job.seed)
    bad: list[tuple[str, str]] = []
    digests: list[tuple[int, int]] = []
    turned = 0
    with contextlib.closing(Fetcher(job.base)) as fetcher, contextlib.closing(_writer(TarWriter, file)) as writer:
        for item, content in fetcher.fetch_all(listing[int(i)] for i in ordinals):
            try:
                members, image = _members(job, item, content)
            except BadImageError as error:
                bad.append((item.place, str(error)))
                tick(0)
                continue
            turned += job.pixels is None and isinstance(content, bytes) and is_turned(content)
            writer.write({"__key__": item.key, **members})
            if listing.count <= MOST_IMAGES:
                digests.append(digest(item, image))
            tick(len(image))
    return bad, turned, digests


def _members(job: Job, item: Item, content: bytes | DataError) -> tuple[dict[str, bytes], bytes]:
    """The members of a sample, from what was fetched for it, and its image.

    Raises:
        BadImageError: it could not be fetched, or is no image.
    """
    if isinstance(content, DataError):
        raise BadImageError(str(content))
    others: dict[str, bytes] = {}
    if job.pixels is not None:
        content = png_from_pixels(content, job.pixels)
    elif job.image_member is not None:
        try:
            content, others = split_sample(content, job.image_member)
        except ValueError as error:
            raise BadImageError(str(error)) from None
        item = with_record(item, others)
    image, extension = check_image(content, job.images)
    return {**others, **sample_members(item), extension: image}, image


def _deliver(temporary: Path, tar_url: str) -> None:
    """Put a complete tar where it belongs."""
    if is_remote(tar_url):
        with explained(tar_url, "written"):
            system, path = file_system(tar_url)
            system.put_file(str(temporary), path)
    else:
        local_path(tar_url).parent.mkdir(parents=True, exist_ok=True)
        temporary.replace(local_path(tar_url))


def _marker(task: Task, scan: TarScan, index: bytes, bad: list[tuple[str, str]]) -> DoneMarker:
    labels, ends = scan.index.labels, scan.index.label_ends
    num_labels = [int(b) - int(a) for a, b in itertools.pairwise([0, *ends.tolist()])]
    name = task.stem.rpartition("/")[2]
    return DoneMarker(
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


def _writer(writer: Any, file: Any) -> Any:
    # Everything in a header is fixed, so that equal images give equal bytes. "Meta" are extensions that begin with '_'.
    return writer(file, user="", group="", mode=0o444, mtime=0, encoder=False, compress=False, keep_meta=True)


@contextlib.contextmanager
def _explained_disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        explain_full_disk(path, error)


def explain_full_disk(path: Path, error: OSError) -> NoReturn:
    """Raise the DataError for a failed write."""
    if problem := disk_problem(error):
        raise DataError(
            f"{path}: cannot be written: {problem}, and start the same command again: it resumes where it stopped. "
            f"The unfinished shard was removed"
        ) from None
    raise DataError(f"{path}: cannot be written: {error}") from None
