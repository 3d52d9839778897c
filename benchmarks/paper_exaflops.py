"""The exaFLOPs column of the ViT paper's Table 6 against the rule, row by row, with the head of JFT-300M.

6 x multiply-adds of one forward pass at 224 pixels x 303M images x epochs. No torch, no time: it prints the table of
docs/models.md.

python -m benchmarks.paper_exaflops
"""

from __future__ import annotations

import sys

from vit_dist.cli.models.options import model_config
from vit_dist.models.costs import model_cost, training_flops
from vit_dist.scaling.paper import table6

IMAGES, CLASSES = 303_000_000, 18_291
LIMITS = {"vit": 0.005, "bit": 0.06, "hybrid": 0.06}
EXCEPTIONS = {"ViT-B/32": 0.03}


def main() -> int:
    missed = 0
    print("| model | epochs | paper | rule | difference |\n|---|---|---|---|---|")
    for row in table6():
        config = model_config(row.model)
        cost = model_cost(config, num_classes=CLASSES, image_size=224)
        ours = training_flops(cost.macs, IMAGES * row.epochs) / 1e18
        off = ours / row.exaflops - 1
        missed += abs(off) > EXCEPTIONS.get(row.model, LIMITS[config.family])
        print(f"| {row.model} | {row.epochs} | {row.exaflops:,.0f} | {ours:,.1f} | {100 * off:+.1f}% |")
    print(f"\n{missed} rows beyond their limit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
