"""What Slurm prints may be cut, garbled or chosen by others: jobs and nodes within bounds, in time, or left out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher import bad_nodes
from launcher.slurm.commands import check_id
from launcher.slurm.parse import (
    parse_addresses,
    parse_duration,
    parse_fields,
    parse_sacct,
    parse_show_jobs,
    parse_squeue,
    parse_time,
    whole_number,
)
from launcher.status.files import read_run
from launcher.status.find import jobs_of
from launcher.status.view import look
from tests.unit.fuzz.damage import bounded
from vit_dist.core.errors import ConfigError
from vit_dist.core.run import names
from vit_dist.core.run.records import is_node_name

NO_NUMBERS = ["²", "٣", "-1", "+1", "1_", "1e3", "7.5", "0x7", "", "9" * 16, "9" * 5000]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_what_is_no_plain_number_is_none(text: str) -> None:
    assert whole_number(text) is None
    assert parse_time(text) is None
    assert parse_duration(f"{text}:00:00") is None
    assert parse_addresses(f"NodeName=n1 NodeAddr=10.0.0.1 Port={text}") == {"n1": ("10.0.0.1", 6818)}
    with pytest.raises(ConfigError, match="not the number of a Slurm job"):
        check_id(text)
    assert parse_squeue(f"{text}|7|N/A|RUNNING|2|n1|n1|1|1|1|1:00|main|ann|None") == []
    assert parse_sacct(f"{text}|7|FAILED|0:0|2|n1|1|1|1|30|main|ann") == []
    assert parse_show_jobs(f"JobId={text} JobName=x UserId=a(1) GroupId=b(1) JobState=RUNNING") == []


@pytest.mark.parametrize(
    "text",
    [
        "0001-01-01T00:00:00",
        "9999-12-31T23:59:59",
        "99999999999999",
        "2026-13-01T00:00:00",
        "2026-11-26T10:00:00+99:00",
    ],
)
def test_a_time_that_no_calendar_has_is_none(text: str) -> None:
    found = parse_time(text)
    assert found is None or 0 < found <= 1e11
    assert text.startswith("9999-") or found is None


def test_a_port_that_no_network_has_is_the_usual_one() -> None:
    assert parse_addresses(
        "NodeName=n1 Port=65536\nNodeName=n2 Port=0\nNodeName=n3 Port=6820\nslurm_load_node error"
    ) == {
        "n1": ("n1", 6818),
        "n2": ("n2", 6818),
        "n3": ("n3", 6820),
    }


@pytest.mark.parametrize(
    "line", ["", "Node n9 not found", "slurm_load_jobs error: Socket timed out", "=", " =x", "a=b"]
)
def test_a_line_without_a_key_has_no_fields(line: str) -> None:
    assert parse_fields(line) == {}


@pytest.mark.parametrize(
    "line",
    [
        "JobId=7" + " JobName=x" * 40_000,
        "JobId=7 JobName=x" + " UserId=(1" * 40_000,
        "JobId=7 JobName=" + "(1)" * 100_000 + " UserId=a(1) GroupId=" + "(1" * 100_000,
        "JobId=7 JobName=x" + "\nJobId=8 JobName=y" * 20_000,
        "JobId=7 JobName=" + " A" * 100_000,
        "JobId=7 JobName=x UserId=a(1) GroupId=b(1) " + "A=" * 100_000,
    ],
    ids=range(6),
)
def test_a_long_record_takes_no_more_than_its_length(line: str) -> None:
    # At the square of its length some of them would take minutes.
    with bounded():
        parse_show_jobs(line)


@pytest.mark.parametrize(
    "job", ["abc", "--wrap=id", "12 13", "1,2", "٣", "12_", "-1", "1" * 11, "12_3_4", "12\n13", "$(id)"]
)
def test_a_forged_job_number_is_a_finding_of_its_run_alone(job: str, tmp_path: Path) -> None:
    for name, number in (("good", "77"), ("bad", job)):
        (tmp_path / name).mkdir()
        (tmp_path / name / names.FORMER_JOB).write_text(json.dumps({"job": number}))
    (tmp_path / "bad" / names.FORMER_LEDGER).write_text(
        json.dumps({"event": "begin", "attempt": 1, "at": 1.0, "job": job}) + "\n"
    )
    good, bad = read_run(tmp_path / "good"), read_run(tmp_path / "bad")
    assert (good.state.job_id, good.problems) == ("77", ())
    assert bad.state.job_id == ""
    assert [problem.partition(":")[0] for problem in bad.problems] == [names.FORMER_LEDGER, names.FORMER_JOB]
    assert jobs_of(tmp_path / "bad") == set()
    views, _ = look([tmp_path / "good", tmp_path / "bad"], ask_slurm=False)
    assert [view.job_id for view in views] == ["77", ""]


@pytest.mark.parametrize("node", ["", "n1,n2", "n[1-9]", "--all", "a b", "../n", "n1\n", "x" * 300, "n1;id", "é"])
def test_a_forged_node_is_on_no_list(node: str, tmp_path: Path) -> None:
    assert not is_node_name(node)
    bad_nodes.add(tmp_path, "n7", "slow", now=1.0)
    bad_nodes.add(tmp_path, node, "slow", now=1.0)
    assert list(bad_nodes.active(tmp_path, 2.0)) == ["n7"]
    (tmp_path / names.FORMER_LEDGER).write_text(
        json.dumps({"event": "begin", "attempt": 1, "at": 1.0, "nodes": ["n1", node]}) + "\n"
    )
    assert [problem.partition(":")[0] for problem in read_run(tmp_path).problems] == [names.FORMER_LEDGER]


@pytest.mark.parametrize(
    "node", ["n1", "gpu-07", "node_3", "ip-10-0-0-1.ec2.internal", "10.0.0.1", "fe80::1", "N7.site"]
)
def test_nodes_have_their_usual_names(node: str) -> None:
    assert is_node_name(node)
