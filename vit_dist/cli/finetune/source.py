"""What is fine-tuned, and on what: the model that weights say they are, the sets that DATA names. No tensor is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vit_dist.config.load import find_config, read_mapping
from vit_dist.core.errors import CheckpointError, ConfigError, DataError, MissingError, VitDistError
from vit_dist.core.files import exists, folder_url, is_remote, join_url, local_path, read_bytes, redact, url_name
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import MARKER, committed, is_checkpoint, marker_in_place, no_checkpoint, read_marker
from vit_dist.core.small_files import DamagedError, parse_json
from vit_dist.data.manifest import read_manifest
from vit_dist.data.not_a_set import NotASetError

NONE = "none"
"""In place of weights: those of the seed, to compare with."""

_CONFIG = "config.json"
_OF_A_RUN = ("family", "head_bias", "dropout", "stochastic_depth", "representation")
"""Settings of a model that a run may choose anew: no tensor that is taken over has another shape for them."""


@dataclass(frozen=True)
class Source:
    """Weights to begin from.

    Attributes:
        weights: path or URL; '' for those of the seed.
        model: settings of the model, as far as the weights say them; None: they do not.
    """

    weights: str
    model: Mapping[str, Any] | None

    def for_transfer(self) -> dict[str, Any]:
        """Keys of a recipe that begins from them: a new head of zeros, and no representation layer (section 3.2)."""
        found: dict[str, Any] = {"init": {"weights": self.weights, "head": "new"}} if self.weights else {}
        if self.model is not None:
            # A bias of -10 is of a sigmoid loss over many classes.
            dropped = {"representation": False} if "representation" in self.model else {}
            found["model"] = {**self.model, "head_bias": 0.0, **dropped}
        return found

    def check(self, model: Mapping[str, Any]) -> None:
        """Refuse a model that the weights say they are not.

        Args:
            model: of the resolved recipe, as plain data.

        Raises:
            ConfigError: names the keys.
        """
        said = self.model or {}
        keys = (key for key in said if key in model and key not in (*_OF_A_RUN, "name"))
        wrong = [f"{key} {said[key]}, not {model[key]}" for key in keys if said[key] != model[key]]
        if wrong or (said and not said.keys() & model.keys() - {"name", *_OF_A_RUN}):
            raise ConfigError(
                f"{redact(self.weights)}: holds {said['name']}, model={model['name']} was asked for"
                f"{': ' if wrong else ''}{'; '.join(wrong)}; leave model= out, or give weights of that model"
            )


def look_at_weights(weights: str) -> Source:
    """The model of a checkpoint, a run, a file or a folder of Hugging Face, on disk or in a store.

    Raises:
        VitDistError: there is nothing of that kind, or it is damaged.
    """
    from vit_dist.models.weights.forms import check_readable

    if weights == NONE:
        return Source("", None)
    where = weights if is_remote(weights) else str(local_path(weights))
    if not is_remote(weights) and is_checkpoint(Path(where)):
        return Source(weights, _of_checkpoint(Path(where)))
    if url_name(where).endswith(".safetensors"):
        return Source(weights, _of_safetensors(where))
    if url_name(where).endswith(".npz"):
        if not exists(where):
            raise MissingError(f"{redact(where)}: no such file")
        if not is_remote(where):
            check_readable(Path(where))
        return Source(weights, _of_sidecar(f"{where}.json"))
    if exists(join_url(folder_url(where), _CONFIG)):
        return Source(weights, _of_hugging_face(join_url(folder_url(where), _CONFIG), where))
    if is_remote(weights):
        return Source(weights, _of_copies(where))
    check_readable(Path(where))
    return Source(weights, None)


def _of_checkpoint(path: Path) -> dict[str, Any]:
    chosen = [path] if (path / MARKER).is_file() else committed(path / names.CHECKPOINTS)
    if not chosen:
        raise no_checkpoint(path, "fine-tune from")
    problems = []
    for one in chosen:
        marker, problem = read_marker(one)
        model = marker.get("recipe", {}).get("model") if not problem else None
        if isinstance(model, dict):
            return model
        problems.append(f"{one}: {problem or 'its marker does not say the model'}")
    raise CheckpointError("; ".join(problems))


def _of_copies(url: str) -> dict[str, Any]:
    """Of a checkpoint's copy, or of the newest of a run's."""
    from vit_dist.train.checkpoint.remote import remote_steps

    if exists(join_url(folder_url(url), MARKER)):
        places = [folder_url(url)]
    else:
        places = [join_url(folder_url(url), name) for name in remote_steps(url)]
    if not places:
        raise DataError(
            f"{redact(url)}: no weights there: no checkpoint, no run's copies, no folder of Hugging Face, and no file "
            f"of a form that `vit-dist models import` reads"
        )
    marker, problem = marker_in_place(read_bytes(join_url(places[0], MARKER)), url_name(places[0].rstrip("/")))
    model = marker.get("recipe", {}).get("model")
    if problem or not isinstance(model, dict):
        raise CheckpointError(f"{redact(places[0])}: {problem or 'its marker does not say the model'}")
    return model


def _of_safetensors(where: str) -> dict[str, Any] | None:
    from vit_dist.config.schema import dump
    from vit_dist.core.tensor_file import read_header
    from vit_dist.data.ranges import open_file
    from vit_dist.models.weights.described import config_of, stated

    if not exists(where):
        raise MissingError(f"{redact(where)}: no such file")
    try:
        with open_file(where) as file:
            _, metadata = read_header(file)
    except DamagedError as error:
        raise DataError(f"{redact(where)}: not a whole safetensors file: {error}") from None
    said = stated(metadata, redact(where)).model
    return None if said is None else dump(config_of(said, redact(where)))


def _of_sidecar(beside: str) -> dict[str, Any] | None:
    """What stands beside an .npz that we have written; nothing of others."""
    from vit_dist.config.schema import dump
    from vit_dist.models.weights.described import config_of

    if not exists(beside):
        return None
    try:
        said = parse_json(read_bytes(beside))
    except DamagedError as error:
        raise DataError(f"{redact(beside)}: {error}") from None
    model = said.get("model") if isinstance(said, dict) else None
    return None if model is None else dump(config_of(model, redact(beside)))


def _of_hugging_face(config: str, where: str) -> dict[str, Any]:
    from vit_dist.config.schema import dump
    from vit_dist.models.weights.huggingface import described_model

    try:
        said = parse_json(read_bytes(config))
    except DamagedError as error:
        raise DataError(f"{redact(config)}: {error}") from None
    return dump(described_model(said, redact(where))[0])


def data_keys(data: str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The `data` section of a recipe that trains on what DATA names.

    Args:
        data: a manifest, a directory or URL of one, of one with `train` and `val` or `test` in it, or the name of a
            file in configs/data.
        overrides: of the command line, as one mapping: what they say of the section need not be found out.

    Raises:
        VitDistError: there is no such set.
    """
    given = overrides.get("data", {})
    given = given if isinstance(given, Mapping) else {}
    try:
        place = None if _is_place(data) else find_config(data, "data")
    except ConfigError as error:
        raise ConfigError(f"DATA={redact(data)}: {error}; nor is a set there") from None
    if place is not None:
        named = {"dataset": place.stem, **{k: v for k, v in read_mapping(place).items() if k in ("train", "val")}}
    else:
        train, val = _train_and_val(data)
        named = {"dataset": "custom", "train": train, "val": val}
    train = str(given.get("train", named.get("train", "")))
    if not train:
        raise ConfigError(f"DATA={data}: {place} names no place of its images: give data.train=URL, or the URL as DATA")
    if "num_classes" not in given:
        named["num_classes"] = read_manifest(train).num_classes or 1
    return named


def _is_place(data: str) -> bool:
    return is_remote(data) or "/" in data or local_path(data).exists()


def _train_and_val(data: str) -> tuple[str, str]:
    """The places of a set, and of one to evaluate on beside it, or ''."""
    try:
        read_manifest(data)
    except (MissingError, NotASetError) as error:
        inside = join_url(folder_url(data), "train")
        if not exists(join_url(folder_url(inside), "manifest.json")):
            pack = "" if "data pack" in str(error) else "; `vit-dist data pack` makes a set of a folder of images"
            raise type(error)(f"DATA: {error}{pack}") from None
        found = (join_url(folder_url(data), name) for name in ("val", "test"))
        val = next((one for one in found if exists(join_url(folder_url(one), "manifest.json"))), "")
        return inside, val
    except VitDistError as error:
        raise type(error)(f"DATA: {error}") from None
    return data, ""
