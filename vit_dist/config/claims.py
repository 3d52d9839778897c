"""Whether a directory can be a recipe's run: asked before anything is started, and again by whoever takes it. No torch.

What stands in `run.json` is what the run was begun as. A recipe alone does not say all of that: what its set and its
weights are is known once they are opened, and compared then (train/attempt.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vit_dist.config.load import differences, identity
from vit_dist.config.plugins import check_plugins
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import RefusalError
from vit_dist.core.run import names
from vit_dist.core.run.directory import RunDir


def check_run_dir(recipe: Recipe, run_dir: Path, fingerprint: str = "") -> None:
    """Refuse a directory of other people's files, of another run, or of this one with other plug-in code.

    Args:
        recipe: of the run.
        run_dir: of the run.
        fingerprint: of its training set, once that is open.

    Raises:
        ConfigError: what lies there is no run's.
        RefusalError: it is another run's; says what differs.
        RunError: its `run.json` is damaged.
    """
    directory = RunDir(run_dir)
    directory.check_ours()
    claimed = directory.read_json(names.RUN)
    check_plugins(recipe, claimed, run_dir)
    if claimed is None:
        return
    ours, theirs = identity(recipe), claimed.get("identity", {})
    if fingerprint:
        ours["fingerprint"] = fingerprint
    # What only the recipe of now or the run of then says: `init` stands there when it is given, the rest when opened.
    known = {key: value for key, value in theirs.items() if key in ours or key == "init"}
    refuse_another(run_dir, ours, known)


def refuse_another(run_dir: Path, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuse a directory whose run was begun as something else.

    Raises:
        RefusalError: names what differs.
    """
    changes = differences(ours, theirs)
    if changes:
        raise RefusalError(
            f"{run_dir}: holds another run: {'; '.join(changes)}. Restore these settings to resume it, or give another "
            f"--run-dir"
        )
