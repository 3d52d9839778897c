"""The ViT paper's published numbers, to stand behind ours. Their source is README.md beside this file."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

SOURCE = "Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021 (arXiv 2010.11929)"
# Images that the paper says each set has (section 4.1).
_IMAGES = {"ImageNet": 1_300_000, "ImageNet-21k": 14_000_000, "JFT-300M": 303_000_000}


@dataclass(frozen=True)
class PaperLine:
    """A line of the paper: name, x and ImageNet top-1 in percent."""

    name: str
    x: tuple[float, ...]
    top1: tuple[float, ...]


def pretraining_data() -> list[PaperLine]:
    """Table 5: fine-tuned ImageNet top-1 of each ViT against the images of its pretraining set."""
    rows = [row for row in _rows("table5_pretraining_data.csv") if row["benchmark"] == "imagenet"]
    models = [name for name in rows[0] if name.startswith("ViT")]
    lines = []
    for model in models:
        points = [(float(_IMAGES[row["pretrain"]]), float(row[model])) for row in rows if row[model]]
        lines.append(PaperLine(model, tuple(x for x, _ in points), tuple(y for _, y in points)))
    return lines


def pretraining_compute() -> list[PaperLine]:
    """Table 6: fine-tuned ImageNet top-1 against exaFLOPs of pretraining on JFT-300M, a line a family."""
    lines = []
    for family, name in (("bit", "ResNet (BiT)"), ("vit", "ViT"), ("hybrid", "Hybrid")):
        points = sorted(
            (float(row["exaflops"]), float(row["imagenet"]))
            for row in _rows("table6_jft_scaling.csv")
            if row["family"] == family
        )
        lines.append(PaperLine(name, tuple(x for x, _ in points), tuple(y for _, y in points)))
    return lines


@dataclass(frozen=True)
class PaperCost:
    """A row of Table 6: a model, its epochs on JFT-300M, and what they cost."""

    model: str
    epochs: int
    exaflops: float


def table6() -> list[PaperCost]:
    """What the pretrainings of Table 6 cost, in its order."""
    rows = _rows("table6_jft_scaling.csv")
    return [PaperCost(row["model"], int(row["epochs"]), float(row["exaflops"])) for row in rows]


def _rows(name: str) -> list[dict[str, str]]:
    with (Path(__file__).parent / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
