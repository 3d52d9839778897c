"""Names of the files and folders of a run's directory, and of what lies beside it: here and nowhere else. No torch.

run.json          identity of the run, and of a branch its lineage; written once
recipe.yaml       the resolved recipe that the run began with; data.takedown in it is that of the last list
history-*.jsonl   what became of the run, an event a line, a file a class of writers; owner.json and alive.json beside
                  them, and the requests: all of these are written and read by core/run/history alone
  history-ranks.jsonl         every attempt's beginning and end as its ranks saw it
  history-supervisor.jsonl    the same as the supervisor saw it: why each ended, what it gained, lost and cost
  history-people.jsonl        jobs that were submitted or put back into the queue
  history-evaluations.jsonl   what evaluators found after training
owner.json        the attempt that may write here, with its fencing token; an older one that still runs is superseded
alive.json        heartbeat: how far the running attempt is and where its time went, every few seconds; the measure of
                  what a crash cost
cancel            made by a person: the job that is not to come back
request           made by a person: `save`, or `stop` for save and stop; removed when it is served
job/              what the job was submitted with: recipe.yaml, cluster.yaml, the script
logs/             what ranks and supervisors print, a folder an attempt
plugins/          copies of the plug-in files that the recipe names, as they were when the run began
order/            ordinals of every step's examples, where the recipe asks for them
stacks/           where every thread stood when a rank hung, and the last collectives of each
out-of-memory/    what a GPU's memory held when it did not suffice, a file a rank
profile/          traces and memory snapshots of steps that were profiled
tb/               event files
evaluations/      what evaluators wrote beside their values, such as pictures: step-0000001000/, in it a folder a set
checkpoints/      step-0000001000/, each complete once its marker is there; see checkpoints.py
quarantine.jsonl  samples that could not be decoded
nonfinite.jsonl   steps whose loss or gradient was not finite, with the keys of their examples
lock              held while an attempt runs

status.json, attempts.jsonl, ledger.jsonl, job.json and evaluated.json are of a former version: they are read, as what
came before the history.
"""

from __future__ import annotations

import re

RUN = "run.json"
RECIPE = "recipe.yaml"
BY_RANKS = "history-ranks.jsonl"
BY_SUPERVISOR = "history-supervisor.jsonl"
BY_PEOPLE = "history-people.jsonl"
BY_EVALUATORS = "history-evaluations.jsonl"
OWNER = "owner.json"
HEARTBEAT = "alive.json"
CANCEL = "cancel"
REQUEST = "request"
REQUESTS = frozenset({"save", "stop"})
"""What the file REQUEST may say."""
JOB_FOLDER = "job"
CLUSTER = "cluster.yaml"
LOGS = "logs"
BATCH_LOG = "batch.log"
"""In LOGS: what the supervisor prints, all attempts."""
PLUGINS = "plugins"
ORDER = "order"
STACKS = "stacks"
OUT_OF_MEMORY = "out-of-memory"
PROFILE = "profile"
EVENTS = "tb"
EVALUATIONS = "evaluations"
CHECKPOINTS = "checkpoints"
QUARANTINE = "quarantine.jsonl"
NONFINITE = "nonfinite.jsonl"
LOCK = "lock"

FORMER_STATUS = "status.json"
FORMER_ATTEMPTS = "attempts.jsonl"
FORMER_LEDGER = "ledger.jsonl"
FORMER_JOB = "job.json"
FORMER_EVALUATED = "evaluated.json"

HISTORY = (BY_RANKS, BY_SUPERVISOR, BY_PEOPLE, BY_EVALUATORS)
"""The record of a run, as far as it only grows; a file that is not there has no event yet."""
FORMER = (FORMER_STATUS, FORMER_ATTEMPTS, FORMER_LEDGER, FORMER_JOB, FORMER_EVALUATED)
"""What a former version wrote in place of HISTORY."""

CARRIED_FOLDERS = {EVENTS: 1, PLUGINS: 1, EVALUATIONS: 3}
"""How deep the files in each lie: of EVALUATIONS in a step's folder, and a set's in that."""
CARRIED = (RUN, RECIPE, PLUGINS, EVENTS, EVALUATIONS, QUARANTINE, NONFINITE, *FORMER, *HISTORY, HEARTBEAT)
"""What `checkpoint.remote` holds beside the checkpoints, in the order it is sent; no links."""
MADE_ANEW = frozenset({RECIPE, PLUGINS})
"""Of these, what is not brought back: it holds paths, and is written anew from the recipe."""

BAD_NODES = ".bad-nodes.jsonl"
"""Beside the runs: the nodes that jobs stay away from."""

MARKS_OF_A_RUN = frozenset({RUN, *HISTORY[:3], *FORMER[:4]})
"""A directory that holds any of these is a run's."""

SILENT_S = 90.0
"""After so long without a heartbeat a run that should train counts as silent. One comes every two seconds, but a
network's file system may show it to another machine a minute late."""


def safe_name(name: str) -> str:
    """A name for directories and Slurm's queue: blanks, quotes and the like become dashes."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.") or "run"


def is_plain_name(name: str) -> bool:
    """Whether a name that was read from data, such as a log, may become part of a path: one folder's, and no other."""
    plain = name.isprintable() and name == name.strip() and "/" not in name and not name.startswith((".", "-", "~"))
    return plain and 0 < len(name.encode(errors="replace")) <= 200


def run_folder(name: str, recipe_hash: str) -> str:
    """Name of a run's directory where nobody gives one: NAME-HASH, so that the same recipe resumes where it was."""
    return f"{safe_name(name)}-{recipe_hash[:8]}"


def attempt_folder(attempt: int) -> str:
    """Name of an attempt's folder in LOGS."""
    return f"attempt-{attempt:04d}"


def rank_log(rank: int | str) -> str:
    """Name of a rank's log in an attempt's folder; also as a pattern, where the rank is srun's %t."""
    return f"rank-{rank}.log"
