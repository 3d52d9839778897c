"""A training step of our ViT-B/16 and R50x1 against timm's plain model of the same name, in the same loop.

Both models stand in one process and take a step in turns; each pair gives one ratio of images a second, ours over
timm's. Reported are the median of the ratios and its 95% interval by order statistics. At least 1.0 is the aim. timm's
ViT has the exact GELU; the paper's public code, and so our default, the tanh one, which costs a CPU about a percent.

python -m benchmarks.models_against_timm [--pairs 11] [--batch 4]
"""

from __future__ import annotations

import argparse
import statistics
import sys

import timm
import torch
from torch.nn import functional

from vit_dist.cli.models.options import model_config
from vit_dist.compare.measure import timed_step

PEERS = {
    ("ViT-B/16", "gelu=exact"): "vit_base_patch16_224",
    ("ViT-B/16",): "vit_base_patch16_224",
    ("R50x1",): "resnetv2_50x1_bit",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    images, labels = torch.randn(args.batch, 3, 224, 224), torch.zeros(args.batch, dtype=torch.long)
    for (ours, *settings), theirs in PEERS.items():
        torch.manual_seed(0)
        models = {
            "ours": model_config(ours, settings).build(num_classes=1000, image_size=224),
            "timm": timm.create_model(theirs, num_classes=1000),
        }
        optimizers = {name: torch.optim.AdamW(model.parameters(), lr=1e-4) for name, model in models.items()}

        def step(name: str) -> float:
            model, optimizer = models[name], optimizers[name]  # noqa: B023 - called within this turn

            def work() -> None:
                optimizer.zero_grad(set_to_none=True)
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.precision == "bf16"):
                    logits = model(images)
                functional.cross_entropy(logits.float(), labels).backward()
                optimizer.step()

            return timed_step(work, images.device)

        for name in models:
            step(name)
        ratios, seconds = [], []
        for pair in range(args.pairs):
            order = ("ours", "timm") if pair % 2 == 0 else ("timm", "ours")
            spent = {name: step(name) for name in order}
            ratios.append(spent["timm"] / spent["ours"])
            seconds.append(spent["ours"])
        low, high = interval(sorted(ratios))
        name = " ".join((ours, *settings))
        print(
            f"{name}: {statistics.median(ratios):.3f} of timm's {theirs} [{low:.3f}, {high:.3f}], {args.pairs} pairs; "
            f"{args.batch / statistics.median(seconds):.2f} images/s, {args.precision}"
        )
    return 0


def interval(ordered: list[float]) -> tuple[float, float]:
    """Between which of the ordered values the median lies with 95% (binomial, normal approximation)."""
    n = len(ordered)
    low = max(0, int((n - 1.96 * n**0.5) / 2))
    return ordered[low], ordered[n - 1 - low]


if __name__ == "__main__":
    sys.exit(main())
