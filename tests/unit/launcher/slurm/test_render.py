"""Job scripts: goldens, quoting for two languages, shellcheck, every recipe on every cluster."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest

from launcher.slurm.cluster import Cluster, load_cluster
from launcher.slurm.render import (
    Site,
    quote_sbatch,
    render_array,
    render_evaluate,
    render_pack,
    render_train,
    signal_lead,
)
from launcher.submit.run import SubmitRequest, dry_run
from tests.conftest import command
from tests.cost import interpreters
from tests.places import GOLDEN
from vit_dist.config.load import config_dirs, find_config, load_recipe
from vit_dist.core.errors import ConfigError
from vit_dist.core.node_cache import DIR_VARIABLE, SIZE_VARIABLE

CLUSTERS = sorted(path.stem for path in (config_dirs()[0] / "clusters").glob("*.yaml"))
RECIPES = sorted(path.stem for path in (config_dirs()[0] / "recipes").glob("*.yaml"))
NASTY = "a b,c'd\"e$(touch /tmp/pwned)`x`;#é%j"


def site(cluster: Cluster, **changes: object) -> Site:
    given: dict[str, object] = {
        "cwd": Path("/home/me/work"),
        "code": Path("/shared/runs/demo-1234abcd/job/code"),
        "python": "/shared/venv/bin/python",
        "run_root": Path("/shared/runs"),
        "notes": ("demo (recipe 1234abcd1234abcd)",),
        "cluster_file": Path("/shared/runs/demo-1234abcd/job/cluster.yaml"),
        **changes,
    }
    return Site(cluster, **given)  # type: ignore[arg-type]


def scripts(name: str) -> dict[str, str]:
    here = site(load_cluster(name))
    run_dir = Path("/shared/runs/demo-1234abcd")
    return {
        "train": render_train(
            here,
            job_name="demo",
            run_dir=run_dir,
            recipe=[str(run_dir / "job" / "recipe.yaml")],
            nodes=2,
            spares=1,
            lead_s=95.5,
        ),
        "array": render_array(
            here,
            job_name="study",
            list_file=Path("/shared/runs/study/runs.txt"),
            count=6,
            log_dir=Path("/shared/runs/study/logs"),
            nodes=1,
            first=1000,
            throttle=2,
        ),
        "evaluate": render_evaluate(
            here, job_name="eval", command=["evaluate", str(run_dir)], log_file=Path("/shared/logs/e.log"), devices=1
        ),
        "pack": render_pack(
            here,
            job_name="pack",
            command=["data", "pack", "s3://b/images", "s3://b/shards"],
            log_dir=Path("/shared/logs"),
            elements=range(64),
            parts=64,
            throttle=16,
        ),
        "merge": render_pack(
            here, job_name="merge", command=["data", "merge", "s3://b/shards"], log_dir=Path("/shared/logs")
        ),
    }


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_scripts_are_those_that_were_reviewed(cluster: str, request: pytest.FixtureRequest) -> None:
    for kind, text in scripts(cluster).items():
        path = GOLDEN / "slurm" / f"{cluster}-{kind}.sbatch"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.is_file(), f"{path} is missing; run pytest with --update-golden and review it"
        assert text == path.read_text()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_reviewed_scripts_are_clean_to_shellcheck() -> None:
    goldens = sorted(GOLDEN.glob("slurm/*.sbatch"))
    assert len(goldens) >= 5 * len(CLUSTERS)
    done = subprocess.run(
        ["shellcheck", "--exclude=SC1091", *map(str, goldens)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("cluster", CLUSTERS)
def test_every_shipped_recipe_renders_at_two_nodes(cluster: str) -> None:
    for name in RECIPES:
        words = (str(find_config(name, "recipes")),)
        text = dry_run(SubmitRequest(load_recipe(name), load_cluster(cluster), nodes=2, words=words))
        assert "#SBATCH --nodes=2\n" in text
        assert subprocess.run(["bash", "-n"], input=text, text=True, check=False).returncode == 0


def test_no_value_gets_out_of_its_quotes_in_bash(tmp_path: Path) -> None:
    run_dir = tmp_path / NASTY.replace("/", "_")
    (tmp_path / "bin").mkdir()
    received = tmp_path / "received"
    fake = tmp_path / "bin" / "py'thon $x"
    fake.write_text(f"#!/bin/bash\nprintf '%s\\n' \"$@\" > {received}\n")
    fake.chmod(0o755)
    cluster = load_cluster("dev").model_copy(update={"env": {"ODD": NASTY}})
    text = render_train(
        site(cluster, python=str(fake), cwd=tmp_path, code=tmp_path / "a b", notes=(f"x\ntouch {tmp_path}/pwned",)),
        job_name="demo",
        run_dir=run_dir,
        recipe=["/r.yaml", f"name={NASTY}\ntouch {tmp_path}/pwned"],
        nodes=2,
        standalone=True,
    )
    subprocess.run(["bash"], input=text, text=True, check=True, cwd=tmp_path)
    words = received.read_text()
    assert f"\nname={NASTY}\ntouch {tmp_path}/pwned\n" in words
    assert f"--run-dir\n{run_dir}\n" in words
    assert not (tmp_path / "pwned").exists()
    assert (run_dir / "logs").is_dir()


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("gpu,a100", "gpu,a100"),
        ("", ""),
        ("a b", '"a b"'),
        ('a "b" \\ c', '"a \\"b\\" \\\\ c"'),
        ("a#b", '"a#b"'),
        ("$(x)", '"$(x)"'),
    ],
)
def test_values_of_directives_are_quoted_as_slurm_reads_them(value: str, quoted: str) -> None:
    assert quote_sbatch(value) == quoted


@pytest.mark.parametrize("value", ["a\n#SBATCH --uid=0", "a\rb", "a\0b", "a\x1bb"])
def test_a_line_break_in_a_directive_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="control character"):
        quote_sbatch(value)
    with pytest.raises(ConfigError, match="control character"):
        render_train(
            site(load_cluster("dev")), job_name="x", run_dir=Path(f"/r/{value}"), recipe=["r"], nodes=1, spares=0
        )


def test_an_undefined_name_in_a_template_is_an_error() -> None:
    from launcher.slurm.render import _environment

    with pytest.raises(jinja2.UndefinedError):
        _environment().from_string("{{ partion }}").render(partition="x")


def test_containers_get_what_the_ranks_read() -> None:
    cluster = load_cluster("generic", ["container={runtime: apptainer, image: /i.sif, mounts: [/shared]}"])
    text = render_train(site(cluster), job_name="x", run_dir=Path("/shared/runs/x"), recipe=["r"], nodes=1)
    assert "apptainer exec --nv --pwd /home/me/work" in text
    assert "--bind '/shared:/shared,/home/me/work:/home/me/work'" in text
    assert '"${inside[@]}" python3 -P -m vit_dist.cli.main train' in text
    with pytest.raises(ConfigError, match="a list of container mounts"):
        render_train(site(cluster), job_name="x", run_dir=Path("/data,x/runs"), recipe=["r"], nodes=1)


def test_a_cluster_with_a_cache_gives_it_to_ranks_and_containers() -> None:
    given = "cache={dir: '/local disk/x', size: 500 GB}"
    plain = load_cluster("generic", [given])
    text = render_train(site(plain), job_name="x", run_dir=Path("/shared/runs/x"), recipe=["r"], nodes=1)
    assert f"export {DIR_VARIABLE}='/local disk/x'\nexport {SIZE_VARIABLE}=500000000000\n" in text
    contained = load_cluster("generic", [given, "container={runtime: apptainer, image: /i.sif, mounts: [/shared]}"])
    text = render_train(site(contained), job_name="x", run_dir=Path("/shared/runs/x"), recipe=["r"], nodes=1)
    assert "/local disk/x:/local disk/x" in text
    none = load_cluster("generic", ["cache={size: 0 B}"])
    text = render_train(site(none), job_name="x", run_dir=Path("/shared/runs/x"), recipe=["r"], nodes=1)
    assert DIR_VARIABLE not in text


@pytest.mark.parametrize(
    ("cache", "words"),
    [
        ("{size: 500 GB}", "dir: is missing; give a directory that every node has"),
        ("{dir: /x}", "cache.size"),
        ("{dir: s3://b/x, size: 500 GB}", "not on a file system of this machine"),
        ("{dir: /x, size: 500}", "has no unit"),
        ("{dir: /x, size: 5 MB}", "is too small"),
        ("{dir: /x, sizes: 5 GB}", "size"),
    ],
)
def test_a_cluster_that_gives_a_cache_wrongly_is_told(cache: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_cluster("generic", [f"cache={cache}"])


def test_a_lead_longer_than_half_the_limit_is_cut_and_said() -> None:
    dev = load_cluster("dev")
    assert signal_lead(dev, "01:00:00", None) == (20, "")
    assert signal_lead(dev, "01:00:00", 90.2) == (91, "")
    lead, warning = signal_lead(dev, "00:02:00", 90)
    assert lead == 60
    assert "give a longer --time" in warning
    assert signal_lead(dev, "UNLIMITED", 1e6)[0] == 65535


def test_dry_run_costs_little_and_needs_nothing(vit_dist: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    words = ("submit", "vit-l16-jft300m", "--cluster", "dgx-h100", "--nodes", "2", "--dry-run")
    words = (*words, "data.train=s3://nowhere/never", "data.num_classes=10")
    nothing = {"PATH": "/nowhere", "SLURM_CONF": "/nowhere"}
    done = vit_dist(*words, **nothing)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("#!/bin/bash\n")
    assert done.stderr == ""
    # Half a second on an idle machine; torch alone would be some fifty.
    assert interpreters(command(*words), 3, **nothing) < 40
