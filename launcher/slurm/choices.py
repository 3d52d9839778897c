"""What a person has chosen for sbatch and salloc in the shell, as many sites ask for: export SBATCH_ACCOUNT=project.

Such a variable holds where a script leaves that choice open. Where it does not the script's own line holds, though
sbatch itself would let the variable win: a job must not run elsewhere than its cluster file says.
"""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping

_PREFIXES = ("SBATCH_", "SALLOC_")
_MEMORY = ("--mem", "--mem-per-cpu", "--mem-per-gpu")
# What follows the prefix -> the options that make the same choice.
_CHOICES = {
    "ACCOUNT": ("--account", "-A"),
    "PARTITION": ("--partition", "-p"),
    "QOS": ("--qos", "-q"),
    "CONSTRAINT": ("--constraint", "-C"),
    "RESERVATION": ("--reservation",),
    "MEM_PER_NODE": _MEMORY,
    "MEM_PER_CPU": _MEMORY,
    "MEM_PER_GPU": _MEMORY,
    "WCKEY": ("--wckey",),
}


def is_open(variable: str, given: Collection[str]) -> bool:
    """Whether a variable makes a choice that is left open beside these options."""
    prefix = next((p for p in _PREFIXES if variable.startswith(p)), None)
    options = _CHOICES.get(variable.removeprefix(prefix)) if prefix else None
    return options is not None and not any(option in given for option in options)


def options_of(script: str) -> set[str]:
    """Names of the options in the head of a job script: `--account`, `-p`."""
    heads = (line.removeprefix("#SBATCH") for line in script.splitlines() if line.startswith("#SBATCH"))
    return option_names(word for head in heads for word in _words(head))


def _words(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    # Slurm reads quotes its own way: whatever it makes of an odd one, the option's name is the first word.
    except ValueError:
        return line.split()[:1]


def option_names(words: Iterable[str]) -> set[str]:
    """The options among words, without their values: `--account=a` -> `--account`, `-pdebug` -> `-p`."""
    return {word.partition("=")[0] if word.startswith("--") else word[:2] for word in words if word.startswith("-")}


def not_used(environ: Mapping[str, str], given: Collection[str]) -> dict[str, str]:
    """Variables of sbatch that a submission does not use beside these options, each with why."""
    found = {}
    for name in sorted(environ):
        if name.startswith("SBATCH_") and not is_open(name, given):
            options = _CHOICES.get(name.removeprefix("SBATCH_"), ())
            own = next((option for option in options if option in given), "")
            found[name] = f"the job has {own} of its own" if own else "the cluster file says what a job asks for"
    return found
