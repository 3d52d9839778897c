"""`vit-dist compare`: models side by side, and which of another family costs as much."""

from __future__ import annotations

import argparse
import math
import shutil
import sys
from typing import TYPE_CHECKING

from vit_dist.cli.plugins import add_plugin, load_plugins
from vit_dist.cli.verbs import verb_parser
from vit_dist.core.devices import NAMES, find_device
from vit_dist.core.errors import ConfigError
from vit_dist.core.places import local_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vit_dist.compare.measure import Speed
    from vit_dist.compare.memory import Counted
    from vit_dist.compare.rows import Row
    from vit_dist.models import ModelConfig

SUMMARY = "models side by side: parameters, FLOPs, memory, speed, cost; matched across families"
PAPER = (
    "ViT-B/32", "ViT-B/16", "ViT-L/32", "ViT-L/16", "ViT-H/14",
    "R50x1", "R50x2", "R101x1", "R152x1", "R152x2", "R200x3",
    "R50+ViT-B/32", "R50+ViT-B/16", "R50+ViT-L/32", "R50+ViT-L/16",
)  # fmt: skip

_EXAMPLES = """
FLOPs are counted by torch on models without weights and held against arithmetic on their settings. Throughput is
measured on this device with random images: the models in turns if memory holds them all, else one after the other, and
those that it cannot hold are left out; the larger ones take minutes a step on a CPU. Memory is of one device without
sharding: plain torch with AdamW keeps 16 bytes a parameter (weights, gradients, two moments, all in fp32), and
activations go with the batch. Device-hours are the exaFLOPs over the peak times --mfu.

examples:
  vit-dist compare --no-measure                              the fifteen models of the paper's Table 6
  vit-dist compare --match flops --no-measure                for each ViT the ResNet and the hybrid of nearest cost
  vit-dist compare --models vit-demo,bit-demo,hybrid-demo --image-size 28 --match throughput
  vit-dist compare --examples 2.1B --device h100 --mfu 0.4 --csv costs.csv --figure costs.png --no-measure
"""


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    parser = verb_parser("vit-dist compare", SUMMARY, _EXAMPLES)
    parser.add_argument("--models", metavar="A,B,..", help="names, as in `vit-dist models list`; default: the paper's")
    parser.add_argument("--image-size", metavar="S", type=int, help="pixels (default 224; 28 for -demo and -test)")
    parser.add_argument("--num-classes", metavar="K", type=int, default=1000, help="outputs of the head (default 1000)")
    parser.add_argument("--examples", metavar="N", default="2121M", help="images trained on (default 7 x 303M)")
    parser.add_argument(
        "--precision", choices=("bf16", "fp32"), default="bf16", help="of memory and measurement (default bf16)"
    )
    parser.add_argument("--device", metavar="NAME", default="a100", help=f"whose peak counts: {NAMES} (default a100)")
    parser.add_argument("--tflops", metavar="T", type=float, help="a peak in place of the device's, 1e12 FLOPs/s")
    parser.add_argument(
        "--mfu", metavar="M", type=float, default=0.4, help="fraction of the peak that is reached (default 0.4)"
    )
    parser.add_argument(
        "--match", choices=("flops", "params", "throughput"), help="nearest of each other family by this"
    )
    parser.add_argument(
        "--sort", choices=("flops", "params", "throughput", "model"), default="flops", help="cheapest first"
    )
    parser.add_argument("--no-measure", action="store_true", help="leave throughput out")
    parser.add_argument("--batch", metavar="N", type=int, default=8, help="images a measured step (default 8)")
    parser.add_argument("--rounds", metavar="N", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--csv", metavar="FILE", type=local_option, help="write every number there")
    parser.add_argument("--figure", metavar="FILE", type=local_option, help="draw cost against size (.png, .svg, .pdf)")
    add_plugin(parser)
    args = parser.parse_args(argv)
    _check(args)
    load_plugins(args.plugin)

    from vit_dist.cli.compare.table import legend, matches_table, table
    from vit_dist.compare.rows import match, ordered, to_csv

    rows = ordered(_rows(args), args.sort)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    sys.stdout.write(table(rows, measured=not args.no_measure, width=width) + "\n")
    sys.stdout.write(legend(rows, precision=args.precision, tflops=args.tflops, mfu=args.mfu, width=width) + "\n")
    if args.csv or args.figure:
        sys.stdout.write("\n")
    if args.csv:
        from vit_dist.core.files import write_bytes

        write_bytes(str(args.csv), to_csv(rows).encode())
        sys.stdout.write(f"numbers: {args.csv}\n")
    if args.figure:
        from vit_dist.compare.figure import draw

        draw(rows, args.figure)
        sys.stdout.write(f"figure: {args.figure}\n")
    if args.match:
        sys.stdout.write("\n" + matches_table(match(rows, args.match), args.match))
    return 0


def _check(args: argparse.Namespace) -> None:
    from vit_dist.cli.models.options import at_least_one
    from vit_dist.compare.figure import ENDINGS
    from vit_dist.core.units import parse_count

    at_least_one(args, "batch", "rounds", "num_classes", "image_size")
    device = find_device(args.device)
    if args.tflops is None:
        peak = device.peak(args.precision)
        if peak is None:
            raise ConfigError(f"--device {device.name}: its peak in {args.precision} is not known; give --tflops")
        args.tflops = peak / 1e12
    if not 0 < args.mfu <= 1 or not 0 < args.tflops < math.inf:
        raise ConfigError(
            f"--tflops={args.tflops} --mfu={args.mfu}: a peak above 0 and a fraction of it up to 1 are needed"
        )
    given = args.examples
    try:
        args.examples = parse_count(given)
    except ValueError as error:
        raise ConfigError(f"--examples: {error}") from None
    if not 1 <= args.examples <= 10**18:
        raise ConfigError(f"--examples={given}: at least 1 and at most 1e18 are needed")
    for option in ("match", "sort"):
        if args.no_measure and getattr(args, option) == "throughput":
            raise ConfigError(f"--{option} throughput needs a measurement; leave --no-measure out")
    if args.figure and args.figure.suffix not in ENDINGS:
        raise ConfigError(f"--figure={args.figure}: its ending must be one of {', '.join(ENDINGS)}")


def _configs(args: argparse.Namespace) -> tuple[dict[str, ModelConfig], dict[str, int]]:
    """The models that are compared, and the image size of each; before torch, whose import takes seconds."""
    from vit_dist.cli.models.options import model_config, usual_size
    from vit_dist.compare.rows import others_than

    names = list(PAPER) if args.models is None else [n.strip() for n in args.models.split(",") if n.strip()]
    if not names:
        raise ConfigError("--models: at least one name is needed, as in `vit-dist models list`")
    configs = {name: model_config(name) for name in names}
    sizes = {name: args.image_size or usual_size(config) for name, config in configs.items()}
    for name, config in configs.items():
        config.fit(sizes[name])
    if args.match:
        others_than("vit", [config.family for config in configs.values()])
    return configs, sizes


def _rows(args: argparse.Namespace) -> list[Row]:
    configs, sizes = _configs(args)

    from vit_dist.compare.memory import count
    from vit_dist.compare.rows import Row, training_flops_per_image
    from vit_dist.core.log import log
    from vit_dist.models.costs import state_bytes

    counts: dict[str, Counted] = {}
    for name, config in configs.items():
        log(f"counting {name}")
        counts[name] = count(config, num_classes=args.num_classes, image_size=sizes[name], precision=args.precision)
    speeds = {} if args.no_measure else _speeds(args, configs, sizes, counts)
    rows = []
    for name, config in configs.items():
        flops = training_flops_per_image(counts[name].trained_macs)
        total = flops * args.examples
        speed = speeds.get(name)
        rows.append(
            Row(
                model=name,
                family=config.family,
                image_size=sizes[name],
                params=counts[name].params,
                macs=counts[name].macs,
                train_flops=flops,
                state_bytes=int(state_bytes(counts[name].params, precision=args.precision).held),
                activation_bytes=counts[name].activations,
                checkpointed_bytes=counts[name].checkpointed,
                examples=args.examples,
                exaflops=total / 1e18,
                device_hours=total / (args.tflops * 1e12 * args.mfu) / 3600,
                forward_images_s=speed.forward if speed else None,
                train_images_s=speed.train if speed else None,
            )
        )
    return rows


def _speeds(
    args: argparse.Namespace,
    configs: Mapping[str, ModelConfig],
    sizes: Mapping[str, int],
    counts: Mapping[str, Counted],
) -> dict[str, Speed]:
    import torch

    from vit_dist.compare.measure import Bench, groups, measure
    from vit_dist.core.log import log
    from vit_dist.core.memory import available_memory
    from vit_dist.core.units import format_bytes, format_flops
    from vit_dist.models.costs import FLOPS_PER_MAC

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free_bytes = torch.cuda.mem_get_info()[0] if device.type == "cuda" else available_memory()
    log(f"measuring {len(configs)} models on {device.type}, {args.batch} images a step, {args.rounds} rounds in turns")
    work = (args.rounds + 1) * args.batch * sum(4 * FLOPS_PER_MAC * counted.macs for counted in counts.values())
    log(f"that is {format_flops(work)} of work: a forward pass and a training step of each a round and once before")
    speeds: dict[str, Speed] = {}
    together, too_large = groups(counts, args.batch, free_bytes, args.precision)
    if len(together) > 1:
        log("memory does not hold all of them together: they are measured one after the other")
    for name, needed in too_large.items():
        log(f"{name} is not measured: it needs about {format_bytes(needed)}, {format_bytes(free_bytes or 0)} are free")
    for group in together:
        benches = {
            name: Bench(
                configs[name],
                num_classes=args.num_classes,
                image_size=sizes[name],
                batch=args.batch,
                device=device,
                precision=args.precision,
            )
            for name in group
        }
        speeds |= measure(benches, args.rounds, say=log)
        del benches
    return speeds
