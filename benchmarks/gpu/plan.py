"""The stages: what each measures, on which cases, and how long a case may take. No torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One module of this package, whose `measure(kit, case)` runs in a process of its own for each case.

    Attributes:
        name: of the module.
        measures: for people, in a line.
        deadline_s: seconds that a case may take, imports included.
        cases: what is measured, a process each; "" where the stage has but one.
        smoke: the small ones that --smoke runs instead.
    """

    name: str
    measures: str
    deadline_s: float
    cases: tuple[str, ...] = ("",)
    smoke: tuple[str, ...] = ("",)


MACHINE = Stage("machine", "device, versions and commit: the header of the figures, in every run", 60)

STAGES = (
    Stage("ceilings", "what the device can do: matrix products, copies in its memory and from the host's", 40),
    Stage("trajectories", "losses of ZeRO 1-3 against the plain engine: three families, fp32 and bf16", 75),
    Stage(
        "determinism",
        "one seed three times: are the weights equal bit for bit, and what do deterministic algorithms cost",
        50,
        ("default", "strict"),
        ("strict",),
    ),
    Stage(
        "steps",
        "a training step of MODEL:BATCH: a bare loop, plain and ZeRO-1 in turns; memory; blocks compiled",
        75,
        ("ViT-L/16:128", "ViT-B/16:256", "ViT-H/14:64", "R50x1:192", "R152x2:64", "R50+ViT-L/16:96"),
        ("hybrid-test:4",),  # its blocks are a transformer's and a ResNet's
    ),
    Stage("loader", "images a second by decode threads; what decoding does to the steps of the same process", 45),
    Stage(
        "e2e",
        "`vit-dist train` of MODEL:BATCH from tars: images a second, waiting for data, saves",
        70,
        ("ViT-B/16:256", "ViT-L/16:128"),
        ("vit-test:8",),
    ),
)
