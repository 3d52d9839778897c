"""What weights say of themselves beside their numbers: names of classes, how images go in, how others load them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from vit_dist.core.errors import DataError
from vit_dist.core.files import write_bytes
from vit_dist.core.log import WARNING, log
from vit_dist.core.small_files import MAX_WHOLE_BYTES, DamagedError, is_texts, parse_json, read_small
from vit_dist.core.terminal import clean
from vit_dist.models import ModelConfig
from vit_dist.models.bit import BiTConfig
from vit_dist.models.hybrid import HybridConfig
from vit_dist.models.vit import ViTConfig

INPUT = {
    "channels": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
}
"""Every model here sees RGB in [-1, 1]: x / 127.5 - 1, which is (x / 255 - mean) / std; images are resized with
antialiasing."""

_LONGEST_NAME = 500


def clean_classes(names: Iterable[Any], num_classes: int, where: str) -> tuple[str, ...]:
    """Names of a head's classes, fit to be shown and compared: '' where one has none; () where none has.

    Args:
        names: in the order of the head's outputs.
        num_classes: of the head.
        where: for errors.

    Raises:
        DataError: no list of texts, or more than there are classes.
    """
    listed = list(names) if isinstance(names, list | tuple) else None
    if listed is None or not is_texts(listed):
        raise DataError(f"{where}: the names of its classes are no list of texts")
    if len(listed) > num_classes:
        raise DataError(f"{where}: {len(listed):,} names of classes, and its head has {num_classes:,}")
    found = tuple(_clean(name)[:_LONGEST_NAME] for name in listed)
    return found if any(found) else ()


def _clean(name: str) -> str:
    # As data/grammar.py compares names; ends of lines would break every list of names.
    text = unicodedata.normalize("NFC", name.strip()).replace("\n", "\\n").replace("\t", "\\t")
    return clean(text)


def labels(classes: tuple[str, ...], num_classes: int, nameless: str = "LABEL_") -> list[str]:
    """A name for each output of a head: its class's, else `LABEL_7`."""
    padded = (*classes, *[""] * (num_classes - len(classes)))
    return [name or f"{nameless}{i}" for i, name in enumerate(padded)]


def timm_config(
    config: ModelConfig, num_classes: int, image_size: int, crop: float, classes: tuple[str, ...]
) -> dict[str, Any]:
    """As `config.json` of timm's models on the hub says it, with `label_names` where there are any."""
    architecture = getattr(config, "architecture", "")
    images = {"mean": INPUT["mean"], "std": INPUT["std"], "interpolation": INPUT["interpolation"]}
    return {
        **({"architecture": architecture} if architecture else {}),
        "num_classes": num_classes,
        **({"label_names": labels(classes, num_classes)} if classes else {}),
        "pretrained_cfg": {
            "num_classes": num_classes,
            "input_size": [3, image_size, image_size],
            **images,
            "crop_pct": _crop_pct(image_size, crop),
            "crop_mode": "center",
        },
        "constructor": timm_constructor(config, num_classes, image_size)[1],
    }


def _crop_pct(image_size: int, crop: float) -> float:
    """timm's name for the crop: it rounds down the side that images are resized to, here it is rounded."""
    side = round(image_size / crop)
    return crop if int(image_size / crop) == side else image_size / (side + 0.25)


def timm_constructor(config: ModelConfig, num_classes: int, image_size: int) -> tuple[str, str]:
    """Imports and an expression of Python that make timm's own model of the same shape, with equal logits."""
    if isinstance(config, ViTConfig):
        return _vision_transformer(config, num_classes, image_size)
    if isinstance(config, BiTConfig):
        basic = config.block == "basic"
        said = [f"layers={list(config.blocks)}", f"channels={config.channels}"]
        said += [f"stem_chs={config.width * config.width_factor}", "stem_type='fixed'", f"num_classes={num_classes}"]
        said += [f"preact=True, basic={basic}, bottle_ratio={1.0 if basic else 0.25}"]
        return _RESNET, f"ResNetV2({', '.join([*said, _norms(config.groups, 'StdConv2d')])})"
    size = _size_argument(config, image_size)
    arguments = {"pretrained": False, "num_classes": num_classes, **size, **getattr(config, "args", {})}
    name = getattr(config, "architecture", config.name)
    return "", f"timm.create_model({name!r}, {', '.join(f'{key}={value!r}' for key, value in arguments.items())})"


def timm_code(file: str, config: ModelConfig, num_classes: int, image_size: int, crop: float) -> str:
    """Four lines of Python that load a file into timm's own model, and images as they were seen here."""
    imports, model = timm_constructor(config, num_classes, image_size)
    images = (
        f"input_size=(3, {image_size}, {image_size}), mean=(0.5,) * 3, std=(0.5,) * 3, "
        f"crop_pct={_crop_pct(image_size, crop)!r}, interpolation='bilinear'"
    )
    lines = [
        f"import safetensors.torch, timm, torch{imports}",
        f"model = {model}",
        f"model.load_state_dict(safetensors.torch.load_file({file!r})); model.eval()",
        f"images = timm.data.create_transform({images})",
    ]
    return "\n".join(lines)


def timm_notes(
    file: str, config: ModelConfig, num_classes: int, image_size: int, crop: float, classes: tuple[str, ...]
) -> str:
    """Markdown: how to load a file by timm, and what its state dict does not say."""
    shown = ", ".join(labels(classes, num_classes)[:5]) if classes else ""
    named = (
        f"Its {num_classes:,} classes are {_escaped(shown)}{', ...' if num_classes > 5 else ''}; all of them: "
        f"`json.loads(safetensors.safe_open({file!r}, 'pt').metadata()['timm'])['label_names']`."
        if classes
        else f"Its {num_classes:,} classes have no names."
    )
    code = timm_code(file, config, num_classes, image_size, crop)
    return (
        f"# {_escaped(file)}\n\nWeights of {_escaped(config.name)} by timm's names, written by vit_dist.\n\n"
        f"```python\n{code}\n```\n\n"
        f"Images: RGB, {image_size} x {image_size} pixels: the shorter side resized to {image_size} / {crop:g} "
        f"(bilinear, antialiased), the middle cut out, mean 0.5, std 0.5, which is [-1, 1].\n\n{named}\n"
    )


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>#|" else letter for letter in text)


_RESNET = (
    "; from functools import partial; from timm.layers import GroupNormAct, HybridEmbed, StdConv2d, StdConv2dSame; "
    "from timm.models.resnetv2 import ResNetV2"
)


def _norms(groups: int, conv: str) -> str:
    # Inside the root of weight standardisation: models/_bit.py.
    return f"norm_layer=partial(GroupNormAct, num_groups={groups}), conv_layer=partial({conv}, eps=1e-8)"


def _vision_transformer(config: ViTConfig, num_classes: int, image_size: int) -> tuple[str, str]:
    imports, embed = "; from functools import partial", ""
    if isinstance(config, HybridConfig):
        width, depth = config.backbone_width, len(config.stages)
        channels = tuple(4 * width * 2**i for i in range(depth))
        backbone = (
            f"ResNetV2(layers={list(config.stages)}, channels={channels}, stem_chs={width}, stem_type='same', "
            f"num_classes=0, global_pool='', preact=False, {_norms(config.groups, 'StdConv2dSame')})"
        )
        imports, embed = _RESNET, f", embed_layer=partial(HybridEmbed, backbone={backbone})"
    said = [f"img_size={image_size}", f"patch_size={config.patch_size}", f"num_classes={num_classes}"]
    said += [f"embed_dim={config.width}", f"depth={config.depth}", f"num_heads={config.num_heads}"]
    gated = config.mlp == "swiglu"
    # timm takes int(width * ratio): half a unit up, nothing is lost to rounding.
    said += [f"mlp_ratio={(config.hidden * (2 if gated else 1) + 0.5) / config.width!r}"]
    said += ["global_pool='map'", "class_token=False"] if config.pool == "map" else []
    said += ["pos_embed='none'"] if config.position_embedding == "none" else []
    said += [f"reg_tokens={config.registers}"] if config.registers else []
    said += ["qk_norm=True"] if config.qk_norm else []
    said += [f"init_values={config.layer_scale!r}"] if config.layer_scale else []
    gelu = "tanh" if config.gelu == "tanh" else "none"
    act = "torch.nn.SiLU" if gated else f"partial(torch.nn.GELU, approximate={gelu!r})"
    said += ["mlp_layer=timm.layers.SwiGLUPacked"] if gated else []
    said += [f"act_layer={act}"]
    return imports, f"timm.models.VisionTransformer({', '.join(said)}{embed})"


def _size_argument(config: ModelConfig, image_size: int) -> dict[str, int]:
    import timm

    known = timm.models.get_pretrained_cfg(getattr(config, "architecture", ""))
    return {"img_size": image_size} if known is None or known.fixed_input_size else {}


def sidecar_of(path: Path) -> Path:
    """Beside an .npz, whose arrays say nothing of classes: `b16.npz.json`."""
    return path.with_name(f"{path.name}.json")


def write_sidecar(path: Path, said: Mapping[str, Any]) -> None:
    """Write what an .npz cannot say, bound to its bytes: replaced alone, the file has no names."""
    content = {"sha256": _sha256(path), **said, "input": INPUT}
    write_bytes(str(sidecar_of(path)), (json.dumps(content, indent=1) + "\n").encode())


def read_sidecar(path: Path) -> Mapping[str, Any]:
    """What stands beside an .npz; {} where nothing does, or what is there is of another file. Not checked yet."""
    beside = sidecar_of(path)
    try:
        said = parse_json(read_small(beside, MAX_WHOLE_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, DamagedError) as error:
        log(f"{beside}: cannot be read: {error}; {_UNSAID}", WARNING)
        return {}
    if not isinstance(said, dict) or said.get("sha256") != _sha256(path):
        log(f"{beside}: of another file than {path.name}; {_UNSAID}", WARNING)
        return {}
    return said


_UNSAID = "the classes have no names, and nothing is known of the model and of how images go in"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
