"""Which tests may be skipped where every test is expected to run; see --no-skips."""

from __future__ import annotations

_WATCH = "tests/unit/train/test_monitor.py"
MAY_BE_SKIPPED = {
    # Mounting needs root, and a container may forbid it to root too.
    "tests/integration/test_train_bad_input.py::test_a_full_disk_leaves_no_checkpoint_that_looks_whole",
    "tests/integration/test_full_cache.py::test_two_jobs_go_on_without_a_cache_whose_disk_is_full",
    # A control group of one's own needs root, and a system that lets it be made.
    "tests/unit/data/test_decode_memory.py::test_a_process_that_the_kernel_kills_for_want_of_memory_is_told_and_leaves_nothing",
    # A machine, or a container, without IPv6.
    "tests/unit/core/test_network.py::test_a_socket_that_listens_does_so_by_both_families",
    "tests/unit/core/test_network.py::test_a_port_is_free_where_neither_family_holds_it",
    f"{_WATCH}::test_who_is_no_rank_does_no_harm_and_holds_up_nobody",
    f"{_WATCH}::test_a_rank_that_is_linked_cannot_be_replaced_by_another",
    f"{_WATCH}::test_ranks_that_say_bye_end_nobody_and_rank_0_that_vanishes_ends_all",
    f"{_WATCH}::test_a_rank_that_is_turned_away_in_a_crowd_comes_again",
    f"{_WATCH}::test_connections_that_say_nothing_are_closed_in_time",
}
"""Node ids, without the parameters in brackets; the reason stands above each."""


def unlisted(skipped: set[str]) -> list[str]:
    """Of the node ids of skipped tests those that `MAY_BE_SKIPPED` does not name."""
    return sorted(node for node in skipped if node.partition("[")[0] not in MAY_BE_SKIPPED)
