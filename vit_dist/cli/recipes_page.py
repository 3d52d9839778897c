"""docs/recipes.md: the shipped recipes as a page, from their files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vit_dist.cli.recipes import assumed, hours, number

if TYPE_CHECKING:
    from vit_dist.core.devices import Device
    from vit_dist.study.shipped import ShippedRecipe

_BEGIN = """# Shipped recipes

<!-- Written by `vit-dist recipes --page`, from configs/recipes; a test compares. -->

`vit-dist recipes` prints this table for any GPU, `vit-dist recipes NAME` one recipe in full, `--json` and `--csv` every
number. What stands here is in the recipes themselves, under [`about`](recipe.md#about).

- **length**: epochs are those of the source's training set.
- **GPU-hours**: arithmetic, not measured: FLOPs of all training steps by {assumed}. Evaluation and waiting
  come on top.
- **reported**: what the source says of what *it* trained, in %. None of it was measured with this project.
- **differs**: what of the source the recipe does not do, or does otherwise; the letters are below.

A recipe of yours begins with `base: NAME`, and does not take over what is said `about` the one below it.
"""


def page(found: Sequence[ShippedRecipe], device: Device, utilisation: float) -> str:
    """All recipes as Markdown, those of one source together.

    Args:
        found: the recipes.
        device: that their hours were counted by.
        utilisation: fraction of its peak.
    """
    letters: dict[str, str] = {}
    for one in found:
        for text in one.recipe.about.differs if one.recipe.about is not None else ():
            letters.setdefault(text, _letter(len(letters)))
    parts = [_BEGIN.format(assumed=assumed(device, utilisation))]
    groups: dict[str, list[ShippedRecipe]] = {}
    for one in found:
        groups.setdefault(_paper(one), []).append(one)
    for paper, some in groups.items():
        parts.append(f"## {paper}\n\n{_table(some, letters)}")
    parts.append("## What differs\n\n" + "".join(f"- **{letter}**: {text}\n" for text, letter in letters.items()))
    return "\n".join(parts)


def _letter(n: int) -> str:
    return chr(ord("a") + n) if n < 26 else f"{_letter(n // 26 - 1)}{_letter(n % 26)}"


_TITLES = {
    "2010.11929": "ViT",
    "1912.11370": "BiT",
    "2106.10270": "AugReg",
    "2205.01580": "Better plain ViT baselines",
    "2204.07118": "DeiT III",
}


def _paper(one: ShippedRecipe) -> str:
    """The heading that a recipe stands below."""
    source = one.recipe.about.source if one.recipe.about is not None else ""
    if not source.startswith("arXiv "):
        return "This project's own"
    number = source.removeprefix("arXiv ")[:10]
    title = f"{_TITLES[number]} (arXiv {number})" if number in _TITLES else f"arXiv {number}"
    return title if one.recipe.finetune is None else f"{title}: fine-tuning"


def _table(some: Sequence[ShippedRecipe], letters: dict[str, str]) -> str:
    lines = ["| recipe | model | data | length | GPU-hours | reported | differs |", "| --- | --- | --- | --- | ---: | --- | --- |"]
    for one in some:
        about = one.recipe.about
        reported = [f"{number(r)} {r.metric.replace(' in %', '')} ({r.where})" for r in about.reported] if about else []
        differs = [letters[text] for text in about.differs] if about else []
        cells = [
            f"`{one.name}`",
            one.recipe.model.name,
            one.trained_on or "yours",
            str(one.recipe.horizon),
            hours(one),
            "; ".join(reported),
            ", ".join(differs),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
