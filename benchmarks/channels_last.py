"""A training step of R50x1 and R50+ViT-B/16 with channels-last images against the usual layout, in the same loop.

One model takes a step on either in turns; each pair gives one ratio of images a second, channels-last over the usual.
Reported are the median of the ratios and its 95% interval. On a GPU where one is there.

python -m benchmarks.channels_last [--pairs 11] [--batch 4]
"""

from __future__ import annotations

import argparse
import statistics
import sys

import torch

from benchmarks.models_against_timm import interval
from vit_dist.cli.models.options import model_config
from vit_dist.compare.measure import timed_step

LAYOUTS = {"usual": torch.contiguous_format, "last": torch.channels_last}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("R50x1", "R50+ViT-B/16"):
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            model = model_config(name).build(num_classes=1000, image_size=224).to(device, dtype)
            given = torch.randn(args.batch, 3, 224, 224, device=device, dtype=dtype)
            images = {layout: given.contiguous(memory_format=form) for layout, form in LAYOUTS.items()}

            def step(layout: str) -> float:
                def work() -> None:
                    model.zero_grad(set_to_none=True)  # noqa: B023 - called within this turn
                    model(images[layout]).float().logsumexp(1).sum().backward()  # noqa: B023

                return timed_step(work, device)

            for layout in LAYOUTS:
                step(layout)
            ratios = []
            for pair in range(args.pairs):
                order = ("usual", "last") if pair % 2 == 0 else ("last", "usual")
                spent = {layout: step(layout) for layout in order}
                ratios.append(spent["usual"] / spent["last"])
            low, high = interval(sorted(ratios))
            print(
                f"{name} on {device.type}, {str(dtype).removeprefix('torch.')}: channels-last images give "
                f"{statistics.median(ratios):.3f} of the usual layout's speed [{low:.3f}, {high:.3f}]"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
