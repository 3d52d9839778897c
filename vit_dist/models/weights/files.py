"""Reading and writing weights by the form that a file's name tells. Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from vit_dist import __version__
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import explained, replacing, replacing_folder, write_bytes
from vit_dist.core.small_files import parse_json, read_small
from vit_dist.core.text import decode_text
from vit_dist.models import ModelConfig
from vit_dist.models._positions import Resampling
from vit_dist.models.weights.adapt import Head, fit, shapes_of
from vit_dist.models.weights.colours import warn_of_colours
from vit_dist.models.weights.described import EVALUATION, config_of, stated
from vit_dist.models.weights.forms import CONFIG, FOLDER_FILES, check_readable, form_to_write
from vit_dist.models.weights.google import RULES, check_google, from_google, to_google
from vit_dist.models.weights.huggingface import from_hugging_face, to_hugging_face
from vit_dist.models.weights.names import OPTIONS, Wording, without_prefix
from vit_dist.models.weights.notes import (
    clean_classes,
    labels,
    read_sidecar,
    sidecar_of,
    timm_config,
    timm_notes,
    write_sidecar,
)
from vit_dist.models.weights.opened import opened
from vit_dist.models.weights.promised import Promised
from vit_dist.models.weights.promised import State as Promises
from vit_dist.models.weights.timm_form import from_timm, kind_of, to_timm, without_registers
from vit_dist.models.weights.viewed import (
    Viewed,
    said_beside,
    view_said,
    viewed_beside,
    viewed_by_hugging_face,
    viewed_by_text,
)

State = dict[str, Tensor]
# Files of one folder, and classes of a head whose number nobody states.
_MAX_FILES = 1_000
_MAX_CLASSES = 2**18


@dataclass(frozen=True)
class Weights:
    """A model and its weights.

    Attributes:
        state: every tensor of the model's state, float32, by our names.
        facts: where they come from: recipe, recipe_hash, step, examples, as far as is known.
        classes: names of the classes of the head, in the order of its outputs; '' or nothing where there is none.
        viewed: how images go in, and what the logits mean.
    """

    state: State
    config: ModelConfig
    num_classes: int
    image_size: int
    facts: dict[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    viewed: Viewed = field(default_factory=Viewed)

    @property
    def crop(self) -> float:
        """Fraction of the shorter side that evaluation's centre crop keeps."""
        return self.viewed.crop


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
    check_readable(path)
    if path.is_dir():
        return _read_hugging_face(path, options)
    if path.suffix == ".npz":
        return _read_npz(path, options)
    with opened(path) as (tensors, metadata):
        return _from_named(without_prefix(tensors), metadata, path, options)


def write_weights(weights: Weights, out: Path | str) -> None:
    """Write a file or folder; its form follows from the name's ending.

    Raises:
        ConfigError: no form has this ending, the form cannot hold this model, or a folder holds something else.
        DataError: it cannot be written.
    """
    text, path = str(out), Path(out)
    form = form_to_write(text)
    weights = replace(weights, classes=clean_classes(weights.classes, weights.num_classes, text))
    if form != "hugging-face":
        warn_of_colours(weights.viewed, text)
    with explained(text, "written"):
        if form == "google":
            _write_npz(weights, path)
        elif form == "timm":
            renamed = to_timm(weights.state, weights.config, weights.num_classes, weights.image_size)
            said = (weights.config, weights.num_classes, weights.image_size, weights.crop, weights.classes)
            # The notes first: where the file is, all of it is there.
            write_bytes(str(path.with_name(f"{path.name}.md")), timm_notes(path.name, *said).encode())
            _save(renamed, path, {**_metadata(weights), "timm": json.dumps(timm_config(*said))})
        elif form == "ours":
            _save(weights.state, path, _metadata(weights))
        else:
            _write_hugging_face(weights, path)


def _write_hugging_face(weights: Weights, path: Path) -> None:
    tensors, described, images = to_hugging_face(
        weights.state,
        weights.config,
        weights.num_classes,
        weights.image_size,
        labels(weights.classes, weights.num_classes),
    )
    viewed = weights.viewed
    images |= {**view_said(viewed), "image_mean": list(viewed.mean), "image_std": list(viewed.std)}
    # As transformers says it: each class is true or not.
    described |= {"problem_type": "multi_label_classification"} if viewed.loss == "sigmoid" else {}
    texts = {CONFIG: described, "preprocessor_config.json": images}
    # All of the old or all of the new: weights beside the config of others would load as what they are not. Where a
    # link leads to it, the folder itself is replaced.
    path = path.resolve()
    if path.is_dir() and any(inner.name not in FOLDER_FILES for inner in path.iterdir()):
        # Hidden files lie there, such as .git: they stay. Without its config the folder is none meanwhile.
        (path / CONFIG).unlink(missing_ok=True)
        _write_folder(path, tensors, texts)
        return
    with replacing_folder(path) as fresh:
        _write_folder(fresh, tensors, texts)


def _write_folder(folder: Path, tensors: Mapping[str, Tensor], texts: Mapping[str, Mapping[str, Any]]) -> None:
    _save(dict(tensors), folder / "model.safetensors", {"format": "pt"})
    # The config last.
    for name in sorted(texts, key=lambda name: name == CONFIG):
        write_bytes(str(folder / name), (json.dumps(texts[name], indent=2) + "\n").encode())


def heads_of(config: ModelConfig) -> int:
    """Attention heads, 1 where there are none."""
    return int(getattr(config, "num_heads", 1))


def _from_named(tensors: Promises, metadata: Mapping[str, str], path: Path, options: LoadOptions) -> Weights:
    config, said = options.config, stated(metadata, str(path))
    if config is None:
        if said.model is None:
            raise ConfigError(f"{path}: does not say its model; give it: {options.wording.model}")
        config = config_of(said.model, str(path))
    size, tensors = said.image_size, without_registers(tensors, config, str(path), said.image_size)
    if not size and getattr(config, "position_embedding", "") == "sincos" and "pos_embed" in tensors:
        # timm's form has the fixed table, which is left out below and alone says the image size.
        size = _size_of(tensors, config)
    state = from_timm(tensors, config, str(path), new_head=options.head == "new", wording=options.wording)
    weights = _fitted(state, config, path, options, said.facts, stated_size=size, classes=said.classes)
    recipe = said.facts.get("recipe")
    viewed = viewed_beside(said.evaluation) if recipe is None else viewed_by_text(recipe, weights.image_size)
    return replace(weights, viewed=viewed)


def _read_npz(path: Path, options: LoadOptions) -> Weights:
    config, said = options.config, read_sidecar(path)
    if config is None:
        if said.get("model") is None:
            raise ConfigError(f"{path}: an .npz does not say its model; give it: {options.wording.model}")
        config = config_of(said["model"], str(sidecar_of(path)))
    kind = kind_of(config)
    if kind not in RULES:
        raise ConfigError(f"{path}: Google's .npz files hold ViT, hybrid and BiT models, not {config.name}")
    names = shapes_of(config, 1, _smallest(config))
    with opened(path) as (arrays, _):
        try:
            state, missing, extra = from_google(arrays, names, kind, heads_of(config))
        except DataError as error:
            raise DataError(f"{path}: not the weights of {config.name}: {error}") from None
        classes = said.get("classes", ())
        weights = _fitted(state, config, path, options, {}, classes=classes, missing=missing, extra=extra)
        return replace(weights, viewed=viewed_beside(said.get(EVALUATION)))


def _read_hugging_face(path: Path, options: LoadOptions) -> Weights:
    try:
        described = parse_json(decode_text(read_small(path / CONFIG)))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: no folder of Hugging Face: config.json: {reason}") from None
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise DataError(f"{path}: no .safetensors in it (pickled weights are not read)")
    if len(files) > _MAX_FILES:
        raise DataError(f"{path}: {len(files):,} .safetensors in it; a model has at most {_MAX_FILES}")
    tensors: Promises = {}
    with contextlib.ExitStack() as stack:
        for file in files:
            found, _ = stack.enter_context(opened(file))
            twice = sorted(tensors.keys() & found.keys())
            if twice:
                raise DataError(
                    f"{path}: {len(twice)} tensors are in more than one of its files: {', '.join(twice[:5])}"
                )
            tensors |= found
        state, config, classes, size = from_hugging_face(
            tensors, described, str(path), new_head=options.head == "new", wording=options.wording
        )
        weights = _fitted(state, options.config or config, path, options, {}, stated_size=size, classes=classes)
        return replace(weights, viewed=viewed_by_hugging_face(path, described))


def _fitted(
    state: Promises,
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
    head = next((state[name] for name in ("head.bias", "head.weight") if name in state), None)
    in_file = head.shape[0] if head is not None and head.shape else 0
    replaced = options.head == "new" and options.num_classes
    if in_file > _MAX_CLASSES and in_file != options.num_classes and not replaced:
        raise DataError(
            f"{path}: has {in_file:,} classes; more than {_MAX_CLASSES:,} are read where "
            f"{options.wording.num_classes} says so"
        )
    classes = () if options.head == "new" or not in_file else clean_classes(classes, in_file, str(path))
    state, classes = with_rows(state, classes, options.rows)
    there = next(
        (state[name].shape[0] for name in ("head.bias", "head.weight") if name in state and state[name].ndim), 0
    )
    num_classes: int = options.num_classes or there
    others = [name for name in missing or () if "head" not in name]
    # A file of another model: the error of `fit` names all that is wrong.
    ours = missing is not None or shapes_of(config, 1, _smallest(config)).keys() & state.keys()
    if not num_classes and not others and ours:
        new = f"give {options.wording.num_classes} {options.wording.new_head}"
        raise ConfigError(f"{path}: has no head; {options.wording.headless or new}")
    position_size = _size_of(state, config)
    if stated_size and not options.image_size and "pos_embed" in state and position_size != stated_size:
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


T = TypeVar("T", Tensor, Promised)


def with_rows(
    state: dict[str, T],
    classes: tuple[str, ...],
    rows: Callable[[tuple[str, ...]], Sequence[int] | None] | None,
) -> tuple[dict[str, T], tuple[str, ...]]:
    """A state whose head has those of its classes that `rows` asks for by their names, and the names of these."""
    there = {name: state[name] for name in ("head.weight", "head.bias") if name in state}
    bias = there.get("head.bias")
    if bias is None or bias.ndim != 1 or not any(classes) or len(classes) > bias.shape[0]:
        return state, ()
    if any(tensor.shape[:1] != bias.shape for tensor in there.values()):
        return state, ()
    wanted = None if rows is None else rows(classes)
    if wanted is None:
        return state, classes
    picked = torch.tensor(list(wanted))
    heads = {name: _rows(tensor, picked) for name, tensor in there.items()}
    return {**state, **heads}, tuple(classes[i] for i in wanted)


def _rows(tensor: T, picked: Tensor) -> T:
    if isinstance(tensor, Promised):
        # On the tensor's own device: the shape is found out on one that has no values.
        chosen: Any = tensor.then(lambda values: values[picked.to(values.device)])
        return chosen  # type: ignore[no-any-return]
    return tensor[picked]


def _size_of(state: Promises, config: ModelConfig) -> int:
    """The image size that the positions are for; 224 where nothing tells."""
    table = state.get("pos_embed")
    if table is None or table.ndim != 3 or config.stride == 1:
        return 224 if 224 % config.stride == 0 else config.stride
    patches = table.shape[1] - ("cls_token" in state)
    return max(1, math.isqrt(patches)) * config.stride


def _smallest(config: ModelConfig) -> int:
    return config.stride if config.stride > 1 else 32


def _metadata(weights: Weights) -> dict[str, str]:
    # A recipe says it all. Weights of a run's copies on a store, and those of other forms, come without one.
    said = said_beside(weights.viewed) if "recipe" not in weights.facts else {}
    return {
        "format": "pt",
        "vit_dist": __version__,
        "model": json.dumps(weights.config.model_dump(mode="json")),
        "num_classes": str(weights.num_classes),
        "image_size": str(weights.image_size),
        "input": "RGB in [-1, 1]",
        **({"classes": json.dumps(weights.classes)} if any(weights.classes) else {}),
        **({EVALUATION: json.dumps(said)} if said not in ({}, said_beside(Viewed())) else {}),
        **weights.facts,
    }


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
    model = weights.config.model_dump(mode="json")
    said = {"model": model, "num_classes": weights.num_classes, "image_size": weights.image_size}
    evaluation = said_beside(weights.viewed)
    write_sidecar(path, {**said, "classes": list(weights.classes), EVALUATION: evaluation})
