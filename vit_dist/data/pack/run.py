"""Pack a source: plan the shards, pack those that are missing, write the manifest last. No torch."""

from __future__ import annotations

import contextlib
import hashlib
import json
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
    destination,
    exists,
    is_remote,
    join_url,
    local_path,
    read_bytes,
    redact,
    remove_tree,
    write_bytes,
)
from vit_dist.core.progress import Progress
from vit_dist.core.scratch import scratch
from vit_dist.core.units import counted
from vit_dist.data import workers
from vit_dist.data.grammar import ClassSpace, check_classes, check_pairs
from vit_dist.data.manifest import ShardManifest, read_manifest, write_manifest
from vit_dist.data.pack.copies import PackedCopies, find_copies
from vit_dist.data.pack.dest import BAD_LIST, claimed, clear, refuse_strangers, remove_markers
from vit_dist.data.pack.items import Item, Listing, check_item, shuffled_ordinals
from vit_dist.data.pack.plan import PLAN_FILE, PackPlan, all_there, read_markers, tasks_of
from vit_dist.data.pack.shards import STATE_FOLDER, DoneMarker, ImageOptions, Job, Task, pack_shard
from vit_dist.data.pack.sources import Source


@dataclass(frozen=True)
class PackOptions:
    """How to pack.

    Attributes:
        samples_per_shard: images in a shard; bad ones are left out of it.
        bytes_per_shard: instead: bytes of images in a shard, about (before resizing), from the mean size.
        seed: of the shuffle.
        val: images (a whole number) or the fraction of them (below 1) to keep apart as `val`; None: no split.
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
    """What came out: manifests (URL and content; none after one part of several), images left out.

    `num_turned` counts the images whose EXIF orientation says that they are stored on their side or mirrored, of those
    that were packed now; `upright` says whether they were turned. `copies` is what the images were found to share, None
    where they were not compared.
    """

    manifests: tuple[tuple[str, ShardManifest], ...]
    num_bad: int
    already_there: bool = False
    num_turned: int = 0
    upright: bool = False
    copies: PackedCopies | None = None


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
    """Pack a source into `dest`, resuming where an earlier call with the same source and options stopped.

    Args:
        open_source: given a scratch folder, the source.
        dest: URL of a directory.
        options: how to pack.
        max_bad: fraction of unreadable images that is accepted.
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
    dest = destination(dest, "DEST")
    label = f"{part[0] % part[1]}-of-{part[1]}" if part else "all"
    with contextlib.ExitStack() as stack:
        if not force:
            refuse_strangers(dest)
        stack.enter_context(claimed(dest, label))
        scratch = stack.enter_context(_scratch(dest, work, label))
        # Beside where it goes: a tar gets its place by a rename.
        apart = work is not None and not is_remote(dest)
        tars = stack.enter_context(_scratch(dest, None, label)) if apart else scratch
        source = open_source(scratch)
        # With --bytes-per-shard the shards follow from the bytes of all images, so that a part must see all.
        if part is not None and options.bytes_per_shard is None:
            source.wanted = partial(_images_of_part, options, part)
        listing = stack.enter_context(contextlib.closing(_list(source, scratch, say, quiet)))
        plan = _plan(source, listing, options)
        if _already_packed(dest, plan, force=force):
            return _read_result(dest, plan)
        write_bytes(join_url(dest, PLAN_FILE), plan.encode())
        described, member = listing.describe(), source.image_member
        job = Job(dest, tars, described, source.base, source.pixels, plan.seed, options.images, member)
        tasks = _tasks_of_part(plan.tasks(), part)
        markers = _packed_before(dest, tasks, max_bad * plan.num_images)
        if markers:
            say(f"resuming: {len(markers):,} of {counted(len(tasks), 'shard is', 'shards are')} packed already")
        bad = sum(len(marker.bad) for marker in markers.values())
        missing = [t for t in tasks if t not in markers]
        with Progress("packing", sum(t.count for t in missing), "image", quiet=quiet) as progress:
            for marker in _pack_all(job, missing, listing, num_workers, progress):
                bad += len(marker.bad)
                if bad > max_bad * plan.num_images:
                    break
        _check_bad(dest, plan, bad, max_bad)
        return PackResult((), bad) if part is not None else merge(dest, max_bad=max_bad)


@contextlib.contextmanager
def _scratch(dest: str, work: Path | None, label: str) -> Iterator[Path]:
    """A folder for what is needed while packing only; gone afterwards, and what a killed packing left in it before."""
    with contextlib.ExitStack() as stack:
        if work is not None:
            # Of this destination alone: another packing may use the same scratch disk.
            folder = work / f"vit-dist-pack-{label}-{hashlib.sha256(dest.encode()).hexdigest()[:8]}"
        elif is_remote(dest):
            folder = stack.enter_context(scratch(Path(tempfile.gettempdir()), "vit-dist-pack"))
        else:
            folder = local_path(dest) / STATE_FOLDER / f"work-{label}"
        remove_tree(folder)
        stack.callback(remove_tree, folder)
        yield folder


def _packed_before(dest: str, tasks: Sequence[Task], most_bad: Fraction) -> dict[Task, DoneMarker]:
    """The shards that need not be packed again."""
    markers = read_markers(dest, tasks)
    if sum(len(marker.bad) for marker in markers.values()) > most_bad:
        # They were too many the last time: perhaps the store had a bad day. Those shards are tried anew.
        return {task: marker for task, marker in markers.items() if not marker.bad}
    return markers


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
    dest = destination(dest, "DEST")
    plan_url = join_url(dest, PLAN_FILE)
    if not exists(plan_url):
        raise DataError(f"{redact(dest)}: nothing was packed here (no {PLAN_FILE}); run `vit-dist data pack` first")
    plan = PackPlan.decode(read_bytes(plan_url), redact(plan_url))
    if all_there(dest, plan):
        return _read_result(dest, plan)
    tasks = list(plan.tasks())
    markers = read_markers(dest, tasks)
    missing = [task.stem for task in tasks if task not in markers]
    if missing:
        shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        total = counted(len(missing) + len(markers), "shard is", "shards are")
        raise DataError(
            f"{redact(dest)}: {len(missing)} of {total} not packed yet ({shown}); start the missing parts again, "
            f"they resume where they stopped, then merge"
        )
    bad = sum(len(marker.bad) for marker in markers.values())
    _check_bad(dest, plan, bad, max_bad)
    _write_bad(dest, markers.values())
    joined, digests = [], []
    for folder, _, _ in plan.outputs():
        packed = [marker for task, marker in markers.items() if task.folder == folder and marker.shard.num_samples]
        base = join_url(dest, folder) if folder else dest
        manifest = ShardManifest(
            base=base,
            name=f"{plan.name}-{folder}" if folder else plan.name,
            shards=tuple(marker.shard for marker in packed),
            shuffled=True,
            num_classes=plan.num_classes,
            classes=plan.classes,
            max_labels=max((marker.max_labels for marker in packed), default=1),
        )
        if not manifest.num_samples:
            raise DataError(f"{redact(base)}: not one image could be read; see {BAD_LIST}")
        joined.append((join_url(base, "manifest.json"), manifest))
        digests.append([marker.digests for marker in packed])
    copies = find_copies(dest, [manifest for _, manifest in joined], digests)
    # Last, and after everything that can fail: where a manifest is, its dataset is complete.
    for url, manifest in joined:
        write_manifest(manifest, url)
    remove_markers(dest)
    turned = sum(marker.turned for marker in markers.values())
    upright = bool(plan.images.get("upright"))
    return PackResult(tuple(joined), bad, num_turned=turned, upright=upright, copies=copies)


def _list(source: Source, scratch: Path, say: Callable[[str], None], quiet: bool) -> Listing:
    largest, pairs = -1, True
    _check_names(source)

    def watched() -> Iterator[Item]:
        nonlocal largest, pairs
        with Progress("listing", 0, "image", quiet=quiet) as progress:
            for item in source.items():
                check_item(item, source.num_classes)
                largest = max(largest, *item.labels)
                pairs = pairs and item.weights is None and set(item.labels) == {0, 1}
                progress.advance(1, max(item.num_bytes, 0))
                yield item

    listing = Listing.write(scratch, watched())
    if not listing.count:
        listing.close()
        raise DataError(f"{redact(source.base or source.name)}: no images in it")
    check_pairs(redact(source.base or source.name), listing.count if pairs else 0, source.num_classes)
    if source.num_classes is None:
        source.num_classes = largest + 1
    for note in source.notes:
        say(note)
    if source.num_outside:
        shown = _shown(source.outside, source.num_outside)
        what = counted(source.num_outside, "image that lies", "images that lie")
        say(f"left out {what} in no class directory: {shown}")
    if source.num_ignored:
        shown = _shown(source.ignored, source.num_ignored)
        what = counted(source.num_ignored, "file that does not end like an image", "files that do not end like images")
        say(f"ignored {what}: {shown}")
    if source.num_hidden:
        what = counted(source.num_hidden, "hidden file or directory", "hidden files or directories")
        say(f"ignored {what}: {_shown(source.hidden, source.num_hidden)}")
    for sample in source.left_out:
        say(f"left out: {sample}")
    if source.num_left_out > len(source.left_out):
        say(f"left out: {source.num_left_out - len(source.left_out):,} more")
    if source.num_left_out:
        what = counted(source.num_left_out, "sample")
        say(f"left out {what} without an image or a label; {listing.count:,} are packed")
    return listing


def _shown(names: Sequence[str], count: int) -> str:
    """The first names of so many."""
    return ", ".join(names) + (", ..." if count > len(names) else "")


def _check_names(source: Source) -> None:
    """Whether the classes' names can be told apart; they are kept as names are compared."""
    if source.classes:
        source.classes = check_classes(source.classes, redact(source.base or source.name))
        # As for lists: names that are more than there are classes, or a label space that no head has.
        ClassSpace(source.classes, source.num_classes)


def _plan(source: Source, listing: Listing, options: PackOptions) -> PackPlan:
    total = listing.count
    per_shard = options.samples_per_shard
    if options.bytes_per_shard is not None:
        if not listing.num_bytes:
            raise ConfigError("--bytes-per-shard: this source does not tell sizes; use --samples-per-shard")
        per_shard = max(1, options.bytes_per_shard * total // listing.num_bytes)
    return PackPlan(
        kind=source.kind,
        digest=listing.digest,
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
        raise ConfigError(f"--val: {num_val} of {counted(total, 'image')} leaves nothing for one of the two sets")
    return num_val


def _already_packed(dest: str, plan: PackPlan, *, force: bool) -> bool:
    """True where this very plan is packed in `dest`; clears it first where `force` is given."""
    where = redact(dest)
    if force:
        clear(dest)
        return False
    url = join_url(dest, PLAN_FILE)
    if not exists(url):
        if exists(join_url(dest, "manifest.json")):
            raise ConfigError(
                f"{where}: holds a manifest that `vit-dist data pack` did not write; choose another directory, "
                f"or --force"
            )
        return False
    changes = PackPlan.decode(read_bytes(url), redact(url)).changes(asdict(plan))
    if changes:
        raise ConfigError(
            f"{where}: holds another packing, or the source has changed since ({changes}); "
            f"choose another directory, or --force to pack it anew"
        )
    return all_there(dest, plan)


def _read_result(dest: str, plan: PackPlan) -> PackResult:
    """What an earlier call has packed."""
    urls = [join_url(join_url(dest, f) if f else dest, "manifest.json") for f, _, _ in plan.outputs()]
    manifests = tuple((url, read_manifest(url)) for url in urls)
    return PackResult(manifests, plan.num_images - sum(m.num_samples for _, m in manifests), True)


def _check_bad(dest: str, plan: PackPlan, bad: int, max_bad: Fraction) -> None:
    if bad <= max_bad * plan.num_images:
        return
    _write_bad(dest, read_markers(dest, list(plan.tasks())).values())
    raise DataError(
        f"{redact(dest)}: {bad:,} of {counted(plan.num_images, 'image')} cannot be read, more than --max-bad "
        f"{float(max_bad):.3g} allows; they are listed in {redact(join_url(dest, BAD_LIST))}. Mend or remove them, or "
        f"raise --max-bad and start again: what is packed is kept"
    )


def _write_bad(dest: str, markers: Any) -> None:
    bad = sorted(pair for marker in markers for pair in marker.bad)
    if bad:
        lines = [json.dumps({"image": place, "reason": reason}, ensure_ascii=False) for place, reason in bad]
        write_bytes(join_url(dest, BAD_LIST), ("\n".join(lines) + "\n").encode("utf-8", "surrogateescape"))


def _run_task(task: Task) -> DoneMarker:
    images, num_bytes = workers.shared("images"), workers.shared("bytes")

    def tick(size: int) -> None:
        with images.get_lock():
            images.value += 1
            num_bytes.value += size

    return pack_shard(workers.shared("job"), task, _listing(workers.shared("job")), tick)


@cache
def _listing(job: Job) -> Listing:
    return Listing.reopen(job.listing)


def _pack_all(
    job: Job, tasks: Sequence[Task], listing: Listing, num_workers: int, progress: Progress
) -> Iterator[DoneMarker]:
    processes = workers.num_processes(num_workers, len(tasks), images=sum(t.count for t in tasks))
    if processes == 1:
        for task in tasks:
            yield pack_shard(job, task, listing, lambda size: progress.advance(1, size))
        return
    images, num_bytes = (workers.context().Value("q", 0) for _ in range(2))
    for _, marker in workers.run(
        _run_task,
        tasks,
        processes,
        values={"job": job, "images": images, "bytes": num_bytes},
        preload=("webdataset.writer", "PIL.Image"),
        tick=lambda: progress.update(images.value, num_bytes.value),
    ):
        yield marker
