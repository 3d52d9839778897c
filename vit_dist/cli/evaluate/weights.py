"""`vit-dist evaluate FILE|MODEL`: weights of any form, or a model's fresh ones, before evaluators. No torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vit_dist.core.errors import ConfigError
from vit_dist.core.units import counted

if TYPE_CHECKING:
    from vit_dist.models import ModelConfig

_TAKEN = ("data.", "eval.", "evaluators=", "precision=", "plugins=")
_NOT_TAKEN = ("data.num_classes=", "data.image_size=", "data.dataset=", "data.mixture")


def is_weights(text: str) -> bool:
    """Whether a word names a file or folder of weights, or a model, and no run or checkpoint."""
    from vit_dist.core.errors import VitDistError
    from vit_dist.core.registry import MODELS
    from vit_dist.core.run.checkpoints import is_checkpoint
    from vit_dist.core.urls import is_remote
    from vit_dist.models.weights.forms import CONFIG, PICKLED

    path = Path(text)
    if text.rstrip("/").endswith((".npz", ".safetensors", *PICKLED)):
        return True
    if is_remote(text):
        return False
    if path.is_dir():
        return not is_checkpoint(path) and (path / CONFIG).is_file()
    if path.exists():
        return False
    try:
        MODELS.lookup(text)
    except VitDistError:
        return False
    return True


def evaluate_weights(args: argparse.Namespace, source: str, overrides: Sequence[str]) -> int:
    """Evaluate weights on the ranks of this world, or on ranks that are started here.

    Args:
        args: of `vit-dist evaluate`, parsed.
        source: a file or folder of weights, its URL, or the name of a model.
        overrides: the other words.

    Raises:
        ConfigError: what is asked for cannot be, as far as that is known without the weights.
    """
    from vit_dist.core.folders import check_writable
    from vit_dist.core.world import world_or_ranks

    settings = [word.removeprefix("model.") for word in overrides if word.startswith("model.")]
    words = check_words([word for word in overrides if not word.startswith("model.")])
    config = model_of(args, source, settings)
    if args.out is not None and args.out.is_dir():
        raise ConfigError(f"--out {args.out}: a directory; name a file, such as {args.out / 'values.json'}")
    for option, place in (("--out", args.out), ("--files", args.files)):
        if place is not None:
            check_writable(place, option)
    for name in ("image_size", "num_classes"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ConfigError(f"--{name.replace('_', '-')}={getattr(args, name)}: at least 1 is needed")
    check_recipe(config, args, words)
    if args.cluster:
        from vit_dist.cli.evaluate.jobs import submit_weights

        return submit_weights(args, source, [*overrides, *_options(args)])
    world, ranks = world_or_ranks(args.nproc)
    if world is None:
        import tempfile

        from launcher.processes.ranks import run_ranks
        from vit_dist.core.scratch import scratch

        with scratch(Path(tempfile.gettempdir()), "vit-dist-evaluate") as folder:
            return run_ranks(["evaluate", source, *overrides, *_options(args)], nproc=ranks, folder=folder)
    from vit_dist.core.process import heavy_imports

    with heavy_imports():
        from vit_dist.train.evaluate_weights import Source, evaluate_source
    asked = Source(source, config, args.num_classes, args.image_size, args.head, args.seed or 0)
    evaluate_source(asked, words, world, out=args.out, files=args.files)
    return 0


def check_words(words: list[str]) -> list[str]:
    """Overrides that an evaluation of weights takes: as they are.

    Raises:
        ConfigError: one is of a run's training, or nothing is to be measured.
    """
    for word in words:
        if word.startswith(_NOT_TAKEN) or not word.startswith(_TAKEN):
            raise ConfigError(
                f"{word}: weights are evaluated without a run: what may be given is data.val, data.train, "
                f"data.val_crop and how data are read, eval.*, evaluators, precision and, for weights that do not say "
                f"their model, model.*; classes and image size are --num-classes and --image-size"
            )
    if not any(word.startswith("evaluators=") for word in words):
        raise ConfigError("nothing to evaluate: give --evaluator NAME, such as classification, fewshot, knn or linear")
    return words


def model_of(args: argparse.Namespace, source: str, settings: Sequence[str]) -> ModelConfig | None:
    """The model that a person names; None: the weights say it.

    Raises:
        ConfigError: no such model, or options that do not go together.
        DataError: no such file.
    """
    from vit_dist.cli.models.options import model_config
    from vit_dist.core.files import is_remote, local_path
    from vit_dist.models.weights.forms import check_readable, check_says_model

    if not is_remote(source) and not Path(source).exists() and not Path(source).suffix:
        if args.model:
            raise ConfigError(f"--model {args.model} beside {source}, which is a model itself: leave one of them out")
        return model_config(source, settings)
    if args.seed is not None:
        raise ConfigError(f"--seed: of a model's fresh weights, not of {source}")
    if settings and not args.model:
        raise ConfigError(f"model.{settings[0]}: settings are those of a model; give --model NAME")
    if not is_remote(source):
        check_readable(local_path(source))
        if not args.model:
            check_says_model(local_path(source))
    return model_config(args.model, settings) if args.model else None


def check_recipe(config: ModelConfig | None, args: argparse.Namespace, words: Sequence[str]) -> None:
    """Refuse evaluators, keys and sets that cannot be, before anybody imports torch.

    Raises:
        ConfigError, DataError: says which.
    """
    from vit_dist.config.load import resolve
    from vit_dist.config.weights import recipe_of_weights
    from vit_dist.data.manifest import read_manifest

    # What the weights say is not known yet: a model of which no evaluator asks anything stands for it.
    plain = {"name": "R50x1"} if config is None else config.model_dump(mode="json")
    recipe = resolve(recipe_of_weights(plain, args.num_classes or 1000, args.image_size or 224), words)
    if recipe.data.val:
        read_manifest(recipe.data.val)
    if recipe.measured() == ({}, False) or (
        not recipe.data.val and any(one.name == "classification" for one in recipe.evaluators)
    ):
        raise ConfigError(
            f"data.val is empty, and {recipe.evaluators[0].name if recipe.evaluators else 'no evaluator'} needs it; "
            f"name a set with data.val=URL"
        )
    for evaluator in recipe.evaluators:
        evaluator.check_sets(recipe)  # type: ignore[attr-defined]


def _options(args: argparse.Namespace) -> list[str]:
    """The options of this command line, for the ranks."""
    given = {
        "--model": args.model,
        "--num-classes": args.num_classes,
        "--image-size": args.image_size,
        "--head": args.head if args.head != "keep" else None,
        "--seed": args.seed,
        "--out": args.out and args.out.absolute(),
        "--files": args.files and args.files.absolute(),
    }
    return [word for name, value in given.items() if value is not None for word in (name, str(value))]


def check_not_given(args: argparse.Namespace, runs: Sequence[str]) -> None:
    """Refuse options of weights for a run, which knows its model.

    Raises:
        ConfigError: one was given.
    """
    for name in ("model", "num_classes", "image_size", "seed", "files"):
        if getattr(args, name) is not None:
            what = counted(len(runs), "run") if len(runs) != 1 else runs[0]
            raise ConfigError(f"--{name.replace('_', '-')}: for a file of weights, not for {what}, a run of ours")
    if args.head != "keep":
        raise ConfigError("--head: for a file of weights, not for a run of ours")
