"""The history of a run: what became of it and how it stands. All that is asked or written of that goes through here.

    history-*.jsonl   events, a line each (events.py); a file for ranks, supervisors, people, evaluators
    owner.json        the fence: which attempt may write. Replaced whole
    alive.json        heartbeat and progress of the running attempt. Replaced whole, every two seconds
    cancel, request   made by people, with a shell or a verb (requests.py)

**Why a file a class of writers, and not one with a lock.** Ranks, supervisor and people write from different machines
onto a network's file system. Two that append to one file there overwrite each other's lines, and a lock against that
does not work on all of them (mounts without lock services), or is kept for ever by a machine that was cut off. Within
a class one writer follows the other: ranks own the directory one attempt after another, a job has one supervisor. Of
two that live at once all the same, the older is fenced by owner.json, which it looks up before it writes; what such a
meeting could damage is a line, which is left out and found.

**Why no clock orders the events.** Clocks of machines differ. An event carries the number of its attempt, a submission
that of the attempt before it, and within an attempt what comes first is known (events.py: STAGES). So every reader
gets the same state from the same lines (fold.py), whatever the order in which they reached the disk.

**Why the fence is no event.** An attempt that was cut off must find out by one read of a name it knows, which every
file system answers from the server, and what it reads must be whole. A version of before looks there, too.

A committed checkpoint is no event either: its marker says so (checkpoints.py), and a second word could only differ.
"""

from vit_dist.core.run.history.evaluators import evaluated, evaluation, evaluations, newest_evaluations
from vit_dist.core.run.history.events import ACTIONS, CAUSES
from vit_dist.core.run.history.files import (
    TAIL_BYTES,
    beat,
    begin,
    close,
    end,
    failed_to_begin,
    read,
    requeue,
    submitted,
    submitting,
    superseded_by,
    take,
    training,
)
from vit_dist.core.run.history.requests import (
    ask,
    ask_cancel,
    forget,
    is_cancelled,
    pending_request,
    take_request,
    withdraw,
)
from vit_dist.core.run.history.standing import ACTIVE, STANDINGS, JobWord, stands, words_of
from vit_dist.core.run.history.state import Attempt, Progress, State, Status

__all__ = [
    "ACTIONS",
    "ACTIVE",
    "CAUSES",
    "STANDINGS",
    "TAIL_BYTES",
    "Attempt",
    "JobWord",
    "Progress",
    "State",
    "Status",
    "ask",
    "ask_cancel",
    "beat",
    "begin",
    "close",
    "end",
    "evaluated",
    "evaluation",
    "evaluations",
    "failed_to_begin",
    "forget",
    "is_cancelled",
    "newest_evaluations",
    "pending_request",
    "read",
    "requeue",
    "stands",
    "submitted",
    "submitting",
    "superseded_by",
    "take",
    "take_request",
    "training",
    "withdraw",
    "words_of",
]
