"""The state of a stream outside a run: a small value of JSON, where it stands and in which order. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from vit_dist.core.errors import ConfigError
from vit_dist.core.small_files import is_count
from vit_dist.data.mixture import MixtureIdentity
from vit_dist.data.order import OrderIdentity, describe_identity_change

StreamPosition = dict[str, Any]
"""What a stream gives with each batch, and goes on from: plain data, which JSON and pickle carry alike."""

_KIND = "vit_dist stream"
_VERSION = 1
_FIELDS = frozenset({"kind", "version", "position", "batch", "shuffle", "order"})


def dump_position(
    position: int, batch: int, identity: OrderIdentity | MixtureIdentity, *, shuffle: bool
) -> StreamPosition:
    """The state of a stream that has given so many examples, on all ranks together."""
    return {
        "kind": _KIND,
        "version": _VERSION,
        "position": position,
        "batch": batch,
        "shuffle": shuffle,
        "order": asdict(identity),
    }


def load_position(
    state: Mapping[str, Any], batch: int, identity: OrderIdentity | MixtureIdentity, *, shuffle: bool
) -> int:
    """The examples that were given before, read from what `dump_position` made, for the stream that is being opened.

    Raises:
        ConfigError: it is no state of a stream, or of another order; says what differs.
    """
    _check(state)
    here = {"shuffle": shuffle, **asdict(identity)}
    changes = describe_identity_change(here, {"shuffle": state["shuffle"], **state["order"]})
    if changes:
        raise ConfigError(
            f"position: the state belongs to another order of examples ({'; '.join(changes)}); going on from it would "
            f"repeat some and leave out others. Open the stream as it was opened then, or begin anew: position=None"
        )
    if state["batch"] != batch:
        raise ConfigError(
            f"position: the state is one of batches of {state['batch']}, and batch={batch} is asked for; batch counts "
            f"the examples of all ranks together, so that it stays the same on another number of ranks. Give "
            f"batch={state['batch']}; to go on with other batches on purpose (the order is the same, each remaining "
            f"example comes once): position={{**state, 'batch': {batch}}}"
        )
    position: int = state["position"]
    return position


def _check(state: Mapping[str, Any]) -> None:
    if not isinstance(state, Mapping):
        raise ConfigError(
            f"position: expected the state that a stream gave with a batch (a mapping), or None; got {state!r:.100}"
        )
    if state.get("kind") != _KIND or not is_count(state.get("version")):
        raise ConfigError(f"position: not the state of a stream: it has the keys {sorted(map(str, state))!r:.200}")
    if state["version"] > _VERSION:
        raise ConfigError(
            f"position: the state is of version {state['version']}, this vit_dist reads up to {_VERSION}; use the "
            f"vit_dist that wrote it, or a newer one"
        )
    missing = sorted(_FIELDS - state.keys())
    if missing:
        raise ConfigError(f"position: the state is damaged: it has no {missing[0]!r}")
    for name, fits, what in (
        ("position", is_count(state["position"]), "a whole number from 0"),
        ("batch", is_count(state["batch"]) and state["batch"] > 0, "a whole number from 1"),
        ("shuffle", isinstance(state["shuffle"], bool), "true or false"),
        ("order", isinstance(state["order"], Mapping), "a mapping"),
    ):
        if not fits:
            raise ConfigError(f"position: the state is damaged: {name} is {state[name]!r:.100}, expected {what}")
