"""Pack a source: plan the shards, pack those that are missing, write the manifest last. No torch."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import (
    exists,
    is_remote,
    join_url,
    local_path,
    read_bytes,
    redact,
    write_bytes,
)
from vit_dist.core.progress import Progress
from vit_dist.data import workers
from vit_dist.data.manifest import ShardManifest, read_manifest, write_manifest
from vit_dist.data.pack.dest import BAD_LIST, claimed, clear, remove_receipts
from vit_dist.data.pack.items import Item, Listing, check_labels, shuffled_ordinals
from vit_dist.data.pack.plan import PLAN, Plan, all_there, read_receipts, shorten, tasks_of
from vit_dist.data.pack.shards import RECEIPTS, ImageOptions, Job, Receipt, Task, pack_shard
from vit_dist.data.pack.sources import Source


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        samples_per_shard: images in a shard; bad ones are left out of it.
        bytes_per_shard: instead: bytes of images in a shard, about (before resizing), from the mean size.
        seed: of the shuffle.
        val: images (a whole number) or their share (a fraction below 1) to keep apart as `val`; None: no split.
        images: resizing.
        name: of the dataset; '' takes the source's.
    """

    samples_per_shard: int = 10_000
    bytes_per_shard: int | None = None
    seed: int = 0
    val: Fraction | None = None
    images: ImageOptions = field(default_factory=ImageOptions)
    name: str = ""


@dataclass(frozen=True)
class PackResult:
    """What came out: manifests (URL and content; none after one part of several), images left out."""

    manifests: tuple[tuple[str, ShardManifest], ...]
    num_bad: int
    already_there: bool = False


def pack(
    open_source: Callable[[Path], Source],
    dest: str,
    options: PackOptions,
    *,
    max_bad: Fraction = Fraction(1, 100),
    num_workers: int = 1,
    part: tuple[int, int] | None = None,
    work: Path | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
    quiet: bool = False,
) -> PackResult:
    """Pack a source into `dest`, going on where an earlier call with the same source and options stopped.

    Args:
        open_source: given a scratch folder, the source.
        dest: URL of a directory.
        options: how to pack.
        max_bad: share of unreadable images that is accepted.
        num_workers: processes.
        part: (i, n): pack only every n-th shard; `merge` joins the parts.
        work: scratch folder; by default inside a local `dest`, else a temporary one.
        force: throw away another packing that lies in `dest`.
        say: called with lines for people.
        quiet: show no progress.

    Raises:
        DataError: the source is missing, empty or damaged, too many images are, or the disk is full.
        ConfigError: `dest` holds something else.
        RunError: another process packs into `dest` right now.
    """
    dest = dest.rstrip("/")
    label = f"{part[0] % part[1]}-of-{part[1]}" if part else "all"
    with contextlib.ExitStack() as stack:
        stack.enter_context(claimed(dest, label))
        scratch = stack.enter_context(_scratch(dest, work, label))
        source = open_source(scratch)
        if part is not None and options.bytes_per_shard is None:  # else the shards follow from the bytes of all
            source.wanted = partial(_images_of_part, options, part)
        catalogue = stack.enter_context(contextlib.closing(_list(source, scratch, say, quiet)))
        plan = _plan(source, catalogue, options)
        if _already_packed(dest, plan, force=force):
            return _read_result(dest, plan)
        write_bytes(join_url(dest, PLAN), plan.encode())
        told = catalogue.describe()
        job = Job(dest, scratch, told, source.base, source.pixels, plan.seed, options.images, source.image_member)
        tasks = _tasks_of_part(plan.tasks(), part)
        receipts = _packed_before(dest, tasks, max_bad * plan.num_images)
        if receipts:
            say(f"going on: {len(receipts):,} of {len(tasks):,} shards are packed already")
        bad = sum(len(r.bad) for r in receipts.values())
        missing = [t for t in tasks if t not in receipts]
        with Progress("packing", sum(t.count for t in missing), "images", quiet=quiet) as progress:
            for receipt in _pack_all(job, missing, catalogue, num_workers, progress):
                bad += len(receipt.bad)
                if bad > max_bad * plan.num_images:
                    break
        _check_bad(dest, plan, bad, max_bad)
        return PackResult((), bad) if part is not None else merge(dest, max_bad=max_bad)


@contextlib.contextmanager
def _scratch(dest: str, work: Path | None, label: str) -> Iterator[Path]:
    """A folder for what is needed while packing only; gone afterwards."""
    with contextlib.ExitStack() as stack:
        if work is not None:
            folder = work / f"vit-dist-pack-{label}"
        elif is_remote(dest):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vit-dist-pack-")))
        else:
            folder = local_path(dest) / RECEIPTS / f"work-{label}"
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


def _packed_before(dest: str, tasks: Sequence[Task], most_bad: Fraction) -> dict[Task, Receipt]:
    """The shards that need not be packed again."""
    receipts = read_receipts(dest, tasks)
    if sum(len(r.bad) for r in receipts.values()) > most_bad:
        # They were too many the last time: perhaps the store had a bad day. Those shards are tried anew.
        return {t: r for t, r in receipts.items() if not r.bad}
    return receipts


def _tasks_of_part(tasks: Iterable[Task], part: tuple[int, int] | None) -> list[Task]:
    return [t for i, t in enumerate(tasks) if part is None or i % part[1] == part[0] % part[1]]


def _images_of_part(options: PackOptions, part: tuple[int, int], total: int) -> NDArray[np.bool_]:
    """Which of all images the shards of a part hold."""
    wanted = np.zeros(total, bool)
    tasks = tasks_of(total, _num_val(options, total), min(options.samples_per_shard, total))
    for task in _tasks_of_part(tasks, part):
        wanted[shuffled_ordinals(task.first, task.count, total, options.seed)] = True
    return wanted


def merge(dest: str, *, max_bad: Fraction = Fraction(1, 100)) -> PackResult:
    """Write the manifest of a packing all of whose shards are there, and the list of the images left out.

    Raises:
        DataError: shards are missing, or too many images were unreadable.
    """
    dest = dest.rstrip("/")
    plan_url = join_url(dest, PLAN)
    if not exists(plan_url):
        raise DataError(f"{redact(dest)}: nothing was packed here (no {PLAN}); run `vit-dist data pack` first")
    plan = Plan.decode(read_bytes(plan_url), redact(plan_url))
    if all_there(dest, plan):
        return _read_result(dest, plan)
    tasks = list(plan.tasks())
    receipts = read_receipts(dest, tasks)
    missing = [task.stem for task in tasks if task not in receipts]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(
            f"{redact(dest)}: {len(missing)} of {len(missing) + len(receipts)} shards are not packed yet ({shown}); "
            f"start the missing parts again, they go on where they stopped, then merge"
        )
    bad = sum(len(r.bad) for r in receipts.values())
    _check_bad(dest, plan, bad, max_bad)
    _write_bad(dest, receipts.values())
    joined = []
    for folder, _, _ in plan.outputs():
        mine = [r for t, r in receipts.items() if t.folder == folder and r.shard.num_samples]
        base = join_url(dest, folder) if folder else dest
        manifest = ShardManifest(
            base=base,
            name=f"{plan.name}-{folder}" if folder else plan.name,
            shards=tuple(r.shard for r in mine),
            shuffled=True,
            num_classes=plan.num_classes,
            classes=plan.classes,
            max_labels=max((r.max_labels for r in mine), default=1),
        )
        if not manifest.num_samples:
            raise DataError(f"{redact(base)}: not one image could be read; see {BAD_LIST}")
        joined.append((join_url(base, "manifest.json"), manifest))
    for url, manifest in joined:
        write_manifest(manifest, url)
    remove_receipts(dest)
    return PackResult(tuple(joined), bad)


def _list(source: Source, scratch: Path, say: Callable[[str], None], quiet: bool) -> Listing:
    largest = -1

    def watched() -> Iterator[Item]:
        nonlocal largest
        with Progress("listing", 0, "images", quiet=quiet) as progress:
            for item in source.items():
                check_labels(item.labels, source.num_classes, item.place)
                largest = max(largest, *item.labels) if item.labels else largest
                progress.advance(1, max(item.num_bytes, 0))
                yield item

    catalogue = Listing.write(scratch, watched())
    if not catalogue.count:
        catalogue.close()
        raise DataError(f"{redact(source.base or source.name)}: no images in it")
    if source.num_classes is None:
        source.num_classes = largest + 1
    if source.num_ignored:
        shown = ", ".join(source.ignored) + (", ..." if source.num_ignored > len(source.ignored) else "")
        say(f"ignored {source.num_ignored:,} files that do not end like images: {shown}")
    return catalogue


def _plan(source: Source, catalogue: Listing, options: PackOptions) -> Plan:
    total = catalogue.count
    per_shard = options.samples_per_shard
    if options.bytes_per_shard is not None:
        if not catalogue.num_bytes:
            raise ConfigError("--bytes-per-shard: this source does not tell sizes; use --samples-per-shard")
        per_shard = max(1, options.bytes_per_shard * total // catalogue.num_bytes)
    return Plan(
        kind=source.kind,
        digest=catalogue.digest,
        name=options.name or source.name,
        num_images=total,
        num_val=_num_val(options, total),
        samples_per_shard=min(per_shard, total),
        seed=options.seed,
        images=asdict(options.images),
        num_classes=source.num_classes or 0,
        classes=source.classes,
    )


def _num_val(options: PackOptions, total: int) -> int:
    """Images that are kept apart."""
    if options.val is None:
        return 0
    num_val = int(options.val) if options.val >= 1 else round(options.val * total)
    if not 0 < num_val < total:
        raise ConfigError(f"--val: {num_val} of {total} images leaves nothing for one of the two sets")
    return num_val


def _already_packed(dest: str, plan: Plan, *, force: bool) -> bool:
    """True where this very plan is packed in `dest`; clears it first where `force` is given."""
    where = redact(dest)
    if force:
        clear(dest)
        return False
    url = join_url(dest, PLAN)
    if not exists(url):
        if exists(join_url(dest, "manifest.json")):
            raise ConfigError(
                f"{where}: holds a manifest that `vit-dist data pack` did not write; choose another directory, "
                f"or --force"
            )
        return False
    found = Plan.decode(read_bytes(url), redact(url))
    changes = [
        f"{name}: {shorten(ours)} now, {shorten(theirs)} there"
        for name, ours in asdict(plan).items()
        if (theirs := asdict(found)[name]) != ours
    ]
    if changes:
        raise ConfigError(
            f"{where}: holds another packing, or the source has changed since ({'; '.join(changes)}); "
            f"choose another directory, or --force to pack it anew"
        )
    return all_there(dest, plan)


def _read_result(dest: str, plan: Plan) -> PackResult:
    """What an earlier call has packed."""
    urls = [join_url(join_url(dest, f) if f else dest, "manifest.json") for f, _, _ in plan.outputs()]
    manifests = tuple((url, read_manifest(url)) for url in urls)
    return PackResult(manifests, plan.num_images - sum(m.num_samples for _, m in manifests), True)


def _check_bad(dest: str, plan: Plan, bad: int, max_bad: Fraction) -> None:
    if bad <= max_bad * plan.num_images:
        return
    _write_bad(dest, read_receipts(dest, list(plan.tasks())).values())
    raise DataError(
        f"{redact(dest)}: {bad:,} of {plan.num_images:,} images cannot be read, more than --max-bad "
        f"{float(max_bad):.3g} allows; they are listed in {redact(join_url(dest, BAD_LIST))}. Mend or remove them, or "
        f"raise --max-bad and start again: what is packed is kept"
    )


def _write_bad(dest: str, receipts: Any) -> None:
    bad = sorted(pair for receipt in receipts for pair in receipt.bad)
    if bad:
        lines = [json.dumps({"image": place, "reason": reason}, ensure_ascii=False) for place, reason in bad]
        write_bytes(join_url(dest, BAD_LIST), ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _run_task(task: Task) -> Receipt:
    images, num_bytes = workers.shared("images"), workers.shared("bytes")

    def tick(size: int) -> None:
        with images.get_lock():
            images.value += 1
            num_bytes.value += size

    return pack_shard(workers.shared("job"), task, _catalogue(workers.shared("job")), tick)


@cache
def _catalogue(job: Job) -> Listing:
    return Listing.reopen(job.catalogue)


def _pack_all(
    job: Job, tasks: Sequence[Task], catalogue: Listing, num_workers: int, progress: Progress
) -> Iterator[Receipt]:
    processes = workers.num_processes(num_workers, len(tasks), images=sum(t.count for t in tasks))
    if processes == 1:
        for task in tasks:
            yield pack_shard(job, task, catalogue, lambda size: progress.advance(1, size))
        return
    images, num_bytes = (workers.context().Value("q", 0) for _ in range(2))
    for _, receipt in workers.run(
        _run_task,
        tasks,
        processes,
        values={"job": job, "images": images, "bytes": num_bytes},
        preload=("webdataset.writer", "PIL.Image"),
        tick=lambda: progress.update(images.value, num_bytes.value),
    ):
        yield receipt
