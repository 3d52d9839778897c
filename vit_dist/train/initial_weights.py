"""Beginning from weights that are there already (the recipe's `init`) in place of those of the seed.

What a run began from is part of what it is: the digest of its first weights joins the identity, whatever file they came
from. It is taken when the run begins; later attempts resume from a checkpoint and need the file no more.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from vit_dist.config.branch_keys import TRUNK
from vit_dist.config.schema import InitConfig, Recipe
from vit_dist.core.errors import CheckpointError, ConfigError, RefusalError, RunError, VitDistError
from vit_dist.core.files import is_remote, local_path, redact
from vit_dist.core.log import log
from vit_dist.core.run import names
from vit_dist.core.run.checkpoints import is_checkpoint
from vit_dist.core.run.directory import RunDir
from vit_dist.core.world import World
from vit_dist.data.classes import Classes, rows_in
from vit_dist.engines._collectives import all_gather_object, broadcast_object
from vit_dist.engines._protocol import Engine
from vit_dist.engines._slices import BUFFER, WEIGHT
from vit_dist.models import ModelConfig
from vit_dist.models.weights.adapt import fit
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, with_rows
from vit_dist.models.weights.names import KEYS
from vit_dist.train.checkpoint.restore import on_main
from vit_dist.train.checkpoint.weights import CLASSES, checkpoint_state, intact_checkpoint
from vit_dist.train.checkpoint.weights_remote import download, errors_naming

_KEY = "initial_weights"
TEACHER = "teacher_weights"
"""The same of a teacher's weights (train/teacher.py)."""
CLASS_WEIGHTS = "class_weights"
"""The same of a file of class weights (train/class_weights.py)."""


def recorded(directory: RunDir) -> dict[str, str]:
    """The part of a run's identity that files say: weights or a trunk that it began from, ...; {} where no run is."""
    known = (directory.read_json(names.RUN) or {}).get("identity", {})
    return {key: known[key] for key in (_KEY, TEACHER, CLASS_WEIGHTS, TRUNK) if known.get(key)}


@dataclass(frozen=True)
class Given:
    """Weights that a recipe names, as all ranks read them. Each call is a collective.

    Attributes:
        key: of the recipe, for errors.
        url: what it says.
        scratch: a folder in the run's directory, through which those of a remote URL pass.
        world: this rank's place.
    """

    key: str
    url: str
    scratch: Path
    world: World

    def read(self, reads: Callable[[Path], Weights]) -> Weights:
        """What a function reads, the same on every rank, or on every rank the error of one."""
        path = self._here()
        try:
            with errors_naming(self.url, path):
                weights, error = reads(path), None
        except VitDistError as problem:
            weights, error = None, problem
        # Every rank reads the file itself. One that failed alone would leave the others in the engine's collectives;
        # and when all have answered, all have read: the copy may go.
        errors = all_gather_object(error, self.world)
        if self.world.is_main:
            shutil.rmtree(self.scratch, ignore_errors=True)
        for rank, failure in enumerate(errors):
            if failure is not None:
                raise type(failure)(
                    f"{self.key}: {failure}" if self.world.size == 1 else f"{self.key}: rank {rank}: {failure}"
                )
        assert weights is not None
        return weights

    def agreed(self, digest: str) -> str:
        """The digest, the same on every rank."""
        digests = all_gather_object(digest, self.world)
        other = next((rank for rank, there in enumerate(digests) if there != digests[0]), None)
        if other is not None:
            raise RunError(
                f"{self.key}: {redact(self.url)} holds other weights for rank {other} than for rank 0; give one file "
                f"that all ranks see"
            )
        return digest

    def _here(self) -> Path:
        """Where the weights lie on the file system: a remote URL's come into the run's directory first."""
        if not is_remote(self.url):
            path = local_path(self.url)
            # Of a run the newest checkpoint, which rank 0 chooses: another may be committed meanwhile.
            try:
                return on_main(lambda: intact_checkpoint(path) if is_checkpoint(path) else path, self.world)
            except VitDistError as error:
                raise type(error)(f"{self.key}: {error}") from None
        outcome: Path | VitDistError | None = None
        if self.world.is_main:
            try:
                outcome = download(self.url, self.scratch)
            except VitDistError as error:
                shutil.rmtree(self.scratch, ignore_errors=True)
                outcome = error
        outcome = broadcast_object(outcome, self.world)
        if isinstance(outcome, VitDistError):
            raise outcome
        assert outcome is not None
        return outcome


class Initial:
    """The weights that a run begins from, on one rank. To make one, and each call, is a collective.

    Args:
        recipe: whose `init` says which; without one there is nothing to do.
        directory: of the run, shared by all ranks; weights of a remote URL pass through it.
        world: this rank's place.
        class_names: what the training set calls the classes of the head, as far as it has names.

    Raises:
        VitDistError: the weights are missing, damaged, of another model, or of other classes.
    """

    def __init__(self, recipe: Recipe, directory: RunDir, world: World, class_names: Mapping[int, str]) -> None:
        self._recipe, self._world = recipe, world
        self._classes = Classes("the training set", recipe.data.num_classes, class_names)
        self._scratch = directory.path / ".initial-weights"
        self.identity: dict[str, str] = {}
        if recipe.init is None:
            return
        self._weights: Weights | None = None
        # Rank 0 alone reads the run's directory, so that all ranks begin with one answer whatever the file system
        # shows.
        known = broadcast_object(recorded(directory) if world.is_main else {}, world)
        self.identity = {_KEY: known[_KEY]} if _KEY in known else {}
        if not self.identity:
            self._weights = self._read()
            self.identity = {_KEY: self._agreed(digest_of(self._weights.state))}

    def load(self, engine: Engine) -> None:
        """Fill an engine whose run has no checkpoint yet.

        Raises:
            RefusalError: the weights are not those that an earlier attempt began from.
        """
        if self._recipe.init is None:
            return
        weights, self._weights = self._weights or self._read(), None
        if digest_of(weights.state) != self.identity[_KEY]:
            raise RefusalError(
                f"init.weights: {redact(self._recipe.init.weights)} are not the weights that this run began from "
                f"before; bring those back, or start in another --run-dir"
            )
        engine.load(_WeightsAlone(weights.state))
        if self._world.is_main:
            examples = weights.facts.get("examples")
            of = f", trained for {int(examples):,} examples before" if examples else ""
            of = f", their average{of}" if self._recipe.init.average else of
            head = ", with a new head" if self._recipe.init.head == "new" else ""
            log(f"  weights: from {redact(self._recipe.init.weights)}{of}{head}")

    def _read(self) -> Weights:
        """The fitting weights, the same on every rank, or on every rank the error of one."""
        init, model, data = self._recipe.init, self._recipe.model, self._recipe.data
        assert init is not None
        assert isinstance(model, ModelConfig)
        given = Given("init.weights", init.weights, self._scratch, self._world)
        return given.read(lambda path: _fitting(path, init, model, self._classes, data.image_size))

    def _agreed(self, digest: str) -> str:
        assert self._recipe.init is not None
        return Given("init.weights", self._recipe.init.weights, self._scratch, self._world).agreed(digest)


def _fitting(path: Path, init: InitConfig, model: ModelConfig, head: Classes, image_size: int) -> Weights:
    def rows(names: tuple[str, ...]) -> Sequence[int] | None:
        """Which of the weights' classes are those of the training set, by their names."""
        return rows_in(head, names, f"what {path} was trained on", _OTHER_HEAD)

    num_classes = head.num_classes
    if not is_checkpoint(path):
        if init.average:
            raise ConfigError(
                f"init.average: {path} is a file of weights, which has no average beside them; give a run or a "
                f"checkpoint in init.weights, or leave it out"
            )
        options = LoadOptions(model, num_classes, image_size, init.head, init.positions, rows=rows, wording=KEYS)
        return read_weights(path, options)
    saved, marker = checkpoint_state(path, average=init.average)
    if init.head == "keep":
        saved, _ = with_rows(saved, tuple(map(str, marker.get(CLASSES, ()))), rows)
    state = fit(
        saved,
        model,
        num_classes=num_classes,
        image_size=image_size,
        source=str(path),
        head=init.head,
        positions=init.positions,
        wording=KEYS,
    )
    return Weights(state, model, num_classes, image_size, {"examples": str(marker["state"]["position"])})


_OTHER_HEAD = (
    "give init.head=new for other classes, or give the weights the names of this set: `vit-dist models import ... "
    "--classes FILE`"
)


def digest_of(state: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits that name the tensors, whatever file held them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


class _WeightsAlone:
    """See engines/_slices.Source: weights and buffers, and nothing yet of an optimizer."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self._state = state

    def kinds(self, name: str) -> list[str]:  # noqa: ARG002
        """None: the optimizer begins."""
        return []

    def scalars(self, name: str) -> Mapping[str, float]:  # noqa: ARG002
        """None: the optimizer begins."""
        return {}

    def holds(self, kind: str, name: str) -> bool:
        """Weights and buffers alone."""
        return kind in (WEIGHT, BUFFER) and name in self._state

    def shape(self, kind: str, name: str) -> tuple[int, ...]:
        """Shape of the whole tensor."""
        return tuple(self._tensor(kind, name).shape)

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Elements [start, stop) of the flattened tensor."""
        return self._tensor(kind, name).reshape(-1)[start:stop]

    def _tensor(self, kind: str, name: str) -> Tensor:
        if name not in self._state:
            raise CheckpointError(f"the weights to begin from have no {kind} {name}")
        return self._state[name]
