"""Which tests may be skipped where every test is expected to run; see --no-skips."""

from __future__ import annotations

MAY_BE_SKIPPED = {
    # Mounting needs root, and a container may forbid it to root too.
    "tests/integration/test_train_bad_input.py::test_a_full_disk_leaves_no_checkpoint_that_looks_whole",
}
"""Node ids, without the parameters in brackets; the reason stands above each."""


def unlisted(skipped: set[str]) -> list[str]:
    """Of the node ids of skipped tests those that `MAY_BE_SKIPPED` does not name."""
    return sorted(node for node in skipped if node.partition("[")[0] not in MAY_BE_SKIPPED)
