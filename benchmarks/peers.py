"""Other loaders, set up as their users set them up: each takes a `Place` and yields batches, for ever.

From local files; from S3 it is benchmarks/peers_s3.py. What is not installed is left out by whoever asks: `pip install
nvidia-dali-cuda130 litdata mosaicml-streaming spdl-io spdl` brings them (DALI and SPDL decode on the CPU here).
"""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

SIZE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Place:
    """Where the same images lie, in the form of each loader, and how they are to be loaded.

    Attributes:
        root: with `tars/` (and a manifest), `folder/CLASS/*.jpg`, `mds/`, `litdata/`.
        batch: examples of a batch.
        workers: processes or threads.
        url: `s3://BUCKET/PREFIX` where `tars/`, `mds/` and `litdata/` lie as well; '' without a store.
        cache: an empty folder for those that copy to a disk first.
    """

    root: Path
    batch: int
    workers: int
    url: str = ""
    cache: Path = Path()

    @property
    def tars(self) -> list[str]:
        return [str(path) for path in sorted((self.root / "tars").glob("*.tar"))]


Batches = Callable[[Place], Iterator[Any]]


def floats() -> Any:
    """torchvision's usual transform of a PIL image: Inception crop, flip, normalized float32."""
    v1: Any = importlib.import_module("torchvision.transforms")
    return v1.Compose(
        [v1.RandomResizedCrop(SIZE, (0.05, 1.0)), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
    )


class Pixels:
    """Bytes of a JPEG -> uint8 [3, 224, 224] by our decoder and crop, for loaders of others."""

    def __init__(self, *, region: bool = False) -> None:
        from vit_dist.config.augment import AugmentConfig
        from vit_dist.data.augment import Augment

        self._augment = Augment(AugmentConfig(), SIZE, (0.05, 1.0), (3 / 4, 4 / 3), 0)
        self._region, self._regions, self._count = region, None, 0

    def __call__(self, content: bytes) -> torch.Tensor:
        from vit_dist.data.decode import Encoded
        from vit_dist.data.regions import RegionDecoder

        if self._region and self._regions is None:
            # In the worker process that uses it.
            self._regions = RegionDecoder()
        self._count += 1
        image = Encoded(content, regions=self._regions)
        return self._augment.decode(image, epoch=0, ordinal=self._count)


def _again(make: Callable[[], Any]) -> Iterator[Any]:
    while True:
        yield from make()


def webdataset_pil(place: Place) -> Iterator[Any]:
    wds: Any = importlib.import_module("webdataset")
    yield from webdataset_of(place, wds.WebDataset(place.tars, resampled=True, shardshuffle=False))


def webdataset_of(place: Place, samples: Any) -> Iterator[Any]:
    """As open_clip sets it up: PIL, torchvision's transform to float32, batches made in the workers."""
    wds: Any = importlib.import_module("webdataset")
    data = samples.shuffle(1000).decode("pilrgb")
    data = data.rename(image="jpg", label="cls").map_dict(image=floats()).to_tuple("image", "label")
    yield from wds.WebLoader(
        data.batched(place.batch, partial=False), batch_size=None, num_workers=place.workers, persistent_workers=True
    )


def webdataset_ours(place: Place, *, region: bool) -> Iterator[Any]:
    wds: Any = importlib.import_module("webdataset")
    data = wds.WebDataset(place.tars, resampled=True, shardshuffle=False).shuffle(1000)
    data = data.rename(image="jpg", label="cls").map_dict(image=Pixels(region=region), label=int)
    data = data.to_tuple("image", "label").batched(place.batch, partial=False)
    yield from wds.WebLoader(data, batch_size=None, num_workers=place.workers, persistent_workers=True)


def image_folder(place: Place) -> Iterator[Any]:
    datasets: Any = importlib.import_module("torchvision.datasets")
    data = datasets.ImageFolder(str(place.root / "folder"), floats())
    loader = torch.utils.data.DataLoader(
        data, place.batch, shuffle=True, num_workers=place.workers, persistent_workers=True, drop_last=True
    )
    yield from _again(lambda: loader)


def timm(place: Place) -> Iterator[Any]:
    data: Any = importlib.import_module("timm.data")
    yield from timm_of(place, data.create_dataset("", root=str(place.root / "folder"), is_training=True))


def timm_of(place: Place, dataset: Any) -> Iterator[Any]:
    """create_loader with its uint8 collate; normalization is left to the prefetcher, which needs a GPU."""
    data: Any = importlib.import_module("timm.data")
    loader = data.create_loader(
        dataset,
        input_size=(3, SIZE, SIZE),
        batch_size=place.batch,
        is_training=True,
        scale=(0.05, 1.0),
        interpolation="bilinear",
        color_jitter=0.0,
        auto_augment=None,
        re_prob=0.0,
        num_workers=place.workers,
        persistent_workers=True,
        use_prefetcher=True,
        device=torch.device("cpu"),
    )
    # Its prefetcher makes floats of the batch; what it is given are bytes.
    yield from _again(lambda: loader.loader)


def dali(place: Place) -> Iterator[Any]:
    yield from dali_of(place, place.tars)


def dali_of(place: Place, tars: list[str], **reader: Any) -> Iterator[Any]:
    """On the CPU: fused crop and decode, uint8."""
    fn: Any = importlib.import_module("nvidia.dali.fn")
    pipeline_def: Any = importlib.import_module("nvidia.dali").pipeline_def
    types: Any = importlib.import_module("nvidia.dali.types")

    @pipeline_def(batch_size=place.batch, num_threads=place.workers, device_id=None, seed=0)  # type: ignore[untyped-decorator]
    def pipeline() -> Any:
        jpegs, labels = fn.readers.webdataset(
            paths=tars, ext=["jpg", "cls"], random_shuffle=True, initial_fill=1000, name="reader", **reader
        )
        images = fn.decoders.image_random_crop(jpegs, random_area=[0.05, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        images = fn.resize(images, size=SIZE, interp_type=types.INTERP_TRIANGULAR, antialias=True)
        return fn.flip(images, horizontal=fn.random.coin_flip()), labels

    built = pipeline()
    built.build()
    while True:
        images, _ = built.run()
        yield torch.from_numpy(images.as_array())


def litdata_floats(place: Place) -> Iterator[Any]:
    yield from litdata_of(place, str(place.root / "litdata"), floats(), pil=True)


def litdata_ours(place: Place, *, region: bool) -> Iterator[Any]:
    yield from litdata_of(place, str(place.root / "litdata"), Pixels(region=region), pil=False)


def litdata_of(place: Place, folder: str, transform: Any, *, pil: bool, **options: Any) -> Iterator[Any]:
    """Its dataset and loader, over a folder or a URL."""
    litdata: Any = importlib.import_module("litdata")

    class Images(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            content, label = super().__getitem__(index)
            return transform(pil_of(content) if pil else content), label

    data = Images(folder, shuffle=True, drop_last=True, **options)
    loader = litdata.StreamingDataLoader(data, batch_size=place.batch, num_workers=place.workers, drop_last=True)
    yield from _again(lambda: loader)


def streaming(place: Place) -> Iterator[Any]:
    yield from streaming_of(place, local=str(place.root / "mds"))


def streaming_of(place: Place, **where: str) -> Iterator[Any]:
    """MosaicML Streaming, with torchvision's transform."""
    library: Any = importlib.import_module("streaming")
    transform = floats()

    class Images(library.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            one = super().__getitem__(index)
            return transform(pil_of(one["image"])), one["label"]

    data = Images(**where, shuffle=True, batch_size=place.batch)
    loader = torch.utils.data.DataLoader(
        data, place.batch, num_workers=place.workers, drop_last=True, persistent_workers=True
    )
    yield from _again(lambda: loader)


def spdl(place: Place) -> Iterator[Any]:
    """Its threads, with torchvision's transform of PIL images."""
    pipeline: Any = importlib.import_module("spdl.pipeline")
    transform = floats()
    files = sorted((place.root / "folder").glob("*/*.jpg"))

    def source() -> Iterator[Path]:
        while True:
            yield from files

    built = (
        pipeline.PipelineBuilder()
        .add_source(source())
        .pipe(lambda path: transform(pil_of(path.read_bytes())), concurrency=place.workers)
        .aggregate(place.batch, drop_last=True)
        .pipe(torch.stack)
        .add_sink(2)
        .build(num_threads=place.workers + 1)
    )
    with built.auto_stop():
        yield from built.get_iterator()


def pil_of(content: bytes) -> Any:
    """An image as PIL has it."""
    return Image.open(io.BytesIO(content)).convert("RGB")


def write_mds(files: list[tuple[bytes, int]], folder: Path) -> None:
    library: Any = importlib.import_module("streaming")
    with library.MDSWriter(out=str(folder), columns={"image": "bytes", "label": "int"}) as writer:
        for content, label in files:
            writer.write({"image": content, "label": label})


def write_litdata(files: list[tuple[bytes, int]], folder: Path) -> None:
    cache: Any = importlib.import_module("litdata.streaming.cache").Cache(str(folder), chunk_bytes="64MB")
    for index, (content, label) in enumerate(files):
        cache[index] = (content, label)
    cache.done()
    cache.merge()
