"""A link between nodes that is cut, for real: network namespaces. Root and VIT_DIST_ROOT_TESTS=1; a drill."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import settle, wait_for
from tests.slurm.jobs import SAVE_EVERY, Site, undisturbed
from tests.slurm.network import INTERFACE, networked_cluster
from tests.slurm.scenarios import Row, finish, gone_after_node

pytestmark = [pytest.mark.slurm, pytest.mark.distributed, pytest.mark.drill]


@pytest.mark.skipif("VIT_DIST_ROOT_TESTS" not in os.environ, reason="VIT_DIST_ROOT_TESTS=1 as root cuts real links")
@pytest.mark.timeout(900)
def test_a_cut_link_costs_a_node_and_no_step(tmp_path: Path, small_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = undisturbed(tmp_path / "reference", small_set)
    with networked_cluster() as (cluster, network):
        for name in ("SLURM_CONF", "PATH"):
            monkeypatch.setenv(name, cluster.environment()[name])
        site, row = Site(cluster, tmp_path, small_set, reference), Row("a cut link", "the link of n2 is down")
        run = site.submit(env={"GLOO_SOCKET_IFNAME": INTERFACE, "OMP_NUM_THREADS": "1"})
        run.saved(SAVE_EVERY)
        assert run.nodes == ["n1", "n2"]
        orphan = run.rank(1)
        assert orphan.node == "n2"
        began = time.time()
        network.cut("n2")
        gone_after_node(site, run, row, "n2", began)
        wait_for("the rank behind the cut has left", lambda: not Path(f"/proc/{orphan.pid}").exists(), 120, run.text)
        run.let_go()
        assert run.end() == "COMPLETED", run.text()
        network.mend("n2")  # slurmstepd behind the cut waits for it, to tell its end
        finish(row, run, site, ["node_lost", "done"])
        assert "n2" not in run.ledger[1].nodes
        wait_for("the node is back", lambda: cluster.node_states().get("n2") == "idle", 180, cluster.logs)
        settle(cluster)
        print(row)
