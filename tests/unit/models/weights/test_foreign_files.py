"""Files of others: dtypes, prefixes, heads that are none of ours, settings that a form cannot say."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.plugins import model_config
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.models.weights.adapt import fit, shapes_of
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, write_weights
from vit_dist.models.weights.timm_form import from_timm, timm_shapes

VIT = model_config("vit-test", patch_size=8)


def state(**changes: Any) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    # Few bits, so that every format of floats can hold them.
    shapes = shapes_of(model_config("vit-test", patch_size=8, **changes), 10, 32)
    return {name: torch.randint(-4, 5, shape, generator=draw) / 8 for name, shape in shapes.items()}


def npz(path: Path, **arrays: Any) -> Path:
    """A whole .npz of the model, some of its arrays replaced."""
    write_weights(Weights(state(), VIT, 10, 32), path)
    with np.load(path) as opened:
        whole = {name: opened[name] for name in opened.files}
    np.savez(path, **{**whole, **{name.replace("__", "/"): array for name, array in arrays.items()}})
    return path


def head(dtype: Any) -> Any:
    return (8 * state()["head.bias"].numpy()).astype(dtype)


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8", "g", "i1", "<i4", ">i8", "bf16"])
def test_an_array_of_any_real_dtype_is_read(dtype: str, tmp_path: Path) -> None:
    # bf16 as numpy stores what ml_dtypes gives it: two bytes without a name.
    bf16 = (head(np.float32).view(np.uint32) >> 16).astype(np.uint16).view("V2")
    array = bf16 if dtype == "bf16" else head(np.dtype(dtype))
    path = npz(tmp_path / "w.npz", head__bias=array)
    found = read_weights(path, LoadOptions(VIT)).state["head.bias"]
    assert found.dtype == torch.float32
    assert torch.equal(found, 8 * state()["head.bias"])


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (head(np.complex64), "of type complex64"),
        (head(bool), "of bool"),
        (head(np.float32).astype("U8"), "of type <U"),
        (head(np.float32).astype("S8"), r"of type \|S8"),
        (head(np.int8).view("V1"), "of 1 bytes of unknown meaning"),
        (np.zeros(10, [("a", "f4")]), r"of type \[\('a', '<f4'\)\]"),
        (np.zeros(10, "M8[s]"), r"of type datetime64\[s\]"),
        (np.full(10, 1e300), "numbers of float64 that float32 cannot hold"),
        (np.full(10, 1e300, np.longdouble), r"numbers of \w+ that float32 cannot hold"),
    ],
)
def test_an_array_of_anything_else_is_refused_by_name(array: Any, says: str, tmp_path: Path) -> None:
    path = npz(tmp_path / "w.npz", head__bias=array)
    with pytest.raises(DataError, match=rf"w\.npz: head/bias.*{says}"):
        read_weights(path, LoadOptions(VIT))


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.int64],
)
def test_a_tensor_of_any_real_dtype_is_read(dtype: torch.dtype, ending: str, tmp_path: Path) -> None:
    content = {**state(), "head.bias": (8 * state()["head.bias"]).to(dtype)}
    found = read_weights(saved(content, tmp_path / f"w.{ending}"), LoadOptions(VIT)).state["head.bias"]
    assert found.dtype == torch.float32
    assert torch.equal(found, 8 * state()["head.bias"])


def saved(content: dict[str, Any], path: Path) -> Path:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(content, path)
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("make", "says", "ending"),
    [
        (lambda: torch.zeros(10, dtype=torch.complex64), r"complex \(complex64\)", "safetensors"),
        (lambda: torch.zeros(10, dtype=torch.bool), r"boolean \(bool\)", "safetensors"),
        (lambda: torch.zeros(10, dtype=torch.complex128), r"complex \(complex128\)", "pth"),
        (lambda: torch.zeros(10).to_sparse(), "sparse", "pth"),
        (lambda: torch.quantize_per_tensor(torch.zeros(10), 0.1, 0, torch.qint8), r"quantized \(qint8\)", "pth"),
        (lambda: torch.empty(10, device="meta"), "without data", "pth"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_tensor_of_anything_else_is_refused_by_name(
    make: Callable[[], Tensor], says: str, ending: str, tmp_path: Path
) -> None:
    path = saved({**state(), "head.bias": make()}, tmp_path / f"w.{ending}")
    with pytest.raises(
        DataError, match=rf"w\.{ending}: (head\.bias in it is {says}|holds something other|not a whole|holds more)"
    ):
        read_weights(path, LoadOptions(VIT))


@pytest.mark.parametrize(
    "prefix",
    ["_orig_mod.", "model.", "module.", "backbone.", "module._orig_mod.", "model.backbone.", "student.backbone."],
)
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_prefix_that_all_names_share_is_taken_off(prefix: str, ending: str, tmp_path: Path) -> None:
    content: dict[str, Any] = {f"{prefix}{name}": tensor for name, tensor in state().items()}
    content = content if ending == "safetensors" else {"state_dict": content, "epoch": 3}
    found = read_weights(saved(content, tmp_path / f"w.{ending}"), LoadOptions(VIT)).state
    assert all(torch.equal(found[name], tensor) for name, tensor in state().items())


@pytest.mark.parametrize("prefix", ["net.", "ema.model.", "my_vit.", "backbone."])
def test_a_prefix_that_only_some_names_have_or_that_nobody_knows_is_named(prefix: str, tmp_path: Path) -> None:
    content = {f"{prefix}{name}": tensor for name, tensor in state().items()} | {"queue.x": torch.zeros(3)}
    for options in (LoadOptions(VIT), LoadOptions(VIT, num_classes=5, head="new")):
        with pytest.raises(DataError) as error:
            read_weights(saved(content, tmp_path / "w.pth"), options)
        assert f"of its {len(content)} names would be the model's without '{prefix}' before them" in str(error.value)


@pytest.mark.parametrize(
    "others",
    [
        {"head.weight": (7, 32), "head_dist.weight": (7, 32), "head_dist.bias": (7,)},
        {"head.fc1.weight": (64, 32), "head.fc2.weight": (7, 64)},
        {"head.0.weight": (7, 32, 1, 1)},
        {"classifier.weight": (7, 32), "classifier.bias": (7,)},
        {"fc.weight": (7, 32)},
        {"pre_logits.fc.weight": (32, 32), "pre_logits.fc.bias": (32,)},
        {"projector.0.weight": (8, 32), "head.bias": (7,)},
        {},
    ],
)
def test_a_new_head_works_wherever_the_trunk_can_be_read(others: dict[str, tuple[int, ...]], tmp_path: Path) -> None:
    trunk = {name: tensor for name, tensor in state().items() if not name.startswith("head.")}
    path = saved({**trunk, **{name: torch.zeros(shape) for name, shape in others.items()}}, tmp_path / "w.safetensors")
    found = read_weights(path, LoadOptions(VIT, num_classes=5, head="new")).state
    assert found["head.weight"].shape == (5, 32)
    assert all(torch.equal(found[name], tensor) for name, tensor in trunk.items())
    with pytest.raises((DataError, ConfigError)):
        read_weights(path, LoadOptions(VIT))


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("timm:caformer_s18", 224),  # an MLP
        ("timm:deit_tiny_distilled_patch16_224", 224),  # two heads
        ("timm:resnetv2_50x1_bit", 224),  # a convolution
        ("timm:test_vit", 160),
        ("timm:test_mambaout", 160),
    ],
)
def test_a_new_head_takes_the_place_of_whatever_head_a_model_of_timm_has(name: str, size: int) -> None:
    config = model_config(name)
    theirs = {n: torch.empty(shape, device="meta") for n, shape in timm_shapes(config, 7, size).items()}
    found = from_timm(theirs, config, "w.pth", new_head=True)
    fit(found, config, num_classes=5, image_size=size, source="w.pth", head="new")
    if name.startswith(("timm:caformer", "timm:deit")):
        with pytest.raises(DataError, match=r"2 heads there|too many|missing"):
            fit(from_timm(theirs, config, "w.pth", new_head=False), config, num_classes=7, image_size=size, source="w")


def test_the_fixed_table_says_the_image_size_and_may_be_of_another(tmp_path: Path) -> None:
    config = model_config("vit-test", patch_size=8, position_embedding="sincos")
    whole = {name: torch.zeros(shape) for name, shape in shapes_of(config, 2, 40).items()}
    write_weights(Weights(whole, config, 2, 40), tmp_path / "w.timm.safetensors")
    assert read_weights(tmp_path / "w.timm.safetensors", LoadOptions(config)).image_size == 40
    assert read_weights(tmp_path / "w.timm.safetensors", LoadOptions(config, image_size=64)).image_size == 64


def test_two_heads_of_our_own_names_are_not_taken_for_one(tmp_path: Path) -> None:
    content = {**state(), "head.fc.weight": torch.zeros(7, 32)}
    with pytest.raises(DataError, match=r"1 too many: head\.fc\.weight"):
        read_weights(saved(content, tmp_path / "w.pth"), LoadOptions(VIT))


def test_a_learned_table_is_no_sincos_one(tmp_path: Path) -> None:
    config = model_config("vit-test", patch_size=8, position_embedding="sincos")
    path = saved(state(), tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"w\.pth: pos_embed is not the fixed table of position_embedding=sincos"):
        read_weights(path, LoadOptions(config))


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("vit-test", {"positions_at": "shared"}, "positions_at=shared"),
        ("vit-test", {"position_embedding": "sincos", "positions_at": "shared"}, "positions_at=shared"),
        ("vit-test", {"positions_at": "layers"}, "no name for the parameter 'pos_embed'"),
        ("hybrid-test", {"stem": "imagenet"}, "groups=4"),
        ("hybrid-test", {}, "stem=small/2, groups=4"),
        ("bit-test", {"stem": "imagenet"}, "groups=4"),
        ("bit", {"blocks": (1,), "width": 32, "block": "basic"}, "block=basic"),
        ("timm:test_vit", {}, "hold ViT, hybrid and BiT models"),
    ],
)
def test_what_googles_code_would_take_for_another_model_is_refused(
    name: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    config = model_config(name, **changes)
    size = 160 if "timm" in name else 56
    whole = {n: torch.zeros(shape) for n, shape in shapes_of(config, 2, size).items()}
    with pytest.raises(ConfigError, match=says):
        write_weights(Weights(whole, config, 2, size), tmp_path / "w.npz")
    assert not (tmp_path / "w.npz").exists()


def folder(path: Path, change: dict[str, Any], rename: Any = lambda name: name, **more: Tensor) -> Path:
    """A folder of Hugging Face with other names, further tensors and another config.json."""
    from safetensors.torch import load_file, save_file

    write_weights(Weights(state(), VIT, 10, 32), f"{path}/")
    tensors = {rename(name): tensor for name, tensor in load_file(path / "model.safetensors").items()}
    tensors.pop("", None)
    save_file(tensors | {name.replace("__", "."): tensor for name, tensor in more.items()}, path / "model.safetensors")
    described = json.loads((path / "config.json").read_text()) | change
    (path / "config.json").write_text(json.dumps(described))
    return path


def trunk_alone(name: str) -> str:
    return name.removeprefix("vit.") if name.startswith("vit.") else ""


POOLER = {"pooler__dense__weight": torch.zeros(32, 32), "pooler__dense__bias": torch.zeros(32)}


@pytest.mark.parametrize(
    ("rename", "more"),
    [
        (trunk_alone, {}),
        (trunk_alone, POOLER),
        (lambda name: name if name.startswith("vit.") else "", {}),
        (lambda name: f"model.{name}", {}),
        (lambda name: f"module.{trunk_alone(name)}" if trunk_alone(name) else "", {}),
        (lambda name: name, {f"vit__{name}": tensor for name, tensor in POOLER.items()}),
    ],
)
def test_a_vit_model_of_hugging_face_is_read_with_a_new_head(
    rename: Any, more: dict[str, Tensor], tmp_path: Path
) -> None:
    path = folder(tmp_path / "hf", {"architectures": ["ViTModel"]}, rename, **more)
    found = read_weights(path, LoadOptions(num_classes=5, head="new")).state
    assert all(torch.equal(found[name], tensor) for name, tensor in state().items() if not name.startswith("head."))
    assert found["head.weight"].shape == (5, 32)


@pytest.mark.parametrize(
    ("change", "rename", "more", "says"),
    [
        ({"architectures": ["ViTModel"]}, trunk_alone, {}, "has no head; give --num-classes N --head new"),
        (
            {"architectures": ["ViTModel"]},
            trunk_alone,
            POOLER,
            r"\(a ViTModel\): 2 tensors more .*--head new leaves out",
        ),
        (
            {},
            str,
            {"vit__embeddings__mask_token": torch.zeros(1, 1, 32)},
            "1 tensors more than a plain ViT has: vit.emb",
        ),
        ({}, str, {"vit__embeddings__distillation_token": torch.zeros(1, 1, 32)}, "distillation_token"),
        ({"model_type": "deit"}, str, {}, "model_type=\"deit\".* only a plain 'vit' can be read"),
        ({"model_type": "dinov2"}, str, {}, 'model_type="dinov2"'),
        ({}, lambda name: name.replace("layernorm_before", "norm1"), {}, "8 tensors are missing|4 tensors are missing"),
    ],
)
def test_a_folder_of_hugging_face_that_is_more_or_less_than_a_vit_is_refused(
    change: dict[str, Any], rename: Any, more: dict[str, Tensor], says: str, tmp_path: Path
) -> None:
    with pytest.raises((DataError, ConfigError), match=says):
        read_weights(folder(tmp_path / "hf", change, rename, **more))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            {"teacher": {"x": torch.zeros(1)}, "epoch": 3},
            r"holds no dictionary of tensors alone, but teacher \(dict\), epoch \(int\); save",
        ),
        ([torch.zeros(1)], "holds no dictionary of tensors but list; save"),
        ({"state_dict": {"x": 3}}, r"but x \(int\); save"),
        ({"state_dict": {**state(), "extra": "1.0"}}, r"but extra \(str\); save"),
        ({}, "holds no dictionary of tensors but dict; save"),
        (torch.zeros(1), "holds no dictionary of tensors but Tensor; save"),
    ],
)
def test_a_torch_file_without_a_state_says_what_it_has(content: Any, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(DataError, match=says):
        read_weights(tmp_path / "w.pth", LoadOptions(VIT))
