"""How often the host waits for the device in a step: never on plain and fsdp; inside DeepSpeed as the docs say."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from tests.gpu.engines import FAMILIES, FSDP, PLAIN, RESHARDED, batch, build, recipe, zero
from tests.host_reads import HostReads
from tests.streams import recipe_of
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream
from vit_dist.engines._average import Averaging
from vit_dist.evals import EvalContext
from vit_dist.evals._classification import measured
from vit_dist.models.weights.files import write_weights
from vit_dist.train.attempt import build_engine
from vit_dist.train.checkpoint.weights import fresh_weights
from vit_dist.train.class_weights import weights_of_classes
from vit_dist.train.feed import Feed
from vit_dist.train.plan import Plan
from vit_dist.train.teacher import TeacherWeights

pytestmark = pytest.mark.gpu

READS = {1: 2, 2: 4, 3: 1}
"""Numbers read in a step, by ZeRO stage, of DeepSpeed 0.19.8 itself: docs/performance.md."""


def reads_of_a_step(
    device: torch.device, engine: dict[str, object], family: str, precision: str, limit: float
) -> list[str]:
    trained = build(device, family, engine, precision, averaging=Averaging(0.9))
    for step in range(2):  # the first makes the optimizer's state, which is read once
        trained.train_step([batch(step)], 1e-3).read()
    average = trained.average
    assert average is not None
    micro = [tuple(tensor.to(device) for tensor in batch(2))]
    with HostReads() as reads:
        pending = trained.train_step(micro, 1e-3, skip_over=limit)  # type: ignore[arg-type]
        average.update(pending.applied)
    assert average.counted() == 1
    assert math.isfinite(pending.read().loss)
    return reads.places


@pytest.mark.parametrize("limit", [math.inf, 100.0])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_waits_for_a_step_of_the_plain_engine(
    one_rank: torch.device, family: str, precision: str, limit: float
) -> None:
    assert reads_of_a_step(one_rank, PLAIN, family, precision, limit) == []


@pytest.mark.parametrize("engine", [FSDP, RESHARDED], ids=["gathered", "resharded"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nobody_waits_for_a_step_of_the_fsdp_engine(
    one_rank: torch.device, engine: dict[str, object], precision: str
) -> None:
    assert reads_of_a_step(one_rank, engine, "vit-test", precision, 100.0) == []


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nobody_waits_for_a_teacher_or_for_the_keys_of_large_models(
    one_rank: torch.device, small_set: str, tmp_path: Path, precision: str
) -> None:
    model = {"name": "vit-test", "position_embedding": "rope", "registers": 2, "patch_dropout": 0.5, "mlp": "swiglu"}
    model |= {"qk_norm": True, "layer_scale": 0.1}
    loss = {"name": "bce", "target_threshold": 0.2, "class_weights": "balanced"}
    data = {"num_classes": 4, "train": small_set, "mixup": {"alpha": 0.5}}
    config = recipe_of(data, model=model, engine=PLAIN, precision=precision, horizon="1 epoch", loss=loss)
    write_weights(fresh_weights(config.model, 4, 28, 0), tmp_path / "t.safetensors")  # type: ignore[arg-type]
    taught = {**loss, "teacher": {"weights": str(tmp_path / "t.safetensors")}}
    config = recipe_of(data, model=model, engine=PLAIN, precision=precision, horizon="1 epoch", loss=taught)
    training, plan = open_training_set(config), Plan(1, 0, 6, 2)
    teacher = TeacherWeights(config, RunDir(tmp_path), World(), {}).build(one_rank)
    weights = weights_of_classes(config, training, World(), one_rank)
    engine, _ = build_engine(config, plan, World(), one_rank, weights=weights)
    feed = Feed(config, plan.micro_batch, one_rank, teacher)
    with TrainStream(training, config, World(), 0) as stream:
        (first, _), (second, _) = itertools.islice(stream, 2)
    engine.train_step(feed.micro_batches(first), 1e-3).read()
    with HostReads() as reads:
        pending = engine.train_step(feed.micro_batches(second), 1e-3, skip_over=100.0)
    assert reads.places == []
    assert math.isfinite(pending.read().loss)


@pytest.mark.parametrize("stage", READS)
def test_deepspeed_itself_waits_as_often_as_the_docs_say(one_rank: torch.device, stage: int) -> None:
    found = reads_of_a_step(one_rank, zero(stage), "vit-test", "bf16", 100.0)
    assert not [place for place in found if "/deepspeed/runtime/" not in place.partition("_deepspeed.py")[0]], found
    assert len([place for place in found if "copy" not in place.partition(" at ")[0]]) == READS[stage], found


def test_an_evaluation_reads_its_sums_once(one_rank: torch.device, small_val: str) -> None:
    counts = []
    for at_once in (64, 4):
        trained = build(one_rank, "vit-test", PLAIN)
        settings = recipe("vit-test", PLAIN)
        settings = settings.model_copy(update={"eval": settings.eval.model_copy(update={"batch": at_once})})
        context = EvalContext(trained, settings, World(), read_manifest(small_val))
        with HostReads() as reads:
            found = measured(context, context.val)
        assert found.top1 * 45 == pytest.approx(round(found.top1 * 45))
        counts.append(len(reads.places))
    assert counts[0] == counts[1]


def test_a_read_is_noticed(one_rank: torch.device) -> None:
    value = torch.ones((), device=one_rank)
    with HostReads() as reads:
        float(value)
        bool(value > 0)
    assert len(reads.places) == 2
