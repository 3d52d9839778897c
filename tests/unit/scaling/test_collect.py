"""Logs of other frameworks, bad logs, and a store that says no."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.unit.scaling.logged_runs import log_run
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.events.writer import EventWriter
from vit_dist.scaling.collect import collect
from vit_dist.scaling.observation import Collection
from vit_dist.scaling.summary import by_series, means
from vit_dist.scaling.tagmap import load_tag_map

MAP = """
logs:
  - directory: 'timm/(?P<model>[a-z]+)_(?P<subset>\\d+k?)_s(?P<seed>\\d+)'
    metric: eval/top1
    scale: 0.01
    examples_per_step: 64
    steps: 10
    tags: {val/loss: eval/loss}
    constants: {family: timm vit, dataset: garments, num_params: 1000, macs_per_image: 2000}
  - directory: big_vision
    metric: acc
    examples_per_step: 32
    constants: {family: bv, subset: 500}
"""


@pytest.fixture
def map_file(tmp_path: Path) -> str:
    (tmp_path / "map.yaml").write_text(MAP)
    return str(tmp_path / "map.yaml")


def foreign(directory: Path, tag: str, last: float, steps: int = 10, *, new_style: bool = False) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(directory)) as writer:
        for step in (steps // 2, steps):
            writer.add_scalar(tag, last * step / steps, step, new_style=new_style)
            writer.add_scalar("eval/loss", 1.0, step)


def reasons(collection: Collection) -> dict[str, str]:
    return {one.directory: one.reason for one in collection.excluded}


def test_logs_of_other_frameworks_stand_beside_ours_through_a_tag_map(tmp_path: Path, map_file: str) -> None:
    logs = tmp_path / "logs"
    log_run(logs, "vit", 500, 0)
    foreign(logs / "timm" / "tiny_2k_s1", "eval/top1", 75.0)
    foreign(logs / "timm" / "tiny_2k_s2", "eval/top1", 50.0, steps=4)
    foreign(logs / "big_vision", "acc", 0.25, new_style=True)
    foreign(logs / "lightning", "acc", 0.5)
    found = collect(str(logs), tag_map=load_tag_map(map_file))
    assert found.study == "tiny"
    points = {one.family: one for one in found.observations}
    assert points.keys() == {"vit", "timm vit", "bv"}
    theirs = points["timm vit"]
    assert (theirs.value, theirs.model, theirs.subset, theirs.seed, theirs.step) == (0.75, "tiny", 2000, 1, 10)
    assert (theirs.examples_seen, theirs.num_params, theirs.exaflops) == (640, 1000, 6 * 2000 * 640 / 1e18)
    assert (points["bv"].value, points["bv"].subset, points["bv"].examples_seen) == (0.25, 500, 320)
    assert set(found.curves["timm/tiny_2k_s1"]) == {"val/top1", "val/loss"}
    why = reasons(found)
    assert "stopped at step 4 of 10 (its log ends there)" in why["timm/tiny_2k_s2"]
    assert "no entry of the tag map fits" in why["lightning"]
    assert "see --tag-map" in reasons(collect(str(logs)))["lightning"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("logs: []", "a tag map needs at least one entry of `logs`, or `metrics`"),
        ("logs: [{metric: a, examples_per_step: 1}]", "say the family (or model) and the subset"),
        ("logs: [{directory: '(', metric: a, examples_per_step: 1}]", "not a regular expression"),
        ("logs: [{directory: '(?P<famly>x)', metric: a, examples_per_step: 1}]", "groups and constants may be family"),
        ("logs: [{metric: a, examples_per_stp: 1}]", "examples_per_stp: unknown key"),
        ("- 1", "expected a mapping"),
    ],
)
def test_a_tag_map_that_cannot_be_meant_is_refused_with_the_place(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "map.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_tag_map(str(path))
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_a_group_that_is_no_count_excludes_its_run_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "map.yaml").write_text(
        "logs: [{directory: '(?P<model>m)_(?P<subset>.*)', metric: a, examples_per_step: 1}]"
    )
    foreign(tmp_path / "logs" / "m_many", "a", 0.5)
    found = collect(str(tmp_path / "logs"), tag_map=load_tag_map(str(tmp_path / "map.yaml")))
    assert "subset of 'm_many' is 'many', which is no count" in reasons(found)["m_many"]


def test_logs_of_two_studies_are_an_error_also_where_one_has_no_finished_run(tmp_path: Path) -> None:
    log_run(tmp_path, seed=0)
    log_run(tmp_path, seed=1, study="other", status=None)
    with pytest.raises(DataError, match=r"2 studies: 'other' \(1 run, such as vit-500-s1/tb\); 'tiny'.*name the one"):
        collect(str(tmp_path))


def test_different_runs_of_one_name_are_remarked_and_both_counted(tmp_path: Path) -> None:
    log_run(tmp_path / "a", seed=0)
    log_run(tmp_path / "b", seed=0, subset_seed=1)
    found = collect(str(tmp_path))
    assert len(found.observations) == 2
    assert any("2 different runs are called 'vit-500-s0'" in remark for remark in found.remarks)


def test_models_of_a_family_and_durations_of_a_model_are_lines_of_their_own(tmp_path: Path) -> None:
    log_run(tmp_path, "vit", 500, 0)
    log_run(tmp_path, "bit", 500, 0, model="r50", folder="r50")
    log_run(tmp_path, "bit", 500, 0, model="r101", folder="r101")
    log_run(tmp_path, "bit", 500, 0, model="r101", folder="r101-long", planned_examples=6400)
    found = collect(str(tmp_path))
    assert list(by_series(found.observations)) == ["r101, 640 seen", "r101, 6.4k seen", "r50", "vit"]
    assert len(means(found.observations)) == 4


class _Denied(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        body = b"<?xml version='1.0'?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/xml")
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_GET = do_HEAD = do_PUT = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def denying_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Denied)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-secret")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_bucket_without_permission_is_one_sentence_that_says_what_to_do(denying_store: None) -> None:
    with pytest.raises(DataError) as error:
        collect("s3://locked/logs")
    assert "s3://locked/logs: cannot be listed: these credentials are known, and may not do this" in str(error.value)
    assert "let whoever runs bucket 'locked' allow it" in str(error.value)
    assert "hidden-secret" not in str(error.value)


def test_zero_byte_and_truncated_files_and_nan_are_said_and_the_rest_is_read(tmp_path: Path) -> None:
    log_run(tmp_path, seed=0)
    (tmp_path / "vit-500-s0" / "tb" / "events.out.tfevents.9999999999.x").touch()
    cut = log_run(tmp_path, seed=1)
    os.truncate(cut, cut.stat().st_size - 5)
    log_run(tmp_path, seed=2, top1={5: float("nan"), 10: 0.5})
    log_run(tmp_path, seed=3, top1={5: 0.5, 10: float("inf")})
    found = collect(str(tmp_path))
    assert [(one.seed, one.value, one.best_step) for one in found.observations] == [(0, 0.5, 10), (2, 0.5, 10)]
    assert [remark.rpartition(": ")[2][:12] for remark in found.remarks] == ["is empty", "the last rec"]
    assert "diverged: val/top1 is inf" in reasons(found)["vit-500-s3/tb"]


def test_a_plain_event_file_next_to_a_run_of_ours_needs_no_map(tmp_path: Path) -> None:
    log_run(tmp_path, seed=0)
    with_scalars = EventWriter(tmp_path / "vit-500-s0" / "tb" / "sub")
    with_scalars.scalars(1, {"val/top1": 0.9})
    with_scalars.close()
    found = collect(str(tmp_path))
    assert len(found.observations) == 1
    assert "says nothing of its run" in reasons(found)["vit-500-s0/tb/sub"]
