"""`vit-dist study plan`: the grid of a study, what it costs, what exists, what will not fit. Nothing is trained."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vit_dist.cli.study.options import (
    add_runs,
    grid_line,
    make_console,
    print_table,
    split_words,
    state_word,
    study_parser,
)
from vit_dist.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from vit_dist.study.cost import CostEstimate, Device, Throughput


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
    parser.add_argument("--device", metavar="NAME", help="v100, a100, a100-40g, h100, h200, b200: for device-hours")
    parser.add_argument("--utilisation", metavar="SHARE", help="of the device's peak; default: 40%%, if not measured")
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="devices a run: to see whether it fits (1)")
    parser.add_argument("--json", metavar="FILE", help="write a record a run there; -: to standard output, and no more")
    args = parser.parse_intermixed_args(argv)
    name, overrides = split_words(args.words, "plan")
    if args.devices < 1:
        raise ConfigError(f"--devices {args.devices}: at least one is needed")

    from vit_dist.core.files import write_bytes
    from vit_dist.study.cost import estimate_costs, find_device, measured_throughput, set_facts
    from vit_dist.study.grid import load_study, plan
    from vit_dist.study.local import cell_state

    device = find_device(args.device or "a100", _share(args.utilisation or "0.4"))
    study = load_study(name, overrides)
    cells, directory = plan(study), Path(args.runs) / study.name
    paid = estimate_costs(cells, set_facts(), devices=args.devices, device=device if args.device else None)
    states = {cell.name: state_word(cell, cell_state(directory / cell.name)) or "missing" for cell in cells}
    pace = None if args.device or args.utilisation else measured_throughput(paid, directory)
    rate = _Rate.of(pace, device)
    if args.json:
        text = json.dumps([_record(e, states[e.cell.name], rate) for e in paid], indent=1) + "\n"
        if args.json == "-":
            print(text, end="")  # noqa: T201
            return 0
        write_bytes(args.json, text.encode())
    console = make_console()
    title = f"study {study.name}: {grid_line(study)} = {len(cells)} runs"
    print_table(console, (_cell_table if args.cells else _table)(title, paid, states, rate))
    _summary(console, paid, states, rate)
    if args.json:
        console.print(f"plan    {args.json}", markup=False)
    return 0


@dataclass(frozen=True)
class _Rate:
    """FLOP/s a device that hours are counted by, and where that is from."""

    sustained: float
    source: str

    @classmethod
    def of(cls, pace: Throughput | None, device: Device) -> _Rate:
        if pace is not None:
            runs = f"{pace.runs} finished run{'' if pace.runs == 1 else 's'}"
            return cls(pace.sustained, f"measured: {_per_second(pace.sustained)} a device over {runs}")
        share = f"{device.utilisation:.0%} of an {device.name}'s {_per_second(device.peak)}"
        return cls(device.sustained, f"assumed: {share}; --device, --utilisation")

    def hours(self, flops: int | None) -> float | None:
        return None if flops is None else flops / self.sustained / 3600


def _per_second(flops: float) -> str:
    from vit_dist.core.units import format_flops

    return f"{format_flops(flops).removesuffix('s')}/s"


def _share(text: str) -> float:
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        raise ConfigError(f"--utilisation {text!r}: expected a share such as 0.4 or 40%") from None


def _heading(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=True, justify="right" if i else "left")
    return table


_COSTS = ("epochs", "steps", "FLOPs", "device\ntime", "read")


def _table(title: str, paid: Sequence[CostEstimate], states: dict[str, str], rate: _Rate) -> Table:
    """A block a family, a line a size; costs are those of one run."""
    table = _heading(title, "family", "subset", *_COSTS, "runs")
    families: dict[str, dict[int | None, list[CostEstimate]]] = {}
    for expense in paid:
        families.setdefault(expense.cell.family, {}).setdefault(expense.cell.subset, []).append(expense)
    for family, sizes in families.items():
        first = next(iter(sizes.values()))[0]
        head = [family, *_model(first)]
        lines = [[_size(n), *_costs(group[0], rate), _count(group, states)] for n, group in sizes.items()]
        for i in range(max(len(head), len(lines))):
            table.add_row(head[i] if i < len(head) else "", *(lines[i] if i < len(lines) else []))
        table.add_section()
    return table


def _model(expense: CostEstimate) -> list[str]:
    """The name of the model, where it is not that of its family, and what it costs: lines below the family's name."""
    name, cost = expense.cell.recipe.model.name, expense.cost
    said = [] if name == expense.cell.family else [name]
    return said if cost is None else [*said, f"{_short(cost.params)} params", f"{_short(cost.macs)} MAC"]


def _count(group: Sequence[CostEstimate], states: dict[str, str]) -> str:
    """States of the runs of one family and size: '2/3 done, 1 failed'."""
    counted = Counter(states[e.cell.name] for e in group)
    others = [f"{n} {state}" for state, n in counted.items() if state not in ("done", "missing")]
    return ", ".join([f"{counted['done']}/{len(group)} done", *others])


def _cell_table(title: str, paid: Sequence[CostEstimate], states: dict[str, str], rate: _Rate) -> Table:
    table = _heading(title, "run", "recipe", *_COSTS, "state")
    for expense in paid:
        cell = expense.cell
        table.add_row(cell.name, cell.hash, *_costs(expense, rate), states[cell.name])
    return table


def _size(subset: int | None) -> str:
    return "all" if subset is None else f"{subset:,}"


def _costs(expense: CostEstimate, rate: _Rate) -> list[str]:
    from vit_dist.core.units import format_bytes, format_flops

    hours = rate.hours(expense.flops)
    return [
        "?"
        if expense.epochs is None
        else f"{expense.epochs:,.3g}"
        if expense.epochs < 100
        else f"{expense.epochs:,.0f}",
        "?" if expense.steps is None else f"{expense.steps:,}",
        "?" if expense.flops is None else format_flops(expense.flops),
        "?" if hours is None else _hours(hours),
        "?" if expense.num_bytes is None else format_bytes(expense.num_bytes),
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


def _summary(console: Console, paid: Sequence[CostEstimate], states: dict[str, str], rate: _Rate) -> None:
    """Totals of all runs and of what is left, what is unknown, what will not fit."""
    from vit_dist.core.units import format_bytes, format_flops

    left = [e for e in paid if states[e.cell.name] != "done"]
    for what, some in (("all", paid), ("left", left)):
        flops, read = sum(e.flops or 0 for e in some), sum(e.num_bytes or 0 for e in some)
        unknown = sum(e.flops is None for e in some)
        more = f" and {unknown} runs of unknown cost" if unknown else ""
        hours = _hours(rate.hours(flops) or 0.0).replace(" h", " device-hours").replace(" s", " device-seconds")
        of_bytes = f", {format_bytes(read)} read" if any(e.num_bytes is not None for e in some) else ""
        amount = f"{format_flops(flops)}, {hours}{of_bytes}"
        console.print(f"{what + ':':<6} {len(some)} runs, {amount}{more}", markup=False)
    console.print(f"hours: {rate.source}", markup=False)
    if any(e.num_bytes is None for e in paid):
        console.print("bytes: unknown where the training set is not named, or is not there yet", markup=False)
    reasons: dict[str, list[str]] = {}
    for expense in paid:
        for problem in expense.problems:
            reasons.setdefault(problem, []).append(expense.cell.name)
    for problem, names in reasons.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        console.print(f"will not fit: {shown}: {problem}", markup=False)


def _record(expense: CostEstimate, state: str, rate: _Rate) -> dict[str, Any]:
    cell, cost = expense.cell, expense.cost
    return {
        "run": cell.name,
        "family": cell.family,
        "model": cell.recipe.model.name,
        "subset": cell.subset,
        "seed": cell.seed,
        "recipe_hash": cell.hash,
        "params": cost and cost.params,
        "macs": cost and cost.macs,
        "examples": expense.examples,
        "steps": expense.steps,
        "epochs": expense.epochs,
        "flops": expense.flops,
        "device_hours": rate.hours(expense.flops),
        "bytes_read": expense.num_bytes,
        "state": state,
        "problems": list(expense.problems),
    }
