"""The tensors of a branch whose model has other shapes than its trunk's: resampled, begun anew, or as they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vit_dist.config.branch import BranchConfig
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.engines._average import wanted_count
from vit_dist.engines._fit import tensors_of
from vit_dist.engines._slices import AVERAGE, AVERAGED, BUFFER, WEIGHT, EngineState, Slice
from vit_dist.models import ModelConfig
from vit_dist.models.weights.adapt import State, fit
from vit_dist.models.weights.names import Wording
from vit_dist.train.checkpoint.format import SliceSource, Snapshot

Parts = Iterator[tuple[str, Snapshot]]
"""(name of a part's file, its content), one in memory at a time."""

_KEYS = Wording("branch.head=new", "data.num_classes=N")


def fitted_parts(
    source: SliceSource, module: nn.Module, recipe: Recipe, branch: BranchConfig, files: Sequence[str]
) -> Parts | None:
    """The parts of a checkpoint that fits a branch's model; None where the trunk's is one as it is.

    Weights and averages of them are fitted as `init.weights` are. Moments of a tensor that was resampled or begun anew
    are zero; the optimizer's count of steps goes on, so that the result is the same under every engine. With
    `branch.optimizer: new` there are no moments and no counts.

    Args:
        source: the trunk's checkpoint.
        module: the branch's model, on the meta device.
        recipe: of the branch.
        branch: its section.
        files: names of the trunk's parts; as many are made.

    Raises:
        ConfigError: the weights do not fit; says which.
    """
    wanted = {key: shape for key, (shape, _) in tensors_of(module).items()}
    theirs = {key: held.shape for key, held in source.held.items() if key[0] in (WEIGHT, BUFFER)}
    averages = (AVERAGED in {kind for kind, _ in source.held}) == (recipe.ema is not None)
    same = theirs == {key: shape for key, shape in wanted.items() if math.prod(shape)}
    if same and averages and branch.head == branch.optimizer == "keep":
        return None
    weights = _fit({name: source.tensor(kind, name) for kind, name in theirs}, recipe, branch)
    tensors: list[_Whole] = []
    for kind, name in wanted:
        dtype = source.held[kind, name].dtype if (kind, name) in source.held else weights[name].dtype
        tensors.append(_Whole(kind, name, weights[name].to(dtype)))
    if recipe.ema is not None:
        trained = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        tensors += _averages(source, weights, trained, recipe, branch)
    anew = {name for kind, name in wanted if theirs.get((kind, name)) != wanted[kind, name]}
    anew |= {"head.weight", "head.bias"} if branch.head == "new" else set()
    scalars: dict[str, dict[str, float]] = {}
    # Without a moment or a count an engine begins an optimizer as of a weight that has never had a gradient.
    for name in weights if branch.optimizer == "keep" else ():
        moments = {kind: source.held[kind, name] for kind in source.kinds(name)}
        if name in anew and any(held.shape != theirs[WEIGHT, name] for held in moments.values()):
            # Factored ones and the like cannot be zeros of a shape that is known here: the optimizer begins them.
            continue
        scalars |= {name: dict(numbers)} if (numbers := source.scalars(name)) else {}
        for kind, held in moments.items():
            zeros = torch.zeros(wanted[WEIGHT, name], dtype=held.dtype) if name in anew else None
            tensors.append(_Whole(kind, name, source.tensor(kind, name) if zeros is None else zeros))
    return _cut(sorted(tensors, key=lambda whole: (whole.kind, whole.name)), scalars, files)


def _averages(
    source: SliceSource, weights: State, trained: Sequence[str], recipe: Recipe, branch: BranchConfig
) -> list[_Whole]:
    """The averages of a branch that keeps some: the trunk's, fitted as its weights are; else such as count no step."""
    (kind, count), (shape, _) = wanted_count()
    if not source.holds(kind, count):
        begun = [_Whole(AVERAGE, name, weights[name]) for name in trained]
        return [*begun, _Whole(kind, count, torch.zeros(shape, dtype=torch.float64))]
    before = {name: source.tensor(AVERAGE, name) for of, name in source.held if of == AVERAGE}
    fitted = _fit({**weights, **before}, recipe, branch)
    return [
        *(_Whole(AVERAGE, name, fitted[name].to(weights[name].dtype)) for name in trained),
        _Whole(kind, count, source.tensor(kind, count)),
    ]


def _fit(state: Mapping[str, Tensor], recipe: Recipe, branch: BranchConfig) -> State:
    model, data = recipe.model, recipe.data
    assert isinstance(model, ModelConfig)
    try:
        return fit(
            state,
            model,
            num_classes=data.num_classes,
            image_size=data.image_size,
            source="branch.checkpoint",
            head=branch.head,
            positions=branch.positions,
            wording=_KEYS,
        )
    except DataError as error:
        raise ConfigError(str(error)) from None


@dataclass(frozen=True)
class _Whole:
    kind: str
    name: str
    data: Tensor


def _cut(tensors: Sequence[_Whole], scalars: dict[str, dict[str, float]], files: Sequence[str]) -> Parts:
    """All of the tensors, laid end to end and cut into parts of about equal size."""
    total = sum(whole.data.numel() for whole in tensors)
    for index, name in enumerate(files):
        begin, end = (total * n // len(files) for n in (index, index + 1))
        at, slices = 0, list[Slice]()
        for whole in tensors:
            count = whole.data.numel()
            low, high = max(begin - at, 0), min(end - at, count)
            if low < high:
                run = whole.data.reshape(-1)[low:high]
                slices.append(Slice(whole.kind, whole.name, tuple(whole.data.shape), low, run))
            at += count
        yield name, Snapshot(EngineState(slices, scalars), None)
