"""The folder of Hugging Face's `ViTForImageClassification`: config.json, model.safetensors, and how images go in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vit_dist.config.load import validate
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.registry import MODELS
from vit_dist.models.vit import ViTConfig
from vit_dist.models.weights.names import OPTIONS, Wording, is_of_head, without_prefix

State = dict[str, Tensor]

_RULES = [
    (r"cls_token", "vit.embeddings.cls_token"),
    (r"pos_embed", "vit.embeddings.position_embeddings"),
    (r"patch_embed\.proj\.(weight|bias)", "vit.embeddings.patch_embeddings.projection.{0}"),
    (r"blocks\.(\d+)\.norm1\.(weight|bias)", "vit.encoder.layer.{0}.layernorm_before.{1}"),
    (r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", "vit.encoder.layer.{0}.attention.attention.*.{1}"),
    (r"blocks\.(\d+)\.attn\.proj\.(weight|bias)", "vit.encoder.layer.{0}.attention.output.dense.{1}"),
    (r"blocks\.(\d+)\.norm2\.(weight|bias)", "vit.encoder.layer.{0}.layernorm_after.{1}"),
    (r"blocks\.(\d+)\.mlp\.fc1\.(weight|bias)", "vit.encoder.layer.{0}.intermediate.dense.{1}"),
    (r"blocks\.(\d+)\.mlp\.fc2\.(weight|bias)", "vit.encoder.layer.{0}.output.dense.{1}"),
    (r"norm\.(weight|bias)", "vit.layernorm.{0}"),
    (r"head\.(weight|bias)", "classifier.{0}"),
]
_NAMELESS = "LABEL_"
_PARTS = ("query", "key", "value")
_GELU = {"gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}


def names_of(parameter: str) -> list[str]:
    """The tensors that hold a parameter of ours, stacked along its first axis; none where the form has none."""
    for pattern, template in _RULES:
        match = re.fullmatch(pattern, parameter)
        if match is not None:
            name = template.format(*match.groups())
            return [name.replace("*", part) for part in _PARTS] if "*" in name else [name]
    return []


def to_hugging_face(
    state: Mapping[str, Tensor], config: Any, num_classes: int, image_size: int, classes: tuple[str, ...] = ()
) -> tuple[State, dict[str, Any], dict[str, Any]]:
    """A state -> tensors, config.json and preprocessor_config.json, which names the classes, as far as they have names.

    Raises:
        ConfigError: `ViTForImageClassification` cannot be this model.
    """
    if type(config) is not ViTConfig:
        raise ConfigError(f"Hugging Face's ViTForImageClassification is a plain ViT; {config.name} is none")
    wanted = {"pool": "cls", "position_embedding": "learned", "places": "stem", "representation": False}
    wrong = {key: getattr(config, key) for key, value in wanted.items() if getattr(config, key) != value}
    if wrong:
        raise ConfigError(f"Hugging Face's ViTForImageClassification cannot say {wrong}; write .safetensors")
    tensors: State = {}
    for name, tensor in state.items():
        keys = names_of(name)
        for key, part in zip(keys, tensor.chunk(len(keys)), strict=True):
            tensors[key] = part.contiguous()
    names = [name or f"{_NAMELESS}{i}" for i, name in enumerate(classes)]
    names += [f"{_NAMELESS}{i}" for i in range(len(names), num_classes)]
    described = {
        "architectures": ["ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.hidden,
        "hidden_act": "gelu_pytorch_tanh" if config.gelu == "tanh" else "gelu",
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "image_size": image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    images = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return tensors, described, images


def from_hugging_face(
    tensors: Mapping[str, Tensor],
    described: object,
    where: str,
    *,
    new_head: bool = False,
    wording: Wording = OPTIONS,
) -> tuple[State, ViTConfig, tuple[str, ...], int]:
    """Tensors and config.json -> a state, its model, names of the classes ('' where there is none), the images' size.

    A `ViTModel` is read as the trunk that it is: its names lack the `vit.`, and it has no classifier.

    Args:
        tensors: of the folder's files.
        described: what config.json says.
        where: the folder, for errors.
        new_head: leave out classifier and pooler: the model gets another head.
        wording: of advice.

    Raises:
        ConfigError: of a shape that no ViT has.
        DataError: not a ViT, an incomplete one, or one with more than ours has.
    """
    config, image_size = _described(described, f"{where}/config.json")
    assert isinstance(described, Mapping)
    plain = without_prefix(tensors)
    if not any(name.startswith(_TRUNK) for name in plain):
        plain = {name if is_of_head(name) else f"{_TRUNK}{name}": tensor for name, tensor in plain.items()}
    if new_head:
        plain = {n: tensor for n, tensor in plain.items() if not is_of_head(n.removeprefix(_TRUNK))}
    trunk = ["cls_token", "pos_embed", *(f"{part}.{kind}" for part in ("patch_embed.proj", "norm") for kind in _WB)]
    trunk += [f"blocks.{i}.{part}.{kind}" for i in range(config.depth) for part in _IN_BLOCK for kind in _WB]
    head = [f"head.{kind}" for kind in _WB]
    known = {key for name in (*trunk, *head) for key in names_of(name)}
    missing = [key for name in trunk for key in names_of(name) if key not in plain]
    more = sorted(plain.keys() - known)
    if missing or more:
        complaints = [
            f"{len(names)} tensors {what}: {', '.join(names[:5])}"
            for what, names in (("are missing", missing), ("more than a plain ViT has", more))
            if names
        ]
        new = (
            f"; {wording.new_head} leaves out classifier and pooler"
            if any(is_of_head(n.removeprefix(_TRUNK)) for n in more)
            else ""
        )
        raise DataError(f"{where}{_said(described)}: {'; '.join(complaints)}{new}")
    there = [name for name in head if all(key in plain for key in names_of(name))]
    state = {name: torch.cat([plain[key] for key in names_of(name)]) for name in (*trunk, *there)}
    classes = _classes(described, len(state["head.bias"])) if "head.bias" in state else ()
    return state, config, classes, image_size


_TRUNK = "vit."


def _said(described: Mapping[str, Any]) -> str:
    """Which class of transformers the folder is of, in words."""
    names = described.get("architectures")
    return f" (a {', '.join(map(str, names))})" if isinstance(names, list) and names else ""


def _classes(described: object, num_classes: int) -> tuple[str, ...]:
    """Names of the classes; () where config.json names none, or others than the head has."""
    named = described.get("id2label") if isinstance(described, dict) else None
    if not isinstance(named, dict) or named.keys() != {str(i) for i in range(num_classes)}:
        return ()
    # What transformers writes where nobody gives names.
    return tuple("" if named[str(i)] == f"{_NAMELESS}{i}" else str(named[str(i)]) for i in range(num_classes))


def _described(described: object, where: str) -> tuple[ViTConfig, int]:
    """The model that config.json tells of, and the images' size."""
    if not isinstance(described, dict):
        raise DataError(f"{where}: not of a ViTForImageClassification: no mapping")
    keys = {
        "patch_size": "patch_size",
        "width": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
    }
    kind = described.get("model_type", "vit")
    if kind != "vit":
        raise DataError(f"{where}: model_type={kind!r}{_said(described)}; only a plain 'vit' can be read")
    lacking = [key for key in ("hidden_act", "image_size", *keys.values()) if key not in described]
    if lacking:
        raise DataError(f"{where}: not of a ViTForImageClassification: it has no {', '.join(lacking)}")
    readable = {"hidden_act": tuple(_GELU), "layer_norm_eps": (1e-6,), "num_channels": (3,)}
    # What transformers takes where the key is left out.
    assumed = {"layer_norm_eps": 1e-12, "num_channels": 3}
    for key, values in readable.items():
        value = described.get(key, assumed.get(key))
        if value not in values:
            raise DataError(f"{where}: {key}={value!r}; only {' or '.join(map(str, values))} can be read")
    size = described["image_size"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise DataError(f"{where}: image_size={size!r}; only a number of pixels can be read")
    cls, defaults = MODELS.lookup("vit")
    shape = {field: described[key] for field, key in keys.items()}
    config = validate(cls, {**defaults, **shape, "gelu": _GELU[described["hidden_act"]]}, where)
    assert isinstance(config, ViTConfig)
    return config, size


_WB = ("weight", "bias")
_IN_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
