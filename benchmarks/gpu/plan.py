"""The stages: what each measures, on which cases, and how long a case may take. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One module of this package, whose `measure(kit, case)` runs in a process of its own for each case.

    Attributes:
        name: of the module.
        measures: for people, in a line.
        usual_s: seconds that a case is expected to take, imports included; those of all cases fit the budget.
        deadline_s: seconds after which it is stopped.
        cases: what is measured, a process each; "" where the stage has but one.
        later: cases that run when the `cases` of every stage have had their turn: what matters least goes last.
        smoke: the small ones that --smoke runs instead.
    """

    name: str
    measures: str
    usual_s: float
    deadline_s: float
    cases: tuple[str, ...] = ("",)
    later: tuple[str, ...] = ()
    smoke: tuple[str, ...] = ("",)


BUDGET_S = 470
"""For everything: eight minutes, less what starting Python takes."""

MACHINE = Stage("machine", "device, versions and commit: the header of the figures, in every run", 8, 60)

# By value: what a training step costs, what a save and the whole command add to it; then whether it is right, and why
# it is slow.
STAGES = (
    Stage("ceilings", "what the device can do: matrix products, copies in its memory and from the host's", 15, 40),
    Stage(
        "steps",
        "a training step of MODEL:BATCH: a bare loop, plain and ZeRO-1 in turns; memory; blocks compiled",
        30,
        120,
        ("ViT-L/16:128", "ViT-H/14:64", "ViT-B/16:256", "R50x1:192"),
        ("R152x2:64", "R50+ViT-L/16:96", "ViT-g/14:32"),
        ("hybrid-test:4",),  # its blocks are a transformer's and a ResNet's
    ),
    Stage(
        "checkpoint",
        "how long training waits for the first checkpoint of MODEL:BATCH and for later ones",
        25,
        60,
        ("ViT-H/14:32",),
        (),
        ("vit-test:4",),
    ),
    Stage(
        "e2e",
        "`vit-dist train` of MODEL:BATCH from tars: images a second, waiting for data, saves",
        35,
        70,
        ("ViT-L/16:128", "ViT-B/16:256"),
        (),
        ("vit-test:8",),
    ),
    Stage("trajectories", "losses of FSDP and ZeRO 1-3 against plain: three families, fp32 and bf16", 55, 80),
    Stage(
        "determinism",
        "one seed three times: are the weights equal bit for bit, and what do deterministic algorithms cost",
        22,
        50,
        ("default", "strict"),
        (),
        ("strict",),
    ),
    Stage("loader", "images a second by decode threads; what decoding does to the steps of the same process", 35, 45),
)


def in_order(stages: Sequence[Stage], *, smoke: bool = False) -> list[tuple[Stage, str]]:
    """What runs, in this order."""
    if smoke:
        return [(stage, case) for stage in stages for case in stage.smoke]
    first = [(stage, case) for stage in stages for case in stage.cases]
    return first + [(stage, case) for stage in stages for case in stage.later]
