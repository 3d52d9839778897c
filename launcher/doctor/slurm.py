"""The doctor's checks of Slurm: whether it is there, and the settings that decide how a run survives."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping

from launcher import bad_nodes
from launcher.doctor.finding import Finding, Subject
from launcher.slurm import commands as slurm
from launcher.slurm.choices import not_used, option_names
from launcher.slurm.cluster import Cluster, slurm_seconds
from launcher.slurm.parse import parse_duration, parse_fields, whole_number
from vit_dist.core.units import counted, format_seconds

_AREA = "Slurm"
_TESTED = (22, 5)
_OLDEST = (20, 11)
_PATIENCE_S = 2.0
_DEAD_NODE_S = 300
_FIELDS = ("partition", "account", "qos", "constraint", "reservation")


def slurm_settings(subject: Subject) -> Iterator[Finding]:
    """Version, controller, settings, the cluster's partition, nodes that are down or on the list of bad ones."""
    if not slurm.available():
        yield Finding(
            _AREA,
            "fail" if subject.cluster else "ok",
            "no Slurm here (its commands are not on the PATH): `vit-dist run` trains on this machine",
            "log in where Slurm is, or load its module" if subject.cluster else "",
        )
        return
    try:
        version, config = slurm.version(), slurm.config(patience_s=_PATIENCE_S)
    except slurm.NoSlurmError as error:
        yield Finding(_AREA, "fail" if subject.cluster else "ok", str(error))
        return
    except slurm.SlurmAwayError as error:
        yield Finding(_AREA, "fail", str(error))
        return
    numbers = tuple(int(n) for n in re.findall(r"[0-9]{1,9}", version)[:2])
    old = numbers < _OLDEST
    inside = f"; this is job {os.environ['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in os.environ else ""
    yield Finding(
        _AREA,
        "warn" if old else "ok",
        f"Slurm {version}, cluster {config.get('ClusterName', '?')}{inside}",
        f"tested with {_TESTED[0]}.{_TESTED[1]:02d}; before {_OLDEST[0]}.{_OLDEST[1]} srun lacks --overlap"
        if old
        else "",
    )
    yield from settings(config)
    if subject.cluster is not None:
        yield from shell_choices(subject.cluster, os.environ)
        yield from _partition(subject.cluster, config)
    yield from _nodes(subject)


def settings(config: Mapping[str, str]) -> Iterator[Finding]:
    """What `scontrol show config` says that matters to a run that is killed, moved or queued again."""

    def value(key: str) -> str:
        return config.get(key, "").strip()

    if value("JobRequeue") == "0":
        yield Finding(_AREA, "ok", "jobs are not requeued by default; ours ask for it (--requeue)")
    dead = parse_seconds(value("SlurmdTimeout"))
    if dead is not None:
        slow = dead > _DEAD_NODE_S or dead == 0
        shown = format_seconds(dead) if dead else "never"
        yield Finding(
            _AREA,
            "warn" if slow else "ok",
            f"a dead node is noticed after: {shown} (SlurmdTimeout)",
            "that long a run waits on its other nodes: ask for a shorter one, or submit with --spares 1"
            if slow
            else "",
        )
    kill = parse_seconds(value("KillWait"))
    if kill is not None:
        yield Finding(_AREA, "ok", f"from TERM to KILL at the time limit: {format_seconds(kill)} (KillWait)")
    yield from _preemption(value("PreemptType"), value("PreemptMode"), value("SlurmctldParameters"))
    accounting = value("AccountingStorageType")
    none = not accounting or accounting.endswith("none") or accounting == "(null)"
    without = "no accounting: what a job was once Slurm forgot it (MinJobAge) is known from the run's history alone"
    yield Finding(_AREA, "ok", without if none else f"accounting: {accounting.rpartition('/')[2]}")
    largest = whole_number(value("MaxArraySize"))
    if largest is not None:
        off = largest <= 1
        yield Finding(
            _AREA,
            "warn" if off else "ok",
            f"arrays of up to {largest:,} elements (MaxArraySize)" if not off else "arrays are switched off",
            "studies and packing submit arrays: ask for MaxArraySize" if off else "larger ones are cut up",
        )
    track = value("ProctrackType").rpartition("/")[2]
    loose = track in {"pgid", "linuxproc"}
    yield Finding(
        _AREA,
        "warn" if loose else "ok",
        f"processes of jobs are tracked by {track or 'an unknown plug-in'} (ProctrackType)",
        "one that starts a session of its own outlives its job: proctrack/cgroup holds it" if loose else "",
    )


def _preemption(kind: str, mode: str, parameters: str) -> Iterator[Finding]:
    if not kind or kind.endswith("none") or kind == "(null)":
        yield Finding(_AREA, "ok", "jobs are not preempted (PreemptType)")
        return
    cancels = "CANCEL" in mode.upper()
    yield Finding(
        _AREA,
        "warn" if cancels else "ok",
        f"jobs may be preempted: {kind.rpartition('/')[2]}, {mode}",
        "a preempted job is cancelled, not requeued: start it again with `vit-dist resume`, or ask for REQUEUE"
        if cancels
        else "",
    )
    sends = "preempt_send_user_signal" in parameters
    yield Finding(
        _AREA,
        "ok",
        "a preempted job gets its warning signal at once (preempt_send_user_signal)"
        if sends
        else "a preempted job gets TERM alone (no preempt_send_user_signal); ranks save on TERM too",
    )


def shell_choices(cluster: Cluster, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Which of sbatch's variables in the shell a job on this cluster takes, and which not."""
    given = option_names([*(f"--{field}" for field in _FIELDS if getattr(cluster, field)), *cluster.sbatch_options])
    given |= {"--mem"} if cluster.memory else set()
    unused = not_used(environ, given)
    for name in sorted(name for name in environ if name.startswith("SBATCH_")):
        shown = f"{name}={environ[name]} in your shell"
        if name in unused:
            yield Finding(
                _AREA,
                "warn",
                f"{shown} is not used: {unused[name]}",
                f"if it should be, say so in the cluster file {cluster.name}, or in its sbatch_options",
            )
        else:
            yield Finding(_AREA, "ok", f"{shown} is used: cluster {cluster.name} leaves that open")


def _partition(cluster: Cluster, config: Mapping[str, str]) -> Iterator[Finding]:
    chosen = cluster.partition or os.environ.get("SBATCH_PARTITION", "")
    names = [name for name in chosen.split(",") if name]
    for name in names or [""]:
        fields = partition_fields(name)
        if fields is None:
            yield Finding(
                _AREA, "fail", f"partition {name!r} of cluster {cluster.name} does not exist", "`sinfo` lists them"
            )
            continue
        name = fields.get("PartitionName", name)
        state = fields.get("State", "UP")
        if state != "UP":
            yield Finding(_AREA, "fail", f"partition {name} is {state}", "jobs wait there for ever: ask the site")
        longest = parse_duration(fields.get("MaxTime", ""))
        if longest is not None and slurm_seconds(cluster.time_limit) > longest:
            yield Finding(
                _AREA,
                "fail",
                f"partition {name} allows {fields['MaxTime']}, cluster {cluster.name} asks for {cluster.time_limit}",
                "shorten time_limit: a run that needs longer is queued again",
            )
        yield from _grace(name, fields, cluster, config)


def _grace(name: str, fields: Mapping[str, str], cluster: Cluster, config: Mapping[str, str]) -> Iterator[Finding]:
    grace = parse_seconds(fields.get("GraceTime", ""))
    mode = fields.get("PreemptMode", config.get("PreemptMode", "OFF"))
    if config.get("PreemptType", "none").endswith("none") or mode.upper().startswith("OFF"):
        return
    declared = float(cluster.preempt_grace.value) if cluster.preempt_grace else None
    if grace is not None and declared is not None and grace < declared:
        yield Finding(
            _AREA,
            "warn",
            f"partition {name} gives a preempted job {format_seconds(grace)}, cluster {cluster.name} says "
            f"{format_seconds(declared)} (preempt_grace)",
            "correct the cluster file",
        )
    elif not grace:
        yield Finding(
            _AREA,
            "warn",
            f"partition {name} gives a preempted job no time to save (GraceTime)",
            "what was trained since the last checkpoint is done again: make checkpoint.every short",
        )
    else:
        yield Finding(_AREA, "ok", f"partition {name} gives a preempted job {format_seconds(grace)} (GraceTime)")


def partition_fields(name: str) -> dict[str, str] | None:
    """Settings of a partition ('': the default one), or None where it does not exist."""
    command = ["scontrol", "-o", "show", "partition", *([name] if name else [])]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=20, check=False, env=slurm.environment(), errors="replace"
    )
    if done.returncode:
        return None
    shown = [parse_fields(line) for line in done.stdout.splitlines() if line.strip()]
    return next((f for f in shown if name or f.get("Default") == "YES"), None)


def parse_seconds(text: str) -> float | None:
    """Seconds of `30 sec`, `30`, or a time such as `00:05:00`."""
    found = re.match(r"([0-9]{1,10})(?:\s*sec.*)?$", text)
    return float(found[1]) if found else parse_duration(text)


def _nodes(subject: Subject) -> Iterator[Finding]:
    states = slurm.node_states(patience_s=_PATIENCE_S)
    down = slurm.down_nodes(patience_s=_PATIENCE_S)
    shown = "; ".join(f"{node} ({why})" for node, why in sorted(down.items())[:5])
    more = f" and {len(down) - 5} more" if len(down) > 5 else ""
    yield Finding(
        _AREA,
        "fail" if states and len(down) == len(states) else "warn" if down else "ok",
        f"{counted(len(states), 'node')}, {len(down)} of them cannot be used{': ' + shown + more if down else ''}",
        "`sinfo -R` tells the reasons" if down else "",
    )
    bad = bad_nodes.active(subject.run_root)
    if bad:
        yield Finding(
            _AREA,
            "warn",
            f"{counted(len(bad), 'node')} on our list of bad ones: {', '.join(list(bad)[:8])}",
            "`vit-dist doctor --bad-nodes` shows why and until when",
        )
