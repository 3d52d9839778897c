"""Where the tests find the project and their own data."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"
CURVES = ROOT / "tests" / "data" / "curves_inet10.csv"
"""Published scaling curves; see tests/data/README.md."""
FASHION = ROOT / "configs" / "data" / "fashion-mnist-mini"
"""10,000 real images, as IDX files."""
