"""`vit-dist data bench`: its table on a small set, what it says is needed, its verdicts, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.shards import write_set
from vit_dist.cli.data import main as data_verb
from vit_dist.cli.data.bench_need import Need, computed, measured
from vit_dist.cli.data.bench_table import facts, judge, table, verdict
from vit_dist.config.cache import CacheConfig
from vit_dist.config.load import load_recipe
from vit_dist.config.schema import DataConfig
from vit_dist.core.errors import VitDistError
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.run import log as runlog
from vit_dist.data import bench as module
from vit_dist.data.bench import Figures, ReadFigure, StreamFigure, _ranks, _thread_counts
from vit_dist.data.manifest import ShardManifest, read_manifest, write_manifest

SHORT = ("--seconds", "1", "--seed", "3")


@pytest.fixture
def two_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_DIST_CPUS", "2")


def run_dir(path: Path, speeds: list[float], waits: list[float]) -> Path:
    """What a run leaves that has logged these."""
    (path / "tb").mkdir(parents=True)
    (path / "recipe.yaml").write_text("name: r\n")
    writer = EventWriter(path / "tb")
    writer.scalars(1, {runlog.TRAIN_LOSS: 1.0})
    for step, (speed, wait) in enumerate(zip(speeds, waits, strict=True), 2):
        writer.scalars(step, {runlog.EXAMPLES_PER_S_PER_DEVICE: speed, runlog.TRAIN_DATA_WAIT: wait})
    writer.close()
    return path


@pytest.mark.usefixtures("two_cpus")
def test_the_table_has_every_stage_and_fits_80_columns(small_set: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--recipe", "vit-b16-imagenet", "data.image_size=32", "--device", "h100", "--devices", "2"]
    assert data_verb(["bench", small_set, *SHORT, *words]) == 0
    shown, told = capsys.readouterr()
    lines = shown.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    labels = ("set ", "machine ", "page cache ", "read, 1 at once ", "read, 4 at once ", "read, 16 at once ", "index ",
              "decode alone ", "transform, 32 px ", "whole stream ", "needs ", "cores ", "verdict ")  # fmt: skip
    assert [label for label in labels if not any(line.startswith(label) for line in lines)] == []
    assert [line.split()[2] for line in lines if line.startswith("whole stream")] == ["1", "2"]
    assert "200 images in 7 shards" in " ".join(shown.split())
    assert "assumed: 40% of the peak of one h100 in bf16" in " ".join(shown.split())
    assert "each of 2 devices needs, on its 1 of 2 CPUs" in " ".join(shown.split())
    assert told.count("measuring: ") == 7
    assert "measuring: the whole stream, 2 decode threads" in told


@pytest.mark.usefixtures("two_cpus")
def test_every_number_is_there_for_programs_and_they_fit_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = frozenset({3, 17})
    manifest = write_set(tmp_path / "set", num_samples=60, samples_per_shard=20, num_classes=4, broken=broken)
    run = run_dir(tmp_path / "run", [100.0], [0.5])
    words = ["data.lanes=4", "data.window=5", "data.image_size=16", "--json", "--run", str(run)]
    assert data_verb(["bench", manifest, *SHORT, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["images"], found["shards"], found["tried"], found["bad"]) == (60, 3, 60, 2)
    assert (found["remote"], found["in_memory"], found["index_samples"]) == (False, False, 20)
    assert [read["at_once"] for read in found["reads"]] == [1, 4, 16]
    assert [stream["threads"] for stream in found["streams"]] == [1, 2]
    assert all(stream["images_per_s"] > 0 and stream["cpu_ms"] > 0 for stream in found["streams"])
    assert found["read_images_per_s"] == max(read["mb_per_s"] for read in found["reads"]) * 1e6 / found["image_bytes"]
    assert found["need"] == {
        "images_per_s": 200.0,
        "source": f"measured by {run} while it had data",
        "assumed": False,
    }
    assert found["verdict"] in {"fine", "read bound", "decode bound"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{tmp}/none"], r"none.*manifest\.json"),
        (["{tmp}/empty"], "the set 'empty' has no samples: nothing can be measured"),
        (["{tmp}/shardless"], "expected a list of at least one shard"),
        (["{tmp}/broken", *SHORT], "none of the 8 images that were tried can be decoded; the first: "),
        (["{set}", "--run", "{tmp}/none"], r"none: no run directory: there is no recipe\.yaml"),
        (["{set}", "--run", "{tmp}/slow"], r"its event files hold no throughput/examples_per_s_per_device.*--recipe"),
        (["{set}", "--run", "{tmp}/quiet"], "holds no TensorBoard event files"),
        (["{set}", "--recipe", "vit-b16-imagenett"], "no recipe 'vit-b16-imagenett'.*did you mean 'vit-b16-imagenet'"),
        (["{set}", "--recipe", "demo", "--device", "h1000"], "--device 'h1000' is not known.*h100"),
        (["{set}", "--recipe", "demo", "--device", "b200", "precision=fp32"], "peak in fp32 is not known"),
        (["{set}", "--device", "h100"], "--device h100: what it needs depends on the model; give --recipe"),
        (["{set}", "--device", "h100", "--run", "{tmp}/slow"], "beside --run"),
        (["{set}", "--seconds", "0"], "--seconds 0: between 1 and 3600"),
        (["{set}", "--seconds", "nan"], "--seconds nan"),
        (["{set}", "--mfu", "40"], "--mfu 40: expected a fraction"),
        (["{set}", "data.train=elsewhere"], "data.train=elsewhere: the set is the one that stands first"),
        (["{set}", "data.image_sizee=3"], "image_sizee.*did you mean 'data.image_size'"),
        (["{set}", "data.lanes=1000"], "lanes"),
        (["{set}", "data.subset=1000"], "1000"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_told_in_a_line(
    words: list[str], message: str, tmp_path: Path, small_set: str
) -> None:
    if "empty" in words[0]:
        write_set(tmp_path / "empty", num_samples=0, samples_per_shard=1, num_classes=4, sizes=[0])
    if "shardless" in words[0]:
        (tmp_path / "shardless").mkdir()
        none = ShardManifest(str(tmp_path), "none", (), True, 4)
        write_manifest(none, str(tmp_path / "shardless" / "manifest.json"))
    run_dir(tmp_path / "slow", [], [])
    (tmp_path / "quiet" / "tb").mkdir(parents=True)
    (tmp_path / "quiet" / "recipe.yaml").write_text("name: r\n")
    if "broken" in words[0]:
        broken = frozenset(range(8))
        write_set(tmp_path / "broken", num_samples=8, samples_per_shard=4, num_classes=4, broken=broken)
    with pytest.raises(VitDistError, match=rf"(?s){message}"):
        data_verb(["bench", *(word.format(tmp=tmp_path, set=small_set) for word in words)])


@pytest.mark.parametrize("side", [1, 28, 50, 225])
def test_without_a_recipe_images_may_have_any_size(
    side: int, small_set: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "bench", lambda *_, **__: FIGURES)
    assert data_verb(["bench", small_set, f"data.image_size={side}"]) == 0
    shown = capsys.readouterr().out
    assert f"transform, {side} px " in shown
    assert "needs " not in shown
    assert "With --recipe or --run it is told" in " ".join(shown.split())


def test_a_run_needs_what_it_took_while_it_had_data(tmp_path: Path) -> None:
    found = measured(run_dir(tmp_path / "run", [900.0, 100.0, 100.0, 90.0], [0.0, 0.5, 0.0, 0.1]))
    assert found.images_per_s == pytest.approx(150)
    assert not found.assumed
    # One that did nothing but wait tells nothing of its speed, and divides by nothing.
    starved = measured(run_dir(tmp_path / "starved", [10.0], [1.0]))
    assert starved.images_per_s == pytest.approx(200)
    # The last ten windows count: what came before was another beginning.
    later = measured(run_dir(tmp_path / "later", [1.0] * 20 + [50.0] * 10, [0.0] * 30))
    assert later.images_per_s == pytest.approx(50)


@pytest.mark.parametrize(
    ("recipe", "low", "high"),
    [("vit-b16-jft300m", 3700, 3800), ("r50x1-jft300m", 4300, 4500), ("vit-h14-jft300m", 380, 400)],
)
def test_a_recipe_needs_what_its_models_cost_allows(recipe: str, low: float, high: float) -> None:
    found = computed(load_recipe(recipe, ["data.train=x"]), "h100", None)
    assert found is not None
    assert low < found.images_per_s < high
    assert found.assumed
    half = computed(load_recipe(recipe, ["data.train=x"]), "h100", 0.05)
    assert half is not None
    assert "5% of the peak" in half.source


FIGURES = Figures(
    images=1_281_167, shards=1000, image_bytes=110_000.0, remote=True, cached=None, emptied=False, in_memory=False,
    range_bytes=3_520_000,
    reads=tuple(ReadFigure(n, rate, 60.0) for n, rate in ((1, 60.0), (4, 200.0), (16, 800.0))),
    index_ms=40.0, index_samples=1281.0, tried=256, bad=0, shorter_side=375, decode_ms=1.0, share=1.0,
    streams=tuple(StreamFigure(n, 480.0 * n, 2.1, 1.9, 0.02) for n in (1, 2, 4, 8, 16)),
    processes=False, cpus=16,
)  # fmt: skip


def need(rate: float) -> Need:
    return Need(rate, "measured by runs/photos while it had data", assumed=False)


@pytest.mark.parametrize(
    ("changes", "wanted", "devices", "word", "said"),
    [
        ({}, 3000.0, 1, "fine", "7,680 images/s with 16 decode threads of the 3,000 that the device needs"),
        ({}, 7200.0, 1, "fine", "there is little to spare"),
        # Four CPUs each: that is the stream that counts, not the one on all sixteen.
        ({"reads": (ReadFigure(16, 8000.0, 9.0),)}, 3000.0, 4, "decode bound",
         "1,920 images/s with 4 decode threads of the 3,000 that each of 4 devices needs, on its 4 of 16 CPUs; "),
        ({"reads": (ReadFigure(16, 8000.0, 9.0),)}, 1700.0, 4, "fine", "1,920 images/s with 4 decode threads of the"),
        ({"cpus": 8}, 3000.0, 4, "decode bound", "for all 4, which is too little as well. Give a device 8 CPU cores"),
        ({"reads": (ReadFigure(16, 8000.0, 9.0),)}, 3000.0, 99, "decode bound", "on its part of one of 16 CPUs;"),
        ({}, 1900.0, 4, "read bound", "would bring 7,273 for all 4. Bring the set nearer"),
        ({"in_memory": True}, 1900.0, 4, "fine", "there is little to spare"),
        ({"processes": True}, 1000.0, 1, "fine", "7,680 images/s with 16 decode processes of the 1,000"),
        ({"in_memory": True}, None, 1, "decode bound", "decoding is what limits it"),
        ({"reads": (ReadFigure(1, 60.0, 9.0), ReadFigure(4, 110.0, 9.0)),
          "streams": (StreamFigure(16, 900.0, 2.1, 1.9, 0.9),)}, 3000.0, 1, "read bound",
         "reading alone would bring 1,000. Bring the set nearer, ask for more at once (data.read_threads=4 was"),
        ({"reads": (ReadFigure(1, 60.0, 9.0),), "streams": (StreamFigure(1, 400.0, 1.0, 0.9, 0.9),)}, 3000.0, 1,
         "read bound", "400 images/s with 1 decode thread of the 3,000 that the device needs; reading"),
        ({}, None, 1, "read bound", "reading is what limits it"),
        ({"reads": (ReadFigure(16, 8000.0, 9.0),)}, None, 1, "decode bound", "decoding is what limits it"),
    ],
)  # fmt: skip
def test_the_verdict_names_what_is_too_slow(
    changes: dict[str, Any], wanted: float | None, devices: int, word: str, said: str
) -> None:
    figures, needed = replace(FIGURES, **changes), need(wanted) if wanted is not None else None
    found, text = judge(figures, needed, devices)
    assert found == word
    assert said in text
    shown = verdict(figures, needed, devices)
    # To be copied: never over the end of a line.
    assert "fine" in word or not needed or "(`vit-dist data pack --resize-shorter 320`)" in shown
    assert f"verdict    {word.upper()}: " in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert facts(figures, needed, devices)["verdict"] == word


def test_images_that_are_small_already_are_not_to_be_packed_smaller() -> None:
    small = replace(FIGURES, shorter_side=256, in_memory=True)
    assert judge(small, need(9000.0), 1)[1].endswith("Give a device 20 CPU cores")
    slow = judge(replace(small, reads=(ReadFigure(4, 60.0, 9.0),), in_memory=False), need(3000.0), 1)[1]
    assert slow.endswith("Bring the set nearer, or ask for more at once (data.read_threads=4 was the fastest)")


def test_more_cores_than_a_machine_has_are_not_asked_for_where_they_come_from_arithmetic() -> None:
    _, text = judge(replace(FIGURES, in_memory=True), Need(18_000_000.0, "assumed: 40% of the peak", assumed=True), 1)
    assert "No machine has so many cores" in text
    assert "--run RUN" in text


@pytest.mark.usefixtures("two_cpus")
def test_a_manifest_in_this_folder_is_measured_and_no_cache_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(tmp_path, num_samples=8, samples_per_shard=4, num_classes=4)
    monkeypatch.chdir(tmp_path)
    cached = DataConfig(num_classes=4, cache=CacheConfig.model_validate({"size": "1 GB"}))
    config = module._wanted(read_manifest("manifest.json"), cached).data
    assert config.cache is not None
    assert config.cache.size == 0
    assert data_verb(["bench", "manifest.json", *SHORT, "data.image_size=16"]) == 0


def test_a_device_wants_the_cores_that_its_images_take_and_one_to_train() -> None:
    assert facts(FIGURES, need(3700.0), 1)["cores_a_device"] == 9
    assert "9 a device: 3,700 images/s x 2.1 ms of CPU time" in verdict(FIGURES, need(3700.0), 1)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "16 CPUs for this process\n"),
        ({"cpus": 1}, "1 CPU for this process\n"),
        ({"share": 0.4}, "others are at work on it: a thread got 40% of a CPU"),
        ({"remote": False, "cached": 1.0, "emptied": True}, "held 100% of the tars before; emptied for the reads"),
        ({"remote": False, "cached": None, "emptied": False}, "page cache could not be emptied here"),
        ({"remote": False, "cached": 0.25, "emptied": True, "in_memory": True}, "streams keep the set in memory"),
        ({"bad": 3}, "3 of 256 images that were tried cannot be decoded"),
        ({"streams": (StreamFigure(1, 0.5, 1900.0, 1800.0, 0.97),)}, "no bytes 97% of it"),
        ({"reads": (ReadFigure(16, 123_456.0, 123_456.0),), "image_bytes": 123.0, "range_bytes": 65536,
          "index_ms": 0.004, "cpus": 256}, "123,456 MB/s"),
    ],
)  # fmt: skip
def test_the_table_is_honest_and_narrow_whatever_was_measured(changes: dict[str, Any], said: str) -> None:
    shown = table("photos (s3://bucket/photos)", replace(FIGURES, **changes), DataConfig(num_classes=4))
    assert said in shown or said in " ".join(shown.split())
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert ("page cache" in shown) == (changes.get("remote") is False)


@pytest.mark.parametrize(
    ("cpus", "counts"),
    [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12]), (224, [1, 2, 4, 8, 16, 32, 64])],
)
def test_streams_are_tried_with_1_2_4_threads_up_to_the_cpus(cpus: int, counts: list[int]) -> None:
    assert _thread_counts(cpus) == counts


@pytest.mark.parametrize(
    ("lanes", "ranks"), [(1, 1), (4, 1), (16, 1), (32, 2), (4096, 256), (1000, 50), (17, 1), (9973, 1), (48, 3)]
)
def test_a_stream_is_that_of_a_rank_with_few_lanes(lanes: int, ranks: int) -> None:
    assert _ranks(lanes) == ranks
