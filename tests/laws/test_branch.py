"""Branches: a run that begins from another one's checkpoint is exact, a run of its own, and says where it comes from.

In this process and on one rank; the trunk is trained once.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import trajectories
from tests.conftest import trains_here
from vit_dist.cli.branch import main
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import CheckpointError, ConfigError, RefusalError
from vit_dist.core.events.reader import RunLog, read_run
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import committed, read_marker, step_name
from vit_dist.core.run.copies import Copies
from vit_dist.core.run.log import run_info
from vit_dist.core.world import World
from vit_dist.models.weights.adapt import fit
from vit_dist.train import loop
from vit_dist.train.attempt import attempt
from vit_dist.train.checkpoint.format import SliceSource
from vit_dist.train.checkpoint.remote import upload
from vit_dist.train.initial_weights import _WeightsAlone
from vit_dist.train.run import Run

STEPS, AT = 9, 6


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with trains_here():
        yield


def train(run_dir: Path) -> None:
    attempt(load_recipe(str(run_dir / names.RECIPE)), run_dir, World())


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory, small_set: str) -> Path:
    """A run of 9 steps, saved after each third and the fifth, and never changed by its branches."""
    folder = tmp_path_factory.mktemp("trunks")
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"""
name: trunk
global_batch: 16
horizon: {STEPS} steps
precision: fp32
model: {{name: vit-test, dropout: 0.1}}
data: {{num_classes: 4, train: {small_set}, image_size: 28, augment: inception, decode_threads: 1}}
optim: {{name: adamw, lr: 3e-3}}
schedule: {{name: cosine, warmup: 2 steps}}
engine: plain
checkpoint: {{every: 3 steps, keep: 9}}
log: {{every: 1 step}}
guards: {{hang: 0s}}
"""
    )
    with trains_here():
        attempt(load_recipe(str(recipe)), folder / "trunk", World())
    return folder / "trunk"


Branch = Callable[..., Path]


@pytest.fixture
def branch(trunk: Path, tmp_path: Path) -> Branch:
    """branch(name, *overrides, at=...): the directory of a new branch of the trunk."""

    def begin(name: str, *overrides: str, at: int | str = AT, run: str = "") -> Path:
        assert main([f"{run or trunk}@{at}", *overrides, "--run-dir", str(tmp_path / name)]) == 0
        return tmp_path / name

    return begin


def content(run: Path, step: int = STEPS) -> dict[str, Any]:
    """Every weight and moment after a step, and the train state."""
    folder = run / names.CHECKPOINTS / step_name(step)
    marker, problem = read_marker(folder)
    assert not problem
    source = SliceSource([folder / name for name in marker["files"]])
    tensors = {f"{kind}:{name}": source.tensor(kind, name) for kind, name in source.names()}
    counts = {name: dict(source.scalars(name)) for _, name in source.names()}
    return {"state": marker["state"], "counts": counts, **tensors}


def equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def same(x: Any, y: Any) -> bool:
        return torch.equal(x, y) if isinstance(x, torch.Tensor) else bool(x == y)

    return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)


def log_of(run: Path) -> RunLog:
    return read_run(str(run / names.EVENTS))


def recipe_hash(run: Path) -> str:
    return str(json.loads((run / names.RUN).read_text())["recipe_hash"])


def test_a_branch_in_which_nothing_differs_is_the_trunks_own_continuation(trunk: Path, branch: Branch) -> None:
    before = {path: path.read_bytes() for path in sorted(trunk.rglob("*")) if path.is_file()}
    same, again = branch("same"), branch("again")
    assert recipe_hash(same) == recipe_hash(again) != recipe_hash(trunk)
    train(same)
    assert equal(content(same), content(trunk))
    assert {path: path.read_bytes() for path in sorted(trunk.rglob("*")) if path.is_file()} == before

    # Curves join: the branch's begin after the trunk's step, at the same axis of examples.
    theirs, ours = log_of(trunk).scalars["train/loss"], log_of(same).scalars["train/loss"]
    assert ours.steps.tolist() == [7, 8, 9]
    assert ours.values.tolist() == theirs.values.tolist()[-3:]
    assert log_of(same).scalars["progress/examples"].values.tolist() == [112.0, 128.0, 144.0]
    info = run_info(log_of(same))
    assert info is not None
    assert [(one.run, one.step, one.examples, one.changed) for one in info.lineage] == [("trunk", 6, 96, ())]


def test_a_branch_that_is_killed_ends_with_the_bits_of_one_that_was_not(
    trunk: Path, branch: Branch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its trunk is gone meanwhile, and of what a kill has left of its beginning."""
    changes = (
        "optim.lr=1e-3",
        "schedule={name: linear, warmup: 2 steps}",
        "checkpoint.every=1 step",
        "horizon=10 steps",
    )
    shutil.copytree(trunk, moved := tmp_path / "moved")
    straight, cut = branch("straight", *changes), branch("cut", *changes, run=str(moved))
    train(straight)
    queue, cut_at = loop._queue, {"step": 8}

    class CutError(BaseException):
        """The process ends here."""

    def cutting(run: Run, *given: Any) -> Any:
        queued = queue(run, *given)
        if run.state.step + 1 == cut_at["step"]:
            raise CutError
        return queued

    # Cut off while it began: what there is of its checkpoint does not count, and is made again.
    whole = cut / names.CHECKPOINTS / step_name(AT)
    (whole.with_name(f".{whole.name}.planting.partial")).mkdir()
    (whole / "COMMITTED.json").unlink()
    monkeypatch.setattr(loop, "_queue", cutting)
    for cut_at["step"] in (7, 9):
        with pytest.raises(CutError):
            train(cut)
        shutil.rmtree(moved, ignore_errors=True)
    cut_at["step"] = 0
    train(cut)
    assert equal(content(cut, 10), content(straight, 10))
    assert not equal(content(cut, 9), content(trunk, 9))


def test_horizon_and_warm_up_are_of_the_whole_and_count_from_the_trunks_first_step(branch: Branch) -> None:
    cooldown = "schedule={name: constant, warmup: 8 steps, cooldown: 4 steps}"
    longer = branch("longer", "horizon=12 steps", cooldown, "optim.lr=1e-2")
    train(longer)
    rates = log_of(longer).scalars["train/lr"]
    assert rates.steps.tolist() == [7, 8, 9, 10, 11, 12]
    assert rates.values.tolist() == pytest.approx([1e-2 * share for share in (7 / 8, 1, 1, 3 / 4, 2 / 4, 1 / 4)])
    info = run_info(log_of(longer))
    assert info is not None
    assert (info.planned_steps, info.planned_examples) == (12, 192)
    changed = {"horizon: 9 steps -> 12 steps", "optim.lr: 0.003 -> 0.01", "schedule.name: cosine -> constant"}
    assert changed < set(info.lineage[0].changed)
    with pytest.raises(ConfigError, match=r"horizon=6 steps is 6 steps in all, and the branch begins after step 6"):
        branch("none", "horizon=6 steps")


def test_positions_are_resampled_and_a_new_head_begins_at_zero_with_moments_of_zero(
    trunk: Path, branch: Branch, small_set: str
) -> None:
    grown = branch("grown", "data.image_size=42", "data.num_classes=7", "branch.head=new", "model.head_bias=-2")
    old, new = content(trunk, AT), content(grown, AT)
    model = load_recipe(str(grown / names.RECIPE)).model
    weights = {key.removeprefix("weight:"): value for key, value in old.items() if key.startswith("weight:")}
    wanted = fit(weights, model, num_classes=7, image_size=42, source="", head="new")  # type: ignore[arg-type]
    assert all(torch.equal(new[f"weight:{name}"], tensor) for name, tensor in wanted.items())
    assert new["weight:pos_embed"].shape != old["weight:pos_embed"].shape
    for kind in ("exp_avg", "exp_avg_sq"):
        for name in ("pos_embed", "head.weight", "head.bias"):
            assert new[f"{kind}:{name}"].shape == new[f"weight:{name}"].shape
            assert not new[f"{kind}:{name}"].any()
        name = "blocks.0.norm1.weight"
        assert torch.equal(new[f"{kind}:{name}"], old[f"{kind}:{name}"])
        assert new[f"{kind}:{name}"].any()
    assert new["counts"] == old["counts"]
    assert new["state"]["losses"] == []
    train(grown)
    ended = content(grown)
    assert ended["exp_avg:head.weight"].any()
    assert ended["counts"]["head.weight"] == {"step": STEPS}

    # A lineage knows what each part of it has cost, also in what comes after.
    after = branch("after", "horizon=10 steps", run=str(grown), at="latest")
    lineage = json.loads((after / names.RUN).read_text())["lineage"]
    assert [(one["run"], one["step"]) for one in lineage] == [("trunk", AT), ("grown", STEPS)]
    small, large = (one["macs_per_image"] for one in lineage)
    assert 0 < small < large
    train(after)
    spent = log_of(after).scalars["throughput/exaflops"].values.tolist()[-1]
    assert spent == pytest.approx(6 * (96 * small + (160 - 96) * large) / 1e18, rel=1e-6)


def test_another_optimizer_begins_without_moments_at_the_trunks_weights_and_position(
    trunk: Path, branch: Branch, capsys: pytest.CaptureFixture[str]
) -> None:
    lion = branch("lion", "optim={name: lion, lr: 1e-4}", "branch.optimizer=new", "horizon=8 steps")
    assert "optim.name: adamw -> lion" in (said := capsys.readouterr().err)
    assert "branch.optimizer: keep -> new" in said
    old, new = content(trunk, AT), content(lion, AT)
    kept = {key for key in old if key.startswith(("weight:", "buffer:"))} | {"state", "counts"}
    assert new.keys() == kept
    assert all(torch.equal(new[key], old[key]) for key in kept - {"state", "counts"})
    assert (new["state"]["step"], new["state"]["position"], set(map(str, new["counts"].values()))) == (AT, 96, {"{}"})
    train(lion)
    assert {key.partition(":")[0] for key in content(lion, 8)} - {"state", "counts", "weight", "buffer"} == {"exp_avg"}

    anew = branch("anew", "branch.optimizer=new", "horizon=8 steps")
    train(anew)
    assert {str(numbers) for numbers in content(anew, 8)["counts"].values()} == {str({"step": 2.0})}
    assert not equal(content(anew, 8), content(branch("same", "horizon=8 steps"), AT))


def test_an_engine_that_goes_back_to_a_checkpoint_without_moments_keeps_none() -> None:
    """A rewind to a branch's first checkpoint, and a process that begins there, go on alike."""
    first, rewound = (trajectories.engine_of("adamw", {"name": "plain"}) for _ in range(2))
    weights = {piece.name: piece.data.reshape(piece.shape).clone() for piece in first.state().slices}
    trajectories.train(rewound, end=3)
    rewound.load(_WeightsAlone(weights))
    for engine in (first, rewound):
        trajectories.train(engine, begin=3, end=5)
    ended = [{(piece.kind, piece.name): piece.data for piece in engine.state().slices} for engine in (first, rewound)]
    assert ended[0].keys() == ended[1].keys()
    assert all(torch.equal(ended[0][key], ended[1][key]) for key in ended[0])


def test_a_set_that_has_grown_is_read_on_from_the_same_position(
    trunk: Path, branch: Branch, tmp_path: Path, small_set: str
) -> None:
    from tests.shards import write_set

    classes = ("hat", "tie", "cap", "bag")
    more = write_set(tmp_path / "more", num_samples=300, samples_per_shard=31, num_classes=4, classes=classes)
    other = write_set(tmp_path / "other", num_samples=90, samples_per_shard=31, num_classes=4, classes=classes[::-1])
    run = branch("run", f"data.train={more}", "log.order=true")
    state = content(run, AT)["state"]
    assert (state["position"], state["order"]["num_samples"], state["losses"]) == (96, 300, [])
    train(run)
    read = [json.loads(line)["ordinals"] for line in next((run / names.ORDER).iterdir()).read_text().splitlines()]
    # What a run over all of the new set reads at these positions.
    from vit_dist.data.sets import open_training_set

    data = open_training_set(load_recipe(str(run / names.RECIPE)))
    place = [data.order.locate(position) for position in range(96, 144)]
    assert [o for step in read for o in step] == [data.parts[0].ordinal(one.shard, one.sample) for one in place]
    with pytest.raises(ConfigError, match=r"output 0 of the trunk's head is 'hat', of the training set it is 'bag'"):
        branch("otherwise", f"data.train={other}")


def test_averages_begin_go_on_are_fitted_and_end_with_a_branch(trunk: Path, branch: Branch) -> None:
    begun = branch("begun", "ema.decay=0.9", "horizon=8 steps")
    old, new = content(trunk, AT), content(begun, AT)
    assert new["averaged:steps"].tolist() == [0]
    assert all(torch.equal(new[f"average:{key[7:]}"], old[key]) for key in old if key.startswith("weight:"))
    train(begun)
    assert content(begun, 8)["averaged:steps"].tolist() == [2]
    fitted = content(branch("fitted", "data.image_size=42", "horizon=9 steps", run=str(begun), at=8), 8)
    assert fitted["averaged:steps"].tolist() == [2]
    assert fitted["average:pos_embed"].shape == fitted["weight:pos_embed"].shape != old["weight:pos_embed"].shape
    assert not torch.equal(fitted["average:pos_embed"], fitted["weight:pos_embed"])
    ended = content(branch("ended", "ema=null", "horizon=9 steps", run=str(begun), at=8), 8)
    assert not [key for key in ended if key.startswith("average")]
    assert ended["counts"]["head.weight"] == {"step": 8}


def test_a_recipe_alone_begins_the_branch_too_and_holds_its_trunk_to_what_it_was(
    trunk: Path, branch: Branch, tmp_path: Path
) -> None:
    made = branch("made", "horizon=7 steps")
    elsewhere = tmp_path / "elsewhere"
    attempt(load_recipe(str(made / names.RECIPE)), elsewhere, World())
    train(made)
    assert equal(content(elsewhere, 7), content(made, 7))

    # Typed into the recipe, what a branch cannot change is refused as by the verb; and so is another checkpoint.
    for name, words, error in (
        ("seed", ["seed=7"], r"seed \(0 -> 7\): a branch cannot change it: the order of examples rests on it"),
        ("step", [f"branch.checkpoint={trunk}/checkpoints/{step_name(3)}"], "holds something else than when"),
        ("gone", [f"branch.checkpoint={tmp_path}/{step_name(AT)}"], "no checkpoint there any more"),
    ):
        with pytest.raises((ConfigError, RefusalError, CheckpointError), match=error):
            attempt(load_recipe(str(made / names.RECIPE), words), tmp_path / name, World())
        assert not (tmp_path / name / names.RUN).exists()
    assert committed(elsewhere / names.CHECKPOINTS)


@pytest.mark.s3
def test_a_branch_begins_from_copies_in_a_store(trunk: Path, branch: Branch, tmp_path: Path, s3: str) -> None:
    remote = f"{s3}/trunk"
    upload(trunk / names.CHECKPOINTS / step_name(AT), remote, Copies(trunk, remote).send)
    run = branch("run", "data.image_size=42", run=remote)
    here = branch("here", "data.image_size=42")
    assert recipe_hash(run) == recipe_hash(here)
    assert equal(content(run, AT), content(here, AT))
    with pytest.raises(ConfigError, match=r"trunk@7: no checkpoint of step 7; nearest: 6\."):
        branch("none", at=7, run=remote)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "lock", "recipe.yaml", "run.json"]


@pytest.mark.drill
@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["engine.zero_stage=1", "engine.zero_stage=3", "engine.name=fsdp"])
def test_branches_are_exact_on_two_processes_too_and_fit_every_engine(
    vit_dist: Callable[..., Any], trunk: Path, tmp_path: Path, engine: str
) -> None:
    deepspeed = "engine={name: deepspeed, reduce_bucket: 1000000, allgather_bucket: 1000000}"
    engines = [engine] if "name" in engine else [deepspeed, engine]
    recipe = trunk.parent / "recipe.yaml"
    two, same, fitted, other = (tmp_path / name for name in ("two", "same", "fitted", "other"))
    lion = ["optim={name: lion, lr: 1e-4}", "branch.optimizer=new"]
    for words in (
        ("train", str(recipe), *engines, "--run-dir", str(two)),
        ("branch", f"{two}@{AT}", "--run-dir", str(same)),
        ("branch", f"{trunk}@{AT}", *engines, "data.image_size=42", "branch.head=new", "--run-dir", str(fitted)),
        ("branch", f"{two}@{AT}", *lion, "--run-dir", str(other)),
    ):
        done = vit_dist(*words, "--nproc", "2")
        assert done.returncode == 0, done.stderr
    assert equal(content(same), content(two))
    # The trunk's moments were written by another engine; what began at zero has the same count of steps everywhere.
    assert {counts["step"] for counts in content(fitted)["counts"].values() if counts} == {float(STEPS)}
    ended = content(other)
    assert {key.partition(":")[0] for key in ended} - {"state", "counts", "weight", "buffer"} == {"exp_avg"}
    assert ended["exp_avg:head.weight"].any()
