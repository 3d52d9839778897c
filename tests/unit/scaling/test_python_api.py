"""What `vit_dist.scaling` exports for use from Python, and when it loads what that needs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import vit_dist.scaling
from vit_dist.scaling import (
    ComputePoint,
    Crossover,
    CurveFit,
    FitOptions,
    Forecast,
    Frontier,
    IsoCompute,
    Needed,
    alternatives,
    crossover,
    fit_curve,
    forecast,
    frontier,
    iso_compute,
    needed,
    refit,
)

EXPORTS = {
    one.__name__: one
    for one in (
        ComputePoint,
        Crossover,
        CurveFit,
        FitOptions,
        Forecast,
        Frontier,
        IsoCompute,
        Needed,
        alternatives,
        crossover,
        fit_curve,
        forecast,
        frontier,
        iso_compute,
        needed,
        refit,
    )
}
ROOT = Path(__file__).parents[3]


def test_every_exported_name_can_be_imported_and_is_what_it_is_called() -> None:
    assert set(vit_dist.scaling.__all__) == set(EXPORTS)
    for name, one in EXPORTS.items():
        assert getattr(vit_dist.scaling, name) is one
    with pytest.raises(AttributeError, match="fit_curves"):
        vit_dist.scaling.fit_curves  # noqa: B018


def test_every_exported_name_is_known_to_type_checkers() -> None:
    source = Path(vit_dist.scaling.__file__).read_text()
    assert set(re.findall(r"import (\w+) as \1\b", source)) == set(EXPORTS)


def test_the_documented_import_is_exported() -> None:
    imports = re.findall(r"^from (\S+) import (.*)$", (ROOT / "docs" / "scaling.md").read_text(), re.MULTILINE)
    assert [module for module, _ in imports] == ["vit_dist.scaling"]
    assert set(imports[0][1].split(", ")) <= set(EXPORTS)


def test_importing_the_package_loads_neither_numpy_nor_scipy_and_asking_for_a_fit_does() -> None:
    code = (
        "import sys, vit_dist.scaling; print({'numpy', 'scipy'} & set(sys.modules));"
        "vit_dist.scaling.fit_curve; print('numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set()", "True"]
