"""Which keys a branch may have other than its trunk, and why the others not: one table for code, errors and docs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vit_dist.config.load import differing
from vit_dist.core.errors import ConfigError

TRUNK = "trunk"
"""Of a run's identity: what its trunk's checkpoint holds, where the recipe says no more than whose that is."""


@dataclass(frozen=True)
class Rule:
    """What holds for keys of a recipe's identity.

    Attributes:
        keys: dotted, each with all that lies below it; of several rules the one with the longest key holds.
        allowed: whether a branch may change them.
        why: what a change does, or what it would break.
    """

    keys: tuple[str, ...]
    allowed: bool
    why: str


RULES = (
    Rule(
        ("horizon",), True, "the length of all, the trunk's steps included; it must lie beyond the step of the branch"
    ),
    Rule(
        ("schedule",),
        True,
        "computed as if all of the run had had it: its steps, warm-up included, count from the trunk's first one",
    ),
    Rule(("optim",), True, "rate, decay, momentum, clipping: numbers that are the recipe's and in no checkpoint"),
    Rule(
        ("optim.name", "plugins.optim"),
        True,
        "with branch.optimizer=new: moments of one optimizer mean something else to another, which begins without any",
    ),
    Rule(("loss", "teacher_weights", "class_weights", "guards"), True, "from the step of the branch on"),
    Rule(
        ("ema",),
        True,
        "an average goes on with what it has counted; one that the trunk has not kept begins at the branch, and one "
        "that the branch leaves out ends there",
    ),
    Rule(("precision",), True, "checkpoints hold fp32 weights and moments, whatever is computed with"),
    Rule(
        ("data", "fingerprint"),
        True,
        "another set, subset or mixture: the position counts on in its order; other crops, sizes and augmentation",
    ),
    Rule(("data.num_classes",), True, "with branch.head=new, which begins at zeros with moments of zero"),
    Rule(
        ("data.image_size",),
        True,
        "positions are resampled (branch.positions); the moments of what was resampled begin at zero",
    ),
    Rule(
        ("data.dataset",),
        False,
        "a run's recipe holds all that the name of its set stands for: give data.train=URL, and what goes with it",
    ),
    Rule(("data.held_out",), False, "the trunk has trained on what would be held out"),
    Rule(
        ("data.lanes", "data.window", "data.subset_seed", "seed"),
        False,
        "the order of examples rests on it: of the epoch under way some would be trained on twice, others not at all",
    ),
    Rule(
        ("global_batch",),
        False,
        "step s has seen s x global_batch examples, in logs and in studies: curves would not join the trunk's",
    ),
    Rule(
        ("model", "plugins.model"),
        False,
        "the trunk's weights are those of its model; vit-dist models import fits weights to another one",
    ),
    Rule(
        ("model.dropout", "model.stochastic_depth", "model.patch_dropout", "model.head_bias"),
        True,
        "no weight depends on them; head_bias is that of a new head",
    ),
    Rule(("plugins.schedule",), True, "as schedule"),
    Rule(
        ("init", "initial_weights", TRUNK),
        False,
        "a branch begins from its checkpoint; branch.head and branch.positions say how that is fitted",
    ),
    Rule(("branch",), False, "RUN@STEP says it; branch.head, branch.positions and branch.optimizer may be given"),
)
"""Keys that are not of a recipe's identity (name, engine, checkpoint, log, eval, ...) may always change."""

_OTHERWISE = Rule((), False, "what it means for the trunk's state is not known")
_OF_BEGINNING = frozenset({"init", "initial_weights", "branch", TRUNK})
"""Of the trunk's identity, what says where that began: a branch begins from its checkpoint."""
_OF_BRANCH = frozenset({"branch.head", "branch.positions", "branch.optimizer"})
_ANEW = ("head", "optimizer")
"""Keys of `branch` by which something of it begins anew, at the value `new`."""


def rule_of(key: str) -> Rule:
    """The rule that holds for a dotted key."""
    found = [
        (len(prefix), rule) for rule in RULES for prefix in rule.keys if key == prefix or key.startswith(f"{prefix}.")
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else _OTHERWISE


def check_given(keys: list[str]) -> None:
    """Refuse keys that were typed and that no branch takes, whatever their values.

    Raises:
        ConfigError: names key and reason.
    """
    for key in keys:
        section = key.partition(".")[0]
        if section in _OF_BEGINNING and key not in _OF_BRANCH:
            raise ConfigError(f"{key}: a branch cannot be given it: {rule_of(key).why}")


def check_changes(trunk: Mapping[str, Any], branch: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """What a branch has other than its trunk: dotted key, the trunk's value and the branch's.

    Args:
        trunk: the identity in the marker of its checkpoint.
        branch: the identity of the branch's recipe, as far as it is known.

    Raises:
        ConfigError: a key that a branch may not change; names each, and why.
    """
    theirs = {key: value for key, value in trunk.items() if key not in _OF_BEGINNING}
    ours = {key: value for key, value in branch.items() if key not in ("branch", TRUNK)}
    for key in ("fingerprint", "plugins", "teacher_weights"):
        # Of a recipe alone it is not known yet.
        if key not in ours:
            theirs.pop(key, None)
    changes = differing(theirs, ours)
    refused: dict[Rule, list[str]] = {}
    for key, a, b in changes:
        rule = rule_of(key)
        if not rule.allowed:
            refused.setdefault(rule, []).append(f"{key} ({shown(a)} -> {shown(b)})")
    if refused:
        lines = [f"{', '.join(keys)}: a branch cannot change it: {rule.why}" for rule, keys in refused.items()]
        lines.append("a run that begins with the trunk's weights alone may have all of them: init.weights=CHECKPOINT")
        raise ConfigError("\n".join(lines))
    begun = branch.get("branch", {})
    _check_optimizer(changes, begun.get("optimizer", "keep"))
    head = begun.get("head", "keep")
    outputs = next(((a, b) for key, a, b in changes if key == "data.num_classes"), None)
    if outputs is not None and head == "keep":
        raise ConfigError(
            f"data.num_classes={outputs[1]}: the trunk's head has {outputs[0]} outputs; branch.head=new begins another"
        )
    return [*changes, *((f"branch.{key}", "keep", "new") for key in _ANEW if begun.get(key) == "new")]


def _check_optimizer(changes: Sequence[tuple[str, Any, Any]], begins: str) -> None:
    """Refuse another optimizer, or other code of one, that would go on from the trunk's moments.

    Raises:
        ConfigError: says what to do.
    """
    other = next(((key, a, b) for key, a, b in changes if key.startswith(("optim.name", "plugins.optim"))), None)
    if other is not None and begins == "keep":
        key, a, b = other
        raise ConfigError(
            f"{key} ({shown(a)} -> {shown(b)}): the moments in the trunk's checkpoint mean something else to another "
            f"optimizer; branch.optimizer=new begins it without any, and keeps weights, step and position"
        )


def shown(value: Any) -> str:
    """A value for people, on one line and not too long."""
    text = "none" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def table() -> str:
    """The rules as a table of Markdown, for the page of docs."""
    rows = [
        f"| {', '.join(f'`{key}`' for key in rule.keys)} | {'yes' if rule.allowed else 'no'} | {rule.why} |"
        for rule in RULES
    ]
    return "\n".join(["| key | may change | |", "|---|---|---|", *rows])
