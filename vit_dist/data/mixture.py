"""Mixtures: several sets read as one endless order, each with epochs of its own. Pure arithmetic, no I/O, no torch.

Component i owns c_i of the C lanes of the mixture. Position g is row g // C of lane g mod C; where that lane is the
component's j-th, the position consumes what the component's own order holds at row * c_i + j. So each component is a
GlobalOrder of c_i lanes, walked without a gap: exactly once an epoch of its own, in O(1) from any position. A mixture
of one component is that component.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import gcd

import numpy as np

from vit_dist.core.errors import ConfigError
from vit_dist.core.seeding import I64
from vit_dist.core.units import nearest_multiples
from vit_dist.data.order import (
    DEFAULT_WINDOW,
    MAX_LANES,
    SMALL_SET_BYTES,
    GlobalOrder,
    Location,
    OrderIdentity,
    Segment,
    WindowId,
)


@dataclass(frozen=True)
class MixtureIdentity:
    """What a position of a mixture belongs to: every component's order, and with it the lanes it owns."""

    components: dict[str, OrderIdentity]


def deal_lanes(lanes: Sequence[int]) -> list[int]:
    """Which component owns each lane of a mixture, evenly interleaved.

    The m-th of a component's c lanes wants the place (m + 1/2) / c of all lanes; lanes are sorted by that, ties by
    component.

    Args:
        lanes: c_i of each component.

    Returns:
        the component of each of the sum(lanes) lanes.
    """
    wants = [(Fraction(2 * m + 1, c), i) for i, c in enumerate(lanes) for m in range(c)]
    return [component for _, component in sorted(wants)]


def resolve_mixture(
    weights: Mapping[str, int], sizes: Mapping[str, int], num_bytes: int, lanes: int | None, window: int | None
) -> dict[str, tuple[int, int]]:
    """Lanes c_i and window length of each component of a mixture.

    Lanes are in proportion to the weights, exactly: c_i = k * weight_i (the weights reduced by their greatest common
    divisor). k is the largest power of two for which no component has more lanes than its examples call for by the
    rule for one set, and all have at most 4096 together; at least 1. Sets under 256 MiB together take k = 1 and one
    window a lane.

    Args:
        weights: of each component.
        sizes: examples of each component.
        num_bytes: of tar, of all together.
        lanes: C where it is given; sum(weights) divides it.
        window: length where it is given.

    Raises:
        ConfigError: the weights do not divide `lanes`, or a component has fewer examples than lanes.
    """
    common = gcd(*weights.values())
    reduced = {name: weight // common for name, weight in weights.items()}
    total = sum(reduced.values())
    small = num_bytes < SMALL_SET_BYTES
    if lanes is not None:
        if lanes % total:
            raise ConfigError(
                f"data.lanes={lanes} cannot be shared out by the weights {dict(weights)} of data.mixture; it has to be "
                f"a multiple of {total}; nearest: {nearest_multiples(lanes, total)}"
            )
        factor = lanes // total
    else:
        most = min(MAX_LANES // total, *(sizes[name] // 256 // weight for name, weight in reduced.items()))
        factor = 1 if small else 1 << (max(1, most).bit_length() - 1)
    for name, weight in reduced.items():
        if factor * weight > sizes[name]:
            raise ConfigError(
                f"data.mixture.{name} has {sizes[name]} examples, fewer than the {factor * weight} lanes that its "
                f"weight {weights[name]} of {sum(weights.values())} gives it; give it a smaller weight"
            )
    one_window = small and lanes is None
    return {
        name: (factor * weight, min(sizes[name], window or (sizes[name] if one_window else DEFAULT_WINDOW)))
        for name, weight in reduced.items()
    }


class MixtureOrder:
    """The sequence of examples of several sets: position g (0, 1, 2, ...) -> example of one of them.

    Shards are numbered through, component after component; so are the lanes of a WindowId. The epoch of a Location
    or WindowId is the component's own.

    Args:
        orders: of the components, each with the lanes that it owns.
    """

    def __init__(self, orders: Sequence[GlobalOrder]) -> None:
        self.orders = tuple(orders)
        self.counts: I64 = np.concatenate([order.counts for order in orders])
        self.num_samples = sum(order.num_samples for order in orders)
        self.lanes = sum(order.lanes for order in orders)
        self._owner = deal_lanes([order.lanes for order in orders])
        dealt = [0] * len(orders)
        self._place = []
        for component in self._owner:
            self._place.append(dealt[component])
            dealt[component] += 1
        self._first_lane = [0, *accumulate(order.lanes for order in orders)]
        self._first_shard = [0, *accumulate(len(order.counts) for order in orders)]

    def _find(self, position: int) -> tuple[int, int]:
        """The component of a position, and the position in that component's own order."""
        row, lane = divmod(position, self.lanes)
        component = self._owner[lane]
        return component, row * self.orders[component].lanes + self._place[lane]

    def _own(self, window: WindowId) -> tuple[int, WindowId]:
        """The component of a window, and its own name of that window."""
        component = bisect_right(self._first_lane, window.lane) - 1
        return component, window._replace(lane=window.lane - self._first_lane[component])

    def place(self, position: int) -> tuple[WindowId, int]:
        """The window of a position, and which of the window's samples (in stored order) it consumes."""
        component, own = self._find(position)
        window, slot = self.orders[component].place(own)
        return window._replace(lane=window.lane + self._first_lane[component]), slot

    def lanes_of(self, positions: I64) -> I64:
        """The lanes of `place` for an array: int64 [n] -> int64 [n]."""
        rows, lanes = np.divmod(positions, self.lanes)
        owners, places = np.asarray(self._owner)[lanes], np.asarray(self._place)[lanes]
        for component, order in enumerate(self.orders):
            own = np.flatnonzero(owners == component)
            lanes[own] = order.lanes_of(rows[own] * order.lanes + places[own]) + self._first_lane[component]
        return lanes

    def locate(self, position: int) -> Location:
        """The example at a position, with the component's epoch. O(1) in the position."""
        component, own = self._find(position)
        where = self.orders[component].locate(own)
        return where._replace(shard=where.shard + self._first_shard[component])

    def locate_many(self, positions: I64) -> tuple[I64, I64, I64]:
        """`locate` for an array: int64 [n] -> epochs, shards, samples, each int64 [n]."""
        rows, lanes = np.divmod(np.asarray(positions, dtype=np.int64), self.lanes)
        owners, places = np.asarray(self._owner)[lanes], np.asarray(self._place)[lanes]
        epochs, shards, samples = np.empty_like(rows), np.empty_like(rows), np.empty_like(rows)
        for component, order in enumerate(self.orders):
            indices = np.flatnonzero(owners == component)
            epochs[indices], own_shards, samples[indices] = order.locate_many(
                rows[indices] * order.lanes + places[indices]
            )
            shards[indices] = own_shards + self._first_shard[component]
        return epochs, shards, samples

    def following(self, window: WindowId) -> WindowId:
        """The window behind one, of the same component; see GlobalOrder."""
        component, own = self._own(window)
        return self._numbered(component, self.orders[component].following(own))

    def preceding(self, window: WindowId) -> WindowId:
        """The window that another one is `following`."""
        component, own = self._own(window)
        return self._numbered(component, self.orders[component].preceding(own))

    def home(self, epoch: int, shard: int, sample: int) -> tuple[WindowId, int]:
        """The window in which a sample lies in an epoch of its component, and its place there in stored order."""
        component = bisect_right(self._first_shard, shard) - 1
        own, slot = self.orders[component].home(epoch, shard - self._first_shard[component], sample)
        return self._numbered(component, own), slot

    def turn(self, window: WindowId, slot: int) -> int:
        """The position that consumes the sample at a place of a window: the inverse of `place`."""
        component, own = self._own(window)
        row, place = divmod(self.orders[component].turn(own, slot), self.orders[component].lanes)
        lanes = [lane for lane, owner in enumerate(self._owner) if owner == component]
        return row * self.lanes + lanes[place]

    def _numbered(self, component: int, own: WindowId) -> WindowId:
        """A component's own name of a window, as the mixture's."""
        return own._replace(lane=own.lane + self._first_lane[component])

    def window_segments(self, window: WindowId) -> list[Segment]:
        """The samples of a window in stored order, as runs within shards."""
        component, own = self._own(window)
        first = self._first_shard[component]
        return [s._replace(shard=s.shard + first) for s in self.orders[component].window_segments(own)]

    def window_slots(self, window: WindowId) -> I64:
        """The samples of a window in the order they are consumed, as places in stored order. int64 [size]."""
        component, own = self._own(window)
        return self.orders[component].window_slots(own)

    def consumed(self, position: int) -> list[int]:
        """Examples that each component has given before a position."""
        rows, lane = divmod(position, self.lanes)
        given = [rows * order.lanes for order in self.orders]
        for component in self._owner[:lane]:
            given[component] += 1
        return given

    def read_amplification(self, ranks: int) -> int:
        """How many ranks read each lane's bytes: W / gcd(W, C); 1 where whole lanes are owned."""
        return ranks // gcd(ranks, self.lanes)
