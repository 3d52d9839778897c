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
    """Fails for a reason of its own: at once, after some graphs, or where a graph is differentiated."""

    def __init__(self, after: int = 0, *, backward: bool = False) -> None:
        self._left, self._backward = after, backward

    def __call__(self, graph: Any, inputs: Any) -> Callable[..., Any]:
        from torch._dynamo.backends.common import aot_autograd
        from torch._dynamo.backends.debugging import aot_eager, boxed_nop

        if self._backward:
            made: Callable[..., Any] = aot_autograd(fw_compiler=boxed_nop, bw_compiler=self._refuse)(graph, inputs)
            return made
        self._left -= 1
        if self._left < 0:
            self._refuse()
        eager: Callable[..., Any] = aot_eager(graph, inputs)
        return eager

    def _refuse(self, *_: Any) -> Callable[..., Any]:
        raise OSError("no compiler\nof any kind")


def refuses_all(*_: Any, **__: Any) -> Any:
    """In place of torch.compile where it cannot be had at all."""
    raise OSError("no compiler\nof any kind")
