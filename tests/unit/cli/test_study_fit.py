"""`vit-dist study fit`: plain tables, good and bad."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.places import CURVES
from vit_dist.cli.study import main
from vit_dist.core.errors import ConfigError, DataError, VitDistError
from vit_dist.scaling import CurveFit


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    lines = ["model,examples,error,acc"]
    for model, (a, b) in {"vit": (0.8, 0.40), "bit": (0.5, 0.25)}.items():
        for size in (1000, 4000, 16000, 64000, 256000):
            for _ in range(3):
                error = (a * (size / 1000) ** -b + 0.05) * np.exp(rng.normal(0, 0.01))
                lines.append(f"{model},{size},{error:.5f},{1 - error:.5f}")
    path = tmp_path / "results.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_becomes_curves_crossovers_forecasts_and_json(
    table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    out = tmp_path / "fits.json"
    words = ["--x", "examples", "--y", "error", "--group", "model", "--at", "1M", "--target", "0.1", "--target", "0.01"]
    assert main(["fit", str(table), *words, "--json", str(out), "--bootstraps", "40"]) == 0
    output = capsys.readouterr().out
    assert "vit overtakes bit at " in output
    assert "inside data" in output
    assert "vit at 1M: error 0.0" in output
    assert "vit: error 0.01 is not reached: floor 0.0" in output
    assert "40 draws of a parametric bootstrap" in output
    found = json.loads(out.read_text())
    assert [fit["name"] for fit in found["fits"]] == ["vit", "bit"]
    assert CurveFit.from_json(found["fits"][0]).num_sizes == 5
    assert 10_000 < found["crossovers"][0]["x"] < 60_000
    assert len(found["forecasts"]) == 2
    assert len(found["needed"]) == 4
    again = out.read_bytes()
    assert main(["fit", str(table), *words, "--json", str(out), "--bootstraps", "40"]) == 0
    assert out.read_bytes() == again


def test_rows_can_be_chosen_by_number_or_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fits.json"
    words = ["--x", "Seen Examples", "--y", "Loss", "--where", "Training=1.0", "--where", "Model=ViT/B/16"]
    assert main(["fit", str(CURVES), *words, "--form", "m2", "--bootstraps", "0", "--json", str(out)]) == 0
    (fit,) = json.loads(out.read_text())["fits"]
    assert (fit["num_points"], fit["form"], fit["points"]) == (67, "m2", "curve")
    assert "misses their shape" in capsys.readouterr().out


def test_accuracies_are_fitted_as_errors(table: Path, tmp_path: Path) -> None:
    found = []
    for words in (["--y", "error", "--target", "0.2"], ["--y", "acc", "--accuracy", "--target", "0.8"]):
        out = tmp_path / "fits.json"
        words += ["--where", "model=vit", "--bootstraps", "0"]
        assert main(["fit", str(table), "--x", "examples", *words, "--json", str(out)]) == 0
        content = json.loads(out.read_text())
        found.append((content["fits"][0]["params"]["b"], content["needed"][0]["x"]))
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_accuracies_that_were_taken_for_errors_are_warned_of(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(table), "--x", "examples", "--y", "acc", "--bootstraps", "0"]) == 0
    assert "error does not fall with size" in capsys.readouterr().out


def test_a_group_of_one_size_gets_a_line_and_a_warning(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.write_text(table.read_text() + "hybrid,1000,0.5,0.5\n")
    assert main(["fit", str(table), "--x", "examples", "--y", "error", "--group", "model", "--bootstraps", "0"]) == 0
    output = capsys.readouterr().out
    assert "hybrid: one point only: a curve needs two sizes or more" in output
    assert "no curve for 'hybrid'" in output


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "vit,4000,",
            "vit,n/a,",
            r"results.csv, line 5, column 'examples': 'n/a' is not a number; write plain numbers",
        ),
        ("vit,4000,", "vit,4000,3,", r"results.csv, line 5: 5 cells, and the header has 4"),
        ("model,examples", "examples,examples", r"has 2 columns named 'examples'"),
        ("model", "\xff\xfe", r"is text in UTF-16, expected UTF-8"),
        ("", None, r"an empty file"),
    ],
)
def test_a_damaged_table_is_named_by_file_line_and_column(table: Path, old: str, new: str | None, message: str) -> None:
    text = table.read_text().replace(old, new, 1) if new is not None else ""
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        main(["fit", str(table), "--x", "examples", "--y", "error"])


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["--y", "eror"], ConfigError, r"has no column 'eror' \(--y\); did you mean 'error'"),
        (["--y", "error", "--where", "model=swin"], ConfigError, r"no row has model=swin; model has vit, bit"),
        (["--y", "error", "--where", "model"], ConfigError, r"--where model: expected COLUMN=VALUE"),
        (["--y", "error", "--form", "zai"], ConfigError, r"unknown form 'zai'; did you mean 'zhai'"),
        (["--y", "error", "--at", "-3"], ConfigError, r"--at -3: expected a number above 0"),
        (["--y", "error", "--at", "soon"], ConfigError, r"--at soon: expected a number above 0"),
        (["--y", "examples", "--accuracy"], DataError, r"column 'examples': 1000 is no accuracy between 0 and 1"),
        (["--y", "error", "--accuracy", "--target", "80"], ConfigError, r"--target 80: .* between 0 and 1"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    table: Path, words: list[str], error: type[VitDistError], message: str
) -> None:
    with pytest.raises(error, match=message):
        main(["fit", str(table), "--x", "examples", *words])


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.csv: no such file"):
        main(["fit", str(tmp_path / "nowhere.csv"), "--x", "a", "--y", "b"])


def test_empty_cells_are_left_out_with_a_warning(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table.write_text(table.read_text() + "vit,64000,,\n")
    assert main(["fit", str(table), "--x", "examples", "--y", "error", "--bootstraps", "0"]) == 0
    assert "left out 1 of 31 points that are not numbers above 0: nan at x = 64000" in capsys.readouterr().out


def test_help_and_plans_need_neither_numpy_nor_scipy() -> None:
    code = (
        "import sys, vit_dist.scaling; from vit_dist.cli.study.fit import _parser; _parser().format_help();"
        "sys.exit(bool({'torch', 'scipy', 'numpy', 'rich'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
