"""Images to look at, out of files and folders or out of a packed set, as evaluation sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vit_dist.config.schema import DataConfig
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import redact
from vit_dist.core.units import counted
from vit_dist.core.world import World
from vit_dist.data.decode import centre, decode
from vit_dist.data.images import FORMATS, DecodeError
from vit_dist.data.manifest import read_manifest
from vit_dist.data.stream import EvalBatches
from vit_dist.data.subset import pick

_ENDINGS = tuple(f".{ending}" for endings in FORMATS.values() for ending in endings)
_BATCH = 64


def image_files(paths: Sequence[Path]) -> list[Path]:
    """The files that are named, and those in the folders that are, however deep, by name.

    Raises:
        DataError: one is not there, or a folder has no images.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in _ENDINGS and p.is_file())
            if not inside:
                raise DataError(
                    f"{path}: no images in this folder: no file that ends in {', '.join(_ENDINGS[:6])}, ..."
                )
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise DataError(f"{path}: no such image or folder of images")
    return found


def spaced(there: int, wanted: int | None, most: int, where: str) -> list[int]:
    """Which of so many images to look at: evenly spaced, since neighbours are mostly of one class.

    Args:
        there: how many there are.
        wanted: how many were asked for; None: as many as there are, up to `most`.
        most: see `wanted`.
        where: for the error.

    Raises:
        ConfigError: fewer are there than were asked for.
    """
    if wanted is not None and wanted > there:
        raise ConfigError(
            f"--images {wanted}: {where} has {counted(there, 'image')}; ask for {there} or fewer, or give more"
        )
    count = min(there, most) if wanted is None else wanted
    return [i * there // count for i in range(count)]


def read_files(files: Sequence[Path], image_size: int, crop: float, *, upright: bool = False) -> Tensor:
    """uint8 [N, 3, S, S]: the centre crops that evaluation takes; `upright` ones turned as their EXIF data say.

    Raises:
        DataError: one cannot be read or decoded; says which.
    """
    images = []
    for path in files:
        try:
            images.append(centre(decode(path.read_bytes(), upright=upright), image_size, crop))
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}") from None
        except DecodeError as error:
            raise DataError(f"{path}: {error}; leave it out, or give another image") from None
    return torch.stack(images)


def read_set(
    url: str, image_size: int, crop: float, *, wanted: int | None = None, most: int, config: DataConfig | None = None
) -> tuple[Tensor, list[str]]:
    """uint8 [N, 3, S, S] out of a packed set, and the name of each one's class ('' where it has none).

    An image that cannot be decoded is replaced by its neighbour, and logged, as in evaluation.

    Args:
        url: of its manifest.
        image_size: of the model.
        crop: fraction of the shorter side that is kept.
        wanted: how many images; None: up to `most`.
        most: see `wanted`.
        config: how it is read, but for the three before; None: as by default.

    Raises:
        DataError: the set cannot be read.
        ConfigError: it has fewer images.
    """
    manifest = read_manifest(url)
    ordinals = np.array(spaced(manifest.num_samples, wanted, most, redact(url)), dtype=np.int64)
    own = {"num_classes": manifest.num_classes, "image_size": image_size, "val_crop": crop, "val_resize": None}
    config = DataConfig(num_classes=manifest.num_classes) if config is None else config
    batches = EvalBatches(manifest, config.model_copy(update=own), World(), _BATCH, subset=pick(manifest, ordinals))
    images, names = [], []
    with contextlib.closing(iter(batches)) as found:  # type: ignore[type-var]
        for batch in found:
            if batch is not None:
                images.append(batch.images.clone())
                names += [
                    manifest.classes[i] if 0 <= i < len(manifest.classes) else "" for i in batch.labels[:, 0].tolist()
                ]
    return torch.cat(images), names
