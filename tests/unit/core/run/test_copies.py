"""Logs and records on a store: sent as they grow, under one run's name, and brought back where they are lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vit_dist.core.errors import DataError, RunError
from vit_dist.core.run import copies, history, names
from vit_dist.core.run.copies import Copies, bring_back

WHO = {"seed": 0, "fingerprint": "f" * 16}
EVENTS = f"{names.EVENTS}/events.out.tfevents.0000000001.h.7"


def run_of(folder: Path, **identity: Any) -> Path:
    """A run's directory with a little of everything in it."""
    whole = {"name": "r", "recipe_hash": "0" * 16, "identity": {**WHO, **identity}, "vit_dist": "1"}
    for name, text in {
        names.RUN: json.dumps(whole),
        names.RECIPE: "name: r\n",
        EVENTS: "log",
        f"{names.PLUGINS}/mine-12345678.py": "1",
        names.BY_RANKS: '{"event": "opened", "attempt": 1, "at": 1}\n',
        names.BY_SUPERVISOR: "{}\n",
        names.FORMER_STATUS: '{"status": "running"}\n',
        f"{names.EVALUATIONS}/step-0000000010/linear-pets.csv": "a,b\n",
        f"{names.EVALUATIONS}/step-0000000010/val/confusion.csv": "1,2\n",
        names.QUARANTINE: "{}\n",
        names.NONFINITE: "{}\n",
        names.BY_EVALUATORS: "{}\n",
        names.OWNER: "{}",
        names.HEARTBEAT: "{}",
        f"{names.LOGS}/attempt-0001/rank-0.log": "talk",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(params=["a path", "file://", "a trailing slash", pytest.param("s3", marks=pytest.mark.s3)])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return f"{request.getfixturevalue('s3')}/copies/{tmp_path.name}"
    here = tmp_path / "store" / "r"
    return {"a path": str(here), "file://": f"file://{here}", "a trailing slash": f"{here}/"}[request.param]


def test_what_was_sent_comes_back_whole_and_nothing_else(remote: str, tmp_path: Path) -> None:
    sent = run_of(tmp_path / "run")
    Copies(sent, remote).send()
    count = bring_back(tmp_path / "again", remote, WHO)
    wanted = {name: text for name, text in files(sent).items() if name.partition("/")[0] in names.CARRIED}
    for name in list(wanted):
        if name.partition("/")[0] in names.MADE_ANEW:
            del wanted[name]
    assert files(tmp_path / "again") == wanted
    assert count == len(wanted) == 11
    # Once it is there the store is not asked.
    assert bring_back(tmp_path / "again", "s3://nobody.invalid/x", WHO) == 0


def test_what_grows_is_sent_again_and_what_does_not_is_left(
    remote: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, put, sent = run_of(tmp_path / "run"), copies._put, list[str]()
    monkeypatch.setattr(copies, "_put", lambda path, url: (sent.append(path.name), put(path, url)))
    first = Copies(run, remote)
    first.send()
    assert sent[0] == names.RUN
    assert sent[-1] == names.HEARTBEAT
    sent.clear()
    first.send()
    assert sent == []
    with (run / EVENTS).open("a") as file:
        file.write(" and more")
    (run / names.BY_RANKS).write_text("{}\n{}\n")
    first.send()
    assert sent == [Path(EVENTS).name, names.BY_RANKS]
    # The next attempt sends no log of the one before a second time.
    sent.clear()
    (run / f"{EVENTS}0").write_text("second")
    Copies(run, remote).send()
    assert Path(EVENTS).name not in sent
    assert f"{Path(EVENTS).name}0" in sent
    bring_back(tmp_path / "again", remote, WHO)
    assert (tmp_path / "again" / EVENTS).read_text() == "log and more"
    assert (tmp_path / "again" / f"{EVENTS}0").read_text() == "second"


def test_a_log_alone_that_is_lost_comes_back_and_the_rest_stays(tmp_path: Path) -> None:
    run, remote = run_of(tmp_path / "run"), str(tmp_path / "store")
    Copies(run, remote).send()
    (run / EVENTS).unlink()
    (run / names.BY_RANKS).write_text("stopped")
    assert bring_back(run, remote, WHO) == 1
    assert (run / EVENTS).read_text() == "log"
    assert "stopped" in (run / names.BY_RANKS).read_text()


@pytest.mark.parametrize("after", range(8))
def test_a_kill_while_it_is_brought_back_is_made_good_by_the_next_attempt(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(BaseException):
        pass

    remote, left = str(tmp_path / "store"), [after]
    Copies(run_of(tmp_path / "run"), remote).send()
    replace = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if not left[0]:
            raise KilledError
        left[0] -= 1
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            bring_back(tmp_path / "again", remote, WHO)
    assert not (tmp_path / "again" / names.RUN).exists()
    bring_back(tmp_path / "again", remote, WHO)
    assert (tmp_path / "again" / EVENTS).read_text() == "log"
    assert (tmp_path / "again" / names.RUN).exists()


@pytest.mark.parametrize("changed", [{"seed": 1}, {"fingerprint": "0" * 16}])
def test_copies_of_another_run_are_neither_taken_nor_written_over(changed: dict[str, Any], tmp_path: Path) -> None:
    remote = str(tmp_path / "store")
    Copies(run_of(tmp_path / "run"), remote).send()
    before = files(tmp_path / "store")
    with pytest.raises(RunError, match=f"of another run lie there .*{next(iter(changed))}.*checkpoint.remote"):
        bring_back(tmp_path / "again", remote, {**WHO, **changed})
    with pytest.raises(RunError, match=r"of another run lie there.*checkpoint.remote"):
        Copies(run_of(tmp_path / "other", **changed), remote).send()
    assert files(tmp_path / "store") == before
    assert not (tmp_path / "again").exists()


def plant(name: str) -> Callable[[Path], None]:
    def make(store: Path) -> None:
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("planted")

    return make


@pytest.mark.parametrize(
    "make",
    [
        plant("owner.json"),
        plant("lock"),
        plant("checkpoints/x"),
        plant("tb/.hidden"),
        plant("tb/deeper/events.out.tfevents.1"),
        plant("job/train.sbatch"),
        plant("plugins/evil.py"),
        plant("tb/~x"),
    ],
)
def test_of_a_store_only_what_is_carried_is_taken(make: Callable[[Path], None], tmp_path: Path) -> None:
    Copies(run_of(tmp_path / "run"), str(tmp_path / "store")).send()
    make(tmp_path / "store")
    bring_back(tmp_path / "again", str(tmp_path / "store"), WHO)
    assert "planted" not in files(tmp_path / "again").values()


def test_nothing_is_sent_through_a_link(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    (tmp_path / "secret").write_text("secret")
    (run / names.BY_RANKS).unlink()
    for name in (names.BY_RANKS, f"{names.EVENTS}/events.out.tfevents.2"):
        (run / name).symlink_to(tmp_path / "secret")
    Copies(run, str(tmp_path / "store")).send()
    assert "secret" not in files(tmp_path / "store").values()


def test_a_damaged_name_of_a_run_on_the_store_is_told(tmp_path: Path) -> None:
    plant(names.RUN)(tmp_path / "store")
    with pytest.raises(DataError, match=r"run\.json: damaged"):
        bring_back(tmp_path / "again", str(tmp_path / "store"), WHO)


def test_a_history_that_is_counted_anew_here_is_not_mixed_with_the_one_there(tmp_path: Path) -> None:
    """A supervisor has begun an attempt 1 in the empty directory; that of the store is another one."""
    Copies(run_of(tmp_path / "run"), str(tmp_path / "store")).send()
    history.begin(tmp_path / "again", launcher="slurm", devices=1, step=0, job="7")
    assert bring_back(tmp_path / "again", str(tmp_path / "store"), WHO) == 7
    assert not (tmp_path / "again" / names.BY_RANKS).exists()
    assert history.read(tmp_path / "again").next_opened == 1
    assert (tmp_path / "again" / names.BY_EVALUATORS).exists()
