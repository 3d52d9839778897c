"""Tars for tests, header by header: every form that programs write, and what becomes of a tar at each stage of ours."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from vit_dist.core.errors import DataError
from vit_dist.data.describe import count, random_pictures
from vit_dist.data.indexing import index_tars
from vit_dist.data.labels import LabelRule
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.order import Segment
from vit_dist.data.pack.choose import open_source
from vit_dist.data.pack.items import safe_key
from vit_dist.data.pack.run import PackOptions, pack
from vit_dist.data.pack.sources import SourceOptions
from vit_dist.data.segments import SegmentReader
from vit_dist.data.sets import Part, Parts
from vit_dist.data.subset import select
from vit_dist.data.verify import verify

Samples = dict[str, tuple[bytes, list[int]]]
"""Image and labels by key."""
END = bytes(1024)
USTAR, GNU, V7 = b"ustar\x0000", b"ustar  \0", b""


def header(
    name: bytes,
    size: int,
    kind: bytes = b"0",
    magic: bytes = USTAR,
    *,
    size_field: bytes | None = None,
    prefix: bytes = b"",
    signed: bool = False,
) -> bytes:
    """A header block; `signed` sums its bytes as old programs did."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:116] = block[116:124] = b"0000000\0"
    block[124:136] = size_field if size_field is not None else b"%011o\0" % size
    block[136:148] = b"00000000000\0"
    block[156:157] = kind
    block[257 : 257 + len(magic)] = magic
    block[345 : 345 + len(prefix)] = prefix
    block[148:156] = b" " * 8
    total = sum(byte - 256 if signed and byte >= 128 else byte for byte in block)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def padded(content: bytes) -> bytes:
    """Content as it lies in a tar."""
    return content + bytes(-len(content) % 512)


def file(name: str | bytes, content: bytes, kind: bytes = b"0", magic: bytes = USTAR, **options: object) -> bytes:
    """A member: header and content."""
    raw = name if isinstance(name, bytes) else name.encode()
    return header(raw, len(content), kind, magic, **options) + padded(content)  # type: ignore[arg-type]


def pax(records: dict[str, bytes], kind: bytes = b"x") -> bytes:
    """An extended header."""
    text = b"".join(_record(key.encode(), value) for key, value in records.items())
    return file("PaxHeaders/x", text, kind)


def _record(key: bytes, value: bytes) -> bytes:
    body = b" %s=%s\n" % (key, value)
    length = len(body)
    while len(b"%d" % length) + len(body) != length:
        length = len(b"%d" % length) + len(body)
    return b"%d" % length + body


def octal(template: bytes) -> Callable[[str, bytes], bytes]:
    """A form whose size field is written as `template` says."""
    return lambda name, content: file(name, content, size_field=(template % len(content)).ljust(12, b"\0"))


FORMS: dict[str, Callable[[str, bytes], bytes]] = {
    "ustar": file,
    "gnu": lambda n, c: file(n, c, magic=GNU),
    "v7": lambda n, c: file(n, c, b"\0", V7),
    "v7 with a typeflag": lambda n, c: file(n, c, b"0", V7),
    "old file": lambda n, c: file(n, c, b"\0"),
    "contiguous": lambda n, c: file(n, c, b"7"),
    "contiguous v7": lambda n, c: file(n, c, b"7", V7),
    "prefix": lambda n, c: (
        file(n.rpartition("/")[2], c, prefix=n.rpartition("/")[0].encode()) if "/" in n[1:] else file(n, c)
    ),
    "star's version": lambda n, c: file(n, c, magic=b"ustar\0  "),
    "pax path": lambda n, c: pax({"path": n.encode()}) + file("x", c),
    "pax path with a slash at its end": lambda n, c: pax({"path": n.encode() + b"/"}) + file("x", c),
    "pax size": lambda n, c: pax({"size": b"%d" % len(c)}) + header(n.encode(), 0) + padded(c),
    "pax path and size": lambda n, c: (
        pax({"mtime": b"1.5", "path": n.encode(), "size": b"%d" % len(c)}) + header(b"x", 0, b"\0") + padded(c)
    ),
    "pax before contiguous": lambda n, c: pax({"path": n.encode()}) + file("x", c, b"7"),
    "pax twice": lambda n, c: pax({"path": n.encode()}) + pax({"path": b"y.jpg", "mtime": b"1"}) + file("x", c),
    "pax with a comment": lambda n, c: pax({"comment": b"two\nlines=1"}) + file(n, c),
    "pax after global": lambda n, c: pax({"comment": b"git"}, b"g") + pax({"path": n.encode()}) + file("x", c),
    "global": lambda n, c: pax({"comment": b"git"}, b"g") + file(n, c),
    "solaris": lambda n, c: pax({"path": n.encode()}, b"X") + file("x", c),
    "gnu long name": lambda n, c: file("././@LongLink", n.encode() + b"\0", b"L", GNU) + file("x", c, magic=GNU),
    "gnu long name before pax": lambda n, c: (
        file("././@LongLink", n.encode() + b"\0", b"L", GNU) + pax({"path": b"y.jpg"}) + file("x", c)
    ),
    "gnu long link": lambda n, c: file("././@LongLink", b"to\0", b"K", GNU) + file(n, c, magic=GNU),
    "binary size": lambda n, c: file(n, c, size_field=b"\x80" + len(c).to_bytes(11, "big")),
    "size with blanks before": octal(b"%10o "),
    "size with blanks around": octal(b" %9o  "),
    "size of digits alone": octal(b"%012o"),
    "size that ends early": octal(b"%o\0 7"),
    "signed checksum": lambda n, c: file(n, c, prefix=b"", signed=True),
}
"""How a file may be written: name and content to bytes of a tar. Names of up to 100 bytes."""

OTHERS: dict[str, bytes] = {
    "no extension": file("README", b"words"),
    "no extension, ends in a dot file": file("a/.b/README", b"words"),
    "hidden": file(".DS_Store", b"\0" * 600),
    "hidden in a folder": file("d/.DS_Store", b"\0" * 600),
    "of a Mac": file("._k1.jpg", b"\0" * 120),
    "of a Mac in a folder": file("d/._k1.jpg", b"\0" * 120),
    "of a Mac's zip": file("__MACOSX/d/._k1.jpg", b"\0" * 120),
    "meta": file("__meta__", b"x"),
    "meta folder": file("__thumbs__/k1.jpg", b"thumbnail"),
    "directory": header(b"d/", 0, b"5"),
    "directory with a size": header(b"d/", 4096, b"5"),
    "v7 directory": header(b"d/", 0, b"\0", V7),
    "v7 directory with a size": header(b"d/", 512, b"\0", V7),
    "dumpdir": file("d/", b"Yk1.jpg\0Yk1.cls\0\0", b"D", GNU),
    "symbolic link": header(b"k.link", 0, b"2"),
    "hard link with a size": header(b"k.hard", 700, b"1"),
    "long link": file("././@LongLink", b"l" * 200 + b"\0", b"K", GNU) + header(b"k.long", 0, b"2", GNU),
    "device": header(b"k.dev", 0, b"3"),
    "block device": header(b"k.blk", 9, b"4"),
    "pipe": header(b"k.pipe", 0, b"6"),
    "volume": header(b"Volume 1", 0, b"V", GNU),
    "continued": file("k.jpg", b"the rest", b"M", GNU),
    "old long names": file("k.jpg", b"names", b"N", GNU),
    "unknown": file("k.jpg", bytes(900), b"Z"),
    "of a vendor": file("k.jpg", b"acl", b"A"),
    "global pax": pax({"comment": b"x" * 600}, b"g") + file("README", b""),
    "not UTF-8": file(b"caf\xe9", b"words"),
    "not UTF-8, long": file("././@LongLink", b"caf\xe9" * 40 + b"\0", b"L", GNU) + file("x", b"words"),
    "absolute": file("/README", b"words"),
    "upwards": file("../README", b"words"),
    "empty": file("", b"words"),
}
"""Members that are no part of a sample."""


def by_webdataset(content: bytes) -> Samples | None:
    """The samples with image and label that webdataset reads, through `tarfile`; None where it fails.

    It is told to leave out hidden files: of itself it takes `d/._k.jpg` for a sample of the key `d/`.
    """
    from webdataset.tariterators import group_by_keys, tar_file_expander

    source = {"url": "tar", "stream": io.BytesIO(content)}
    try:
        found = list(group_by_keys(tar_file_expander([source], select_files=_is_shown)))
    except (tarfile.TarError, ValueError, EOFError):
        return None
    images = {s["__key__"]: [v for k, v in s.items() if k in {"jpg", "png"}] for s in found}
    return {
        s["__key__"]: (images[s["__key__"]][0], [int(s["cls"])]) for s in found if images[s["__key__"]] and "cls" in s
    }


def _is_shown(name: str) -> bool:
    return not name.rpartition("/")[2].startswith("._") and not name.endswith(".DS_Store")


def indexed(path: Path, work: Path, rule: LabelRule | None = None) -> ShardManifest | str:
    """The manifest of a tar, or why it is refused."""
    try:
        return index_tars([str(path)], str(work / "m.json"), rule=rule, quiet=True).manifest
    except DataError as error:
        return str(error)


def by_verify(manifest: ShardManifest) -> list[str]:
    """What is wrong with a set."""
    return [problem for _, problems in verify(manifest) for problem in problems]


def by_training_reader(manifest: ShardManifest) -> Samples:
    """What the training reader finds where the indexes say, its own check of the tar's headers included."""
    parts = Parts([Part(manifest, select(manifest, None, 0))])
    reader = SegmentReader(parts, 1, lambda: 1)
    found: Samples = {}
    try:
        for shard, number in enumerate(manifest.counts.tolist()):
            piece = reader.read(Segment(shard, 0, number)).result()
            for sample in range(number):
                key = piece.index.key(sample)
                assert piece.difference(sample, key) == ""
                found[key] = bytes(piece.image(sample)), piece.index.sample_labels(sample)[0].tolist()
    finally:
        reader.close()
    return found


def by_info(manifest: ShardManifest) -> Samples:
    """What `data info` looks at."""
    assert count(manifest).num_labels == sum(manifest.counts)
    return {p.key: (p.content, list(p.labels)) for p in random_pictures(manifest, manifest.num_samples)}


def packed(path: Path, work: Path, **reading: object) -> ShardManifest | str:
    """The manifest of a tar packed anew, or why it is refused."""
    options = SourceOptions(**reading)  # type: ignore[arg-type]
    try:
        result = pack(
            lambda scratch: open_source(str(path), scratch, options),
            str(work / "packed"),
            PackOptions(),
            max_bad=Fraction(0),
            quiet=True,
        )
    except DataError as error:
        return str(error)
    return result.manifests[0][1]


def by_repack(manifest: ShardManifest, stem: str, keys: Sequence[str]) -> Samples:
    """What a packed set holds, under the keys of the tar that it was packed from."""
    names = {safe_key(f"{stem}/{key}"): key for key in keys}
    return {names[key]: value for key, value in by_training_reader(manifest).items()}
