"""Other loaders that read from S3, as their users set them up: each takes a `Place` with a URL and yields batches.

Those that copy to a disk first begin with an empty one. `pip install boto3 s3torchconnector` brings, beside what
benchmarks/peers.py names, what is missing here; versions of boto3 and botocore have to be the same.
"""

from __future__ import annotations

import functools
import importlib
import os
import shlex
from collections.abc import Callable, Iterator
from typing import Any

import torch

from benchmarks import peers
from benchmarks.peers import Batches, Place, floats

DOWNLOADS = 4
_SIGNED_S = 6 * 3600


@functools.cache
def _client(process: int) -> Any:  # noqa: ARG001 - the key of the cache: clients do not survive a fork
    return importlib.import_module("boto3").client("s3")


def get_object(url: str) -> Any:
    """What boto3 gives of an object: a stream of its bytes."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return _client(os.getpid()).get_object(Bucket=bucket, Key=key)["Body"]


def tars(place: Place) -> list[str]:
    """URLs of the tars."""
    return [f"{place.url}/tars/{tar.rpartition('/')[2]}" for tar in place.tars]


def signed(url: str) -> str:
    """A URL that opens an object to whoever has it, for some hours."""
    session: Any = importlib.import_module("botocore.session")
    config = importlib.import_module("botocore.config").Config(signature_version="s3v4")
    client = session.Session().create_client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"], config=config)
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return str(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}, ExpiresIn=_SIGNED_S))


def webdataset_curl(place: Place) -> Iterator[Any]:
    """`pipe:curl` of signed URLs: what open_clip's users write, with `aws s3 cp` in a slower way."""
    wds: Any = importlib.import_module("webdataset")
    pipes = [f"pipe:curl -s -L {shlex.quote(signed(url))}" for url in tars(place)]
    yield from peers.webdataset_of(place, wds.WebDataset(pipes, resampled=True, shardshuffle=False))


def webdataset_opened(place: Place, *, opener: Callable[[str], Any]) -> Iterator[Any]:
    """webdataset knows no s3:// by itself, and has a table for those who do."""
    wds: Any = importlib.import_module("webdataset")
    _teach(opener)
    yield from peers.webdataset_of(place, wds.WebDataset(tars(place), resampled=True, shardshuffle=False))


def _teach(opener: Callable[[str], Any]) -> None:
    table: Any = importlib.import_module("webdataset.gopen").gopen_schemes
    table["s3"] = lambda url, mode="rb", bufsize=8192: opener(url)  # noqa: ARG005 - what it is called with


def fsspec_open(url: str) -> Any:
    """A file of s3fs, with its own way to read ahead."""
    return importlib.import_module("fsspec").open(url, "rb").open()


def timm(place: Place) -> Iterator[Any]:
    """Its reader of WebDataset tars, through boto3, with the shuffle of the others in place of 8192 examples."""
    data: Any = importlib.import_module("timm.data")
    _teach(get_object)
    names = [url.rpartition("/")[2].removesuffix(".tar").rpartition("-") for url in tars(place)]
    split = f"{names[0][0]}-{{{names[0][2]}..{names[-1][2]}}}.tar|{len(names) * 500}"
    os.environ |= {"WDS_SHUFFLE_SIZE": "1000", "WDS_INITIAL_SIZE": "1000"}
    dataset = data.create_dataset(
        "wds/", root=f"{place.url}/tars", split=split, is_training=True, batch_size=place.batch
    )
    yield from peers.timm_of(place, dataset)


def connector(place: Place) -> Iterator[Any]:
    """Amazon's s3torchconnector streams the tars; webdataset takes them apart."""
    wds: Any = importlib.import_module("webdataset")
    library: Any = importlib.import_module("s3torchconnector")
    opened = library.S3IterableDataset.from_objects(
        tars(place),
        region=os.environ["AWS_REGION"],
        endpoint=os.environ["AWS_ENDPOINT_URL_S3"],
        s3client_config=library.S3ClientConfig(force_path_style=True),
        enable_sharding=True,
    )

    def streams() -> Iterator[dict[str, Any]]:
        while True:
            for reader in opened:
                yield {"url": reader.key, "stream": reader}

    class Samples(wds.DataPipeline, wds.compat.FluidInterface):  # type: ignore[misc]
        pass

    parts = wds.tariterators
    yield from peers.webdataset_of(place, Samples(streams, parts.tar_file_expander, parts.group_by_keys))


def streaming(place: Place) -> Iterator[Any]:
    yield from peers.streaming_of(place, remote=f"{place.url}/mds", local=str(place.cache / "mds"))


def litdata(place: Place) -> Iterator[Any]:
    # Where obstore is installed it is what downloads, and takes no address without TLS.
    importlib.import_module("litdata.streaming.downloader")._OBSTORE_CLIENT_OPTIONS["allow_http"] = True
    where = {"cache_dir": str(place.cache / "litdata")}
    yield from peers.litdata_of(place, f"{place.url}/litdata", floats(), pil=True, **where)


def dali(place: Place) -> Iterator[Any]:
    """Its reader of tars, by its own client of S3."""
    os.environ["AWS_ENDPOINT_URL"] = os.environ["AWS_ENDPOINT_URL_S3"]
    yield from peers.dali_of(place, tars(place))


def spdl(place: Place) -> Iterator[Any]:
    """Whole tars by boto3, some at once, taken apart in memory; torchvision's transform in its threads."""
    pipeline: Any = importlib.import_module("spdl.pipeline")
    iter_tarfile: Any = importlib.import_module("spdl.io").iter_tarfile
    transform, urls = floats(), tars(place)

    def source() -> Iterator[str]:
        while True:
            yield from urls

    def images(content: bytes) -> Iterator[bytes]:
        for name, member in iter_tarfile(content):
            if name.endswith(".jpg"):
                yield bytes(member)

    built = (
        pipeline.PipelineBuilder()
        .add_source(source())
        .pipe(lambda url: get_object(url).read(), concurrency=DOWNLOADS)
        .pipe(images)
        .pipe(lambda content: transform(peers.pil_of(content)), concurrency=place.workers)
        .aggregate(place.batch, drop_last=True)
        .pipe(torch.stack)
        .add_sink(2)
        .build(num_threads=place.workers + DOWNLOADS + 2)
    )
    with built.auto_stop():
        yield from built.get_iterator()


REFERENCE = "webdataset, curl"
CONTESTANTS: dict[str, tuple[str, Batches]] = {
    REFERENCE: ("webdataset botocore", webdataset_curl),
    "webdataset, boto3": ("webdataset boto3", functools.partial(webdataset_opened, opener=get_object)),
    "webdataset, s3fs": ("webdataset s3fs", functools.partial(webdataset_opened, opener=fsspec_open)),
    "webdataset, s3torchconnector": ("webdataset s3torchconnector", connector),
    "timm, boto3": ("timm boto3", timm),
    "DALI": ("nvidia.dali", dali),
    "LitData": ("litdata", litdata),
    "MosaicML Streaming": ("streaming", streaming),
    "SPDL, boto3": ("spdl boto3", spdl),
}
