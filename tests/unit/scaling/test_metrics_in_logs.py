"""Which way a metric is better, and what it may be, on the way from logs to the report; and logs behind links."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.unit.scaling.logged_runs import info, log_run
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.metrics import Metric
from vit_dist.core.run.log import RunStatus, write_metrics, write_start, write_status
from vit_dist.scaling.collect import collect
from vit_dist.scaling.fit.curve import FitOptions
from vit_dist.scaling.report.write import render
from vit_dist.scaling.results import analyse
from vit_dist.scaling.tagmap import TagMap, load_tag_map

FEW = FitOptions(bootstraps=20, starts=4)
SCORE = Metric(better="lower", range=(0, 1))


def log_metric(
    root: Path,
    tag: str,
    declared: Metric | None = None,
    scale: float = 1.0,
    values: tuple[float, ...] = (),
    power: float = -0.3,
) -> None:
    """Runs of vit and bit at three sizes, whose numbers fall or rise; those of vit are the lower ones."""
    for family, factor in (("vit", 0.5), ("bit", 0.7)):
        for n in (1000, 4000, 16000):
            name = f"{family}-{n}-s0"
            writer = EventWriter(root / name)
            write_start(writer, info(name=name, family=family, model=family, subset=n, seed=0), "name: x\n")
            if declared is not None:
                write_metrics(writer, {tag: declared})
            last = factor * (n / 1000) ** power
            for step, value in enumerate((*values, last), 11 - len((*values, last))):
                writer.scalars(step, {tag: scale * value})
            write_status(writer, RunStatus(status="done", step=10, examples=640))
            writer.close()


@pytest.mark.parametrize(
    ("tag", "declared"),
    [
        ("val/top1_err", None),
        ("val/top1_error", None),
        ("test/err@1", None),
        ("val/acc_loss", None),
        ("val/top1_regret", SCORE),
        ("val/accuracy_gap", SCORE),
        ("val/top1", SCORE),
    ],
)
def test_of_an_error_the_lower_family_is_the_better_one(tag: str, declared: Metric | None, tmp_path: Path) -> None:
    log_metric(tmp_path, tag, values=(0.99, 0.1), declared=declared)
    found = collect(str(tmp_path), metric=tag)
    assert found.rule.better == "lower"
    assert {one.best for one in found.observations if one.subset == 1000} == {0.1}
    (cross,) = [cross for cross, _, _ in analyse(found, FEW).crossovers]
    assert f"vit is better than bit all over it ({tag}, lower is better)" in cross.text


@pytest.mark.parametrize(
    ("tag", "declared"),
    [
        ("val/top1", None),
        ("val/acc1", None),
        ("test/accuracy", None),
        ("fewshot/mini_5shot", None),
        ("val/score", Metric(better="higher", range=(0, 1))),
        ("val/points", Metric(better="higher", range=(0, 2))),
    ],
)
def test_what_the_report_says_of_two_families_is_in_the_direction_of_the_metric(
    tag: str, declared: Metric | None, tmp_path: Path
) -> None:
    # The numbers of bit are the higher ones, and an accuracy that is higher is no lower curve to whoever reads it.
    log_metric(tmp_path, tag, declared=declared, power=0.1)
    results = analyse(collect(str(tmp_path), metric=tag), FEW)
    (cross,) = [cross for cross, _, _ in results.crossovers]
    assert f"bit is better than vit all over it ({tag}, higher is better)" in cross.text
    page = render(results)["report.html"].decode()
    assert f"bit is better than vit all over it ({tag}, higher is better)" in page
    assert "is lower" not in page


def test_a_metric_of_unknown_direction_is_refused_and_study_or_tag_map_can_say_it(tmp_path: Path) -> None:
    log_metric(tmp_path, "val/score")
    with pytest.raises(
        ConfigError, match="metric 'val/score': nothing says whether higher or lower is better; declare"
    ):
        collect(str(tmp_path), metric="val/score")
    assert collect(str(tmp_path), metric="val/score", declared={"val/score": SCORE}).rule == SCORE
    (tmp_path / "map.yaml").write_text("metrics: {val/score: {better: higher, range: [0, 2]}}\n")
    tag_map = load_tag_map(str(tmp_path / "map.yaml"))
    found = collect(str(tmp_path), metric="val/score", tag_map=tag_map)
    assert found.rule == Metric(better="higher", range=(0, 2))
    with pytest.raises(ConfigError, match="say the same in both"):
        collect(str(tmp_path), metric="val/score", tag_map=tag_map, declared={"val/score": SCORE})


def test_the_page_calls_percent_what_is_a_share_and_names_the_best_run_by_the_direction(tmp_path: Path) -> None:
    log_metric(tmp_path, "val/top1_err")
    results = analyse(collect(str(tmp_path), metric="val/top1_err"), FEW)
    files = render(results)
    page = files["report.html"].decode()
    assert "val/top1_err (%)" in page
    assert "metric_by_examples.png" in files
    assert "paper_data.png" not in files  # the paper's numbers are accuracies
    found = json.loads(files["report.json"])
    assert (found["better"], found["range"]) == ("lower", [0, 1])


@pytest.mark.parametrize(
    ("tag", "scale", "says"),
    [
        (
            "val/top1",
            100,
            r"vit-1000-s0: val/top1 at step 10: 50 is outside its range, 0 to 1, per cent\? divide by 100",
        ),
        ("val/acc1", 100, "val/acc1 at step 10"),
        ("val/top5_err", 100, "val/top5_err at step 10"),
        ("val/loss", -1, "val/loss at step 10: -0.* is outside its range, 0 to inf"),
        ("fewshot/x_5shot", 100, "fewshot/x_5shot at step 10"),
        ("val/top1", -1, "val/top1 at step 10: -0.* is outside its range, 0 to 1"),
    ],
)
def test_a_value_that_the_metric_cannot_have_is_refused_with_run_tag_and_step(
    tag: str, scale: float, says: str, tmp_path: Path
) -> None:
    log_metric(tmp_path, tag, scale=scale)
    with pytest.raises(DataError, match=says.replace("vit-1000", "(vit|bit)-1000").replace("50 is", "[57]0 is")):
        collect(str(tmp_path), metric=tag)


def test_percentages_can_be_declared_and_are_fitted_from_their_highest_value(tmp_path: Path) -> None:
    log_metric(tmp_path, "val/acc", scale=100)
    found = collect(str(tmp_path), metric="val/acc", declared={"val/acc": Metric(better="higher", range=(0, 100))})
    assert analyse(found, FEW).error(75.0) == 25.0


def test_percentages_beside_the_metric_that_is_shown_are_refused_too(tmp_path: Path) -> None:
    log_run(tmp_path)
    writer = EventWriter(tmp_path / "vit-500-s0" / "tb")
    writer.scalars(10, {"fewshot/x_5shot": 64.0})
    writer.close()
    with pytest.raises(DataError, match=r"fewshot/x_5shot at step 10: 64 is outside its range"):
        collect(str(tmp_path))


def test_a_tag_map_that_forgets_the_scale_is_told_of_it(tmp_path: Path) -> None:
    writer = EventWriter(tmp_path / "vit_500")
    writer.scalars(10, {"eval/top1": 64.1})
    writer.close()
    entry = {"directory": r"(?P<family>\w+)_(?P<subset>\d+)", "metric": "eval/top1", "examples_per_step": 64}
    with pytest.raises(DataError, match=r"vit_500: val/top1 at step 10: 64.1 .*give the entry .* `scale: 0.01`"):
        collect(str(tmp_path), tag_map=TagMap.model_validate({"logs": [entry]}))
    scaled = TagMap.model_validate({"logs": [{**entry, "scale": 0.01}]})
    assert [one.value for one in collect(str(tmp_path), tag_map=scaled).observations] == [pytest.approx(0.641)]


def names(root: Path) -> list[str]:
    return sorted(one.directory for one in collect(str(root)).observations)


@pytest.mark.parametrize("form", ["all", "half", "chain", "outside", "relative", "nested", "root"])
def test_runs_behind_links_count_once_under_one_name(form: str, tmp_path: Path) -> None:
    store, logs = tmp_path / "store", tmp_path / "logs"
    for seed in (0, 1):
        log_run(store, seed=seed)
    logs.mkdir()
    if form in ("all", "chain", "relative", "nested"):
        for seed in (0, 1):
            target = store / f"vit-500-s{seed}"
            link = logs / ("deep/er" if form == "nested" else ".") / f"run{seed}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if form == "chain":
                (tmp_path / f"middle{seed}").symlink_to(target)
                target = tmp_path / f"middle{seed}"
            link.symlink_to(os.path.relpath(target, link.parent) if form == "relative" else target)
    elif form == "half":
        (store / "vit-500-s0").rename(logs / "run0")
        (logs / "run1").symlink_to(store / "vit-500-s1")
    elif form == "outside":
        (logs / "everything").symlink_to(store)
    else:
        logs.rmdir()
        logs.symlink_to(store)
    assert len(names(logs)) == 2
    assert [one.seed for one in collect(str(logs)).observations] == [0, 1]
    assert collect(str(logs)).remarks == ()


@pytest.mark.parametrize("form", ["loop", "up", "twice", "hard link"])
def test_a_directory_or_file_of_two_names_counts_once_and_that_is_said(form: str, tmp_path: Path) -> None:
    log = log_run(tmp_path)
    if form == "loop":
        (log.parent / "again").symlink_to(log.parent)
    elif form == "up":
        (log.parent / "up").symlink_to(tmp_path)
    elif form == "twice":
        (tmp_path / "a-name-that-sorts-first").symlink_to(log.parent)
    else:
        (tmp_path / "zz").mkdir()
        (tmp_path / "zz" / log.name).hardlink_to(log)
    found = collect(str(tmp_path))
    assert [one.directory for one in found.observations] == ["vit-500-s0/tb"]
    assert len([remark for remark in found.remarks if "counted once" in remark]) == 1
    assert not found.excluded


@pytest.mark.parametrize("target", ["nowhere", "self", "/nonexistent/dir"])
def test_a_broken_link_is_a_remark(target: str, tmp_path: Path) -> None:
    log_run(tmp_path)
    (tmp_path / "self").symlink_to(target)
    found = collect(str(tmp_path))
    assert len(found.observations) == 1
    assert found.remarks == (f"self: a link to {target}, which is not there",)


def test_a_link_to_an_event_file_is_read_again_when_the_file_grows(tmp_path: Path) -> None:
    log = log_run(tmp_path / "store")
    (tmp_path / "logs" / "run").mkdir(parents=True)
    (tmp_path / "logs" / "run" / log.name).symlink_to(log)
    assert [one.value for one in collect(str(tmp_path / "logs")).observations] == [0.5]
    other = log_run(tmp_path / "other", top1={5: 0.4, 10: 0.6})
    with log.open("r+b") as file:
        file.write(other.read_bytes())
    os.utime(log, (1, 1))
    assert [one.value for one in collect(str(tmp_path / "logs")).observations] == [0.6]
