"""The losses of FSDP and ZeRO 1-3 against those of the plain engine, step by step: do they train alike here?"""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.engines import FSDP, LR, PLAIN, build_engine, make_batch, one_rank, zero
from benchmarks.gpu.kit import Kit

_MODELS = ("vit-test", "bit-test", "hybrid-test")
_SIZE, _CLASSES, _BATCH, _ACCUMULATION = 28, 10, 8, 2


def measure(kit: Kit) -> None:
    """The greatest relative difference of a loss, for each family, precision and engine."""
    with one_rank():
        for model in _MODELS[: 1 if kit.smoke else None]:
            for precision in ("fp32", "bf16"):
                plain = _losses(kit, model, precision, PLAIN)
                worst = {}
                # Stage 3 last: it replaces torch's linear function for good.
                others = {"fsdp": FSDP} | {f"zero{stage}": zero(stage) for stage in (1, 2, 3)[:: 2 if kit.smoke else 1]}
                for name, engine in others.items():
                    losses = _losses(kit, model, precision, engine)
                    worst[name] = max(abs(a - b) / abs(a) for a, b in zip(plain, losses, strict=True))
                kit.record(f"{model}, {precision}", last_loss=plain[-1], **worst)


def _losses(kit: Kit, model: str, precision: str, engine: dict[str, Any]) -> list[float]:
    built = build_engine(
        kit,
        model,
        engine,
        micro_batch=_BATCH,
        image_size=_SIZE,
        classes=_CLASSES,
        precision=precision,
        accumulation=_ACCUMULATION,
    )
    return [
        built.train_step(
            [make_batch(kit, _BATCH, _SIZE, _CLASSES, _ACCUMULATION * step + i) for i in range(_ACCUMULATION)], 10 * LR
        )
        .read()
        .loss
        for step in range(2 if kit.smoke else 12)
    ]
