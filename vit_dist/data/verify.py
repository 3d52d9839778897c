"""Do the tars still hold what manifest and indexes say? Every difference is named, with what to do. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from vit_dist.core.errors import DataError
from vit_dist.core.files import exists, join_url, parent_url, read_bytes, redact
from vit_dist.core.small_files import DamagedError, is_flag, is_mapping, is_text, required
from vit_dist.core.units import counted
from vit_dist.data import workers
from vit_dist.data.describe import undecodable
from vit_dist.data.index import ShardIndex
from vit_dist.data.indexing import RULE_FIELDS, decode_entry
from vit_dist.data.labels import LabelRule
from vit_dist.data.manifest import Shard, ShardManifest
from vit_dist.data.pack.plan import PLAN_FILE
from vit_dist.data.ranges import file_size
from vit_dist.data.scan import scan_tar
from vit_dist.data.tarindex import Places, TarScan

_SHOWN = 5


def _rule_of(manifest: ShardManifest, shard: int) -> LabelRule | None:
    """Where the labels of a shard were read when it was indexed or packed; None where nothing tells.

    Raises:
        DataError: the store cannot be asked.
    """
    index = join_url(manifest.base, manifest.shards[shard].index_url)
    beside = f"{index.removesuffix('.idx.npz')}.json"
    if not exists(beside):
        folder = parent_url(index)
        packed = any(exists(join_url(place, PLAN_FILE)) for place in (folder, parent_url(folder)) if place)
        return LabelRule() if packed else None
    try:
        entry = decode_entry(read_bytes(beside))
        labels = required(entry, "labels", is_mapping, "an object")
        values = {name: required(labels, name, is_text, "a text") for name in RULE_FIELDS}
        named = required(labels, "named", is_flag, "true or false")
    except DamagedError:
        return None
    # The index may be another one by now.
    same = entry["shard"]["index_checksum"] == manifest.shards[shard].index_checksum
    return LabelRule(**values, classes=manifest.classes if named else ()) if same else None


def verify_shard(manifest: ShardManifest, shard: int, *, fast: bool = False, images: bool = False) -> list[str]:
    """What is wrong with a shard, a text each; none where all is well.

    Args:
        manifest: of the dataset.
        shard: its number in it.
        fast: compare sizes and read the index, but not the tar.
        images: decode every image too, where all else is well.
    """
    entry = manifest.shards[shard]
    where = redact(manifest.shard_url(shard))
    problems = []
    index: ShardIndex | None = None
    rule: LabelRule | None = None
    try:
        index = manifest.read_index(shard)
    except DataError as error:
        problems.append(str(error))
    try:
        size = file_size(manifest.shard_url(shard))
        if size != entry.num_bytes:
            problems.append(f"{where}: has {size:,} bytes, the manifest says {entry.num_bytes:,}: {_changed(entry)}")
        if index is not None and index.num_samples and int(index.offsets[-1]) > size:
            problems.append(f"{where}: ends at byte {size:,}, its index reaches byte {int(index.offsets[-1]):,}")
        if fast:
            return problems
        rule = None if index is None else _rule_of(manifest, shard)
        places: Places = {}
        scan = scan_tar(manifest.shard_url(shard), rule or LabelRule("none"), leave_out=True, places=places)
    except DataError as error:
        return [*problems, str(error)]
    if size == entry.num_bytes and scan.checksum != entry.checksum:
        problems.append(f"{where}: has checksum {scan.checksum}, the manifest says {entry.checksum}: {_changed(entry)}")
    if index is not None:
        problems += _differences(where, index, places) or (_other_labels(where, index, scan) if rule else [])
    return _bad_images(where, manifest, shard) if images and not problems else problems


def _changed(entry: Shard) -> str:
    return (
        f"the tar is not the one that was indexed; restore {entry.url} from its source, or make the manifest anew with "
        f"`vit-dist data index`"
    )


def _differences(where: str, index: ShardIndex, places: Places) -> list[str]:
    """Samples that lie elsewhere than their index says; at most five are named."""
    keys = index.keys()
    wrong = [
        f"{where}: its index has the key {key!r} {counted(n, 'time')}" for key, n in Counter(keys).items() if n > 1
    ]
    columns = (index.offsets.tolist(), index.image_offsets.tolist(), index.image_bytes.tolist())
    for key, offset, image, size in zip(keys, *columns, strict=False):
        begin, members = places.get(key, (-1, frozenset()))
        if begin < 0:
            wrong.append(f"{where}: sample {key!r} of the index is not in the tar")
        elif begin != offset:
            wrong.append(f"{where}: sample {key!r} begins at byte {begin:,}, its index says {offset:,}")
        elif (image, size) not in members:
            there = " and ".join(f"{n:,} at byte {at:,}" for at, n in sorted(members))
            wrong.append(
                f"{where}: sample {key!r} has members of {there} bytes, its index says an image of {size:,} at byte "
                f"{image:,}"
            )
    if len(wrong) > _SHOWN:
        wrong[_SHOWN:] = [f"{where}: and {counted(len(wrong) - _SHOWN, 'more sample')}"]
    if wrong:
        wrong.append(f"{where}: {_what_to_do()}")
    return wrong


def _other_labels(where: str, index: ShardIndex, scan: TarScan) -> list[str]:
    """Samples whose index has other labels than the tar; at most five are named."""
    there = {key: _labels_of(scan.index, i) for i, key in enumerate(scan.index.keys())}
    reasons = {key: reason for key, _, reason in scan.left_out}
    wrong = []
    for i, key in enumerate(index.keys()):
        own = _labels_of(index, i)
        if key not in there:
            wrong.append(f"{where}: sample {key!r} {reasons.get(key, 'has no label')}, its index says {own}")
        elif there[key] != own:
            wrong.append(f"{where}: sample {key!r} has the labels {there[key]}, its index says {own}")
    if len(wrong) > _SHOWN:
        wrong[_SHOWN:] = [f"{where}: and {counted(len(wrong) - _SHOWN, 'more sample')} with other labels"]
    if wrong:
        wrong.append(f"{where}: {_what_to_do()}")
    return wrong


def _labels_of(index: ShardIndex, sample: int) -> str:
    labels, weights = index.sample_labels(sample)
    soft = [f"{n}:{w:g}" for n, w in zip(labels.tolist(), weights.tolist(), strict=True)]
    return ", ".join(soft if (weights != 1).any() else map(str, labels.tolist())) or "none"


def _bad_images(where: str, manifest: ShardManifest, shard: int) -> list[str]:
    """Images that training would replace by others; at most five are named."""
    bad = [f"{where}: the image of sample {key!r} is bad: {reason}" for key, reason in undecodable(manifest, shard)]
    if len(bad) > _SHOWN:
        bad[_SHOWN:] = [f"{where}: and {counted(len(bad) - _SHOWN, 'more image')}"]
    return bad


def _what_to_do() -> str:
    return "tar and index do not belong together; restore the tar, or make the manifest anew with `vit-dist data index`"


def verify(
    manifest: ShardManifest, *, fast: bool = False, images: bool = False, num_workers: int = 1
) -> Iterator[tuple[int, list[str]]]:
    """Every shard with what is wrong with it, as they are done."""
    shards = range(len(manifest.shards))
    twice = _twice(manifest)
    # Sizes and indexes alone take no time to compare.
    num_workers = 1 if fast else num_workers
    processes = workers.num_processes(num_workers, len(shards), num_bytes=int(np.sum(manifest.sizes)))
    if processes == 1:
        for shard in shards:
            yield shard, twice.get(shard, []) + verify_shard(manifest, shard, fast=fast, images=images)
        return
    values = {"manifest": manifest, "images": images}
    for shard, problems in workers.run(_verify_task, shards, processes, values=values):
        yield shard, twice.get(shard, []) + problems


def _verify_task(shard: int) -> list[str]:
    return verify_shard(workers.shared("manifest"), shard, images=workers.shared("images"))


def _twice(manifest: ShardManifest) -> dict[int, list[str]]:
    seen: dict[str, int] = {}
    problems = {}
    for shard, entry in enumerate(manifest.shards):
        url = join_url(manifest.base, entry.url)
        if url in seen:
            problems[shard] = [f"{redact(url)}: stands twice in the manifest, as shards {seen[url]} and {shard}"]
        seen.setdefault(url, shard)
    return problems
