"""Where `study report` writes: never where a name out of an event file says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.unit.scaling.logged_runs import log_run
from vit_dist.cli.study.report import main
from vit_dist.core.errors import ConfigError
from vit_dist.core.run.copies import Copies


@pytest.mark.parametrize(
    "name", ["../../outside", "/outside", "a/b", "..", ".", ".ssh", "~root", "-x", "a\0b", "a\x1b[2J", " ", "x" * 300]
)
def test_a_study_whose_name_is_no_folder_s_needs_an_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    log_run(tmp_path / "logs", study=name)
    with pytest.raises(ConfigError, match="say with --out where the"):
        main(["--logs", str(tmp_path / "logs"), "--no-cache"])
    assert sorted(p.name for p in tmp_path.rglob("*") if "logs" not in p.parts) == ["a", "b"]


def test_names_that_people_give_are_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    log_run(tmp_path / "logs", study="ViT étude (2) v1.0")
    assert main(["--logs", str(tmp_path / "logs"), "--no-cache"]) == 0
    assert (tmp_path / "runs" / "ViT étude (2) v1.0" / "report" / "report.html").is_file()


@pytest.mark.s3
def test_logs_beside_the_copies_of_checkpoints_are_read_from_the_store_by_their_url_alone(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_DIST_CACHE", str(tmp_path / "cache"))
    for seed in (0, 1):
        run = log_run(tmp_path / "here", study="copied", seed=seed).parent.parent
        Copies(run, f"{s3}/report/copied/{run.name}").send()
        shutil.rmtree(run)
    url = f"{s3}/report/copied"
    assert main([url, "--no-cache"]) == 0
    assert (tmp_path / "runs" / "copied" / "report" / "report.html").is_file()
    for words in ([url, "--logs", url], [url, f"{url}2"]):
        with pytest.raises(ConfigError, match="give the logs once"):
            main(words)
