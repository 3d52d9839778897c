"""The memory that is left, from files laid out as the kernel lays them out."""

from __future__ import annotations

from pathlib import Path

import pytest

from vit_dist.core.memory import available_memory, pinned_bytes

GIB = 1 << 30


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.fixture
def kernel(tmp_path: Path) -> tuple[Path, Path]:
    lay(tmp_path, {"proc/meminfo": f"MemTotal: {64 * GIB // 1024} kB\nMemAvailable: {40 * GIB // 1024} kB\n"})
    return tmp_path / "proc", tmp_path / "cgroup"


def test_a_machine_without_limits_has_what_the_kernel_says(kernel: tuple[Path, Path]) -> None:
    assert available_memory(*kernel) == 40 * GIB


def test_the_tightest_group_on_the_way_to_the_root_counts_and_caches_are_free(kernel: tuple[Path, Path]) -> None:
    proc, groups = kernel
    lay(proc, {"self/cgroup": "0::/slurm/job_7/step_0\n"})
    lay(
        groups,
        {
            "slurm/job_7/step_0/memory.max": "max\n",
            "slurm/job_7/step_0/memory.current": f"{3 * GIB}\n",
            "slurm/job_7/memory.max": f"{8 * GIB}\n",
            "slurm/job_7/memory.current": f"{7 * GIB}\n",
            "slurm/job_7/memory.stat": f"anon {5 * GIB}\ninactive_file {2 * GIB}\n",
        },
    )
    assert available_memory(proc, groups) == 3 * GIB


def test_the_first_version_of_control_groups_is_read_too(kernel: tuple[Path, Path]) -> None:
    proc, groups = kernel
    lay(proc, {"self/cgroup": "5:cpu:/x\n4:hugetlb,memory:/slurm/job_7\n0::/\n"})
    folder = "memory/slurm/job_7"
    lay(
        groups,
        {
            f"{folder}/memory.limit_in_bytes": f"{4 * GIB}\n",
            f"{folder}/memory.usage_in_bytes": f"{5 * GIB}\n",
            f"{folder}/memory.stat": "total_inactive_file 0\n",
        },
    )
    assert available_memory(proc, groups) == 0


def test_a_system_that_does_not_say_is_not_guessed(tmp_path: Path) -> None:
    assert available_memory(tmp_path, tmp_path) is None


@pytest.mark.parametrize(
    ("settings", "size", "taken"),
    [
        ({}, 77 << 20, 128 << 20),
        ({}, 128 << 20, 128 << 20),
        ({}, (128 << 20) + 1, 256 << 20),
        ({}, 0, 0),
        ({}, 1, 1),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True"}, 5 * GIB, 8 * GIB),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:True,pinned_max_round_threshold_mb:64"}, 77 << 20, 77 << 20),
        ({"PYTORCH_ALLOC_CONF": "pinned_max_round_threshold_mb:64"}, 33 << 20, 64 << 20),
        ({"PYTORCH_CUDA_ALLOC_CONF": "pinned_max_cached_size_mb:1024"}, 5 * GIB, 5 * GIB),
    ],
)
def test_pinned_memory_is_a_power_of_two_unless_torch_is_told_otherwise(
    settings: dict[str, str], size: int, taken: int
) -> None:
    assert pinned_bytes(size, settings) == taken
