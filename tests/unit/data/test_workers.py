"""Worker processes: when they are worth starting."""

from __future__ import annotations

import os

import pytest

from vit_dist.data import workers


@pytest.mark.parametrize(
    ("asked", "num_tasks", "amount", "processes"),
    [
        (8, 3, {"images": workers.IN_PROCESS_IMAGES}, 3),
        (2, 3, {"images": workers.IN_PROCESS_IMAGES}, 2),
        (8, 3, {"images": workers.IN_PROCESS_IMAGES - 1}, 1),
        (8, 3, {"num_bytes": workers.IN_PROCESS_BYTES}, 3),
        (8, 3, {"num_bytes": workers.IN_PROCESS_BYTES - 1}, 1),
        (8, 0, {"images": 10**6}, 1),
    ],
)
def test_processes_are_started_for_jobs_that_are_large_enough(
    asked: int, num_tasks: int, amount: dict[str, int], processes: int
) -> None:
    assert workers.num_processes(asked, num_tasks, **amount) == processes


def _where(task: int) -> tuple[int, int, int]:
    return task, workers.shared("offset"), os.getpid()


def test_tasks_run_in_other_processes_with_the_values_they_share() -> None:
    results = dict(workers.run(_where, range(9), 2, values={"offset": 7}))
    assert {task: result[:2] for task, result in results.items()} == {task: (task, 7) for task in range(9)}
    assert os.getpid() not in {pid for _, _, pid in results.values()}
