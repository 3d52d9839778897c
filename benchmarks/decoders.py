"""Decoders of JPEG against each other, and the whole transform against decoding alone: CPU time, and the pixels.

Photographs of 500 x 375 and of 2000 x 1500 pixels, about 100 and 900 kB. Each decoder makes RGB of the whole image;
`scaled` decodes 1/2, 1/4 or 1/8 as far as the crop that is drawn keeps 224 pixels a side, `region` the crop alone. The
view is Inception's crop to 224. They take turns, image by image; the median of the rounds counts. Decoders that are not
installed are left out: `pip install simplejpeg opencv-python-headless nvidia-nvimgcodec-cu13` brings three.

The transform is all that makes a file's bytes a row of a batch, as the stream calls it: header checked, crop drawn,
decoded, cropped, resized, flipped, copied, eight images a stage; with torchvision's decoder, and with the region alone.
Beside it, on the same files, eight at a time: libjpeg-turbo that merely decodes them, and torchvision's pipeline of PIL
images (RandomResizedCrop, flip, ToTensor, Normalize). Aims: with the region at least the rate of decoding alone;
without it 1.5 times PIL's pipeline.

    python -m benchmarks.decoders [--images 24] [--rounds 5] [--only transform]
"""

from __future__ import annotations

import argparse
import functools
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

from benchmarks import loader, peers
from benchmarks.launcher_slowdown import spread
from benchmarks.synthetic import pool_of_photos
from vit_dist.config.augment import AugmentConfig
from vit_dist.data.augment import Augment, Draw
from vit_dist.data.decode import Encoded
from vit_dist.data.images import DecodeError, check_jpeg
from vit_dist.data.regions import RegionDecoder
from vit_dist.data.ring import Buffers
from vit_dist.data.rows import TOGETHER
from vit_dist.data.stream import _augmented

SIZE = 224
SHRINKS = (1, 2, 4, 8)
_DECODES, _PIL = "libjpeg-turbo (torchvision) decodes", "torchvision's pipeline of PIL"
Box = tuple[int, int, int, int]
"""Top, left, height, width."""
Decoder = Callable[[bytes, int, Box | None], Tensor]
"""Bytes of a JPEG, by how much its sides may be shrunk, and which part is wanted -> uint8 [3, H, W]."""


def of_torchvision(content: bytes, _shrink: int = 1, _box: Box | None = None) -> Tensor:
    jpeg = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    pixels: Tensor = decode_jpeg(jpeg, mode=ImageReadMode.RGB)
    return pixels


def of_pillow(content: bytes, shrink: int, _box: Box | None = None) -> Tensor:
    image = Image.open(io.BytesIO(content), formats=["JPEG"])
    if shrink > 1:
        image.draft("RGB", (image.width // shrink, image.height // shrink))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def of_simplejpeg(content: bytes, shrink: int, _box: Box | None = None) -> Tensor:
    simplejpeg: Any = importlib.import_module("simplejpeg")
    if shrink == 1:
        pixels = simplejpeg.decode_jpeg(content)
    else:
        height, width = simplejpeg.decode_jpeg_header(content)[:2]
        pixels = simplejpeg.decode_jpeg(content, min_height=height // shrink, min_width=width // shrink)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def of_opencv(content: bytes, shrink: int, _box: Box | None = None) -> Tensor:
    cv2: Any = importlib.import_module("cv2")
    flag = cv2.IMREAD_COLOR_RGB if shrink == 1 else getattr(cv2, f"IMREAD_REDUCED_COLOR_{shrink}")
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), flag | cv2.IMREAD_IGNORE_ORIENTATION)
    if pixels is None:
        raise ValueError("no image")
    return torch.from_numpy(pixels if shrink == 1 else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)).permute(2, 0, 1)


@functools.cache
def _nvimgcodec() -> tuple[Any, Any]:
    library: Any = importlib.import_module("nvidia.nvimgcodec")
    backend = library.Backend(library.BackendKind.CPU_ONLY)
    # No device, and no words about libraries for one.
    return library, library.Decoder(device_id=-99999, max_num_cpu_threads=1, backends=[backend], options=":verbosity=0")


def of_nvimgcodec(content: bytes, _shrink: int, box: Box | None = None) -> Tensor:
    library, decoder = _nvimgcodec()
    stream = library.CodeStream(content)
    if box is not None:
        top, left, height, width = box
        stream = stream.get_sub_code_stream(region=library.Region([top, left], [top + height, left + width]))
    pixels = decoder.decode(stream)
    if pixels is None:
        raise ValueError("no image")
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


DECODERS: dict[str, tuple[str, Decoder, str]] = {
    "torchvision": ("torchvision", of_torchvision, "whole"),
    "Pillow": ("PIL", of_pillow, "whole"),
    "simplejpeg": ("simplejpeg", of_simplejpeg, "whole"),
    "OpenCV": ("cv2", of_opencv, "whole"),
    "nvImageCodec": ("nvidia.nvimgcodec", of_nvimgcodec, "whole"),
    "Pillow, scaled": ("PIL", of_pillow, "scaled"),
    "simplejpeg, scaled": ("simplejpeg", of_simplejpeg, "scaled"),
    "OpenCV, scaled": ("cv2", of_opencv, "scaled"),
    "nvImageCodec, region": ("nvidia.nvimgcodec", of_nvimgcodec, "region"),
}


def installed() -> dict[str, tuple[Decoder, str]]:
    return {name: (make, part) for name, (module, make, part) in DECODERS.items() if _imports(module)}


def _imports(module: str) -> bool:
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def larger(files: list[bytes]) -> list[bytes]:
    """The same photographs with four times the pixels a side, as a phone would store them."""
    made = []
    for content in files:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(content)).resize((2000, 1500), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
        made.append(buffer.getvalue())
    return made


def view(pixels: Tensor, size: tuple[int, int], augment: Augment, ordinal: int, part: str) -> Tensor:
    """The crop that is drawn for an image of `size` pixels (height, width), out of what was decoded of it."""
    draw = augment.draw(*size, epoch=0, ordinal=ordinal)
    assert draw.box is not None
    if part == "region":
        return augment.render(pixels, Draw(None, draw.flip))
    tall, wide = (have / full for have, full in zip(pixels.shape[1:], size, strict=True))
    top, left, height, width = draw.box
    box = (round(top * tall), round(left * wide), max(1, round(height * tall)), max(1, round(width * wide)))
    return augment.render(pixels, Draw(box, draw.flip))


def box_of(size: tuple[int, int], augment: Augment, ordinal: int) -> Box:
    box = augment.draw(*size, epoch=0, ordinal=ordinal).box
    assert box is not None
    return box


def compare(files: list[bytes], rounds: int) -> None:
    augment = Augment(AugmentConfig(), SIZE, (0.05, 1.0), (3 / 4, 4 / 3), 0)
    decoders = installed()
    whole: dict[str, list[float]] = {name: [] for name in decoders}
    viewed: dict[str, list[float]] = {name: [] for name in decoders}
    differences: dict[str, list[float]] = {name: [] for name in decoders}
    sizes = [(int(pixels.shape[1]), int(pixels.shape[2])) for pixels in map(of_torchvision, files)]
    boxes = [box_of(size, augment, i) for i, size in enumerate(sizes)]
    shrinks = [max(n for n in SHRINKS if n == 1 or min(box[2:]) // n >= SIZE) for box in boxes]
    for number in range(rounds + 1):
        spent = {name: [0.0, 0.0] for name in decoders}
        for i, content in enumerate(files):
            for name, (make, part) in decoders.items():
                # Of the process: nvImageCodec has a thread of its own.
                began = time.process_time()
                pixels = make(content, shrinks[i] if part == "scaled" else 1, boxes[i] if part == "region" else None)
                middle = time.process_time()
                seen = view(pixels, sizes[i], augment, i, part)
                spent[name][0] += middle - began
                spent[name][1] += time.process_time() - began
                if number == 0:
                    reference = view(of_torchvision(content), sizes[i], augment, i, "whole")
                    differences[name].append((seen.int() - reference.int()).abs().float().mean().item())
        if number:
            for name, (decoding, both) in spent.items():
                whole[name].append(decoding)
                viewed[name].append(both)
    shares = ", ".join(f"1/{n} {shrinks.count(n) / len(shrinks):.0%}" for n in SHRINKS if n in shrinks)
    mean = sum(map(len, files)) / len(files) / 1e3
    print(f"{sizes[0][1]} x {sizes[0][0]} pixels, mean {mean:.0f} kB; crops allow {shares}")
    print(f"  {'':<22}{'ms, decode':>12}{'speed':>8}{'ms, view':>12}{'speed':>8}{'difference':>12}")
    first = next(iter(decoders))
    for name in decoders:
        decoding, both = (statistics.median(t[name]) / len(files) * 1e3 for t in (whole, viewed))
        ratios = [statistics.median(a / b for a, b in zip(t[first], t[name], strict=True)) for t in (whole, viewed)]
        difference = statistics.mean(differences[name])
        print(f"  {name:<22}{decoding:12.2f}{ratios[0]:8.2f}{both:12.2f}{ratios[1]:8.2f}{difference:12.3f}")


def transforms(files: list[bytes], rounds: int) -> None:
    """All that becomes of a file, over decoding it."""
    augment = Augment(AugmentConfig(), SIZE, (0.05, 1.0), (3 / 4, 4 / 3), 0)
    rows, pil = Buffers.make(TOGETHER, SIZE, 1).images, peers.floats()
    floats = torch.empty(3, SIZE, SIZE)
    tensors = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in files]

    def ours(numbers: range, regions: RegionDecoder | None) -> None:
        begun = [(i, _augmented(augment, Encoded(files[i], regions=regions), 0, i)) for i in numbers]
        while begun:
            going, begun = begun, []
            for i, stages in going:
                try:
                    next(stages)
                except StopIteration as done:
                    rows[i - numbers.start].copy_(done.value)
                else:
                    begun.append((i, stages))

    def each(make: Callable[[int], Any]) -> Callable[[range], None]:
        def made(numbers: range) -> None:
            for i in numbers:
                make(i)

        return made

    makes: dict[str, Callable[[range], None]] = {
        _DECODES: each(lambda i: decode_jpeg(tensors[i], mode=ImageReadMode.RGB)),
        "ours, torchvision's decoder": lambda numbers: ours(numbers, None),
        _PIL: each(lambda i: floats.copy_(pil(Image.open(io.BytesIO(files[i])).convert("RGB")))),
    }
    # Not imported here: RegionDecoder does so without the words about libraries for GPUs.
    if loader.installed("nvidia.nvimgcodec"):
        regions = RegionDecoder()
        makes["ours, the region alone"] = lambda numbers: ours(numbers, regions)
        makes["the same, each image to its end"] = each(lambda i: ours(range(i, i + 1), regions))
    if loader.installed("simplejpeg"):
        makes["simplejpeg's newer one decodes"] = each(lambda i: of_simplejpeg(files[i]))
    spent: dict[str, list[float]] = {name: [] for name in makes}
    # The first round is a rehearsal. Each begins elsewhere: what comes after PIL finds other things in the caches.
    for number in range(rounds + 1):
        sums, names = dict.fromkeys(makes, 0.0), list(makes)
        for turn, begin in enumerate(range(0, len(files), TOGETHER)):
            first = (number + turn) % len(names)
            those = range(begin, min(begin + TOGETHER, len(files)))
            for name in names[first:] + names[:first]:
                began = time.process_time()
                makes[name](those)
                sums[name] += time.process_time() - began
        if number:
            for name, seconds in sums.items():
                spent[name].append(seconds / len(files) * 1e3)
    print("the whole transform, ms an image and speed: median (lowest to highest) of the rounds")
    print(f"  {'':<36}{'ms':>20}  {'over decoding alone':>20}  {'over the PIL pipeline':>22}")
    for name, times in spent.items():
        cells = [spread(times, ".2f")] + [
            spread([a / b for a, b in zip(spent[other], times, strict=True)], ".2f") for other in (_DECODES, _PIL)
        ]
        print(f"  {name:<36}{cells[0]:>20}  {cells[1]:>20}  {cells[2]:>22}", flush=True)


def cut_off(files: list[bytes]) -> None:
    """What each makes of JPEGs that end too early."""
    print("JPEGs that were cut off at half their bytes, and refused")
    for name, (make, part) in installed().items():
        if part != "whole":
            continue
        refused = 0
        for content in files:
            try:
                make(content[: len(content) // 2], 1, None)
            except (OSError, RuntimeError, ValueError):
                refused += 1
        print(f"  {name:<22}{refused} of {len(files)}")
    refused = 0
    for content in files:
        try:
            check_jpeg(content[: len(content) // 2])
        except DecodeError:
            refused += 1
    print(f"  {'by our own check':<22}{refused} of {len(files)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("decoders", "transform"), help="left out: both")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if _imports("cv2"):
        importlib.import_module("cv2").setNumThreads(1)
    warnings.simplefilter("ignore")
    files = [content for _, content in pool_of_photos(args.images)]
    print(f"load of the machine {os.getloadavg()[0]:.1f}")
    if args.only != "decoders":
        transforms(files, args.rounds)
    if args.only != "transform":
        print("speed: of torchvision's; difference: of 255, mean")
        compare(files, args.rounds)
        compare(larger(files[: max(1, args.images // 3)]), args.rounds)
        cut_off(files)


if __name__ == "__main__":
    main()
