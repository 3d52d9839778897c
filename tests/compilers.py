"""Compilers for torch.compile that need no C++ compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Counted:
    """Makes and differentiates graphs as for inductor, and has torch's eager kernels run them; both are counted."""

    def __init__(self) -> None:
        self.made = self.ran = 0

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        from torch._dynamo.backends.debugging import aot_eager

        self.made += 1
        compiled = aot_eager(graph, inputs)

        def run(*given: Any) -> Any:
            self.ran += 1
            return compiled(*given)

        return run


class Refuses:
    """Fails for a reason of its own."""

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        raise OSError("no compiler\nof any kind")
