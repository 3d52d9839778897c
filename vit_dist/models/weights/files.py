"""Reading and writing weights by the form that a file's name tells. Nothing but plain tensors is ever unpickled."""

from __future__ import annotations

import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vit_dist import __version__
from vit_dist.config.load import validate
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import explained, replacing, replacing_folder, write_bytes
from vit_dist.core.registry import MODELS
from vit_dist.core.text import read_text
from vit_dist.models import ModelConfig
from vit_dist.models._positions import Resampling
from vit_dist.models.weights.adapt import Head, fit, shapes_of
from vit_dist.models.weights.google import RULES, check_google, from_google, to_google
from vit_dist.models.weights.huggingface import from_hugging_face, to_hugging_face
from vit_dist.models.weights.names import OPTIONS, Wording, without_prefix
from vit_dist.models.weights.numbers import as_float32, from_array
from vit_dist.models.weights.timm_form import from_timm, kind_of, to_timm

State = dict[str, Tensor]
CONFIG = "config.json"
"""Of a folder of Hugging Face: which model it holds."""
FORMS = ".npz (Google), .safetensors (ours), .timm.safetensors (timm's names), or a folder (Hugging Face)"
PICKLED = (".pth", ".pt", ".bin", ".ckpt")
# Where checkpoints of trainers hold the state of a model.
_CONTAINERS = ("state_dict", "model", "model_state_dict", "module")


@dataclass(frozen=True)
class Weights:
    """A model and its weights.

    Attributes:
        state: every tensor of the model's state, float32, by our names.
        facts: where they come from: recipe, recipe_hash, step, examples, as far as is known.
        classes: names of the classes of the head, in the order of its outputs; '' or nothing where there is none.
    """

    state: State
    config: ModelConfig
    num_classes: int
    image_size: int
    facts: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadOptions:
    """How a file of weights is read.

    Attributes:
        config: the model; None: what the file says.
        num_classes: None: as many as the file has.
        image_size: pixels; None: what the file's positions fit.
        head: see `adapt.fit`.
        positions: see `adapt.fit`.
        classes: names of the head's classes, in place of those that the file gives.
        rows: given the names that the file gives its classes, which of these a head that is kept has, in order; None:
            all as they are.
        wording: of advice in errors.
    """

    config: ModelConfig | None = None
    num_classes: int | None = None
    image_size: int | None = None
    head: Head = "keep"
    positions: Resampling = "public"
    classes: tuple[str, ...] = ()
    rows: Callable[[tuple[str, ...]], Sequence[int] | None] | None = None
    wording: Wording = OPTIONS


def read_weights(path: Path, options: LoadOptions = LoadOptions()) -> Weights:
    """Read a file or folder of any known form.

    Raises:
        ConfigError: the form is unknown, or the file does not say its model and none was given.
        DataError: missing, damaged, or of another model: says which tensors.
    """
    if path.is_dir():
        return _read_hugging_face(path, options)
    if not path.is_file():
        raise DataError(f"{path}: no such file; known forms: {FORMS}, and timm's {', '.join(PICKLED)}")
    if path.suffix == ".npz":
        return _read_npz(path, options)
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        return _from_named(without_prefix(tensors), metadata, path, options)
    if path.suffix in PICKLED:
        return _from_named(without_prefix(_unpickled(path)), {}, path, options)
    raise ConfigError(
        f"{path}: weights in a file of this name are not known; known: {FORMS}, and timm's {', '.join(PICKLED)}"
    )


def write_weights(weights: Weights, out: Path | str) -> None:
    """Write a file or folder; its form follows from the name's ending.

    Raises:
        ConfigError: no form has this ending, or the form cannot hold this model.
        DataError: it cannot be written.
    """
    text, path = str(out), Path(out)
    with explained(text, "written"):
        if text.endswith(".npz"):
            _write_npz(weights, path)
        elif text.endswith(".timm.safetensors"):
            renamed = to_timm(weights.state, weights.config, weights.num_classes, weights.image_size)
            _save(renamed, path, {"format": "pt"})
        elif text.endswith(".safetensors"):
            _save(weights.state, path, _metadata(weights))
        elif text.endswith("/") or path.is_dir() or not path.suffix:
            _write_hugging_face(weights, path)
        else:
            pickled = "; a pickle runs code when it is loaded" if path.suffix in PICKLED else ""
            raise ConfigError(f"{out}: no form of weights has this ending{pickled}; known: {FORMS}")


def _write_hugging_face(weights: Weights, path: Path) -> None:
    tensors, described, images = to_hugging_face(
        weights.state, weights.config, weights.num_classes, weights.image_size, weights.classes
    )
    texts = {CONFIG: described, "preprocessor_config.json": images}
    others = sorted({p.name for p in path.iterdir()} - {*texts, "model.safetensors"}) if path.is_dir() else []
    if others:
        raise DataError(f"{path}: there is something else in it ({', '.join(others[:3])}); name a new folder")
    # All of the old or all of the new: weights beside the config of others would load as what they are not. Where a
    # link leads to it, the folder itself is replaced.
    with replacing_folder(path.resolve()) as fresh:
        _save(tensors, fresh / "model.safetensors", {"format": "pt"})
        for name, content in texts.items():
            write_bytes(str(fresh / name), (json.dumps(content, indent=2) + "\n").encode())


def heads_of(config: ModelConfig) -> int:
    """Attention heads, 1 where there are none."""
    return int(getattr(config, "num_heads", 1))


def _from_named(tensors: State, metadata: Mapping[str, str], path: Path, options: LoadOptions) -> Weights:
    config, facts = options.config, {k: v for k, v in metadata.items() if k in FACTS}
    try:
        described, size = json.loads(metadata.get("model", "null")), int(metadata.get("image_size", 0))
        classes = tuple(map(str, json.loads(metadata.get("classes", "[]"))))
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: what its header says of the model is damaged: {error}") from None
    if config is None:
        if described is None:
            raise ConfigError(f"{path}: does not say its model; give it: `vit-dist models import ... --model ViT-B/16`")
        config = config_of(described, str(path))
    if not size and getattr(config, "position_embedding", "") == "sincos" and "pos_embed" in tensors:
        # timm's form has the fixed table, which is left out below and alone says the image size.
        size = _size_of(tensors, config)
    state = from_timm(
        as_float32(tensors, str(path)), config, str(path), new_head=options.head == "new", wording=options.wording
    )
    return _fitted(state, config, path, options, facts, stated_size=size, classes=classes)


def _read_npz(path: Path, options: LoadOptions) -> Weights:
    config = options.config
    if config is None:
        raise ConfigError(
            f"{path}: an .npz does not say its model; give it: `vit-dist models import ... --model ViT-B/16`"
        )
    kind = kind_of(config)
    if kind not in RULES:
        raise ConfigError(f"{path}: Google's .npz files hold ViT, hybrid and BiT models, not {config.name}")
    names = shapes_of(config, 1, _smallest(config))
    arrays = _arrays(path)
    try:
        state, missing, extra = from_google(arrays, names, kind, heads_of(config))
    except DataError as error:
        raise DataError(f"{path}: not the weights of {config.name}: {error}") from None
    return _fitted(state, config, path, options, {}, missing=missing, extra=extra)


def _arrays(path: Path) -> State:
    # numpy takes a file that is no archive for a pickle, and speaks of trusting it.
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path}: not a whole .npz file; fetch it again")
    arrays = {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as opened:
            for name in opened.files:
                arrays[name] = opened[name]
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        if "allow_pickle" in str(error):
            raise DataError(f"{path}: an array in it holds pickled objects, which are never read") from None
        raise DataError(f"{path}: not a whole .npz file: {error}; fetch it again") from None
    return {name: from_array(name, array, str(path)) for name, array in arrays.items()}


def _read_hugging_face(path: Path, options: LoadOptions) -> Weights:
    try:
        described = json.loads(read_text(path / CONFIG))
    except (DataError, ValueError) as error:
        raise DataError(f"{path}: no folder of Hugging Face: config.json: {error}") from None
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise DataError(f"{path}: no .safetensors in it (pickled weights are not read)")
    tensors: State = {}
    for file in files:
        found = _read_safetensors(file)[0]
        twice = sorted(tensors.keys() & found.keys())
        if twice:
            raise DataError(f"{path}: {len(twice)} tensors are in more than one of its files: {', '.join(twice[:5])}")
        tensors |= found
    state, config, classes, stated_size = from_hugging_face(
        as_float32(tensors, str(path)), described, str(path), new_head=options.head == "new", wording=options.wording
    )
    return _fitted(state, options.config or config, path, options, {}, stated_size=stated_size, classes=classes)


def _fitted(
    state: State,
    config: ModelConfig,
    path: Path,
    options: LoadOptions,
    facts: dict[str, str],
    *,
    stated_size: int = 0,
    classes: tuple[str, ...] = (),
    missing: list[str] | None = None,
    extra: list[str] | None = None,
) -> Weights:
    state, classes = with_rows(state, () if options.head == "new" else classes, options.rows)
    there = next((len(state[name]) for name in ("head.bias", "head.weight") if name in state), 0)
    num_classes: int = options.num_classes or there
    others = [name for name in missing or () if "head" not in name]
    # A file of another model: the error of `fit` names all that is wrong.
    ours = missing is not None or shapes_of(config, 1, _smallest(config)).keys() & state.keys()
    if not num_classes and not others and ours:
        raise ConfigError(f"{path}: has no head; give {options.wording.num_classes} {options.wording.new_head}")
    position_size = _size_of(state, config)
    if stated_size and options.config is None and "pos_embed" in state and position_size != stated_size:
        raise DataError(
            f"{path}: it says that its images have {stated_size} pixels, its positions are for {position_size}"
        )
    size = options.image_size or stated_size or position_size
    fitted = fit(
        state,
        config,
        # Without a head, and with more missing besides: the error of `fit` names all of it.
        num_classes=num_classes or 1,
        image_size=size,
        source=str(path),
        head=options.head,
        positions=options.positions,
        missing=missing or [],
        extra=extra or [],
        wording=options.wording,
    )
    if options.classes and len(options.classes) != num_classes:
        raise ConfigError(f"--classes: {len(options.classes):,} names, but {path} has {num_classes:,} classes")
    return Weights(fitted, config, num_classes, size, facts, options.classes or classes)


def with_rows(
    state: State,
    classes: tuple[str, ...],
    rows: Callable[[tuple[str, ...]], Sequence[int] | None] | None,
) -> tuple[State, tuple[str, ...]]:
    """A state whose head has those of its classes that `rows` asks for by their names, and the names of these."""
    bias = state.get("head.bias")
    if bias is None or not any(classes) or len(classes) > len(bias):
        return state, ()
    wanted = None if rows is None else rows(classes)
    if wanted is None:
        return state, classes
    picked = torch.tensor(list(wanted))
    heads = {name: state[name][picked] for name in ("head.weight", "head.bias")}
    return {**state, **heads}, tuple(classes[i] for i in wanted)


def _size_of(state: State, config: ModelConfig) -> int:
    """The image size that the positions are for; 224 where nothing tells."""
    table = state.get("pos_embed")
    if table is None or config.stride == 1:
        return 224 if 224 % config.stride == 0 else config.stride
    patches = table.shape[1] - ("cls_token" in state)
    return max(1, math.isqrt(patches)) * config.stride


def _smallest(config: ModelConfig) -> int:
    return config.stride if config.stride > 1 else 32


FACTS = ("recipe", "recipe_hash", "step", "examples", "seed", "name")
"""What a file of ours may say beside the model."""


def _metadata(weights: Weights) -> dict[str, str]:
    return {
        "format": "pt",
        "vit_dist": __version__,
        "model": json.dumps(weights.config.model_dump(mode="json")),
        "num_classes": str(weights.num_classes),
        "image_size": str(weights.image_size),
        "input": "RGB in [-1, 1]",
        **({"classes": json.dumps(weights.classes)} if any(weights.classes) else {}),
        **weights.facts,
    }


def config_of(described: object, where: str) -> ModelConfig:
    """A model's config from plain data.

    Raises:
        ConfigError: of a model that this version does not know.
    """
    if not isinstance(described, dict):
        raise ConfigError(f"{where}: its model is no mapping but {described!r}")
    try:
        cls, defaults = MODELS.lookup(str(described.get("name")))
    except ConfigError as error:
        raise ConfigError(f"{where}: its model: {error}") from None
    config = validate(cls, {**defaults, **described}, f"{where}: its model")
    assert isinstance(config, ModelConfig)
    return config


def _read_safetensors(path: Path) -> tuple[State, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path}: not a whole safetensors file: {error}") from None


def _unpickled(path: Path) -> State:
    """Tensors of a torch file; anything else in it is refused, not run."""
    try:
        # A pickle of another protocol is read, or refused, all the same.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            # Files of before torch 1.6 are no archives, and cannot be mapped.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        # torch's own text tells how to switch the guard off.
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"more than plain tensors ({forbidden.group(1)})" if forbidden else "something other than plain tensors"
        raise DataError(
            f"{path}: holds {what}; nothing in it was run. Where you trust it, save its state_dict() as safetensors"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: not a whole file of torch: {reason}; fetch it again") from None
    inside = next(
        (key for key in _CONTAINERS if isinstance(content, dict) and isinstance(content.get(key), dict)), None
    )
    while inside is not None:
        content = content[inside]
        inside = next((key for key in _CONTAINERS if isinstance(content.get(key), dict)), None)
    if not isinstance(content, dict) or not content:
        raise DataError(
            f"{path}: holds no dictionary of tensors but {type(content).__name__}; save a state_dict() alone"
        )
    others = [f"{name} ({type(value).__name__})" for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        shown = ", ".join(others[:4]) + (", ..." if len(others) > 4 else "")
        raise DataError(f"{path}: holds no dictionary of tensors alone, but {shown}; save a state_dict() alone")
    return {str(name): tensor for name, tensor in content.items()}


def _save(state: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file a tensor at a time: the library's own writer holds all of it a second time."""
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in state.items():
        assert tensor.dtype == torch.float32
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + 4 * tensor.numel()]}
        at += 4 * tensor.numel()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in state.values():
            file.write(tensor.contiguous().numpy().data)


def _write_npz(weights: Weights, path: Path) -> None:
    kind = kind_of(weights.config)
    if kind not in RULES:
        raise ConfigError(f"Google's .npz files hold ViT, hybrid and BiT models, not {weights.config.name}")
    check_google(weights.config)
    with replacing(path) as partial, zipfile.ZipFile(partial, "w") as opened:
        for name, array in to_google(weights.state, kind, heads_of(weights.config)):
            with opened.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
