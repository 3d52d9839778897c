"""The small files of a run with anything changed: a value or a finding of that run alone."""

# Tables of odd pieces are easier to look over in long lines.

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher import bad_nodes
from launcher.slurm.commands import check_id
from launcher.status.files import read_run
from launcher.status.find import find_runs, is_run, jobs_of
from launcher.status.view import look, view
from tests.histories import line, submit
from tests.unit.fuzz.budget import fuzz
from tests.unit.fuzz.damage import bounded, damaged, damaged_json
from vit_dist.cli.runs import facts
from vit_dist.core.errors import RunError
from vit_dist.core.run import history, names

NOW = 1_795_690_000.0
STATUS = {
    "status": "running",
    "step": 40,
    "examples": 640,
    "reason": "",
    "host": "n1",
    "pid": 77,
    "time": NOW - 9,
    "attempt": 1,
    "goodput": {"train": 9.5, "wait": 0.5},
    "total_steps": 100,
    "examples_per_s": 64.0,
    "metrics": {"val/top1": 0.5},
}
REAL = {
    names.FORMER_STATUS: STATUS,
    names.HEARTBEAT: {"attempt": 1, "time": NOW - 2, "goodput": {"train": 12.0}},
    names.OWNER: {"token": "5f", "attempt": 1, "host": "n1", "pid": 77, "time": NOW - 20},
    names.RUN: {
        "name": "vit-500-s0",
        "recipe_hash": "0123456789abcdef",
        "identity": {"global_batch": 16, "horizon": "7 epochs", "data": {"subset": 500}},
        "vit_dist": "1.0",
    },
    names.FORMER_JOB: {
        "job": "120_3",
        "cluster": "generic",
        "cluster_file": "job/cluster.yaml",
        "script": "job/train.sbatch",
        "recipe": "recipe.yaml",
        "cwd": "/home/ann",
        "nodes": 2,
        "devices_per_node": 8,
        "spares": 0,
        "submitted_at": NOW - 99,
    },
    names.CANCEL: {"job": "120_3", "time": NOW - 1},
    names.FORMER_EVALUATED: {
        "evaluations": [{"step": 40, "evaluators": [{"name": "classification"}], "values": {"val/top1": 0.5}}]
    },
}
ODD = [
    "1 epochs",
    "1" + " " * 200_000 + "x",
    "1e999 steps",
    "9" * 39 + " epochs",
    "0 steps",
    "120_3",
    "--wrap=id",
    "n1,n2",
    "running",
    "done",
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs, 'good' and 'bad'."""
    root = tmp_path_factory.mktemp("runs")
    run = root / "good"
    run.mkdir()
    for name, value in REAL.items():
        (run / name).write_text(json.dumps(value))
    supervised = {"launcher": "slurm", "devices": 16, "job": "120_3", "nodes": ["n1", "n2"]}
    ended = {"cause": "preempted", "action": "requeue", "code": 75, "step": 22, "saved": 20, "excluded": ["n2"]}
    line(run, names.BY_SUPERVISOR, "begun", NOW - 80, attempt=1, **supervised)
    line(run, names.BY_SUPERVISOR, "closed", NOW - 60, attempt=1, **ended)
    line(run, names.BY_SUPERVISOR, "begun", NOW - 50, attempt=2, **supervised, step=20)
    line(run, names.BY_RANKS, "opened", NOW - 45, attempt=2, host="n1", pid=77, ranks=16, step=20)
    line(run, names.BY_RANKS, "training", NOW - 44, attempt=2)
    facts = {name: value for name, value in REAL[names.FORMER_JOB].items() if name != "job"}
    submit(run, "120_3", NOW - 30, after=2, **facts)
    line(run, names.BY_PEOPLE, "requeue", NOW - 20, attempt=2, job="120_3")
    history.evaluated(run, [{"name": "classification"}], 40, {"val/top1": 0.5})
    bad_nodes.add(root, "n7", "lost by run good", now=NOW)
    shutil.copytree(run, root / "bad")
    return root


def use(run: Path) -> None:
    """Everything that verbs ask of a run's small files."""
    for ask in (
        lambda: history.read(run),
        lambda: history.read(run, most=300),
        lambda: history.superseded_by(run, "5f"),
        lambda: history.evaluation(run, [{"name": "classification"}], 40),
        lambda: history.evaluations(run, 40),
        lambda: history.is_cancelled(run, {"120_3"}),
    ):
        with contextlib.suppress(RunError):
            ask()
    history.read(run, forgiving=True)
    assert is_run(run)
    for job in jobs_of(run):
        check_id(job)


def show(run: Path) -> None:
    shown = view(read_run(run), None, now=NOW)
    json.dumps(facts.as_json(shown), allow_nan=False)
    for text in (*facts.row(shown, NOW), *(word for pair in facts.facts(shown, NOW) for word in pair)):
        assert isinstance(text, str)
    for entry in shown.attempts:
        facts.attempt_row(entry, NOW)
        if entry.job:
            check_id(entry.job)
    if shown.job_id:
        check_id(shown.job_id)


@fuzz
@given(st.sampled_from(sorted(REAL)), st.data())
def test_a_file_with_anything_in_it_harms_its_own_run_alone(runs: Path, name: str, data: st.DataObject) -> None:
    real = (runs / "good" / name).read_bytes()
    forged = data.draw(damaged_json([REAL[name]], ODD) | damaged([real]))
    path = runs / "bad" / name
    path.write_bytes(forged if isinstance(forged, bytes) else json.dumps(forged).encode())
    try:
        with bounded():
            use(runs / "bad")
            show(runs / "bad")
    finally:
        path.write_bytes(real)


@fuzz
@given(st.sampled_from(names.HISTORY), st.data())
def test_a_history_with_anything_in_it_harms_its_own_run_alone(runs: Path, name: str, data: st.DataObject) -> None:
    real = (runs / "good" / name).read_bytes()
    lines = [json.loads(line) for line in real.splitlines()]
    forged = data.draw(damaged_json([lines], ODD) | damaged([real]))
    if isinstance(forged, list):
        forged = b"".join(json.dumps(line).encode() + b"\n" for line in forged)
    path = runs / "bad" / name
    path.write_bytes(forged if isinstance(forged, bytes) else json.dumps(forged).encode())
    try:
        with bounded():
            use(runs / "bad")
            show(runs / "bad")
    finally:
        path.write_bytes(real)


@fuzz
@given(st.data())
def test_a_list_of_bad_nodes_with_anything_in_it_is_nodes_or_one_error(runs: Path, data: st.DataObject) -> None:
    path = runs / names.BAD_NODES
    real = b'{"node": "n7", "reason": "lost by run good", "until": 1795693600.0, "at": 1795690000.0}\n'
    forged = data.draw(damaged_json([json.loads(real)], ODD) | damaged([real]))
    path.write_bytes(forged if isinstance(forged, bytes) else json.dumps(forged).encode())
    with bounded():
        try:
            found = bad_nodes.active(runs, NOW)
        except RunError:
            return
    for node in found:
        assert names.is_plain_name(node)
        assert not set(node) & set(" ,;=[]\\\"'")


def test_all_runs_are_shown_where_one_is_damaged(runs: Path) -> None:
    """What the targets above rest on: the untouched files are whole, and both runs are found."""
    assert [run.name for run in find_runs([runs])] == ["bad", "good"]
    views, _ = look([runs / "good", runs / "bad"], ask_slurm=False)
    assert [one.problems for one in views] == [(), ()]
    assert views[0].attempts[0].cause == "preempted"
