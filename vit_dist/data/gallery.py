"""A picture of what training sees: some examples as they are stored, as evaluation views them, and epoch by epoch."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from vit_dist.config.schema import Recipe
from vit_dist.data.augment import Augment
from vit_dist.data.decode import centre, decode
from vit_dist.data.images import DecodeError
from vit_dist.data.mixup import draw_mix, mix_images
from vit_dist.data.ranges import RangeReader
from vit_dist.data.sets import TrainingSet

_CELL, _GAP, _LINE = 168, 8, 14  # pixels
_TEXT_SIZE = 11
_LINES = 6


@dataclass(frozen=True)
class Example:
    """One example of the order: its key, epoch and ordinal, and its pixels, uint8 [3, H, W]; or why it has none."""

    key: str
    epoch: int
    ordinal: int
    pixels: Tensor | None
    problem: str = ""


@dataclass
class Row:
    """One example with its views, each with a few words."""

    key: str
    views: list[tuple[Tensor | None, list[str]]] = field(default_factory=list)


def rows(data: TrainingSet, recipe: Recipe, *, start: int, images: int, draws: int) -> list[Row]:
    """What training makes of some examples: in the epoch where they stand, and in those after it.

    Args:
        data: the recipe's.
        recipe: that says how images are changed.
        start: position in the order of the first example.
        images: how many examples.
        draws: how many epochs of each.

    Raises:
        DataError: a tar or an index cannot be read.
    """
    augment, config, found = Augment.of(recipe.data, recipe.seed), recipe.data, []
    for position in range(start, start + images):
        example = read(data, position, upright=config.upright)
        row = Row(example.key)
        found.append(row)
        if example.pixels is None:
            row.views.append((None, ["cannot be decoded:", example.problem]))
            continue
        height, width = example.pixels.shape[1:]
        row.views.append((example.pixels, [f"{width} x {height}", example.key]))
        row.views.append((centre(example.pixels, config.image_size, config.val_fraction), ["evaluation"]))
        for epoch in range(example.epoch, example.epoch + draws):
            draw = augment.draw(height, width, epoch=epoch, ordinal=example.ordinal)
            row.views.append((augment.render(example.pixels, draw), [f"epoch {epoch}", *draw.words()]))
        if config.pair_mixing is not None:
            row.views.append(_mixed(data, recipe, position, augment, example))
    return found


def read(data: TrainingSet, position: int, *, upright: bool) -> Example:
    """The example at a position of the order.

    Raises:
        DataError: its tar or index cannot be read.
    """
    epochs, shards, samples = data.order.locate_many(np.array([position], dtype=np.int64))
    part, own = data.parts.find(int(shards[0]))
    shard, chosen = int(part.subset.shards[own]), part.subset.chosen
    sample = int(samples[0]) if chosen is None else int(chosen[own][int(samples[0])])
    index, reader = part.manifest.read_index(shard), RangeReader()
    begin = int(index.image_offsets[sample])
    try:
        content = reader.read(part.manifest.shard_url(shard), begin, begin + int(index.image_bytes[sample]))
    finally:
        reader.close()
    key, ordinal = index.key(sample), part.ordinal(shard, sample)
    try:
        return Example(key, int(epochs[0]), ordinal, decode(content, upright=upright))
    except DecodeError as error:
        return Example(key, int(epochs[0]), ordinal, None, str(error))


def _mixed(
    data: TrainingSet, recipe: Recipe, position: int, augment: Augment, example: Example
) -> tuple[Tensor | None, list[str]]:
    """The example as the step of its position trains on it, mixed with the other one of its pair."""
    assert recipe.data.pair_mixing is not None
    half, slot = recipe.global_batch // 2, position % recipe.global_batch
    is_first = slot < half
    other = read(data, position + (half if is_first else -half), upright=recipe.data.upright)
    if example.pixels is None or other.pixels is None:
        return None, ["cannot be decoded:", other.problem]
    first = position if is_first else position - half
    mix = draw_mix(recipe.data.pair_mixing, recipe.seed, first, recipe.data.image_size)
    own = augment.apply(example.pixels, epoch=example.epoch, ordinal=example.ordinal)[None]
    its = augment.apply(other.pixels, epoch=other.epoch, ordinal=other.ordinal)[None]
    pair = mix_images(own, its, [mix]) if is_first else mix_images(its, own, [mix])
    name = "CutMix" if mix.box else "MixUp"
    words = [f"{name}: {mix.lam:.2f} of it", f"{1 - mix.lam:.2f} of {other.key}"] if mix.lam < 1 else ["not mixed"]
    return pair[0 if is_first else 1], words


def sheet(found: list[Row]) -> bytes:
    """A PNG of rows of pictures, each with its words below."""
    font = ImageFont.load_default(_TEXT_SIZE)
    lines = [[_wrapped(font, words) for _, words in row.views] for row in found]
    heights = [_CELL + _GAP + _LINE * max(map(len, row)) for row in lines]
    columns = max(len(row.views) for row in found)
    size = (columns * (_CELL + _GAP) + _GAP, sum(heights) + _GAP * (len(found) + 1))
    page = Image.new("RGB", size, "white")
    draw, y = ImageDraw.Draw(page), _GAP
    for row, texts, height in zip(found, lines, heights, strict=True):
        for column, ((pixels, _), text) in enumerate(zip(row.views, texts, strict=True)):
            x = _GAP + column * (_CELL + _GAP)
            picture = _fitted(pixels)
            page.paste(picture, (x + (_CELL - picture.width) // 2, y + (_CELL - picture.height) // 2))
            for number, line in enumerate(text):
                draw.text((x, y + _CELL + 2 + number * _LINE), line, fill="black", font=font)
        y += height + _GAP
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _fitted(pixels: Tensor | None) -> Any:
    if pixels is None:
        # A red square says so.
        return Image.new("RGB", (_CELL, _CELL), "red")
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    scale = _CELL / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)


def _wrapped(font: Any, words: list[str]) -> list[str]:
    """The words in lines that are as wide as a picture, one or more for each."""
    lines: list[str] = []
    for text in words:
        line = ""
        for letter in text:
            if font.getlength(line + letter) > _CELL:
                lines.append(line)
                line = ""
            line += letter
        lines.append(line)
    return lines[:_LINES] if len(lines) <= _LINES else [*lines[: _LINES - 1], "..."]
