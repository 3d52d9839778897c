"""The shipped recipes with what each trains, costs and repeats: facts of their files, and arithmetic. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vit_dist.config.load import config_dirs, load_recipe
from vit_dist.config.schema import Recipe
from vit_dist.core.devices import Device
from vit_dist.models.costs import Cost, model_cost, training_flops


@dataclass(frozen=True)
class ShippedRecipe:
    """One recipe of configs/recipes; None where something hangs on what is not known.

    Attributes:
        name: of its file.
        path: of its file.
        recipe: as it resolves.
        cost: of its model, in a training step.
        examples: that it trains on, each as often as it is seen.
        epochs: what that comes to on the source's training set.
        flops: of all that.
        device_hours: at the device and utilisation that were asked for.
    """

    name: str
    path: Path
    recipe: Recipe
    cost: Cost | None
    examples: int | None
    epochs: float | None
    flops: int | None
    device_hours: float | None

    @property
    def trained_on(self) -> str:
        """Name of the set; '' where the recipe leaves it to the user."""
        return "" if self.recipe.data.dataset == "custom" else self.recipe.data.dataset


def shipped_paths() -> dict[str, Path]:
    """Name -> file of each recipe of configs/recipes, in order; a folder that comes first hides what comes later."""
    found = {path.stem: path for folder in reversed(config_dirs()) for path in (folder / "recipes").glob("*.yaml")}
    return dict(sorted(found.items()))


def shipped_recipe(path: Path, device: Device, utilisation: float) -> ShippedRecipe:
    """A recipe and what it comes to.

    Args:
        path: of its file.
        device: by whose peak hours are counted.
        utilisation: fraction of that peak.

    Raises:
        ConfigError: the recipe has mistakes.
    """
    recipe = load_recipe(str(path))
    set_examples = recipe.about.set_examples if recipe.about is not None else None
    batch, examples = recipe.global_batch, None
    if recipe.horizon.unit != "epochs" or set_examples is not None:
        examples = recipe.horizon.steps(global_batch=batch, epoch_examples=set_examples or 0) * batch
    size, classes = recipe.data.image_size, recipe.data.num_classes
    cost = model_cost(recipe.model, num_classes=classes, image_size=size, training=True)
    flops = None if cost is None or examples is None else training_flops(cost.macs, examples)
    peak = device.peak(recipe.precision)
    return ShippedRecipe(
        name=path.stem,
        path=path,
        recipe=recipe,
        cost=cost,
        examples=examples,
        epochs=examples / set_examples if examples is not None and set_examples else None,
        flops=flops,
        device_hours=None if flops is None or peak is None else flops / (peak * utilisation) / 3600,
    )
