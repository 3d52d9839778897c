"""CPU time of each change of a training image, beside that of decoding and cropping it.

Photographs of 500 x 375 pixels and about 100 kB, images of 224 pixels, one thread. The changes take turns; the median
of each counts.

    python -m benchmarks.augment [--images 64] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from typing import Any

import torch

from benchmarks.synthetic import pool_of_photos
from vit_dist.config.augment import AUGREG, AugmentConfig, EraseConfig, JitterConfig, RandAugmentConfig
from vit_dist.data.augment import Augment
from vit_dist.data.decode import decode

SIZE = 224
STRENGTHS = [name for name in AUGREG if name != "none"]
CHANGES: dict[str, dict[str, Any]] = {
    "crop, flip and resize": {},
    "RandAugment, torchvision, 2 operations": {"randaugment": RandAugmentConfig()},
    **{f"AugReg {name}, without MixUp": {"augreg": name} for name in STRENGTHS},
    "jitter of brightness, contrast, saturation": {
        "jitter": JitterConfig(brightness=0.4, contrast=0.4, saturation=0.4)
    },
    "jitter of hue": {"jitter": JitterConfig(hue=0.1)},
    "erasing, grey, all images": {"erase": EraseConfig(probability=1.0)},
    "erasing, noise, all images": {"erase": EraseConfig(probability=1.0, fill="noise")},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64, help="a round, of each")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    files = [content for _, content in pool_of_photos(args.images)]
    augments = {
        name: Augment(AugmentConfig(**keys), SIZE, (0.05, 1.0), (3 / 4, 4 / 3), 0) for name, keys in CHANGES.items()
    }
    spent: dict[str, list[float]] = {name: [] for name in ("decode", *augments)}
    for epoch in range(args.rounds + 1):
        began = time.thread_time()
        images = [decode(content) for content in files]
        spent["decode"].append(time.thread_time() - began)
        for name, augment in augments.items():
            began = time.thread_time()
            for ordinal, image in enumerate(images):
                augment.apply(image, epoch=epoch, ordinal=ordinal)
            spent[name].append(time.thread_time() - began)
    # The first round is a rehearsal.
    ms = {name: statistics.median(times[1:]) / args.images * 1e3 for name, times in spent.items()}
    crop = ms["crop, flip and resize"]
    whole = ms["decode"] + crop
    print(f"load of the machine {os.getloadavg()[0]:.1f}; ms of CPU an image, and that over decoding and cropping")
    for name, value in ms.items():
        alone = value if name in {"decode", "crop, flip and resize"} else value - crop
        print(f"  {name:<44}{alone:7.2f}{alone / whole:7.2f}")


if __name__ == "__main__":
    main()
