"""Where `study report` writes: never where a name out of an event file says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.scaling.logged_runs import log_run
from vit_dist.cli.study.report import main
from vit_dist.core.errors import ConfigError


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
