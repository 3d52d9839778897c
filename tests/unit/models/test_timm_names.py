"""A name that timm does not have is refused without torch, and near names are of its family."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
from timm.models._registry import _model_entrypoints

from vit_dist.cli.models.options import model_config
from vit_dist.core.errors import ConfigError, of_its_family
from vit_dist.models._timm_names import timm_names


def test_the_names_are_those_that_timm_registers() -> None:
    own = {name for name, function in _model_entrypoints.items() if function.__module__.startswith("timm.")}
    assert timm_names() == own


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_foo", "did you mean 'vit_"),
        ("convnext_tny", "did you mean 'convnext_tiny'"),
        ("vit-base-patch16-224", "did you mean 'vit_base_patch16_224'"),
        ("ViT_Base_Patch16_224x", "did you mean 'vit_base_patch16_224'"),
        ("resnt50_gn", "did you mean 'resnet50_gn'"),
        ("resnet50_gnn", "did you mean 'resnet50_gn'"),
        ("vitt_base_patch16_224", "did you mean 'vit_base_patch16_224'"),
        ("swin_x", "did you mean 'swin_"),
        ("zzzzqqqq", "'zzzzqqqq'$"),
        ("vit_base_patch16_224/../x", "did you mean 'vit_base"),
    ],
)
def test_other_names_are_refused_with_names_of_their_family(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"has no model .*{hint}"):
        model_config(f"timm:{name}")


@pytest.mark.parametrize(
    "name", ["convnext_tiny", "vit_base_patch16_224.augreg_in21k", "vit_tiny_patch16_224_in21k", "test_vit"]
)
def test_names_of_timm_pass(name: str) -> None:
    assert timm.is_model(name)
    assert model_config(f"timm:{name}").name == f"timm:{name}"


def test_a_model_that_somebody_brought_to_timm_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(_model_entrypoints, "my_own", lambda **_: None)
    assert model_config("timm:my_own").name == "timm:my_own"


def test_torch_is_not_imported_for_it() -> None:
    code = (
        "import sys\nfrom vit_dist.config.load import load_recipe\n"
        "from vit_dist.core.errors import ConfigError\n"
        "try:\n    load_recipe('demo', ['model=timm:vit_foo'])\n"
        "except ConfigError as error:\n    print(error, 'torch' in sys.modules, 'timm' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "has no model 'vit_foo'; did you mean 'vit_" in done.stdout
    assert done.stdout.endswith("False False\n")


def test_without_near_names_nothing_is_suggested() -> None:
    assert of_its_family("x", []) == ""
