"""From event files to observations, fits, figures and a page. No torch.

What fits curves can be imported from here: `from vit_dist.scaling import fit_curve, crossover`. It is loaded when it is
first asked for: numpy and scipy take a second, and a module below here may need neither.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vit_dist.scaling.fit.crossings import Crossover as Crossover
    from vit_dist.scaling.fit.crossings import crossover as crossover
    from vit_dist.scaling.fit.curve import CurveFit as CurveFit
    from vit_dist.scaling.fit.curve import FitOptions as FitOptions
    from vit_dist.scaling.fit.fits import alternatives as alternatives
    from vit_dist.scaling.fit.fits import fit_curve as fit_curve
    from vit_dist.scaling.fit.fits import refit as refit
    from vit_dist.scaling.fit.forecasts import Forecast as Forecast
    from vit_dist.scaling.fit.forecasts import Needed as Needed
    from vit_dist.scaling.fit.forecasts import forecast as forecast
    from vit_dist.scaling.fit.forecasts import needed as needed
    from vit_dist.scaling.fit.frontiers import ComputePoint as ComputePoint
    from vit_dist.scaling.fit.frontiers import Frontier as Frontier
    from vit_dist.scaling.fit.frontiers import IsoCompute as IsoCompute
    from vit_dist.scaling.fit.frontiers import frontier as frontier
    from vit_dist.scaling.fit.frontiers import iso_compute as iso_compute

_MODULES = {
    "crossings": ("Crossover", "crossover"),
    "curve": ("CurveFit", "FitOptions"),
    "fits": ("alternatives", "fit_curve", "refit"),
    "forecasts": ("Forecast", "Needed", "forecast", "needed"),
    "frontiers": ("ComputePoint", "Frontier", "IsoCompute", "frontier", "iso_compute"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}
__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.fit.{_MODULE_OF[name]}"), name)
