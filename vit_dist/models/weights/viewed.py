"""How a model's images go in, and what its logits mean, as far as weights tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vit_dist.config.safe_yaml import parse_yaml
from vit_dist.core.errors import ConfigError
from vit_dist.core.log import WARNING, log
from vit_dist.core.small_files import DamagedError, is_count, is_number, parse_json, read_small

Loss = Literal["softmax", "sigmoid"]
HALF = (0.5, 0.5, 0.5)
_PREPROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Viewed:
    """What evaluation makes of an image and of logits.

    Attributes:
        crop: fraction of the shorter side that the centre crop keeps.
        upright: turn photos as their EXIF orientation says.
        loss: that the model was trained by: softmax's classes exclude each other, each of sigmoid's is true or not.
        mean: of each channel of RGB in [0, 1], subtracted.
        std: that what is left is divided by.
    """

    crop: float = 0.875
    upright: bool = False
    loss: Loss = "softmax"
    mean: tuple[float, float, float] = HALF
    std: tuple[float, float, float] = HALF


def viewed_by(recipe: object, image_size: int) -> Viewed:
    """What a recipe of a marker or a header says, which may hold anything: what cannot be counts as left out."""
    said: Mapping[str, Any] = recipe if isinstance(recipe, Mapping) else {}
    data, loss = (part if isinstance(part, Mapping) else {} for part in (said.get("data"), said.get("loss")))
    named: Loss = "sigmoid" if loss.get("name") == "sigmoid" else "softmax"
    return Viewed(crop_of(data, image_size), data.get("upright") is True, named)


def crop_of(data: Mapping[str, Any], image_size: int) -> float:
    """The fraction that evaluation's centre crop keeps, by the data of a recipe, which may hold anything."""
    side: Any = data.get("val_resize")
    crop: Any = data.get("val_crop")
    if is_count(side) and side >= image_size:
        return float(image_size / side)
    return float(crop) if is_number(crop) and 0 < crop <= 1 else 0.875


def viewed_by_text(text: str, image_size: int) -> Viewed:
    """The same of a recipe as YAML, as a file of ours has it; '' where it has none."""
    try:
        return viewed_by(parse_yaml(text, "recipe") if text else None, image_size)
    except ConfigError:
        return Viewed()


def viewed_beside(said: object) -> Viewed:
    """What `view_said` or `said_beside` has written beside weights; what is not there, or cannot be, as by default."""
    told: Mapping[str, Any] = said if isinstance(said, Mapping) else {}
    crop: Any = told.get("crop_pct")
    loss: Loss = "sigmoid" if told.get("loss") == "sigmoid" else "softmax"
    crop = float(crop) if is_number(crop) and 0 < crop <= 1 else Viewed.crop
    return Viewed(crop, told.get("upright") is True, loss)


def view_said(viewed: Viewed) -> dict[str, Any]:
    """How evaluation sees images, for a file beside weights, by timm's name for the crop."""
    return {"crop_pct": viewed.crop, **({"upright": True} if viewed.upright else {})}


def said_beside(viewed: Viewed) -> dict[str, Any]:
    """The same with the loss, for notes and headers of ours."""
    return {**view_said(viewed), "loss": viewed.loss}


def viewed_by_hugging_face(folder: Path, described: object) -> Viewed:
    """What a folder of Hugging Face says: colours' mean and deviation, whether classes exclude each other, the crop."""
    kind = described.get("problem_type") if isinstance(described, Mapping) else None
    loss: Loss = "sigmoid" if kind == "multi_label_classification" else "softmax"
    file = folder / _PREPROCESSOR
    try:
        said = parse_json(read_small(file))
    except FileNotFoundError:
        return Viewed(loss=loss)
    except (OSError, DamagedError) as error:
        log(f"{file}: cannot be read: {error}; its images are taken to be RGB in [-1, 1]", WARNING)
        return Viewed(loss=loss)
    mean, std = (_colours(said, key) for key in ("image_mean", "image_std"))
    if mean is None or std is None or min(std) <= 0:
        log(f"{file}: has no image_mean and image_std; its images are taken to be RGB in [-1, 1]", WARNING)
        mean = std = HALF
    return replace(viewed_beside(said), loss=loss, mean=mean, std=std)


def _colours(said: object, key: str) -> tuple[float, float, float] | None:
    found: Any = said.get(key) if isinstance(said, Mapping) else None
    if not isinstance(found, list) or len(found) != 3 or not all(is_number(one) and abs(one) < 1000 for one in found):
        return None
    red, green, blue = map(float, found)
    return red, green, blue
