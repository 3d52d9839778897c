"""Law 4 on a real Slurm: whatever happens to a job, its run ends as if nothing had. The long ones are drills."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.jobs import Site, undisturbed
from tests.slurm.report import write_report
from tests.slurm.scenarios import QUICK, SCENARIOS, Row

pytestmark = [pytest.mark.slurm, pytest.mark.distributed]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, small_set: str) -> Path:
    """The run that nobody disturbed, trained once."""
    return undisturbed(tmp_path_factory.mktemp("reference"), small_set)


@pytest.fixture(scope="module")
def rows(request: pytest.FixtureRequest) -> Iterator[list[Row]]:
    """Rows of the report, written when the last drill has ended, however it has."""
    found: list[Row] = []
    yield found
    write_report(found, sum(item.name.startswith("test_drill") for item in request.session.items))


@pytest.fixture
def site(slurm, tmp_path: Path, small_set: str, reference: Path) -> Site:
    return Site(slurm, tmp_path, small_set, reference)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", QUICK)
def test_whatever_happens_the_run_ends_as_if_nothing_had(site: Site, name: str) -> None:
    print(SCENARIOS[name](site))


@pytest.mark.drill
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", SCENARIOS)
def test_drill(site: Site, rows: list[Row], name: str, request: pytest.FixtureRequest) -> None:
    if name == "s3-away":
        request.getfixturevalue("s3")
        site = on_s3(site)
    began = time.monotonic()
    row = SCENARIOS[name](site)
    row.seconds = time.monotonic() - began
    rows.append(row)
    print(row)
    assert row.figures.get("lost beyond that, s", 0.0) < 60
    assert row.figures.get("supervisor adds, s", 0.0) < 2


def on_s3(site: Site) -> Site:
    """The same set, on the S3 server."""
    from vit_dist.core.files import file_system

    url = "s3://vit-dist-test/slurm-drill"
    system, path = file_system(url)
    for file in Path(site.train).parent.iterdir():
        system.pipe_file(f"{path}/{file.name}", file.read_bytes())
    return Site(site.cluster, site.folder, f"{url}/manifest.json", site.reference)
