"""Distillation: what the teacher sees, what a run with one is, and what is refused before it begins."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.conftest import trains_here
from tests.laws.test_resume import finish, recipe_file, start, tensors
from tests.plugins import model_config
from tests.streams import recipe_of
from vit_dist.config.load import load_recipe
from vit_dist.core.errors import RefusalError, VitDistError
from vit_dist.core.events.reader import read_run
from vit_dist.core.run.checkpoints import committed
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.data.decode import normalize
from vit_dist.data.sets import open_training_set
from vit_dist.data.stream import TrainStream
from vit_dist.models.weights.files import Weights, write_weights
from vit_dist.train.attempt import attempt
from vit_dist.train.evaluate import evaluate
from vit_dist.train.feed import Feed
from vit_dist.train.teacher import TeacherWeights

NAMES = ("hat", "tie", "cap", "bag")
CPU = torch.device("cpu")
FP32 = ["precision=fp32", "guards.hang=0s", "engine.name=plain"]
VIT = [
    "model.layer_scale=0.1",
    "model.qk_norm=true",
    "model.registers=2",
    "model.mlp=swiglu",
    "model.patch_dropout=0.3",
]
VIT += ["model.position_embedding=rope"]


@pytest.fixture
def alone() -> Iterator[None]:
    with trains_here():
        yield


def weights(seed: int = 0, size: int = 28, classes: tuple[str, ...] = NAMES, **changes: Any) -> Weights:
    """A teacher that is sure of something, and drops half of what it computes unless it is told not to train."""
    config = model_config("vit-test", dropout=0.5, **changes)
    torch.manual_seed(seed)
    model = config.build(num_classes=len(classes), image_size=size)
    state = {name: tensor + 0.3 * torch.randn(tensor.shape) for name, tensor in model.state_dict().items()}
    return Weights(state, config, len(classes), size, classes=classes if any(classes) else ())


def teacher_of(
    path: Path, tmp_path: Path, model: str = "", names: tuple[str, ...] = NAMES, **loss: Any
) -> TeacherWeights:
    said = {"weights": str(path), **({"model": model} if model else {})}
    data = {"num_classes": 4, "train": "unused"}
    recipe = recipe_of(data, precision="fp32", horizon="1 epoch", loss={"teacher": said, **loss})
    return TeacherWeights(recipe, RunDir(tmp_path / "run"), World(), dict(enumerate(names)))


def test_the_teacher_computes_in_eval_mode_and_draws_nothing(tmp_path: Path) -> None:
    theirs = weights()
    write_weights(theirs, tmp_path / "t.safetensors")
    before = torch.get_rng_state()
    teacher = teacher_of(tmp_path / "t.safetensors", tmp_path).build(CPU)
    assert teacher is not None
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    logits = teacher(images)
    assert torch.equal(torch.get_rng_state(), before)
    model = theirs.config.build(num_classes=4, image_size=28).eval()
    model.load_state_dict(theirs.state)
    torch.testing.assert_close(logits, model(normalize(images, torch.float32)))
    assert not logits.requires_grad
    # Of classes in another order the columns are those of the training set.
    turned = teacher_of(tmp_path / "t.safetensors", tmp_path, names=NAMES[::-1]).build(CPU)
    assert turned is not None
    torch.testing.assert_close(turned(images), logits.flip(1))
    # Of more classes than the set has, those of the set.
    for more in ((*NAMES, "shoe"), ("shoe", *NAMES)):
        theirs = weights(classes=more)
        write_weights(theirs, tmp_path / "more.safetensors")
        some = teacher_of(tmp_path / "more.safetensors", tmp_path).build(CPU)
        assert some is not None
        whole = theirs.config.build(num_classes=5, image_size=28).eval()
        whole.load_state_dict(theirs.state)
        expected = whole(normalize(images, torch.float32))
        torch.testing.assert_close(some(images), expected[:, :4] if more[-1] == "shoe" else expected[:, 1:])


def test_a_teacher_of_hugging_face_sees_the_colours_that_it_says_and_they_are_part_of_the_run(tmp_path: Path) -> None:
    theirs = weights(representation=False)
    write_weights(theirs, f"{tmp_path}/t/")
    own = teacher_of(tmp_path / "t", tmp_path)
    file = tmp_path / "t" / "preprocessor_config.json"
    said = {**json.loads(file.read_text()), "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.2, 0.3]}
    file.write_text(json.dumps(said))
    other = teacher_of(tmp_path / "t", tmp_path)
    assert own.identity != other.identity
    images = torch.randint(0, 256, (3, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    model = theirs.config.build(num_classes=4, image_size=28).eval()
    model.load_state_dict(theirs.state)
    mean, std = (torch.tensor(said[key])[:, None, None] for key in ("image_mean", "image_std"))
    taught = other.build(CPU)
    assert taught is not None
    torch.testing.assert_close(taught(images), model((images / 255 - mean) / std))


@pytest.mark.parametrize("mixing", [[], ["data.mixup.alpha=0.5"]])
def test_it_sees_what_the_student_sees(small_set: str, mixing: list[str]) -> None:
    config = recipe_of({"num_classes": 4, "train": small_set}, *mixing, horizon="1 epoch", precision="fp32")
    seen: list[Tensor] = []

    def teacher(images: Tensor) -> Tensor:
        seen.append(images)
        return images.float().mean((2, 3))[:, [0, 1, 2, 0]]

    with TrainStream(open_training_set(config), config, World(), 0) as stream:
        batch, _ = next(iter(stream))
        plain = list(Feed(config, 4, CPU).micro_batches(batch))
        taught = list(Feed(config, 4, CPU, teacher).micro_batches(batch))
    assert len(plain) == len(taught) == len(seen) == 3
    for (images, targets), (same, both), shown in zip(plain, taught, seen, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(images, shown)
        assert torch.equal(both[:, :4], targets)
        assert torch.equal(both[:, 4:], images.float().mean((2, 3))[:, [0, 1, 2, 0]])


def end(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in committed(RunDir(run_dir).checkpoints)[0].glob("*.safetensors")}


def test_a_run_with_a_teacher_and_an_average_and_all_that_a_vit_can_have_resumes_bit_for_bit(
    alone: None, tmp_path: Path, small_set: str, small_val: str
) -> None:
    path, file = recipe_file(tmp_path, small_set, small_val), tmp_path / "t.safetensors"
    write_weights(weights(), file)

    def train(name: str, *overrides: str) -> dict[str, bytes]:
        settings = [*FP32, *VIT, "ema={decay: 0.8, start: 2 steps}", "horizon=6 steps", "eval.every=0 steps"]
        recipe = load_recipe(str(path), [*settings, *overrides])
        attempt(recipe, tmp_path / name, World())
        return end(tmp_path / name)

    teacher, mixup = f"loss.teacher.weights={file}", "data.mixup.alpha=0.5"
    straight = train("straight", teacher, mixup)
    assert straight != train("plain", mixup)
    # Cut after the third step, and on from there; the file lies elsewhere meanwhile.
    run = tmp_path / "cut"
    shutil.copytree(tmp_path / "straight", run)
    newest, older = committed(RunDir(run).checkpoints)[:2]
    assert (newest.name[-1], older.name[-1]) == ("6", "3")
    shutil.rmtree(newest)
    moved = file.rename(tmp_path / "moved.safetensors")
    assert train("cut", f"loss.teacher.weights={moved}", mixup) == straight
    # Another teacher is another run.
    write_weights(weights(seed=1), moved)
    with pytest.raises(RefusalError, match=r"holds another run: teacher_weights: '[0-9a-f]{32}' here, '[0-9a-f]{32}'"):
        train("cut", f"loss.teacher.weights={moved}", mixup)


@pytest.mark.distributed
def test_on_two_ranks_a_teacher_teaches_what_it_does_on_one(
    alone: None, tmp_path: Path, small_set: str, small_val: str
) -> None:
    path, file = recipe_file(tmp_path, small_set, small_val), tmp_path / "t.safetensors"
    write_weights(weights(), file)
    options = [*FP32, "horizon=6 steps", "eval.every=0 steps", "model.dropout=0.0", "data.mixup.alpha=0.5"]
    options += [f"loss.teacher.weights={file}"]
    attempt(load_recipe(str(path), options), tmp_path / "one", World())
    finish(start(path, tmp_path / "two", *options, nproc=2))
    one, two = (read_run(str(tmp_path / name / "tb")).scalars["train/loss"].values for name in ("one", "two"))
    assert len(one) == 6
    assert two.tolist() == pytest.approx(one.tolist(), rel=1e-5)
    ends = [tensors(committed(RunDir(tmp_path / name).checkpoints)[0]) for name in ("one", "two")]
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=1e-3, atol=1e-4, msg=name)


def test_a_teacher_that_is_a_run_teaches_its_student(
    alone: None, tmp_path: Path, small_set: str, small_val: str
) -> None:
    path = recipe_file(tmp_path, small_set, small_val)
    attempt(load_recipe(str(path), [*FP32, "horizon=4 steps", "eval.every=0 steps"]), tmp_path / "teacher", World())
    (tmp_path / "weights.txt").write_text("1\n2\n1\n1\n")
    student = [f"loss.teacher.weights={tmp_path / 'teacher'}", f"loss.class_weights_file={tmp_path / 'weights.txt'}"]
    recipe = load_recipe(str(path), [*FP32, "horizon=2 steps", "eval.every=0 steps", "model.width=16", *student])
    attempt(recipe, tmp_path / "student", World())
    told = json.loads((tmp_path / "student" / "run.json").read_text())["identity"]
    assert {"teacher_weights", "class_weights"} <= told.keys()
    # What looks at the run later needs neither.
    shutil.rmtree(tmp_path / "teacher")
    (tmp_path / "weights.txt").unlink()
    assert "val/top1" in evaluate(recipe, tmp_path / "student", World())


@pytest.mark.parametrize(
    ("change", "loss", "says"),
    [
        ({"classes": ("a",) * 0 + ("", "", "")}, {}, "a teacher of 3 classes, and data.num_classes=4"),
        (
            {"classes": ("hat", "tie", "cap", "shoe")},
            {},
            "loss.teacher.weights: .*'bag'.*give a teacher of the training",
        ),
        ({"size": 56}, {}, "a teacher for images of 56 pixels, and data.image_size=28; .*--image-size 28"),
        ({"size": 56, "position_embedding": "rope"}, {}, "a teacher for images of 56 pixels"),
        ({}, {"model": "vit-demo"}, "not the weights of vit-demo"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(
    change: dict[str, Any], loss: dict[str, Any], says: str, tmp_path: Path
) -> None:
    write_weights(weights(**change), tmp_path / "t.safetensors")
    with pytest.raises(VitDistError, match=says):
        teacher_of(tmp_path / "t.safetensors", tmp_path, **loss)


def test_a_teacher_without_a_head_or_a_model_is_told(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    whole = weights()
    headless = {name: tensor for name, tensor in whole.state.items() if not name.startswith("head")}
    save_file(headless, tmp_path / "t.safetensors")
    with pytest.raises(
        VitDistError, match=r"loss.teacher.weights: .*does not say its model; give .*loss.teacher.model"
    ):
        teacher_of(tmp_path / "t.safetensors", tmp_path)
    with pytest.raises(VitDistError, match="has no head; a teacher needs the one"):
        teacher_of(tmp_path / "t.safetensors", tmp_path, "vit-test")
    with pytest.raises(VitDistError, match=r"loss.teacher.weights: .*gone.safetensors: no such file"):
        teacher_of(tmp_path / "gone.safetensors", tmp_path)


def test_weights_that_say_no_size_fit_any(tmp_path: Path) -> None:
    found = weights(position_embedding="rope")
    write_weights(found, tmp_path / "t.safetensors")
    from safetensors.torch import load_file, save_file

    save_file(load_file(tmp_path / "t.safetensors"), tmp_path / "bare.safetensors")
    config = recipe_of(
        {"num_classes": 4, "train": "unused", "image_size": 56},
        horizon="1 epoch",
        precision="fp32",
        loss={
            "teacher": {
                "weights": str(tmp_path / "bare.safetensors"),
                "model": {"name": "vit-test", "position_embedding": "rope"},
            }
        },
    )
    teacher = TeacherWeights(config, RunDir(tmp_path / "run"), World(), {}).build(CPU)
    assert teacher is not None
    assert teacher(torch.zeros(1, 3, 56, 56, dtype=torch.uint8)).shape == (1, 4)
