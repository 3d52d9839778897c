"""Where a node is reached: by its name, by Slurm's address, by that of the node of srun; or an error within seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.slurm import addresses
from launcher.slurm.addresses import node_address
from vit_dist.core.errors import ConfigError
from vit_dist.core.world import first_host

NODE = "no-such-node-7"


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What `scontrol show node` prints; empty where there is no such command."""
    text, path = tmp_path / "node.txt", tmp_path / "bin"
    path.mkdir()
    command = path / "scontrol"
    command.write_text(f'#!/bin/sh\n[ -s {text} ] && exec cat {text}\necho "Node {NODE} not found" >&2; exit 1\n')
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin")
    # Names of tests never resolve, and are asked for once more.
    monkeypatch.setattr(addresses, "_NAME_SERVICE_S", 0.1)
    return text


@pytest.mark.parametrize("node", ["localhost", "127.0.0.1", "::1", "10.1.2.3", "2001:db8::7"])
def test_what_resolves_is_taken_as_it_is(scontrol: Path, node: str) -> None:
    scontrol.write_text(f"NodeName={node} NodeAddr=192.0.2.9 Port=6818\n")
    assert node_address(node, {}) == node


def test_job_scripts_are_told_by_the_same_function(scontrol: Path, capfd: pytest.CaptureFixture[str]) -> None:
    scontrol.write_text(f"NodeName={NODE} NodeAddr=192.0.2.9\n")
    assert addresses.main([NODE]) == 0
    assert capfd.readouterr().out == "192.0.2.9\n"
    scontrol.write_text("")
    assert addresses.main([NODE]) == 2
    assert NODE in capfd.readouterr().err


def test_an_address_in_brackets_loses_them() -> None:
    assert node_address("[2001:db8::7]", {}) == "2001:db8::7"


@pytest.mark.parametrize("address", ["192.0.2.9", "2001:db8::7", "localhost"])
def test_a_name_that_does_not_resolve_is_reached_where_slurm_reaches_it(scontrol: Path, address: str) -> None:
    scontrol.write_text(
        f"NodeName={NODE} Arch=x86_64 NodeAddr={address} NodeHostName={NODE} Port=17001 "
        f"Reason=moved, was NodeAddr=198.51.100.1 Port=many [root@now]\n"
    )
    assert node_address(NODE, {}) == address


@pytest.mark.parametrize(
    ("environ", "address"),
    [
        ({"SLURM_LAUNCH_NODE_IPADDR": "127.0.0.1", "SLURMD_NODENAME": NODE}, "127.0.0.1"),
        ({"SLURM_LAUNCH_NODE_IPADDR": "192.0.2.9", "SLURMD_NODENAME": "another"}, "192.0.2.9"),
        ({"SLURM_LAUNCH_NODE_IPADDR": "2001:db8::7", "SLURMD_NODENAME": "another"}, "2001:db8::7"),
        # srun was started on a login node, not on this one.
        ({"SLURM_LAUNCH_NODE_IPADDR": "192.0.2.9", "SLURMD_NODENAME": NODE}, ""),
        ({"SLURM_LAUNCH_NODE_IPADDR": "192.0.2.9"}, ""),
        ({"SLURM_LAUNCH_NODE_IPADDR": "login1", "SLURMD_NODENAME": "another"}, ""),
        ({}, ""),
    ],
)
@pytest.mark.parametrize(
    "shown", ["", f"NodeName={NODE} NodeAddr={NODE}\n", f"NodeName={NODE} NodeAddr=also-unknown\n"]
)
def test_without_slurms_answer_the_node_of_srun_stands_in_and_else_it_is_an_error(
    scontrol: Path, environ: dict[str, str], address: str, shown: str
) -> None:
    scontrol.write_text(shown)
    if address:
        assert node_address(NODE, environ) == address
        return
    with pytest.raises(ConfigError, match=f"MASTER_ADDR: the name {NODE} of rank 0's node cannot be resolved here"):
        node_address(NODE, environ)


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("n1", "n1"),
        ("a1,b2", "a1"),
        ("gpu[003-007,9]", "gpu003"),
        ("gpu[9,003-007],n1", "gpu9"),
        ("rack[1-2]n[4,7]", "rack1n4"),
        ("a1,b[2-3]", "a1"),
        ("n[07-09]-ib", "n07-ib"),
        ("login-1.site", "login-1.site"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_node_of_a_list(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first
