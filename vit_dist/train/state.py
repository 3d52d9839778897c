"""The train state: everything beside weights and optimizer that steers training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vit_dist.core.errors import OtherCheckpointError
from vit_dist.core.run.checkpoints import committed, read_marker
from vit_dist.core.run.names import CHECKPOINTS
from vit_dist.data.mixture import MixtureIdentity
from vit_dist.data.order import OrderIdentity, describe_identity_change
from vit_dist.data.takedown import TakenDown, dump_taken, load_taken

_SKIPPED_RANGES_KEY = "passed_over"
"""Name of `skipped_ranges` in a checkpoint's marker."""

_LOSS_STEPS_KEY = "loss_steps"
"""Steps of `losses` there. Markers of former versions have none: the last steps before the checkpoint then."""


_TAKEN_DOWN_KEY = "taken_down"
"""There only if something was."""


@dataclass(frozen=True)
class TrainState:
    """Counters of a run. Equal states and equal weights mean equal futures.

    Attributes:
        step: optimizer steps completed, skipped ones included.
        position: examples consumed: the state of the stream.
        skipped: steps that the engine did not apply, since a gradient was not finite or the loss was a spike.
        quarantined: ordinals of the samples that could not be decoded so far.
        losses: of the last applied steps, each with its step: what a spike is measured against.
        bad_in_row: steps up to now that were not applied, without one between that was.
        spikes: steps whose loss was a spike.
        skipped_ranges: ranges of positions [begin, end) that a rewind left out of training.
        taken_down: keys that are not read any more, each with the position from which it is not.
    """

    step: int = 0
    position: int = 0
    skipped: int = 0
    quarantined: frozenset[int] = frozenset()
    losses: tuple[tuple[int, float], ...] = ()
    bad_in_row: int = 0
    spikes: int = 0
    skipped_ranges: tuple[tuple[int, int], ...] = ()
    taken_down: tuple[TakenDown, ...] = ()

    @property
    def examples(self) -> int:
        """Examples that were trained on."""
        return self.position - sum(end - begin for begin, end in self.skipped_ranges)

    def step_of(self, position: int, global_batch: int) -> int | None:
        """The step (1, 2, ...) that trained on a position before this state's; None: a rewind left it out."""
        before = 0
        for begin, end in self.skipped_ranges:
            if begin <= position < end:
                return None
            before += end - begin if end <= position else 0
        return (position - before) // global_batch + 1

    def advance(self, *, position: int, quarantined: frozenset[int]) -> TrainState:
        """The state once one more step was begun, whose result is not known yet."""
        return replace(self, step=self.step + 1, position=position, quarantined=self.quarantined | quarantined)

    def learned(self, *, applied: bool, spike: bool, losses: tuple[tuple[int, float], ...]) -> TrainState:
        """The state once the result of the oldest step is known that was not."""
        return replace(
            self,
            skipped=self.skipped + (not applied),
            losses=losses,
            bad_in_row=0 if applied else self.bad_in_row + 1,
            spikes=self.spikes + spike,
        )

    def rewound(self, given_up: TrainState) -> TrainState:
        """This state of the past, continued where the stream stands now: the range between is skipped.

        Args:
            given_up: the state that was reached from here. If it has come from here by a rewind itself, that one
                stays counted, though no checkpoint knows of it.
        """
        # Examples before the end of an earlier rewind's range were skipped then: the new range begins behind it, so
        # that no position is counted as skipped twice.
        since = given_up.skipped_ranges[len(self.skipped_ranges) :]
        begin, end = since[-1][1] if since else self.position, given_up.position
        ranges = (*given_up.skipped_ranges, (begin, end))
        return replace(
            self, position=end, skipped_ranges=ranges, spikes=given_up.spikes, taken_down=given_up.taken_down
        )

    def dump(self, identity: OrderIdentity | MixtureIdentity) -> dict[str, Any]:
        """As plain data, with the order that the position belongs to."""
        fields = asdict(self)
        # The key has another name than the attribute: markers that were written under it must stay readable, and a
        # marker that is written now must be readable to the version before.
        fields[_SKIPPED_RANGES_KEY] = fields.pop("skipped_ranges")
        # Where nothing was taken down the marker is that of the versions before.
        taken = fields.pop(_TAKEN_DOWN_KEY)
        fields |= {_TAKEN_DOWN_KEY: dump_taken(self.taken_down)} if taken else {}
        fields["losses"], fields[_LOSS_STEPS_KEY] = [loss for _, loss in self.losses], [step for step, _ in self.losses]
        return {**fields, "quarantined": sorted(self.quarantined), "order": asdict(identity)}

    @classmethod
    def load(cls, raw: dict[str, Any], identity: OrderIdentity | MixtureIdentity, where: str) -> TrainState:
        """Read what `dump` wrote.

        Raises:
            CheckpointError: the position belongs to another order; says what differs.
        """
        changes = describe_identity_change(asdict(identity), raw["order"])
        if changes:
            raise OtherCheckpointError(
                f"{where}: its position belongs to another order of examples ({'; '.join(changes)}); continuing would "
                f"repeat some and leave out others. Restore those settings or start in another --run-dir"
            )
        losses = raw["losses"]
        steps = raw.get(_LOSS_STEPS_KEY, range(raw["step"] - len(losses) + 1, raw["step"] + 1))
        return cls(
            raw["step"],
            raw["position"],
            raw["skipped"],
            frozenset(raw["quarantined"]),
            tuple(zip(steps, losses, strict=True)),
            raw["bad_in_row"],
            raw["spikes"],
            tuple((begin, end) for begin, end in raw[_SKIPPED_RANGES_KEY]),
            load_taken(raw.get(_TAKEN_DOWN_KEY, ())),
        )


def taken_down(run_dir: Path) -> tuple[TakenDown, ...]:
    """What the newest checkpoint of a run whose marker can be read has taken down; none without one."""
    for path in committed(run_dir / CHECKPOINTS):
        marker, problem = read_marker(path)
        if not problem:
            return load_taken(marker["state"].get(_TAKEN_DOWN_KEY, ()))
    return ()
