"""Which runs there are, and which one a person means by a directory, a name or a job's number."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vit_dist.core.errors import ConfigError, did_you_mean
from vit_dist.core.run import history, names, records
from vit_dist.core.units import counted

_DEPTH = 3
"""ROOT/RUN, ROOT/STUDY/CELL, and one more for folders of a person's own."""


def run_roots(given: Sequence[Path] = ()) -> list[Path]:
    """Directories in which runs are looked for.

    Args:
        given: by the user; else `runs`, those of VIT_DIST_RUNS (with colons between), and `run_root` of the cluster
            files that are shipped or lie in configs/clusters, as far as they exist.

    Raises:
        ConfigError: one that was given is no directory.
    """
    if given:
        for root in given:
            if not root.is_dir():
                raise ConfigError(f"--runs {root}: no such directory")
        return _distinct(given)
    listed = os.environ.get("VIT_DIST_RUNS", "")
    if "://" in listed:
        raise ConfigError(f"VIT_DIST_RUNS={listed}: holds a URL; give paths on this machine with ':' between them")
    named = [Path("runs"), *(Path(p) for p in listed.split(":") if p)]
    return _distinct(path for path in (*named, *_cluster_roots()) if path.is_dir())


def find_runs(roots: Iterable[Path]) -> list[Path]:
    """Every run directory below the roots, by path. What lies in a run directory is not looked at."""
    roots = list(roots)
    # Threads, since a shared file system takes its time for each answer.
    with ThreadPoolExecutor(16) as pool:
        runs = [run for root in roots for run in _below(root, pool)]
    return sorted(set(runs))


def find_run(wanted: str, roots: Sequence[Path], elsewhere: str = "--runs DIR") -> Path:
    """The directory of the run that is meant.

    Args:
        wanted: its directory; its name, or the beginning of its name, or STUDY/CELL; or the number of one of its jobs.
        roots: where to look for it; see `run_roots`.
        elsewhere: what makes it look in other places.

    Raises:
        ConfigError: there is none, or more than one; they are listed.
    """
    direct, inside = Path(wanted), list[Path]()
    if wanted and direct.is_dir():
        if is_run(direct) or (direct / names.RECIPE).is_file():
            return direct
        inside = find_runs([direct])
        if not inside:
            raise ConfigError(none_in(direct))
    runs = find_runs(roots)
    if records.is_job_number(wanted):
        with_job = [run for run in runs if wanted in jobs_of(run)]
        if with_job:
            return _only(wanted, with_job, "more than one run has had this job number")
    parts = Path(wanted).parts
    for matches in (
        [run for run in runs if parts and run.parts[-len(parts) :] == parts],
        [run for run in runs if wanted and run.name.startswith(wanted)],
    ):
        if matches:
            return _only(wanted, matches, "this may be any of several runs")
    if inside:
        raise ConfigError(_several(wanted, inside))
    where = ", ".join(str(root) for root in roots) or "no directory (there is no runs/ here)"
    hint = did_you_mean(wanted, [run.name for run in runs]) if runs else "; there are no runs there"
    if direct.is_file():
        raise ConfigError(f"no run {wanted!r}: a file, where the directory of a run is needed")
    raise ConfigError(
        f"no run {wanted!r}: not the directory of a run, nor the name or the job of one in {where} ({elsewhere} looks "
        f"elsewhere){hint}"
    )


def find_begun(wanted: str) -> tuple[Path, str]:
    """The directory of a run that has begun, and the name of one of its checkpoints, or ''.

    Args:
        wanted: a run as `find_run` takes it, or one of its checkpoints: RUN-DIR/checkpoints/step-0000010000.

    Raises:
        ConfigError: there is no such run, or it has no recipe yet; says which.
    """
    path, checkpoint = Path(wanted), ""
    if path.parent.name == names.CHECKPOINTS:
        path, checkpoint = path.parent.parent, path.name
    if not (path / names.RECIPE).is_file():
        path = find_run(str(path) if wanted else "", [] if path.is_dir() else run_roots(), "VIT_DIST_RUNS=DIR")
    if not (path / names.RECIPE).is_file():
        raise ConfigError(f"{path}: the directory of a run that has not begun: it holds no {names.RECIPE} yet")
    return path, checkpoint


def holds_runs(wanted: str, roots: Sequence[Path]) -> bool:
    """Whether what a person names is a directory of runs, and neither a run nor the name of one."""
    direct = Path(wanted)
    if not wanted or not direct.is_dir() or is_run(direct) or (direct / names.RECIPE).is_file():
        return False
    parts = direct.parts
    if parts and any(run.parts[-len(parts) :] == parts for run in find_runs(roots)):
        return False
    return bool(find_runs([direct]))


def none_in(directory: Path) -> str:
    """Words for a directory without runs, and what to do."""
    return (
        f"{str(directory)!r}: no run is in this directory, nor in the {_DEPTH} levels below it; give the directory of "
        f"a run, or one that holds runs, such as the --run-dir of `vit-dist train` (`runs/NAME-HASH` by default)"
    )


def no_runs(roots: Sequence[Path]) -> str:
    """Words for what was looked through in vain, and what to do."""
    where = ", ".join(str(root) for root in roots) or "runs (there is no such directory here)"
    return f"no runs: looked in {where}; --runs DIR looks elsewhere, `vit-dist train demo` begins one"


def _several(wanted: str, inside: Sequence[Path]) -> str:
    shown = "".join(f"\n  {run}" for run in inside[:20])
    more = f"\n  and {len(inside) - 20} more" if len(inside) > 20 else ""
    return f"{wanted!r}: a directory that holds {counted(len(inside), 'run')}, and is none; give one:{shown}{more}"


def is_run(path: Path) -> bool:
    """True where a directory is that of a run."""
    return any((path / mark).is_file() for mark in names.MARKS_OF_A_RUN)


def jobs_of(run: Path) -> set[str]:
    """Numbers of all jobs that a run has had: `120`, and for an array's elements `120_3` too."""
    state = history.read(run, forgiving=True)
    return {state.submitted_job, *(one.job for one in state.attempts)} - {""}


def _only(wanted: str, matches: Sequence[Path], why: str) -> Path:
    if len(matches) == 1:
        return matches[0]
    shown = "".join(f"\n  {run}" for run in matches[:20])
    more = f"\n  and {len(matches) - 20} more" if len(matches) > 20 else ""
    raise ConfigError(f"{wanted!r}: {why}; give the directory of the one that is meant:{shown}{more}")


def _below(root: Path, pool: ThreadPoolExecutor) -> list[Path]:
    level, runs = [root], list[Path]()
    for depth in range(_DEPTH + 1):
        listed = list(pool.map(_list, level))
        level = []
        for path, (files, folders) in listed:
            if depth and files & names.MARKS_OF_A_RUN:
                runs.append(path)
            else:
                level += folders
    return runs


def _list(path: Path) -> tuple[Path, tuple[set[str], list[Path]]]:
    files, folders = set[str](), list[Path]()
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.name in names.MARKS_OF_A_RUN:
                    files.add(entry.name)
                elif not entry.name.startswith(".") and entry.is_dir():
                    folders.append(path / entry.name)
    except OSError:
        # No permission, or gone: nothing of it can be shown.
        pass
    return path, (files, folders)


def _cluster_roots() -> Iterator[Path]:
    # Here, since pydantic takes its time to import, and `--runs DIR` does not need it.
    from vit_dist.config.load import config_dirs, read_mapping

    places = [*config_dirs(), Path("configs")]
    for file in {file.resolve() for place in places for file in (place / "clusters").glob("*.yaml")}:
        try:
            root = read_mapping(file).get("run_root")
        except ConfigError:
            continue  # `vit-dist submit` says what is wrong with it
        if isinstance(root, str) and root:
            yield Path(os.path.expandvars(root)).expanduser()


def _distinct(paths: Iterable[Path]) -> list[Path]:
    seen = dict[Path, Path]()
    for path in paths:
        seen.setdefault(path.resolve(), path)
    return list(seen.values())
