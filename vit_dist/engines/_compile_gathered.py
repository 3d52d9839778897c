"""Blocks of fully_shard by torch.compile: hooks that gather and reduce stay outside of the graphs, and of their trial.

A gather is a collective, in which ranks wait for one another. So each block is tried by itself, between the gather of
its weights and the next one, and where that fails the pass goes on with the eager block: no rank is waited for in vain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_leaves, tree_map


class GatheredBlocks:
    """Blocks whose weights are there in a pass of the model alone.

    Args:
        blocks: of a model to which fully_shard has been applied, and, to most, themselves.
        most_graphs: that torch makes of one class of blocks.
    """

    def __init__(self, blocks: list[nn.Module], most_graphs: int) -> None:
        self._blocks, self._most_graphs = blocks, most_graphs
        # Some have a forward pass of their own, in place of their class's.
        self._own = [vars(block).get("forward") for block in blocks]
        self._compiled: list[Callable[..., Any]] = []
        self._failed: Exception | None = None

    def __len__(self) -> int:
        return len(self._blocks)

    def compile(self, **settings: Any) -> None:
        """Have torch compile them when they are tried, given settings of torch.compile; what fails is kept for then."""
        try:
            # Not block.compile(), which takes the hooks of a block along.
            self._compiled = [torch.compile(block.forward, **settings) for block in self._blocks]
        except Exception as error:
            self._failed = error

    def attempt(self, forward: Callable[[], Tensor], _: list[nn.Parameter]) -> None:
        """One forward pass of the model, and within it one backward pass of each block. A collective.

        Raises:
            Exception: what kept a block from being compiled; after the pass, for which other ranks need this one.
        """
        try:
            # Where torch.compile itself has failed, the pass is for the other ranks.
            for block, compiled in zip(self._blocks, self._compiled or [None] * len(self), strict=True):
                vars(block)["forward"] = self._trial(block, compiled)
            # With gradients, though without a backward pass: blocks are to be given what they are given in a step.
            forward()
        finally:
            self.drop()
        if self._failed is not None:
            raise self._failed
        for block, run in zip(self._blocks, self._compiled, strict=True):
            vars(block)["forward"] = run

    def drop(self) -> None:
        """Run them eagerly."""
        for block, own in zip(self._blocks, self._own, strict=True):
            vars(block).pop("forward", None)
            if own is not None:
                vars(block)["forward"] = own

    def _trial(self, block: nn.Module, compiled: Callable[..., Any] | None) -> Callable[..., Any]:
        eager = block.forward

        def run(*given: Any, **named: Any) -> Any:
            if self._failed is None and compiled is not None:
                try:
                    with torch._dynamo.config.patch(recompile_limit=self._most_graphs):
                        return _forward_and_backward(block, compiled, given, named)
                except Exception as error:
                    self._failed = error
            with torch.no_grad():
                return eager(*given, **named)

        return run


def _forward_and_backward(
    block: nn.Module, compiled: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """Both graphs of a block while its weights are gathered; returns what the block does, with no graph behind it."""
    # Hooks of its own, since those of torch's checkpoint would compute the block again for the backward pass.
    with torch.enable_grad(), saved_tensors_hooks(_same, _same):
        returned = compiled(*given, **named)
        outputs = [leaf for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
        if not outputs:
            raise TypeError(f"{type(block).__name__} returns a {type(returned).__name__}, in which no tensor was found")
        outputs = [output for output in outputs if output.requires_grad]
        inputs = [leaf for leaf in (*tree_leaves((given, named)), *block.parameters()) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in inputs if leaf.requires_grad]
        if outputs and inputs:
            # Not backward(): it would go on into the rest of the model, and into the hooks that reduce.
            torch.autograd.grad(outputs, inputs, [torch.ones_like(output) for output in outputs], allow_unused=True)
        # A weight that two blocks have in common would lead the second one's backward pass into the first.
        return tree_map(_cut, returned)


def _cut(leaf: Any) -> Any:
    # A copy, since a leaf of autograd's could not be changed in place.
    return leaf.detach().requires_grad_().clone() if isinstance(leaf, Tensor) and leaf.requires_grad else leaf


def _same(tensor: Tensor) -> Tensor:
    return tensor
