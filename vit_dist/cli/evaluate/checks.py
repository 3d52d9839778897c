"""What keeps a run from being evaluated and can be known without torch, whose import takes seconds. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vit_dist.config.blame import Sources
from vit_dist.config.load import differing, identity, load_recipe, sources_of
from vit_dist.config.schema import Recipe
from vit_dist.config.sections import value_text
from vit_dist.core.errors import CheckpointError, ConfigError
from vit_dist.core.folders import check_writable
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import MARKER, committed, no_checkpoint
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World

_SHOWN = 3


def check_before(
    recipe: Recipe, run_dir: Path, checkpoint: str, out: Path | None, overrides: Sequence[str], ranks: int | None
) -> None:
    """Refuse what can be known to fail.

    Args:
        recipe: of the run, with the overrides.
        run_dir: of the run.
        checkpoint: name of one of its checkpoints, or ''.
        out: a file for the result.
        overrides: of the command line.
        ranks: that are going to be started; None on a rank, which may hold the run's directory by now.

    Raises:
        ConfigError: `out` cannot be written, or an override changes what was trained.
        CheckpointError: no such checkpoint.
        RunError: an attempt of the run holds the directory.
        DataError: a set cannot be read.
    """
    if out is not None and out.is_dir():
        raise ConfigError(f"--out {out}: a directory; name a file, such as {out / 'values.json'}")
    if out is not None:
        check_writable(out, "--out")
    root = run_dir / names.CHECKPOINTS
    if checkpoint and not (root / checkpoint / MARKER).is_file():
        known = ", ".join(path.name for path in committed(root)[:3])
        raise CheckpointError(
            f"{root / checkpoint}: no such checkpoint; {f'the newest are {known}' if known else 'the run has none'}"
        )
    if not checkpoint and not committed(root) and not recipe.checkpoint.remote:
        raise no_checkpoint(run_dir, "evaluate")
    check_unchanged(recipe, run_dir, overrides)
    if ranks is not None:
        RunDir(run_dir).check_free()
        _check_sets(recipe, run_dir, overrides, ranks)


def check_unchanged(recipe: Recipe, run_dir: Path, overrides: Sequence[str]) -> None:
    """Refuse overrides that change what was trained: an evaluation may say where things are, and what is measured.

    Args:
        recipe: of the run, with the overrides.
        run_dir: of the run.
        overrides: of the command line.

    Raises:
        ConfigError: says for each what the run has.
    """
    trained = _identity_of(run_dir) or identity(load_recipe(str(run_dir / names.RECIPE)))
    sources = Sources("", overrides)
    changed: dict[str, list[str]] = {}
    for path, _, theirs in differing(identity(recipe), trained):
        given = sources.of(path)
        # What nobody has typed now is found when the checkpoint is read.
        if given:
            changed.setdefault(given, []).append(_what_it_has(path, theirs))
    if changed:
        said = "; ".join(_to_leave_out(given, values) for given, values in changed.items())
        raise ConfigError(f"{run_dir}: an evaluation cannot change what was trained: {said}")


def _to_leave_out(given: str, values: Sequence[str]) -> str:
    more = f" and {len(values) - _SHOWN} more" if len(values) > _SHOWN else ""
    return f"{given}: the run has {', '.join(values[:_SHOWN])}{more}; leave {given.partition('=')[0]} out"


def _what_it_has(path: str, value: Any) -> str:
    if path == "data.num_classes":
        return f"{value} classes"
    return f"no {path}" if value is None else f"{path}={value_text(value)}"


def _identity_of(run_dir: Path) -> dict[str, Any]:
    claimed = RunDir(run_dir).read_json(names.RUN) or {}
    return dict(claimed.get("identity", {}))


def _check_sets(recipe: Recipe, run_dir: Path, overrides: Sequence[str], ranks: int) -> None:
    from vit_dist.train.plan import open_training

    sources = sources_of(str(run_dir / names.RECIPE), overrides, recipe)
    data, _, _ = open_training(recipe, World(size=ranks), sources)
    trained = _identity_of(run_dir).get("fingerprint", data.fingerprint)
    if data.fingerprint != trained:
        raise ConfigError(
            f"{run_dir}: the training set has fingerprint {data.fingerprint}, the run was trained on {trained}: name "
            f"where that set lies now with data.train=URL; another one is evaluated with data.val=URL"
        )
