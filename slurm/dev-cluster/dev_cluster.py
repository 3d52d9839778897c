#!/usr/bin/env python3
"""A real Slurm of several nodes on this machine, for trying things out and for tests; no root, no systemd, no GPU.

One slurmctld, one slurmd a node, and a munged with a key of its own, so that nobody else can send it jobs. All files
are in one directory. Every node believes it has cores of its own; in truth they share this machine's. Nodes can be
killed and revived. Needs Debian's or Ubuntu's packages slurmctld, slurmd, slurm-client and munge (22.05 was tested).

Partitions: main (the default); lo and hi, where a job in hi preempts one in lo, which gets 5 seconds and is requeued.

examples:
  dev_cluster.py up --nodes 3             start it (in /tmp/vit-dist-dev-UID; --dir puts it elsewhere)
  eval "$(dev_cluster.py env)"            let sbatch, squeue and vit-dist of this shell use it
  dev_cluster.py shell                    a new shell that does
  dev_cluster.py kill n2                  kill -9 of a node's daemons and of everything it runs
  dev_cluster.py kill n2 --orphans        of its daemons alone: jobs live on where Slurm no longer sees them
  dev_cluster.py revive n2
  dev_cluster.py status
  dev_cluster.py down                     end it and everything it runs; removes nothing but its own processes
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

_LONGEST = 70  # characters of the directory: Slurm puts Unix sockets into it, whose paths end at 108
_DAEMONS = ("slurmctld", "slurmd", "munged")
_STEPS = ("slurmd", "slurmstepd")
_CLIENTS = ("sinfo", "sbatch", "scontrol")

_CONF = """\
# Written by dev_cluster.py, for one machine.
ClusterName={name}
SlurmctldHost={host}({address})
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# Slurm lets a requeued job wait for as long as a credential is valid (121 s by default)
AuthInfo=socket={dir}/munge.socket,cred_expire={cred_expire}
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=2
# a connection that is refused is retried for TCPTimeout seconds, a silent one for MessageTimeout
MessageTimeout=5
TCPTimeout=1
SlurmdTimeout={slurmd_timeout}
MinJobAge=3600
FirstJobId={first_job}
JobRequeue=1
StateSaveLocation={dir}/state
SlurmdSpoolDir={dir}/spool/%n
SlurmctldPidFile={dir}/slurmctld.pid
SlurmdPidFile={dir}/%n.pid
SlurmctldLogFile={dir}/slurmctld.log
SlurmdLogFile={dir}/%n.log
{gres}{nodes}
PartitionName=main Nodes=ALL Default=YES State=UP PriorityTier=10
PartitionName=lo Nodes=ALL State=UP PriorityTier=1 GraceTime={grace} PreemptMode=REQUEUE
PartitionName=hi Nodes=ALL State=UP PriorityTier=100 PreemptMode=OFF
"""


class DevClusterError(Exception):
    """Something a person can mend: says what and how."""


class DevCluster:
    """A cluster in a directory: what dev_cluster.json there says, and the processes that belong to it."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        try:
            facts = json.loads((directory / "dev_cluster.json").read_text())
        except (OSError, ValueError):
            raise DevClusterError(f"{directory}: no dev cluster is here; start one with `up`") from None
        self.name: str = facts["name"]
        self.nodes: list[str] = facts["nodes"]
        self._inside: dict[str, list[str]] = facts["inside"]

    @property
    def conf(self) -> Path:
        """The cluster's slurm.conf."""
        return self.dir / "slurm.conf"

    def environment(self, environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment in which Slurm's commands talk to this cluster, and to it alone."""
        env = os.environ if environ is None else environ
        clean = {k: v for k, v in env.items() if not k.startswith(("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SINFO_"))}
        return {**clean, "SLURM_CONF": str(self.conf), "PATH": _path(env)}

    def run(self, *command: str, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster; its output is captured."""
        return subprocess.run(
            command, env=self.environment(), capture_output=True, text=True, check=check, timeout=timeout
        )

    def node_states(self) -> dict[str, str]:
        """What Slurm thinks of each node: {'n1': 'idle', ...}; empty where the controller does not answer."""
        found = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %t", check=False, timeout=30)
        return dict(line.split() for line in found.stdout.splitlines() if len(line.split()) == 2)

    def daemon(self, name: str) -> int | None:
        """The process id of `slurmctld`, of `munged` or of a node's slurmd; None where it does not run."""
        for pid, arguments, environment in _processes():
            program = Path(arguments[0]).name if arguments else ""
            if environment.get("VIT_DIST_DEV_CLUSTER") != self.name or program not in _DAEMONS:
                continue
            if program == name or (program == "slurmd" and environment.get("VIT_DIST_DEV_NODE") == name):
                return pid
        return None

    def processes(self, node: str | None = None) -> dict[int, str]:
        """{pid: command line} of every process that belongs to the cluster (or to one node): daemons, steps, tasks.

        A job's processes are known by the cluster's name in their environment, or by a parent that is known.
        """
        found: dict[int, str] = {}
        children: dict[int, list[tuple[int, str]]] = {}
        for pid, arguments, environment in _processes():
            line = " ".join(arguments)
            children.setdefault(_parent(pid), []).append((pid, line))
            ours = environment.get("VIT_DIST_DEV_CLUSTER") == self.name and "SLURM_JOB_ID" not in environment
            in_job = environment.get("SLURM_CLUSTER_NAME") == self.name and "SLURM_JOB_ID" in environment
            if (ours and node in (None, environment.get("VIT_DIST_DEV_NODE"))) or (
                in_job and node in (None, environment.get("SLURMD_NODENAME"))
            ):
                found[pid] = line
        todo = list(found)
        while todo:
            for child, line in children.get(todo.pop(), []):
                if child not in found:
                    found[child] = line
                    todo.append(child)
        found.pop(os.getpid(), None)
        return found

    def start_controller(self) -> None:
        """Start munged and slurmctld, where they do not run."""
        if self.daemon("munged") is None:
            # It refuses a socket in a directory that others cannot enter; this one is to be reached by nobody else.
            files = {
                "socket": "munge.socket",
                "key-file": "munge.key",
                "pid-file": "munge.pid",
                "log-file": "munge.log",
            }
            options = [f"--{name}={self.dir / file}" for name, file in {**files, "seed-file": "munge.seed"}.items()]
            self._start("munged", "--force", *options)
        if self.daemon("slurmctld") is None:
            self._start("slurmctld", "-f", str(self.conf))

    def revive(self, node: str) -> None:
        """Start a node's slurmd, where it does not run."""
        self._check(node)
        if self.daemon(node) is None:
            self._start(*self._inside.get(node, []), "slurmd", "-N", node, "-f", str(self.conf), node=node)

    def kill(self, node: str, *, orphans: bool = False) -> list[int]:
        """Kill a node at once, with SIGKILL. Returns the process ids.

        Args:
            node: its name.
            orphans: kill Slurm's daemons alone (slurmd and its slurmstepd), as if the network had been cut: what the
                jobs run there lives on, unknown to Slurm.
        """
        self._check(node)
        return _kill_all(lambda: self._daemons(node) if orphans else self.processes(node))

    def down(self) -> None:
        """End the cluster and every process of it. Its files stay."""
        _kill_all(self.processes)
        for pid in self.dir.glob("*.pid"):
            pid.unlink()

    def wait_ready(self, timeout: float = 60) -> None:
        """Wait until every node can take a job.

        Raises:
            DevClusterError: that took too long; what the logs say last.
        """
        deadline = time.monotonic() + timeout
        while not (states := self.node_states()) or any(s not in ("idle", "mix", "alloc") for s in states.values()):
            if time.monotonic() > deadline:
                raise DevClusterError(
                    f"{self.dir}: nodes are {states or 'unknown'} after {timeout:.0f}s\n{self.logs()}"
                )
            time.sleep(0.05)

    def logs(self, lines: int = 8) -> str:
        """The last lines of the daemons' logs."""
        tails = []
        for path in sorted(self.dir.glob("*.log")):
            tails += [f"== {path}", *path.read_text(errors="replace").splitlines()[-lines:]]
        return "\n".join(tails)

    def _daemons(self, node: str) -> dict[int, str]:
        return {
            pid: line for pid, line in self.processes(node).items() if Path(line.split()[0].rstrip(":")).name in _STEPS
        }

    def _check(self, node: str) -> None:
        if node not in self.nodes:
            raise DevClusterError(f"{node!r} is not a node of this cluster; its nodes are {', '.join(self.nodes)}")

    def _start(self, *command: str, node: str = "") -> None:
        marked = {**self.environment(), "VIT_DIST_DEV_CLUSTER": self.name, "VIT_DIST_DEV_NODE": node}
        done = subprocess.run(
            command, env=marked, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode:
            raise DevClusterError(f"{shlex.join(command)} failed: {done.stderr.strip()}\n{self.logs()}")


def up(
    directory: Path,
    nodes: int = 3,
    *,
    cpus: int = 8,
    gpus: int = 0,
    slurmd_timeout: int = 10,
    cred_expire: int = 5,
    grace: int = 5,
    first_job: int = 1,
    addresses: Mapping[str, str] | None = None,
    inside: Mapping[str, Sequence[str]] | None = None,
) -> DevCluster:
    """Start a cluster in a directory and wait until its nodes are idle; one that runs there already is left as it is.

    Args:
        directory: where its configuration, state and logs go; short, since sockets go there too.
        nodes: how many, named n1, n2, ...
        cpus: that each claims to have.
        gpus: that each claims to have; jobs get CUDA_VISIBLE_DEVICES, but there is nothing behind it.
        slurmd_timeout: seconds after which a silent node counts as down.
        cred_expire: seconds that a requeued job waits at least.
        grace: seconds a preempted job of partition `lo` gets.
        first_job: number of the first job; ports of training follow from it, and all clusters here share them.
        addresses: of the controller ('') and of nodes, where they are not the loopback's.
        inside: how a node's slurmd is started in a network of its own: words before its command.

    Raises:
        DevClusterError: Slurm is not installed, the directory cannot be used, or a daemon does not start.
    """
    directory = directory.resolve()
    _check_installed()
    _check_directory(directory)
    with contextlib.suppress(DevClusterError):
        running = DevCluster(directory)
        if running.daemon("slurmctld") is not None:
            return running
        running.down()
    shutil.rmtree(directory / "state", ignore_errors=True)
    names = [f"n{i + 1}" for i in range(nodes)]
    for folder in ("state", *(f"spool/{name}" for name in names)):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    settings = {"cred_expire": cred_expire, "slurmd_timeout": slurmd_timeout, "grace": grace, "first_job": first_job}
    for remaining in (2, 1, 0):  # a port may be taken between the look and the start
        cluster = _write(directory, names, cpus, gpus, settings, addresses or {}, inside or {})
        try:
            cluster.start_controller()
            for name in names:
                cluster.revive(name)
            cluster.wait_ready()
            return cluster
        except BaseException as error:
            cluster.down()
            if not remaining or not isinstance(error, DevClusterError) or "in use" not in str(error):
                raise
    raise AssertionError("the loop returns or raises")


def _write(
    directory: Path,
    names: Sequence[str],
    cpus: int,
    gpus: int,
    settings: Mapping[str, int],
    addresses: Mapping[str, str],
    inside: Mapping[str, Sequence[str]],
) -> DevCluster:
    port, *ports = _free_ports(1 + len(names))
    name = f"dev{port}-{os.getpid()}"
    gres = f" Gres=gpu:{gpus}" if gpus else ""
    lines = [
        f"NodeName={n} NodeAddr={addresses.get(n, '127.0.0.1')} Port={p} CPUs={cpus} "
        f"SocketsPerBoard=1 CoresPerSocket={cpus} ThreadsPerCore=1 RealMemory=64000{gres} State=UNKNOWN"
        for n, p in zip(names, ports, strict=True)
    ]
    conf = _CONF.format(
        name=name,
        host=socket.gethostname().partition(".")[0],
        address=addresses.get("", "127.0.0.1"),
        port=port,
        user=_user(),
        dir=directory,
        gres="GresTypes=gpu\n" if gpus else "",
        nodes="\n".join(lines),
        **settings,
    )
    (directory / "slurm.conf").write_text(conf)
    key = directory / "munge.key"
    key.unlink(missing_ok=True)
    key.touch(mode=0o600)
    key.write_bytes(os.urandom(128))
    if not Path("/sys/fs/cgroup").is_mount():
        (directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    if gpus:
        for i in range(gpus):
            device = directory / f"nvidia{i}"
            device.unlink(missing_ok=True)
            device.symlink_to("/dev/null")
        (directory / "gres.conf").write_text(f"Name=gpu File={directory}/nvidia[0-{gpus - 1}]\n")
    facts = {"name": name, "nodes": list(names), "inside": {n: list(words) for n, words in inside.items()}}
    (directory / "dev_cluster.json").write_text(json.dumps(facts))
    return DevCluster(directory)


def _check_installed() -> None:
    missing = [p for p in (*_DAEMONS, *_CLIENTS) if shutil.which(p, path=_path(os.environ)) is None]
    if missing:
        raise DevClusterError(
            f"{', '.join(missing)} not found; on Debian and Ubuntu: apt-get install slurmctld slurmd slurm-client munge"
        )


def _check_directory(directory: Path) -> None:
    if len(str(directory)) > _LONGEST or any(c in str(directory) for c in " \t\n#=%"):
        raise DevClusterError(
            f"{directory}: the path must have at most {_LONGEST} characters and no space, '#', '=' or '%'; give a "
            f"shorter one with --dir"
        )
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if directory.stat().st_uid != os.getuid():
        raise DevClusterError(f"{directory}: belongs to another user; give another one with --dir")
    directory.chmod(0o700)  # the key and its socket are this user's alone


def _path(environ: Mapping[str, str]) -> str:
    return f"{environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"  # where Debian puts daemons


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def _processes() -> Iterator[tuple[int, list[str], dict[str, str]]]:
    """(pid, arguments, environment) of every process whose environment we may read."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
            pairs = (entry / "environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        yield int(entry.name), arguments, dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def _kill_all(find: Callable[[], Mapping[int, str]]) -> list[int]:
    """SIGKILL to everything that is found, until nothing is: what is killed may just have started something."""
    killed: list[int] = []
    deadline = time.monotonic() + 20
    while (found := find()) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
        time.sleep(0.02)
    return sorted(set(killed))


def default_directory() -> Path:
    """Where the cluster lives unless somebody says otherwise."""
    return Path(tempfile.gettempdir()) / f"vit-dist-dev-{os.getuid()}"


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("up", "down", "env", "shell", "status", "kill", "revive"):
        one = verbs.add_parser(verb)
        one.add_argument("--dir", type=Path, default=default_directory(), help=f"default {default_directory()}")
        if verb == "up":
            one.add_argument("--nodes", type=int, default=3, help="default 3")
            one.add_argument("--cpus", type=int, default=8, help="that a node claims to have (default 8)")
            one.add_argument("--gpus", type=int, default=0, help="that a node claims to have (default 0)")
            one.add_argument("--slurmd-timeout", type=int, default=10, help="seconds until a silent node is down")
        if verb == "down":
            one.add_argument("--after", metavar="PID", type=int, help="wait until this process has ended")
        if verb in ("kill", "revive"):
            one.add_argument("node")
        if verb == "kill":
            one.add_argument("--orphans", action="store_true", help="kill the daemons alone; tasks live on")
    args = parser.parse_args(argv)
    try:
        return _serve(args)
    except DevClusterError as error:
        print(f"dev_cluster: {error}", file=sys.stderr)  # noqa: T201
        return 2


def _serve(args: argparse.Namespace) -> int:
    if args.verb == "up":
        if args.nodes < 1 or args.cpus < 1 or args.gpus < 0:
            raise DevClusterError("--nodes and --cpus must be at least 1, --gpus at least 0")
        cluster = up(args.dir, args.nodes, cpus=args.cpus, gpus=args.gpus, slurmd_timeout=args.slurmd_timeout)
        _say(f"{len(cluster.nodes)} nodes: {', '.join(cluster.nodes)}; SLURM_CONF={cluster.conf}")
        return 0
    cluster = DevCluster(args.dir.resolve())
    if args.verb == "down":
        while args.after and Path(f"/proc/{args.after}").exists():
            time.sleep(0.5)
        cluster.down()
    elif args.verb == "env":
        _say(f"export SLURM_CONF={shlex.quote(str(cluster.conf))}")
    elif args.verb == "shell":
        return subprocess.run([os.environ.get("SHELL", "/bin/sh")], env=cluster.environment(), check=False).returncode
    elif args.verb == "kill":
        _say(f"{args.node}: killed {len(cluster.kill(args.node, orphans=args.orphans))} processes")
    elif args.verb == "revive":
        cluster.revive(args.node)
    else:
        states = cluster.node_states()
        _say(f"slurmctld {'runs' if cluster.daemon('slurmctld') else 'is down'}; SLURM_CONF={cluster.conf}")
        for node in cluster.nodes:
            _say(f"{node}: {states.get(node, 'unknown')}, slurmd {'runs' if cluster.daemon(node) else 'is down'}")
        _say(cluster.run("squeue", check=False).stdout.rstrip())
    return 0


def _say(text: str) -> None:
    print(text)  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
