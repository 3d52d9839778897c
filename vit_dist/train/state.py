"""The train state: everything beside weights and optimizer that steers training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from vit_dist.core.errors import CheckpointError
from vit_dist.data.mixture import MixtureIdentity
from vit_dist.data.order import OrderIdentity, describe_identity_change


@dataclass(frozen=True)
class TrainState:
    """Counters of a run. Equal states and equal weights mean equal futures.

    Attributes:
        step: optimizer steps completed, skipped ones included.
        position: examples consumed: the state of the stream.
        skipped: steps that the engine did not apply since a gradient was not finite.
        quarantined: ordinals of the samples that could not be decoded so far.
    """

    step: int = 0
    position: int = 0
    skipped: int = 0
    quarantined: frozenset[int] = frozenset()

    def advance(self, *, position: int, applied: bool, quarantined: frozenset[int]) -> TrainState:
        """The state after one more step."""
        return replace(
            self,
            step=self.step + 1,
            position=position,
            skipped=self.skipped + (not applied),
            quarantined=self.quarantined | quarantined,
        )

    def dump(self, identity: OrderIdentity | MixtureIdentity) -> dict[str, Any]:
        """As plain data, with the order that the position belongs to."""
        return {**asdict(self), "quarantined": sorted(self.quarantined), "order": asdict(identity)}

    @classmethod
    def load(cls, raw: dict[str, Any], identity: OrderIdentity | MixtureIdentity, where: str) -> TrainState:
        """Read what `dump` wrote.

        Raises:
            CheckpointError: the position belongs to another order; says what differs.
        """
        changes = describe_identity_change(asdict(identity), raw["order"])
        if changes:
            raise CheckpointError(
                f"{where}: its position belongs to another order of examples ({'; '.join(changes)}); going on would "
                f"repeat some and leave out others. Restore those settings or start in another --run-dir"
            )
        return cls(raw["step"], raw["position"], raw["skipped"], frozenset(raw["quarantined"]))
