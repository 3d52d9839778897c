"""Weights in and out: exact round trips, timm's own loader as the reference, and errors that name what is wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from tests.plugins import model_config
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.registry import MODELS
from vit_dist.models import ModelConfig
from vit_dist.models.weights.adapt import shapes_of
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, write_weights
from vit_dist.models.weights.timm_form import timm_model, to_timm

LARGE_STEM = {"stem": "imagenet", "backbone_width": 32, "groups": 32}
MODELS_IN_NPZ: list[tuple[str, dict[str, Any]]] = [
    ("vit-test", {"representation": True}),
    ("vit-test", {"pool": "map"}),
    ("vit-test", {"position_embedding": "none", "pool": "mean"}),
    ("hybrid-test", LARGE_STEM),
    ("hybrid-test", {**LARGE_STEM, "stages": (2, 1), "patch_size": 2}),
    ("bit", {"blocks": (1, 1), "width": 32}),
    ("bit", {"blocks": (2, 1), "width": 32}),
]

MODELS_IN_TIMM: list[tuple[str, dict[str, Any]]] = [
    ("vit-test", {}),
    ("vit-test", {"pool": "map", "mlp_dim": 40}),
    ("vit-test", {"position_embedding": "none", "gelu": "exact"}),
    ("vit-test", {"position_embedding": "sincos"}),
    ("vit-test", {"position_embedding": "sincos", "pool": "map"}),
    ("vit-test", {"layer_scale": 0.1, "qk_norm": True}),
    ("vit-test", {"registers": 4}),
    ("vit-test", {"mlp": "swiglu"}),
    ("vit-test", {"registers": 1, "pool": "map", "position_embedding": "sincos"}),
    ("hybrid-test", {"stem": "imagenet", "stages": (2, 1), "patch_size": 2}),
    ("bit-test", {"stem": "imagenet"}),
    ("bit-test", {"stem": "imagenet", "block": "basic", "blocks": (2, 1)}),
    ("timm:test_vit", {"args": {"patch_size": 8}}),
    ("timm:test_convnext", {}),
    ("timm:test_nfnet", {}),
    ("timm:test_mambaout", {}),
    ("timm:test_efficientnet_gn", {}),
]


def weights(name: str, size: int = 32, **changes: Any) -> Weights:
    config = model_config(name, **({"patch_size": 8} if name == "vit-test" else {}), **changes)
    torch.manual_seed(0)
    model = config.build(num_classes=10, image_size=size)
    state = {n: 0.3 * torch.randn(t.shape) if t.is_floating_point() else t for n, t in model.state_dict().items()}
    return Weights(state, config, 10, size, {"recipe_hash": "abc", "examples": "1234"})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(
    ("name", "changes", "ending"),
    [
        *((*model, ending) for model in MODELS_IN_NPZ for ending in ("npz", "safetensors")),
        *((*model, "timm.safetensors") for model in MODELS_IN_TIMM),
        ("hybrid-test", {}, "safetensors"),
        ("bit-test", {}, "safetensors"),
    ],
)
def test_weights_come_back_bit_for_bit(name: str, changes: dict[str, Any], ending: str, tmp_path: Path) -> None:
    before = weights(name, **changes)
    write_weights(before, tmp_path / f"w.{ending}")
    options = LoadOptions(config=None if ending == "safetensors" else before.config, image_size=32)
    after = read_weights(tmp_path / f"w.{ending}", options)
    assert same(before.state, after.state)
    assert (after.config, after.num_classes, after.image_size) == (before.config, 10, 32)
    if ending == "safetensors":
        assert after.facts == {"recipe_hash": "abc", "examples": "1234"}


@pytest.mark.parametrize("heads", [2, 4])
def test_timms_own_loader_of_our_npz_gives_our_logits(heads: int, tmp_path: Path) -> None:
    ours = weights("vit-test", num_heads=heads, gelu="exact")
    write_weights(ours, tmp_path / "w.npz")
    theirs = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=heads, num_classes=10
    ).eval()
    theirs.load_pretrained(str(tmp_path / "w.npz"))
    assert torch.equal(logits(ours), theirs(images()))


def test_timms_own_loader_of_our_hybrids_npz_gives_our_logits(tmp_path: Path) -> None:
    from functools import partial

    from timm.models.vision_transformer_hybrid import _resnetv2

    ours = weights("hybrid", 64, stages=(1, 2), width=32, depth=1, num_heads=2, gelu="exact")
    write_weights(ours, tmp_path / "w.npz")
    embed = partial(timm.layers.HybridEmbed, backbone=_resnetv2((1, 2)))
    theirs = timm.models.VisionTransformer(
        img_size=64, patch_size=1, embed_dim=32, depth=1, num_heads=2, num_classes=10, embed_layer=embed
    ).eval()
    theirs.load_pretrained(str(tmp_path / "w.npz"))
    assert torch.equal(logits(ours), theirs(images(64)))


def test_timms_own_loader_of_our_bits_npz_gives_our_logits(tmp_path: Path) -> None:
    from timm.layers import StdConv2d

    ours = weights("bit", 64, blocks=(1, 2), width=64)
    write_weights(ours, tmp_path / "w.npz")
    theirs = timm.models.resnetv2.ResNetV2(
        layers=[1, 2], channels=(256, 512), num_classes=10, stem_type="fixed", conv_layer=partial_conv(StdConv2d)
    ).eval()
    theirs.load_pretrained(str(tmp_path / "w.npz"))
    torch.testing.assert_close(logits(ours), theirs(images(64)), rtol=1e-4, atol=1e-4)


def partial_conv(conv: Any) -> Any:
    from functools import partial

    return partial(conv, eps=1e-8)


def test_the_arrays_have_the_names_and_shapes_of_the_released_files(tmp_path: Path) -> None:
    write_weights(weights("vit-test", representation=True), tmp_path / "w.npz")
    with np.load(tmp_path / "w.npz") as opened:
        shapes = {name: opened[name].shape for name in opened.files}
    assert shapes["embedding/kernel"] == (8, 8, 3, 32)
    assert shapes["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel"] == (32, 2, 16)
    assert shapes["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/bias"] == (2, 16)
    assert shapes["Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel"] == (2, 16, 32)
    assert shapes["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"] == (32, 128)
    assert shapes["Transformer/posembed_input/pos_embedding"] == (1, 17, 32)
    assert shapes["pre_logits/kernel"] == (32, 32)
    assert shapes["head/kernel"] == (32, 10)
    write_weights(weights("hybrid-test", **LARGE_STEM), tmp_path / "h.npz")
    with np.load(tmp_path / "h.npz") as opened:
        assert opened["gn_root/scale"].shape == (1, 1, 1, 32)
        assert opened["block2/unit1/conv_proj/kernel"].shape == (1, 1, 128, 256)
    write_weights(weights("bit", blocks=(1, 1), width=32), tmp_path / "b.npz")
    with np.load(tmp_path / "b.npz") as opened:
        assert opened["resnet/block1/unit01/a/standardized_conv2d/kernel"].shape == (1, 1, 32, 32)
        assert opened["resnet/head/conv2d/kernel"].shape == (1, 1, 256, 10)


@pytest.mark.parametrize("scanned", [False, True])
def test_later_names_are_read_too(scanned: bool, tmp_path: Path) -> None:
    before = weights("vit-test", pool="map")
    write_weights(before, tmp_path / "w.npz")
    later: dict[str, Any] = {}
    with np.load(tmp_path / "w.npz") as opened:
        for name in opened.files:
            parts = name.split("/")
            if parts[0] == "Transformer" and parts[1].startswith("encoderblock"):
                names = {"MlpBlock_3": "MlpBlock_0", "LayerNorm_2": "LayerNorm_1"}
                names["MultiHeadDotProductAttention_1"] = "MultiHeadDotProductAttention_0"
                parts[2] = names.get(parts[2], parts[2])
            new = {"Transformer/posembed_input/pos_embedding": "pos_embedding"}.get(name, "/".join(parts))
            later[f"params/{new}"] = opened[name]
    if scanned:
        for name in [n for n in later if "/encoderblock_0/" in n]:
            both = [later.pop(name.replace("_0/", f"_{i}/", 1)) for i in range(2)]
            later[name.replace("encoderblock_0", "encoderblock")] = np.stack(both)
    np.savez(tmp_path / "later.npz", **later)
    assert same(before.state, read_weights(tmp_path / "later.npz", LoadOptions(before.config)).state)


@pytest.mark.parametrize(("name", "changes"), MODELS_IN_TIMM)
def test_timms_own_model_loads_what_is_written_for_it_and_gives_our_logits(
    name: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    from timm.models import load_checkpoint

    ours = weights(name, 64 if "hybrid" in name else 32, **changes)
    path = tmp_path / "w.timm.safetensors"
    write_weights(ours, path)
    theirs = timm_model(ours.config, 10, ours.image_size).eval()
    load_checkpoint(theirs, str(path), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(logits(ours), theirs(images(ours.image_size)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("vit-test", {"representation": True}, "representation=true"),
        ("vit-test", {"positions_at": "shared"}, "positions_at=shared"),
        ("vit-test", {"positions_at": "layers"}, "positions_at=layers"),
        ("vit-test", {"position_embedding": "sincos", "positions_at": "shared"}, "positions_at=shared"),
        ("vit-test", {"position_embedding": "learned-2d"}, "position_embedding=learned-2d"),
        ("vit-test", {"position_embedding": "relative"}, "position_embedding=relative"),
        ("vit-test", {"position_embedding": "conditional"}, "position_embedding=conditional"),
        ("vit-test", {"position_embedding": "rope"}, "position_embedding=rope"),
        ("vit-test", {"pool": "mean"}, "pool=mean"),
        ("vit-test", {"pool": "map", "mlp": "swiglu"}, "mlp=swiglu and pool=map"),
        ("hybrid-test", {}, "stem=small/2"),
        ("hybrid-test", {**LARGE_STEM, "representation": True}, "representation=true"),
        ("bit-test", {"stem": "small"}, "stem=small"),
        ("timm:deit_tiny_distilled_patch16_224", {"args": {"patch_size": 8, "depth": 1}}, r"2 heads \(head, head_dist"),
        ("timm:caformer_s18", {}, r"cannot hold .* missing: head\.fc\.fc1\.weight"),
    ],
)
def test_what_timms_model_cannot_be_is_refused_before_anything_is_written(
    name: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config = model_config(name, **({"patch_size": 8} if name == "vit-test" else {}), **changes)
    size = 32
    state = {n: torch.empty(shape, device="meta") for n, shape in shapes_of(config, 10, size).items()}
    with pytest.raises(ConfigError, match=says):
        write_weights(Weights(state, config, 10, size), tmp_path / "new" / "w.timm.safetensors")
    assert not (tmp_path / "new").exists()


def logits(of: Weights) -> Tensor:
    model = of.config.build(num_classes=of.num_classes, image_size=of.image_size).eval()
    model.load_state_dict(of.state)
    found: Tensor = model(images(of.image_size))
    return found


def images(size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_timm_state_dicts_are_read_from_torch_files_and_nothing_else_in_them(tmp_path: Path) -> None:
    before = weights("bit-test", stem="imagenet")
    for archive in (True, False):  # False: as torch wrote before 1.6
        content = {"state_dict": to_timm(before.state, before.config, 10, 32)}
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=archive)
        assert same(before.state, read_weights(tmp_path / "w.pth", LoadOptions(before.config)).state)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"state_dict": Evil()}))
    torch.save({"x": Evil()}, tmp_path / "evil2.pth")
    for name in ("evil.pth", "evil2.pth"):
        with pytest.raises(DataError, match=f"{name}: holds .* plain tensors.*; nothing in it was run"):
            read_weights(tmp_path / name, LoadOptions(before.config))
    assert not (tmp_path / "ran").exists()


def test_a_model_of_timm_goes_out_under_timms_names_and_comes_back(tmp_path: Path) -> None:
    cls, defaults = MODELS.lookup("timm:convnext_atto")
    config = cls.model_validate(defaults)
    assert isinstance(config, ModelConfig)
    before = Weights(dict(config.build(num_classes=10, image_size=32).state_dict()), config, 10, 32)
    write_weights(before, tmp_path / "w.timm.safetensors")
    after = read_weights(tmp_path / "w.timm.safetensors", LoadOptions(config, image_size=32))
    assert same(before.state, after.state)
    from safetensors.torch import load_file

    timm.create_model("convnext_atto", num_classes=10).load_state_dict(load_file(tmp_path / "w.timm.safetensors"))


def test_a_hugging_face_folder_comes_back_and_says_its_model(tmp_path: Path) -> None:
    before = weights("vit-test", gelu="exact")
    write_weights(before, f"{tmp_path}/hf/")
    described = json.loads((tmp_path / "hf/config.json").read_text())
    assert described["hidden_act"] == "gelu"
    assert described["layer_norm_eps"] == 1e-6
    after = read_weights(tmp_path / "hf")
    assert same(before.state, after.state)
    assert (after.num_classes, after.image_size, after.config.gelu) == (10, 32, "exact")  # type: ignore[attr-defined]
    assert torch.equal(logits(before), logits(after))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_act": "relu"}, r'/config\.json: hidden_act="relu"; only gelu or'),
        ({"num_attention_heads": 5}, r"/config\.json: width=32 is not divisible by num_heads=5"),
        ({"num_channels": 1}, "num_channels=1; only 3"),
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps=1e-12; only 1e-06"),
        ({"num_hidden_layers": 3}, r"16 tensors are missing: vit\.encoder\.layer\.2"),
        ({"image_size": 40}, "it says that its images have 40 pixels, its positions are for 32"),
        ({"image_size": [32, 32]}, "only a number of pixels"),
        (None, "not of a ViTForImageClassification: it has no hidden_act, image_size"),
    ],
)
def test_a_hugging_face_folder_that_cannot_be_a_vit_is_refused(
    change: dict[str, Any] | None, message: str, tmp_path: Path
) -> None:
    write_weights(weights("vit-test"), tmp_path / "hf")
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps({} if change is None else {**json.loads(path.read_text()), **change}))
    with pytest.raises((DataError, ConfigError), match=message):
        read_weights(tmp_path / "hf")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("bit-test", {}, "plain ViT; bit-test is none"),
        ("vit-test", {"pool": "mean"}, "cannot say {'pool': 'mean'}"),
        ("vit-test", {"positions_at": "layers"}, "cannot say {'places': 'layers'}"),
    ],
)
def test_what_hugging_face_cannot_say_is_refused(
    name: str, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_weights(weights(name, **changes), f"{tmp_path}/hf/")


def test_positions_and_head_are_made_to_fit_on_request_alone(tmp_path: Path) -> None:
    before = weights("vit-test")
    write_weights(before, tmp_path / "w.npz")
    larger = read_weights(tmp_path / "w.npz", LoadOptions(before.config, image_size=48, num_classes=3, head="new"))
    assert larger.state["pos_embed"].shape == (1, 37, 32)
    assert torch.equal(larger.state["pos_embed"][:, 0], before.state["pos_embed"][:, 0])
    assert not larger.state["head.weight"].any()
    assert larger.state["head.weight"].shape == (3, 32)
    with pytest.raises(DataError, match=r"w\.npz: has 10 classes, 3 are asked for.*--head new"):
        read_weights(tmp_path / "w.npz", LoadOptions(before.config, num_classes=3))


def test_a_new_head_takes_the_representation_layer_away_where_the_model_has_none(tmp_path: Path) -> None:
    before, plain = weights("vit-test", representation=True), weights("vit-test").config
    for ending in ("npz", "safetensors"):
        path = tmp_path / f"w.{ending}"
        write_weights(before, path)
        with pytest.raises(DataError, match="2 too many: pre_logits"):
            read_weights(path, LoadOptions(plain))
        assert "pre_logits.fc.weight" not in read_weights(path, LoadOptions(plain, head="new")).state
        kept = read_weights(path, LoadOptions(before.config, head="new")).state
        assert torch.equal(kept["pre_logits.fc.weight"], before.state["pre_logits.fc.weight"])


def test_an_npz_of_other_heads_or_axes_or_no_numbers_is_refused(tmp_path: Path) -> None:
    before, path = weights("vit-test"), tmp_path / "w.npz"
    write_weights(before, path)
    with pytest.raises(
        DataError, match=r"w\.npz: not the weights of vit-test: .*query/kernel has 2 attention heads, the"
    ):
        read_weights(path, LoadOptions(weights("vit-test", num_heads=4).config))
    arrays = dict(np.load(path))
    for array, message in (
        (np.zeros(3), "embedding/kernel has the shape 3"),
        (np.array("text"), "embedding/kernel: holds values of type <U4; plain numbers are wanted"),
        (np.array([{}], dtype=object), "embedding/kernel: holds Python objects, which are never read"),
    ):
        np.savez(path, **{**arrays, "embedding/kernel": array})
        with pytest.raises(DataError, match=rf"w\.npz: .*{message}"):
            read_weights(path, LoadOptions(before.config))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"model": "{not json"}, "what its header says of the model is damaged"),
        ({"model": '{"name": "vit-test"}', "image_size": "large"}, "what its header says of the model is damaged"),
        ({"model": "[1]"}, r"its model is no mapping but \[1\]"),
        ({"model": '{"name": "vit-tset"}'}, "its model: unknown model 'vit-tset'; did you mean 'vit-test'"),
        ({"model": '{"name": "vit-test", "widht": 3}'}, "its model: widht: unknown key; did you mean 'width'"),
    ],
)
def test_a_header_that_makes_no_sense_is_refused(metadata: dict[str, str], message: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file(weights("vit-test").state, tmp_path / "w.safetensors", metadata)
    with pytest.raises((DataError, ConfigError), match=rf"w\.safetensors: {message}"):
        read_weights(tmp_path / "w.safetensors")


def test_what_cannot_be_written_leaves_nothing_behind_and_a_folder_of_other_things_is_left_alone(
    tmp_path: Path,
) -> None:
    before = weights("vit-test")
    (tmp_path / "w.npz").mkdir()
    with pytest.raises(DataError, match=r"w\.npz: cannot be written: Is a directory"):
        write_weights(before, tmp_path / "w.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["w.npz"]
    with pytest.raises(ConfigError, match=r"something else than a folder of Hugging Face's: w\.npz/\. .*name another"):
        write_weights(before, f"{tmp_path}/")
    write_weights(before, tmp_path / "hf")
    write_weights(weights("vit-test", depth=1), tmp_path / "hf")
    assert read_weights(tmp_path / "hf").config.depth == 1  # type: ignore[attr-defined]
    (tmp_path / "hf" / ".git").mkdir()
    write_weights(before, tmp_path / "hf")
    assert read_weights(tmp_path / "hf").config.depth == 2  # type: ignore[attr-defined]
    assert (tmp_path / "hf" / ".git").is_dir()


def test_weights_of_another_model_are_refused_with_what_differs(tmp_path: Path) -> None:
    before = weights("vit-test")
    write_weights(before, tmp_path / "w.npz")
    other = weights("vit-test", depth=3, width=64)
    with pytest.raises(DataError) as error:
        read_weights(tmp_path / "w.npz", LoadOptions(other.config))
    assert "16 missing: Transformer/encoderblock_2/LayerNorm_0/scale" in str(error.value)
    assert "cls_token is 1x1x32, not 1x1x64" in str(error.value)
    shallow = weights("vit-test", depth=1)
    with pytest.raises(DataError, match=r"16 too many: Transformer/encoderblock_1/LayerNorm_0/bias"):
        read_weights(tmp_path / "w.npz", LoadOptions(shallow.config))
    with pytest.raises(DataError, match="missing: resnet/root_block"):
        read_weights(tmp_path / "w.npz", LoadOptions(weights("bit-test").config))


@pytest.mark.parametrize("ending", ["npz", "safetensors", "pth"])
def test_a_truncated_file_is_refused(ending: str, tmp_path: Path) -> None:
    before = weights("vit-test")
    path = tmp_path / f"w.{ending}"
    if ending == "pth":
        torch.save(before.state, path)
    else:
        write_weights(before, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match=rf"w\.{ending}: not a whole"):
        read_weights(path, LoadOptions(before.config))


def test_forms_that_are_not_known_are_refused_with_those_that_are(tmp_path: Path) -> None:
    before = weights("vit-test")
    with pytest.raises(ConfigError, match=r"\.pth: no form .* a pickle runs code .* known: \.npz"):
        write_weights(before, tmp_path / "w.pth")
    with pytest.raises(DataError, match="no such file"):
        read_weights(tmp_path / "none.npz", LoadOptions(before.config))
    write_weights(before, tmp_path / "w.npz")
    # Beside it stands what its arrays do not say.
    (tmp_path / "w.npz.json").unlink()
    with pytest.raises(ConfigError, match=r"does not say its model; give it: --model"):
        read_weights(tmp_path / "w.npz")
    with pytest.raises(ConfigError, match="no name for the parameter 'pos_relative'"):
        write_weights(weights("vit-test", position_embedding="relative"), tmp_path / "r.npz")
