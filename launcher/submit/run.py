"""From a recipe and a cluster to a job in Slurm's queue: checks, run directory, code, script, submission."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher import bad_nodes
from launcher.filesystem import NEVER_SHARED, ONE_MACHINE, file_system_kind
from launcher.slurm import commands as slurm
from launcher.slurm.cluster import Cluster, slurm_time
from launcher.slurm.render import Site, check_no_secrets, check_path, render_train, signal_lead
from launcher.submit.snapshot import CODE_FOLDER, describe_code, take_snapshot
from vit_dist.config.load import recipe_hash, recipe_yaml, to_yaml
from vit_dist.config.plugins import check_plugins, with_copies
from vit_dist.config.schema import Recipe, dump
from vit_dist.core.errors import ConfigError, RunError, VitDistError
from vit_dist.core.files import is_remote, local_path, make_folder, write_bytes
from vit_dist.core.process import code_root
from vit_dist.core.run import history, names
from vit_dist.core.run.checkpoints import measured_save_s
from vit_dist.core.run.directory import RunDir
from vit_dist.core.units import counted, format_seconds
from vit_dist.core.world import World
from vit_dist.data.sets import idle_outputs, open_training_set


@dataclass(frozen=True)
class SubmitRequest:
    """What somebody wants to be submitted.

    Attributes:
        recipe: resolved.
        cluster: where.
        nodes, spares: on which the ranks run, and nodes more that take the place of lost ones.
        time_limit: of a job; '' for the cluster's.
        run_dir: of the run; None: RUN-ROOT/NAME-HASH.
        words: RECIPE and overrides as they were typed, for a script that stands by itself.
        cluster_file: where the cluster was read from.
        options: further words of `vit-dist train`.
    """

    recipe: Recipe
    cluster: Cluster
    nodes: int = 1
    spares: int = 0
    time_limit: str = ""
    run_dir: Path | None = None
    words: tuple[str, ...] = ()
    cluster_file: Path | None = None
    options: tuple[str, ...] = ()

    @property
    def root(self) -> Path:
        """The shared directory of run directories, absolute."""
        if self.run_dir is not None and not self.cluster.run_root:
            return self.run_dir.absolute().parent
        return local_path(self.cluster.run_root or "runs").expanduser().absolute()

    @property
    def directory(self) -> Path:
        """The run directory, absolute."""
        if self.run_dir is not None:
            return self.run_dir.expanduser().absolute()
        return self.root / names.run_folder(self.recipe.name, recipe_hash(self.recipe))

    @property
    def ranks(self) -> int:
        """Processes of an attempt."""
        return self.nodes * self.cluster.tasks


@dataclass(frozen=True)
class Submitted:
    """A job in the queue.

    Attributes:
        run_dir: of its run.
        job: its number.
        start: when Slurm expects it to start, seconds since 1970; None where it does not say.
        warnings: what a person should know.
    """

    run_dir: Path
    job: str
    start: float | None
    warnings: tuple[str, ...]


def dry_run(request: SubmitRequest) -> str:
    """The script that `submit` would hand to Slurm, made to stand by itself: it runs this code on the recipe as typed.

    Raises:
        ConfigError: what was asked for cannot be, or holds a secret.
    """
    check(request)
    check_no_secrets(request.words)
    site = _site(request, code_root(), request.cluster_file)
    notes = [f"warning: {text}" for text in warnings(request)]
    return render_train(
        site.noted(*notes),
        job_name=names.safe_name(request.recipe.name),
        run_dir=request.directory,
        recipe=(*request.words, *request.options),
        nodes=request.nodes,
        spares=request.spares,
        lead_s=_lead(request),
        standalone=True,
    )


def submit(request: SubmitRequest, *, args: Sequence[str] = ()) -> Submitted:
    """Make the run directory, ask Slurm whether it would take the job, and submit it.

    Args:
        request: what.
        args: further options of sbatch, such as '--dependency=afterok:12'.

    Raises:
        ConfigError: Slurm refuses the job, or what was asked for cannot be.
        RunError: the run is running, or its directory cannot be used.
    """
    check(request)
    directory = request.directory
    _check_free(request, directory)
    noted = [*warnings(request), *_check_shared(request.root)]
    script, job_dir = directory / names.JOB_FOLDER / "train.sbatch", directory / names.JOB_FOLDER
    # Slurm fails a job in silence where the directory of its output is missing.
    for folder in (directory / names.LOGS, job_dir):
        make_folder(folder)
    cluster_file = job_dir / names.CLUSTER
    site = _site(request, job_dir / CODE_FOLDER, cluster_file)
    text = render_train(
        site,
        job_name=names.safe_name(request.recipe.name),
        run_dir=directory,
        recipe=[str(job_dir / names.RECIPE), *request.options],
        nodes=request.nodes,
        spares=request.spares,
        lead_s=_lead(request),
    )
    write_bytes(str(script), text.encode())
    avoid = _avoid(request)
    # Slurm is asked before anything of the last job is replaced: where it refuses, that can still be resumed.
    tested = slurm.sbatch(script, args=[*avoid, *args], test_only=True)
    take_snapshot(job_dir / CODE_FOLDER)
    recipe = recipe_yaml(with_copies(request.recipe, directory)).encode()
    write_bytes(str(job_dir / names.RECIPE), recipe)
    write_bytes(str(cluster_file), to_yaml(dump(request.cluster)).encode())
    if not (directory / names.RECIPE).exists():
        write_bytes(str(directory / names.RECIPE), recipe)
    # What a person asked of the job before is not meant for this one.
    history.forget(directory)
    # First without a number: where sbatch fails here, that of the job before must not stand beside the new facts.
    after = history.submitting(directory, _facts(request, script))
    job = slurm.sbatch(script, args=[*avoid, *args]).job
    history.submitted(directory, job, after)
    return Submitted(directory, job, tested.start, tuple(noted))


def check(request: SubmitRequest) -> None:
    """Check what can be checked without Slurm, network or manifest.

    Raises:
        ConfigError: the ranks do not divide the batch, too many nodes, a path that cannot be, a time that is none, a
            directory with other people's files.
    """
    if request.nodes < 1 or request.spares < 0:
        raise ConfigError(
            f"--nodes={request.nodes} --spares={request.spares}: at least one node, and no fewer than no spare"
        )
    batch, ranks = request.recipe.global_batch, request.ranks
    together = 2 if request.recipe.data.pair_mixing is not None else 1
    if batch % (ranks * together):
        step = request.cluster.tasks * together
        possible = [n for n in range(1, batch // step + 1) if batch % (n * step) == 0]
        low = max((n for n in possible if n < request.nodes), default=None)
        high = min((n for n in possible if n > request.nodes), default=None)
        fitting = ", ".join(str(n) for n in (low, high) if n is not None)
        hint = f"; numbers of nodes that do: {fitting}" if fitting else ""
        pairs = (
            f"with {request.recipe.data.mixing_key} twice the ranks must divide the batch: " if together == 2 else ""
        )
        try:
            World(size=ranks * together).rank_batch(batch)
        except ConfigError as error:
            raise ConfigError(
                f"--nodes={request.nodes}: {request.nodes} x {counted(request.cluster.tasks, 'rank')} on cluster "
                f"{request.cluster.name}: {pairs}{error}{hint}"
            ) from None
    check_path(request.directory, "run directory", in_container=request.cluster.container is not None)
    RunDir(request.directory).check_ours()


def warnings(request: SubmitRequest) -> list[str]:
    """What may go wrong, as far as is known before anything is submitted."""
    noted = []
    saved, grace = measured_save_s(request.directory), request.cluster.preempt_grace
    if saved is not None and grace is not None and saved > float(grace.value):
        noted.append(
            f"a save of this run took {format_seconds(saved)}, but a preempted job is given {grace} (preempt_grace): "
            f"it will lose what came after its last checkpoint; save more often"
        )
    _, short = signal_lead(request.cluster, request.time_limit, _lead(request))
    return [*noted, *filter(None, (short, _idle_outputs(request.recipe)))]


def _idle_outputs(recipe: Recipe) -> str:
    """A head of many more outputs than there are classes, where the set lies on this machine: no network is asked."""
    urls = [part.train for part in recipe.data.mixture.values()] or [recipe.data.train]
    if any(is_remote(url) for url in urls):
        return ""
    with contextlib.suppress(VitDistError):
        return idle_outputs(recipe.data.num_classes, open_training_set(recipe).num_classes)
    return ""


def parse_time(text: str) -> str:
    """`--time` as Slurm writes it.

    Raises:
        ConfigError: no time.
    """
    try:
        return slurm_time(text)
    except ValueError as error:
        raise ConfigError(f"--time: {error}") from None


def _lead(request: SubmitRequest) -> float | None:
    """Seconds before the limit that Slurm's signal comes: the measured save and a margin, or None: not measured yet."""
    saved = measured_save_s(request.directory)
    return None if saved is None else saved + float(request.cluster.signal_margin.value)


def _site(request: SubmitRequest, code: Path, cluster_file: Path | None) -> Site:
    identity = f"{request.recipe.name} (recipe {recipe_hash(request.recipe)}) on cluster {request.cluster.name}"
    spare = f" and {request.spares} spare" if request.spares else ""
    size = f"{counted(request.nodes, 'node')} x {counted(request.cluster.tasks, 'rank')}{spare}"
    return Site.of(
        request.cluster,
        code,
        run_root=request.root,
        time_limit=request.time_limit,
        notes=[f"{identity}: {size}"],
        cluster_file=cluster_file,
    )


def _check_free(request: SubmitRequest, directory: Path) -> None:
    """Refuse a directory that is in use, done, or another run's.

    Raises:
        RunError, ConfigError: it is.
    """
    run = RunDir(directory)
    before = run.read_json(names.RUN)
    known = (before or {}).get("recipe_hash")
    wanted = recipe_hash(request.recipe)
    if known is not None and known != wanted:
        raise ConfigError(
            f"{directory}: holds another run ({known} there, {wanted} here); give another --run-dir, or remove it. "
            f"`vit-dist config` prints a recipe, {directory / names.RECIPE} is the one there"
        )
    check_plugins(request.recipe, before, directory)
    state = history.read(directory)
    status = state.status
    if status is not None and status.status == "done":
        raise ConfigError(
            f"{directory}: this run is done (step {status.step:,}); to train anew change seed=, or give "
            f"another --run-dir"
        )
    job = state.job_id
    if job:
        known_job = slurm.job(job)
        if known_job is not None and not known_job.ended and known_job.state:
            raise RunError(
                f"{directory}: job {job} of this run is {known_job.state.lower()}; follow it with `vit-dist status "
                f"{directory}`, end it with `vit-dist stop {directory}` or `vit-dist cancel {directory}`"
            )
    # Somebody may train there without Slurm.
    run.check_free()


def _check_shared(root: Path) -> list[str]:
    """Warnings about a run root that other machines may not see.

    Raises:
        ConfigError: it lies in this machine's memory or container.
    """
    kind = file_system_kind(root)
    if kind not in NEVER_SHARED | ONE_MACHINE or _nodes_are_here():
        return []
    if kind in NEVER_SHARED:
        raise ConfigError(
            f"{root}: lies on {kind}, which no other machine sees, but jobs run on other machines; set run_root in the "
            f"cluster file, or --run-dir, to a shared file system"
        )
    return [f"{root} lies on {kind}: if this machine does not export it, the nodes will not see it; set run_root"]


def _nodes_are_here() -> bool:
    """True where every node of the cluster is this very machine."""
    here = {"127.0.0.1", "localhost", "::1", socket.gethostname(), socket.gethostname().partition(".")[0]}
    with contextlib.suppress(VitDistError):
        addresses = slurm.node_addresses("", patience_s=5)
        return bool(addresses) and all(address in here for address, _ in addresses.values())
    return False


def _avoid(request: SubmitRequest) -> list[str]:
    """The option that keeps the job off nodes on the list of bad ones, as long as enough others are left."""
    with contextlib.suppress(VitDistError):
        bad = list(bad_nodes.active(request.root))
        if bad:
            states = slurm.node_states(patience_s=5)
            bad = [node for node in bad if node in states]
            if bad and len(states) - len(bad) >= request.nodes + request.spares:
                return [f"--exclude={','.join([*filter(None, [request.cluster.exclude]), *bad])}"]
    return []


def _facts(request: SubmitRequest, script: Path) -> dict[str, object]:
    return {
        "cluster": request.cluster.name,
        "cluster_file": str(script.parent / names.CLUSTER),
        "nodes": request.nodes,
        "devices_per_node": request.cluster.tasks,
        "spares": request.spares,
        "time_limit": request.time_limit or request.cluster.time_limit,
        "script": str(script),
        "recipe": str(script.parent / names.RECIPE),
        "code": describe_code(),
        "cwd": str(Path.cwd()),
        "name": request.recipe.name,
        "user": os.environ.get("USER", ""),
    }
