"""The folder of Hugging Face's `ViTForImageClassification`: config.json, model.safetensors, and how images go in."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vit_dist.config.load import validate
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.registry import MODELS
from vit_dist.core.small_files import is_count, is_text, shown
from vit_dist.models.vit import ViTConfig
from vit_dist.models.weights.described import check_image_size, check_limits
from vit_dist.models.weights.names import OPTIONS, Wording, is_of_head, without_prefix
from vit_dist.models.weights.promised import Promised, State, stacked

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
    state: Mapping[str, Tensor], config: Any, num_classes: int, image_size: int, labels: Sequence[str]
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """A state -> tensors, config.json, which has a label for each class, and preprocessor_config.json.

    Raises:
        ConfigError: `ViTForImageClassification` cannot be this model.
    """
    if type(config) is not ViTConfig:
        raise ConfigError(f"Hugging Face's ViTForImageClassification is a plain ViT; {config.name} is none")
    wanted: dict[str, Any] = {"pool": "cls", "position_embedding": "learned", "places": "stem"}
    wanted |= {"representation": False, "layer_scale": None, "qk_norm": False, "registers": 0, "mlp": "gelu"}
    wrong = {key: getattr(config, key) for key, value in wanted.items() if getattr(config, key) != value}
    if wrong:
        raise ConfigError(f"Hugging Face's ViTForImageClassification cannot say {wrong}; write .safetensors")
    tensors: dict[str, Tensor] = {}
    for name, tensor in state.items():
        keys = names_of(name)
        for key, part in zip(keys, tensor.chunk(len(keys)), strict=True):
            tensors[key] = part.contiguous()
    assert len(labels) == num_classes
    numbers: dict[str, int] = {}
    for i, label in enumerate(labels):
        # Of two classes of one name the first.
        numbers.setdefault(label, i)
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
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": numbers,
    }
    images = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        # Pillow's BILINEAR.
        "resample": 2,
        "size": {"height": image_size, "width": image_size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }
    return tensors, described, images


def from_hugging_face(
    tensors: Mapping[str, Promised],
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
    config, image_size = described_model(described, f"{where}/config.json")
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
    state = {name: _joined([(key, plain[key]) for key in names_of(name)], where) for name in (*trunk, *there)}
    classes = _classes(described, *state["head.bias"].shape[:1]) if "head.bias" in state else ()
    return state, config, classes, image_size


_TRUNK = "vit."


def _joined(parts: list[tuple[str, Promised]], where: str) -> Promised:
    try:
        return stacked([tensor for _, tensor in parts])
    except (RuntimeError, IndexError):
        shapes = ", ".join(f"{name} {'x'.join(map(str, tensor.shape)) or 'a number'}" for name, tensor in parts)
        raise DataError(f"{where}: shapes that do not go together: {shapes}") from None


def _said(described: Mapping[str, Any]) -> str:
    """Which class of transformers the folder is of, in words."""
    names = described.get("architectures")
    known = [name[:80] for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return f" (a {', '.join(known[:3])})" if known else ""


def _classes(described: object, num_classes: int = 0) -> tuple[str, ...]:
    """Names of the classes; () where config.json names none, or others than the head has."""
    named = described.get("id2label") if isinstance(described, dict) else None
    if not isinstance(named, dict) or named.keys() != {str(i) for i in range(num_classes)}:
        return ()
    if not all(map(is_text, named.values())):
        return ()
    # What transformers writes where nobody gives names.
    return tuple("" if named[str(i)] == f"{_NAMELESS}{i}" else named[str(i)] for i in range(num_classes))


def described_model(described: object, where: str) -> tuple[ViTConfig, int]:
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
        raise DataError(f"{where}: model_type={shown(kind)}{_said(described)}; only a plain 'vit' can be read")
    lacking = [key for key in ("hidden_act", "image_size", *keys.values()) if key not in described]
    if lacking:
        raise DataError(f"{where}: not of a ViTForImageClassification: it has no {', '.join(lacking)}")
    readable = {"hidden_act": tuple(_GELU), "layer_norm_eps": (1e-6,), "num_channels": (3,)}
    # What transformers takes where the key is left out.
    assumed = {"layer_norm_eps": 1e-12, "num_channels": 3}
    for key, values in readable.items():
        value = described.get(key, assumed.get(key))
        if value not in values:
            raise DataError(f"{where}: {key}={shown(value)}; only {' or '.join(map(str, values))} can be read")
    size = described["image_size"]
    if not is_count(size) or not size:
        raise DataError(f"{where}: image_size={shown(size)}; only a number of pixels can be read")
    check_image_size(size, where)
    cls, defaults = MODELS.lookup("vit")
    shape = {field: described[key] for field, key in keys.items()}
    check_limits(shape, where, keys)
    config = validate(cls, {**defaults, **shape, "gelu": _GELU[described["hidden_act"]]}, where)
    assert isinstance(config, ViTConfig)
    return config, size


_WB = ("weight", "bias")
_IN_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
