"""How shipped recipes are told of: hours and numbers, one in full, and all of them as the page docs/recipes.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vit_dist.config.about import ReportedConfig
    from vit_dist.core.devices import Device
    from vit_dist.study.shipped import ShippedRecipe


def hours(one: ShippedRecipe) -> str:
    """Device-hours for people; '?' where they are not known."""
    known = one.device_hours
    if known is None:
        return "?"
    return f"{known:,.0f}" if known >= 9.95 else f"{known:.1f}" if known >= 0.1 else "<0.1"


def number(reported: ReportedConfig) -> str:
    """A reported number as tables print it, with one digit or two."""
    return f"{reported.value:.2f}".removesuffix("0")


def assumed(device: Device, utilisation: float) -> str:
    """What hours are counted by, in words."""
    peak = device.peak("bf16")
    return f"{utilisation:.0%} of an {device.name}'s peak" + (f", {peak / 1e12:g} TFLOP/s in bf16" if peak else "")


def _count(known: int | None) -> str:
    return "?" if known is None else f"{known:,}"


def in_full(one: ShippedRecipe, device: Device, utilisation: float) -> str:
    """A recipe with all that is said of it, for a terminal.

    Args:
        one: the recipe.
        device: that its hours were counted by.
        utilisation: fraction of its peak.
    """
    import textwrap

    from vit_dist.core.units import format_flops

    recipe, about = one.recipe, one.recipe.about
    steps = None if one.examples is None else one.examples // recipe.global_batch
    length = f"{recipe.horizon}: {_count(one.examples)} examples, {_count(steps)} steps of {recipe.global_batch}"
    if one.epochs is not None and recipe.horizon.unit != "epochs":
        length += f", {one.epochs:.3g} epochs"
    params, macs = (None, None) if one.cost is None else (one.cost.params, one.cost.macs)
    cost = f"{_count(params)} parameters, {_count(macs)} multiply-adds an image"
    optim = f"{recipe.optim.name}, lr {recipe.optim.lr:g}"  # type: ignore[attr-defined]
    decay = getattr(recipe.optim, "weight_decay", None)
    facts = [
        ("file", str(one.path)),
        ("model", f"{recipe.model.name}: {cost}"),
        ("data", f"{one.trained_on or 'yours'}, {recipe.data.image_size} pixels, {recipe.data.num_classes} classes"),
        ("length", length),
        ("optimizer", optim + (f", weight decay {decay:g}" if decay is not None else "")),
        ("schedule", f"{recipe.schedule.name}, warm-up {recipe.schedule.warmup}"),  # type: ignore[attr-defined]
        ("loss", recipe.loss.name),
        ("cost", f"{'?' if one.flops is None else format_flops(one.flops)}, {hours(one)} {device.name}-hours"),
        ("", f"counted by {assumed(device, utilisation)}"),
        ("source", about.source if about is not None else "not said"),
        *(("reported", f"{number(r)}: {r.metric} ({r.where})") for r in (about.reported if about is not None else ())),
        *(("differs", text) for text in (about.differs if about is not None else ())),
    ]
    lines, last = [f"{one.name}\n"], ""
    for head, text in facts:
        shown = "" if head == last else head
        lines.append(f"  {shown:<10} " + textwrap.fill(text, 105, subsequent_indent=" " * 13, break_on_hyphens=False))
        last = head
    train = f"vit-dist finetune WEIGHTS DATA --recipe {one.name}" if recipe.finetune else f"vit-dist config {one.name}"
    return "\n".join([*lines, f"  {'next':<10} {train}", ""]).replace("\n\n", "\n")


_BEGIN = """# Shipped recipes

<!-- Written by `vit-dist recipes --page`, from configs/recipes; a test compares. -->

`vit-dist recipes` prints this table for any GPU, `vit-dist recipes NAME` one recipe in full, `--json` and `--csv` every
number. What stands here is in the recipes themselves, under [`about`](recipe.md#about).

- **length**: epochs are those of the source's training set.
- **GPU-hours**: arithmetic, not measured: FLOPs of all training steps by {assumed}. Evaluation and waiting
  come on top; of a fine-tuning they are those of one run, of which its grid trains one for each rate.
- **reported**: what the source says of what *it* trained, in %. None of it was measured with this project.
- **differs**: what of the source the recipe does not do, or does otherwise; the letters are below.

A recipe of yours begins with `base: NAME`, and does not take over what is said `about` the one below it.

DeiT III's second stage goes on from the first's run: `vit-dist train deit3-l16-imagenet-224 init.weights=runs/FIRST`.
SoViT-400m/14 (arXiv 2305.13035) is not among them: its shape is published, but rate, decay and batch of its
pretraining were found in no public configuration.
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
    lines = [
        "| recipe | model | data | length | GPU-hours | reported | differs |",
        "| --- | --- | --- | --- | ---: | --- | --- |",
    ]
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
