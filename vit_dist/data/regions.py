"""The region of a JPEG that a crop keeps, decoded alone: an optional decoder, nvImageCodec on the CPU.

Its bits are those of the whole image decoded by torchvision, since both are libjpeg-turbo; rows above and below are not
transformed, and what is left of Huffman codes behind the last row is not read. So it sees less damage.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_dist.core.errors import ConfigError

Box = tuple[int, int, int, int]
"""Top, left, height, width, in pixels."""

_MODULE = "nvidia.nvimgcodec"
_EXTENSIONS = "NVIMGCODEC_EXTENSIONS_PATH"
_NO_GPU = -99999
_importing = threading.Lock()


def check_installed() -> None:
    """Refuse `data.decoder=nvimgcodec` where it is not installed.

    Raises:
        ConfigError: it is not, or cannot be imported.
    """
    try:
        _library()
    except Exception as error:
        # Not only ImportError: a wheel for another system fails in ways of its own.
        raise ConfigError(
            f"data.decoder=nvimgcodec: {_MODULE} cannot be imported ({type(error).__name__}: {error}); "
            f"pip install 'vit_dist[region]', or leave data.decoder out for torchvision's"
        ) from None


class RegionDecoder(threading.local):
    """Decodes regions. Each thread that calls it gets a decoder of its own, since one decodes for one at a time."""

    def __init__(self) -> None:
        library = _library()
        self._library = library
        self._params = library.DecodeParams(apply_exif_orientation=False)
        self._decoder = library.Decoder(
            device_id=_NO_GPU,
            max_num_cpu_threads=1,
            backends=[library.Backend(library.BackendKind.CPU_ONLY)],
            options=":verbosity=0",
        )

    def decode(self, jpeg: bytes | bytearray | memoryview, box: Box) -> Tensor | None:
        """uint8 [3, height, width] of a region of a JPEG as it is stored, as a view of [height, width, 3].

        None: it cannot; another decoder knows why.
        """
        top, left, height, width = box
        region = self._library.Region([top, left], [top + height, left + width])
        try:
            # Of bytes it takes `bytes` alone; of an array it reads the memory as it lies.
            content = jpeg if isinstance(jpeg, bytes) else np.frombuffer(jpeg, np.uint8)
            stream = self._library.CodeStream(content).get_sub_code_stream(region=region)
            image = self._decoder.decode(stream, params=self._params)
        except RuntimeError:
            return None
        if image is None:
            return None
        pixels = np.asarray(image)
        return torch.from_numpy(pixels).permute(2, 0, 1) if pixels.shape == (height, width, 3) else None


def _library() -> Any:
    with _importing:
        if _MODULE in sys.modules or _EXTENSIONS in os.environ:
            return importlib.import_module(_MODULE)
        spec = importlib.util.find_spec(_MODULE)
        found = (
            sorted(Path(spec.origin).parent.glob("extensions/libjpeg_turbo_ext.so*")) if spec and spec.origin else []
        )
        if not found:
            return importlib.import_module(_MODULE)
        # It loads all decoders that it finds, and those for GPUs say at length on stderr which libraries they lack.
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "libjpeg_turbo_ext.so").symlink_to(found[0])
            os.environ[_EXTENSIONS] = folder
            try:
                return importlib.import_module(_MODULE)
            finally:
                del os.environ[_EXTENSIONS]
