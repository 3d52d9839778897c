"""Cluster files: what they may hold, and the message about a slip."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.slurm.cluster import load_cluster, slurm_seconds, slurm_time
from vit_dist.config.load import config_dirs
from vit_dist.core.errors import ConfigError

SHIPPED = sorted(path.stem for path in (config_dirs()[0] / "clusters").glob("*.yaml"))


def test_every_shipped_cluster_is_read() -> None:
    assert {"generic", "dgx-h100", "aws-p5", "dev"} <= set(SHIPPED)
    for name in SHIPPED:
        cluster = load_cluster(name)
        assert cluster.name == name
        assert cluster.tasks == (cluster.devices_per_node or cluster.tasks_per_node)
        assert cluster.cpus_per_task * cluster.tasks <= cluster.cpus_per_node


@pytest.mark.parametrize(
    ("given", "written", "seconds"),
    [
        ("00:30:00", "00:30:00", 1800),
        ("0:45:30", "00:45:30", 2730),
        ("36:00:00", "1-12:00:00", 129600),
        ("2-12", "2-12:00:00", 216000),
        ("2-00:30", "2-00:30:00", 174600),
        ("36h", "1-12:00:00", 129600),
        ("90min", "01:30:00", 5400),
        ("unlimited", "UNLIMITED", float("inf")),
    ],
)
def test_times_are_read_as_slurm_and_people_write_them(given: object, written: str, seconds: float) -> None:
    assert slurm_time(given) == written
    assert slurm_seconds(written) == seconds


@pytest.mark.parametrize(
    ("given", "readings"),
    [
        (24, "24 has no unit; write '24min' or '24h': Slurm reads it as minutes"),
        ("24", "'24min' or '24h'"),
        ("090", "'090min' or '090h'"),
        ("1.5", "expected a time such as"),
        ("24:00", "'00:24:00' or '24:00:00'"),
        ("1:30", "'00:1:30' or '1:30:00'"),
        ("90:00", "'90min', or hours as '90:00:00'"),
    ],
)
def test_a_time_that_may_be_minutes_or_hours_is_refused_with_both(given: object, readings: str) -> None:
    with pytest.raises(ValueError, match=r"Slurm|time") as caught:
        slurm_time(given)
    assert readings in str(caught.value)
    # What is advised is read, and the two are two.
    advised = re.findall(r"'([^']*\d[^']*)'", str(caught.value))
    assert len({slurm_time(text) for text in advised if "time such as" not in str(caught.value)}) in (0, 2)


@pytest.mark.parametrize("given", ["0", "soon", "1:2:3:4", "3 epochs", True, ""])
def test_what_is_no_time_is_refused(given: object) -> None:
    with pytest.raises(ValueError, match="time"):
        slurm_time(given)


@pytest.mark.parametrize("given", ["200G", "64000M", "1T", "512K", "0", ""])
def test_a_memory_with_its_unit_is_taken_as_slurm_takes_it(given: str) -> None:
    assert load_cluster("generic", [f'memory="{given}"']).memory == given


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("partion=gpu", "partion: unknown key; did you mean 'partition'?"),
        ("memory=lots", "expected a size such as 200G"),
        ("memory=0", 'memory: must be text, got 0; write it in quotes, such as memory: "0"'),
        ("memory=200", "memory: 200 has no unit; write '200G' or '200M': Slurm reads it as megabytes"),
        ('memory="64000"', "memory: 64000 has no unit; write '64000G' or '64000M'"),
        ("time_limit=24", "time_limit: 24 has no unit; write '24min' or '24h'"),
        ("signal_lead=5", "signal_lead: 5 has no unit; write '5min' or '5h'"),
        ("signal_margin=60", "signal_margin: 60 has no unit"),
        ("preempt_grace=10k", "preempt_grace: 10k has no unit"),
        ("preempt_grace=2 epochs", "preempt_grace: '2 epochs' is not a span of time"),
        ("account=12345", 'write it in quotes, such as account: "12345"'),
        ("partition=1e3", "partition: must be text, got 1000.0; write it in quotes"),
        ("tasks_per_node=64", "fewer than the 64 tasks"),
        ("device_option=gpus_per_node", "did you mean 'gpus-per-node'"),
        ('account="a b"', "account"),
        ('constraint="a\\n#SBATCH --uid=0"', "control character"),
        ("env.1BAD=x", "'1BAD' is not the name of an environment variable"),
        ("env.AWS_SECRET_ACCESS_KEY=x", "looks like a secret"),
        ("sbatch_options=[switches]", "an option begins with '-'"),
        ("signal_lead=3 steps", "'3 steps' is not a span of time"),
        ("container.runtime=docker", "must be 'pyxis' or 'apptainer'"),
    ],
)
def test_a_slip_is_named_with_what_to_do(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_cluster("dev", [override])
    assert message in str(caught.value)


def test_gpus_leave_no_choice_of_tasks() -> None:
    with pytest.raises(ConfigError, match="a task has one GPU"):
        load_cluster("generic", ["tasks_per_node=4"])


def test_an_unknown_cluster_shows_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no cluster 'dgx-h10'.* did you mean 'dgx-h100'"):
        load_cluster("dgx-h10")


def test_a_cluster_may_build_on_another(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: dgx-h100\naccount: vision\nenv: {NCCL_DEBUG: INFO}\n")
    cluster = load_cluster(str(mine))
    assert (cluster.name, cluster.account, cluster.partition) == ("mine", "vision", "defq")
    assert cluster.env["NCCL_DEBUG"] == "INFO"
    assert "NCCL_IB_HCA" in cluster.env
    mine.write_text("base: mine\n")
    with pytest.raises(ConfigError, match="goes round in a circle"):
        load_cluster(str(mine))
