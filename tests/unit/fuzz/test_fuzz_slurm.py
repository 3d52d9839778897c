"""Whatever Slurm's commands print, or a job is called: jobs, nodes and settings within bounds, and never an error."""

# Tables of odd pieces are easier to look over in long lines.

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from launcher.doctor.slurm import parse_seconds, settings
from launcher.slurm.commands import check_id
from launcher.slurm.parse import (
    Job,
    parse_addresses,
    parse_config,
    parse_duration,
    parse_fields,
    parse_nodes,
    parse_sacct,
    parse_show_jobs,
    parse_squeue,
    parse_time,
)
from launcher.supervise.causes import first_failure
from tests.unit.fuzz.budget import fuzz
from tests.unit.fuzz.damage import bounded, damaged_text
from vit_dist.core.errors import ConfigError
from vit_dist.core.small_files import is_count, is_time
from vit_dist.core.world import first_host

REAL = {path.stem: path.read_text() for path in (Path(__file__).parent / "slurm-22.05").glob("*.txt")}
PIECES = [
    *(
        "JobId=",
        "\nJobId=7 JobName=",
        " JobName=",
        " UserId=",
        " UserId=a(1) GroupId=b(2) ",
        " GroupId=",
        "(1)",
        "=(((",
        "+",
    ),
    *(
        "TimeLimit=",
        "NodeName=",
        "Port=99999999",
        "NodeAddr=\ufffd",
        "-",
        "1-",
        "9:",
        "99999999999:00:00",
        "%4",
        ":2",
        ",",
    ),
    *(
        " JobName=" * 3000,
        " UserId=(" * 3000,
        "0" * 3000,
        " A" * 3000,
        "UserId=" + "(1" * 3000,
        "\nJobId=1 JobName=" * 2000,
    ),
]


def texts(name: str) -> st.SearchStrategy[str]:
    return damaged_text([REAL[name], *REAL[name].splitlines()], PIECES)


def check_job(job: Job) -> None:
    """What the rest of the code takes for granted of a job."""
    check_id(job.id)
    for when in (job.submitted, job.start, job.end, job.preempted):
        assert when is None or is_time(when)
    assert job.time_limit is None or is_time(job.time_limit)
    assert all(map(is_count, (job.nodes, job.exit_code, job.exit_signal, job.restarts or 0)))
    assert job.state
    assert (job.ended, job.waiting, job.running).count(True) == 1
    job.matches(job.label)
    job.matches("1_3")


@fuzz
@given(texts("squeue"))
def test_any_queue_is_a_list_of_jobs(text: str) -> None:
    with bounded():
        for job in parse_squeue(text):
            check_job(job)


@fuzz
@given(texts("jobs"))
def test_any_record_of_jobs_is_a_list_of_jobs(text: str) -> None:
    with bounded():
        for job in parse_show_jobs(text):
            check_job(job)


@fuzz
@given(texts("sacct"))
def test_any_accounting_is_a_list_of_jobs(text: str) -> None:
    with bounded():
        for job in parse_sacct(text):
            check_job(job)


@fuzz
@given(texts("sinfo") | texts("nodes"))
def test_any_list_of_nodes_is_states_and_addresses(text: str) -> None:
    with bounded():
        for node, (state, _) in parse_nodes(text).items():
            assert node
            assert state
        for node, (address, port) in parse_addresses(text).items():
            assert node
            assert address
            assert 0 < port < 65536


@fuzz
@given(texts("config") | texts("partitions"))
def test_any_settings_are_texts_and_findings(text: str) -> None:
    with bounded():
        for finding in settings(parse_config(text)):
            assert finding.text
        for line in text.splitlines():
            for value in parse_fields(line).values():
                for seconds in (parse_seconds(value), parse_duration(value), parse_time(value)):
                    assert seconds is None or is_time(seconds)


@fuzz
@given(
    damaged_text(
        [
            "7",
            "120_3",
            "n[1-3],gpu[01-04,07]",
            "1-02:03:04",
            "2026-11-26T10:06:22",
            "1795687582",
            "0001-01-01T00:00:00",
        ],
        PIECES,
    )
)
def test_any_word_is_a_value_or_none(word: str) -> None:
    with bounded():
        first_host(word)
        for value in (parse_time(word), parse_duration(word), parse_seconds(word)):
            assert value is None or is_time(value)
        try:
            check_id(word)
        except ConfigError:
            return
    assert word.replace("_", "").isdigit()
    assert word.isascii()


@fuzz
@given(
    damaged_text(
        [
            "srun: error: n1: task 3: Exited with exit code 9\nsrun: error: n2: tasks 4-7: Killed\n",
            "srun: error: n1: tasks 0-1,[2-3]: Segmentation fault (core dumped)\n",
        ],
        ["srun: error: ", ": task ", "A" * 3000, "Exited with exit code " + "9" * 30, " (core dumped)" * 500],
    )
)
def test_any_words_of_srun_are_a_failure_or_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "srun.log").write_text(text)
    with bounded():
        found = first_failure(tmp_path / "srun.log")
        assert found is None or is_count(found.code)
