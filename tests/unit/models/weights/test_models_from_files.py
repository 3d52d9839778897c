"""What files say of their model: held within limits before anything is built."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins import model_config
from vit_dist.core.errors import ConfigError, DataError, VitDistError
from vit_dist.models.weights.adapt import fit, shapes_of
from vit_dist.models.weights.described import config_of
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, write_weights

VIT = model_config("vit-test", patch_size=8, width=8, depth=1)
STATE = {name: torch.ones(shape) for name, shape in shapes_of(VIT, 3, 32).items()}


def hole(path: Path, content: bytes, size: int) -> Path:
    """A file of this size, of which the end takes no place on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size)
    return path


def safetensors(path: Path, change: Callable[[dict[str, Any]], Any], size: int | None = None) -> Path:
    """A whole file whose header is changed, padded with a hole to `size`."""
    write_weights(Weights(STATE, VIT, 3, 32), path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    return hole(
        path, len(text).to_bytes(8, "little") + text + content[end:], size or len(text) + 8 + len(content) - end
    )


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("vit-test", {"depth": 10**9}, "depth=1000000000; at most 1,000"),
        ("vit-test", {"depth": 1001}, "depth=1001; at most 1,000"),
        ("vit-test", {"width": 10**6}, "width=1000000; at most 32,768"),
        ("vit-test", {"mlp_dim": 2**40}, "mlp_dim=1099511627776; at most 262,144"),
        ("vit-test", {"patch_size": 2**20}, "patch_size=1048576; at most 16,384"),
        ("vit-test", {"dropout": 1e300}, r"dropout=1e\+300; at most"),
        ("vit-test", {"dropout": float("nan")}, "dropout=NaN; at most"),
        ("vit-test", {"head_bias": float("-inf")}, "head_bias=-Infinity; at most"),
        ("vit-test", {"family": "x" * 5000}, "family=.*; at most 1,000 characters"),
        ("vit-test", {"x" * 5000: 1}, "a key has at most 200 characters"),
        ("vit-test", {"depth": "2"}, "depth: must be a valid integer, got '2'"),
        ("vit-test", {"depth": True}, "depth: must be a valid integer"),
        ("vit-test", {"depth": [[[[[1]]]]]}, "nested more than 4 levels"),
        ("bit-test", {"blocks": [1] * 40}, r"blocks=.*; at most 8 stages"),
        ("bit-test", {"blocks": [600, 600]}, "at most 1,000 layers"),
        ("bit-test", {"blocks": [1, 10**12]}, "at most 1,000 layers"),
        ("bit-test", {"width_factor": 4096}, "width_factor=4096; at most 64"),
        ("hybrid-test", {"stages": [1001]}, "at most 1,000 layers"),
        ("hybrid-test", {"backbone_width": 2**30}, "backbone_width=1073741824; at most"),
        ("timm:test_vit", {"args": {"depth": 10**6}}, r"args\.depth=1000000; at most 1,000"),
        ("timm:test_vit", {"args": {"depths": [3, 3, 900, 900]}}, r"args\.depths=.*at most 1,000 layers"),
        ("timm:test_vit", {"args": {"depth_multiplier": 1e5}}, r"args\.depth_multiplier=100000.0; at most"),
        ("timm:test_vit", {"args": {"embed_dim": 10**12}}, r"args\.embed_dim=1000000000000; at most"),
        ("timm:test_vit", {"args": {"checkpoint_path": "/etc/passwd"}}, r"args\.checkpoint_path=.*may not say"),
        ("timm:test_vit", {"args": {"pretrained_cfg": {"url": "http://x"}}}, r"args\.pretrained_cfg=.*may not say"),
        ("timm:test_vit", {"args": {"norm_layer": [0] * 2000}}, r"args\.norm_layer=.*at most 1,000 values"),
        ("timm:hf-hub:a/b", {}, "timm .* has no model 'hf-hub:a/b'"),
        ("x" * 3000, {}, "name=.*; expected the name of a model"),
        (["vit"], {}, r'name=\["vit"\]; expected the name'),
    ],
)
def test_a_config_in_a_file_is_held_within_limits(name: Any, change: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?s)({says})") as caught:
        shapes_of(config_of({"name": name, **change}, "w.safetensors"), 2, 224)
    assert len(str(caught.value)) < 600


def test_the_models_of_the_paper_and_larger_ones_are_within_the_limits() -> None:
    from vit_dist.core.registry import MODELS

    for name in MODELS.names():
        cls, defaults = MODELS.lookup(name)
        if all(field in defaults for field, known in cls.model_fields.items() if known.is_required()):
            config_of(defaults, "w.safetensors")
    config_of({**MODELS.lookup("ViT-G/14")[1], "width": 6144, "depth": 48, "mlp_dim": 24576, "num_heads": 48}, "w")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"num_hidden_layers": 10**9}, r"config\.json: num_hidden_layers=1000000000; at most 1,000"),
        ({"hidden_size": 10**9}, r"config\.json: hidden_size=1000000000; at most 32,768"),
        ({"intermediate_size": 1e300}, r"config\.json: intermediate_size=1e\+300; at most"),
        ({"patch_size": [16] * 5000}, r"config\.json: patch_size=.*at most 1,000 values"),
        ({"image_size": 10**9}, r"config\.json: image_size=1000000000; at most 16,384 pixels"),
        ({"hidden_act": ["gelu"] * 9000}, r"hidden_act=\["),
        ({"model_type": "x" * 9000}, "model_type="),
        ({"architectures": ["x" * 90_000, 3], "model_type": "y"}, r"\(a x+\)"),
    ],
)
def test_a_config_of_hugging_face_is_held_within_limits(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    write_weights(Weights(STATE, VIT, 3, 32), tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(VitDistError, match=says) as caught:
        read_weights(tmp_path / "hf")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"image_size": "9" * 5000}, 'image_size="999.*expected a whole number'),
        ({"image_size": "1000000000"}, "image_size=1000000000; at most 16,384 pixels"),
        ({"image_size": "-1"}, "image_size="),
        ({"image_size": "64"}, "its images have 64 pixels, its positions are for 32"),
        ({"examples": "many"}, 'examples="many"; expected a whole number'),
        ({"step": "1e5"}, "step="),
        ({"classes": "{}"}, "classes={}; expected a list of texts"),
        ({"classes": "[1, 2, 3]"}, "classes=.*; expected a list of texts"),
        ({"model": "[" * 50_000}, "model: nested"),
        ({"model": '{"name": "vit-test", "depth": NaN}'}, "model: NaN is no number"),
    ],
)
@pytest.mark.parametrize("given", [True, False])
def test_what_a_header_says_beside_its_tensors_is_held_within_limits(
    metadata: dict[str, str], says: str, given: bool, tmp_path: Path
) -> None:
    path = safetensors(tmp_path / "w.safetensors", lambda header: header["__metadata__"].update(metadata))
    with pytest.raises(VitDistError, match=rf"w\.safetensors: .*{says}") as caught:
        read_weights(path, LoadOptions(VIT if given else None))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("places", [2, 4, 16, 36])
def test_a_table_of_offsets_that_has_no_middle_is_no_table(places: int) -> None:
    config = model_config("vit-test", patch_size=8, position_embedding="relative")
    shapes = shapes_of(config, 2, 16)
    name = next(name for name in shapes if name == "pos_relative")
    state = {n: torch.zeros(shape) for n, shape in shapes.items()}
    state[name] = torch.zeros(shapes[name][0], places, shapes[name][2])
    with pytest.raises(DataError, match="of another shape: pos_relative"):
        fit(state, config, num_classes=2, image_size=16, source="w")
