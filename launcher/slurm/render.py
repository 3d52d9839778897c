"""Job scripts from the templates under slurm/: readable, quoted, the same for the same arguments. No Slurm is asked.

Two languages meet in a script. Its `#SBATCH` lines go through no shell: Slurm splits them at blanks, takes `#` as the
beginning of a comment and a backslash as an escape, and knows double quotes; `sbatch` quotes for that. All else is
bash, for which `sh` quotes.
"""

from __future__ import annotations

import math
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2

from launcher.slurm.cluster import Cluster, slurm_seconds
from launcher.slurm.parse import consecutive
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import holds_secret, redact
from vit_dist.core.node_cache import DIR_VARIABLE, SIZE_VARIABLE
from vit_dist.core.process import ADDRESS_MODULE, CLI_MODULE, code_root
from vit_dist.core.run import names

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PLAIN = re.compile(r"^[A-Za-z0-9_./:,=@%+\[\]&|*()<>~^!-]*$")
_SIGNAL_LIMIT = 65535
"""Slurm keeps the seconds of --signal in 16 bits."""


@dataclass(frozen=True)
class Site:
    """Where and with what a script runs.

    Attributes:
        cluster: the site.
        cwd: directory in which everything runs: relative URLs of recipes count from it.
        code: directory that holds the packages vit_dist and launcher.
        python: interpreter on the nodes, outside any container.
        run_root: shared directory of run directories.
        time_limit: of the job, as `launcher.slurm.cluster.slurm_time` gives it; '' for the cluster's.
        notes: comment lines at the top.
        cluster_file: of the cluster, as the nodes find it; for the test of the nodes before training.
    """

    cluster: Cluster
    cwd: Path
    code: Path
    python: str
    run_root: Path
    time_limit: str = ""
    notes: tuple[str, ...] = ()
    cluster_file: Path | None = None

    @classmethod
    def of(
        cls,
        cluster: Cluster,
        code: Path,
        *,
        run_root: Path,
        time_limit: str = "",
        notes: Sequence[str] = (),
        cluster_file: Path | None = None,
    ) -> Site:
        """A cluster, for jobs that start in the directory that we are in, with the cluster's Python or this one."""
        python = cluster.python or sys.executable
        root = run_root.expanduser().absolute()
        return cls(cluster, Path.cwd(), code, python, root, time_limit, tuple(notes), cluster_file)

    def noted(self, *lines: str) -> Site:
        """The same with more comment lines."""
        return replace(self, notes=(*self.notes, *lines))


def render_train(
    site: Site,
    *,
    job_name: str,
    run_dir: Path,
    recipe: Sequence[str],
    nodes: int,
    spares: int = 0,
    lead_s: float | None = None,
    standalone: bool = False,
) -> str:
    """The script of one run.

    Args:
        site: where it runs.
        job_name: in Slurm's queue.
        run_dir: of the run, absolute.
        recipe: words after `vit-dist train`: a recipe's file or name, and overrides.
        nodes: on which the ranks run.
        spares: nodes more, one of which takes the place of one that dies.
        lead_s: seconds before the time limit at which the run saves and ends; None: the cluster's `signal_lead`.
        standalone: works when nobody has made the run directory: the output goes there once it is made.

    Raises:
        ConfigError: a value cannot stand in a script, or the lead leaves no time to train.
    """
    context = _context(site, job_name, nodes, spares)
    context |= _supervision(site, context, lead_s)
    # Slurm opens the output before the script runs, and fails a job in silence where the directory is missing: a script
    # that stands by itself makes that first, and its few lines of before go to the working directory.
    output = "%x-%j.out" if standalone else _pattern(run_dir / names.LOGS / names.BATCH_LOG)
    words = [shlex.quote(word) for word in recipe]
    mounts = _mounts(site, run_dir)
    context |= {"run_dir": run_dir, "recipe": words, "output": output, "standalone": standalone, "mounts": mounts}
    return _render("train.sbatch.j2", context)


def render_array(
    site: Site,
    *,
    job_name: str,
    list_file: Path,
    count: int,
    log_dir: Path,
    nodes: int,
    first: int = 0,
    throttle: int = 0,
    spares: int = 0,
    lead_s: float | None = None,
) -> str:
    """The script of an array of runs: element i trains `RUN/job/recipe.yaml` of line first + i + 1 of a list.

    Args:
        site: where it runs.
        job_name: in Slurm's queue.
        list_file: run directories, absolute, a line each.
        count: elements.
        log_dir: an existing directory for what Slurm prints before an element has found its run.
        nodes: of each element.
        first: lines of the list to skip.
        throttle: elements at a time; 0: no limit.
        spares: nodes more for each element.
        lead_s: as in `render_train`.

    Raises:
        ConfigError: a value cannot stand in a script, or nothing is in the array.
    """
    if count < 1:
        raise ConfigError(f"{list_file}: an array of {count} elements has nothing to run")
    context = _context(site, job_name, nodes, spares)
    context |= _supervision(site, context, lead_s)
    context |= {"list_file": list_file, "count": count, "first": first, "throttle": throttle}
    context |= {"recipe": ['"$run_dir/job/recipe.yaml"'], "output": _pattern(log_dir) + "/batch-%A_%a.log"}
    context |= {"mounts": _mounts(site, list_file.parent)}
    return _render("array.sbatch.j2", context)


def render_evaluate(
    site: Site,
    *,
    job_name: str,
    command: Sequence[str],
    log_file: Path,
    nodes: int = 1,
    devices: int | None = None,
    elements: int = 0,
    throttle: int = 0,
) -> str:
    """The script of `vit-dist COMMAND` as one process a device, for evaluations after training.

    Args:
        site: where it runs.
        job_name: in Slurm's queue.
        command: words after `vit-dist`.
        log_file: of all processes; its directory must exist.
        nodes: how many.
        devices: GPUs (or processes, where there are none) on a node; None: all.
        elements: of an array, each with a log file `log_file`-ELEMENT; 0: one plain job.
        throttle: elements at a time; 0: no limit.

    Raises:
        ConfigError: a value cannot stand in a script.
    """
    context = _context(site, job_name, nodes, 0)
    if devices is not None:
        if not 1 <= devices <= site.cluster.tasks:
            raise ConfigError(f"devices={devices}: a node of cluster {site.cluster.name} has 1 to {site.cluster.tasks}")
        context["tasks_per_node"] = devices
        context["devices"] = devices if site.cluster.devices_per_node else 0
    output = _pattern(log_file) + ("-%a" if elements else "")
    context |= {"command": list(command), "output": output, "mounts": _mounts(site, log_file.parent)}
    context |= {"elements": elements, "throttle": throttle}
    return _render("evaluate.sbatch.j2", context)


def render_pack(
    site: Site,
    *,
    job_name: str,
    command: Sequence[str],
    log_dir: Path,
    elements: Sequence[int] = (),
    first: int = 0,
    parts: int = 0,
    throttle: int = 0,
) -> str:
    """The script of `vit-dist COMMAND` on the CPUs of one node; with elements, an array that adds `--part I/N` to each.

    Args:
        site: where it runs.
        job_name: in Slurm's queue.
        command: words after `vit-dist`.
        log_dir: an existing directory for a log file an element.
        elements: of the array; none: one plain job, such as the one that merges.
        first: part that element 0 stands for, where an array larger than the site allows is cut up.
        parts: N.
        throttle: elements at a time; 0: no limit.

    Raises:
        ConfigError: a value cannot stand in a script.
    """
    context = _context(site, job_name, 1, 0)
    context |= {"devices": 0, "tasks_per_node": 1, "cpus_per_task": site.cluster.cpus_per_node}
    context |= {"elements": spans(elements), "first": first, "parts": parts, "throttle": throttle}
    output = _pattern(log_dir) + ("/part-%a.log" if elements else "/%x-%j.log")
    context |= {"command": list(command), "output": output, "mounts": _mounts(site, log_dir)}
    return _render("pack.sbatch.j2", context)


def signal_lead(cluster: Cluster, time_limit: str, lead_s: float | None) -> tuple[int, str]:
    """Seconds before the time limit at which a run ends, as far as the limit leaves room; and a warning, or ''."""
    wanted = math.ceil(cluster.lead_s if lead_s is None else lead_s)
    limit = slurm_seconds(time_limit or cluster.time_limit)
    given = min(wanted, _SIGNAL_LIMIT)
    if given > limit / 2:
        given = int(limit // 2)
        return given, (
            f"a run wants {wanted} s before the time limit of {time_limit or cluster.time_limit} to save and end, but "
            f"gets {given} s so that it can train at all; give a longer --time"
        )
    return given, ""


def _supervision(site: Site, context: dict[str, Any], lead_s: float | None) -> dict[str, Any]:
    lead, warning = signal_lead(site.cluster, site.time_limit, lead_s)
    notes = [*context["notes"], *([f"warning: {_one_line(warning)}"] if warning else [])]
    margin = int(site.cluster.signal_margin.value)
    return {"signal_s": lead, "lead_s": lead, "margin_s": margin, "notes": notes, "run_root": site.run_root} | {
        "cluster_file": site.cluster_file
    }


def _context(site: Site, job_name: str, nodes: int, spares: int) -> dict[str, Any]:
    cluster = site.cluster
    if nodes < 1 or spares < 0:
        raise ConfigError(f"--nodes={nodes} --spares={spares}: at least one node is needed, and no fewer than no spare")
    if cluster.max_nodes is not None and nodes + spares > cluster.max_nodes:
        raise ConfigError(
            f"--nodes={nodes} --spares={spares}: cluster {cluster.name} allows {cluster.max_nodes} nodes (max_nodes)"
        )
    for what, path in ("working directory", site.cwd), ("run root", site.run_root), ("code", site.code):
        check_path(path, what, in_container=cluster.container is not None)
    return {
        "cluster": cluster,
        "job_name": job_name,
        "nodes": nodes,
        "spares": spares,
        "devices": cluster.devices_per_node,
        "tasks_per_node": cluster.tasks,
        "cpus_per_task": cluster.cpus_per_task,
        "time_limit": site.time_limit or cluster.time_limit,
        "cwd": site.cwd,
        "code": site.code,
        "python": site.python,
        "cli_module": CLI_MODULE,
        "address_module": ADDRESS_MODULE,
        "inner_python": cluster.container.python if cluster.container else site.python,
        "apptainer": cluster.container is not None and cluster.container.runtime == "apptainer",
        "notes": [_one_line(line) for line in site.notes],
        "cache_variables": (DIR_VARIABLE, SIZE_VARIABLE),
    }


def check_path(path: Path, what: str, *, in_container: bool = False) -> None:
    """Refuse a path that Slurm or a container could not be given.

    Raises:
        ConfigError: a control character, a backslash (Slurm reads it its own way), or one that a list of mounts cuts.
    """
    text = str(path)
    if _CONTROL.search(text) or "\\" in text:
        raise ConfigError(f"{what} {text!r}: holds a control character or a backslash; Slurm cannot use such a path")
    if in_container and re.search(r"[,:]", text):
        raise ConfigError(f"{what} {text!r}: holds a comma or a colon, which a list of container mounts cuts apart")


def _mounts(site: Site, *paths: Path) -> list[str]:
    container = site.cluster.container
    if container is None:
        return []
    cache = [Path(site.cluster.cache.dir)] if site.cluster.cache and site.cluster.cache.size else []
    needed = [site.run_root, site.code, site.cwd, *cache, *paths]
    for path in needed:
        check_path(path, "path", in_container=True)
    outer: list[Path] = [Path(mount.partition(":")[0]) for mount in container.mounts if ":" not in mount]
    mounts = list(container.mounts)
    for path in needed:
        if not any(path == o or o in path.parents for o in outer):
            outer.append(path)
            mounts.append(f"{path}:{path}")
    return [mount if ":" in mount else f"{mount}:{mount}" for mount in mounts]


def _pattern(path: Path) -> str:
    """A path as Slurm's file name patterns want it."""
    check_path(path, "log file")
    return str(path).replace("%", "%%")


def _one_line(text: str) -> str:
    return _CONTROL.sub(" ", text)


def quote_sbatch(value: object) -> str:
    """A value for an #SBATCH line.

    Raises:
        ConfigError: it holds a line break or another control character.
    """
    text = str(value)
    if _CONTROL.search(text):
        raise ConfigError(f"{text!r} cannot stand in a job script: it holds a line break or another control character")
    if _PLAIN.match(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _quote_option(option: str) -> str:
    """'--name=value' with the value quoted for an #SBATCH line."""
    name, equals, value = option.partition("=")
    if not re.match(r"^--?[A-Za-z][A-Za-z0-9-]*$", name):
        raise ConfigError(f"sbatch_options: {option!r} is not an option such as '--switches=1'")
    return f"{name}={quote_sbatch(value)}" if equals else name


def _quote_sh(value: object) -> str:
    text = str(value)
    if "\0" in text:
        raise ConfigError(f"{text!r} cannot stand in a job script: it holds a NUL character")
    # A comma without quotes in a bash array looks like a slip to readers, and to shellcheck.
    return f"'{text}'" if "," in text and shlex.quote(text) == text else shlex.quote(text)


def template_dirs() -> list[Path]:
    """Where templates are: `slurm/` of a checkout or code snapshot, or the copy inside an installed package."""
    top = code_root()
    return [d for d in (top / "slurm", top / "vit_dist" / "_slurm") if (d / "train.sbatch.j2").is_file()]


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_dirs()),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # noqa: S701 - bash, not HTML; `sh` and `sbatch` quote
    )
    environment.filters |= {
        "sh": _quote_sh,
        "sbatch": quote_sbatch,
        "sbatch_option": _quote_option,
        "comment": _one_line,
    }
    return environment


def _render(template: str, context: dict[str, Any]) -> str:
    text = _environment().get_template(template).render(context)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip("\n") + "\n"


def spans(numbers: Sequence[int]) -> str:
    """'0-3,7' of 0, 1, 2, 3, 7: as Slurm names the elements of an array."""
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in consecutive(numbers))


def check_no_secrets(words: Sequence[str]) -> None:
    """Refuse words that hold a secret: scripts are readable.

    Raises:
        ConfigError: a URL with a password, a signature or a token in it.
    """
    for word in words:
        if holds_secret(word):
            raise ConfigError(
                f"{redact(word)}: holds a secret, and job scripts are readable; give credentials through the "
                f"environment or ~/.aws instead (jobs inherit the environment)"
            )
