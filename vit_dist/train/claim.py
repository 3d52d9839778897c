"""Making a directory a run's: its recipe and what it is, written once, or the refusal of one that is another's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vit_dist import __version__
from vit_dist.config.claims import check_run_dir, refuse_another
from vit_dist.config.load import recipe_hash, recipe_yaml
from vit_dist.config.plugins import with_copies
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import RunError, VitDistError
from vit_dist.core.files import write_bytes
from vit_dist.core.run import lineage, names
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.lineage import Trunk, plain_lineage
from vit_dist.data.sets import TrainingSet
from vit_dist.train.measures import MEASURED
from vit_dist.train.plan import check_outputs


def claim(
    directory: RunDir, recipe: Recipe, data: TrainingSet, run_identity: dict[str, Any], trunks: Sequence[Trunk] = ()
) -> None:
    """Make the directory this run's, or refuse one that is another's.

    Args:
        directory: of the run.
        recipe: of the run.
        data: its training set.
        run_identity: what the run is.
        trunks: its lineage, of a branch.

    Raises:
        VitDistError: it is another run's, somebody else's, or cannot be written.
    """
    # Whoever starts processes has asked before: this is for a set and weights that were opened since, and for others.
    check_run_dir(recipe, directory.path)
    claimed = directory.read_json(names.RUN)
    if claimed is not None:
        refuse_another(directory.path, run_identity, claimed.get("identity", {}))
        # Of a run whose directory was lost, all but this was brought back.
        if not (directory.path / names.RECIPE).exists():
            _write_recipe(directory, recipe)
        return
    # Of a run that has begun the head is what it is.
    check_outputs(recipe, data)
    try:
        _write_recipe(directory, recipe)
        directory.write_json(
            names.RUN,
            {
                "name": recipe.name,
                "recipe_hash": recipe_hash(recipe),
                "identity": run_identity,
                "vit_dist": __version__,
                MEASURED: {},
                **({lineage.KEY: plain_lineage(tuple(trunks))} if trunks else {}),
            },
        )
    except VitDistError as error:
        raise RunError(f"{directory.path}: the run directory cannot be written: {error}") from None


def _write_recipe(directory: RunDir, recipe: Recipe) -> None:
    text = recipe_yaml(with_copies(recipe, directory.path))
    write_bytes(str(directory.path / names.RECIPE), text.encode())
