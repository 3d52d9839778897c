"""While a run trains Python looks for garbage when the loop says so, and at no other moment."""

from __future__ import annotations

import gc

import pytest

from vit_dist.core.process import heavy_imports
from vit_dist.train.loop import _collecting_by_hand


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_collector_is_off_while_a_run_trains_and_as_before_afterwards(enabled: bool, fails: bool) -> None:
    was = gc.isenabled()
    frozen = gc.get_freeze_count()
    try:
        gc.enable() if enabled else gc.disable()
        try:
            with _collecting_by_hand():
                assert not gc.isenabled()
                # What is there already is not walked through again.
                assert gc.get_freeze_count() > 1000
                # An evaluator's late import gives the collector back as it found it.
                with heavy_imports():
                    pass
                assert not gc.isenabled()
                if fails:
                    raise ArithmeticError
        except ArithmeticError:
            pass
        assert gc.isenabled() == enabled
        assert gc.get_freeze_count() <= frozen
    finally:
        gc.enable() if was else gc.disable()
