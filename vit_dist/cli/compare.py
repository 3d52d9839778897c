"""`vit-dist compare`: models side by side, and which of another family costs as much."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vit_dist.compare.measure import Speed
    from vit_dist.compare.rows import Match, Row
    from vit_dist.models import ModelConfig

SUMMARY = "models side by side: parameters, FLOPs, memory, speed, cost; matched across families"
PAPER = (
    "ViT-B/32", "ViT-B/16", "ViT-L/32", "ViT-L/16", "ViT-H/14",
    "R50x1", "R50x2", "R101x1", "R152x1", "R152x2", "R200x3",
    "R50+ViT-B/32", "R50+ViT-B/16", "R50+ViT-L/32", "R50+ViT-L/16",
)  # fmt: skip

_EXAMPLES = """
FLOPs are counted by torch on models without weights and held against arithmetic on their settings. Throughput is
measured on this device, the models in turns, with random images. Memory is of one device without sharding: bf16 AdamW
keeps 16 bytes a parameter, and activations go with the batch. Device-hours are the exaFLOPs over --tflops times --mfu.

examples:
  vit-dist compare --no-measure                              the fifteen models of the paper's Table 6
  vit-dist compare --match flops --no-measure                for each ViT the ResNet and the hybrid of nearest cost
  vit-dist compare --models vit-demo,bit-demo,hybrid-demo --image-size 28 --match throughput
  vit-dist compare --examples 2.1B --tflops 989 --mfu 0.4 --csv costs.csv --figure costs.png --no-measure
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = argparse.ArgumentParser(
        "vit-dist compare", description=SUMMARY, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", metavar="A,B,..", help="names, as in `vit-dist models list`; default: the paper's")
    parser.add_argument("--image-size", metavar="S", type=int, help="pixels (default 224; 28 for -demo and -test)")
    parser.add_argument("--num-classes", metavar="K", type=int, default=1000, help="outputs of the head (default 1000)")
    parser.add_argument("--examples", metavar="N", default="2121M", help="images trained on (default 7 x 303M)")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument(
        "--tflops", type=float, default=312.0, help="peak of a device, 1e12 FLOPs/s (default 312: A100)"
    )
    parser.add_argument("--mfu", type=float, default=0.4, help="share of the peak that is reached (default 0.4)")
    parser.add_argument(
        "--match", choices=("flops", "params", "throughput"), help="nearest of each other family by this"
    )
    parser.add_argument("--sort", choices=("flops", "params", "model"), default="flops")
    parser.add_argument("--no-measure", action="store_true", help="leave throughput out")
    parser.add_argument("--batch", type=int, default=8, help="images a measured step (default 8)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write every number there")
    parser.add_argument("--figure", metavar="FILE", type=Path, help="draw cost against size (.png, .svg, .pdf)")
    args = parser.parse_args(argv)
    _check(args)

    from vit_dist.compare.rows import match, to_csv

    rows = _rows(args)
    order = {"flops": lambda r: r.train_flops, "params": lambda r: r.params, "model": lambda r: r.model}
    rows.sort(key=order[args.sort])
    matches = match(rows, args.match) if args.match else []
    sys.stdout.write(_table(rows, measured=not args.no_measure))
    if matches:
        sys.stdout.write("\n" + _matches(matches, args.match))
    if args.csv:
        from vit_dist.core.files import write_bytes

        write_bytes(str(args.csv), to_csv(rows).encode())
        sys.stdout.write(f"\nnumbers: {args.csv}\n")
    if args.figure:
        from vit_dist.compare.figure import draw

        draw(rows, args.figure)
        sys.stdout.write(f"figure: {args.figure}\n")
    return 0


def _check(args: argparse.Namespace) -> None:
    from vit_dist.core.errors import ConfigError
    from vit_dist.core.units import parse_count

    for name in ("batch", "rounds", "num_classes"):
        if getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}={getattr(args, name)}: at least 1 is needed")
    if not 0 < args.mfu <= 1 or args.tflops <= 0:
        raise ConfigError(
            f"--tflops={args.tflops} --mfu={args.mfu}: a peak above 0 and a share of it up to 1 are needed"
        )
    try:
        args.examples = parse_count(args.examples)
    except ValueError as error:
        raise ConfigError(f"--examples: {error}") from None


def _rows(args: argparse.Namespace) -> list[Row]:
    from vit_dist.cli.models import model_config, usual_size
    from vit_dist.compare.memory import BYTES_A_PARAMETER, count
    from vit_dist.compare.rows import Row, training_flops_per_image
    from vit_dist.core.log import log

    names = list(dict.fromkeys(n.strip() for n in args.models.split(",") if n.strip())) if args.models else list(PAPER)
    configs = {name: model_config(name) for name in names}
    sizes = {name: args.image_size or usual_size(config) for name, config in configs.items()}
    speeds = {} if args.no_measure else _speeds(args, configs, sizes)
    rows = []
    for name, config in configs.items():
        log(f"counting {name}")
        found = count(config, num_classes=args.num_classes, image_size=sizes[name], precision=args.precision)
        flops = training_flops_per_image(found.macs)
        total = flops * args.examples
        speed = speeds.get(name)
        rows.append(
            Row(
                model=name,
                family=config.family,
                image_size=sizes[name],
                params=found.params,
                macs=found.macs,
                train_flops=flops,
                state_bytes=found.params * BYTES_A_PARAMETER[args.precision],
                activation_bytes=found.activations,
                checkpointed_bytes=found.checkpointed,
                examples=args.examples,
                exaflops=total / 1e18,
                device_hours=total / (args.tflops * 1e12 * args.mfu) / 3600,
                forward_images_s=speed.forward if speed else None,
                train_images_s=speed.train if speed else None,
            )
        )
    return rows


def _speeds(args: argparse.Namespace, configs: Mapping[str, ModelConfig], sizes: Mapping[str, int]) -> dict[str, Speed]:
    import torch

    from vit_dist.compare.measure import Bench, measure
    from vit_dist.core.log import log

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    log(f"measuring {len(configs)} models on {device.type}, {args.batch} images a step, {args.rounds} rounds in turns")
    benches = {
        name: Bench(
            config,
            num_classes=args.num_classes,
            image_size=sizes[name],
            batch=args.batch,
            device=device,
            precision=args.precision,
        )
        for name, config in configs.items()
    }
    return measure(benches, args.rounds)


def _table(rows: list[Row], *, measured: bool) -> str:
    head = [
        "model",
        "family",
        "params",
        "GMACs",
        "train GFLOPs",
        "state",
        "act./image",
        "with ckpt",
        "exaFLOPs",
        "device-h",
    ]
    head += ["fwd img/s", "train img/s"] if measured else []
    lines = [head]
    for row in rows:
        cells = [
            row.model,
            row.family,
            f"{row.params / 1e6:,.1f}M",
            _giga(row.macs),
            _giga(row.train_flops),
        ]
        cells += [_size(row.state_bytes), _size(row.activation_bytes), _size(row.checkpointed_bytes)]
        cells += [f"{row.exaflops:,.4g}", f"{row.device_hours:,.4g}"]
        if measured:
            cells += [f"{row.forward_images_s or 0:,.1f}", f"{row.train_images_s or 0:,.1f}"]
        lines.append(cells)
    return _aligned(lines, left=2)


def _matches(matches: list[Match], by: str) -> str:
    lines = [["model", "family", "nearest", f"{by} ratio"]]
    lines += [[m.model, m.family, m.nearest, f"{m.ratio:.2f}"] for m in matches]
    return _aligned(lines, left=3)


def _aligned(lines: list[list[str]], left: int) -> str:
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = ""
    for line in lines:
        cells = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        text += "  ".join(cells).rstrip() + "\n"
    return text


def _giga(count: int) -> str:
    return f"{count / 1e9:,.2f}" if count >= 1e9 else f"{count / 1e9:.4f}"


def _size(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
