"""A run that is given a list of keys amid it: what was before stays, what comes after is without, nothing is forgotten.

In this process and on one rank; that every number of ranks reads the same is in test_takedown.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import trains_here
from tests.laws.test_resume import recipe_file
from vit_dist.cli.data import main as data_verb
from vit_dist.config.load import load_recipe, read_mapping
from vit_dist.core.errors import ConfigError, DataError, OtherCheckpointError, RunError
from vit_dist.core.events.reader import read_run
from vit_dist.core.run import history, names
from vit_dist.core.run import log as runlog
from vit_dist.core.run.checkpoints import MARKER, committed, read_marker, seal_marker
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.train import loop
from vit_dist.train.attempt import attempt
from vit_dist.train.evaluate import evaluate
from vit_dist.train.plan import check_beginning, open_training
from vit_dist.train.run import Run

STEPS, BATCH = 18, 16
SETTINGS = [
    "engine.name=plain",
    "precision=fp32",
    f"horizon={STEPS} steps",
    "guards.hang=0s",
    "checkpoint.every=5 steps",
    "eval.every=18 steps",
    "log.order=true",
]


class CutError(BaseException):
    """The process ends here."""


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with trains_here():
        yield


@pytest.fixture
def recipe(tmp_path: Path, small_set: str, small_val: str) -> Path:
    return recipe_file(tmp_path, small_set, small_val)


def train(recipe: Path, run_dir: Path, *overrides: str, cut: int = 0, patch: pytest.MonkeyPatch | None = None) -> None:
    """Train to the end, or until a step is about to be queued."""
    config = load_recipe(str(recipe), [*SETTINGS, *overrides])
    if not cut or patch is None:
        attempt(config, run_dir, World())
        return
    queue = loop._queue

    def stop(run: Run, *given: Any) -> Any:
        if run.state.step + 1 == cut:
            raise CutError
        return queue(run, *given)

    with patch.context() as patched:
        patched.setattr(loop, "_queue", stop)
        with pytest.raises(CutError):
            attempt(config, run_dir, World())


def end(run_dir: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    last = committed(RunDir(run_dir).checkpoints)[0]
    marker, problem = read_marker(last)
    assert (problem, marker["state"]["step"]) == ("", STEPS)
    return marker["state"], {path.name: path.read_bytes() for path in last.glob("*.safetensors")}


def trained_on(run_dir: Path) -> dict[int, list[int]]:
    """The ordinals of each step, as the attempt wrote them that counts."""
    steps = {}
    for path in sorted((run_dir / "order").glob("*.jsonl")):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            steps[entry["step"]] = entry["ordinals"]
    return steps


def test_a_list_that_is_given_amid_a_run(
    recipe: Path,
    tmp_path: Path,
    small_set: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    listed = tmp_path / "list.txt"
    # The first is among the examples that checkpoints are judged by; one is of the validation set, one of none.
    listed.write_text("k000000\nk000077\nk000123\nk010003\nnobody\n")
    plain, once, often = (tmp_path / name for name in ("plain", "once", "often"))
    train(recipe, plain)
    with_list = f"data.takedown={listed}"
    train(recipe, once, cut=11, patch=monkeypatch)
    capsys.readouterr()
    train(recipe, once, with_list)
    said = "".join(capsys.readouterr())
    assert "1 of 5 new keys are in no set of this run: 'nobody'" in said
    assert "takedown: 5 keys, 3 samples of the training set, from position 160 on" in said
    assert "1 validation examples are taken down" in said
    assert "damaged" not in said
    before, after = trained_on(plain), trained_on(once)
    assert {step: before[step] for step in range(1, 11)} == {step: after[step] for step in range(1, 11)}
    gone = {0, 77, 123}
    assert gone <= {ordinal for step in range(1, 14) for ordinal in before[step]}
    assert not gone & {ordinal for step in range(11, STEPS + 1) for ordinal in after[step]}
    for step in range(11, STEPS + 1):
        same = [a == b for a, b in zip(before[step], after[step], strict=True)]
        assert [o in gone for o in before[step]] == [not one for one in same]

    # Cut elsewhere, begun with the list at the same place: the same bits.
    train(recipe, often, cut=14, patch=monkeypatch)
    train(recipe, often, with_list, cut=17, patch=monkeypatch)
    train(recipe, often, with_list)
    assert end(often) == end(once)
    state, _ = end(once)
    expected = [["k000000", 160, [0]], ["k000077", 160, [77]], ["k000123", 160, [123]]]
    assert state["taken_down"] == [*expected, ["k010003", 160, []], ["nobody", 160, []]]
    assert state["quarantined"] == []
    text = read_run(str(RunDir(once).events)).last_text(runlog.TAKEDOWN)
    assert text is not None
    assert json.loads(text) == {"keys": 5, "examples": 3, "keys_since_position": {"160": 5}}
    assert read_run(str(RunDir(plain).events)).last_text(runlog.TAKEDOWN) is None

    check_the_recipe_follows(plain, once, listed)
    check_seen(once, after, capsys)
    check_nothing_is_forgotten(recipe, once, listed)


def check_the_recipe_follows(plain: Path, run_dir: Path, listed: Path) -> None:
    """What begins from the run's own recipe has the list, and nothing else than the list."""
    began, now = read_mapping(plain / "recipe.yaml"), read_mapping(run_dir / "recipe.yaml")
    assert "takedown" not in began["data"]
    assert now == {**began, "data": {**began["data"], "takedown": str(listed)}}
    own = load_recipe(str(run_dir / "recipe.yaml"))
    assert evaluate(own, run_dir, World())
    attempt(own, run_dir, World())


def check_seen(run_dir: Path, steps: dict[int, list[int]], capsys: pytest.CaptureFixture[str]) -> None:
    """`data seen` says of each key what the run wrote down while it trained."""
    keys = [f"k{ordinal:06d}" for ordinal in range(200)]
    capsys.readouterr()
    assert data_verb(["seen", str(run_dir), *keys]) == 0
    told: dict[int, list[int]] = {}
    ordinal = -1
    for line in capsys.readouterr().out.splitlines()[1:]:
        if line.startswith("  step"):
            told[ordinal].append(int(line.split(",")[0].removeprefix("  step ")))
        else:
            ordinal = int(line.partition("ordinal ")[2].partition(")")[0])
            told[ordinal] = []
    assert told == {
        o: [s for s in sorted(steps) if o in steps[s] for _ in range(steps[s].count(o))] for o in range(200)
    }
    assert data_verb(["seen", str(run_dir), "k000077", "k1"]) == 1
    said = capsys.readouterr().out
    assert said.startswith(f"{run_dir}: {STEPS} steps of {BATCH}, {STEPS * BATCH} examples\n")
    assert "ordinal 77): trained on" in said
    assert re.search(r"trained on [\d,]+ times?; taken down from position 160 on", said)
    assert said.endswith("k1: in no training set of this run\n")
    assert data_verb(["seen", str(run_dir), "k010003"]) == 0
    assert "k010003: in the validation set of this run, which is not trained on\n" in capsys.readouterr().out
    assert data_verb(["seen", str(run_dir), "k000077.png", "k010003 "]) == 1
    said = capsys.readouterr().out
    assert "k000077.png: in no training set of this run, did you mean 'k000077'?\n" in said
    assert "k010003 : in no training set of this run, did you mean 'k010003'?\n" in said


def check_nothing_is_forgotten(recipe: Path, run_dir: Path, listed: Path) -> None:
    stood = {name: (run_dir / name).read_bytes() for name in names.HISTORY if (run_dir / name).exists()}
    assert stood
    check_each_refusal(recipe, run_dir, listed)
    # Whoever asks for what cannot be leaves the run as it was, neither begun again nor failed.
    assert {name: (run_dir / name).read_bytes() for name in names.HISTORY if (run_dir / name).exists()} == stood


def asks_to_begin(recipe: Path, run_dir: Path, *overrides: str) -> None:
    """As whoever starts ranks does."""
    config = load_recipe(str(recipe), [*SETTINGS, *overrides])
    data, val, _ = open_training(config, World())
    check_beginning(config, run_dir, data, val)


def check_each_refusal(recipe: Path, run_dir: Path, listed: Path) -> None:
    with pytest.raises(ConfigError, match=r"no data\.takedown is given that has 5 of the 5 keys that were taken down"):
        train(recipe, run_dir, "log.every=2 steps")
    listed.write_text("k000000\nk000077\nk000123\nnobody\nmore\n")
    with pytest.raises(ConfigError, match=r"lacks 1 of the 5 keys .* from position 160 on: 'k010003'"):
        train(recipe, run_dir, f"data.takedown={listed}")
    with pytest.raises(ConfigError, match=r"no data\.takedown is given"):
        evaluate(load_recipe(str(recipe), SETTINGS), run_dir, World())
    # A list that is refused is named nowhere, and before a process is started.
    other = listed.with_name("other.txt")
    for there in ("k000000\n", "k000000\nk000077\n"):
        other.write_text(there)
        with pytest.raises(ConfigError, match=f"lacks {5 - there.count('k')} of the 5 keys"):
            asks_to_begin(recipe, run_dir, f"data.takedown={other}")
    with pytest.raises(ConfigError, match=r"no data\.takedown is given that has 5 of the 5 keys"):
        asks_to_begin(recipe, run_dir)
    with pytest.raises(DataError, match="gone"):
        asks_to_begin(recipe, run_dir, f"data.takedown={listed.with_name('gone')}")
    other.write_text("k000000\nk000077\nk000123\nk010003\nnobody\nmore\n")
    asks_to_begin(recipe, run_dir, f"data.takedown={other}")
    other.write_text(other.read_text() + "k000078.png\n")
    with pytest.raises(ConfigError, match=r"in another spelling: 'k000078\.png', did you mean 'k000078'"):
        asks_to_begin(recipe, run_dir, f"data.takedown={other}")
    other.write_text("k000000\n")
    with pytest.raises(ConfigError, match="lacks 4 of the 5 keys"):
        train(recipe, run_dir, f"data.takedown={other}")
    assert load_recipe(str(run_dir / "recipe.yaml")).data.takedown == str(listed)


def test_a_run_that_begins_with_a_list_counts_it_from_the_first_example(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("k000077\n")
    train(recipe, tmp_path / "run", f"data.takedown={listed}", cut=7, patch=monkeypatch)
    listed.write_text("k000077\nk000078\n")
    train(recipe, tmp_path / "run", f"data.takedown={listed}")
    assert end(tmp_path / "run")[0]["taken_down"] == [["k000077", 0, [77]], ["k000078", 80, [78]]]
    steps = trained_on(tmp_path / "run")
    assert 77 not in {ordinal for ordinals in steps.values() for ordinal in ordinals}
    assert 78 not in {ordinal for step in range(6, STEPS + 1) for ordinal in steps[step]}


@pytest.mark.parametrize(
    ("line", "refusal"),
    [
        ("k000078.png", "another spelling"),
        ("./k000078.JPEG", "another spelling"),
        ("k000078 ", "another spelling"),
        ("".join(f"k{ordinal:06d}\n" for ordinal in range(200)), "names every sample of the set"),
    ],
)
def test_a_list_that_ranks_refuse_leaves_the_run_as_it_was(
    line: str, refusal: str, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, listed = tmp_path / "run", tmp_path / "list.txt"
    listed.write_text(line)
    train(recipe, run, cut=7, patch=monkeypatch)
    stood = {name: (run / name).read_bytes() for name in names.HISTORY if (run / name).exists()}
    # As where the set is too large to be looked through beforehand.
    with pytest.raises(ConfigError, match=refusal):
        train(recipe, run, f"data.takedown={listed}")
    assert {name: (run / name).read_bytes() for name in names.HISTORY if (run / name).exists()} == stood
    # Those who start ranks refuse it before.
    with pytest.raises(ConfigError, match=refusal):
        asks_to_begin(recipe, run, f"data.takedown={listed}")
    train(recipe, run, cut=9, patch=monkeypatch)
    after = history.read(run).last
    assert after is not None
    assert (after.attempt, after.step) == (2, 5)


def test_what_ranks_refuse_once_they_have_begun_leaves_the_run_as_it_was(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    train(recipe, run, cut=7, patch=monkeypatch)
    marker = committed(run / "checkpoints")[0] / MARKER
    whole = json.loads(marker.read_text())
    marker.write_bytes(seal_marker({**whole, "recipe": {**whole["recipe"], "precision": "bf16"}}))
    for number in (2, 3):
        with pytest.raises(OtherCheckpointError, match="a checkpoint of another recipe: precision"):
            train(recipe, run)
        state = history.read(run)
        assert state.last is not None
        assert state.last_refusal is not None
        assert (state.last.attempt, state.last_refusal.attempt, state.findings) == (1, number, ())
    assert "attempt 3 was refused" in history.stands(state, history.JobWord(), 0.0)[1]
    marker.write_text(json.dumps(whole))
    train(recipe, run, cut=9, patch=monkeypatch)
    after = history.read(run).last
    assert after is not None
    assert (after.attempt, after.step) == (4, 5)


def test_seen_says_where_there_is_nothing_to_tell(tmp_path: Path, recipe: Path) -> None:
    with pytest.raises(RunError, match=r"no run directory: there is no recipe\.yaml in it"):
        data_verb(["seen", str(tmp_path / "none"), "a"])
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "recipe.yaml").write_text(recipe.read_text())
    with pytest.raises(RunError, match="no checkpoint in it"):
        data_verb(["seen", str(tmp_path / "new"), "a"])
    with pytest.raises(ConfigError, match="give keys, or a list of them"):
        data_verb(["seen", str(tmp_path)])
