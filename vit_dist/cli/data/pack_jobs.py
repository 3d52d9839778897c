"""`vit-dist data pack --cluster`: a packing as an array of Slurm jobs, and the job that merges. No torch."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vit_dist.cli.data.options import out, say
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import local_path
from vit_dist.core.run import names
from vit_dist.core.units import counted

_PARTS = 16
# Those about Slurm and plug-ins, and how many values each takes.
_NOT_FOR_PARTS = {
    "--cluster": 1,
    "--parts": 1,
    "--max-parallel": 1,
    "--time": 1,
    "--run-root": 1,
    "--dry-run": 0,
    "--plugin": 1,
}


def submit_pack(args: argparse.Namespace, argv: list[str]) -> int:
    """Submit what is missing of a packing, or print the scripts.

    Args:
        args: of `vit-dist data pack`, parsed and checked.
        argv: the same as words.
    """
    from launcher.slurm import commands as slurm
    from launcher.slurm.cluster import load_cluster, slurm_time
    from launcher.slurm.render import Site, check_no_secrets
    from launcher.submit import pack
    from vit_dist.config.plugins import copy_file
    from vit_dist.core.plugins import load_file
    from vit_dist.core.process import code_root

    for name in ("part", "force"):
        if getattr(args, name):
            raise ConfigError(f"--{name}: cannot be given with --cluster; its jobs pack part by part, all at once")
    try:
        time_limit = slurm_time(args.time) if args.time else ""
    except ValueError as error:
        raise ConfigError(f"--time: {error}") from None
    cluster = load_cluster(args.cluster)
    root = args.run_root or local_path(cluster.run_root or "runs")
    words = words_of_jobs(argv)
    check_no_secrets(words)
    parts = args.parts or _PARTS
    folder = pack.folder_of(root, args.dest)
    files = [path.expanduser().absolute() for path in args.plugin]
    for file in files if args.dry_run else [copy_file(load_file(file), folder / names.PLUGINS) for file in files]:
        words += ["--plugin", str(file)]
    missing = list(range(parts)) if args.dry_run else _missing(args, parts)
    if not missing and _is_merged(args.dest):
        out(f"{args.dest} is packed and merged already; nothing was submitted\n")
        return 0
    jobs = pack.PackJobs(
        site=Site.of(cluster, code_root(), run_root=root, time_limit=time_limit),
        folder=folder,
        pack=("data", "pack", *words),
        merge=("data", "merge", args.dest, "--max-bad", str(args.max_bad)),
        parts=parts,
        missing=tuple(missing),
        throttle=args.max_parallel or 0,
        largest=slurm.USUAL_ARRAY if args.dry_run else slurm.largest_array(),
    )
    if args.dry_run:
        out(_shown(jobs.scripts(), jobs.merge))
        return 0
    submission = pack.submit(jobs)
    _report(submission, folder, args.dest)
    return 0


def words_of_jobs(argv: list[str]) -> list[str]:
    """The words of a command line that each part is given: all but those about Slurm and plug-ins, which are copied."""
    words, skip = list[str](), 0
    for word in argv:
        name, equals, _ = word.partition("=")
        if skip:
            skip -= 1
        elif name in _NOT_FOR_PARTS:
            skip = 0 if equals else _NOT_FOR_PARTS[name]
        else:
            words.append(word)
    return words


def _missing(args: argparse.Namespace, parts: int) -> list[int]:
    from vit_dist.data.pack.plan import unpacked_parts
    from vit_dist.data.pack.shards import ImageOptions

    images = ImageOptions(args.resize_shorter, args.resize_longer, args.quality, args.upright)
    return unpacked_parts(args.dest, parts, {"seed": args.seed, "images": asdict(images)})


def _is_merged(dest: str) -> bool:
    from vit_dist.core.files import exists, join_url

    return any(exists(join_url(dest, name)) for name in ("manifest.json", "train/manifest.json"))


def _shown(scripts: dict[str, str], merge: tuple[str, ...]) -> str:
    """The script of the (first) array, which may be submitted as it is, and in comments what follows it."""
    first, *others = scripts
    text = scripts[first]
    if len(others) > 1:
        text += f"\n# {counted(len(others), 'array')} like this one: "
        text += f"Slurm's MaxArraySize cuts {', '.join(others[:-1])} off\n"
    return text + f"\n# once all parts are packed: vit-dist {shlex.join(merge)}\n"


def _report(submission: dict[str, Any], folder: Path, dest: str) -> None:
    ids = ",".join([*submission["arrays"], submission["merge"]])
    skipped = submission["parts"] - submission["missing"]
    say(
        f"{skipped} of {counted(submission['parts'], 'part is', 'parts are')} packed already"
        if skipped
        else f"{counted(submission['parts'], 'part')}"
    )
    if submission["arrays"]:
        out(f"packing  job {', '.join(submission['arrays'])}: {counted(submission['missing'], 'part')} into {dest}\n")
    out(f"merging  job {submission['merge']}, once all are packed\n")
    out(f"logs     {folder}\nfollow   squeue -j {ids}\nagain    the same command submits what is missing\n")
