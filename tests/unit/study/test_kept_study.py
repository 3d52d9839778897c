"""A study is found by its name where its runs lie, as it was begun."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.study.test_study import study_file
from vit_dist.cli.study import main
from vit_dist.core.errors import ConfigError
from vit_dist.study.grid import load_study, plan
from vit_dist.study.kept import KEPT, find_study, keep_study

__all__ = ["study_file"]


@pytest.mark.parametrize("overrides", [[], ["seeds=[7]"], ["optim.lr=1e-4", "subsets=[500, all]"], ["name=other"]])
@pytest.mark.parametrize("named", ["name", "directory"])
def test_a_study_that_was_begun_is_found_by_its_name_as_it_was_begun(
    named: str, overrides: list[str], study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = load_study(str(study_file), overrides)
    directory = tmp_path / "runs" / begun.name
    keep_study(begun, directory)
    study_file.unlink()
    monkeypatch.chdir(tmp_path)
    again = load_study(find_study(begun.name if named == "name" else f"runs/{begun.name}", Path("runs")))
    assert again.name == begun.name
    assert [(cell.name, cell.hash) for cell in plan(again)] == [(cell.name, cell.hash) for cell in plan(begun)]


def test_status_finds_it_and_a_file_goes_first(
    study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    begun = load_study(str(study_file), ["seeds=[0]"])
    keep_study(begun, tmp_path / "elsewhere" / begun.name)
    assert main(["status", begun.name, "--runs", "elsewhere"]) == 0
    assert f"study {begun.name}: 0 of 4 runs done, in elsewhere/{begun.name}" in capsys.readouterr().out
    assert find_study(str(study_file), tmp_path / "elsewhere") == str(study_file)
    # One of configs/studies is what its name has always meant.
    keep_study(begun, tmp_path / "runs" / "demo")
    assert "configs" in find_study("demo", tmp_path / "runs")


@pytest.mark.parametrize("content", ["nothing", "no runs", "runs", "no directory"])
def test_a_directory_without_its_study_says_what_to_do(content: str, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mini"
    if content != "no directory":
        (folder / "vit-50-s0").mkdir(parents=True)
    if content == "no runs":
        (folder / "vit-50-s0" / "notes.txt").write_text("")
    if content == "runs":
        (folder / "vit-50-s0" / "recipe.yaml").write_text("")
    with pytest.raises(ConfigError) as error:
        find_study("mini", tmp_path / "runs")
    said = str(error.value)
    assert ("no study 'mini': not a file" in said) is (content != "runs")
    if content == "runs":
        assert f"{folder} holds runs, but not the study's file, {KEPT}" in said
        assert f"`vit-dist status {folder}`" in said
