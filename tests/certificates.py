"""An authority made on the spot, and a server whose certificate it has signed."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")


def signed(folder: Path) -> tuple[str, ssl.SSLContext]:
    """The authority's certificate, a file that clients may trust, and what a server on this machine speaks with."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    authority, own = str(folder / "authority.pem"), str(folder / "server.pem")
    _openssl("req", "-x509", *_KEY, "-subj", "/CN=Test authority", "-keyout", f"{authority}.key", "-out", authority)
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    of = ("-CA", authority, "-CAkey", f"{authority}.key", "-addext", "basicConstraints=CA:FALSE")
    _openssl(
        "req", "-x509", *_KEY, "-subj", "/CN=localhost", "-addext", names, *of, "-keyout", f"{own}.key", "-out", own
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own, f"{own}.key")
    return authority, context


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)
