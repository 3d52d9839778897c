"""Configs of models that stand in files: a model that can be built, or one clear error, before anything is built."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.plugins import model_config
from tests.unit.fuzz.budget import fuzz
from tests.unit.fuzz.weight_files import CONFIG, edited, state, value_or_error
from vit_dist.models.weights.adapt import shapes_of
from vit_dist.models.weights.described import config_of
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, write_weights

CONFIGS = [
    json.dumps(config.model_dump(mode="json"))
    for config in (
        CONFIG,
        model_config("hybrid-test"),
        model_config("bit-test"),
        model_config("timm:test_vit", args={"patch_size": 8, "depth": 2, "embed_dim": 16}),
    )
]


@fuzz
@given(st.sampled_from(CONFIGS).flatmap(edited))
def test_a_forged_config_is_a_model_of_bounded_size_or_one_error(described: str) -> None:
    def built() -> None:
        config = config_of(json.loads(described), "w.safetensors")
        shapes_of(config, 3, config.stride if config.stride > 1 else 160)

    value_or_error(built)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder of Hugging Face."""
    found = tmp_path_factory.mktemp("hf")
    write_weights(Weights(state(), CONFIG, 3, 8, {}, ("a", "b", "")), f"{found}/")
    return found


@fuzz
@given(data=st.data())
def test_a_forged_config_of_hugging_face_is_weights_or_one_error(data: st.DataObject, folder: Path) -> None:
    path = folder / "config.json"
    before = path.read_text()
    try:
        path.write_text(data.draw(edited(before)))
        options = data.draw(
            st.sampled_from([LoadOptions(), LoadOptions(num_classes=2, head="new"), LoadOptions(CONFIG)])
        )
        value_or_error(lambda: read_weights(folder, options))
    finally:
        path.write_text(before)
