"""`vit-dist predict`: labels by name, with probabilities, for images of any place; accuracy where labels are known."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vit_dist.cli.models.options import at_least_one, model_config
from vit_dist.cli.plugins import add_plugin, load_plugins
from vit_dist.cli.verbs import verb_parser
from vit_dist.core.errors import ConfigError
from vit_dist.core.files import is_remote, local_path, redact, write_bytes
from vit_dist.core.log import WARNING, log
from vit_dist.core.places import any_option, local_option
from vit_dist.core.units import counted

if TYPE_CHECKING:
    from vit_dist.data.pack.items import Item
    from vit_dist.predict.classifier import Classifier
    from vit_dist.predict.run import Prediction

SUMMARY = "what a trained model says of images: labels by name with probabilities, accuracy where labels are known"
_STDOUT = "-"
_EXAMPLES = """
MODEL is a run (its newest checkpoint), one of its checkpoints, a copy of these on a store, a file of weights (.npz,
.safetensors, .timm.safetensors, .pth, .bin) or a folder of Hugging Face's. IMAGES are files, folders (at any depth),
manifests, patterns ('photos/*/0*.jpg') and URLs (http, s3, ...).

Images go in as evaluation sees them: the shorter side resized to IMAGE-SIZE / CROP, the middle cut out.
Probabilities are those of the loss that the model was trained by: softmax, whose classes exclude each other, or
sigmoid, whose classes are each true or not and do not sum to 1. Names of classes are those of --classes, else those
that the run or the weights hold, else numbers. The class of an image is known from a manifest, or where a directory
on the way to it has the name of a class, as in photos/val/cat/7.jpg.

Images that cannot be read are named and counted, the rest goes on, and the exit code is 1.

examples:
  vit-dist predict runs/photos holiday/                                 a table, a line an image
  vit-dist predict runs/photos holiday/ --top 3 --grid holiday.png      and a picture of them
  vit-dist predict runs/photos shards/val --csv val.csv --json val.json a packed set: accuracy class by class too
  vit-dist predict runs/photos/checkpoints/step-0000001000 cat.jpg https://host/dog.jpg s3://bucket/more/
  vit-dist predict s3://bucket/runs/b16 'photos/*.jpg' --csv - > all.csv
  vit-dist predict google-vit-folder/ cat.jpg
  vit-dist predict B_16.npz cat.jpg --model ViT-B/16 --classes imagenet.txt --loss softmax
"""


def _parser() -> argparse.ArgumentParser:
    parser = verb_parser("vit-dist predict", SUMMARY, _EXAMPLES)
    parser.add_argument("model_place", type=any_option, metavar="MODEL", help="a run, a checkpoint or weights")
    parser.add_argument(
        "images", type=any_option, metavar="IMAGES", nargs="+", help="files, folders, manifests or URLs"
    )
    out = parser.add_argument_group("what comes out")
    out.add_argument("--top", metavar="K", type=int, default=5, help="classes for each image (default 5)")
    out.add_argument("--csv", metavar="FILE", type=any_option, help="a row an image; '-': here, in place of the table")
    out.add_argument("--json", metavar="FILE", type=any_option, help="all there is; '-': here, in place of the table")
    out.add_argument("--grid", metavar="FILE.png", type=any_option, help="a picture: green frames are right, red wrong")
    out.add_argument(
        "--grid-images", metavar="N", type=int, default=40, help="how many images it shows, the first (default 40)"
    )
    parser.add_argument("--average", action="store_true", help="of a run with `ema`: the average of its weights")
    model = parser.add_argument_group("where the weights do not say it, or something else is wanted")
    model.add_argument("--model", metavar="NAME", help="of a file that does not say its model: `vit-dist models list`")
    model.add_argument(
        "--set", metavar="k=v", action="append", default=[], help="a setting of --model; may be repeated"
    )
    model.add_argument("--classes", metavar="FILE", type=local_option, help="names of the classes, one a line")
    model.add_argument("--image-size", metavar="S", type=int, help="pixels; positions are resampled")
    model.add_argument("--crop", metavar="F", type=float, help="part of the shorter side that is seen (default 0.875)")
    model.add_argument("--upright", action="store_true", default=None, help="turn photos as their EXIF data say")
    model.add_argument("--loss", choices=("softmax", "sigmoid"), help="that the model was trained by (default softmax)")
    model.add_argument("--mean", metavar="R,G,B", type=_colours, help="of the colours in 0..1 (default 0.5,0.5,0.5)")
    model.add_argument("--std", metavar="R,G,B", type=_colours, help="that is divided by (default 0.5,0.5,0.5)")
    how = parser.add_argument_group("how it is computed")
    how.add_argument(
        "--device", metavar="NAME", default="", help="cpu, cuda, cuda:1 (default: a GPU where there is one)"
    )
    how.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of the model (default fp32)")
    how.add_argument("--batch", metavar="N", type=int, default=64, help="images at once (default 64)")
    how.add_argument("--threads", metavar="N", type=int, help="that decode images (default: one a core)")
    add_plugin(parser)
    return parser


def main(argv: list[str]) -> int:
    """Entry of the verb."""
    args = _parser().parse_intermixed_args(argv)
    load_plugins(args.plugin)
    at_least_one(args, "top", "batch", "threads", "image_size", "grid_images")
    _check(args)
    place = _found(args.model_place)
    if not args.model and not is_remote(place):
        from vit_dist.models.weights.forms import check_says_model

        check_says_model(local_path(place))

    from vit_dist.core.process import heavy_imports
    from vit_dist.predict.images import list_images, with_labels

    # Before torch, whose import takes seconds.
    listed, said = list_images(args.images), _said(args)
    with heavy_imports():
        from vit_dist.predict.classifier import OpenOptions, open_classifier
    classifier = open_classifier(place, OpenOptions(**said))
    found = with_labels(listed, classifier.as_classes())
    log(f"  {_described(classifier)}")
    for note in found.notes:
        log(f"  {note}", WARNING)
    predictions = _predictions(args, classifier, found.items)
    return _report(args, classifier, predictions)


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        ConfigError: names them.
    """
    from vit_dist.core.folders import check_writable

    if args.csv == args.json == _STDOUT:
        raise ConfigError("--csv - and --json -: one of them can be written here; give the other a file")
    if args.crop is not None and not 0 < args.crop <= 1:
        raise ConfigError(f"--crop={args.crop:g}: a part of the shorter side, above 0 and at most 1")
    if args.std is not None and min(args.std) <= 0:
        raise ConfigError(f"--std={','.join(map(str, args.std))}: it is divided by these; give numbers above 0")
    if args.set and not args.model:
        raise ConfigError(f"--set {args.set[0]}: settings are those of a model; give --model NAME")
    if args.grid is not None and not args.grid.lower().endswith(".png"):
        raise ConfigError(f"--grid {redact(args.grid)}: the picture is a PNG; give a name that ends in .png")
    for name in ("csv", "json", "grid"):
        place = getattr(args, name)
        if place is not None and place != _STDOUT and not is_remote(place):
            if local_path(place).is_dir():
                raise ConfigError(f"--{name} {place}: a directory; name a file")
            check_writable(local_path(place), f"--{name}")


def _colours(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != 3 or not all(map(math.isfinite, found)):
        raise argparse.ArgumentTypeError(f"expected three numbers such as 0.485,0.456,0.406, got {text!r}")
    return found


def _found(place: str) -> str:
    """Where the model is: the place itself, or the run that has this name.

    Raises:
        ConfigError: no run is called so, or no form of weights is.
        CheckpointError: a run that has no checkpoint yet.
        DataError: no such file.
    """
    if is_remote(place):
        return place
    from vit_dist.core.run import names
    from vit_dist.core.run.checkpoints import MARKER, committed, is_checkpoint, no_checkpoint
    from vit_dist.models.weights.forms import check_readable

    path = local_path(place)
    if not path.exists() and not path.suffix:
        from launcher.status.find import find_begun

        path, checkpoint = find_begun(place)
        path = path / names.CHECKPOINTS / checkpoint if checkpoint else path
    if not is_checkpoint(path):
        check_readable(path)
    elif not (path / MARKER).is_file() and not committed(path / names.CHECKPOINTS):
        raise no_checkpoint(path, "predict with")
    return str(path)


def _said(args: argparse.Namespace) -> dict[str, Any]:
    """What is said of the model in place of what its weights say: the fields of `classifier.OpenOptions`. No torch."""
    from vit_dist.data.labels import read_classes

    said: dict[str, Any] = {
        "config": model_config(args.model, args.set) if args.model else None,
        "classes": read_classes(args.classes) if args.classes else (),
    }
    for name in ("average", "image_size", "crop", "upright", "loss", "mean", "std", "device", "precision"):
        said[name] = getattr(args, name)
    return said


def _described(classifier: Classifier) -> str:
    """The model, how images go in and what the probabilities are, in one line."""
    facts, viewed, size = classifier.facts, classifier.viewed, classifier.image_size
    step = f", step {int(facts['step']):,}" if "step" in facts else ""
    step += ", the average of its weights" if "average_steps" in facts else ""
    names = "" if any(classifier.classes) else " without names (--classes FILE gives them some)"
    colours = (
        f", mean {_listed(viewed.mean)}, std {_listed(viewed.std)}" if set(viewed.mean + viewed.std) != {0.5} else ""
    )
    upright = ", upright" if viewed.upright else ""
    return (
        f"{facts['model']} of {classifier.where}{step}, {counted(classifier.num_classes, 'class')}{names}; images: the "
        f"shorter side to {round(size / viewed.crop)}, the middle {size} x {size}{upright}"
        f"{colours}; probabilities: {viewed.loss}; {classifier.device.type}, {classifier.precision}"
    )


def _listed(numbers: Sequence[float]) -> str:
    return " ".join(f"{number:g}" for number in numbers)


def _predictions(args: argparse.Namespace, classifier: Classifier, items: Sequence[Item]) -> list[Prediction]:
    from vit_dist.cli.data.options import default_workers
    from vit_dist.core.progress import Progress
    from vit_dist.predict.run import predict_items

    top, found = min(args.top, classifier.num_classes), []
    keep = args.grid_images if args.grid is not None else 0
    threads = args.threads or default_workers()
    with Progress("predicting", len(items), "image") as progress:
        for one in predict_items(classifier, items, top=top, batch=args.batch, threads=threads, keep=keep):
            found.append(one)
            progress.advance()
    return found


def _report(args: argparse.Namespace, classifier: Classifier, predictions: Sequence[Prediction]) -> int:
    """Write and print what was asked for; the exit code."""
    from vit_dist.core.exit_codes import FAILED
    from vit_dist.predict import report

    top = min(args.top, classifier.num_classes)
    if args.csv is not None:
        _write(args.csv, report.as_csv(predictions, classifier, top))
    if args.json is not None:
        _write(args.json, report.as_json(predictions, classifier, _about(classifier)))
    if args.grid is not None:
        from vit_dist.predict.grid import draw_grid

        shown = predictions[: args.grid_images]
        write_bytes(args.grid, draw_grid(shown, classifier))
        more = f" of {len(predictions):,}" if len(shown) < len(predictions) else ""
        log(f"  {redact(args.grid)}: {counted(len(shown), 'image')}{more}")
    found = report.accuracy(predictions)
    if _STDOUT not in (args.csv, args.json):
        lines = report.table(predictions, classifier)
        lines += ["", found.as_text(), *report.class_table(found, classifier)] if found is not None else []
        sys.stdout.write("\n".join(lines) + "\n")
    elif found is not None:
        log(f"  {found.as_text()}")
    broken = [one for one in predictions if one.problem]
    for one in broken[:20]:
        log(f"  {one.image}: cannot be read: {one.problem}", WARNING)
    if broken:
        log(
            f"  {counted(len(broken), 'image')} of {len(predictions):,} could not be read",
            WARNING,
        )
    return FAILED if broken else 0


def _about(classifier: Classifier) -> dict[str, object]:
    viewed = classifier.viewed
    facts = {key: value for key, value in classifier.facts.items() if key != "recipe"}
    seen = {"size": classifier.image_size, "crop": viewed.crop, "upright": viewed.upright}
    colours = {"mean": list(viewed.mean), "std": list(viewed.std)}
    return {"weights": classifier.where, **facts, "probabilities": viewed.loss, "view": {**seen, **colours}}


def _write(place: str, text: str) -> None:
    if place == _STDOUT:
        sys.stdout.write(text)
        return
    write_bytes(place, text.encode())
