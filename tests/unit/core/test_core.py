"""Units, seeding, files, world, run directory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.histories import speak
from vit_dist.core.errors import ConfigError, DataError, RunError, did_you_mean
from vit_dist.core.files import explained, join_url, parent_url, read_bytes, redact, write_bytes
from vit_dist.core.run import history
from vit_dist.core.run.directory import RunDir
from vit_dist.core.seeding import hash64, mix64, mix64_array, permutation, uniform
from vit_dist.core.units import (
    Duration,
    Flops,
    counted,
    format_bytes,
    format_count,
    format_rate,
    format_seconds,
    parse_bytes,
    parse_count,
    parse_length,
    parse_span,
)
from vit_dist.core.world import World, first_host, launched_world, rank_cpus, rendezvous


@pytest.mark.parametrize(
    ("text", "value", "unit", "shown"),
    [
        ("7 epochs", 7, "epochs", "7 epochs"),
        ("40M examples", 40_000_000, "examples", "40M examples"),
        ("10k steps", 10_000, "steps", "10k steps"),
        ("1 epoch", 1, "epochs", "1 epoch"),
        ("0.5 epochs", Fraction(1, 2), "epochs", "0.5 epochs"),
        ("1e6 examples", 10**6, "examples", "1M examples"),
        ("2h", 7200, "seconds", "2h"),
        ("30 min", 1800, "seconds", "30min"),
        ("90s", 90, "seconds", "90s"),
        ("12_345 steps", 12345, "steps", "12345 steps"),
    ],
)
def test_durations_keep_value_and_unit(text: str, value: Fraction, unit: str, shown: str) -> None:
    duration = Duration.parse(text)
    assert (duration.value, duration.unit, str(duration)) == (value, unit, shown)
    assert Duration.parse(str(duration)) == duration


@pytest.mark.parametrize("text", ["", "7", 7, 7.5, "epochs", "-3 steps", "7 parsecs", None, "nan steps", True])
def test_what_is_no_duration_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match=r"has no unit|expected a duration"):
        Duration.parse(text)


def test_steps_of_the_paper() -> None:
    # 303M images at batch 4096: 7 epochs are 517,822 steps, 14 epochs 1,035,645 (public code of the ViT paper).
    of = {"global_batch": 4096, "epoch_examples": 303_000_000}
    assert Duration.parse("7 epochs").steps(**of) == 517_822
    assert Duration.parse("14 epochs").steps(**of) == 1_035_645
    with pytest.raises(ValueError, match="span of time"):
        Duration.parse("1h").steps(**of)


@pytest.mark.parametrize("number", [24, 7.5, "24", " 1.5 ", "10k", "1_000", 0])
def test_a_bare_number_is_refused_with_the_ways_to_read_it(number: object) -> None:
    shown = str(number).strip()
    for parse, readings in (
        (Duration.parse, f"'{shown} steps', '{shown} examples', '{shown} epochs', '{shown}min' or '{shown}h'"),
        (parse_length, f"'{shown} steps', '{shown} examples' or '{shown} epochs'"),
        (parse_span, f"'{shown}min' or '{shown}h'"),
    ):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
            parse(number)
        assert str(caught.value) == f"{shown} has no unit; write {readings}"


@pytest.mark.parametrize("text", ["7 epochs", "40M examples", "1 step", "0 steps"])
def test_a_span_of_time_and_a_length_are_told_apart(text: str) -> None:
    assert parse_length(text) == Duration.parse(text)
    with pytest.raises(ValueError, match=f"'{text}' is not a span of time"):
        parse_span(text)
    for span in ("90s", "10min", "1h"):
        assert parse_span(span) == Duration.parse(span)
        with pytest.raises(ValueError, match=f"'{span}' is a span of time"):
            parse_length(span)


@pytest.mark.parametrize("number", [4, 0, "4", "1000", (1 << 20) - 1, "0.5"])
def test_a_bare_number_that_is_too_small_for_bytes_is_refused(number: object) -> None:
    with pytest.raises(ValueError, match=f"{number} has no unit; write '{number} MiB', '{number} GiB' or '{number} B'"):
        parse_bytes(number)


@given(st.integers(0, 10**13))
def test_counts_are_written_exactly_and_read_back(number: int) -> None:
    assert parse_count(format_count(number)) == number


@pytest.mark.parametrize("text", ["1.5", "k", "-1", -1, 1.0, True, "30 M examples", None])
def test_what_is_no_count_is_refused(text: object) -> None:
    with pytest.raises(ValueError, match="expected a count"):
        parse_count(text)


def test_sizes_and_times_for_people() -> None:
    assert [parse_bytes(t) for t in ("256 MiB", "1.5GB", "7 B", 4 << 30)] == [256 << 20, 1_500_000_000, 7, 4 << 30]
    with pytest.raises(ValueError, match="expected a size"):
        parse_bytes("much")
    assert [format_bytes(n) for n in (0, 1023, 1536, 3 << 30, 5 << 50)] == [
        "0 B", "1023 B", "1.5 KiB", "3.0 GiB", "5120.0 TiB",
    ]  # fmt: skip
    assert [format_seconds(s) for s in (0.25, 42, 75, 3700)] == ["0.2s", "42s", "1m15s", "1h01m"]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_mixing_arrays_equals_mixing_numbers(words: list[int]) -> None:
    assert mix64_array(np.array(words, np.uint64)).tolist() == [mix64(w) for w in words]
    assert hash64(3, 4, np.array(words, np.uint64)).tolist() == [hash64(3, 4, w) for w in words]


def test_hashes_of_known_coordinates_never_change() -> None:
    assert hash64(0) == 16294208416658607535  # SplitMix64's first output from seed 0
    assert hash64(1, 2, 3) != hash64(1, 3, 2)
    assert permutation(8, 5).tolist() == permutation(8, 5).tolist() != permutation(8, 6).tolist()
    draws = [uniform(1, i) for i in range(4000)]
    assert all(0 <= u < 1 for u in draws)
    assert abs(np.mean(draws) - 0.5) < 0.02


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("https://user:hunter2@host/x", "hunter2"),
        ("https://b.s3.amazonaws.com/k?X-Amz-Signature=abcdef&x=1", "abcdef"),
        ("https://h/k?X-Amz-Credential=AKIA/2020&y", "AKIA"),
        ("token=s3cr3t", "s3cr3t"),
    ],
)
def test_secrets_are_taken_out(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


def test_urls_join() -> None:
    assert join_url("s3://b/x", "y.tar") == "s3://b/x/y.tar"
    assert join_url("s3://b/x", "s3://c/y.tar") == "s3://c/y.tar"
    assert join_url("/a", "/b/c") == "/b/c"
    assert join_url("", "c") == "c"
    assert parent_url("s3://b/x/m.json") == "s3://b/x"
    assert parent_url("m.json") == ""


def test_files_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    write_bytes(str(target), b"one")
    write_bytes(str(target), b"two")
    assert read_bytes(str(target)) == b"two"
    assert [p.name for p in target.parent.iterdir()] == ["b"]
    with pytest.raises(DataError, match="no such file"):
        read_bytes(str(tmp_path / "missing"))
    with pytest.raises(DataError, match="cannot be written"):
        write_bytes(str(target / "below-a-file"), b"x")
    with pytest.raises(KeyError), explained("x", "read"):
        raise KeyError  # a mistake of ours is not dressed up as the user's


def test_ranks_come_from_the_launcher_or_from_slurm() -> None:
    assert launched_world({}) is None
    assert launched_world({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == World(3, 8, 1, os.uname().nodename)
    slurm = {
        "SLURM_STEP_ID": "0", "SLURM_PROCID": "9", "SLURM_STEP_NUM_TASKS": "16", "SLURM_LOCALID": "1",
        "SLURMD_NODENAME": "gpu2", "SLURM_JOB_ID": "1234", "SLURM_STEP_NODELIST": "gpu[002-003]",
    }  # fmt: skip
    assert launched_world(slurm) == World(9, 16, 1, "gpu2")
    assert rendezvous(slurm)["MASTER_ADDR"] == "gpu002"
    assert 20000 <= int(rendezvous(slurm)["MASTER_PORT"]) < 30000
    # An allocation without a step (salloc, the batch script itself) starts no world.
    assert launched_world({k: v for k, v in slurm.items() if k != "SLURM_STEP_ID"}) is None
    with pytest.raises(ConfigError, match="outside a world"):
        launched_world({"RANK": "8", "WORLD_SIZE": "8"})
    with pytest.raises(ConfigError, match="not numbers"):
        launched_world({"RANK": "x", "WORLD_SIZE": "8"})
    with pytest.raises(ConfigError, match="MASTER_ADDR"):
        rendezvous({})


STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "3"}


@pytest.mark.parametrize(
    ("environ", "seen", "cpus"),
    [
        ({}, 64, 64),
        ({"LOCAL_WORLD_SIZE": "8"}, 64, 8),  # torchrun, our launcher: the ranks share what they see
        ({"LOCAL_WORLD_SIZE": "8"}, 4, 1),
        ({"LOCAL_WORLD_SIZE": "2", "VIT_DIST_CPUS": "16"}, 64, 8),  # one of four runs side by side
        ({**STEP, "SLURM_CPUS_PER_TASK": "14"}, 14, 14),  # bound by srun: not to be divided again
        ({**STEP, "SLURM_CPUS_PER_TASK": "14"}, 28, 14),  # bound to cores of two threads
        ({**STEP, "SLURM_CPUS_PER_TASK": "14", "SLURM_NTASKS_PER_NODE": "8"}, 112, 14),  # not bound
        ({**STEP, "SLURM_CPUS_PER_TASK": "14"}, 2, 2),  # a toy cluster claims more than there is
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "8(x2),4"}, 112, 14),
        ({**STEP, "SLURM_NTASKS_PER_NODE": "4"}, 112, 28),
        ({**STEP, "SLURM_CPUS_PER_TASK": "112", "LOCAL_WORLD_SIZE": "8"}, 112, 14),  # torchrun inside a task
        ({"SLURM_CPUS_PER_TASK": "14"}, 64, 64),  # a batch script: no step, so no task
    ],
)
def test_the_cpus_of_a_rank(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], seen: int, cpus: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(seen)))
    assert rank_cpus(environ) == cpus


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu[003-007,9]", "gpu003"), ("a1,b2", "a1"), ("n1", "n1"), ("rack[1,3]-x", "rack1-x"), ("a,b[1-2]", "a")],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_a_batch_that_the_ranks_do_not_divide_names_the_nearest() -> None:
    assert World(size=4).rank_batch(64) == 16
    with pytest.raises(ConfigError, match=r"global_batch=64 is not divisible by 3 ranks; nearest that are: 63, 66"):
        World(size=3).rank_batch(64)


def test_a_directory_in_use_is_refused_and_freed_by_death(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from vit_dist.core.run.directory import RunDir\n"
        "with RunDir(Path(sys.argv[1])).locked():\n    print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "run")], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    run = RunDir(tmp_path / "run")
    with pytest.raises(RunError, match=rf"another attempt is running .*process {holder.pid}"), run.locked():
        pass
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    with run.locked():
        speak(run.path, "running", 3, 12)
    status = history.read(run.path).status
    assert status is not None
    assert (status.status, status.step, status.examples, status.pid) == ("running", 3, 12, os.getpid())
    assert abs(status.time - time.time()) < 60
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(RunError, match=r"run\.json: damaged: not JSON"):
        run.read_json("run.json")


def test_hints() -> None:
    assert did_you_mean("optm", ["optim", "model"]) == "; did you mean 'optim'?"
    assert did_you_mean("zzz", ["optim", "model"]) == "; valid names: model, optim"
    assert did_you_mean("zzz", []) == ""


@pytest.mark.parametrize(
    "number", ["1e999999999", "1e100", "1" + " " * 300_000 + "x", "1" * 300_000, "1" + ",1" * 300_000 + "?"]
)
@pytest.mark.parametrize("read", [parse_count, parse_bytes, Duration.parse, Flops.parse])
def test_a_number_that_would_fill_the_memory_is_none(read: Callable[[object], object], number: str) -> None:
    for unit in ("", " steps", "k epochs", " FLOPs", " MiB"):
        with pytest.raises(ValueError, match="expected"):
            read(number + unit)


@pytest.mark.parametrize(
    ("count", "words", "told"),
    [
        (1, ("image",), "1 image"),
        (0, ("image",), "0 images"),
        (2000, ("class",), "2,000 classes"),
        (2, ("class directory",), "2 class directories"),
        (3, ("batch",), "3 batches"),
        (4, ("day",), "4 days"),
        (1, ("shard is", "shards are"), "1 shard is"),
        (1234567, ("shard is", "shards are"), "1,234,567 shards are"),
    ],
)
def test_what_is_counted_stands_in_its_number(count: int, words: tuple[str, ...], told: str) -> None:
    assert counted(count, *words) == told


@pytest.mark.parametrize(
    ("rate", "told"),
    [
        (12345.6, "12,346"),
        (10.4, "10"),
        (9.96, "10"),
        (1.66, "1.7"),
        (0.5, "0.5"),
        (0.0321, "0.032"),
        (3e-06, "3.0e-06"),
        (0.0, "0"),
    ],
)
def test_no_rate_is_rounded_to_nothing(rate: float, told: str) -> None:
    assert format_rate(rate) == told
