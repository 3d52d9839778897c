"""Indexing against reading: `python benchmarks/index_tars.py [--dir DIR] [--gib N]`.

Writes tars of JPEG-sized members, then, in turn, reads them raw and indexes them, each round with the files dropped
from the page cache first, so that both wait for the same disk. The median of the rounds' ratios is what counts: at
least 0.8. With --warm the files stay in memory: raw reading is a mere copy then, and the ratio shows what parsing and
checksums cost.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from vit_dist.data.scan import scan_tar

CHUNK = 1 << 20


def write_tars(folder: Path, total_bytes: int, count: int = 4) -> list[Path]:
    from webdataset.writer import TarWriter

    draws = random.Random(0)
    noise = os.urandom(1 << 20)
    paths = [folder / f"{i:05d}.tar" for i in range(count)]
    for path in paths:
        with path.open("wb") as file:
            writer = TarWriter(file, mtime=0, encoder=False)
            written = number = 0
            while written < total_bytes // count:
                size = min(max(int(draws.gauss(110_000, 40_000)), 4_000), 500_000)
                begin = draws.randrange(len(noise) - size)
                writer.write(
                    {"__key__": f"{number:08d}", "jpg": noise[begin : begin + size], "cls": b"%d" % (number % 1000)}
                )
                written += size
                number += 1
            writer.close()
            file.flush()
            os.fsync(file.fileno())
    return paths


def drop(paths: list[Path]) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def read_raw(path: Path) -> int:
    buffer, total = memoryview(bytearray(CHUNK)), 0
    with path.open("rb", buffering=0) as file:
        while got := file.readinto(buffer):
            total += got
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, help="folder on the disk to measure (a temporary one)")
    parser.add_argument("--gib", type=float, default=1.0, help="bytes of tars to write")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm", action="store_true", help="leave the files in the page cache")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        paths = write_tars(Path(folder), int(args.gib * 2**30))
        ratios = []
        for number in range(args.rounds):
            speeds = {}
            # Taking turns at going first, lest a disk that warms up favours one of them.
            for name in ("raw", "index") if number % 2 else ("index", "raw"):
                if not args.warm:
                    drop(paths)
                started = time.perf_counter()
                total = sum(read_raw(p) if name == "raw" else scan_tar(str(p)).num_bytes for p in paths)
                speeds[name] = total / (time.perf_counter() - started) / 1e6
            ratios.append(speeds["index"] / speeds["raw"])
            print(f"raw {speeds['raw']:7.0f} MB/s   index {speeds['index']:7.0f} MB/s   ratio {ratios[-1]:.2f}")
        print(f"median ratio {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()
