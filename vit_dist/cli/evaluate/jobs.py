"""`vit-dist evaluate --cluster`: an evaluation as a Slurm job, or an array of them. No torch."""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.files import local_path
from vit_dist.core.run import names
from vit_dist.core.text import read_text
from vit_dist.core.units import counted


def submit_evaluation(args: argparse.Namespace, runs: list[str], overrides: list[str]) -> int:
    """Submit, or print the script.

    Args:
        args: of `vit-dist evaluate`, parsed.
        runs: run directories (one) among its words; empty with --list.
        overrides: the other words.
    """
    from launcher.slurm import commands as slurm
    from launcher.slurm.cluster import load_cluster
    from launcher.slurm.render import Site, check_no_secrets, render_evaluate
    from launcher.status.find import find_begun
    from launcher.submit.run import parse_time
    from vit_dist.cli.evaluate.checks import check_unchanged
    from vit_dist.config.load import load_recipe
    from vit_dist.core.process import code_root

    if args.nproc is not None or args.element is not None:
        raise ConfigError("--nproc and --element: mean nothing with --cluster; its jobs start a process a device")
    if args.list is not None and args.out is not None:
        raise ConfigError("--out: one file for many runs; each run's history and log have its values")
    _check_counts(args)
    if args.after:
        slurm.check_id(args.after)
    time_limit = parse_time(args.time) if args.time else ""
    cluster = load_cluster(args.cluster)
    # With --after the run may have to begin yet: another job trains it first.
    if args.list is None and not args.after:
        found, checkpoint = find_begun(runs[0])
        runs = [str(found / names.CHECKPOINTS / checkpoint if checkpoint else found)]
    subject = Path(runs[0] if runs else args.list).absolute()
    elements = _elements(args.list, begun=not args.after)
    check_no_secrets(overrides)
    where = subject.parent.parent if subject.parent.name == names.CHECKPOINTS else subject
    if args.list is None and not args.after:
        check_unchanged(load_recipe(str(where / names.RECIPE), overrides), where, overrides)
    folder = (where / names.LOGS) if args.list is None else subject.with_name(f"{subject.name}.evaluate")
    stamp = hashlib.sha256(f"{time.time_ns()}".encode()).hexdigest()[:6]
    code = code_root() if args.dry_run else folder / f"evaluate-{stamp}.code"
    site = Site.of(cluster, code, run_root=local_path(cluster.run_root or "runs"), time_limit=time_limit)
    words = ["--list", str(subject)] if args.list else [str(subject)]
    script = render_evaluate(
        site,
        job_name=f"{where.name}-evaluate",
        command=["evaluate", *words, *overrides, *(["--out", str(args.out.absolute())] if args.out else [])],
        log_file=folder / ("evaluate.log" if args.dry_run else f"evaluate-{stamp}.log"),
        nodes=args.nodes or 1,
        devices=args.devices,
        elements=elements,
        throttle=args.max_parallel or 0,
    )
    if args.dry_run:
        print(script, end="")  # noqa: T201 - the result
        return 0
    job = _hand_in(script, folder / f"evaluate-{stamp}.sbatch", code, args.after)
    what = f"an array of {counted(elements, 'run')}" if elements else str(subject)
    print(f"job {job}: evaluates {what}\nlogs {folder}/evaluate-{stamp}.log{'-*' if elements else ''}")  # noqa: T201
    return 0


def submit_weights(args: argparse.Namespace, source: str, words: list[str]) -> int:
    """Submit an evaluation of weights without a run, or print the script.

    Args:
        args: of `vit-dist evaluate`, parsed.
        source: a file or folder of weights, its URL, or the name of a model.
        words: the other words of the command line that the job is given, `--out` among them.

    Raises:
        ConfigError: what is asked for cannot be.
    """
    from launcher.slurm import commands as slurm
    from launcher.slurm.cluster import load_cluster
    from launcher.slurm.render import Site, check_no_secrets, render_evaluate
    from launcher.submit.run import parse_time
    from vit_dist.core.process import code_root

    if args.nproc is not None or args.max_parallel is not None:
        raise ConfigError("--nproc and --max-parallel: mean nothing here; the job starts a process a device")
    if args.out is None:
        raise ConfigError(f"--cluster: {source} has no log that its values could join; give --out FILE.json")
    _check_counts(args)
    if args.after:
        slurm.check_id(args.after)
    cluster = load_cluster(args.cluster)
    check_no_secrets(words)
    out = args.out.absolute()
    folder = out.with_name(f"{out.stem}.evaluate")
    stamp = hashlib.sha256(f"{time.time_ns()}".encode()).hexdigest()[:6]
    code = code_root() if args.dry_run else folder / f"evaluate-{stamp}.code"
    limit = parse_time(args.time) if args.time else ""
    script = render_evaluate(
        Site.of(cluster, code, run_root=local_path(cluster.run_root or "runs"), time_limit=limit),
        job_name=f"{names.safe_name(out.stem)}-evaluate",
        command=["evaluate", str(Path(source).absolute()) if Path(source).exists() else source, *words],
        log_file=folder / f"evaluate-{stamp}.log",
        nodes=args.nodes or 1,
        devices=args.devices,
    )
    if args.dry_run:
        print(script, end="")  # noqa: T201 - the result
        return 0
    job = _hand_in(script, folder / f"evaluate-{stamp}.sbatch", code, args.after)
    print(f"job {job}: evaluates {source}\nvalues will be in {out}\nlogs {folder}/evaluate-{stamp}.log")  # noqa: T201
    return 0


def _elements(path: Path | None, *, begun: bool) -> int:
    """Lines of a list; 0 where none is given."""
    from launcher.status.find import find_begun

    if path is None:
        return 0
    try:
        lines = read_text(path).splitlines()
    except DataError as error:
        raise ConfigError(f"--list {error}") from None
    if not lines:
        raise ConfigError(f"--list {path}: no runs in it")
    for number, line in enumerate(lines, 1) if begun else ():
        try:
            find_begun(line)
        except ConfigError as error:
            raise ConfigError(f"--list {path}, line {number}: {error}") from None
    return len(lines)


def _check_counts(args: argparse.Namespace) -> None:
    for name in ("nodes", "devices", "max_parallel"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}={getattr(args, name)}: at least 1 is needed")


def _hand_in(script: str, path: Path, code: Path, after: str | None) -> str:
    """Write a script to a path beside a snapshot of the code, and submit it behind another job. -> the job's number."""
    from launcher.slurm import commands as slurm
    from launcher.submit.snapshot import take_snapshot
    from vit_dist.core.files import make_folder, write_bytes

    make_folder(path.parent)
    take_snapshot(code)
    write_bytes(str(path), script.encode())
    return slurm.sbatch(path, args=[f"--dependency=afterok:{after}"] if after else []).job
