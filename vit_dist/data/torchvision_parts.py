"""What is needed of torchvision, without the rest of it.

Its package imports all of its models and operators, and with those torch's compiler: 1.7 s of CPU time, and 170 MB, of
each process that decodes. Its JPEG decoder is a library of its own, and its functions on pictures are for some recipes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_LIBRARY = "image_stable.so"
_RGB = 3  # ImageReadMode.RGB
_FUNCTIONAL = "torchvision.transforms.v2.functional"


def decode_jpeg(content: Tensor) -> Tensor:
    """uint8 [n], the bytes of a JPEG -> uint8 [3, H, W] in RGB, as torchvision.io.decode_jpeg.

    Raises:
        RuntimeError: it cannot be decoded, or there is not enough memory.
    """
    return _decoder()(content, _RGB, False)  # type: ignore[no-any-return]


@functools.cache
def _decoder() -> Any:
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None, "torchvision is installed with this package"
    library = Path(next(iter(spec.submodule_search_locations or [""]))) / _LIBRARY
    if library.is_file():
        torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    else:  # of another version
        importlib.import_module("torchvision.io")
    return torch.ops.image.decode_jpeg


def load(*, functional: bool) -> None:
    """Load the decoder now; with `functional` what comes below as well."""
    _decoder()
    if functional:
        importlib.import_module(_FUNCTIONAL)


class _Functional:
    """torchvision.transforms.v2.functional, imported when something of it is first asked for."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(importlib.import_module(_FUNCTIONAL), name)
        setattr(self, name, value)
        return value


functional: Any = _Functional()
