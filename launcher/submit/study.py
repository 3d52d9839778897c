"""A study as arrays of Slurm jobs, an element a run, each with an evaluation behind it where the study asks for one.

Given again it submits what is neither done nor in the queue: broken runs resume from their checkpoints. What was
submitted lies in the study's directory under jobs/: arrays.json, and for each time scripts, lists of runs and the code.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from launcher.slurm import commands as slurm
from launcher.slurm.cluster import Cluster
from launcher.slurm.render import Site, check_no_secrets, render_array, render_evaluate
from launcher.submit.run import SubmitRequest, check
from launcher.submit.snapshot import CODE_FOLDER, describe_code, take_snapshot
from vit_dist.config.load import recipe_yaml, to_yaml
from vit_dist.config.plugins import with_copies
from vit_dist.config.schema import dump
from vit_dist.core.errors import ConfigError, VitDistError
from vit_dist.core.files import local_path, make_folder, write_bytes
from vit_dist.core.process import code_root
from vit_dist.core.run import history, names
from vit_dist.core.small_files import DamagedError, is_objects, is_text, is_texts, or_none, parse_json, read_small
from vit_dist.study.grid import Cell
from vit_dist.study.local import cell_state, check_directories, evaluated, waits_for

_RECORD = "arrays.json"


@dataclass(frozen=True)
class StudyJobs:
    """What somebody wants of a study on a cluster.

    Attributes:
        cluster: where.
        directory: of the study, absolute: run directories are in it.
        cells: all of the study.
        nodes, spares: of each run.
        time_limit: of a job; '' for the cluster's.
        throttle: runs at a time; 0: as many as the cluster gives.
    """

    cluster: Cluster
    directory: Path
    cells: tuple[Cell, ...]
    nodes: int = 1
    spares: int = 0
    time_limit: str = ""
    throttle: int = 0

    def run_dir(self, cell: Cell) -> Path:
        """Of a cell."""
        return self.directory / cell.name

    def site(self, code: Path, cluster_file: Path | None = None) -> Site:
        """Where scripts run."""
        note = f"study {self.cells[0].study} on cluster {self.cluster.name}"
        root = local_path(str(self.cluster.run_root or self.directory.parent))
        return Site.of(
            self.cluster,
            code,
            run_root=root,
            time_limit=self.time_limit,
            notes=[note],
            cluster_file=cluster_file,
        )


@dataclass(frozen=True)
class Todo:
    """What is left of a study: to be trained, and trained but not evaluated; and what need not be submitted.

    `train` are runs that can begin at once, `behind` branches of some of them, and `later` branches of a trunk that is
    in the queue already, with what each lacks.
    """

    train: tuple[Cell, ...]
    evaluate: tuple[Cell, ...]
    done: tuple[Cell, ...]
    queued: Mapping[str, str]
    behind: tuple[Cell, ...] = ()
    later: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Array:
    """One array: its cells in the order of its elements, its scripts by name, and what they wait for.

    `behind` is the array of the trunks of its branches, '' where it waits for none: element i for element i.
    """

    name: str
    cells: tuple[Cell, ...]
    train: str
    evaluate: str
    behind: str = ""


def todo(jobs: StudyJobs) -> Todo:
    """What is left to be submitted.

    Raises:
        ConfigError: a run directory is of another recipe; the ranks do not fit a recipe.
        RunError: a run directory is damaged, or Slurm does not answer.
    """
    check_directories(jobs.cells, jobs.directory)
    checked: set[int] = set()
    for cell in jobs.cells:
        if cell.recipe.global_batch not in checked:
            checked.add(cell.recipe.global_batch)
            check(
                SubmitRequest(cell.recipe, jobs.cluster, jobs.nodes, jobs.spares, jobs.time_limit, jobs.run_dir(cell))
            )
    states = {cell.name: cell_state(jobs.run_dir(cell)).state for cell in jobs.cells}
    done = tuple(cell for cell in jobs.cells if states[cell.name] == "done")
    unseen = [c for c in done if c.evaluations and not evaluated(c, jobs.run_dir(c))]
    waiting = in_queue(jobs.directory)
    train = [c for c in jobs.cells if states[c.name] not in ("done", "running") and c.name not in waiting]
    lacking = {c.name: lack for c in train if (lack := waits_for(c, jobs.directory)) is not None}
    ready = {c.name for c in train if c.name not in lacking}
    trunks = {c.trunk for c in train if c.name in lacking}
    return Todo(
        # Trunks first: element i of an array of branches is behind element i of theirs.
        train=tuple(sorted((c for c in train if c.name in ready), key=lambda c: c.name not in trunks)),
        behind=tuple(c for c in train if c.name in lacking and c.trunk in ready),
        later={c.name: f"its trunk {c.trunk} {lacking[c.name]}" for c in train if not {c.name, c.trunk} & ready},
        evaluate=tuple(c for c in unseen if c.name not in waiting),
        done=tuple(c for c in done if c not in unseen),
        queued={c.name: waiting.get(c.name, states[c.name]) for c in jobs.cells if c.name in waiting}
        | {c.name: "running" for c in jobs.cells if states[c.name] == "running"},
    )


def arrays(jobs: StudyJobs, left: Todo, folder: Path, *, largest: int, code: Path) -> list[Array]:
    """The arrays that train and evaluate what is left: `largest` elements at most, one set of evaluations each.

    Raises:
        ConfigError: something cannot stand in a script.
    """
    planned = []
    site = jobs.site(code, folder / names.CLUSTER)
    for what, cells in (("train", left.train), ("evaluate", left.evaluate)):
        for first in range(0, len(cells), largest):
            chunk = cells[first : first + largest]
            name = what if len(cells) <= largest else f"{what}-{first // largest}"
            listed = folder / f"{name}.list"
            train = _training(jobs, site, listed, chunk, folder) if what == "train" else ""
            planned.append(Array(name, chunk, train, _evaluation(jobs, site, listed, chunk)))
            for label, branches in _behind(chunk, left.behind) if what == "train" else ():
                listed = folder / f"{name}-{label}.list"
                script = _training(jobs, site, listed, branches, folder)
                evaluation = _evaluation(jobs, site, listed, branches)
                planned.append(Array(f"{name}-{label}", branches, script, evaluation, behind=name))
    return planned


def _behind(trunks: Sequence[Cell], branches: Sequence[Cell]) -> Iterator[tuple[str, tuple[Cell, ...]]]:
    """Each label of branches, and those of it whose trunks are among these, in the order of their trunks."""
    places = {cell.name: place for place, cell in enumerate(trunks)}
    here = sorted((cell for cell in branches if cell.trunk in places), key=lambda cell: places[cell.trunk])
    for label in dict.fromkeys(cell.label for cell in here):
        yield label, tuple(cell for cell in here if cell.label == label)


def _training(jobs: StudyJobs, site: Site, listed: Path, cells: Sequence[Cell], folder: Path) -> str:
    """The script of the array whose elements train the runs of a list."""
    return render_array(
        site,
        job_name=f"{jobs.cells[0].study}-train",
        list_file=listed,
        count=len(cells),
        log_dir=folder,
        nodes=jobs.nodes,
        spares=jobs.spares,
        throttle=jobs.throttle,
    )


def _evaluation(jobs: StudyJobs, site: Site, listed: Path, cells: Sequence[Cell]) -> str:
    """The array whose elements evaluate the runs of a list; '' where the study has no evaluations."""
    if not cells[0].evaluations:
        return ""
    evaluators = json.dumps([dump(e) for e in cells[0].evaluations])
    words = ["evaluate", "--list", str(listed), f"evaluators={evaluators}"]  # JSON is YAML
    check_no_secrets(words)
    return render_evaluate(
        site,
        job_name=f"{jobs.cells[0].study}-evaluate",
        command=words,
        log_file=listed.with_suffix(".evaluation"),
        elements=len(cells),
        throttle=jobs.throttle,
    )


def dry_run(jobs: StudyJobs, left: Todo) -> list[Array]:
    """The arrays that `submit` would submit; nothing is written, and Slurm is asked for no more than its limits."""
    largest = slurm.USUAL_ARRAY
    with contextlib.suppress(VitDistError):
        largest = slurm.largest_array()
    return arrays(jobs, left, jobs.directory / "jobs" / "NOW", largest=largest, code=code_root())


def submit(jobs: StudyJobs, left: Todo) -> dict[str, Any]:
    """Submit what is left, as `todo` has it.

    Returns:
        What arrays.json says of it: {"arrays": [{"name", "job", "evaluate", "cells", ...}], ...}.

    Raises:
        ConfigError: Slurm refuses a script, or what was asked for cannot be.
        RunError: Slurm or a run directory does not answer.
    """
    entry: dict[str, Any] = {"at": time.time(), "cluster": jobs.cluster.name, "code": describe_code(), "arrays": []}
    if not left.train and not left.evaluate:
        return entry
    folder = jobs.directory / "jobs" / datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    planned = arrays(jobs, left, folder, largest=slurm.largest_array(), code=folder / CODE_FOLDER)
    make_folder(folder)
    take_snapshot(folder / CODE_FOLDER)
    write_bytes(str(folder / names.CLUSTER), to_yaml(dump(jobs.cluster)).encode())
    for array in planned:
        lines = "".join(f"{jobs.run_dir(cell)}\n" for cell in array.cells)
        write_bytes(str(folder / f"{array.name}.list"), lines.encode())
        for suffix, script in (("", array.train), ("-evaluation", array.evaluate)):
            if script:
                # All are tested before the first is submitted: half a study in the queue would be worse than none.
                path = folder / f"{array.name}{suffix}.sbatch"
                write_bytes(str(path), script.encode())
                slurm.sbatch(path, test_only=True)
    for cell in (*left.train, *left.behind):
        _prepare(jobs, cell, folder)
    before, numbers = "", dict[str, str]()
    for array in planned:
        # With a limit one array after another: else each would have a limit of its own.
        waits = [f"afterany:{before}"] if before and jobs.throttle else []
        if array.behind:
            paired = _are_paired(planned, array)
            waits.append(f"{'aftercorr' if paired else 'afterok'}:{numbers[array.behind]}")
        wait = [f"--dependency={','.join(waits)}"] if waits else []
        facts = _facts(jobs, folder, array)
        # First, each as a run of its own is submitted.
        after = [
            history.submitting(jobs.run_dir(cell), {**facts, **_facts_of(jobs, cell)})
            for cell in (array.cells if array.train else ())
        ]
        before = slurm.sbatch(folder / f"{array.name}.sbatch", args=wait).job if array.train else ""
        numbers[array.name] = before
        record = {
            "name": array.name,
            "job": before,
            "behind": numbers.get(array.behind, ""),
            "evaluate": "",
            "cells": [c.name for c in array.cells],
        }
        entry["arrays"].append(record)
        # After each submission, so that what is in the queue is known also where the next one fails.
        _record(jobs.directory, entry)
        for i, cell in enumerate(array.cells if array.train else ()):
            history.submitted(jobs.run_dir(cell), f"{before}_{i}", after[i])
        if array.evaluate:
            record["evaluate"] = _submit_evaluation(folder, array, before)
            _record(jobs.directory, entry)
    return entry


def _are_paired(planned: Sequence[Array], array: Array) -> bool:
    """Whether each element of an array of branches has its trunk in the element of the same number."""
    trunks = next(one.cells for one in planned if one.name == array.behind)
    return all(trunk.name == cell.trunk for trunk, cell in zip(trunks, array.cells, strict=False))


def _submit_evaluation(folder: Path, array: Array, after: str) -> str:
    """An array as large as the one that trains, each element behind its own run."""
    wait = [f"--dependency=aftercorr:{after}"] if after else []
    return slurm.sbatch(folder / f"{array.name}-evaluation.sbatch", args=wait).job


def _prepare(jobs: StudyJobs, cell: Cell, folder: Path) -> None:
    """The run directory of an element, as its script and the tools that look at runs expect it."""
    directory = jobs.run_dir(cell)
    for name in (names.LOGS, names.JOB_FOLDER):
        make_folder(directory / name)
    text = recipe_yaml(with_copies(cell.recipe, directory)).encode()
    write_bytes(str(directory / names.JOB_FOLDER / names.RECIPE), text)
    write_bytes(str(directory / names.JOB_FOLDER / names.CLUSTER), (folder / names.CLUSTER).read_bytes())
    if not (directory / names.RECIPE).exists():
        write_bytes(str(directory / names.RECIPE), text)
    # What a person asked of the job before is not meant for this one.
    history.forget(directory)


def _facts(jobs: StudyJobs, folder: Path, array: Array) -> dict[str, object]:
    return {
        "cluster": jobs.cluster.name,
        "cluster_file": str(folder / names.CLUSTER),
        "nodes": jobs.nodes,
        "devices_per_node": jobs.cluster.tasks,
        "spares": jobs.spares,
        "time_limit": jobs.time_limit or jobs.cluster.time_limit,
        "script": str(folder / f"{array.name}.sbatch"),
        "code": describe_code(),
        "user": getpass.getuser(),
    }


def _facts_of(jobs: StudyJobs, cell: Cell) -> dict[str, object]:
    return {"name": cell.name, "recipe": str(jobs.run_dir(cell) / names.JOB_FOLDER / names.RECIPE)}


def _record(directory: Path, entry: Mapping[str, Any]) -> None:
    path = directory / "jobs" / _RECORD
    earlier = [e for e in _recorded(directory) if e.get("at") != entry["at"]]
    write_bytes(str(path), (json.dumps([*earlier, entry], indent=1) + "\n").encode())


def _recorded(directory: Path) -> list[dict[str, Any]]:
    path = directory / "jobs" / _RECORD
    try:
        recorded = parse_json(read_small(path))
        if not is_objects(recorded) or not all(map(_is_submission, recorded)):
            raise DamagedError("it lists no jobs")
    except FileNotFoundError:
        return []
    except (OSError, DamagedError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}; remove it once no job of the study is queued") from None
    return list(recorded)


def _is_submission(entry: dict[str, Any]) -> bool:
    """Whether an entry of the record has what `in_queue` asks of it."""
    arrays = entry.get("arrays")
    return is_objects(arrays) and all(
        is_text(array.get("job")) and or_none(is_text)(array.get("evaluate")) and is_texts(array.get("cells"))
        for array in arrays or []
    )


def held_jobs(directory: Path) -> list[str]:
    """Numbers of the arrays of a study that Slurm holds, by which others can wait for them.

    Raises:
        RunError, ConfigError: Slurm does not answer, or is not here.
    """
    entries = [array for entry in _recorded(directory) for array in entry["arrays"]]
    numbers = {number for array in entries for number in (array["job"], array["evaluate"]) if number}
    return sorted({job.array_id or job.id for job in slurm.jobs(numbers) if not job.ended}) if numbers else []


def in_queue(directory: Path, *, patience_s: float = slurm.PATIENCE_S) -> dict[str, str]:
    """Cells of a study whose training or evaluation Slurm holds: 'queued' or 'running'.

    Raises:
        RunError, ConfigError: Slurm does not answer, or is not here.
    """
    entries = [array for entry in _recorded(directory) for array in entry["arrays"]]
    numbers = {number for array in entries for number in (array["job"], array["evaluate"]) if number}
    if not numbers:
        return {}
    held = [job for job in slurm.jobs(numbers, patience_s=patience_s) if not job.ended]
    states: dict[str, str] = {}
    for array in entries:
        for i, name in enumerate(array["cells"]):
            for number in filter(None, (array["job"], array["evaluate"])):
                # Their state alone: Slurm gives a number anew some day, and then another's job keeps the run waiting
                # here.
                elements = [job for job in held if job.array_id == number and job.matches(f"{number}_{i}")]
                if elements:
                    states[name] = "running" if any(job.running for job in elements) else states.get(name, "queued")
    return states


def queued(directory: Path, cells: Iterable[str]) -> dict[str, str]:
    """`in_queue` for these cells, for people who look: nothing where there is no Slurm, or it does not answer."""
    wanted = set(cells)
    if not wanted or not slurm.available():
        return {}
    with contextlib.suppress(VitDistError):
        return {name: how for name, how in in_queue(directory, patience_s=3).items() if name in wanted}
    return {}
