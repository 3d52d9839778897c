"""The .npz files of google-research: vision_transformer (ViT, hybrid) and big_transfer (BiT), both ways.

Written are the names of the released files. Read are also those of flax's later naming ("linen"), as big_vision
writes them: numbers of submodules counted by kind, one array for all blocks, a prefix such as `params/`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.npz import shown_name
from vit_dist.models.weights.promised import Promised, State, stacked

Array = np.ndarray[Any, np.dtype[Any]]
# Blocks in one array: more than any model has.
_MAX_BLOCKS = 1_000


@dataclass(frozen=True)
class Layout:
    """How one of our tensors lies in an array.

    Attributes:
        write: tensor and the number of attention heads -> array.
        read: array -> tensor.
        axes: how many the array has, where one of them counts attention heads.
        heads: that one.
        matrix: whether the array must have two axes.
    """

    write: Callable[[Tensor, int], Tensor]
    read: Callable[[Tensor], Tensor]
    axes: int | None = None
    heads: int = 0
    matrix: bool = False


SAME = Layout(lambda t, _: t, lambda a: a)
MATRIX = Layout(lambda t, _: t.T, lambda a: a.T, matrix=True)  # [in, out]
CONV = Layout(lambda t, _: t.permute(2, 3, 1, 0), lambda a: a.permute(3, 2, 0, 1))  # [height, width, in, out]
HEAD_CONV = Layout(lambda t, _: t.T[None, None], lambda a: a.reshape(a.shape[-2:]).T)
NORM4 = Layout(lambda t, _: t.reshape(1, 1, 1, -1), lambda a: a.reshape(-1))  # flax's first GroupNorm
TO_HEADS = Layout(lambda t, h: t.T.reshape(t.shape[1], h, -1), lambda a: a.flatten(1).T, 3, 1)  # [D, h, d]
HEADS_BIAS = Layout(lambda t, h: t.reshape(h, -1), lambda a: a.reshape(-1), 2, 0)  # [h, d]
FROM_HEADS = Layout(lambda t, h: t.T.reshape(h, -1, t.shape[0]), lambda a: a.flatten(0, -2).T, 3, 0)  # [h, d, D]


@dataclass(frozen=True)
class Rule:
    """A parameter's name as a pattern, the arrays that hold it (stacked along its first axis), and their layout."""

    parameter: str
    arrays: tuple[str, ...]
    layout: Layout


def _dense(parameter: str, array: str) -> list[Rule]:
    return [
        Rule(rf"{parameter}\.weight", (f"{array}/kernel",), MATRIX),
        Rule(rf"{parameter}\.bias", (f"{array}/bias",), SAME),
    ]


def _norm(parameter: str, array: str, layout: Layout = SAME, names: tuple[str, str] = ("scale", "bias")) -> list[Rule]:
    return [
        Rule(rf"{parameter}\.weight", (f"{array}/{names[0]}",), layout),
        Rule(rf"{parameter}\.bias", (f"{array}/{names[1]}",), layout),
    ]


def _attention(parameter: str, array: str, parts: tuple[str, ...]) -> list[Rule]:
    return [
        Rule(rf"{parameter}\.weight", tuple(f"{array}/{part}/kernel" for part in parts), TO_HEADS),
        Rule(rf"{parameter}\.bias", tuple(f"{array}/{part}/bias" for part in parts), HEADS_BIAS),
    ]


def _out(parameter: str, array: str) -> list[Rule]:
    return [
        Rule(rf"{parameter}\.weight", (f"{array}/out/kernel",), FROM_HEADS),
        Rule(rf"{parameter}\.bias", (f"{array}/out/bias",), SAME),
    ]


_BLOCK, _HEADS = "Transformer/encoderblock_{0}", "Transformer/encoderblock_{0}/MultiHeadDotProductAttention_1"
_MAP = "MAPHead_0"
VIT = [
    Rule(r"cls_token", ("cls",), SAME),
    Rule(r"pos_embed", ("Transformer/posembed_input/pos_embedding",), SAME),
    Rule(r"patch_embed\.proj\.weight", ("embedding/kernel",), CONV),
    Rule(r"patch_embed\.proj\.bias", ("embedding/bias",), SAME),
    *_norm(r"blocks\.(\d+)\.norm1", f"{_BLOCK}/LayerNorm_0"),
    *_norm(r"blocks\.(\d+)\.norm2", f"{_BLOCK}/LayerNorm_2"),
    *_attention(r"blocks\.(\d+)\.attn\.qkv", _HEADS, ("query", "key", "value")),
    *_out(r"blocks\.(\d+)\.attn\.proj", _HEADS),
    *_dense(r"blocks\.(\d+)\.mlp\.fc1", f"{_BLOCK}/MlpBlock_3/Dense_0"),
    *_dense(r"blocks\.(\d+)\.mlp\.fc2", f"{_BLOCK}/MlpBlock_3/Dense_1"),
    *_norm(r"norm", "Transformer/encoder_norm"),
    Rule(r"attn_pool\.latent", (f"{_MAP}/probe",), SAME),
    *_attention(r"attn_pool\.q", f"{_MAP}/MultiHeadDotProductAttention_0", ("query",)),
    *_attention(r"attn_pool\.kv", f"{_MAP}/MultiHeadDotProductAttention_0", ("key", "value")),
    *_out(r"attn_pool\.proj", f"{_MAP}/MultiHeadDotProductAttention_0"),
    *_norm(r"attn_pool\.norm", f"{_MAP}/LayerNorm_0"),
    *_dense(r"attn_pool\.mlp\.fc1", f"{_MAP}/MlpBlock_0/Dense_0"),
    *_dense(r"attn_pool\.mlp\.fc2", f"{_MAP}/MlpBlock_0/Dense_1"),
    *_dense(r"pre_logits\.fc", "pre_logits"),
    *_dense(r"head", "head"),
]
_NET, _UNIT = r"patch_embed\.backbone", r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)"
HYBRID = [
    *VIT,
    Rule(rf"{_NET}\.stem\.conv\.weight", ("conv_root/kernel",), CONV),
    *_norm(rf"{_NET}\.stem\.norm", "gn_root", NORM4),
    *(
        rule
        for i in (1, 2, 3)
        for rule in (
            Rule(rf"{_UNIT}\.conv{i}\.weight", (f"block{{1}}/unit{{2}}/conv{i}/kernel",), CONV),
            *_norm(rf"{_UNIT}\.norm{i}", f"block{{1}}/unit{{2}}/gn{i}", NORM4),
        )
    ),
    Rule(rf"{_UNIT}\.downsample\.conv\.weight", ("block{1}/unit{2}/conv_proj/kernel",), CONV),
    *_norm(rf"{_UNIT}\.downsample\.norm", "block{1}/unit{2}/gn_proj", NORM4),
]
_BIT, _KERNEL, _NAMES = r"stages\.(\d+)\.blocks\.(\d+)", "standardized_conv2d/kernel", ("gamma", "beta")
BIT = [
    Rule(r"stem\.conv\.weight", (f"resnet/root_block/{_KERNEL}",), CONV),
    *(
        rule
        for i, part in enumerate("abc", 1)
        for rule in (
            Rule(rf"{_BIT}\.conv{i}\.weight", (f"resnet/block{{1}}/unit{{2:02d}}/{part}/{_KERNEL}",), CONV),
            *_norm(rf"{_BIT}\.norm{i}", f"resnet/block{{1}}/unit{{2:02d}}/{part}/group_norm", SAME, _NAMES),
        )
    ),
    Rule(rf"{_BIT}\.downsample\.conv\.weight", (f"resnet/block{{1}}/unit{{2:02d}}/a/proj/{_KERNEL}",), CONV),
    *_norm(r"norm", "resnet/group_norm", SAME, _NAMES),
    Rule(r"head\.weight", ("resnet/head/conv2d/kernel",), HEAD_CONV),
    Rule(r"head\.bias", ("resnet/head/conv2d/bias",), SAME),
]
RULES = {"vit": VIT, "hybrid": HYBRID, "bit": BIT}


def arrays_of(name: str, rules: Iterable[Rule]) -> tuple[tuple[str, ...], Layout] | None:
    """The names of the arrays that hold a parameter of ours, and their layout; None where the form has none for it."""
    for rule in rules:
        match = re.fullmatch(rule.parameter, name)
        if match is not None:
            numbers = [int(n) for n in match.groups()]
            # {0}: a block of the transformer, counted from 0; {1}, {2}: a stage and a unit of it, counted from 1.
            places = [numbers[0], *(n + 1 for n in numbers)] if numbers else []
            return tuple(t.format(*places) for t in rule.arrays), rule.layout
    return None


def check_google(config: Any) -> None:
    """Refuse a model that Google's code would take for another one: what the arrays do not say is one thing there.

    Raises:
        ConfigError: names the setting.
    """
    fixed = {"stem": "imagenet", "groups": 32, "block": "bottleneck", "mlp": "gelu"}
    wrong = {key: getattr(config, key) for key, value in fixed.items() if getattr(config, key, value) != value}
    if getattr(config, "position_embedding", "none") == "rope":
        # It leaves no trace in the arrays.
        wrong["position_embedding"] = "rope"
    elif getattr(config, "position_embedding", "none") != "none" and config.places == "shared":
        # Relative positions and others that have no array are refused by their names.
        wrong["positions_at"] = "shared"
    if wrong:
        said = ", ".join(f"{key}={value}" for key, value in wrong.items())
        raise ConfigError(f"Google's .npz form cannot say {said} of {config.name}; write .safetensors")


def to_google(state: Mapping[str, Tensor], kind: str, heads: int) -> Iterator[tuple[str, Array]]:
    """A state -> arrays by the names of the released files, one after the other.

    Args:
        state: of a model.
        kind: 'vit', 'hybrid' or 'bit'.
        heads: attention heads; 1 where there are none.

    Raises:
        ConfigError: the form has no place for a parameter.
    """
    for name, tensor in state.items():
        match = arrays_of(name, RULES[kind])
        if match is None or (name == "pos_embed" and len(tensor) != 1):
            raise ConfigError(
                f"Google's .npz form has no name for the parameter {name!r} of this {kind}; write .safetensors"
            )
        array_names, layout = match
        for array, part in zip(array_names, tensor.float().chunk(len(array_names)), strict=True):
            yield array, layout.write(part, heads).contiguous().numpy()


def from_google(arrays: State, names: Iterable[str], kind: str, heads: int) -> tuple[State, list[str], list[str]]:
    """Arrays -> the tensors of a model's parameters, by our names.

    Args:
        arrays: as in the file.
        names: of the model's parameters.
        kind: 'vit', 'hybrid' or 'bit'.
        heads: attention heads of the model, which the shapes of our own tensors do not tell.

    Returns:
        The state; the arrays that are missing; the arrays that no parameter asked for.

    Raises:
        DataError: an array of another number of axes or heads than a parameter has.
    """
    plain = _released(arrays)
    state: State = {}
    missing: list[str] = []
    asked: set[str] = set()
    for name in names:
        match = arrays_of(name, RULES[kind])
        if match is None:
            missing.append(f"(no array for {name})")
            continue
        array_names, layout = match
        asked.update(array_names)
        lacking = [t for t in array_names if t not in plain]
        missing += lacking
        if not lacking:
            state[name] = _joined([_read(t, plain[t], layout, heads) for t in array_names], array_names)
    return state, missing, sorted(set(plain) - asked)


def _read(name: str, array: Promised, layout: Layout, heads: int) -> Promised:
    if array.ndim == layout.axes and array.shape[layout.heads] != heads:
        raise DataError(f"{name} has {array.shape[layout.heads]} attention heads, the model {heads}")
    try:
        if layout.matrix and array.ndim != 2:
            raise IndexError
        return array.then(lambda values: layout.read(values).contiguous())
    except (RuntimeError, IndexError):
        raise DataError(f"{name} has the shape {_shape(array)}") from None


def _joined(parts: list[Promised], names: tuple[str, ...]) -> Promised:
    try:
        return stacked(parts)
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"{name} {_shape(part)}" for name, part in zip(names, parts, strict=True))
        raise DataError(f"shapes that do not go together: {shapes}") from None


def _shape(array: Promised) -> str:
    return "x".join(map(str, array.shape)) or "of a number"


def _released(arrays: State) -> State:
    """Arrays by the names of the released files, whichever naming they came with."""
    prefix = next((p for p in ("opt/target/", "params/img/", "params/") if any(n.startswith(p) for n in arrays)), "")
    plain = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    # One array for all blocks.
    if any(name.startswith("Transformer/encoderblock/") for name in plain):
        together = {n: a for n, a in plain.items() if n.startswith("Transformer/encoderblock/")}
        for name, array in together.items():
            del plain[name]
            if not array.ndim or array.shape[0] > _MAX_BLOCKS:
                raise DataError(f"{shown_name(name)} has the shape {_shape(array)}, whose first axis counts no blocks")
            for i in range(array.shape[0]):
                plain[name.replace("encoderblock", f"encoderblock_{i}", 1)] = array.then(operator.itemgetter(i))
    if "pos_embedding" in plain:
        plain["Transformer/posembed_input/pos_embedding"] = plain.pop("pos_embedding")
    if any(re.match(r"Transformer/encoderblock_\d+/MlpBlock_0/", name) for name in plain):
        later = {"MlpBlock_0": "MlpBlock_3", "LayerNorm_1": "LayerNorm_2"}
        later["MultiHeadDotProductAttention_0"] = "MultiHeadDotProductAttention_1"
        for name in [n for n in plain if n.startswith("Transformer/encoderblock_") and n.count("/") >= 3]:
            begin, block, part, rest = name.split("/", 3)
            if part in later:
                plain["/".join([begin, block, later[part], rest])] = plain.pop(name)
    return plain
