"""The doctor: what it finds on machines that are well, that are not, and that have nothing."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher import bad_nodes
from launcher.doctor.examine import examine, lines
from launcher.doctor.finding import Finding, Subject
from launcher.doctor.machine import gpus
from launcher.doctor.slurm import parse_seconds, settings
from launcher.doctor.storage import data
from launcher.filesystem import file_system_kind
from vit_dist.config.load import load_recipe

WELL = {
    "JobRequeue": "1",
    "SlurmdTimeout": "300 sec",
    "KillWait": "30 sec",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "SlurmctldParameters": "preempt_send_user_signal",
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "MaxArraySize": "1001",
    "ProctrackType": "proctrack/cgroup",
}


def doubtful(**changes: str) -> list[str]:
    return [f"{f.text} {f.advice}" for f in settings({**WELL, **changes}) if f.verdict != "ok"]


def test_slurm_settings_that_are_well_raise_no_doubt() -> None:
    assert doubtful() == []
    assert doubtful(PreemptType="preempt/none", AccountingStorageType="accounting_storage/none") == []


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"SlurmdTimeout": "1800 sec"}, "--spares"),
        ({"PreemptMode": "CANCEL"}, "cancelled, not requeued"),
        ({"MaxArraySize": "1"}, "arrays are switched off"),
        ({"ProctrackType": "proctrack/pgid"}, "outlives its job"),
    ],
)
def test_a_setting_that_hurts_comes_with_what_to_do(change: dict[str, str], word: str) -> None:
    (found,) = doubtful(**change)
    assert word in found


def test_spans_of_time_are_read_as_slurm_prints_them() -> None:
    assert [parse_seconds(t) for t in ("30 sec", "5", "00:02:00", "UNLIMITED", "")] == [30.0, 5.0, 120.0, None, None]


def test_a_check_that_breaks_hides_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("launcher.doctor.machine.machine", lambda _subject: 1 / 0)
    findings = examine(Subject(None, None, tmp_path))
    broken = [f for f in findings if "ZeroDivisionError" in f.text]
    assert [(f.area, f.verdict) for f in broken] == [("Machine", "warn")]
    assert {f.area for f in findings} >= {"Environment", "GPUs", "Files", "Data"}


def test_a_run_root_that_cannot_be_written_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = [f for f in examine(Subject(None, None, tmp_path / "file" / "runs")) if f.area == "Files"]
    assert found.verdict == "fail"
    assert "cannot be written" in found.text


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    examine(Subject(None, None, tmp_path / "runs"))
    assert list(tmp_path.iterdir()) == []


def test_the_file_system_is_that_of_the_deepest_mount() -> None:
    assert file_system_kind(Path("/proc/self")) == "proc"
    assert file_system_kind(Path("/dev/shm")) in {"tmpfs", ""}


def test_a_package_outside_its_bounds_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from packaging.requirements import Requirement

    wanted = [Requirement("numpy<2"), Requirement("not-a-package-of-ours>=1"), Requirement("pydantic>=2")]
    monkeypatch.setattr("launcher.doctor.machine._requirements", lambda: wanted)
    found = {f.verdict: f.text for f in examine(Subject(None, None, tmp_path)) if f.area == "Environment"}
    assert "not-a-package-of-ours" in found["fail"]
    assert "numpy 2." in found["warn"]


def recipe_on(url: str) -> Any:
    return load_recipe("demo", [f"data.train={url}", "data.val=", "data.num_classes=4"])


def test_the_rate_is_held_to_what_training_takes(
    small_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.doctor.storage._MEASURED_S", 0.1)

    def verdict(images_per_s: float | None) -> Finding:
        findings = examine(Subject(recipe_on(small_set), None, tmp_path, images_per_s=images_per_s))
        return next(f for f in findings if "examples/s" in f.text)

    assert verdict(1.0).verdict == "ok"
    assert verdict(1e12).verdict == "fail"
    assert "--resize-shorter" in verdict(1e12).advice
    assert "--images-per-s" in verdict(None).advice


def test_a_set_that_is_not_there_fails_and_says_what_to_do(tmp_path: Path) -> None:
    findings = examine(Subject(recipe_on(str(tmp_path / "none.json")), None, tmp_path))
    assert [f.verdict for f in findings if f.area == "Data"] == ["fail"]


def answer_of(status: int, code: str) -> Callable[..., Any]:
    """A store that answers every question with one of Amazon's errors."""

    class Store(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>told</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(b"" if self.command == "HEAD" else body)

        do_HEAD = do_GET  # noqa: N815 - what http.server looks for

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    return Store


@pytest.mark.parametrize(
    ("status", "code", "says"),
    [
        (403, "InvalidAccessKeyId", "the store does not know this access key"),
        (403, "SignatureDoesNotMatch", "the secret key does not belong to the access key"),
        (403, "AccessDenied", "these credentials are known, and may not do this"),
        (400, "ExpiredToken", "these credentials have expired"),
        (400, "InvalidToken", "the session token"),
        (404, "NoSuchKey", "pack or index the set, or name it with data.train=URL"),
        (404, "NoSuchBucket", "there is no bucket 'bucket'"),
    ],
)
def test_advice_about_a_store_goes_by_what_is_wrong_with_it(
    status: int, code: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), answer_of(status, code)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        findings = list(data(Subject(recipe_on("s3://bucket/photos/train"), None, tmp_path)))
        server.shutdown()
    (found,) = (f for f in findings if f.verdict == "fail")
    assert says in f"{found.text} {found.advice}"
    assert ("pack or index" in found.advice) == (code == "NoSuchKey")


@pytest.mark.s3
def test_s3_is_measured_and_no_secret_is_shown(
    s3: str, small_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vit_dist: Callable[..., Any]
) -> None:
    from vit_dist.core.files import write_bytes

    for path in Path(small_set).parent.iterdir():
        if path.is_file():
            write_bytes(f"{s3}/doctor/{path.name}", path.read_bytes())
    words = ["doctor", "demo", f"data.train={s3}/doctor/{Path(small_set).name}", "data.val=", "data.num_classes=4"]
    done = vit_dist(*words, "--run-root", str(tmp_path), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout + done.stderr
    assert "S3 credentials from env" in text
    assert "the store gives this machine" in text
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in text
    assert os.environ["AWS_ACCESS_KEY_ID"] not in text
    done = vit_dist(*words, "--run-root", str(tmp_path), AWS_SECRET_ACCESS_KEY="wrong-secret")
    assert done.returncode == 1
    assert "wrong-secret" not in done.stdout + done.stderr


def test_with_nothing_at_all_it_says_so_quickly(vit_dist: Callable[..., Any], tmp_path: Path) -> None:
    # It takes 2 s on an idle machine; a minute would be one that waits for what is not there.
    done = vit_dist("doctor", "--run-root", str(tmp_path), timeout=60, PATH=str(tmp_path), HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no Slurm here" in done.stdout
    assert "no NVIDIA driver here" in done.stdout
    assert "\033" not in done.stdout


@pytest.mark.slurm
def test_a_real_slurm_is_looked_at(slurm: Any, tmp_path: Path, vit_dist: Callable[..., Any]) -> None:
    done = vit_dist("doctor", "--cluster", "dev", "--run-root", str(tmp_path), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    texts = [f["text"] for f in json.loads(done.stdout)["findings"] if f["area"] == "Slurm"]
    assert any("SlurmdTimeout" in text for text in texts)
    assert any("3 nodes, 0 of them cannot be used" in text for text in texts)
    cluster = tmp_path / "wrong.yaml"
    cluster.write_text("partition: nowhere\ndevices_per_node: 0\ncpus_per_node: 1\ntime_limit: 1h\n")
    done = vit_dist("doctor", "--cluster", str(cluster), "--run-root", str(tmp_path))
    assert done.returncode == 1
    assert "partition 'nowhere' of cluster wrong does not exist" in done.stdout
    inside = slurm.run(
        *["salloc", "-N3", "--quiet", sys.executable, "-m", "vit_dist.cli.main", "doctor", "--run-root", str(tmp_path)],
        timeout=120,
    )
    assert "all 3 nodes of job" in inside.stdout


def test_the_list_of_bad_nodes_is_shown_and_a_node_is_forgotten(vit_dist: Callable[..., Any], tmp_path: Path) -> None:
    bad_nodes.add(tmp_path, "gpu-7", "preflight: slow", keep_s=7500)
    shown = vit_dist("doctor", "--bad-nodes", "--run-root", str(tmp_path))
    assert shown.stdout.startswith("gpu-7  for another 2h0")
    assert vit_dist("doctor", "--forget", "gpu-8", "--run-root", str(tmp_path)).returncode == 2
    assert "no bad nodes" in vit_dist("doctor", "--forget", "gpu-7", "--run-root", str(tmp_path)).stdout
    assert bad_nodes.active(tmp_path) == {}


def test_a_gpu_is_told_with_its_peak_or_that_none_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi = tmp_path / "nvidia-smi"
    rows = "NVIDIA H100 PCIe, 580.1, 81559, 0\nNVIDIA H1000, 580.1, 98304, 0\n"
    smi.write_text(f"#!/bin/sh\nprintf '{rows}'\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    found = [f.text for f in gpus(Subject(None, None, tmp_path))]
    assert found[0] == (
        "2 x NVIDIA H100 PCIe (79 GiB, peak 756 TFLOP/s), NVIDIA H1000 (96 GiB, peak not known: no MFU is told), "
        "driver 580.1"
    )


def test_lines_fit_the_terminal() -> None:
    found = [Finding("Files", "warn", "word " * 60, "do " * 60)]
    assert max(len(line) for line in lines(found, width=80)) <= 80
    assert "\033[33m" in "\n".join(lines(found, colour=True, width=80))


@pytest.mark.parametrize(
    ("overrides", "variable", "verdict"),
    [
        ((), "SBATCH_ACCOUNT", "ok"),
        (("account=a",), "SBATCH_ACCOUNT", "warn"),
        (("sbatch_options=[-A a]",), "SBATCH_ACCOUNT", "warn"),
        (("sbatch_options=['--qos=x']",), "SBATCH_QOS", "warn"),
        (("account=a",), "SBATCH_QOS", "ok"),
        (("memory=1G",), "SBATCH_MEM_PER_CPU", "warn"),
        ((), "SBATCH_EXPORT", "warn"),
    ],
)
def test_choices_of_the_shell_are_told_with_what_becomes_of_them(
    overrides: tuple[str, ...], variable: str, verdict: str
) -> None:
    from launcher.doctor.slurm import shell_choices
    from launcher.slurm.cluster import load_cluster

    cluster = load_cluster("dev", ["partition=", "memory=", *overrides])
    (finding,) = shell_choices(cluster, {variable: "x", "HOME": "/h"})
    assert finding.verdict == verdict
    assert f"{variable}=x in your shell is {'used' if verdict == 'ok' else 'not used'}" in finding.text
