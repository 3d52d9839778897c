"""The stream by itself, for training loops that are not ours: `vit_dist.open_stream`.

It is the trainer's own stream (data/stream.py): the same order, the same reader, the same crop. Here are only the
arguments; the batch and the state in the form that such a loop wants are in standalone_stream.py.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, SupportsIndex

import torch
from pydantic import ValidationError

from vit_dist.config.mistakes import describe
from vit_dist.config.schema import DataConfig
from vit_dist.core.errors import ConfigError, DataError, did_you_mean
from vit_dist.core.units import counted
from vit_dist.core.world import World, launched_world
from vit_dist.data.augment import Augment
from vit_dist.data.batch import Make, Sample
from vit_dist.data.decode import Encoded
from vit_dist.data.images import DecodeError, load
from vit_dist.data.manifest import ShardManifest, read_manifest
from vit_dist.data.mixture import MixtureOrder
from vit_dist.data.regions import RegionDecoder, check_installed
from vit_dist.data.sets import TrainingSet, open_training_set
from vit_dist.data.standalone_stream import Stream
from vit_dist.data.stream import STORED_WINDOW, TrainStream
from vit_dist.data.stream_state import load_position
from vit_dist.data.takedown import extended, hold, left_out, read_lines

_KEYS = frozenset(
    {"subset", "subset_seed", "lanes", "window", "crop_area", "crop_aspect", "max_bad", "takedown", "upright"}
    | {"decoder", "decode_workers", "read_threads", "prefetch_batches", "memory_limit", "cache"}
)
"""Of a recipe's data section: those that mean something here, and have no argument of their own."""
_ELSEWHERE = {
    "num_workers": "workers=N are threads that decode, decode_workers=N processes",
    "decode_threads": "workers=N are threads that decode",
    "batch_size": "batch=N are the examples of all ranks together",
    "pin_memory": "device=... copies from pinned memory",
    "shuffle_buffer": "the whole set is shuffled, without a buffer",
    "mixup": "batches are not mixed here; mix in the training loop",
}
"""What a DataLoader, webdataset or a recipe calls otherwise."""

Decode = Literal["crop", "pil", "bytes"]
Transform = Callable[[Any, Sample], Any]


@dataclass(frozen=True)
class _Wanted:
    """See `sets.Wanted`."""

    data: DataConfig
    seed: int
    global_batch: int


def open_stream(
    manifest: str | Mapping[str, str | Mapping[str, Any]],
    *,
    batch: int,
    seed: int = 0,
    position: Mapping[str, Any] | None = None,
    epochs: int | None = None,
    shuffle: bool = True,
    drop_last: bool = False,
    decode: Decode = "crop",
    transform: Transform | None = None,
    image_size: int = 224,
    augment: str | Mapping[str, Any] = "inception",
    rank: int | None = None,
    world_size: int | None = None,
    device: str | int | torch.device | None = None,
    workers: int | None = None,
    timeout: float = 0,
    **data: Any,
) -> Stream:
    """Open one rank's stream of examples: `for batch, state in vit_dist.open_stream(...)`.

    Each example comes once an epoch over all ranks together, in an order that is a function of the sets, the seed and
    the epoch alone. `state` says where the stream stands once the batch is consumed: save it with the weights; opened
    with `position=state`, on any number of ranks, the stream goes on with exactly the examples that are left. Threads
    read and decode ahead; no DataLoader is to be wrapped around it.

    Args:
        manifest: path or URL of a `manifest.json`, or of the folder that holds it; for a mixture a mapping of names to
            those, or to {"train": URL, "weight": 3, "subset": ..., "label_offset": ...}.
        batch: examples of one step on ALL ranks together. Where the ranks do not divide it, some have one more.
        seed: of the order and of random crops.
        position: the `state` to go on from, the same on every rank; None: from the beginning.
        epochs: ends after so many, counted from the beginning of the order and not from `position`; None: never. The
            last batch may be smaller, and empty on ranks for which nothing is left.
        shuffle: False: each epoch in the order of the tars.
        drop_last: leave out what is left behind the last whole batch of the last epoch.
        decode: "crop": uint8 [3, S, S] as the trainer crops it, "pil": a PIL image in RGB, "bytes": as in the tar.
        transform: called with that and its `Sample`, in `workers` threads; what it returns is the example. One that
            raises DecodeError has the sample replaced, any other error ends the stream.
        image_size: S, in pixels.
        augment: of `decode="crop"`: "inception": random area crop and flip, "flip": resize and flip, "none": resize; or
            what a recipe's `data.augment` takes, such as {"jitter": {"brightness": 0.4}}.
        rank: of this process among `world_size`; both left out: those of torch.distributed, once it is initialised,
            else of torchrun or srun (RANK and WORLD_SIZE, SLURM_PROCID), else a world of one.
        world_size: ranks.
        device: where labels, weights and images are copied to, from pinned memory without waiting; None: they stay.
        workers: threads that decode; None: the CPUs of the rank less two, 2 to 32.
        timeout: seconds that a batch may take, from when it is asked for, as of a DataLoader; 0: as long as it takes.
        **data: keys of a recipe's `data` section: subset, subset_seed, lanes, window, crop_area, crop_aspect, max_bad,
            takedown, upright, decoder, decode_workers, read_threads, prefetch_batches, memory_limit, cache
            (docs/recipe.md).
            `decode_workers` are processes that decode in place of threads, for `decode="crop"` without a transform,
            shuffled.

    Raises:
        ConfigError: arguments that do not fit the sets or each other, or a state of another order.
        DataError: a manifest that cannot be read.
    """
    if torch.utils.data.get_worker_info() is not None:
        raise ConfigError(
            "open_stream inside a worker process of a DataLoader: each worker would give all examples of the rank; "
            "iterate over the stream itself, it reads and decodes ahead in threads of its own"
        )
    _check_arguments(batch, epochs, decode, transform, manifest, timeout, shuffle=shuffle, drop_last=drop_last)
    seed = _whole_seed(seed)
    to = _device(device)
    world = _world(rank, world_size)
    unknown = sorted(data.keys() - _KEYS)
    if unknown:
        hint = f"; {_ELSEWHERE[unknown[0]]}" if unknown[0] in _ELSEWHERE else did_you_mean(unknown[0], _KEYS)
        raise ConfigError(f"open_stream: {unknown[0]}: unknown key{hint}")
    fields = {**data, "image_size": image_size, "augment": augment, "decode_threads": workers}
    config, read = _config(manifest, fields, shuffle=shuffle)
    if config.decode_workers and (decode != "crop" or transform is not None or not shuffle):
        raise ConfigError(
            f"decode_workers={config.decode_workers}: processes make uint8 crops of a shuffled stream; with "
            f"{'shuffle=False' if not shuffle else 'a transform' if transform is not None else f'decode={decode!r}'} "
            f"threads decode (workers=N): leave decode_workers out"
        )
    wanted = _Wanted(config, seed, batch)
    opened = open_training_set(wanted, read=read, labelled=False)
    end = _end(opened, epochs, batch, drop_last=drop_last)
    at, before = load_position(position, batch, opened.identity, shuffle=shuffle) if position is not None else (0, ())
    # Read anew for each stream, whatever one before it has read.
    hold(config.takedown, read_lines(config.takedown))
    taken = extended(before, config.takedown, opened.parts, at)
    regions = config.decoder == "nvimgcodec"
    if regions and decode != "crop":
        raise ConfigError(
            f"decoder={config.decoder} decodes the crop alone, and decode={decode!r} has none: leave it out"
        )
    make = _maker(decode, transform, Augment.of(config, seed), upright=config.upright, decode_regions=regions)
    start = functools.partial(
        TrainStream,
        opened,
        wanted,
        world,
        uneven=True,
        end=end,
        stored=not shuffle,
        make=make,
        taken_down=left_out(taken),
        labelled=False,
        timeout_s=timeout,
    )
    return Stream(start, opened, wanted, world, at, end, taken, shuffle=shuffle, device=to)


def _check_arguments(
    batch: int,
    epochs: int | None,
    decode: str,
    transform: object,
    manifest: object,
    timeout: object,
    *,
    shuffle: bool,
    drop_last: bool,
) -> None:
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not 0 <= timeout < math.inf:
        raise ConfigError(f"timeout={timeout!r}: expected seconds, or 0 for none")
    for name, value in (("batch", batch), ("epochs", epochs)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ConfigError(f"{name}={value!r}: expected a whole number from 1")
    if decode not in {"crop", "pil", "bytes"}:
        raise ConfigError(f"decode={decode!r}: expected 'crop', 'pil' or 'bytes'; a callable is given as transform=")
    for name, given in (("shuffle", shuffle), ("drop_last", drop_last)):
        if not isinstance(given, bool):
            more = "; there is no buffer: True shuffles the whole set" if name == "shuffle" else ""
            raise ConfigError(f"{name}={given!r}: expected True or False{more}")
    if transform is not None and not callable(transform):
        raise ConfigError(f"transform={transform!r}: expected a callable of (image, sample)")
    if transform is not None and not _takes_two(transform):
        raise ConfigError(
            f"transform={_name(transform)}: is called with an image and its sample; one that takes an image alone is "
            f"given as transform=lambda image, sample: TRANSFORM(image)"
        )
    expected = "expected the path or URL of a manifest, or a mapping"
    if isinstance(manifest, Mapping):
        for name, one in manifest.items():
            if not isinstance(one, str | os.PathLike | Mapping):
                raise ConfigError(f"manifest: {name}={one!r}: {expected} with train and more; see help(open_stream)")
        if not shuffle:
            raise ConfigError("shuffle=False: a mixture is read from all its sets in turn; give one set, or shuffle")
        if epochs is not None:
            raise ConfigError(
                f"epochs={epochs}: the sets of a mixture have epochs of their own; leave it out, and stop after as "
                f"many batches as you like"
            )
    elif not isinstance(manifest, str | os.PathLike):
        raise ConfigError(f"manifest={manifest!r}: {expected} of names to such; see help(open_stream)")
    if drop_last and epochs is None:
        raise ConfigError("drop_last=True: without `epochs` the stream has no last batch; leave it out")


def _whole_seed(seed: object) -> int:
    if isinstance(seed, SupportsIndex) and not isinstance(seed, bool):  # an int, or one of numpy's
        return operator.index(seed)
    raise ConfigError(f"seed={seed!r}: expected a whole number")


def _takes_two(transform: Callable[..., Any]) -> bool:
    # Those of torchvision's second kind take any number of arguments, and would hand the sample on beside the image.
    if type(transform).__module__.startswith("torchvision.transforms"):
        return False
    called = transform.forward if isinstance(transform, torch.nn.Module) else transform
    try:
        inspect.signature(called).bind(None, None)
    except TypeError:
        return False
    except ValueError:  # a builtin that does not tell
        return True
    return True


def _name(transform: object) -> str:
    return getattr(transform, "__qualname__", type(transform).__name__)


def _device(device: str | int | torch.device | None) -> torch.device | None:
    """Where batches go; looked at before anything is read.

    Raises:
        ConfigError: no device of torch's, or a GPU that is not here.
    """
    if device is None:
        return None
    try:
        to = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"device={device!r}: expected a device of torch's, such as 'cuda:0' or 'cpu', or None ({error})"
        ) from None
    if to.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(
                f"device={device!r}: torch finds no GPU here (torch.cuda.is_available() is False); give 'cpu', or "
                f"leave it out"
            )
        if to.index is not None and to.index >= torch.cuda.device_count():
            here = counted(torch.cuda.device_count(), "GPU")
            raise ConfigError(f"device={device!r}: torch finds {here} here, counted from 0 (CUDA_VISIBLE_DEVICES)")
    return to


def _world(rank: int | None, world_size: int | None) -> World:
    if rank is None and world_size is None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return World(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return launched_world() or World()
    whole = all(isinstance(one, int) and not isinstance(one, bool) for one in (rank, world_size))
    if rank is None or world_size is None or not whole or not 0 <= rank < world_size:
        raise ConfigError(
            f"rank={rank!r}, world_size={world_size!r}: give both, rank from 0 to world_size - 1, or neither"
        )
    return World(rank, world_size)


def _config(
    manifest: str | Mapping[str, str | Mapping[str, Any]], fields: dict[str, Any], *, shuffle: bool
) -> tuple[DataConfig, Callable[[str], ShardManifest]]:
    """The data section of a recipe that reads so, and what reads its manifests, each once.

    Raises:
        ConfigError: every mistake, a line each.
    """
    if isinstance(manifest, Mapping):
        fields["mixture"] = {
            name: dict(one) if isinstance(one, Mapping) else {"train": os.fspath(one)} for name, one in manifest.items()
        }
    else:
        fields["train"] = os.fspath(manifest)
    if not shuffle:
        given = sorted({"lanes", "window"} & fields.keys())
        if given:
            raise ConfigError(f"{given[0]}={fields[given[0]]} beside shuffle=False: it is of the shuffled order alone")
        fields |= {"lanes": 1, "window": STORED_WINDOW}
    read = lru_cache(maxsize=None)(read_manifest)

    def checked(classes: int) -> DataConfig:
        try:
            return DataConfig.model_validate({"num_classes": classes, **fields})
        except ValidationError as error:
            # The only set is no `train` to whoever has given it.
            lines = (
                re.sub(r"^train: ", "manifest: ", re.sub(r"^decode_threads: ", "workers: ", line))
                for line in describe(error, DataConfig, "")
            )
            raise ConfigError("\n".join(f"open_stream: {line}" for line in lines)) from None

    # Before a manifest is read, so that mistakes are told of first.
    config = checked(1)
    if config.pair_mixing is not None:
        raise ConfigError(
            f"open_stream: augment.augreg={config.augment.augreg}, {config.augment.numbers}: batches are not mixed "
            f"here; write its randaugment out (docs/data.md), and mix in the training loop"
        )
    if not (config.train or config.mixture):
        raise ConfigError("manifest is empty: give the path or URL of a manifest, or a mapping of names to such")
    places = [(c.train, c.label_offset) for c in config.mixture.values()] or [(config.train, 0)]
    known = max(read(place).num_classes + offset for place, offset in places)
    return checked(max(1, known)), read


def _end(data: TrainingSet, epochs: int | None, batch: int, *, drop_last: bool) -> int | None:
    if epochs is None or isinstance(data.order, MixtureOrder):
        return None
    total = epochs * data.num_samples
    if drop_last and total < batch:
        raise ConfigError(
            f"drop_last=True: {counted(epochs, 'epoch')} of {data.num_samples} examples "
            f"{'is' if epochs == 1 else 'are'} less than one batch={batch}"
        )
    return total - total % batch if drop_last else total


def _maker(
    how: Decode, transform: Transform | None, crop: Augment, *, upright: bool, decode_regions: bool
) -> Make | None:
    """What becomes of a sample; None: what becomes of it in training."""
    if how == "crop" and transform is None:
        return None
    if decode_regions:
        check_installed()
    regions = RegionDecoder() if decode_regions else None

    def make(content: memoryview, sample: Sample) -> Any:
        image: Any
        if how == "crop":
            encoded = Encoded(content, upright=upright, regions=regions)
            image = crop.decode(encoded, epoch=sample.epoch, ordinal=sample.ordinal)
        elif how == "pil":
            image = load(content, upright=upright).image.convert("RGB")
        else:
            image = bytes(content)
        if transform is None:
            return image
        try:
            return transform(image, sample)
        except DecodeError:
            raise
        except Exception as error:
            raise DataError(
                f"transform failed on sample {sample.key!r} (ordinal {sample.ordinal}, position {sample.position}): "
                f"{type(error).__name__}: {error}"
            ) from error

    return make
