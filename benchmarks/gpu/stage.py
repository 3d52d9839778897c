"""One case of one stage, in this process: python -m benchmarks.gpu.stage NAME CASE --out DIR [--smoke]."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks.gpu.kit import Kit


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("case")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--smoke", action="store_true")
    args = parser.parse_args(argv)
    kit = Kit(args.stage, args.case, args.out, args.smoke)
    if not kit.gpu and not kit.smoke:
        print("torch sees no GPU here; --smoke runs the stages on the CPU with tiny models", file=sys.stderr)
        return 1
    importlib.import_module(f"benchmarks.gpu.{args.stage}").measure(kit)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
