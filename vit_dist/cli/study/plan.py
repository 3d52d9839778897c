"""`vit-dist study plan`: the grid of a study, what it costs, what exists, what will not fit. Nothing is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_dist.cli.models.options import at_least_one
from vit_dist.cli.study.options import add_json, add_runs, named_study, state_word, study_parser, write_records
from vit_dist.core.devices import NAMES, find_device, parse_utilisation
from vit_dist.core.tables import make_console, show, table
from vit_dist.core.units import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vit_dist.study.cost import CostEstimate, Rates


def main(argv: list[str]) -> int:
    """See `vit-dist study plan --help`."""
    parser = study_parser(
        "plan",
        "Show the grid of a study, its cost, what exists and what will not fit. Nothing is trained.",
        "demo",
        "demo seeds=[0,1,2] --cells                          # a line a run",
        "my.yaml --device h100 --devices 64 --utilisation 45%",
        "demo --json plan.json                              # or - for standard output",
    )
    add_runs(parser)
    parser.add_argument("--cells", action="store_true", help="a line a run, in place of one a family and size")
    parser.add_argument("--device", metavar="NAME", help=f"{NAMES}: for device-hours")
    parser.add_argument(
        "--utilisation", metavar="FRACTION", help="of the device's peak; default: 40%%, if not measured"
    )
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="devices a run: to see whether it fits (default 1)"
    )
    add_json(parser)
    args = parser.parse_intermixed_args(argv)
    at_least_one(args, "devices")
    device, utilisation = find_device(args.device or "a100"), parse_utilisation(args.utilisation or "40%")
    study = named_study(args.words, parser.prog, args.runs)

    from vit_dist.study.cost import estimate_costs, measured_throughput, rates
    from vit_dist.study.local import cell_state
    from vit_dist.study.sets import look_at_sets

    fits_on = device if args.device else None
    estimates = estimate_costs(study.cells, look_at_sets(study.cells), devices=args.devices, device=fits_on)
    states = {cell.name: state_word(cell, cell_state(study.directory / cell.name)) for cell in study.cells}
    # A device or a utilisation that was asked for says what to count by, measured or not.
    measured = {} if args.device or args.utilisation else measured_throughput(estimates, study.directory)
    rate = rates(estimates, measured, device, utilisation)
    if args.json and write_records(args.json, [_record(e, states[e.cell.name], rate) for e in estimates]):
        return 0
    console = make_console()
    title = f"study {study.config.name}: {study.shape} = {counted(len(study.cells), 'run')}"
    show(console, (_cell_table if args.cells else _family_table)(title, estimates, states, rate))
    _summary(console, estimates, states, rate)
    if args.json:
        console.print(f"plan    {args.json}", markup=False)
    return 0


_COSTS = ("epochs", "steps", "FLOPs", "device\ntime", "read")


def _family_table(title: str, estimates: Sequence[CostEstimate], states: dict[str, str], rate: Rates) -> Table:
    """A block a family, a line a size; costs are those of one run."""
    result = table(title, "family", "subset", *_COSTS, "runs")
    families: dict[str, dict[int | None, list[CostEstimate]]] = {}
    for estimate in estimates:
        families.setdefault(estimate.cell.line, {}).setdefault(estimate.cell.subset, []).append(estimate)
    for family, sizes in families.items():
        first = next(iter(sizes.values()))[0]
        head = [family, *_model(first)]
        lines = [[_size(n), *_costs(group[0], rate), _count(group, states)] for n, group in sizes.items()]
        for i in range(max(len(head), len(lines))):
            result.add_row(head[i] if i < len(head) else "", *(lines[i] if i < len(lines) else []))
        result.add_section()
    return result


def _model(estimate: CostEstimate) -> list[str]:
    """The name of the model, where it is not that of its family, and what it costs: lines below the family's name."""
    name, cost = estimate.cell.recipe.model.name, estimate.cost
    lines = [] if name == estimate.cell.family else [name]
    if estimate.cell.label:
        # Its model is that of its trunk, a block above.
        return [f"from step {estimate.cell.begins_after:,}"]
    return lines if cost is None else [*lines, f"{_short(cost.params)} params", f"{_short(cost.macs)} MAC"]


def _count(group: Sequence[CostEstimate], states: dict[str, str]) -> str:
    """States of the runs of one family and size: '2/3 done, 1 failed'."""
    counted = Counter(states[e.cell.name] for e in group)
    others = [f"{n} {state}" for state, n in counted.items() if state not in ("done", "missing")]
    return ", ".join([f"{counted['done']}/{len(group)} done", *others])


def _cell_table(title: str, estimates: Sequence[CostEstimate], states: dict[str, str], rate: Rates) -> Table:
    result = table(title, "run", "recipe", *_COSTS, "state")
    for estimate in estimates:
        cell = estimate.cell
        result.add_row(cell.name, cell.hash, *_costs(estimate, rate), states[cell.name])
    return result


def _size(subset: int | None) -> str:
    return "all" if subset is None else f"{subset:,}"


def _costs(estimate: CostEstimate, rate: Rates) -> list[str]:
    from vit_dist.core.units import format_bytes, format_flops

    epochs, hours = estimate.epochs, rate.hours(estimate)
    return [
        "?" if epochs is None else f"{epochs:,.3g}" if epochs < 100 else f"{epochs:,.0f}",
        "?" if estimate.steps is None else f"{estimate.steps:,}",
        "?" if estimate.flops is None else format_flops(estimate.flops),
        "?" if hours is None else _hours(hours),
        "?" if estimate.num_bytes is None else format_bytes(estimate.num_bytes),
    ]


def _short(number: int) -> str:
    for suffix, multiple in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= multiple:
            return (
                f"{number / multiple:.3g}{suffix}" if number < 1000 * multiple else f"{number / multiple:,.0f}{suffix}"
            )
    return str(number)


def _hours(hours: float) -> str:
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.3g} h" if hours >= 0.1 else f"{hours * 3600:.3g} s"


def _summary(console: Console, estimates: Sequence[CostEstimate], states: dict[str, str], rate: Rates) -> None:
    """Totals of all runs and of what is left, what is unknown, what will not fit."""
    from vit_dist.core.units import format_bytes, format_flops
    from vit_dist.study.cost import problem_lines

    left = [e for e in estimates if states[e.cell.name] != "done"]
    for what, some in (("all", estimates), ("left", left)):
        flops, read = sum(e.flops or 0 for e in some), sum(e.num_bytes or 0 for e in some)
        unknown = sum(e.flops is None for e in some)
        more = f" and {counted(unknown, 'run')} of unknown cost" if unknown else ""
        timed = [one for e in some if (one := rate.hours(e)) is not None]
        hours = _hours(sum(timed)).replace(" h", " device-hours").replace(" s", " device-seconds")
        untimed = sum(e.flops is not None and rate.hours(e) is None for e in some)
        more += f" and {counted(untimed, 'run')} of unknown time" if untimed else ""
        of_bytes = f", {format_bytes(read)} read" if any(e.num_bytes is not None for e in some) else ""
        amount = f"{format_flops(flops)}, {hours}{of_bytes}"
        console.print(f"{what + ':':<6} {counted(len(some), 'run')}, {amount}{more}", markup=False)
    for source in rate.sources.values():
        console.print(f"hours: {source}", markup=False)
    if any(e.cell.label for e in estimates):
        console.print(
            "branches: what they train themselves; what they share is counted once, with the trunk", markup=False
        )
    if any(e.num_bytes is None for e in estimates):
        console.print("bytes: unknown where the training set is not named, or is not there yet", markup=False)
    for line in problem_lines(estimates, remarks=True):
        console.print(line, markup=False)


def _record(estimate: CostEstimate, state: str, rate: Rates) -> dict[str, Any]:
    cell, cost = estimate.cell, estimate.cost
    return {
        "run": cell.name,
        "family": cell.family,
        "model": cell.recipe.model.name,
        "subset": cell.subset,
        "seed": cell.seed,
        **cell.branched,
        "recipe_hash": cell.hash,
        "params": cost and cost.params,
        "macs": cost and cost.macs,
        "examples": estimate.examples,
        "steps": estimate.steps,
        "epochs": estimate.epochs,
        "flops": estimate.flops,
        "device_hours": rate.hours(estimate),
        "bytes_read": estimate.num_bytes,
        "state": state,
        "problems": [*estimate.missing, *estimate.problems],
    }
