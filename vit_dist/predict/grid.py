"""A picture of images with what a model says of them; frames tell right from wrong where the class is known."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from vit_dist.core.terminal import clean
from vit_dist.predict.classifier import Classifier
from vit_dist.predict.run import Prediction

_CELL, _GAP, _FRAME, _LINE, _TEXT = 168, 12, 5, 16, 13  # pixels
_RIGHT, _WRONG, _UNKNOWN, _INK = "#1B7F3B", "#C62828", "#9E9E9E", "#202020"
_LINES = 3
# 64 columns would be 11,000 pixels wide.
_MOST_COLUMNS = 12


def draw_grid(predictions: Sequence[Prediction], classifier: Classifier) -> bytes:
    """A PNG of what the model saw, each with its most probable classes; one that could not be read is a grey square.

    A green frame: the first class is right; red: it is wrong, and below stands what the image is known as.

    Args:
        predictions: with views; those without one, and without a problem, are left out.
        classifier: that names the classes.
    """
    shown = [one for one in predictions if one.view is not None or one.problem]
    across = min(_MOST_COLUMNS, max(1, math.ceil(math.sqrt(len(shown) * 1.4))))
    down = max(1, math.ceil(len(shown) / across))
    wide, tall = _CELL + 2 * _FRAME + _GAP, _CELL + 2 * _FRAME + _GAP + _LINE * (_LINES + 1)
    page = Image.new("RGB", (across * wide + _GAP, down * tall + _GAP), "white")
    draw, font = ImageDraw.Draw(page), _font()
    for place, one in enumerate(shown):
        x, y = _GAP + place % across * wide, _GAP + place // across * tall
        colour = {True: _RIGHT, False: _WRONG, None: _UNKNOWN}[one.is_right]
        side = _CELL + 2 * _FRAME
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=colour)
        page.paste(_picture(one), (x + _FRAME, y + _FRAME))
        for number, (text, ink) in enumerate(_words(one, classifier, colour)):
            draw.text((x, y + side + 2 + number * _LINE), _cut(font, clean(text), side), fill=ink, font=font)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _picture(one: Prediction) -> Any:
    if one.view is None:
        return Image.new("RGB", (_CELL, _CELL), "#E0E0E0")
    image = Image.fromarray(one.view.permute(1, 2, 0).contiguous().numpy())
    # Small ones are enlarged as they are: their pixels are what the model saw.
    how = Image.Resampling.LANCZOS if image.width > _CELL else Image.Resampling.NEAREST
    return image.resize((_CELL, _CELL), how)


def _words(one: Prediction, classifier: Classifier, colour: str) -> list[tuple[str, str]]:
    """Lines below a picture, each with its colour."""
    if one.problem:
        return [("cannot be read:", _WRONG), (one.problem, _INK), (one.image.rpartition("/")[2], _UNKNOWN)]
    ranked = [f"{classifier.name(number)} {value:.2f}" for number, value in one.top[:_LINES]]
    lines = [(text, colour if not place and one.labels else _INK) for place, text in enumerate(ranked)]
    if one.is_right is False:
        known = ", ".join(map(classifier.name, one.labels))
        # In place of the last of them.
        lines = [*lines[: _LINES - 1], (f"is {known}", _RIGHT)]
    return [*lines, (one.image.rpartition("/")[2], _UNKNOWN)]


def _cut(font: Any, text: str, width: int) -> str:
    """The text, or as much of it as fits."""
    if font.getlength(text) <= width:
        return text
    # Longer than any that fits: measured text takes time.
    text = text[:200]
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _font() -> Any:
    """Matplotlib's DejaVu Sans, which has Greek, Cyrillic and Arabic letters too."""
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), _TEXT)
