"""Accelerators by the names that drivers and people give them."""

from __future__ import annotations

import pytest

from vit_dist.core.devices import DEVICES, device_of, find_device
from vit_dist.core.errors import ConfigError


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-PCIE-40GB", "a100-40g"),
        ("A100-SXM4-40GB", "a100-40g"),
        ("Tesla V100-SXM2-32GB", "v100"),
    ],
)
def test_a_driver_s_name_finds_the_form_factor(reported: str, name: str) -> None:
    device = device_of(reported)
    assert device is not None
    assert device.name == name
    assert device is find_device(name)


@pytest.mark.parametrize(
    "reported",
    ["NVIDIA H100 80GB HBM3 MIG 3g.40gb", "NVIDIA H1000", "NVIDIA GeForce RTX 3060", "AMD Instinct MI300X", ""],
)
def test_what_is_not_known_has_no_peak(reported: str) -> None:
    assert device_of(reported) is None


def test_each_device_is_told_apart_and_its_precisions_are_in_order() -> None:
    assert len({device.name for device in DEVICES}) == len(DEVICES)
    for device in DEVICES:
        peaks = [peak for precision in ("bf16", "tf32", "fp32") if (peak := device.peak(precision)) is not None]
        assert peaks == sorted(peaks, reverse=True)
        assert device.peak("fp8") is None
    with pytest.raises(ConfigError, match=r"--device 'h10' is not known; did you mean 'h100'"):
        find_device("h10")
