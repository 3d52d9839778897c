"""--nproc is kept, or refused in words, wherever it is given: by hand, in a world of one, in a world of several."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.processes import ranks
from launcher.processes.ranks import _rank_environment
from vit_dist.cli import evaluate, run, train, verify_resume
from vit_dist.cli.study import run as study_run
from vit_dist.core.errors import ConfigError
from vit_dist.core.run.checkpoints import MARKER, step_name
from vit_dist.core.world import launched_world, starts_ranks, without_world, world_or_ranks

SLURM_STEP = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
ONE = {
    "srun --pty": {**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"},
    "srun --pty in a large job": {**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "64"},
    "srun of before": {**SLURM_STEP, "SLURM_NTASKS": "1"},
    "no number of tasks": SLURM_STEP,
    "container": {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"},
    "torchrun": {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "3", "MASTER_ADDR": "h",
        "MASTER_PORT": "1",
    },
    "container in a step": {**SLURM_STEP, "SLURM_STEP_NUM_TASKS": "8", "RANK": "0", "WORLD_SIZE": "1"},
    "interactive shell of salloc": {"SLURM_JOB_ID": "77", "SLURM_NTASKS": "8"},
    "by hand": {},
}  # fmt: skip
MANY = {
    "RANK, WORLD_SIZE": {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1"},
    "SLURM_PROCID, SLURM_STEP_NUM_TASKS": {**SLURM_STEP, "SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4"},
}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    """Be started with these variables of a launcher, and no others."""
    import os

    def start(variables: dict[str, str]) -> None:
        for name in set(os.environ) - set(without_world(os.environ)) | {
            n for n in os.environ if n.startswith("SLURM_")
        }:
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return start


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many ranks were started here."""
    counts: list[int] = []
    for name in ("run_ranks", "run_local"):
        monkeypatch.setattr(ranks, name, lambda *_, nproc, **__: (counts.append(nproc), 0)[1])
    return counts


@pytest.fixture
def verbs(tmp_path: Path, small_set: str) -> dict[str, Callable[..., int]]:
    """The verbs that take --nproc and then start that many ranks: called with its value."""
    (tmp_path / "done").mkdir()
    of_sets = f"{{train: '{small_set}', val: '{small_set}', num_classes: 4}}"
    (tmp_path / "done" / "recipe.yaml").write_text(f"base: demo\ndata: {of_sets}\n")
    saved = tmp_path / "done" / "checkpoints" / step_name(8)
    saved.mkdir(parents=True)
    (saved / MARKER).write_text("{}")
    recipe = ["demo", f"data={{dataset: custom, train: {small_set}, num_classes: 4, image_size: 28}}", "evaluators=[]"]
    here = ["--run-dir", str(tmp_path / "run")]
    return {
        "train": lambda *words: train.main([*recipe, *here, *words]),
        "run": lambda *words: run.main([*recipe, *here, *words]),
        "evaluate": lambda *words: evaluate.main([str(tmp_path / "done"), *words]),
    }


@pytest.mark.parametrize("place", ONE)
@pytest.mark.parametrize("verb", ["train", "run", "evaluate"])
def test_a_world_of_one_keeps_no_verb_from_starting_ranks(
    verbs: dict[str, Any], started: list[int], environ: Callable[..., None], verb: str, place: str
) -> None:
    environ(ONE[place])
    assert verbs[verb]("--nproc", "2") == 0
    assert started == [2]


@pytest.mark.parametrize("place", MANY)
@pytest.mark.parametrize("verb", ["train", "run", "evaluate", "verify-resume", "study run"])
def test_another_number_than_a_launcher_has_started_is_refused_with_its_variables(
    verbs: dict[str, Any], started: list[int], environ: Callable[..., None], verb: str, place: str
) -> None:
    environ(MANY[place])
    others = {
        "verify-resume": lambda *words: verify_resume.main(["demo", *words]),
        "study run": lambda *words: study_run.main(["demo", *words]),
    }
    with pytest.raises(ConfigError, match=place):
        (verbs | others)[verb]("--nproc", "2")
    assert started == []


@pytest.mark.parametrize("verb", ["train", "run", "evaluate", "verify-resume", "study run"])
@pytest.mark.parametrize("place", ["by hand", "container"])
@pytest.mark.parametrize("count", ["0", "-1"])
def test_no_rank_at_all_is_refused(
    verbs: dict[str, Any], started: list[int], environ: Callable[..., None], verb: str, place: str, count: str
) -> None:
    environ(ONE[place])
    others = {
        "verify-resume": lambda *words: verify_resume.main(["demo", *words]),
        "study run": lambda *words: study_run.main(["demo", *words]),
    }
    with pytest.raises(ConfigError, match="nproc"):
        (verbs | others)[verb]("--nproc", count)
    assert started == []


def test_who_is_a_rank_and_who_starts_some() -> None:
    for variables in ONE.values():
        assert world_or_ranks(3, variables) == (None, 3)
        starts_ranks("run", 1, variables)
        mine = launched_world(variables)
        assert world_or_ranks(None, variables) == world_or_ranks(1, variables) == (mine, 1)
    for variables in MANY.values():
        mine = launched_world(variables)
        assert mine is not None
        assert world_or_ranks(None, variables) == world_or_ranks(4, variables) == (mine, 4)
        with pytest.raises(ConfigError, match="--nproc=1, but a launcher has started 4 ranks already"):
            world_or_ranks(1, variables)


@pytest.mark.parametrize("place", [*ONE, *MANY])
def test_ranks_that_are_started_here_see_nothing_of_the_world_around_them(tmp_path: Path, place: str) -> None:
    outer = {"PATH": "/bin", "OMP_NUM_THREADS": "5", **(ONE | MANY)[place]}
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "7"}
    inner = _rank_environment(without_world(outer), 1, 2, address, tmp_path)
    world = launched_world(inner)
    assert world is not None
    assert (world.rank, world.size, world.local_rank) == (1, 2, 1)
    assert (inner["MASTER_ADDR"], inner["MASTER_PORT"], inner["OMP_NUM_THREADS"]) == ("127.0.0.1", "7", "5")
    assert not [name for name in inner if name.startswith("TORCHELASTIC_")]
    assert launched_world(without_world(outer)) is None
