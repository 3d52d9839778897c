"""The same images in a real S3 server on this machine (SeaweedFS)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.s3_server import running_s3
from vit_dist.core.files import file_system

_UPLOADS = 4


@contextlib.contextmanager
def stored(root: Path, folders: list[str]) -> Iterator[str]:
    """URL below which a server has the files of some folders of `root`, with the AWS_* variables set."""
    (root / "server").mkdir()
    with running_s3(root / "server") as bucket:
        files = [path for folder in folders for path in sorted((root / folder).rglob("*")) if path.is_file()]
        with ThreadPoolExecutor(_UPLOADS) as pool:
            list(pool.map(lambda path: _upload(path, f"{bucket}/{path.relative_to(root)}"), files))
        yield bucket


def _upload(path: Path, url: str) -> None:
    system, inside = file_system(url)
    system.put_file(str(path), inside)
