"""What may happen to a job: one function each. Each ends with `check`, and gives a row of the drills' report."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.processes.kill_test import Attempt
from tests.slurm.cluster import job_processes, wait_for
from tests.slurm.jobs import (
    SAVE_EVERY,
    SLOW_S,
    Site,
    SlurmRun,
    all_ranks,
    check,
    check_files,
    check_ledger,
    job_on,
    kill,
    last_step,
    recipe_file,
    vit_dist,
)
from vit_dist.core.run import history
from vit_dist.study.local import cell_state


@dataclass
class Row:
    """A line of the report.

    Attributes:
        name: of the scenario.
        done: what was done to the job.
        causes: of the attempts' ends, from the ledger.
        lost: steps that were done twice.
        seconds: of the whole scenario.
        figures: measured on the way, by name.
    """

    name: str
    done: str
    causes: Sequence[str] = ()
    lost: int = 0
    seconds: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)


def finish(row: Row, run: SlurmRun, site: Site, causes: Sequence[str], *, bits: bool = True) -> Row:
    """Let the run go to its end, hold it to the undisturbed one, and fill in the row."""
    run.let_go()
    assert run.end() == "COMPLETED", run.text()
    check(run, site.reference, causes, bits=bits)
    row.causes, row.lost = run.causes, sum(e.lost for e in run.ledger)
    return row


def nothing_happens(site: Site) -> Row:
    """A job that nobody disturbs. Measures what the supervisor adds to the start of the ranks."""
    row = Row("nothing happens", "submit, wait")
    run = site.submit()
    rank = run.rank(0)
    row.figures["supervisor adds, s"] = born(rank.pid) - born(batch_shell(run))
    return finish(row, run, site, ["done"])


def a_rank_is_killed(site: Site) -> Row:
    """kill -9 of one rank: its peers leave, the supervisor starts them again in the same job."""
    row = Row("kill -9 of a rank", f"kill -9 of rank 1 after step {SAVE_EVERY} was saved")
    run = site.submit()
    run.saved(SAVE_EVERY)
    killed = kill(run.rank(1).pid)
    run.trained(SAVE_EVERY + 1, attempt=2)
    row.figures["until it trains again, s"] = time.time() - killed
    finish(row, run, site, ["rank_lost", "done"])
    assert {e.job for e in run.ledger} == {run.job}
    assert "rank 1" in run.ledger[0].detail, run.ledger[0]
    assert "kill" in run.ledger[0].detail.lower(), run.ledger[0]
    return row


def a_node_dies(site: Site, *, batch_host: bool = False, orphans: bool = False) -> Row:
    """kill -9 of everything on a node: the same job resumes elsewhere, away from that node."""
    name = (
        "a node dies" + (", the batch script's" if batch_host else "") + (", what it ran lives on" if orphans else "")
    )
    row = Row(name, "kill -9 of slurmd, slurmstepd" + (" alone" if orphans else " and all tasks"))
    # Orphans train on until Slurm calls their node down: the run must be longer than that takes.
    run = site.submit(pace=1.0 if orphans else SLOW_S)
    run.saved(SAVE_EVERY)
    node = run.nodes[0 if batch_host else 1]
    before = run.job
    began = time.time()
    site.cluster.kill(node, orphans=orphans)
    gone_after_node(site, run, row, node, began)
    finish(row, run, site, ["node_lost", "done"])
    assert run.job == before
    assert node in run.ledger[0].nodes
    assert node not in run.ledger[1].nodes
    return row


def a_spare_takes_over(site: Site) -> Row:
    """A node of an allocation with a spare dies: the ranks start again in the same allocation, without a requeue."""
    row = Row("hot spare", "kill -9 of a node of --nodes 2 --spares 1")
    run = site.submit("--spares", "1")
    run.saved(SAVE_EVERY)
    began = time.time()
    site.cluster.kill("n2")
    gone_after_node(site, run, row, "n2", began)
    finish(row, run, site, ["node_lost", "done"])
    assert [e.restart for e in run.ledger] == [0, 0]
    assert run.ledger[0].action == "respawn"
    assert "n2" not in run.ledger[1].nodes
    return row


def gone_after_node(site: Site, run: SlurmRun, row: Row, node: str, began: float) -> None:
    """Wait until Slurm calls a node down, and until training is beyond what was saved; measure both."""
    wait_for("Slurm calls it down", lambda: site.cluster.node_states().get(node, "").startswith("down"), 180, run.text)
    row.figures["Slurm's detection, s"] = (down := time.time()) - began
    run.trained(SAVE_EVERY + 1, attempt=2)
    row.figures["lost beyond that, s"] = time.time() - down


def a_higher_partition_preempts(site: Site) -> Row:
    """A job of a higher partition takes the nodes: the run saves within the grace time, waits, resumes."""
    row = Row("preemption", "a job in partition hi takes all nodes from one in lo")
    run = site.submit(partition="lo", preempt_grace="30s")
    run.saved(SAVE_EVERY)
    with job_on(site.cluster, "hi", 3, site.folder) as other:
        waiting = f"the job {other} has the nodes"
        wait_for(waiting, lambda: site.cluster.run("squeue", "-h", "-j", other, "-o", "%T").stdout.strip() == "RUNNING")
        wait_for("the run waits", lambda: run.state == "PENDING", 120, run.text)
        wait_for("no rank lives", lambda: not run.ranks(), 60, run.text)
    finish(row, run, site, ["preempted", "done"])
    assert run.ledger[0].action == "requeue"
    assert run.ledger[0].saved > SAVE_EVERY, "nothing was saved in the grace time"
    return row


def the_time_limit_comes(site: Site) -> Row:
    """A run longer than its jobs may be: each saves before the limit and is queued again, several times."""
    row = Row("time limit", "a time limit of 2 minutes, steps of 5 seconds")
    run = site.submit(pace=5.0, time_limit="00:02:00", signal_lead="60s")
    run.trained(1, attempt=3, timeout=500)
    run.let_go()
    assert run.end() == "COMPLETED", run.text()
    rounds = len(run.ledger)
    check(run, site.reference, ["time_limit"] * (rounds - 1) + ["done"])
    assert rounds >= 3
    assert {e.job for e in run.ledger} == {run.job}
    row.causes, row.lost = run.causes, sum(e.lost for e in run.ledger)
    assert row.lost == 0, "what comes announced costs no step"
    return row


def it_is_cancelled(site: Site) -> Row:
    """scancel by hand: it stays cancelled; `resume` resumes it."""
    row = Row("scancel", "scancel JOB, then vit-dist resume")
    run = site.submit()
    run.saved(SAVE_EVERY)
    first = run.job
    site.cluster.run("scancel", first)
    assert run.end() == "CANCELLED", run.text()
    wait_for("no process is left", lambda: not job_processes(site.cluster), 60, run.text)
    done = vit_dist("resume", str(run.dir))
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.job != first
    return finish(row, run, site, ["cancelled", "done"])


def it_crashes_again_and_again(site: Site) -> Row:
    """A run that fails at the same step each time is given up after three attempts, and not queued again."""
    from tests.shards import write_set

    row = Row("crash loop", "an example that cannot be decoded, data.max_bad=0")
    began = time.monotonic()
    broken = write_set(
        site.folder / "bad", num_samples=200, samples_per_shard=31, num_classes=4, broken=frozenset({77})
    )
    run = site.submit("data.max_bad=0.0", recipe=recipe_file(site.folder, broken), pace=0)
    assert run.end() == "FAILED", run.text()
    entries = run.ledger
    assert [e.cause for e in entries] == ["crashed"] * 3, run.text()
    assert [e.action for e in entries][-1] == "give_up"
    assert not any(e.gained for e in entries)
    assert "cannot be decoded" in run.text()
    wait_for("no process is left", lambda: not job_processes(site.cluster), 60, run.text)
    row.figures["given up after, s"] = time.monotonic() - began
    row.causes, row.lost = run.causes, sum(e.lost for e in entries)
    return row


def storage_goes_away(site: Site, *, seconds: float = 20.0) -> Row:
    """The S3 server that holds the data is away for a while: the run waits or starts again, and loses nothing."""
    row = Row("S3 away", f"connections cut and refused for {seconds:.0f}s")
    from tests.slurm.outage import Outage

    endpoint = os.environ["AWS_ENDPOINT_URL_S3"]
    outage = Outage(int(endpoint.rpartition(":")[2]))
    os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{outage.port}"
    try:
        run = site.submit()
        run.saved(SAVE_EVERY)
        outage.down()
        until = time.monotonic() + seconds
        wait_for("it has been away long enough", lambda: time.monotonic() > until, seconds + 10)
        outage.up()
        run.let_go()
        run.end()
        return finish(row, run, site, run.causes)
    finally:
        os.environ["AWS_ENDPOINT_URL_S3"] = endpoint
        outage.down()


def the_disk_fills_up(site: Site) -> Row:
    """The run directory's file system is full for a while: saves fail loudly, nothing is lost, it resumes."""
    row = Row("full disk", "a small file system filled to the last byte, and freed once it was felt")
    with small_disk(site.folder / "runs") as disk:
        run = site.submit()
        run.saved(SAVE_EVERY)
        filler = disk / "filler"
        fill(filler)
        wait_for("an attempt has felt it", lambda: len(run.ledger) > 1 or "No space left" in run.text(), 240, run.text)
        filler.unlink()
        run.let_go()
        run.end()
        return finish(row, run, site, run.causes)


@contextlib.contextmanager
def small_disk(path: Path, megabytes: int = 64) -> Iterator[Path]:
    """A file system of its own in a file, for root alone; else the test is skipped. (submit refuses a tmpfs.)"""
    import pytest

    if os.geteuid():
        pytest.skip("a full file system needs root, to mount one")
    image = path.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(megabytes << 20)
    path.mkdir()
    for words in (["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(path)]):
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {' '.join(words)}: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill(path: Path) -> None:
    """Write until the file system is full, to the last byte."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)


def a_rank_stands_still(site: Site) -> Row:
    """SIGSTOP of a rank: the watchdog ends the attempt and leaves the stacks; it resumes."""
    row = Row("a stopped rank", "SIGSTOP of rank 1, guards.hang=8s")
    run = site.submit("guards.hang=8s")
    run.saved(SAVE_EVERY)
    began = kill(run.rank(1).pid, signal.SIGSTOP)
    run.trained(SAVE_EVERY + 1, attempt=2)
    row.figures["until it trains again, s"] = time.time() - began
    finish(row, run, site, ["hung", "done"])
    assert list((run.dir / "stacks").iterdir())
    return row


def it_goes_on_with_other_nodes(site: Site) -> Row:
    """stop, resume on 3 nodes, stop, resume on 1: the same order of examples, weights within rounding (fp32)."""
    row = Row("other node counts", "2 nodes, stop, 3 nodes, stop, 1 node; fp32")
    recipe = recipe_file(site.folder, site.train, "precision: fp32")
    alone = site.folder / "alone"
    Attempt(recipe, alone, 2).finish(240)
    site = replace(site, reference=alone)
    run = site.submit(recipe=recipe)
    for attempt, (nodes, step) in enumerate(((3, SAVE_EVERY), (1, 2 * SAVE_EVERY)), 1):
        run.trained(step + 1, attempt=attempt)
        done = vit_dist("stop", str(run.dir))
        assert done.returncode == 0, done.stdout + done.stderr
        assert run.end() == "COMPLETED", run.text()
        done = vit_dist("resume", str(run.dir), "--nodes", str(nodes))
        assert done.returncode == 0, done.stdout + done.stderr
    finish(row, run, site, ["stopped", "stopped", "done"], bits=False)
    assert [e.devices for e in run.ledger] == [2, 3, 1]
    assert row.lost == 0
    return row


def an_array_is_throttled(site: Site) -> Row:
    """Four runs as an array, one at a time, then three: never more run at once than may, and each ends as if alone."""
    row = Row(
        "an array with a throttle", "a study of 4 runs, --max-parallel 1; changed to 3 while it runs; a rank killed"
    )
    (site.folder / "pace").write_text(str(SLOW_S))
    study = site.folder / "grid.yaml"
    recipe = recipe_file(site.folder, site.train)
    study.write_text(
        f"name: grid\nrecipe: {recipe}\nfamilies:\n  vit: {{model: vit-test}}\nsubsets: [all]\nseeds: [0, 1, 2, 3]\n"
    )
    words = ["study", "submit", str(study), "--cluster", str(site.cluster_file()), "--max-parallel", "1"]
    done = vit_dist(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    seen: list[int] = []

    def running() -> list[str]:
        shown = site.cluster.run("squeue", "-h", "-r", "-t", "R,CG", "-o", "%F %i", check=False).stdout.splitlines()
        seen.append(len(shown))
        return shown

    def runs_done() -> int:
        return sum(
            cell_state(path.parent).state == "done" for path in (site.folder / "runs" / "grid").glob("*/recipe.yaml")
        )

    first = wait_for("an element runs", running)[0].split()[0]
    wait_for("one run is done", lambda: running() is not None and runs_done() >= 1, 400)
    assert max(seen) == 1
    site.cluster.run("scontrol", "update", f"JobId={first}", "ArrayTaskThrottle=3")
    wait_for("three elements run", lambda: len(running()) == 3, 400)
    assert max(seen) == 3
    ranks = wait_for("a rank lives", lambda: all_ranks(site.cluster), 240)
    kill(ranks[0].pid)
    (site.folder / "pace").unlink()
    wait_for("all are done", lambda: running() == [] and runs_done() == 4, 600)
    wait_for("nothing lives", lambda: not job_processes(site.cluster), 30)
    causes: list[str] = []
    for run_dir in sorted((site.folder / "runs" / "grid").glob("*/recipe.yaml")):
        alone = site.folder / "alone" / run_dir.parent.name
        Attempt(run_dir, alone, 1).finish(240)
        check_files(run_dir.parent, alone)
        causes += [entry.cause for entry in history.read(run_dir.parent).attempts]
    assert causes.count("done") == 4, causes
    # A rank that was killed before it had begun has not been lost.
    assert {c for c in causes if c != "done"} <= {"rank_lost", "start_failed"}, causes
    assert len(causes) == 5, causes
    row.causes = causes
    return row


def batch_shell(run: SlurmRun) -> int:
    """The process of the batch script: `exec` keeps its number, so its start is the script's."""
    for pid, line in run.cluster.processes(run.nodes[0]).items():
        if "supervise" in line or "slurm_script" in line:
            return pid
    raise AssertionError(f"no batch script\n{run.text()}")


def born(pid: int) -> float:
    """When a process began, in seconds since the machine did."""
    ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return ticks / os.sysconf("SC_CLK_TCK")


SCENARIOS: dict[str, Callable[[Any], Row]] = {
    "nothing": nothing_happens,
    "rank": a_rank_is_killed,
    "node": a_node_dies,
    "batch-host": lambda site: a_node_dies(site, batch_host=True),
    "orphans": lambda site: a_node_dies(site, batch_host=True, orphans=True),
    "spare": a_spare_takes_over,
    "preempted": a_higher_partition_preempts,
    "time-limit": the_time_limit_comes,
    "cancelled": it_is_cancelled,
    "crash-loop": it_crashes_again_and_again,
    "s3-away": storage_goes_away,
    "full-disk": the_disk_fills_up,
    "stopped-rank": a_rank_stands_still,
    "other-nodes": it_goes_on_with_other_nodes,
    "array": an_array_is_throttled,
}
QUICK = ("rank", "node")
__all__ = ["QUICK", "SCENARIOS", "Row", "check_ledger", "last_step"]
