"""`vit-dist submit`: what is refused before Slurm is asked, and what reaches a real Slurm."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.filesystem import file_system_kind
from launcher.slurm.cluster import load_cluster
from launcher.submit.run import SubmitRequest, check, dry_run, submit, warnings
from launcher.submit.study import StudyJobs, todo
from launcher.submit.study import submit as submit_study
from tests.histories import speak
from tests.slurm.cluster import wait_for
from vit_dist.cli.main import main
from vit_dist.config.load import load_recipe, recipe_hash
from vit_dist.core.errors import ConfigError, RunError
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import FORMAT, MARKER
from vit_dist.core.run.directory import RunDir
from vit_dist.core.run.names import safe_name
from vit_dist.study.grid import load_study, plan

Run = Callable[..., subprocess.CompletedProcess[str]]
KEY = "AKIAIOSFODNN7EXAMPLE"


def request(tmp_path: Path, *overrides: str, nodes: int = 1, site: tuple[str, ...] = (), **more: Any) -> SubmitRequest:
    return SubmitRequest(
        load_recipe("demo", overrides), load_cluster("dev", site), nodes, run_dir=tmp_path / "run", **more
    )


def test_nodes_that_do_not_divide_the_batch_are_told_those_that_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        check(request(tmp_path, nodes=3))
    assert "3 x 1 rank on cluster dev: global_batch=64 is not divisible by 3 ranks" in str(caught.value)
    assert "nearest that are: 63, 66" in str(caught.value)
    assert "numbers of nodes that do: 2, 4" in str(caught.value)
    check(request(tmp_path, nodes=4))
    with pytest.raises(ConfigError, match="twice the ranks must divide the batch"):
        check(request(tmp_path, "data.mixup.alpha=0.2", nodes=64))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--cluster", "dve"), "did you mean 'dev'"),
        (("--cluster", "dev", "--nodes", "0"), "at least one node"),
        (("--cluster", "dev", "--nodes", "9", "--site", "max_nodes=4", "global_batch=63"), "allows 4 nodes"),
        (("--cluster", "dev", "--time", "soon"), "--time: expected a time"),
        (("--cluster", "dev", "--site", "partition='a b'"), "partition"),
        (("--cluster", "dev", "--run-dir", "a\nb"), "control character"),
        (("--cluster", "dev", f"data.train=https://u:{KEY}@host/x"), "holds a secret"),
    ],
)
def test_what_cannot_be_is_said_in_one_paragraph(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "demo", "--dry-run", *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert KEY not in printed.err
    assert printed.out == ""


def test_credentials_of_the_environment_do_not_reach_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", KEY)
    assert KEY not in dry_run(request(tmp_path, words=("demo",)))


def test_a_profile_is_handed_on_to_the_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "demo", "--cluster", "dev", "--dry-run", "--profile", "10:13"]) == 0
    assert "--profile=10:13" in capsys.readouterr().out
    assert main(["submit", "demo", "--cluster", "dev", "--dry-run", "--profile", "13:10"]) == 2
    assert "--profile=13:10: no step is in it" in capsys.readouterr().err


def test_a_name_is_made_fit_for_directories_and_queues() -> None:
    assert safe_name('a b,"c" $(x)/..') == "a-b-c-x"
    assert safe_name("…") == "run"


def test_a_grace_time_shorter_than_a_save_is_warned_of(tmp_path: Path) -> None:
    path = tmp_path / "run" / "checkpoints" / "step-0000000010"
    path.mkdir(parents=True)
    files = {"rank-00000.safetensors": {"bytes": 7, "xxh128": "0" * 32}}
    marker = {"format": FORMAT, "wrote_s": 42.0, "layout": {}, "recipe": {}, "state": {}, "files": files}
    (path / MARKER).write_text(json.dumps(marker))
    one = request(tmp_path, words=("demo",))
    (warning,) = warnings(one)
    assert warning.startswith("a save of this run took 42s, but a preempted job is given 5s (preempt_grace)")
    text = dry_run(one)
    assert "# warning: a save of this run took 42s" in text
    assert "#SBATCH --signal=B:USR2@52\n" in text  # the measured 42 s and the cluster's margin of 10 s


def test_a_directory_of_another_run_or_of_a_finished_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vit_dist.core.run.directory.DYING_S", 0.0)
    one = request(tmp_path)
    run = RunDir(one.directory)
    run.write_json("run.json", {"recipe_hash": "0" * 16})
    with pytest.raises(ConfigError, match="holds another run"):
        submit(one)
    run.write_json("run.json", {"recipe_hash": recipe_hash(one.recipe)})
    speak(one.directory, "done", 469, 30_000)
    with pytest.raises(ConfigError, match="this run is done"):
        submit(one)
    speak(one.directory, "stopped", 10, 640)
    with run.locked(), pytest.raises(RunError, match="another attempt is running"):
        submit(one)


def test_without_slurm_it_is_said_what_to_do(tmp_path: Path, vit_dist: Run, small_set: str) -> None:
    words = [f"data.train={small_set}", "data.val=", "data.num_classes=4"]
    done = vit_dist("submit", "demo", *words, "--cluster", "dev", "--run-dir", str(tmp_path / "r"), PATH="/nowhere")
    assert done.returncode == 2
    assert "not on the PATH, so there is no Slurm here" in done.stderr


def test_file_systems_are_told_by_their_kind() -> None:
    assert file_system_kind(Path("/proc/self")) == "proc"
    assert file_system_kind(Path("/proc/self/no/such")) == "proc"


@pytest.mark.slurm
def test_a_run_is_submitted_once_and_its_job_is_named(slurm: Any, tmp_path: Path) -> None:
    odd = tmp_path / "odd, 'name' $(touch pwned) #1"
    one = SubmitRequest(load_recipe("demo", ["name=a b\"c'$(x)"]), load_cluster("dev"), 3, run_dir=odd / "run %j")
    with pytest.raises(ConfigError, match="not divisible by 3 ranks"):
        submit(one)
    one = SubmitRequest(one.recipe, load_cluster("dev", ["setup=['sleep 60']"]), 2, run_dir=one.run_dir)
    done = submit(one)
    state = history.read(done.run_dir)
    facts = state.submission
    assert (state.job_id, facts["nodes"], facts["devices_per_node"], facts["spares"]) == (done.job, 2, 1, 0)
    assert (done.run_dir / "job" / "code" / "slurm" / "train.sbatch.j2").is_file()
    assert (done.run_dir / "job" / "code" / "configs" / "recipes" / "demo.yaml").is_file()
    assert done.start is not None
    assert "JobName=a-b-c-x" in slurm.run("scontrol", "-o", "show", "job", done.job).stdout
    wait_for("the log of the script", (done.run_dir / "logs" / "batch.log").exists)
    with pytest.raises(RunError, match=f"job {done.job} of this run is (pending|running|configuring)"):
        submit(one)
    assert not (Path.cwd() / "pwned").exists()


@pytest.mark.slurm
@pytest.mark.usefixtures("plugins_forgotten")
def test_a_job_has_plug_ins_of_its_own_which_later_edits_do_not_reach(slurm: Any, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    code = "from vit_dist.core.registry import MODELS\nfrom vit_dist.models.vit import ViTConfig\n"
    code += (
        "\n\n@MODELS.register('vit-submitted', patch_size=7, width=8, depth=1, num_heads=1)\nclass Mine(ViTConfig):\n"
    )
    plugin.write_text(f"{code}    pass\n")
    recipe = load_recipe("demo", [f"plugins={plugin}", "model=vit-submitted"])
    done = submit(SubmitRequest(recipe, load_cluster("dev", ["setup=['sleep 60']"]), run_dir=tmp_path / "run"))
    study = tmp_path / "study.yaml"
    study.write_text("name: s\nrecipe: demo\nmodels: [vit-submitted]\nsubsets: [100]\noverrides: {plugins: mine.py}\n")
    cells = tuple(plan(load_study(str(study))))
    jobs = StudyJobs(load_cluster("dev", ["setup=['sleep 60']"]), tmp_path / "s", cells)
    submit_study(jobs, todo(jobs))
    plugin.write_text("raise SystemExit\n")
    for run_dir, name in (
        (d, n) for d in (done.run_dir, jobs.run_dir(cells[0])) for n in ("job/recipe.yaml", "recipe.yaml")
    ):
        (copy,) = load_recipe(str(run_dir / name)).plugins
        assert Path(copy).parent == run_dir / "plugins"
        assert Path(copy).read_text() == f"{code}    pass\n"


@pytest.mark.slurm
def test_what_slurm_refuses_leaves_no_job(slurm: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Slurm does not accept this job: .*partition"):
        submit(request(tmp_path, site=("partition=nowhere",)))
    assert slurm.run("squeue", "-h").stdout == ""
    assert not (tmp_path / "run" / "job" / "code").exists()


@pytest.mark.slurm
def test_a_job_may_submit_a_job(slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "nowhere", "SLURM_NNODES": "9"}.items():
        monkeypatch.setenv(name, value)
    done = submit(request(tmp_path, site=("setup=['sleep 60']",)))
    assert f"JobId={done.job} " in slurm.run("scontrol", "-o", "show", "job", done.job).stdout


@pytest.mark.slurm
def test_the_script_of_a_dry_run_can_be_submitted_as_it_is(
    slurm: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from launcher.slurm import commands

    monkeypatch.chdir(tmp_path)
    text = dry_run(request(tmp_path, words=("no-such-recipe",)))
    (tmp_path / "job.sbatch").write_text(text)
    job = commands.sbatch(tmp_path / "job.sbatch").job
    log = tmp_path / "run" / "logs" / "batch.log"
    wait_for("the supervisor's word", lambda: log.exists() and "this is the end of the job" in log.read_text())
    assert f"supervisor: job {job}" in log.read_text()
    assert "invalid" in log.read_text()
