"""Weights on object storage: downloaded to be read, and uploaded when they are written."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from vit_dist.core.errors import CheckpointError, DataError, VitDistError
from vit_dist.core.files import (
    copy_here,
    exists,
    explained,
    file_system,
    folder_url,
    is_remote,
    join_url,
    local_path,
    parent_url,
    redact,
    url_name,
)
from vit_dist.core.log import WARNING, log
from vit_dist.core.run.checkpoints import MARKER
from vit_dist.core.scratch import scratch
from vit_dist.models.weights.forms import CONFIG, FORMS
from vit_dist.models.weights.notes import sidecar_of
from vit_dist.train.checkpoint.remote import fetch, remote_steps
from vit_dist.train.checkpoint.weights import intact_checkpoint


@contextlib.contextmanager
def downloaded(url: str) -> Iterator[Path]:
    """Where a file, folder, checkpoint or run lies on the file system, for as long as the block lasts."""
    if not is_remote(url):
        yield local_path(url)
        return
    with scratch(Path(tempfile.gettempdir()), "vit-dist-weights") as folder:
        path = download(url, folder / "weights")
        with errors_naming(url, path):
            yield path


@contextlib.contextmanager
def uploaded(url: str) -> Iterator[str]:
    """Where to write a file or folder that is copied to a URL at the end of the block."""
    if not is_remote(url):
        yield url
        return
    is_folder = url.endswith("/")
    name = url_name(url)
    with scratch(Path(tempfile.gettempdir()), "vit-dist-weights") as folder:
        here = folder / name
        with errors_naming(url, here):
            yield f"{here}/" if is_folder else str(here)
        if not here.is_dir():
            # A file's notes stand beside it, and go first: where the file is, all of it is there.
            for path in sorted(folder.iterdir(), key=lambda path: (path == here, path)):
                _put(path, join_url(parent_url(url), path.name))
            return
        # Without its config a folder is none: gone first and sent last, it never stands beside the weights of others.
        config = join_url(folder_url(url), CONFIG)
        if exists(config):
            fs, remote_path = file_system(config)
            with explained(config, "replaced"):
                fs.rm_file(remote_path)
        for path in sorted(here.iterdir(), key=lambda path: path.name == CONFIG):
            _put(path, join_url(folder_url(url), path.name))


def _put(path: Path, url: str) -> None:
    fs, remote_path = file_system(url)
    with explained(url, "written"):
        fs.put_file(str(path), remote_path)


@contextlib.contextmanager
def errors_naming(url: str, path: Path) -> Iterator[None]:
    """Errors of the block speak of the URL that the user gave, and not of the copy at `path`."""
    try:
        yield
    except VitDistError as error:
        raise type(error)(str(error).replace(str(path), redact(url))) from None


def download(url: str, to: Path) -> Path:
    """Copy a file, a folder of Hugging Face, a checkpoint's copy or the newest of a run's copies into a new directory.

    Raises:
        DataError: there is none of these, or the store cannot be read.
        CheckpointError: copies are there, and none of them is whole.
    """
    shutil.rmtree(to, ignore_errors=True)
    to.mkdir(parents=True)
    base, name = parent_url(folder_url(url)), url_name(url)
    log(f"  fetching {redact(url)}")
    if exists(join_url(folder_url(url), MARKER)):
        return fetch(base, name, to)
    if exists(join_url(folder_url(url), CONFIG)):
        _copy_folder(url, to)
        return to
    steps = remote_steps(url)
    if steps:
        return _newest_intact(url, steps, to)
    if not exists(url) or not Path(name).suffix:
        raise DataError(f"{redact(url)}: no weights there: no checkpoint, no run's copies, and none of {FORMS}")
    copy_here(url, to / name)
    if name.endswith(".npz") and exists(join_url(base, sidecar_of(Path(name)).name)):
        copy_here(join_url(base, sidecar_of(Path(name)).name), sidecar_of(to / name))
    return to / name


def _newest_intact(url: str, steps: Sequence[str], to: Path) -> Path:
    """Fetch the newest copy of a run's checkpoints that is whole; of those that are not, say so."""
    problems = []
    for name in steps:
        try:
            return intact_checkpoint(fetch(url, name, to))
        except CheckpointError as error:
            problem = str(error).replace(str(to), redact(url))
        problems.append(f"{name}: {problem}")
        log(f"copy {redact(url)}/{name} is damaged and skipped: {problem}", WARNING)
        # Disks of a node seldom hold two.
        shutil.rmtree(to / name, ignore_errors=True)
    raise CheckpointError(f"{redact(url)}: none of the {len(steps):,} copies is intact: {'; '.join(problems)}")


def _copy_folder(url: str, to: Path) -> None:
    fs, remote_path = file_system(folder_url(url))
    with explained(url, "listed"):
        names = fs.names(remote_path)
    for name in names:
        if name.endswith((".json", ".safetensors")):
            copy_here(join_url(folder_url(url), name), to / name)
