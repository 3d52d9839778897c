"""A directory with other people's files is left as it is, by every verb that writes many files into one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from launcher.submit.run import SubmitRequest, dry_run
from vit_dist.cli.main import main
from vit_dist.core.run import history
from vit_dist.core.run.checkpoints import step_name
from vit_dist.core.run.directory import RunDir
from vit_dist.models.weights.forms import form_to_write
from vit_dist.scaling.report.tensorboard import check_directory
from vit_dist.scaling.report.write import check_out


def _photos(folder: Path) -> None:
    for name in ("cats", "dogs", "owls", "rats"):
        (folder / name).mkdir()
        (folder / name / "1.jpg").write_bytes(b"jpeg")


def _notes(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine")


def _another_framework(folder: Path) -> None:
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "epoch=3.ckpt").write_bytes(b"zip")


def _its_logs(folder: Path) -> None:
    (folder / "tb").mkdir()
    (folder / "tb" / "events.out.tfevents.1.host").write_bytes(b"")


def _runs(folder: Path) -> None:
    (folder / "demo-1234").mkdir()
    (folder / "demo-1234" / "run.json").write_text("{}")


def _named_as_ours(folder: Path) -> None:
    (folder / "recipe.yaml").mkdir()


def _logs_of_others(folder: Path) -> None:
    (folder / "logs").mkdir()
    (folder / "logs" / "access.2026").write_text("")


OTHERS = [_photos, _notes, _another_framework, _its_logs, _runs, _named_as_ours, _logs_of_others]


def _left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def _words(verb: str, folder: Path, small: str) -> Sequence[str]:
    recipe = ["demo", f"data.train={small}", "data.val=", "data.num_classes=4"]
    return {
        "train": ["train", *recipe, "--run-dir", str(folder)],
        "run": ["run", *recipe, "--run-dir", str(folder)],
        "verify-resume": ["verify-resume", *recipe, "--dir", str(folder)],
        "pack": ["data", "pack", "configs/data/fashion-mnist-mini", str(folder)],
        "report": ["study", "report", str(folder.parent), "--logs", str(folder.parent), "--out", str(folder)],
        "export": ["models", "export", "vit-test", f"{folder}/"],
    }[verb]


@pytest.mark.parametrize("put", OTHERS)
@pytest.mark.parametrize("verb", ["train", "run", "verify-resume", "pack", "report", "export"])
def test_it_is_refused_and_left_as_it_was(
    verb: str, put: Callable[[Path], None], small_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    put(folder)
    before = _left(folder)
    assert main([*_words(verb, folder, small_set)]) == 2
    said = capsys.readouterr().err
    assert f"{folder}: holds something else than" in said
    assert min(path.name for path in folder.iterdir()) in said
    assert _left(folder) == before


@pytest.mark.parametrize("put", OTHERS)
def test_no_job_is_made_for_it(put: Callable[[Path], None], tmp_path: Path) -> None:
    from launcher.slurm.cluster import load_cluster
    from vit_dist.config.load import load_recipe
    from vit_dist.core.errors import ConfigError

    put(tmp_path)
    request = SubmitRequest(load_recipe("demo"), load_cluster("dgx-h100"), 1, run_dir=tmp_path)
    with pytest.raises(ConfigError, match="holds something else than a run"):
        dry_run(request)


def _of_an_older_version(folder: Path) -> None:
    (folder / "status.json").write_text("{}")
    (folder / "anything").mkdir()


def _begun(folder: Path) -> None:
    history.begin(folder, launcher="local", devices=1, step=0)
    (folder / "my-figures").mkdir()


def _failed_before_it_began(folder: Path) -> None:
    (folder / "recipe.yaml").write_text("{}")
    (folder / "lock").write_text("")
    (folder / "logs" / "attempt-0001").mkdir(parents=True)
    (folder / "logs" / "batch.log").write_text("")


def _checkpoints_from_a_copy(folder: Path) -> None:
    (folder / "checkpoints" / step_name(7)).mkdir(parents=True)


def _printed_into(folder: Path) -> None:
    (folder / "slurm-12.out").write_text("")
    (folder / "train.log").write_text("")


def _hidden(folder: Path) -> None:
    for name in (".nfs0001", ".snapshot", "lost+found", ".DS_Store", "@eaDir"):
        (folder / name).mkdir()


def _empty(_folder: Path) -> None:
    pass


@pytest.mark.parametrize(
    "put",
    [_of_an_older_version, _begun, _failed_before_it_began, _checkpoints_from_a_copy, _printed_into, _hidden, _empty],
)
def test_a_run_and_what_is_nobodys_is_no_reason(put: Callable[[Path], None], tmp_path: Path) -> None:
    put(tmp_path)
    RunDir(tmp_path).check_ours()


def test_what_a_verb_has_written_itself_it_writes_again(tmp_path: Path) -> None:
    for check, own in ((check_out, "report.json"), (check_directory, "by-examples")):
        folder = tmp_path / own
        folder.mkdir()
        check(folder)
        (folder / own).write_text("{}")
        check(folder)
    (tmp_path / "hf").mkdir()
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", ".git"):
        (tmp_path / "hf" / name).write_text("")
    assert form_to_write(f"{tmp_path}/hf/") == "hugging-face"


@pytest.mark.parametrize("below", ["", "run"])
def test_a_file_where_a_directory_should_be_is_named(
    below: str, small_set: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*_words("train", tmp_path / "file" / below, small_set)]) == 2
    assert "is a file; name a directory" in capsys.readouterr().err
