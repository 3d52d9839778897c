"""`vit-dist`: finds the verb's module, and prints its errors as one paragraph."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from pathlib import Path
from typing import NoReturn

from vit_dist import __version__

# verb: (module under vit_dist.cli, what it does)
VERBS = {
    "config": ("config", "print a resolved recipe and its hash"),
    "data": ("data", "pack images, index tars, look at datasets and their order"),
    "models": ("models", "list models and their costs, read and write weights"),
    "compare": ("compare", "models side by side: parameters, FLOPs, memory, speed, cost"),
    "train": ("train", "train a recipe on this machine, or as one rank of a job"),
    "run": ("run", "train a recipe here, starting again after failures, until it is done"),
    "submit": ("submit", "train a recipe as a Slurm job that survives time limits, preemption and dead nodes"),
    "supervise": ("supervise", "the last line of a job script: starts the ranks, queues the job again"),
    "status": ("runs.status", "how a run stands, or all runs in a table"),
    "logs": ("runs.logs", "what a run's ranks have printed, and the error that came first"),
    "checkpoint": ("runs.checkpoint", "ask a running run for a checkpoint"),
    "stop": ("runs.stop", "let a run save and end"),
    "cancel": ("runs.cancel", "end a run's job for good"),
    "requeue": ("runs.requeue", "put a run's job back into the queue, away from a node if wanted"),
    "resume": ("runs.resume", "resume a run that has ended, perhaps on another number of nodes"),
    "branch": ("branch", "a new run from weights, optimizer and position of another run's checkpoint"),
    "list": ("list", "names of runs, recipes, clusters, studies, datasets and plug-ins"),
    "verify-resume": (
        "verify_resume",
        "prove on this machine that a recipe survives kills and other numbers of processes",
    ),
    "doctor": ("doctor", "check this machine, Slurm, files and data, and say what to do about them"),
    "preflight": ("preflight", "test the nodes of an allocation, or this machine, before training does"),
    "finetune": ("finetune", "fine-tune pretrained weights on another set, at the best of a grid of learning rates"),
    "evaluate": ("evaluate", "evaluate a trained run: its newest checkpoint, into its own log"),
    "inspect": ("inspect", "look inside a trained model: attention, positions, filters, receptive fields"),
    "predict": ("predict", "labels with probabilities for images, by a run, a checkpoint or weights of any form"),
    "study": ("study", "train a grid of recipes and draw the scaling curves"),
}

_HELP = """usage: vit-dist VERB ...

Pretrain ViT, BiT and hybrid models on your own images, and see how they scale with data.

verbs:
{verbs}

  vit-dist VERB --help       what a verb takes, with examples
  vit-dist --version

a first run:
  vit-dist data pack IMAGES/ shards/            a folder per class -> shuffled tars and a manifest
  vit-dist train demo data.train=shards/manifest.json data.val="" data.num_classes=10 --nproc 2
  tensorboard --logdir runs/
"""


def main(argv: list[str] | None = None) -> int:
    """Run one verb. Returns the exit code: 0, 1 (failed), 2 (asked for something impossible), 130 (interrupted)."""
    from vit_dist.core.exit_codes import FAILED
    from vit_dist.core.terminal import OutputError, give_up

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(arguments)
        finally:
            # Here, where what goes wrong can still be said.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python would complain again while closing stdout.
        give_up(sys.stdout)
        return 0
    except OutputError as error:
        _say(f"vit-dist: error: {error}")
        return FAILED
    except KeyboardInterrupt:
        from vit_dist.core.exit_codes import INTERRUPTED

        _say(" ".join(["vit-dist", *arguments[:1]]) + ": Ctrl-C (SIGINT): interrupted")
        return INTERRUPTED


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(_HELP.format(verbs="\n".join(f"  {verb:<14} {what}" for verb, (_, what) in VERBS.items())), end="")  # noqa: T201
        return 0 if arguments else 2
    if arguments[0] in {"-V", "--version"}:
        print(f"vit-dist {__version__}")  # noqa: T201
        return 0
    from vit_dist.core.errors import VitDistError, did_you_mean
    from vit_dist.core.exit_codes import FAILED

    verb, rest = arguments[0], arguments[1:]
    if verb not in VERBS:
        sys.stderr.write(f"vit-dist: unknown verb {verb!r}{did_you_mean(verb, VERBS)}\n")
        return 2
    module = importlib.import_module(f"vit_dist.cli.{VERBS[verb][0]}")
    try:
        return int(module.main(rest))
    except VitDistError as error:
        _say(f"vit-dist {verb}: error: {error}")
        return error.exit_code
    except OSError as error:
        from vit_dist.core.store_errors import disk_problem

        # Writers name their file themselves. This is of scratch files, such as those that a library makes.
        problem = disk_problem(error)
        if not problem:
            raise
        _say(f"vit-dist {verb}: error: {f'{error.filename}: ' if error.filename else ''}{problem}")
        return FAILED


def _say(message: str) -> None:
    """Print an error, once: ranks of one launcher that meet the same one leave it to the first."""
    from vit_dist.core.log import ERROR, log, log_to_file

    scratch = os.environ.get("VIT_DIST_SCRATCH")
    if scratch:
        name = f"said-{hashlib.sha256(message.encode()).hexdigest()[:16]}"
        try:
            os.close(os.open(Path(scratch) / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            log_to_file(message, ERROR)
            return
        except OSError:
            pass  # better said twice than not at all
    log(message, ERROR)


def entry() -> None:
    """What the console script and `python -m` call: `main`, and an end that cannot fail."""
    from vit_dist.core.process import die_with_parent
    from vit_dist.core.terminal import guard_streams

    guard_streams()
    die_with_parent()
    leave(main())


def leave(code: int) -> NoReturn:
    """End the process without tearing torch down.

    After a clean end of training, torch's C++ threads now and then abort the process while the interpreter is torn
    down ("terminate called without an active exception"), which would turn a finished rank into a failed one. All our
    files are closed by then.
    """
    if "torch" in sys.modules:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    entry()
