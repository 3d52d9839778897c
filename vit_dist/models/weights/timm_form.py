"""timm's names for our models: what timm's own model of the same shape loads, with equal logits, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.models import ModelConfig
from vit_dist.models.bit import BiTConfig
from vit_dist.models.hybrid import HybridConfig
from vit_dist.models.vit import ViTConfig
from vit_dist.models.weights.names import OPTIONS, Wording
from vit_dist.models.weights.promised import Promised
from vit_dist.models.weights.promised import State as Promises

State = dict[str, Tensor]
_SHOWN = 4
# Patches along a side of a fixed table that is held against that of a file.
_MAX_SIDE = 1_024


def kind_of(config: ModelConfig) -> str:
    """'vit', 'hybrid', 'bit' or 'timm': which names the parameters have."""
    return {"ViTConfig": "vit", "HybridConfig": "hybrid", "BiTConfig": "bit"}.get(type(config).__name__, "timm")


def to_timm(state: Mapping[str, Tensor], config: ModelConfig, num_classes: int, image_size: int) -> State:
    """A state -> what timm's own model of the same shape loads, by its names, and then gives our logits.

    Raises:
        ConfigError: timm has no such model: it would drop a part in silence, or refuse the file.
    """
    wrong = _unsayable(config)
    if wrong:
        raise ConfigError(f"timm has no model that is {config.name} with {'; '.join(wrong)}; write .safetensors")
    renamed = _renamed(state, config, image_size)
    shapes = timm_shapes(config, num_classes, image_size)
    problems = [
        f"{len(names)} tensors {what}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for what, names in (
            ("that it has would be missing", [name for name in shapes if name not in renamed]),
            ("that it does not have", [name for name in renamed if name not in shapes]),
            (
                "of another shape",
                [n for n, t in renamed.items() if n in shapes and t.numel() != torch.Size(shapes[n]).numel()],
            ),
        )
        if names
    ]
    if problems:
        raise ConfigError(
            f"timm's model cannot hold {config.name} as it is here: {'; '.join(problems)}; write .safetensors"
        )
    # A head that is a convolution there has two more axes of length 1.
    return {name: tensor.reshape(shapes[name]) for name, tensor in renamed.items()}


def timm_model(config: ModelConfig, num_classes: int, image_size: int) -> nn.Module:
    """timm's own model of the same shape, built by timm's public classes."""
    if isinstance(config, ViTConfig):
        return _vision_transformer(config, num_classes, image_size)
    if isinstance(config, BiTConfig):
        from vit_dist.models._bit import bit_resnet

        net: nn.Module = bit_resnet(config, num_classes)
        return net
    from vit_dist.models._any_timm import create

    return create(config, image_size, num_classes)  # type: ignore[arg-type]


def timm_shapes(config: ModelConfig, num_classes: int, image_size: int) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of timm's own model."""
    with torch.device("meta"):
        model = timm_model(config, num_classes, image_size)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _unsayable(config: ModelConfig) -> list[str]:
    """Settings that timm's model does not have, though some of them leave no trace in the names."""
    wrong = []
    if isinstance(config, ViTConfig):
        if config.representation:
            wrong.append("representation=true (timm drops every 'pre_logits' tensor in silence)")
        if config.pool == "mean":
            wrong.append("pool=mean behind its last norm (timm's mean stands before it)")
        if config.mlp == "swiglu" and config.pool == "map":
            wrong.append("mlp=swiglu and pool=map (timm's pooling takes the width and the activation of the blocks)")
        if config.position_embedding not in ("learned", "sincos", "none"):
            wrong.append(f"position_embedding={config.position_embedding}")
        if config.places != "stem" and config.position_embedding not in ("none", "rope"):
            wrong.append(f"positions_at={config.places} (timm adds them once)")
    if isinstance(config, BiTConfig | HybridConfig) and config.stem != "imagenet":
        wrong.append(f"stem={config.stem} (timm's ResNet begins with a 7x7 convolution and pooling)")
    return wrong


def _renamed(state: Mapping[str, Tensor], config: ModelConfig, image_size: int) -> State:
    renamed = dict(state)
    kind = kind_of(config)
    head = _head(config)
    if kind == "timm":
        renamed = {name.removeprefix("net."): tensor for name, tensor in renamed.items()}
    for part in ("weight", "bias"):
        renamed[f"{head}.{part}"] = renamed.pop(f"head.{part}")
    if isinstance(config, ViTConfig) and config.position_embedding == "sincos":
        # timm adds a learned table; the fixed one is a value that it can have.
        renamed["pos_embed"] = _fixed_positions(config, image_size // config.stride)
    if isinstance(config, ViTConfig) and config.registers and "pos_embed" in renamed:
        # timm's registers have positions, which here they have not.
        renamed["pos_embed"] = _widened(renamed["pos_embed"], _classes(config), config.registers)
    return renamed


def _classes(config: ViTConfig) -> int:
    """Class tokens, which have positions here."""
    return 1 if config.pool == "cls" else 0


def _widened(table: Tensor, at: int, rows: int) -> Tensor:
    """A table of positions [1, n, D] with so many rows of zeros before one of its rows."""
    return torch.cat([table[:, :at], table.new_zeros(len(table), rows, table.shape[2]), table[:, at:]], dim=1)


def without_registers(tensors: Mapping[str, Promised], config: ModelConfig, where: str, image_size: int) -> Promises:
    """Tensors by timm's names whose table of positions has none of registers: theirs are added to them.

    timm's tables have rows for all tokens or for the patches alone (`no_embed_class`, as DINOv2's); ours, which come
    back as they are, for the class token and the patches.

    Args:
        tensors: of a file.
        config: the model.
        where: the file, for errors.
        image_size: that the file says; 0: none.

    Raises:
        DataError: as many rows as there are could be either.
    """
    state, table = dict(tensors), tensors.get("pos_embed")
    if not isinstance(config, ViTConfig) or not config.registers or table is None or table.ndim != 3:
        return state
    classes, registers, rows = _classes(config), config.registers, table.shape[1]
    # The first that is ours: without a class token it has the patches alone, too.
    forms = list(dict.fromkeys(n for n in (classes, classes + registers, 0) if _is_square(rows - n)))
    stated = [n for n in forms if rows - n == (image_size // config.stride) ** 2]
    forms = stated or forms
    if len(forms) > 1:
        raise DataError(
            f"{where}: its {rows} positions could be those of {' or of '.join(str(rows - n) for n in forms)} patches"
        )
    if forms == [classes] or not forms:
        return state
    if forms == [0]:
        state["pos_embed"] = table.then(lambda values: _widened(values, 0, classes))
        return state
    own = state.get("reg_token")
    if own is not None and own.shape == (1, registers, table.shape[2]):
        of_registers = table.then(lambda values: values[:, classes : classes + registers])
        state["reg_token"] = Promised(own.shape, lambda: own.read() + of_registers.read())
    state["pos_embed"] = table.then(
        lambda values: torch.cat([values[:, :classes], values[:, classes + registers :]], dim=1)
    )
    return state


def _is_square(number: int) -> bool:
    return number > 0 and math.isqrt(number) ** 2 == number


def _fixed_positions(config: ViTConfig, side: int) -> Tensor:
    from vit_dist.models._positions import sincos_positions

    return sincos_positions(side, side, config.width, _classes(config))


def _vision_transformer(config: ViTConfig, num_classes: int, image_size: int) -> nn.Module:
    from timm.layers import HybridEmbed, Mlp, SwiGLUPacked
    from timm.models import VisionTransformer

    from vit_dist.models._bit import post_activation_resnet
    from vit_dist.models._vit import mlp_ratio

    embed: dict[str, Any] = {}
    gated = config.mlp == "swiglu"
    if isinstance(config, HybridConfig):
        backbone = post_activation_resnet(
            config.stages, width=config.backbone_width, groups=config.groups, stem=config.stem
        )
        embed["embed_layer"] = partial(HybridEmbed, backbone=backbone)
    model: nn.Module = VisionTransformer(
        img_size=image_size,
        patch_size=config.patch_size,
        num_classes=num_classes,
        global_pool="map" if config.pool == "map" else "token",
        class_token=config.pool == "cls",
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=mlp_ratio(config.hidden * (2 if gated else 1), config.width),
        mlp_layer=SwiGLUPacked if gated else Mlp,
        pos_embed="none" if config.position_embedding == "none" else "learn",
        reg_tokens=config.registers,
        qk_norm=config.qk_norm,
        init_values=config.layer_scale,
        act_layer=nn.SiLU if gated else partial(nn.GELU, approximate="tanh" if config.gelu == "tanh" else "none"),
        **embed,
    )
    return model


def from_timm(
    tensors: Mapping[str, Promised], config: ModelConfig, where: str, *, new_head: bool, wording: Wording = OPTIONS
) -> Promises:
    """Tensors by timm's names, or by ours -> a state by our names.

    Args:
        tensors: of a file.
        config: the model.
        where: the file, for errors.
        new_head: leave out whatever is a head there: the model gets another.
        wording: of advice.

    Raises:
        DataError: a fixed table of positions that is another one; a head that is none of ours, unless it is left out.
    """
    ours = kind_of(config) == "timm" and any(name.startswith("net.") for name in tensors)
    state = dict(tensors)
    if kind_of(config) == "timm" and not ours:
        heads = _heads(config)
        if len(heads) > 1 and not new_head and any(name.startswith(f"{heads[1]}.") for name in state):
            raise DataError(
                f"{where}: {config.name} has {len(heads)} heads there ({', '.join(heads)}), and the model here has "
                f"one; start a new head of zeros ({wording.new_head})"
            )
        if new_head:
            of_head = _names_of_head(config)
            state = {name: tensor for name, tensor in state.items() if name not in of_head}
        head = heads[0]
        state = {
            (f"head.{name.removeprefix(f'{head}.')}" if name in _linear(head) else f"net.{name}"): tensor
            for name, tensor in state.items()
        }
    elif kind_of(config) == "bit" and "head.weight" not in state:
        state = {_our_head(name): tensor for name, tensor in state.items()}
    # A head that is a 1x1 convolution.
    weight = state.get("head.weight")
    if weight is not None and weight.ndim == 4 and weight.shape[2:] == (1, 1):
        state["head.weight"] = weight.then(_as_matrix)
    if isinstance(config, ViTConfig) and config.position_embedding == "sincos" and "pos_embed" in state:
        _check_fixed(state.pop("pos_embed"), config, where)
    return state


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1)


def _check_fixed(table: Promised, config: ViTConfig, where: str) -> None:
    """Refuse a table of positions that is not the fixed one of the model."""
    patches = table.shape[-2] - (config.pool == "cls") if table.ndim == 3 else 0
    side = round(max(patches, 0) ** 0.5)
    if 0 < side <= _MAX_SIDE and side * side == patches and table.shape[-1] == config.width:
        fixed = _fixed_positions(config, side)
        if table.shape == fixed.shape and torch.allclose(table.read(), fixed, atol=1e-2):
            return
    raise DataError(
        f"{where}: pos_embed is not the fixed table of position_embedding=sincos; give the model learned ones"
    )


def _linear(head: str) -> tuple[str, str]:
    return f"{head}.weight", f"{head}.bias"


def _our_head(name: str) -> str:
    return name.replace("head.fc.", "head.", 1) if name in _linear("head.fc") else name


def _names_of_head(config: ModelConfig) -> set[str]:
    """The tensors of timm's model that it does not have without classes."""
    from vit_dist.models._any_timm import usual_image_size

    size = usual_image_size(config)  # type: ignore[arg-type]
    return {*timm_shapes(config, 1, size)} - {*timm_shapes(config, 0, size)}


def _head(config: ModelConfig) -> str:
    heads = _heads(config)
    if len(heads) > 1:
        raise ConfigError(
            f"timm's {config.name} has {len(heads)} heads ({', '.join(heads)}), and the model here has one; "
            f"write .safetensors"
        )
    return heads[0]


def _heads(config: ModelConfig) -> tuple[str, ...]:
    """The modules that give timm's logits."""
    if kind_of(config) != "timm":
        return ("head.fc",) if kind_of(config) == "bit" else ("head",)
    import timm

    known = timm.models.get_pretrained_cfg(config.architecture)  # type: ignore[attr-defined]
    found = "head" if known is None else known.classifier
    return (found,) if isinstance(found, str) else tuple(found)
