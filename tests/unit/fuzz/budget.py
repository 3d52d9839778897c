"""How long the fuzz targets run: some seconds each in the normal run, as long as the drill likes there."""

from __future__ import annotations

import os

import hypothesis

EXAMPLES = int(os.environ.get("VIT_DIST_FUZZ_EXAMPLES", "150"))

fuzz = hypothesis.settings(
    max_examples=EXAMPLES,
    # Without the variable every run tries the same; with it, other examples each time, and failures are kept.
    derandomize="VIT_DIST_FUZZ_EXAMPLES" not in os.environ,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
