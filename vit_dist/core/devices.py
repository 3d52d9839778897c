"""Accelerators by name: dense peak FLOP/s by precision, and memory, from their makers' data sheets. No torch.

Peaks are those without sparsity. A device that is not here has no peak, and so no MFU: better none than a wrong one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from vit_dist.core.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Device:
    """One kind of accelerator.

    Attributes:
        name: short, as the command line takes it.
        peaks: FLOP/s by precision: 'bf16', 'tf32', 'fp32'; a precision that is not there is not known, or not had.
        memory_bytes: by the data sheet.
        pattern: what the driver calls it: a regular expression over the whole of torch.cuda.get_device_name().
    """

    name: str
    peaks: Mapping[str, float]
    memory_bytes: float
    pattern: str

    def peak(self, precision: str) -> float | None:
        """Dense FLOP/s in this precision; None where that is not known."""
        return self.peaks.get(precision)


def _peaks(bf16: float, tf32: float, fp32: float) -> dict[str, float]:
    return {"bf16": bf16 * 1e12, "tf32": tf32 * 1e12, "fp32": fp32 * 1e12}


# The form factor counts: an H100 for PCIe has three quarters of the peak of one for SXM. A slice of a device (MIG) has
# a name of its own, which matches none of these.
DEVICES = (
    Device("v100", {"bf16": 125e12, "fp32": 15.7e12}, 32e9, r"(Tesla )?V100-SXM2-(16|32)GB"),
    Device("a100", _peaks(312, 156, 19.5), 80e9, r"(NVIDIA )?A100(-SXM4-80GB|-SXM-80GB| 80GB PCIe)"),
    Device("a100-40g", _peaks(312, 156, 19.5), 40e9, r"(NVIDIA )?A100-(SXM4|SXM|PCIE)-40GB"),
    Device("h100", _peaks(989, 494.7, 66.9), 80e9, r"NVIDIA H100( 80GB HBM3)?"),
    Device("h100-pcie", _peaks(756, 378, 51.2), 80e9, r"NVIDIA H100 PCIe"),
    Device("h100-nvl", _peaks(835, 417.5, 60), 94e9, r"NVIDIA H100 NVL"),
    Device("gh200", _peaks(989, 494.7, 66.9), 96e9, r"NVIDIA GH200 (120GB|480GB)"),
    Device("h200", _peaks(989, 494.7, 66.9), 141e9, r"NVIDIA H200"),
    Device("h200-nvl", _peaks(835, 417.5, 60), 141e9, r"NVIDIA H200 NVL"),
    Device("b200", {"bf16": 2250e12}, 180e9, r"NVIDIA B200"),
    Device("l40s", {"bf16": 362e12, "tf32": 183e12, "fp32": 91.6e12}, 48e9, r"NVIDIA L40S"),
)
"""V100: fp16 stands in for the bf16 that it lacks, as studies count with it."""
NAMES = ", ".join(device.name for device in DEVICES)
"""For `--help`."""


def device_of(reported: str) -> Device | None:
    """The device that a driver calls by this name, such as 'NVIDIA H100 80GB HBM3'; None where it is not known."""
    return next((device for device in DEVICES if re.fullmatch(device.pattern, reported.strip())), None)


def find_device(name: str) -> Device:
    """The device that a person calls by this name, such as 'h100'.

    Raises:
        ConfigError: it is not known; the nearest name is given.
    """
    by_name = {device.name: device for device in DEVICES}
    if name.lower() not in by_name:
        raise ConfigError(f"--device {name!r} is not known{did_you_mean(name.lower(), by_name)}")
    return by_name[name.lower()]


def parse_utilisation(text: str) -> float:
    """The part of a device's peak that `--utilisation` says: 0.4 or 40%.

    Raises:
        ConfigError: it is no fraction above 0 and up to 1.
    """
    try:
        fraction = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ConfigError(f"--utilisation {text!r}: expected a fraction such as 0.4 or 40%") from None
    if not 0 < fraction <= 1:
        raise ConfigError(f"--utilisation {text}: expected a fraction above 0 and up to 1, such as 0.4 or 40%")
    return fraction
