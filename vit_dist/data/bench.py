"""What a machine and a store deliver of a dataset, stage by stage: reads, indexes, decoding, whole streams.

Each stage is measured as training does it: ranges as long as a window, the decoder of the reader, the stream itself.
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from vit_dist.config.cache import CacheConfig
from vit_dist.config.schema import DataConfig
from vit_dist.core.errors import DataError
from vit_dist.core.urls import is_remote, redact
from vit_dist.core.world import World, rank_cpus
from vit_dist.data.augment import Augment
from vit_dist.data.decode import Encoded
from vit_dist.data.decode_pool import num_processes
from vit_dist.data.images import DecodeError
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.order import GlobalOrder
from vit_dist.data.page_cache import cached_fraction, can_be_emptied, empty
from vit_dist.data.ranges import RangeReader
from vit_dist.data.readrate import measure, places
from vit_dist.data.regions import RegionDecoder, check_installed
from vit_dist.data.sets import TrainingSet, open_training_set
from vit_dist.data.stream import TrainStream

PARALLEL = (1, 4, 16)
"""Ranges in flight at once."""
_MOST_THREADS = 64
_MOST_RANGE, _LEAST_RANGE = 16 << 20, 64 << 10
_SHARDS_TRIED, _IMAGES_TRIED, _BYTES_TRIED = 4, 64, 16 << 20
"""Of each of so many shards so many images, or bytes, are decoded again and again."""
_BATCH = 32
_LANES = 16
"""Of a rank, at most: each begins with a window of its own, and a measurement of seconds must get beyond that."""
# Of the seconds that are given: all reads, decoding, all streams.
_READS, _DECODING, _STREAMS = 0.25, 0.1, 0.6


@dataclass(frozen=True)
class ReadFigure:
    """Reads at random places, so many at once.

    Attributes:
        at_once: ranges in flight.
        mb_per_s: 10^6 bytes a second, of all together.
        range_ms: one took, from asking to the last byte.
    """

    at_once: int
    mb_per_s: float
    range_ms: float


@dataclass(frozen=True)
class StreamFigure:
    """The whole stream.

    Attributes:
        threads: that decode, or processes.
        images_per_s: that came.
        cpu_ms: CPU time an image, for reading, decoding and collating; of reads by decode processes without it.
        transform_ms: of that, for decoding, cropping and augmenting.
        starved: fraction of the time in which a thread that decodes had no bytes.
    """

    threads: int
    images_per_s: float
    cpu_ms: float
    transform_ms: float
    starved: float


@dataclass(frozen=True)
class Figures:
    """What was measured.

    Attributes:
        images, shards, image_bytes: of the set; bytes of tar an image, on average.
        remote: whether it lies in a store.
        cached: of a set on this machine, the fraction of its tars that the page cache held before; None: not known.
        emptied: whether the page cache could be emptied of what was then read.
        in_memory: the set is so small that training reads it once and keeps it.
        range_bytes: of the ranges that were read.
        reads: for each of PARALLEL.
        index_ms: an index was read and checked in, on average.
        index_samples: samples of such an index, on average.
        tried: images that were decoded again and again.
        bad: of these, that cannot be.
        shorter_side: of the others, in pixels, the median.
        decode_ms: CPU time that decoding one takes.
        share: of a CPU, that the thread got which measured this: less than 1 where the machine is busy.
        streams: by threads, or processes.
        processes: whether they are processes, as in training with this config on this machine.
        cpus: that this process may use.
    """

    images: int
    shards: int
    image_bytes: float
    remote: bool
    cached: float | None
    emptied: bool
    in_memory: bool
    range_bytes: int
    reads: tuple[ReadFigure, ...]
    index_ms: float
    index_samples: float
    tried: int
    bad: int
    shorter_side: float
    decode_ms: float
    share: float
    streams: tuple[StreamFigure, ...]
    processes: bool
    cpus: int

    @property
    def best_read(self) -> ReadFigure:
        """The fastest way to read."""
        return max(self.reads, key=lambda one: one.mb_per_s)

    def stream_of(self, devices: int) -> StreamFigure:
        """The fastest stream on the CPUs that one of so many devices has: each has a process of its own."""
        own = [one for one in self.streams if one.threads <= max(1, self.cpus // devices)]
        return max(own, key=lambda one: one.images_per_s)

    @property
    def read_images_per_s(self) -> float:
        """Images a second that the fastest read would bring."""
        return self.best_read.mb_per_s * 1e6 / self.image_bytes


@dataclass(frozen=True)
class _Wanted:
    """See `sets.Wanted`."""

    data: DataConfig
    seed: int
    global_batch: int


def bench(
    manifest: ShardManifest, config: DataConfig, *, seconds: float, tell: Callable[[str], None], seed: int | None = None
) -> Figures:
    """Measure all stages.

    Args:
        manifest: of the set.
        config: how it is read, and what becomes of an image.
        seconds: that it may take in all, about.
        tell: is told what is measured next.
        seed: of the places that are read; None draws them anew.

    Raises:
        DataError: the set is empty, cannot be read, or none of the images that were tried can be decoded.
        ConfigError: reading ahead would take more than data.memory_limit.
    """
    if manifest.num_samples == 0:
        raise DataError(f"{redact(manifest.base)}: the set {manifest.name!r} has no samples: nothing can be measured")
    choose = random.Random(seed)
    files = [(url, size) for url, size in places(manifest) if size]
    wanted = _wanted(manifest, config)
    # Labels are of no interest here, nor whether there are any.
    data = open_training_set(wanted, read=lambda _: manifest, labelled=False)
    assert isinstance(data.order, GlobalOrder), "one set alone"
    image_bytes = data.num_bytes / data.num_samples
    window = data.order.window
    range_bytes = int(min(_MOST_RANGE, max(_LEAST_RANGE, image_bytes * window)))
    remote = is_remote(files[0][0])
    cached = None if remote else cached_fraction(files, choose)
    emptied = not remote and all(can_be_emptied(url) for url, _ in files)
    reads = _reads(files, range_bytes, seconds * _READS, choose, tell, remote=remote)
    tell("indexes, and images to decode")
    images, index_ms, index_samples = _images(manifest, choose)
    tell("decoding, in one thread")
    decode_ms, shorter_sides, share = _decoding(images, config, seconds * _DECODING)
    streams = _streams(data, wanted, seconds * _STREAMS, choose, tell)
    return Figures(
        images=manifest.num_samples,
        shards=len(manifest.shards),
        image_bytes=image_bytes,
        remote=remote,
        cached=cached,
        emptied=emptied,
        in_memory=data.fits_in_memory,
        range_bytes=min(range_bytes, max(size for _, size in files)),
        reads=reads,
        index_ms=index_ms,
        index_samples=index_samples,
        tried=len(images),
        bad=len(images) - len(shorter_sides),
        shorter_side=statistics.median(shorter_sides),
        decode_ms=decode_ms,
        share=share,
        streams=streams,
        processes=_by_processes(wanted),
        cpus=rank_cpus(),
    )


def _wanted(manifest: ShardManifest, config: DataConfig) -> _Wanted:
    """The set alone, without a node's cache, from which a stream would get what another has read from the store."""
    one_set = {"train": manifest.base or ".", "mixture": {}, "cache": CacheConfig.model_validate({"size": "0 B"})}
    classes = max(config.num_classes, manifest.num_classes, 1)
    return _Wanted(config.model_copy(update={**one_set, "num_classes": classes}), 0, _BATCH)


def _thread_counts(cpus: int) -> list[int]:
    """1, 2, 4, ... up to the CPUs."""
    most = min(cpus, _MOST_THREADS)
    return sorted({1 << i for i in range(most.bit_length()) if 1 << i <= most} | {most})


def _reads(
    files: Sequence[tuple[str, int]],
    range_bytes: int,
    seconds: float,
    choose: random.Random,
    tell: Callable[[str], None],
    *,
    remote: bool,
) -> tuple[ReadFigure, ...]:
    figures = []
    for at_once in PARALLEL:
        tell(f"reading, {at_once} range{'s' if at_once > 1 else ''} at once")
        rate = measure(
            files,
            seconds=seconds / len(PARALLEL),
            seed=choose.getrandbits(32),
            threads=at_once,
            range_bytes=range_bytes,
            before=None if remote else empty,
        )
        if rate.error is not None:
            raise rate.error
        each_s = rate.seconds * min(at_once, rate.num_ranges) / rate.num_ranges
        figures.append(ReadFigure(at_once, rate.bytes_per_s / 1e6, 1000 * each_s))
    return tuple(figures)


def _images(manifest: ShardManifest, choose: random.Random) -> tuple[list[memoryview], float, float]:
    """Images of some shards; ms that reading an index took, and the samples of one."""
    filled = [i for i, count in enumerate(manifest.counts.tolist()) if count]
    shards = choose.sample(filled, min(_SHARDS_TRIED, len(filled)))
    images: list[memoryview] = []
    seconds, samples = 0.0, 0
    with contextlib.closing(RangeReader()) as reader:
        for shard in shards:
            began = time.perf_counter()
            index = manifest.read_index(shard, reader.read_all)
            seconds += time.perf_counter() - began
            samples += len(index.image_offsets)
            first = choose.randrange(max(1, len(index.image_offsets) - _IMAGES_TRIED + 1))
            begins, sizes = index.image_offsets[first:].tolist(), index.image_bytes[first:].tolist()
            ends = [begin + size for begin, size in zip(begins, sizes, strict=True)]
            count = 1
            while count < min(len(begins), _IMAGES_TRIED) and ends[count] - begins[0] <= _BYTES_TRIED:
                count += 1
            low = min(begins[:count])
            content = memoryview(reader.read(manifest.shard_url(shard), low, max(ends[:count])))
            images += [content[begin - low : end - low] for begin, end in zip(begins[:count], ends, strict=False)]
    return images, 1000 * seconds / len(shards), samples / len(shards)


def _decoding(images: Sequence[memoryview], config: DataConfig, seconds: float) -> tuple[float, list[int], float]:
    """CPU ms that decoding an image takes, shorter sides of those that can be, share of a CPU that the thread got."""
    good: list[memoryview] = []
    shorter_sides: list[int] = []
    reason = ""
    if config.decoder == "nvimgcodec":
        check_installed()
    regions = RegionDecoder() if config.decoder == "nvimgcodec" else None
    augment = Augment.of(config, 0)

    def needed(content: memoryview, number: int) -> int:
        """Decode an image as training does; returns its shorter side."""
        image = Encoded(content, upright=config.upright, regions=regions)
        box = augment.draw(*image.size, epoch=0, ordinal=number).box
        _ = image.whole() if box is None else image.region(box)
        return min(image.size)

    for image in images:
        try:
            shorter_sides.append(needed(image, len(good)))
            good.append(image)
        except DecodeError as error:
            reason = reason or str(error)
    if not good:
        raise DataError(f"none of the {len(images)} images that were tried can be decoded; the first: {reason}")

    def work() -> tuple[int, float, float]:
        torch.set_num_threads(1)
        done, began, cpu = 0, time.perf_counter(), time.thread_time()
        while done < len(good) or time.perf_counter() - began < seconds:
            needed(good[done % len(good)], done)
            done += 1
            if done >= 8 and time.perf_counter() - began > 2 * seconds:
                break
        return done, time.thread_time() - cpu, time.perf_counter() - began

    own = torch.get_num_threads()
    with ThreadPoolExecutor(1, "decode") as pool:
        done, cpu_s, wall_s = pool.submit(work).result()
    # It is also the number of threads that use torch for the first time later.
    torch.set_num_threads(own)
    return 1000 * cpu_s / done, shorter_sides, min(1.0, cpu_s / wall_s)


def _ranks(lanes: int, least: int = _LANES) -> int:
    """Of how many ranks one reads few of the lanes, but so many."""
    return next((lanes // own for own in range(least, lanes) if lanes % own == 0), 1)


def _by_processes(wanted: _Wanted) -> bool:
    """Whether training would decode in processes here."""
    return num_processes(wanted.data, None) > 0


def _streams(
    data: TrainingSet, wanted: _Wanted, seconds: float, choose: random.Random, tell: Callable[[str], None]
) -> tuple[StreamFigure, ...]:
    figures, counts = [], _thread_counts(rank_cpus())
    one, many = ("process", "processes") if _by_processes(wanted) else ("thread", "threads")
    for threads in counts:
        tell(f"the whole stream, {threads} decode {one if threads == 1 else many}")
        figures.append(_stream(data, wanted, threads, seconds / len(counts), choose))
    return tuple(figures)


def _stream(data: TrainingSet, wanted: _Wanted, threads: int, seconds: float, choose: random.Random) -> StreamFigure:
    processes = _by_processes(wanted)
    # Each process has lanes of its own.
    world = World(0, _ranks(data.order.lanes, max(_LANES, threads) if processes else _LANES))
    decoders = {"decode_workers": threads} if processes else {"decode_threads": threads, "decode_workers": 0}
    config = wanted.data.model_copy(update=decoders)
    wanted = replace(wanted, data=config, global_batch=_BATCH * world.size)
    # Somewhere else each time: else each stream would find in memory what the one before has read.
    position = choose.randrange(data.num_samples)
    with TrainStream(data, wanted, world, position, reuse=True, labelled=False, at_once=True) as stream:
        began, batches = time.perf_counter(), iter(stream)
        # The pipeline fills, and each lane reads its first window.
        for done, (batch, _) in enumerate(batches, 1):
            batch.give_back()
            if done * _BATCH >= data.order.lanes // world.size or time.perf_counter() - began > seconds / 3:
                break
        stream.pace.since_last()
        begun, cpu, images = time.perf_counter(), time.process_time(), 0
        for batch, _ in batches:
            images += len(batch.samples)
            batch.give_back()
            if time.perf_counter() - began >= seconds:
                break
        wall, cpu_s, pace = time.perf_counter() - begun, time.process_time() - cpu, stream.pace.since_last()
    counts = pace.counts
    cpu_s += counts.decode_cpu_s if processes else 0.0
    return StreamFigure(
        threads=threads,
        images_per_s=images / wall,
        cpu_ms=1000 * cpu_s / images,
        transform_ms=1000 * counts.decode_cpu_s / max(1, counts.images),
        starved=min(1.0, counts.waited_s / (wall * threads)),
    )
