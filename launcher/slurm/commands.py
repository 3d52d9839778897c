"""Slurm's commands. The only module that calls them; no shell, plain formats, Slurm's own message in every error."""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shutil
import subprocess
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from launcher.slurm.choices import is_open, not_used, option_names, options_of
from launcher.slurm.parse import (
    ENDED,
    SACCT_FIELDS,
    SQUEUE_FORMAT,
    Job,
    parse_addresses,
    parse_config,
    parse_nodes,
    parse_sacct,
    parse_show_jobs,
    parse_squeue,
    parse_time,
    whole_number,
)
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.files import redact
from vit_dist.core.log import log
from vit_dist.core.run.records import is_job_number

__all__ = ["ENDED", "Job", "NoSlurmError", "SlurmAwayError", "Submission"]

USUAL_ARRAY = 1001
"""MaxArraySize where nobody has set it."""
PATIENCE_S = 20.0
"""How long a command is tried again while the controller does not answer."""
_COMMAND_S = 90.0
_KEPT = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT", "SLURM_DEBUG_FLAGS"})
_FOREIGN = ("SLURM_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SCONTROL_", "SACCT_", "SCANCEL_", "SINFO_", "PMIX_")
_AWAY = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Slurm backup controller in standby mode",
    "slurmctld is not responding",
    "Transport endpoint is not connected",
    "Slurm temporarily unable to accept job",
    "Connection refused",
)
_HINTS = (
    ("invalid partition", "partition: name one that `sinfo` lists in the cluster file"),
    ("account", "account: `sacctmgr show assoc user=$USER` lists yours, where accounts are kept"),
    ("qos", "qos: `sacctmgr show assoc user=$USER format=account,qos` lists yours"),
    ("reservation", "reservation: `scontrol show reservation` lists them"),
    ("time limit", "time limit: `sinfo -o '%P %l'` lists the partitions' limits"),
    ("node configuration is not available", "size: no node has so many GPUs, CPUs or so much memory: see `sinfo -Nel`"),
    ("more processors", "size: more nodes or CPUs than the partition has: see `sinfo`"),
    ("invalid feature", "constraint: `sinfo -o '%f'` lists the features of nodes"),
    ("generic resource", "GPUs: their kind or number is not known here: `sinfo -o '%G'` lists them"),
)


class NoSlurmError(ConfigError):
    """Slurm's commands are not on the PATH, or know of no cluster."""


class SlurmAwayError(RunError):
    """The controller did not answer, however often it was asked."""


@dataclass(frozen=True)
class Submission:
    """What `sbatch` answered.

    Attributes:
        job: the number of the job; empty where it was only asked whether it would be accepted.
        start: when it is expected to start, where that was asked; seconds since 1970.
        text: what was printed.
    """

    job: str
    start: float | None
    text: str


def available() -> bool:
    """True where Slurm's commands are on the PATH. They may still know of no cluster."""
    return shutil.which("squeue") is not None


def environment(environ: Mapping[str, str] | None = None, given: Collection[str] = ()) -> dict[str, str]:
    """The environment for Slurm's commands: nothing of a surrounding job or of a person's formats gets through.

    Inside a job SLURM_* would become options of the job that is submitted; SQUEUE_FORMAT and its like change what the
    commands print. What a person has chosen by SBATCH_ACCOUNT and its like (choices.py) stays.

    Args:
        environ: of this process.
        given: options of the submission, whose choices are no longer open.
    """
    environ = os.environ if environ is None else environ
    return {k: v for k, v in environ.items() if k in _KEPT or not k.startswith(_FOREIGN) or is_open(k, given)}


def sbatch(script: Path, *, args: Sequence[str] = (), test_only: bool = False) -> Submission:
    """Submit a script, or ask whether it would be accepted.

    Args:
        script: path of it.
        args: options of sbatch, each as one word (`--dependency=afterok:12`); they override those of the script.
        test_only: do not submit.

    Raises:
        ConfigError: refused; with Slurm's words and what to look at.
        NoSlurmError, SlurmAwayError: no Slurm here, or no answer.
    """
    command = ["sbatch", "--test-only" if test_only else "--parsable", *args, str(script)]
    given = option_names(args)
    # One that cannot be read sbatch itself refuses, in its own words.
    with contextlib.suppress(OSError):
        given |= options_of(script.read_text())
    done = _call(command, env=environment(given=given))
    text = (done.stdout + done.stderr).strip()
    if done.returncode:
        raise ConfigError(f"{script}: Slurm does not accept this job: {_words(text)}{_hint(text)}")
    if test_only:
        found = re.search(r"to start at (\S+)", text)
        return Submission("", parse_time(found[1]) if found else None, text)
    # `--parsable` prints `number` or `number;cluster`; a site's filter may print lines of its own before.
    number = re.search(r"^(\d+)(?:;\S+)?\s*$", done.stdout, re.MULTILINE)
    if number is None:
        raise RunError(
            f"{script}: sbatch printed no job number but {_words(text)!r}; look for the job with `squeue --me`"
        )
    for name, why in not_used(os.environ, given).items():
        _say_once(f"  {name}={os.environ[name]} in your shell is not used: {why}")
    return Submission(number[1], None, text)


@cache
def _say_once(line: str) -> None:
    # A study submits many scripts.
    log(line)


def job(job_id: str, *, patience_s: float = PATIENCE_S) -> Job | None:
    """One job (`123`) or element of an array (`120_3`), with all that is known of it; None once Slurm dropped it."""
    check_id(job_id)
    done = _call(["scontrol", "-o", "show", "job", job_id], patience_s=patience_s)
    if done.returncode:
        # An array's element that was cancelled before it began is in no list: `Job 5_2 not found`.
        if "Invalid job id" in done.stderr or re.search(r"^Job \S+ not found", done.stderr + done.stdout, re.MULTILINE):
            return None
        raise _failed(done, f"job {job_id} cannot be shown")
    shown = parse_show_jobs(done.stdout)
    # The number of an array is also that of its last element, and elements that have not begun share one record: the
    # one that bears exactly this number goes first.
    exact = (j for j in shown if job_id in (j.id, j.label))
    return next(exact, None) or next((j for j in shown if j.matches(job_id)), None)


def jobs(ids: Collection[str] | None = None, *, user: str | None = None, patience_s: float = PATIENCE_S) -> list[Job]:
    """Jobs that Slurm still knows, with one call; those that ended lately are among them.

    Args:
        ids: of these jobs; an array's number stands for all its elements.
        user: or of this person; without both, of the one who asks.
        patience_s: how long to try while the controller does not answer.
    """
    if ids is not None and not ids:
        return []
    command = ["squeue", "-h", "-a", "-t", "all", "-o", SQUEUE_FORMAT]
    # More would not fit into a command line everywhere; then all jobs are asked for, and sorted out below.
    few = ids is not None and len(ids) <= 1000
    if ids is not None and few:
        for one in ids:
            check_id(one)
        command += ["-j", ",".join(sorted(ids))]
    elif ids is None:
        command += ["-u", user or getpass.getuser()]
    done = _call(command, patience_s=patience_s)
    # A job that Slurm has dropped is in no list any more: that is an answer, and no error.
    if done.returncode and "Invalid job id" not in done.stderr:
        raise _failed(done, "the queue cannot be read")
    listed = parse_squeue(done.stdout)
    if ids is None:
        return listed
    # By set first: matching every job with every id would be slow for a study of thousands.
    exact = {*ids}
    return [j for j in listed if {j.id, j.array_id, j.label} & exact or any(j.matches(one) for one in exact)]


def accounting(job_id: str, *, patience_s: float = PATIENCE_S) -> list[Job] | None:
    """Each time a job ran, oldest first, from Slurm's accounting; None where there is none."""
    check_id(job_id)
    if shutil.which("sacct") is None:
        return None
    # -D: a requeued job has a line for each time it ran. Not tried again: accounting is a nicety, and has its own
    # daemon.
    done = _call(
        ["sacct", "-n", "-P", "-X", "-D", "-j", job_id, "-o", SACCT_FIELDS], patience_s=patience_s, retry=False
    )
    if done.returncode or "accounting storage is disabled" in done.stderr:
        return None
    return parse_sacct(done.stdout)


def scancel(job_id: str) -> None:
    """Cancel a job. One that has ended already is no error."""
    check_id(job_id)
    done = _call(["scancel", job_id])
    ended = ("already completed", "Job/step already completing or completed", "Invalid job id")
    if done.returncode and not any(words in done.stderr for words in ended):
        raise _failed(done, f"job {job_id} cannot be cancelled")


def requeue(job_id: str) -> None:
    """Put a running or ended job back into the queue."""
    _control(job_id, "requeue")


def release(job_id: str) -> None:
    """Let a held job start."""
    _control(job_id, "release")


def update(job_id: str, **fields: str) -> None:
    """Change a job: `update("12", StartTime="now", ExcNodeList="n3")`."""
    check_id(job_id)
    words = [f"{key}={value}" for key, value in fields.items()]
    done = _call(["scontrol", "update", f"JobId={job_id}", *words])
    if done.returncode:
        raise _failed(done, f"job {job_id} cannot be changed ({' '.join(words)})")


def hostnames(nodelist: str) -> list[str]:
    """`n[1-3,7]` -> n1, n2, n3, n7. Asks no controller."""
    if not nodelist or not re.search(r"[\[,]", nodelist):
        return [nodelist] if nodelist else []
    done = _call(["scontrol", "show", "hostnames", nodelist])
    if done.returncode:
        raise _failed(done, f"the list of nodes {nodelist!r} cannot be read")
    return done.stdout.split()


def node_states(nodelist: str = "", *, patience_s: float = PATIENCE_S) -> Mapping[str, tuple[str, str]]:
    """Node -> (state, reason) of these nodes, or of all; a `*` after a state means that the node does not answer."""
    only = ["-n", nodelist] if nodelist else []
    done = _call(["sinfo", "-h", "-a", "-N", "-o", "%N|%T|%E", *only], patience_s=patience_s)
    if done.returncode:
        raise _failed(done, f"the nodes {nodelist!r} cannot be shown")
    return parse_nodes(done.stdout)


def node_addresses(nodelist: str, *, patience_s: float = PATIENCE_S) -> dict[str, tuple[str, int]]:
    """Node -> address and port of its daemon (6818 where Slurm does not tell)."""
    done = _call(["scontrol", "-o", "show", "node", nodelist], patience_s=patience_s)
    if done.returncode:
        raise _failed(done, f"the nodes {nodelist!r} cannot be shown")
    return parse_addresses(done.stdout)


def down_nodes(nodelist: str = "", *, patience_s: float = PATIENCE_S) -> dict[str, str]:
    """Those of the nodes that are down, drained, failing or silent, each with the reason."""
    bad = ("down", "drain", "fail", "error", "unknown", "powered_down")
    return {
        node: f"{state}: {reason}" if reason else state
        for node, (state, reason) in node_states(nodelist, patience_s=patience_s).items()
        if state.endswith("*") or state.lower().startswith(bad)
    }


def version() -> str:
    """`22.05.8`."""
    done = _call(["scontrol", "--version"])
    found = re.search(r"\d+\.\d+[\w.-]*", done.stdout)
    if found is None:
        raise _failed(done, "the version of Slurm cannot be read")
    return found[0]


def config(*, patience_s: float = PATIENCE_S) -> dict[str, str]:
    """Settings of the controller, as `scontrol show config` names them."""
    done = _call(["scontrol", "show", "config"], patience_s=patience_s)
    if done.returncode:
        raise _failed(done, "the configuration cannot be shown")
    return parse_config(done.stdout)


def check_id(job_id: str) -> None:
    """Raise unless this is the number of a job, or of an array's element.

    Raises:
        ConfigError: anything else.
    """
    if not is_job_number(job_id):
        raise ConfigError(f"job {job_id!r}: not the number of a Slurm job; it looks like 123, or 120_3 in an array")


def _control(job_id: str, verb: str) -> None:
    check_id(job_id)
    done = _call(["scontrol", verb, job_id])
    if done.returncode:
        raise _failed(done, f"job {job_id}: {verb} is refused")


def _call(
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    patience_s: float = PATIENCE_S,
    retry: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run one command; again, for some seconds, while the controller is away.

    Only what Slurm reports before it has done anything is tried again: to submit or requeue twice would be wrong. It is
    the answer that decides here, not an exception, so this loop is its own.
    """
    deadline, pause = time.monotonic() + patience_s, 0.5
    # SLURM_TIME_FORMAT: seconds since 1970 from every command and version, whatever the node's time zone.
    env = {**environment(), "SLURM_TIME_FORMAT": "%s"} if env is None else env
    while True:
        done = _once(command, env)
        away = done.returncode != 0 and any(words in done.stderr for words in _AWAY)
        if not away or not retry:
            return done
        if time.monotonic() + pause > deadline:
            raise SlurmAwayError(
                f"{command[0]}: Slurm's controller does not answer: {_words(done.stderr)}; see `scontrol ping`, and "
                "try again when it is back"
            )
        time.sleep(pause)
        pause = min(4.0, 2 * pause)


def _once(command: Sequence[str], env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            list(command),
            env=dict(env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_COMMAND_S,
            check=False,
        )
    except FileNotFoundError:
        raise NoSlurmError(
            f"{command[0]}: not on the PATH, so there is no Slurm here; log in where Slurm is (a login node), load its "
            "module, or train on this machine with `vit-dist run`"
        ) from None
    except subprocess.TimeoutExpired:
        raise SlurmAwayError(f"{command[0]}: no answer within {_COMMAND_S:.0f} s; see `scontrol ping`") from None
    except OSError as error:
        raise RunError(f"{command[0]}: cannot be started: {error.strerror}") from None
    if done.returncode and "Could not establish a configuration source" in done.stderr:
        raise NoSlurmError(
            f"{command[0]}: Slurm is installed but knows of no cluster here (no slurm.conf); set SLURM_CONF, or log in "
            "where Slurm is set up"
        )
    return done


def _failed(done: subprocess.CompletedProcess[str], what: str) -> RunError:
    text = done.stderr.strip() or done.stdout.strip()
    return RunError(f"{what}: {_words(text) or f'{done.args[0]} ended with exit code {done.returncode}'}")


def _words(text: str) -> str:
    """Slurm's message as one line, without the name of the command before each."""
    lines = (re.sub(r"^\w+: (error: |fatal: )?", "", line.strip()) for line in text.splitlines())
    return redact("; ".join(line for line in dict.fromkeys(lines) if line))


def _hint(text: str) -> str:
    lowered = text.lower()
    return next((f". Check the {hint}" for words, hint in _HINTS if words in lowered), "")


def largest_array() -> int:
    """How many elements this Slurm allows in an array.

    Raises:
        RunError: none at all.
    """
    setting = whole_number(config().get("MaxArraySize", ""))
    size = USUAL_ARRAY if setting is None else setting
    if size < 2:
        raise RunError("this Slurm allows no arrays (MaxArraySize); start the parts as jobs of your own")
    return size
