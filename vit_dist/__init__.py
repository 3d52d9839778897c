"""vit_dist: pretraining of vision models on your own data, and the scaling curves that come out of it.

For training loops of your own: `for batch, state in vit_dist.open_stream(manifest, batch=256)`. It is loaded when it is
first asked for, and torch with it.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

# Their types stand in __init__.pyi: an import here, even one for type checkers alone, would let every floor see data/.
_MODULE_OF = {
    "open_stream": "vit_dist.data.standalone",
    "Stream": "vit_dist.data.standalone_stream",
    "StreamBatch": "vit_dist.data.standalone_stream",
    "Sample": "vit_dist.data.batch",
    "DecodeError": "vit_dist.data.images",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)
