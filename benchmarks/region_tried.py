"""What else could make an image cheaper where its crop alone is decoded: tried, measured, and not built.

CPU time of the process, of photographs of 500 x 375 pixels from their bytes to a row of a batch: Inception's crop to
224, flip. All take turns over the same images; medians over the rounds, and the median of the ratio to the region as
nvImageCodec decodes it. What is not installed is left out: `pip install opencv-python-headless kornia-rs ajpegli`.

    python -m benchmarks.region_tried [--images 48] [--rounds 9]
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from benchmarks.decoders import SIZE, Box, box_of
from benchmarks.synthetic import pool_of_photos
from vit_dist.config.augment import AugmentConfig
from vit_dist.data.augment import Augment, Draw
from vit_dist.data.decode import decode
from vit_dist.data.regions import RegionDecoder

AT_ONCE = 8
SIDE = 16
"""Of a unit of JPEGs whose colours have half of the sides, as Pillow writes them."""
Resizing = Callable[[Augment, Tensor, bool, Tensor], None]
Way = Callable[[list[bytes], list[Box]], list[Tensor]]
"""JPEGs and the box of each -> the pixels of the boxes, uint8 [3, height, width]."""


def part(pixels: Tensor, box: Box) -> Tensor:
    top, left, height, width = box
    return pixels[:, top : top + height, left : left + width]


def whole(jpegs: list[bytes], boxes: list[Box]) -> list[Tensor]:
    return [part(decode(jpeg), box) for jpeg, box in zip(jpegs, boxes, strict=True)]


def regions(decoder: RegionDecoder) -> Way:
    def decoded(jpegs: list[bytes], boxes: list[Box]) -> list[Tensor]:
        found = [decoder.decode(jpeg, box) for jpeg, box in zip(jpegs, boxes, strict=True)]
        return [pixels for pixels in found if pixels is not None]

    return decoded


def at_once(decoder: RegionDecoder) -> Way:
    """The same, of which the library is given several together."""
    library: Any = importlib.import_module("nvidia.nvimgcodec")

    def stream(jpeg: bytes, box: Box) -> Any:
        top, left, height, width = box
        region = library.Region([top, left], [top + height, left + width])
        return library.CodeStream(jpeg).get_sub_code_stream(region=region)

    def decoded(jpegs: list[bytes], boxes: list[Box]) -> list[Tensor]:
        found = []
        for first in range(0, len(jpegs), AT_ONCE):
            streams = list(map(stream, jpegs[first : first + AT_ONCE], boxes[first : first + AT_ONCE]))
            found += decoder._decoder.decode(streams, params=decoder._params)
        return [torch.from_numpy(np.asarray(pixels)).permute(2, 0, 1) for pixels in found]

    return decoded


def between_restarts(jpegs: list[bytes], boxes: list[Box]) -> list[Tensor]:
    """Of JPEGs with restart markers the stretches that hold the box, put together as a smaller JPEG."""
    found = []
    for jpeg, box in zip(jpegs, boxes, strict=True):
        smaller, moved = cut(jpeg, box)
        found.append(part(decode_jpeg(torch.frombuffer(smaller, dtype=torch.uint8), mode=ImageReadMode.RGB), moved))
    return found


def cut(jpeg: bytes, box: Box) -> tuple[bytearray, Box]:
    """The part of a baseline JPEG that a box needs, and the box in it; where rows end, restart markers do."""
    frame = restarts = 0
    at = 2
    while jpeg[at + 1] != 0xDA:
        frame = at if jpeg[at + 1] == 0xC0 else frame
        restarts = int.from_bytes(jpeg[at + 4 : at + 6], "big") if jpeg[at + 1] == 0xDD else restarts
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    scan = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    height, width = (int.from_bytes(jpeg[frame + i : frame + i + 2], "big") for i in (5, 7))
    wide = SIDE * restarts
    rows, columns = -(-height // SIDE), -(-width // wide)
    content = np.frombuffer(jpeg, np.uint8, len(jpeg) - 2)
    marks = (content == 0xFF).nonzero()[0]
    marks = marks[(content[marks + 1] & 0xF8) == 0xD0]
    # Where the marker before each stretch begins; the first has none.
    edges = np.concatenate(([scan - 2], marks, [len(content)]))
    # One more pixel on each side has a part in the colours, of which there are half as many.
    top, left = max(0, box[0] - 2) // SIDE, max(0, box[1] - 2) // wide
    bottom = min(rows, -(-(box[0] + box[2] + 2) // SIDE))
    right = min(columns, -(-(box[1] + box[3] + 2) // wide))
    kept = edges[:-1].reshape(rows, columns)[top:bottom, left:right]
    begins, ends = kept[:, 0], edges[1:].reshape(rows, columns)[top:bottom, right - 1]
    header = bytearray(jpeg[:scan])
    header[frame + 5 : frame + 7] = (min(height, bottom * SIDE) - top * SIDE).to_bytes(2, "big")
    header[frame + 7 : frame + 9] = (min(width, right * wide) - left * wide).to_bytes(2, "big")
    first, *others = begins.tolist()
    pieces = [jpeg[begin:end] for begin, end in zip([first + 2, *others], ends.tolist(), strict=True)]
    smaller = bytearray().join([header, *pieces, b"\xff\xd9"])
    lengths = ends - begins
    moved = (kept + (np.cumsum(lengths) - lengths - begins + scan - 1)[:, None]).reshape(-1)[1:]
    np.frombuffer(smaller, np.uint8)[moved] = 0xD0 + (np.arange(len(moved)) & 7)
    return smaller, (box[0] - top * SIDE, box[1] - left * wide, box[2], box[3])


def with_restarts(jpeg: bytes, units: int) -> bytes:
    """The same picture once more, with a restart marker after so many units (0: none)."""
    buffer = io.BytesIO()
    options = {"restart_marker_blocks": units} if units else {}
    Image.open(io.BytesIO(jpeg)).save(buffer, "JPEG", quality=88, **options)
    return buffer.getvalue()


def ours(augment: Augment, pixels: Tensor, flip: bool, row: Tensor) -> None:
    row.copy_(augment.render(pixels, Draw(None, flip)))


def by_opencv(_augment: Augment, pixels: Tensor, flip: bool, row: Tensor) -> None:
    """Without antialiasing."""
    cv2: Any = importlib.import_module("cv2")
    source, target = pixels.permute(1, 2, 0).numpy(), row.permute(1, 2, 0).numpy()
    resized = cv2.resize(source, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    np.copyto(target, cv2.flip(resized, 1) if flip else resized)


def of_library(make: Callable[[bytes], Any]) -> Way:
    def decoded(jpegs: list[bytes], boxes: list[Box]) -> list[Tensor]:
        every = [torch.from_numpy(np.asarray(make(jpeg))).permute(2, 0, 1) for jpeg in jpegs]
        return list(map(part, every, boxes))

    return decoded


def tries(files: list[bytes]) -> dict[str, tuple[list[bytes], Way, Resizing]]:
    """By name: the files, how they are decoded, and how they are resized. The first is what the others are held to."""
    decoder = RegionDecoder()
    plain = [with_restarts(jpeg, 0) for jpeg in files]
    found: dict[str, tuple[list[bytes], Way, Resizing]] = {
        "the region": (plain, regions(decoder), ours),
        "the whole image, torchvision": (plain, whole, ours),
        f"the region, {AT_ONCE} images a call": (plain, at_once(decoder), ours),
    }
    for units in (8, 4, 2, 1):
        marked = [with_restarts(jpeg, units) for jpeg in files]
        size = sum(map(len, marked)) / sum(map(len, plain)) - 1
        found[f"a restart marker each {units} units (+{size:.1%} bytes)"] = (marked, between_restarts, ours)
        if units == 1:
            found["the same files, the whole image, torchvision"] = (marked, whole, ours)
    for module, attribute in (("kornia_rs", "io.decode_image_jpeg"), ("ajpegli", "decode")):
        try:
            make: Any = importlib.import_module(module)
        except ImportError:
            continue
        for name in attribute.split("."):
            make = getattr(make, name)
        found[f"the whole image, {module}"] = (plain, of_library(make), ours)
    try:
        importlib.import_module("cv2").setNumThreads(1)
        found["the region, resized by OpenCV"] = (plain, regions(decoder), by_opencv)
    except ImportError:
        pass
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=48, help="in whole calls of 8")
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    files = [content for _, content in pool_of_photos(max(1, args.images // AT_ONCE) * AT_ONCE)]
    augment = Augment(AugmentConfig(), SIZE, (0.05, 1.0), (3 / 4, 4 / 3), 0)
    boxes = [box_of((375, 500), augment, ordinal) for ordinal in range(len(files))]
    flips = [augment.draw(375, 500, epoch=0, ordinal=ordinal).flip for ordinal in range(len(files))]
    found = tries(files)
    spent: dict[str, list[list[float]]] = {name: [] for name in found}
    rows = {name: torch.empty(len(files), SIZE, SIZE, 3, dtype=torch.uint8).permute(0, 3, 1, 2) for name in found}
    for _ in range(args.rounds + 1):
        for name in found:
            spent[name].append([0.0, 0.0])
        for group in range(0, len(files), AT_ONCE):
            those = slice(group, group + AT_ONCE)
            for name, (jpegs, way, resized) in found.items():
                began = time.process_time()
                pixels = way(jpegs[those], boxes[those])
                decoded = time.process_time()
                for row, region, flip in zip(rows[name][those], pixels, flips[those], strict=True):
                    resized(augment, region, flip, row)
                spent[name][-1][0] += decoded - began
                spent[name][-1][1] += time.process_time() - began
    first = next(iter(found))
    print(f"load of the machine {os.getloadavg()[0]:.1f}; us: CPU microseconds an image; difference: of 255, mean")
    print(f"  {'':<46}{'us, decode':>12}{'of region':>10}{'us, view':>12}{'of region':>10}{'difference':>12}")
    for name, times in spent.items():
        line = f"  {name:<46}"
        for which in (0, 1):
            middle = statistics.median(took[which] for took in times[1:]) / len(files) * 1e6
            ratio = statistics.median(a[which] / b[which] for a, b in zip(times[1:], spent[first][1:], strict=True))
            line += f"{middle:12.0f}{ratio:10.2f}"
        print(line + f"{(rows[name].int() - rows[first].int()).abs().float().mean().item():12.3f}")


if __name__ == "__main__":
    main()
