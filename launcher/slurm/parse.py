"""What Slurm's commands print, as values. Only their plain formats: JSON output moves from version to version.

Whatever is printed, and whatever jobs, people and nodes are called, is read in a time that grows with its length alone,
to numbers and times within bounds; what is none of a job, a node or a number is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from vit_dist.core.run.records import is_job_number
from vit_dist.core.small_files import is_time

ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"}
    | {"PREEMPTED", "RECONFIG_FAIL", "REVOKED", "TIMEOUT"}
)
"""States that a job does not leave by itself."""
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"})
"""States of a job that waits for nodes, for a time or for a person."""
SQUEUE_FORMAT = "%A|%F|%K|%T|%D|%N|%B|%V|%S|%e|%l|%P|%u|%r"
"""One job a line for `squeue -o`. The reason, the only free text, stands last; a job's name is not asked for."""
SACCT_FIELDS = "JobIDRaw,JobID,State,ExitCode,NNodes,NodeList,Submit,Start,End,TimelimitRaw,Partition,User"
"""One job a line for `sacct -P -X -o`; the names exist since Slurm 17.11."""

_NOTHING = frozenset({"", "(null)", "N/A", "None", "NONE", "Unknown", "None assigned"})
_KEY = re.compile(r"(?:^|\s)([A-Z][\w/:]*)=")
# Names of people and groups may hold blanks and brackets (`domain users(513)`), but no further key.
_PERSON = r"(?:(?!\s[A-Z][\w/:]*=)[^\n])*\(\d+\)"
_OWNED = rf"\sUserId={_PERSON}\sGroupId={_PERSON}\s"
_OWNER = re.compile(_OWNED)
_NAME = re.compile(r"\sJobName=")
_MOST_DIGITS = 15
_SLURMD_PORT = 6818


@dataclass(frozen=True)
class Job:
    """One job, or one element of an array, as Slurm shows it.

    Attributes:
        id: the job's own number; for an array's element too.
        state: PENDING, RUNNING, COMPLETING, COMPLETED, ...
        reason: why it waits or ended, in Slurm's word; empty where there is none.
        nodes: how many it has or asks for.
        nodelist: its nodes, folded as Slurm writes them (`n[1-3]`); empty while it waits.
        batch_host: the node its script runs on.
        submitted, start, end: seconds since 1970. While it waits, `start` is expected; while it runs, `end` is its time
            limit's.
        time_limit: seconds; None where there is none, or the command does not print it.
        restarts: how often it was requeued; None where the command does not print it.
        exit_code, exit_signal: of the batch script.
        array_id, array_task: for an array's elements: number of the array, and which element ("3", "4-9%2").
        requeue: Slurm may put it back into the queue; None where the command does not print it.
        excluded: nodes it must not get, folded.
        preempted: since when it makes room for another job, in its grace time; None while it does not.
    """

    id: str
    state: str
    reason: str = ""
    nodes: int = 0
    nodelist: str = ""
    batch_host: str = ""
    submitted: float | None = None
    start: float | None = None
    end: float | None = None
    time_limit: float | None = None
    restarts: int | None = None
    partition: str = ""
    user: str = ""
    exit_code: int = 0
    exit_signal: int = 0
    array_id: str = ""
    array_task: str = ""
    requeue: bool | None = None
    excluded: str = ""
    name: str = ""
    preempted: float | None = None

    @property
    def ended(self) -> bool:
        """It will not run again by itself."""
        return self.state in ENDED

    @property
    def waiting(self) -> bool:
        """It is in the queue and has no nodes."""
        return self.state in WAITING

    @property
    def running(self) -> bool:
        """It has nodes: runs, begins or ends."""
        return not self.ended and not self.waiting

    @property
    def label(self) -> str:
        """How a person names it: `123`, or `120_3` for an array's element."""
        return f"{self.array_id}_{self.array_task}" if self.array_task else self.id

    def matches(self, job_id: str) -> bool:
        """Whether a number means this job: its own, its array's, or that of an element that waits among others."""
        if job_id in (self.id, self.label, self.array_id):
            return True
        array, _, task = job_id.partition("_")
        number = whole_number(task)
        return number is not None and array == self.array_id and _among(number, self.array_task)


def whole_number(text: str) -> int | None:
    """A number from 0 on of up to 15 digits; None for anything else."""
    # str.isdigit is true of digits that int() refuses, such as a raised 2, and of those of other scripts.
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


def parse_time(text: str) -> float | None:
    """Seconds since 1970 of a time stamp (`2026-11-22T18:50:00`, local time, or plain seconds); None for `N/A`."""
    if text in _NOTHING:
        return None
    seconds: float | None = whole_number(text)
    if seconds is None:
        try:
            seconds = datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            return None
    return float(seconds) if seconds and is_time(seconds) else None


def parse_duration(text: str) -> float | None:
    """Seconds of `1-02:03:04`, `2:03:04`, `03:04` or `INVALID`, `UNLIMITED` (None)."""
    match = re.fullmatch(r"(?:([0-9]{1,8})-)?(?:([0-9]{1,8}):)?([0-9]{1,8}):([0-9]{1,8})(?:\.[0-9]+)?", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    span = float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    return span if is_time(span) else None


def parse_fields(line: str) -> dict[str, str]:
    """`Key=value Key=value ...` of `scontrol -o show`, where values may hold blanks; the first of a key counts."""
    keys = list(_KEY.finditer(line))
    ends = [*(key.start() for key in keys[1:]), len(line)]
    fields: dict[str, str] = {}
    # A line without any key, such as an error's, has one end and no key.
    for key, end in zip(keys, ends, strict=False):
        # The first, for a comment or a path further on may hold what looks like one.
        fields.setdefault(key[1], line[key.end() : end].strip())
    return fields


def parse_show_jobs(text: str) -> list[Job]:
    """Jobs of `scontrol -o show job`."""
    # A name or a comment may hold line breaks, and after them what looks like the beginning of a job: a piece that has
    # no owner is the first part of one.
    records: list[list[str]] = []
    owned = True
    for piece in re.split(r"\n(?=JobId=[0-9]+ (?:ArrayJobId|HetJobId|JobName)=)", text.strip()):
        if owned:
            records.append([])
        records[-1].append(piece)
        owned = _OWNER.search(piece) is not None
    lines = ("\n".join(pieces) for pieces in records)
    return [job for line in lines if line.startswith("JobId=") and (job := _shown(line)) is not None]


def _shown(line: str) -> Job | None:
    begin = _NAME.search(line)
    owner = _OWNER.search(line, begin.end()) if begin is not None else None
    name = ""
    # The job's name goes first: a person may call a job `x JobState=FAILED`.
    if begin is not None and owner is not None:
        name, line = line[begin.end() : owner.start()], line[: begin.start()] + line[owner.start() :]
    fields = {k: v for k, v in parse_fields(line).items() if v not in _NOTHING}
    number = fields.get("JobId", "").partition(" ")[0]
    if not is_job_number(number):
        return None
    exit_code, exit_signal = _exit(fields.get("ExitCode", ""))
    return Job(
        id=number,
        state=_state(fields.get("JobState", "")),
        reason=fields.get("Reason", ""),
        nodes=_int(fields.get("NumNodes", "")),
        nodelist=fields.get("NodeList", ""),
        batch_host=fields.get("BatchHost", ""),
        preempted=parse_time(fields.get("PreemptTime", "")),
        submitted=parse_time(fields.get("SubmitTime", "")),
        start=parse_time(fields.get("StartTime", "")),
        end=parse_time(fields.get("EndTime", "")),
        time_limit=parse_duration(fields.get("TimeLimit", "")),
        restarts=_int(fields["Restarts"]) if "Restarts" in fields else None,
        partition=fields.get("Partition", ""),
        user=fields.get("UserId", "").rpartition("(")[0],
        exit_code=exit_code,
        exit_signal=exit_signal,
        array_id=fields.get("ArrayJobId", ""),
        array_task=fields.get("ArrayTaskId", ""),
        requeue=fields["Requeue"] == "1" if "Requeue" in fields else None,
        excluded=fields.get("ExcNodeList", ""),
        name=name or fields.get("JobName", ""),
    )


def parse_squeue(text: str) -> list[Job]:
    """Jobs of `squeue -h -o SQUEUE_FORMAT`."""
    jobs = []
    for line in text.splitlines():
        values = [value.strip() for value in line.split("|", 13)]
        if len(values) != 14 or not is_job_number(values[0]):
            continue
        values = ["" if value in _NOTHING else value for value in values]
        task = values[2]
        jobs.append(
            Job(
                id=values[0],
                array_id=values[1] if task else "",
                array_task=task,
                state=_state(values[3]),
                nodes=_int(values[4]),
                nodelist=values[5],
                batch_host=values[6],
                submitted=parse_time(values[7]),
                start=parse_time(values[8]),
                end=parse_time(values[9]),
                time_limit=parse_duration(values[10]),
                partition=values[11],
                user=values[12],
                reason=values[13],
            )
        )
    return jobs


def parse_sacct(text: str) -> list[Job]:
    """Jobs of `sacct -n -P -X -D -o SACCT_FIELDS`, a line for each time it ran."""
    jobs = []
    for line in text.splitlines():
        values = ["" if value in _NOTHING else value for value in line.strip().split("|")]
        if len(values) != 12 or not is_job_number(values[0]):
            continue
        exit_code, exit_signal = _exit(values[3])
        array, _, task = values[1].partition("_")
        minutes = whole_number(values[9])
        jobs.append(
            Job(
                id=values[0],
                array_id=array if task else "",
                array_task=task.strip("[]"),
                state=_state(values[2]),
                exit_code=exit_code,
                exit_signal=exit_signal,
                nodes=_int(values[4]),
                nodelist=values[5],
                submitted=parse_time(values[6]),
                start=parse_time(values[7]),
                end=parse_time(values[8]),
                time_limit=minutes * 60.0 if minutes is not None and is_time(minutes * 60) else None,
                partition=values[10],
                user=values[11],
            )
        )
    return jobs


def parse_config(text: str) -> dict[str, str]:
    """Settings of `scontrol show config`."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {key.strip(): value.strip() for key, equals, value in pairs if equals}


def parse_nodes(text: str) -> Mapping[str, tuple[str, str]]:
    """Node -> (state, reason) of `sinfo -h -N -o '%N|%T|%E'`."""
    nodes = {}
    for line in text.splitlines():
        name, _, rest = line.strip().partition("|")
        state, _, reason = rest.partition("|")
        if name and state:
            nodes[name.strip()] = (state.strip(), "" if reason.strip().lower() == "none" else reason.strip())
    return nodes


def parse_addresses(text: str) -> dict[str, tuple[str, int]]:
    """Node -> address and port of its daemon (6818 where Slurm does not tell) of `scontrol -o show node`."""
    addresses = {}
    for line in text.splitlines():
        fields = parse_fields(line)
        name, port = fields.get("NodeName", ""), whole_number(fields.get("Port", "")) or 0
        if name:
            addresses[name] = (fields.get("NodeAddr") or name, port if 0 < port < 65536 else _SLURMD_PORT)
    return addresses


def consecutive(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers, ascending."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _among(task: int, tasks: str) -> bool:
    """Whether `3` is one of `1,3-9:2%4`."""
    for part in tasks.partition("%")[0].split(","):
        match = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?(?::([0-9]{1,9}))?", part)
        if match is not None:
            first, step = int(match[1]), int(match[3] or 1)
            if first <= task <= int(match[2] or first) and step and (task - first) % step == 0:
                return True
    return False


def _state(text: str) -> str:
    # sacct says `CANCELLED by 1000`, and cuts long words short with a plus.
    word = (text.split() or ["UNKNOWN"])[0].upper()
    if word.endswith("+"):
        word = word[:-1] or "UNKNOWN"
        return next((state for state in sorted(ENDED | WAITING) if state.startswith(word)), word)
    return word


def _exit(text: str) -> tuple[int, int]:
    code, _, number = text.partition(":")
    return _int(code), _int(number)


def _int(text: str) -> int:
    # Of a job that waits, scontrol says `NumNodes=1-1`.
    return whole_number(re.split(r"[^0-9]", text, maxsplit=1)[0]) or 0
