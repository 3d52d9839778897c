"""What a run leaves out since somebody wanted it so: one list for all ranks, and none that forgets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vit_dist.config.load import merge, read_mapping, to_yaml
from vit_dist.config.schema import Recipe
from vit_dist.core.files import write_bytes
from vit_dist.core.run import names
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.data.manifest import ShardManifest
from vit_dist.data.sets import TrainingSet, whole_set
from vit_dist.data.takedown import extended, hold, new_lines, read_lines
from vit_dist.train.checkpoint.restore import on_main
from vit_dist.train.state import TrainState, taken_down


def agree_on_list(recipe: Recipe, world: World) -> None:
    """Read `data.takedown` on one rank, for all: it may grow meanwhile. A collective.

    Raises:
        DataError: it cannot be read.
    """
    url = recipe.data.takedown
    if url:
        hold(url, on_main(lambda: read_lines(url), world))


def check_list(recipe: Recipe, data: TrainingSet, val: ShardManifest | None, run_dir: Path, world: World) -> None:
    """Refuse a list before an attempt begins, by what the newest checkpoint here has taken down. A collective.

    Raises:
        ConfigError: the list lacks something of that, leaves nothing to train on, or names files in place of keys.
        DataError: an index cannot be read.
    """
    url = recipe.data.takedown
    on_main(lambda: new_lines(taken_down(run_dir), url, data.parts, beside=whole_set(val)), world)


def with_list(
    state: TrainState, recipe: Recipe, data: TrainingSet, val: ShardManifest | None, world: World
) -> TrainState:
    """The state with what the list says beside what was taken down before. A collective.

    Raises:
        ConfigError: the list lacks something that was.
        DataError: an index cannot be read.
    """
    # On one rank: it may read the indexes of all shards.
    taken = on_main(
        lambda: extended(state.taken_down, recipe.data.takedown, data.parts, state.position, beside=whole_set(val)),
        world,
    )
    return replace(state, taken_down=taken)


def name_list(directory: RunDir, recipe: Recipe, world: World) -> None:
    """Name the list that an attempt has accepted in the run's recipe.yaml, for all that begin from that. A collective.

    Nothing else of the file changes.

    Raises:
        VitDistError: the file cannot be read or written.
    """
    url, path = recipe.data.takedown, directory.path / names.RECIPE

    def follow() -> None:
        before = read_mapping(path)
        after = merge(before, {"data": {"takedown": url}})
        if after != before:
            write_bytes(str(path), to_yaml(after).encode())

    if url:
        on_main(follow, world)
