"""The page of a report: self-contained, complete, honest about what it could not fit, and the same each time."""

from __future__ import annotations

import csv
import json
import math
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.unit.scaling.logged_runs import info, log_run
from vit_dist.core.events.reader import read_run
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.run.log import RunStatus, write_start, write_status
from vit_dist.scaling.collect import collect
from vit_dist.scaling.report.figure_style import legend, new_figure, style
from vit_dist.scaling.report.figures_fit import crossover_figure
from vit_dist.scaling.report.tensorboard import export_tensorboard
from vit_dist.scaling.report.write import ReportFiles, write_report
from vit_dist.scaling.results import Results, analyse

SIZES = (200, 800, 3200, 12_800, 51_200)
FAMILIES = {"bit": (0.9, 0.30, 0.085, 2_400_000), "vit": (1.9, 0.38, 0.06, 3_200_000)}


def fill(root: Path) -> None:
    """A study whose ViT is steeper and crosses, with few-shot values, one failed run and one killed."""
    draw = random.Random(1)
    for family, (a, b, c, macs) in FAMILIES.items():
        for subset in SIZES:
            for seed in range(3):
                name = f"{family}-{subset}-s{seed}"
                writer = EventWriter(root / name / "tb")
                begun = info(
                    name=name, family=family, model=f"{family}-x", subset=subset, seed=seed, macs_per_image=macs
                )
                write_start(writer, begun, "name: x\n")
                error = (a * subset**-b + c) * math.exp(draw.gauss(0, 0.015))
                bad = (family, subset, seed) in {("vit", 800, 1), ("bit", 3200, 2)}
                for step in (5,) if bad else (5, 10):
                    top1 = 1 - error * (2 - step / 10)
                    writer.scalars(step, {"val/top1": top1, "val/loss": error, "fewshot/mini_5shot": top1 / 2})
                if not bad or family == "vit":
                    how = RunStatus(
                        status="failed" if bad else "done", step=5 if bad else 10, examples=640, reason="why"
                    )
                    write_status(writer, how)
                writer.close()


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReportFiles]:
    root = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIT_DIST_CACHE", str(root / "cache"))
        fill(root / "logs")
        return root, write_report(collect(str(root / "logs")), root / "out")


@pytest.fixture(scope="module")
def results(study: tuple[Path, ReportFiles]) -> Results:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIT_DIST_CACHE", str(study[0] / "cache"))
        return analyse(collect(str(study[0] / "logs")))


class Page(HTMLParser):
    """Collects what a page refers to, its ids, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.words = ""
        self.svgs = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.svgs += tag == "svg"
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag == "a":
            self.links.append(named.get("href") or "")
        elif tag in {"link", "script", "img", "iframe", "image"}:
            self.loaded.append(tag)

    def handle_data(self, data: str) -> None:
        self.words += data


def test_the_page_has_every_figure_and_table_and_needs_nothing_from_outside(study: tuple[Path, ReportFiles]) -> None:
    root, files = study
    text = files.html.read_text()
    page = Page(text)
    names = {path.stem for path in files.figures}
    assert names == {
        "accuracy_by_examples", "paper_data", "fewshot_mini_5shot", "fits", "residuals", "crossovers", "compute",
        "paper_compute", "learning_by_examples", "learning_by_flops", "coverage",
    }  # fmt: skip
    assert page.svgs == len(names)
    assert page.loaded == []
    assert not re.search(r"(?:src|href|url\()\s*=?\s*[\"']?https?://", text)
    assert len(page.ids) == len(set(page.ids))
    assert all((root / "out" / link).is_file() for link in page.links)
    for title in ("Fits", "Crossovers", "Forecasts", "Compute", "Runs", "Excluded runs"):
        assert re.search(rf"<h2>{title}", text), title
    assert "failed at step 5 of 10 (why)" in page.words
    assert "unfinished" in page.words
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text


def test_every_caption_of_a_fit_names_form_and_estimator(study: tuple[Path, ReportFiles]) -> None:
    page = study[1].html.read_text()
    for name in ("fits", "residuals"):
        figure = page[page.index(f'<figure id="{name}"') :]
        caption = figure[figure.index("<figcaption>") : figure.index("</figcaption>")]
        assert re.search(r"\bm[12]\b", caption), name
    assert "Huber" in page
    assert "bootstrap" in page
    assert "Table 6 of Dosovitskiy" in page


def test_colours_of_the_page_are_variables_and_those_of_the_files_are_not(study: tuple[Path, ReportFiles]) -> None:
    root, files = study
    drawn = re.findall(r"<svg.*?</svg>", files.html.read_text(), re.DOTALL)
    literal = {colour for svg in drawn for colour in re.findall(r"#[0-9a-f]{6}\b", svg)}
    assert literal == set()
    assert "var(--c0)" in "".join(drawn)
    assert "var(" not in (root / "out" / "fits.svg").read_text()


def test_the_json_has_fits_crossovers_and_held_out_errors_that_agree_with_the_analysis(
    study: tuple[Path, ReportFiles], results: Results
) -> None:
    data = json.loads(study[1].json.read_text())
    assert len(data["observations"]) == 28
    assert [fit["params"] for fit in data["fits"]] == [dict(fit.params) for fit in results.fits.values()]
    (cross,) = data["crossovers"]
    truth = _crossing()
    assert (cross["winner"], cross["loser"]) == ("vit", "bit")
    assert 0.3 * truth < cross["x"] < 3 * truth
    assert cross["x"] == results.crossovers[0][0].x
    held = {one["series"]: one for one in data["held_out"]}
    assert held["vit"]["size"] == 51_200
    assert held["vit"]["predicted"] == pytest.approx(held["vit"]["measured"], rel=0.25)
    assert data["observations"][0]["exaflops"] == 6 * 2_400_000 * 640 / 1e18
    assert len(data["few_shot"]["fewshot/mini_5shot"]) == 28


def test_the_bars_of_a_crossover_are_the_bootstraps_that_its_share_and_interval_tell_of(results: Results) -> None:
    cross = results.crossovers[0][0]
    drawing = crossover_figure(results)
    assert drawing is not None
    assert cross.share is not None
    bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in drawing.figure.axes[0].patches]
    bars = [bar for bar in bars[:50] if bar[2]]
    assert sum(height for *_, height in bars) == pytest.approx(100 * cross.share)
    own = next(iter(cross.per_form.values()))
    assert own["low"] is not None
    assert own["high"] is not None
    assert bars[0][0] <= own["low"]
    assert bars[-1][1] >= own["high"]


def _crossing() -> float:
    low, high = 200.0, 1e7
    for _ in range(100):
        x = math.sqrt(low * high)
        bit, vit = (a * x**-b + c for a, b, c, _ in FAMILIES.values())
        low, high = (x, high) if vit > bit else (low, x)
    return low


def test_two_processes_draw_the_same_bytes_and_a_kept_report_is_the_same_too(study: tuple[Path, ReportFiles]) -> None:
    root, files = study
    code = (
        "import sys; from pathlib import Path; from vit_dist.scaling.collect import collect; "
        "from vit_dist.scaling.report.write import write_report; "
        "write_report(collect(sys.argv[1]), Path(sys.argv[2]), cached=False)"
    )
    subprocess.run([sys.executable, "-c", code, str(root / "logs"), str(root / "again")], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIT_DIST_CACHE", str(root / "cache"))
        write_report(collect(str(root / "logs")), root / "kept")
    for path in files.all:
        assert path.read_bytes() == (root / "again" / path.name).read_bytes(), path.name
        assert path.read_bytes() == (root / "kept" / path.name).read_bytes(), path.name


def test_one_size_a_family_of_one_point_and_a_falling_accuracy_are_reported_with_a_warning(tmp_path: Path) -> None:
    log_run(tmp_path / "logs", "lone", 500, 0, top1={10: 0.6})
    for subset, top1 in ((500, 0.7), (2000, 0.6), (8000, 0.5)):
        log_run(tmp_path / "logs", "falls", subset, 0, top1={10: top1})
    files = write_report(collect(str(tmp_path / "logs")), tmp_path / "out")
    words = " ".join(Page(files.html.read_text()).words.split())
    assert "lone: one point only" in words
    assert re.search(r"falls: .*(rises|falls|grows)", words)
    with (tmp_path / "out" / "fits.csv").open() as file:
        assert {row["series"]: row["form"] for row in csv.DictReader(file)}["lone"] == "none"


def test_a_loss_is_fitted_as_it_is_and_another_metric_is_drawn_without_a_fit(tmp_path: Path) -> None:
    fill(tmp_path / "logs")
    losses = analyse(collect(str(tmp_path / "logs"), metric="val/loss"))
    assert losses.fits["vit"].error[0] > losses.fits["vit"].error[-1] > 0
    others = analyse(collect(str(tmp_path / "logs"), metric="fewshot/mini_5shot"))
    assert others.scale == 100
    assert others.few_shot == {}


def test_the_papers_numbers_stand_behind_runs_of_its_size_and_beside_smaller_ones(tmp_path: Path) -> None:
    for subset in (1_300_000, 303_000_000):
        log_run(tmp_path / "logs", "vit", subset, 0, top1={10: 0.8}, macs_per_image=17_000_000_000)
    files = write_report(collect(str(tmp_path / "logs")), tmp_path / "out")
    names = {path.stem for path in files.figures}
    assert "paper_data" not in names
    assert "Dashed grey: the paper's Table 5, ImageNet top-1" in " ".join(Page(files.html.read_text()).words.split())


def test_tensorboard_gets_examples_and_flops_as_steps(tmp_path: Path) -> None:
    log_run(tmp_path / "logs", "vit", 500, 0, top1={5: 0.25, 10: 0.5}, macs_per_image=1_000_000_000)
    made = export_tensorboard(collect(str(tmp_path / "logs")), tmp_path / "tb")
    assert [path.relative_to(tmp_path / "tb").as_posix() for path in made] == [
        "by-examples/vit-500-s0",
        "by-gigaflops/vit-500-s0",
    ]
    examples, flops = (read_run(str(path)).scalars["val/top1"] for path in made)
    assert dict(zip(examples.steps.tolist(), examples.values.tolist(), strict=True)) == {320: 0.25, 640: 0.5}
    assert flops.steps.tolist() == [320 * 6, 640 * 6]


def test_what_needs_escaping_in_names_is_escaped(tmp_path: Path) -> None:
    log_run(tmp_path / "logs", "vit", 500, 0, study="<b>&")
    text = write_report(collect(str(tmp_path / "logs")), tmp_path / "out").html.read_text()
    assert "<b>&" not in text
    assert "&lt;b&gt;&amp;" in text


@pytest.mark.parametrize("names", [["ViT-B/16"], [f"vit-demo, {n}k seen, branched at {100 * n}" for n in range(1, 6)]])
def test_a_legend_stays_within_its_figure(names: list[str]) -> None:
    with style():
        figure, (axes,) = new_figure(4.0)
        for name in names:
            axes.plot([0, 1], label=name)
        legend(figure, axes)
        figure.canvas.draw()
    box = figure.legends[0].get_window_extent()
    assert box.x1 <= figure.bbox.x1
