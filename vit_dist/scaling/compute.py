"""What several runs have cost together, where branches share what their trunks have spent."""

from __future__ import annotations

from collections.abc import Sequence

from vit_dist.core.run.lineage import trunk_multiply_adds
from vit_dist.scaling.observation import Observation


def total_exaflops(observations: Sequence[Observation]) -> float:
    """Compute of several runs together, in which what branches share of a trunk counts once.

    A trunk that is among them counts as the run that it is; of one that is not, what its branches have begun from.
    """
    counted_runs = {one.recipe_hash for one in observations}
    total, trunks = 0.0, dict[str, float]()
    for one in observations:
        if one.exaflops is None:
            continue
        # Up to here another run has spent it.
        before = 0.0
        for number, trunk in enumerate(one.lineage, 1):
            spent = 6 * (trunk_multiply_adds(one.lineage[:number]) or 0) / 1e18
            if trunk.recipe_hash not in counted_runs:
                trunks[trunk.recipe_hash] = max(trunks.get(trunk.recipe_hash, 0.0), spent - before)
            before = spent
        total += one.exaflops - before
    return total + sum(trunks.values())
