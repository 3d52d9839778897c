"""Which form of weights a name stands for, and whether it can be read or written there: asked before torch. No torch.

What is inside a file says files.py, which reads and writes them.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Literal

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.folders import refuse_others
from vit_dist.models.weights.names import OPTIONS

CONFIG = "config.json"
"""Of a folder of Hugging Face: which model it holds."""
FOLDER_FILES = (CONFIG, "preprocessor_config.json", "model.safetensors")
"""All that is written into such a folder."""
FORMS = ".npz (Google), .safetensors (ours), .timm.safetensors (timm's names), or a folder (Hugging Face)"
PICKLED = (".pth", ".pt", ".bin", ".ckpt")

Form = Literal["google", "timm", "ours", "hugging-face"]


def form_to_write(out: str) -> Form:
    """The form in which a file or folder of this name is written.

    Raises:
        ConfigError: no form has this ending, or other files lie in the folder.
    """
    path = Path(out)
    endings: dict[str, Form] = {".npz": "google", ".timm.safetensors": "timm", ".safetensors": "ours"}
    for ending, form in endings.items():
        if out.endswith(ending):
            return form
    if out.endswith("/") or path.is_dir() or not path.suffix:
        if "://" not in out:
            what = "a folder of Hugging Face's"
            refuse_others(path, lambda inner: inner.name in FOLDER_FILES, what=what, do="name another folder")
        return "hugging-face"
    pickled = "; a pickle runs code when it is loaded" if path.suffix in PICKLED else ""
    raise ConfigError(f"{out}: no form of weights has this ending{pickled}; known: {FORMS}")


def check_readable(path: Path) -> None:
    """Nothing, where there is a file or folder of a name that weights have.

    Raises:
        DataError: there is none, or an .npz that was cut off.
        ConfigError: its ending is no form's.
    """
    if path.is_dir():
        if not os.path.lexists(path / CONFIG):
            raise DataError(
                f"{path}: no weights are read from this folder: it is no run or checkpoint of ours, and no folder of "
                f"Hugging Face, which has a {CONFIG}; known forms: {FORMS}"
            )
        return
    if not path.is_file():
        raise DataError(f"{path}: no such file; known forms: {FORMS}, and timm's {', '.join(PICKLED)}")
    if path.suffix not in {".npz", ".safetensors", *PICKLED}:
        raise ConfigError(
            f"{path}: weights in a file of this name are not known; known: {FORMS}, and timm's {', '.join(PICKLED)}"
        )
    if path.suffix == ".npz" and not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a whole .npz: the end of an archive is missing; fetch it again")


def check_says_model(path: Path) -> None:
    """Nothing, unless it is an .npz alone: what we have written beside one says its model.

    Args:
        path: of weights, of which no model was named by an option.

    Raises:
        ConfigError: it is one.
    """
    if path.suffix == ".npz" and not path.with_name(f"{path.name}.json").is_file():
        raise ConfigError(f"{path}: an .npz does not say its model; give it: {OPTIONS.model}")
