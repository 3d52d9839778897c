"""What Slurm prints is read right, whatever its version; its commands are called without surprises.

The texts have the layouts of Slurm 20.11, 22.05, 23.11 and 24.11: fields were added at several places, TRES became
ReqTRES and AllocTRES, Power went. The real 22.05 is called in tests/integration/test_slurm_verbs.py.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from launcher.slurm import commands as slurm
from launcher.slurm.parse import (
    Job,
    parse_config,
    parse_duration,
    parse_nodes,
    parse_sacct,
    parse_show_jobs,
    parse_squeue,
    parse_time,
)
from vit_dist.core.errors import ConfigError, RunError

_HEAD = (
    "JobId=4711 JobName={name} UserId=ann(1001) GroupId=lab(1001) MCS_label=N/A Priority=5487 Nice=0 Account=vision "
    "QOS=normal JobState=RUNNING Reason=None Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:0 "
    "RunTime=01:02:03 TimeLimit=2-00:00:00 TimeMin=N/A SubmitTime=1700000000 EligibleTime=1700000000 "
    "AccrueTime=1700000000 StartTime=1700000005 EndTime=1700172805 Deadline=N/A "
)
_MIDDLE = (
    "AllocNode:Sid=login1:2222 ReqNodeList=(null) ExcNodeList=gpu[07-08] NodeList=gpu[01-04] BatchHost=gpu01 "
    "NumNodes=4 NumCPUs=256 NumTasks=32 CPUs/Task=8 ReqB:S:C:T=0:0:*:* "
)
_TAIL = (
    "Socks/Node=* NtasksPerN:B:S:C=8:0:*:* CoreSpec=* MinCPUsNode=64 MinMemoryNode=500G MinTmpDiskNode=0 "
    "Features=(null) DelayBoot=00:00:00 OverSubscribe=NO Contiguous=0 Licenses=(null) "
)
_FILES = (
    "Network=(null) Command=/home/ann/a b/train.sbatch --x JobState=FAILED WorkDir=/home/ann{comment} "
    "StdErr=/home/ann/o StdIn=/dev/null StdOut=/home/ann/o "
)
VERSIONS = {
    "20.11": _HEAD
    + "SuspendTime=None SecsPreSuspend=0 LastSchedEval=1700000005 Partition=gpu "
    + _MIDDLE
    + "TRES=cpu=256,mem=2000G,node=4,billing=256,gres/gpu=32 "
    + _TAIL
    + _FILES
    + "Power= TresPerNode=gpu:8 NtasksPerTRES:0",
    "22.05": _HEAD
    + "PreemptEligibleTime=1700000005 PreemptTime=None SuspendTime=None SecsPreSuspend=0 LastSchedEval=1700000005 "
    + "Scheduler=Backfill Partition=gpu "
    + _MIDDLE
    + "TRES=cpu=256,mem=2000G,node=4,billing=256,gres/gpu=32 "
    + _TAIL
    + _FILES
    + "Power= TresPerNode=gres:gpu:8",
    "23.11": _HEAD
    + "SuspendTime=None SecsPreSuspend=0 LastSchedEval=1700000005 Scheduler=Main Partition=gpu "
    + _MIDDLE
    + "ReqTRES=cpu=256,mem=2000G,node=4,billing=256,gres/gpu=32 AllocTRES=cpu=256,mem=2000G,node=4,gres/gpu:h100=32 "
    + _TAIL
    + _FILES
    + "Power= TresPerNode=gres/gpu:h100:8",
    "24.11": _HEAD
    + "SuspendTime=None SecsPreSuspend=0 LastSchedEval=1700000005 Scheduler=Main Partition=gpu "
    + _MIDDLE
    + "ReqTRES=cpu=256,mem=2000G,node=4,billing=256,gres/gpu=32 AllocTRES=cpu=256,mem=2000G,node=4,gres/gpu:h100=32 "
    + _TAIL
    + "LicensesAlloc=(null) "
    + _FILES
    + "TresPerNode=gres/gpu:h100:8 TresPerTask=cpu=8 StepMgrEnabled=Yes",
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", ["vit-l16", "a b", "x JobState=FAILED NodeList=evil", "n\nJobId=9 JobName=z"])
def test_a_running_job_is_read_in_the_layout_of_any_version_whatever_its_name(version: str, name: str) -> None:
    (job,) = parse_show_jobs(VERSIONS[version].format(name=name, comment=""))
    assert (job.id, job.name, job.state, job.reason) == ("4711", name, "RUNNING", "")
    assert (job.nodes, job.nodelist, job.batch_host, job.excluded) == (4, "gpu[01-04]", "gpu01", "gpu[07-08]")
    assert (job.start, job.end, job.time_limit) == (1700000005.0, 1700172805.0, 172800.0)
    assert (job.restarts, job.requeue, job.user, job.partition) == (2, True, "ann", "gpu")
    assert job.running
    assert not job.ended


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("user", "owner"),
    [
        ("ann", "UserId=ann(1001) GroupId=domain users(513)"),
        ("ann smith", "UserId=ann smith(1001) GroupId=lab(1)"),
        ("CORP\\ann", "UserId=CORP\\ann(1001) GroupId=CORP\\domain users(513)"),
        ("ann (guest)", "UserId=ann (guest)(1001) GroupId=lab (a)(1)"),
        ("(null)", "UserId=(null)(4294967294) GroupId=(null)(4294967294)"),
        ("ann@site.org", "UserId=ann@site.org(1001) GroupId=a b  c(7)"),
        ("1001", "UserId=1001(1001) GroupId=x=y(3)"),
        ("", "UserId=(1001) GroupId=(513)"),
    ],
)
@pytest.mark.parametrize("name", ["n", "x UserId=eve(0) JobState=FAILED", "n\nJobId=9 JobName=z"])
def test_people_and_groups_may_be_called_anything(version: str, user: str, owner: str, name: str) -> None:
    text = VERSIONS[version].replace("UserId=ann(1001) GroupId=lab(1001)", owner).format(name=name, comment="")
    first, second = parse_show_jobs(f"{text}\n{text.replace('4711', '4712')}")
    assert (first.id, second.id, first.user, first.name) == ("4711", "4712", user, name)
    assert (first.state, first.nodelist, first.restarts) == ("RUNNING", "gpu[01-04]", 2)


def test_a_comment_with_line_breaks_makes_no_second_job() -> None:
    text = VERSIONS["22.05"].format(name="n", comment=" Comment=x\nJobId=77 JobState=FAILED")
    assert [(j.id, j.state) for j in parse_show_jobs(f"{text}\n{text.replace('4711', '4712')}")] == [
        ("4711", "RUNNING"),
        ("4712", "RUNNING"),
    ]


def test_lines_of_squeue_are_jobs_and_all_else_is_passed_over() -> None:
    text = (
        "3|3|2-5%2|PENDING|1||n/a|1700000000|N/A|N/A|UNLIMITED|main|root|JobArrayTaskLimit\n"
        "5|3|0|RUNNING|1|n2|n2|1700000000|1700000001|1700003601|1:00:00|main|root|None\n"
        "9|9|N/A|PENDING|2||n/a|1700000000|1700000900|NONE|10:00|main|root|Nodes|down, drained\n"
        "slurm_load_jobs error: something\n"
    )
    waiting, running, other = parse_squeue(text)
    assert (waiting.label, waiting.waiting, waiting.start) == ("3_2-5%2", True, None)
    assert (running.label, running.nodelist, running.time_limit) == ("3_0", "n2", 3600.0)
    assert (other.label, other.reason, other.start, other.time_limit) == (
        "9",
        "Nodes|down, drained",
        1700000900.0,
        600.0,
    )


@pytest.mark.parametrize(
    ("asked", "means"), [("3_4", True), ("3_6", False), ("3", True), ("4_4", False), ("3_9", True), ("3_10", False)]
)
def test_an_element_that_waits_among_others_is_found_by_its_number(asked: str, means: bool) -> None:
    assert Job("3", "PENDING", array_id="3", array_task="2-5,7-11:2%2").matches(asked) is means


def test_accounting_is_read_with_its_shortened_and_explained_states() -> None:
    text = (
        "12|12|CANCELLED by 1001|0:15|2|n[1-2]|1700000000|1700000001|1700000100|30|gpu|ann\n"
        "13|10_3|OUT_OF_ME+|0:125|1|n1|1700000000|1700000001|Unknown|UNLIMITED|gpu|ann\n"
    )
    first, second = parse_sacct(text)
    assert (first.state, first.exit_signal, first.end, first.time_limit) == ("CANCELLED", 15, 1700000100.0, 1800.0)
    assert (second.label, second.state, second.end, second.time_limit) == ("10_3", "OUT_OF_MEMORY", None, None)
    assert first.ended


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1-02:03:04", 93784.0), ("2:03:04", 7384.0), ("03:04", 184.0), ("UNLIMITED", None), ("Partition_Limit", None)],
)
def test_spans_of_time_are_read(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


def test_times_are_read_as_seconds_and_as_local_time_and_nothing_else() -> None:
    assert parse_time("1700000000") == 1700000000.0
    local = parse_time("2026-11-22T18:50:00")
    assert local is not None
    assert local % 60 == 0
    assert [parse_time(text) for text in ("N/A", "Unknown", "NONE", "", "tomorrow", "0")] == [None] * 6


def test_settings_and_nodes_are_read() -> None:
    assert parse_config("Configuration data as of now\nKillWait      = 30 sec\nA = b=c\n") == {
        "KillWait": "30 sec",
        "A": "b=c",
    }
    text = "n1|mixed|none\nn2|down*|Not responding | twice\nn2|down*|Not responding | twice\n"
    assert parse_nodes(text) == {"n1": ("mixed", ""), "n2": ("down*", "Not responding | twice")}


@pytest.mark.parametrize("wrong", ["", "12;reboot", "12 13", "-1", "$(id)", "12\n13", "1_2_3", "all", "12_[1-3]"])
def test_what_is_no_number_of_a_job_never_reaches_a_command(wrong: str) -> None:
    for call in (slurm.job, slurm.scancel, slurm.requeue, slurm.release, slurm.accounting):
        with pytest.raises(ConfigError, match="not the number of a Slurm job"):
            call(wrong)
    with pytest.raises(ConfigError, match="not the number of a Slurm job"):
        slurm.update(wrong, Comment="x")
    with pytest.raises(ConfigError, match="not the number of a Slurm job"):
        slurm.jobs([wrong])


def test_without_slurm_on_the_path_it_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.available()
    with pytest.raises(slurm.NoSlurmError, match=r"squeue: not on the PATH.*vit-dist run"):
        slurm.jobs(["1"])


def _command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_a_controller_that_is_away_is_asked_again_and_then_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = tmp_path / "asked"
    _command(
        tmp_path,
        "squeue",
        f'echo x >> "{asked}"; [ "$(/usr/bin/wc -l < "{asked}")" -ge 2 ] && exit 0\n'
        'echo "slurm_load_jobs error: Unable to contact slurm controller (connect failure)" >&2; exit 1',
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.jobs(["1"], patience_s=5) == []
    assert len(asked.read_text().split()) == 2
    asked.write_text("")
    with pytest.raises(slurm.SlurmAwayError, match="Unable to contact slurm controller"):
        slurm.jobs(["1"], patience_s=0)


def test_no_variable_of_a_surrounding_job_or_of_a_format_reaches_slurm() -> None:
    environ = {"SLURM_JOB_ID": "1", "SBATCH_EXPORT": "x", "SQUEUE_FORMAT": "%i", "SACCT_FORMAT": "x", "HOME": "/h"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_JWT": "t", "PATH": "/bin"}
    assert slurm.environment({**environ, **kept}) == {**kept, "HOME": "/h"}


CHOICES = {
    "SBATCH_ACCOUNT": ("proj-b", "#SBATCH --account=a"),
    "SBATCH_PARTITION": ("hi", "#SBATCH -p debug"),
    "SBATCH_QOS": ("long", "#SBATCH --qos=a"),
    "SBATCH_CONSTRAINT": ("h100&ib", "#SBATCH -Ca100"),
    "SBATCH_RESERVATION": ("r1", "#SBATCH --reservation=r2"),
    "SBATCH_MEM_PER_NODE": ("9G", "#SBATCH --mem=1G"),
    "SBATCH_MEM_PER_CPU": ("1G", "#SBATCH --mem=1G"),
    "SBATCH_WCKEY": ("k", '#SBATCH --wckey="a b"'),
}
NOT_OURS = {"SBATCH_TIMELIMIT": "1:00", "SBATCH_EXPORT": "NONE", "SBATCH_CLUSTERS": "other", "SBATCH_GRES": "gpu:1"}


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("where", ["open", "in the script", "as an argument", "behind a comment"])
def test_a_choice_of_the_shell_holds_where_the_job_leaves_it_open_and_else_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, where: str
) -> None:
    _command(tmp_path, "sbatch", f'/usr/bin/env > {tmp_path}/seen; echo 12; [ -n "$*" ]')
    monkeypatch.setenv("PATH", str(tmp_path))
    for other in [n for n in os.environ if n.startswith("SBATCH_")]:
        monkeypatch.delenv(other)
    value, line = CHOICES[name]
    for variable, text in {**NOT_OURS, name: value}.items():
        monkeypatch.setenv(variable, text)
    head = {"in the script": line, "behind a comment": f"#SBATCH --nodes=1 # {line.removeprefix('#SBATCH ')}"}
    script = tmp_path / "job.sbatch"
    script.write_text(f"#!/bin/bash\n{head.get(where, '')}\n#SBATCH --comment='odd\necho {line}\n")
    slurm._say_once.cache_clear()
    slurm.sbatch(script, args=line.removeprefix("#SBATCH ").split() if where == "as an argument" else ())
    seen = dict(text.partition("=")[::2] for text in (tmp_path / "seen").read_text().splitlines())
    open_ = where in ("open", "behind a comment")
    assert {k: v for k, v in seen.items() if k.startswith("SBATCH_")} == ({name: value} if open_ else {})
    said = capfd.readouterr().err
    assert (f"{name}={value} in your shell is not used: the job has -" in said) is not open_
    for other, text in NOT_OURS.items():
        assert f"{other}={text} in your shell is not used" in said


def test_what_salloc_was_told_by_the_shell_stays_too() -> None:
    told = {"SALLOC_ACCOUNT": "a", "SALLOC_PARTITION": "p", "SALLOC_TIMELIMIT": "3", "SRUN_DEBUG": "4"}
    assert slurm.environment(told) == {"SALLOC_ACCOUNT": "a", "SALLOC_PARTITION": "p"}


def test_a_refusal_says_what_slurm_said_and_where_to_look_without_secrets(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    refusal = "sbatch: error: invalid partition specified: gpu at s3://u:hunter2@host/x"
    _command(tmp_path, "sbatch", f"echo '{refusal}' >&2; exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"invalid partition specified: gpu at .*\*\*\*.* Check the partition"
    ) as error:
        slurm.sbatch(Path("a.sbatch"))
    assert "hunter2" not in str(error.value)


def test_a_number_is_found_among_what_a_site_prints_at_a_submission(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _command(tmp_path, "sbatch", "echo 'Welcome: 3 news'; echo '4711;alpha'")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert slurm.sbatch(Path("a.sbatch")).job == "4711"
    _command(tmp_path, "sbatch", "echo 'queued for review'")
    with pytest.raises(RunError, match="printed no job number"):
        slurm.sbatch(Path("a.sbatch"))
