"""Runs engines over the same random batches and writes their losses and gradient norms as JSON: one process of a world.

python engine_worker.py OUT CASE [CASE ...]

CASE: engine:stage:precision:model[+key=value]:accumulation[:steps[:nan|same|sgd|layers|REFUSED]]. A model is written
with ~ for each colon of its own; values are YAML; a key `engine.KEY` is the engine's. nan: a gradient not finite
in the third step; same: one batch in every step; sgd: SGD without clipping, whose steps are as long as the gradients
are; layers: rates that fall from layer to layer; REFUSED: rank 1 has no compiler.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import yaml

from tests.compilers import Counted, Refuses, refuses_all
from vit_dist.cli.main import leave
from vit_dist.config.load import resolve
from vit_dist.core.world import launched_world
from vit_dist.engines import _compile
from vit_dist.engines._collectives import all_gather_object
from vit_dist.engines._protocol import EngineInputs
from vit_dist.engines._slices import WEIGHT
from vit_dist.train.losses import make_loss
from vit_dist.train.process_group import process_group

SIZE, CLASSES, BATCH = 28, 10, 8
REDUCTIONS = ("all_reduce", "reduce", "reduce_scatter", "reduce_scatter_tensor", "reduce_scatter_single")
BROADCASTS = ("broadcast", "_broadcast_coalesced")
REFUSED = {
    "refused": Refuses,
    "refused-late": lambda: Refuses(after=1),
    "refused-backward": lambda: Refuses(backward=True),
    "refused-all": Refuses,
}
"""When. All: torch.compile itself, as on a Python that is too new for it."""
COLLECTIVES = ("all_gather_into_tensor", "all_gather_single", "reduce_scatter_tensor", "reduce_scatter_single")


def note_reductions() -> set[str]:
    """The dtypes of what the ranks sum from here on, as a set that fills. Before DeepSpeed, which keeps references."""
    dtypes = set()

    def noting(reduction):
        def reduce(*given, **named):
            for tensor in [*given, *named.values()]:
                if isinstance(tensor, torch.Tensor):
                    dtypes.add(str(tensor.dtype).removeprefix("torch."))
            return reduction(*given, **named)

        return reduce

    for name in REDUCTIONS:
        if hasattr(torch.distributed, name):  # the last is new in torch 2.14
            setattr(torch.distributed, name, noting(getattr(torch.distributed, name)))
    return dtypes


def count_calls(names: tuple[str, ...]) -> list[str]:
    """Which of these collectives are called from here on, as a list that fills."""
    called = []

    def counting(name, collective):
        def call(*given, **named):
            called.append(name)
            return collective(*given, **named)

        return call

    for name in names:
        if hasattr(torch.distributed, name):  # those that end in _single are new in torch 2.14
            setattr(torch.distributed, name, counting(name, getattr(torch.distributed, name)))
    return called


def bf16_share(tensors) -> float:
    """The share of nonzero elements that are bf16 numbers."""
    flat = torch.cat([t.detach().flatten() for t in tensors])
    flat = flat[flat != 0]
    return float((flat.bfloat16().float() == flat).float().mean())


def watch_gradients(built) -> list[float]:
    """The bf16 share of what this rank's part of DeepSpeed's bf16 optimizer steps on; a step each."""
    shares, step = [], built._optimizer.step

    def look(*given, **named):
        shares.append(bf16_share(built._optimizer.fp32_groups_gradient_flat_partition))
        return step(*given, **named)

    built._optimizer.step = look
    return shares


def watch_clipping() -> list[float]:
    """The bf16 share of the gradients whose norm is taken from here on: those that plain torch has reduced."""
    shares, measure = [], torch.nn.utils.get_total_norm

    def look(gradients, *given, **named):
        shares.append(bf16_share(gradients))
        return measure(gradients, *given, **named)

    torch.nn.utils.get_total_norm = look
    return shares


def differing_masters(built, seeded: dict[str, torch.Tensor], world) -> list[str]:
    """Weights of an engine's state that are not those given, bit for bit, or are not there as a whole: of all ranks."""
    slices = [piece for piece in built.state().slices if piece.kind == WEIGHT]
    differing, seen = [], {}
    for piece in slices:
        expected = seeded[piece.name].flatten()[piece.start : piece.start + len(piece.data)]
        seen[piece.name] = seen.get(piece.name, 0) + len(piece.data)
        if not torch.equal(piece.data.cpu().view(torch.int32), expected.view(torch.int32)):
            differing.append(piece.name)
    gathered = all_gather_object((differing, seen), world)
    counts = {name: sum(counts.get(name, 0) for _, counts in gathered) for name in seeded}
    differing = [name for names, _ in gathered for name in names]
    return differing + [name for name, tensor in seeded.items() if counts[name] != tensor.numel()]


def run_case(
    case: str, world, device, reduced: set[str], broadcasts: list[str], collectives: list[str], clipped
) -> dict:
    name, stage, precision, model_spec, accumulation, *rest = case.split(":")
    model_name, *options = model_spec.replace("~", ":").split("+")
    recompute = "recompute" in options
    last = "channels-last" in options
    changes = {k: yaml.safe_load(v) for k, v in (option.split("=", 1) for option in options if "=" in option)}
    engine_changes = {k.removeprefix("engine."): changes.pop(k) for k in [*changes] if k.startswith("engine.")}
    steps = int(rest[0]) if rest else 20
    engine = {"name": name, "zero_stage": int(stage)} if name == "deepspeed" else {"name": name}
    recipe = resolve(
        {
            "horizon": "1 epoch",
            "global_batch": BATCH,
            "precision": precision,
            "model": {"name": model_name, **changes},
            "data": {"num_classes": CLASSES, "image_size": SIZE},
            "optim": {
                "name": "sgd" if "sgd" in rest else "adamw",
                "lr": 1e-3,
                **({"layer_decay": 0.7} if "layers" in rest else {}),
            },
            "schedule": {"name": "constant", "warmup": "0 steps"},
            "engine": {**engine, **engine_changes},
        }
    )
    torch.manual_seed(0)
    model = recipe.model.build(num_classes=CLASSES, image_size=SIZE)
    with torch.no_grad():  # a head of zeros would hide a wrong backward pass in the first steps
        model.head.weight.normal_(0, 0.05)
    model.set_activation_checkpointing("full" if recompute else "none")
    came_last = []
    model.register_forward_pre_hook(
        lambda _, given: came_last.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    seeded = {parameter_name: p.detach().clone() for parameter_name, p in model.named_parameters()}
    batch = -(-BATCH // world.size) * world.size
    rank_batch = batch // world.size
    micro = rank_batch // int(accumulation)
    refusal = next((word for word in rest if word in REFUSED and world.rank == 1), None)
    _compile.BACKEND = compiler = REFUSED[refusal]() if refusal else Counted()
    compiles = torch.compile
    torch.compile = refuses_all if refusal == "refused-all" else compiles
    built = recipe.engine.build(
        EngineInputs(
            model,
            recipe.optim.over_layers(model),
            make_loss(recipe.loss),
            world,
            device,
            precision,
            None if "sgd" in rest else 1.0,
            micro,
            int(accumulation),
            torch.channels_last if last else torch.contiguous_format,
            image_size=SIZE,
        )
    )
    torch.compile = compiles
    graphs = getattr(compiler, "made", 0)
    compiler.ran = 0
    differing, mismatch = differing_masters(built, seeded, world), built.master_mismatch()
    watched = hasattr(getattr(built, "_optimizer", None), "fp32_groups_gradients_flat")
    bf16_shares = watch_gradients(built) if watched else clipped
    clipped.clear()
    losses, norms, applied = [], [], []
    reduced.clear()
    broadcasts.clear()
    for step in range(steps):
        generator = torch.Generator().manual_seed(0 if "same" in rest else step)
        labels = torch.randint(0, CLASSES, (batch,), generator=generator)
        images = torch.randint(0, 100, (batch, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
        images += (labels * 15).to(torch.uint8).view(-1, 1, 1, 1)  # something to learn
        targets = torch.nn.functional.one_hot(labels, CLASSES).float()
        if "nan" in rest and step == 2:
            targets[world.rank :: world.size] *= float("nan") if world.rank == 0 else 1.0
        rank_images, rank_targets = images[world.rank :: world.size], targets[world.rank :: world.size]
        micro_batches = list(zip(rank_images.split(micro), rank_targets.split(micro), strict=True))
        collectives.clear()
        result = built.train_step(micro_batches, 1e-2 if "sgd" in rest else 1e-3).read()
        losses.append(result.loss)
        norms.append(result.grad_norm)
        applied.append(result.applied)
    assert came_last == [last] * len(came_last) != []
    return {
        "losses": losses,
        "norms": norms,
        "applied": applied,
        "compiled": built.layout["compile"],
        "graphs": [graphs, getattr(compiler, "made", 0)],
        "blocks_ran": compiler.ran,
        "description": built.description,
        "reduced": sorted(reduced),
        "bf16_shares": [*bf16_shares],
        "differing_masters": differing,
        "mismatch": mismatch,
        "seeded_bf16_share": bf16_share([t for t in seeded.values() if t.ndim > 1]),
        "broadcasts": len(broadcasts),
        "collectives": [sum(kind in name for name in collectives) for kind in ("all_gather", "reduce_scatter")],
        "gradients": storages_of_gradients(built.module) if name == "plain" else [],
        "compiler": "torch._inductor.compile_fx" in sys.modules,
        "timed": name == "deepspeed" and timed(built._engine),
    }


def storages_of_gradients(module) -> list[int]:
    """Where the memory of each gradient begins."""
    return [p.grad.untyped_storage().data_ptr() for p in module.parameters() if p.grad is not None]


def timed(engine) -> bool:
    """Whether DeepSpeed's throughput timer has measured a step, for which it waits for the device."""
    return engine.tput_timer.initialized or engine.tput_timer.total_elapsed_time > 0


def main() -> None:
    world = launched_world()
    noted = note_reductions(), count_calls(BROADCASTS), count_calls(COLLECTIVES), watch_clipping()
    with process_group(world) as device:
        results = {case: run_case(case, world, device, *noted) for case in sys.argv[2:]}
    if world.is_main:
        Path(sys.argv[1]).write_text(json.dumps(results))


if __name__ == "__main__":
    main()
    leave(0)
