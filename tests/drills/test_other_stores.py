"""Azure and GCS against emulators: a set is streamed, and a run whose directory is lost goes on from its copies.

`pip install adlfs gcsfs gcp-storage-emulator`, `npm install -g azurite`: none is part of the tests' environment, so a
drill is skipped, and says what is missing, where one is not there.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vit_dist
from vit_dist.core.run import history

pytestmark = pytest.mark.drill

# The account that every Azurite has, by its documentation.
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_EMULATORS = {
    "az": ("adlfs", "azurite-blob", ["--silent", "--inMemoryPersistence", "--skipApiVersionCheck", "--blobPort"]),
    "gs": ("gcsfs", "gcp-storage-emulator", ["start", "--in-memory", "--default-bucket=vit", "--port"]),
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture(params=list(_EMULATORS))
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """URL of an empty bucket."""
    module, program, words = _EMULATORS[request.param]
    command = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
    if importlib.util.find_spec(module) is None or command is None:
        pytest.skip(f"{request.param}:// needs the package {module} and the program {program}")
    port = free_port()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    endpoint = f"http://127.0.0.1:{port}/devstoreaccount1"
    account = f"DefaultEndpointsProtocol=http;AccountName=devstoreaccount1;AccountKey={_KEY};BlobEndpoint={endpoint};"
    monkeypatch.setenv("AZURE_STORAGE_CONNECTION_STRING", account)
    process = subprocess.Popen([command, *words, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        if request.param == "az":
            from azure.storage.blob import BlobServiceClient

            BlobServiceClient.from_connection_string(account).create_container("vit")
        yield f"{request.param}://vit"
    finally:
        process.kill()
        process.wait()


def put(folder: Path, url: str) -> str:
    import fsspec

    files, root = fsspec.core.url_to_fs(url)
    for path in folder.iterdir():
        files.put_file(str(path), f"{root}/{path.name}")
    return f"{url}/manifest.json"


def test_a_set_is_streamed_and_a_lost_run_goes_on(store: str, small_set: str, small_val: str, tmp_path: Path) -> None:
    there = put(Path(small_set).parent, f"{store}/set")

    def first(manifest: str) -> list[torch.Tensor]:
        stream = vit_dist.open_stream(manifest, batch=12, image_size=28, seed=1)
        return [batch.images.clone() for batch, _ in itertools.islice(stream, 6)]

    assert all(torch.equal(a, b) for a, b in zip(first(there), first(small_set), strict=True))
    run = tmp_path / "run"
    keys = [
        f"data.train={there}",
        f"data.val={small_val}",
        "data.num_classes=4",
        "data.image_size=28",
        "model=vit-test",
    ]
    keys += ["global_batch=12", "schedule.warmup=2 steps", "checkpoint.every=4 steps", "precision=fp32", "engine=plain"]
    keys += [f"checkpoint.remote={store}/copies", "guards.hang=0s", "eval.every=0 steps"]

    def train(horizon: str) -> None:
        command = [sys.executable, "-m", "vit_dist.cli.main", "train", "demo", *keys, f"horizon={horizon}"]
        done = subprocess.run([*command, "--run-dir", str(run)], env=os.environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    train("12 steps")
    before = history.read(run).status
    assert before is not None
    assert before.step == 12
    shutil.rmtree(run)
    train("12 steps")
    after = history.read(run).status
    assert after is not None
    # Restored, not trained again: its first attempt is remembered.
    assert (after.step, after.status) == (12, "done")
    assert len(history.read(run).attempts) == 2
