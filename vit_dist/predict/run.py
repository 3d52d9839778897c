"""Images through a model, in batches: read and decoded ahead, results in the order of the images."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vit_dist.core.errors import DataError
from vit_dist.data.images import DecodeError
from vit_dist.data.pack.fetch import Fetcher
from vit_dist.data.pack.items import Item
from vit_dist.predict.classifier import Classifier
from vit_dist.predict.images import list_images, with_labels


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        image: what it is called.
        top: numbers of the classes and their probabilities, the most probable first; () where it could not be read.
        labels: the classes that it is known to be of; () where none is.
        problem: why it could not be read; '' where it could.
        view: uint8 [3, S, S], what the model saw, where that was to be kept.
    """

    image: str
    top: tuple[tuple[int, float], ...] = ()
    labels: tuple[int, ...] = ()
    problem: str = ""
    view: Tensor | None = field(default=None, compare=False, repr=False)

    @property
    def is_right(self) -> bool | None:
        """Whether the most probable class is one of the labels; None where there are none, or no prediction."""
        return self.top[0][0] in self.labels if self.top and self.labels else None


def predict_items(
    classifier: Classifier, items: Iterable[Item], *, top: int = 5, batch: int = 64, threads: int = 1, keep: int = 0
) -> Iterator[Prediction]:
    """Predictions of images in their order; one that cannot be read says why, and the rest goes on.

    Args:
        classifier: the model.
        items: images, as of `images.with_labels`.
        top: classes for each.
        batch: images at once.
        threads: that decode.
        keep: so many of the first views are kept.
    """
    done = 0
    # Told ahead of the model: one batch is computed while the next is decoded.
    with contextlib.closing(Fetcher("")) as fetcher, ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        views = _views(classifier, fetcher.fetch_all(items), pool, 2 * batch)
        while chunk := list(itertools.islice(views, batch)):
            for item, view, ranked in _ranked(classifier, chunk, top):
                kept = view if isinstance(view, Tensor) and done < keep else None
                done += kept is not None
                problem = "" if isinstance(view, Tensor) else view
                yield Prediction(item.key, ranked, item.labels, problem, kept)


def predict(classifier: Classifier, *places: str, top: int = 5, batch: int = 64, threads: int = 1) -> list[Prediction]:
    """Predictions of all images that files, folders, manifests, patterns and URLs name.

    Args:
        classifier: by `classifier.open_classifier`.
        places: see `images.list_images`.
        top: classes for each image.
        batch: images at once.
        threads: that decode.

    Raises:
        DataError: a place is missing, or holds no images.
    """
    items = with_labels(list_images(places), classifier.as_classes()).items
    return list(predict_items(classifier, items, top=top, batch=batch, threads=threads))


def _views(
    classifier: Classifier, fetched: Iterable[tuple[Item, bytes | DataError]], pool: ThreadPoolExecutor, ahead: int
) -> Iterator[tuple[Item, Tensor | str]]:
    """Each image's view, or why it has none; up to `ahead` are decoded before they are asked for."""
    waiting: deque[tuple[Item, Future[Tensor | str]]] = deque()
    for item, content in fetched:
        waiting.append((item, pool.submit(_view, classifier, content)))
        if len(waiting) > ahead:
            done, future = waiting.popleft()
            yield done, future.result()
    while waiting:
        done, future = waiting.popleft()
        yield done, future.result()


def _view(classifier: Classifier, content: bytes | DataError) -> Tensor | str:
    if isinstance(content, DataError):
        return str(content)
    try:
        return classifier.view(content)
    except DecodeError as error:
        return str(error)


def _ranked(
    classifier: Classifier, chunk: list[tuple[Item, Tensor | str]], top: int
) -> Iterator[tuple[Item, Tensor | str, tuple[tuple[int, float], ...]]]:
    views = [view for _, view in chunk if isinstance(view, Tensor)]
    rows: Iterator[tuple[tuple[int, float], ...]] = iter(())
    if views:
        logits = classifier.logits(torch.stack(views))
        if not bool(logits.isfinite().all()):
            raise DataError(
                f"{classifier.where}: its logits are no finite numbers; are these weights of a run that diverged?"
            )
        # By logits: probabilities of several classes may round to 1. The first of equals comes first, as by argmax.
        order = logits.argsort(stable=True, dim=1, descending=True)[:, :top]
        chances = classifier.probabilities(logits).gather(1, order)
        rows = (
            tuple(zip(numbers, values, strict=True))
            for numbers, values in zip(order.tolist(), chances.tolist(), strict=True)
        )
    for item, view in chunk:
        yield item, view, next(rows) if isinstance(view, Tensor) else ()
