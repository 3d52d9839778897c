"""Any other model of timm: `timm:convnext_tiny`. Initial weights are timm's; the head is ours."""

from __future__ import annotations

import importlib.metadata
import sys
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from vit_dist.core.errors import of_its_family
from vit_dist.core.registry import MODELS
from vit_dist.models import ModelConfig

if TYPE_CHECKING:
    from vit_dist.models._any_timm import TimmModel

PREFIX = "timm:"


@MODELS.register_prefix(PREFIX)
class TimmConfig(ModelConfig):
    """A model by timm's name, without weights. Models with BatchNorm are refused."""

    family: str = "timm"
    args: dict[str, Any] = Field({}, description="more arguments of timm.create_model, such as {drop_path_rate: 0.1}")

    @property
    def architecture(self) -> str:
        """The name without its prefix."""
        return self.name.removeprefix(PREFIX)

    @model_validator(mode="after")
    def _is_known(self) -> TimmConfig:
        # Before anything is started: whoever builds it has imported torch, and begun a run.
        from vit_dist.models._timm_names import timm_names

        known, name = timm_names(), self.architecture.partition(".")[0]
        if known and name not in known and not _registered(name):
            raise ValueError(
                f"timm {importlib.metadata.version('timm')} has no model {self.architecture!r}"
                f"{of_its_family(name, known)}"
            )
        return self

    def build(self, *, num_classes: int, image_size: int) -> TimmModel:
        """See `ModelConfig.build`.

        Raises:
            ConfigError: timm knows no such model, or it cannot be made as asked, or it has BatchNorm.
        """
        from vit_dist.models._any_timm import TimmModel

        return TimmModel(self, num_classes, image_size)


def _registered(name: str) -> bool:
    """Whether a plug-in, which has then imported timm, brought a model of its own to it."""
    timm = sys.modules.get("timm")
    return timm is not None and bool(timm.is_model(name))
