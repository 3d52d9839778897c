"""Where a node is reached: the one answer of training, supervisors, job scripts and the preflight.

`python -m launcher.slurm.addresses NODE` prints it, for job scripts.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Mapping

from launcher.slurm import commands as slurm
from vit_dist.core.errors import ConfigError, VitDistError
from vit_dist.core.network import is_address, is_own_address, resolves
from vit_dist.core.process import wait_until

_NAME_SERVICE_S = 8.0
"""A name service that is slow at the start of a job gets so long. Whoever waits for more waits in vain."""
_SLURM_S = 5.0


def node_address(node: str, environ: Mapping[str, str] | None = None) -> str:
    """How other nodes reach a node: its name where that resolves, else the address that Slurm uses (NodeAddr).

    Where Slurm's commands are not at hand, as in a container, SLURM_LAUNCH_NODE_IPADDR is the address of the node that
    srun was started on, which in a batch job is the first one.

    Args:
        node: its name, or an address, which is taken as it is; an IPv6 address may stand in brackets.
        environ: of this process.

    Raises:
        ConfigError: within seconds, where none of these is known.
    """
    env = os.environ if environ is None else environ
    bare = node[1:-1] if node.startswith("[") and node.endswith("]") else node
    if is_address(bare) or resolves(bare):
        return bare
    with contextlib.suppress(VitDistError):
        address, _ = slurm.node_addresses(bare, patience_s=_SLURM_S).get(bare, (bare, 0))
        if address != bare and (is_address(address) or resolves(address)):
            return address
    launched = env.get("SLURM_LAUNCH_NODE_IPADDR", "")
    # On the node itself it can be told whether srun was started here, or on a login node.
    if is_address(launched) and (env.get("SLURMD_NODENAME", bare) != bare or is_own_address(launched)):
        return launched
    if wait_until(lambda: resolves(bare), _NAME_SERVICE_S, 1.0):
        return bare
    raise ConfigError(
        f"MASTER_ADDR: the name {node} of rank 0's node cannot be resolved here, and Slurm names no address for it; "
        f"set MASTER_ADDR (and MASTER_PORT) to an address of that node, or have the name put into DNS or /etc/hosts"
    )


def main(argv: list[str] | None = None) -> int:
    """Print a node's address. Returns the exit code."""
    (node,) = sys.argv[1:] if argv is None else argv
    try:
        print(node_address(node))  # noqa: T201 - the result
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
