"""`vit-dist recipes`: every shipped recipe says where it is from; costs are the paper's; errors name the nearest."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.places import ROOT
from vit_dist.cli.main import main
from vit_dist.config.load import load_recipe, recipe_hash
from vit_dist.core.devices import find_device
from vit_dist.study.shipped import shipped_paths, shipped_recipe


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["recipes", *words]) == 0
    return capsys.readouterr().out


def test_the_page_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert (ROOT / "docs" / "recipes.md").read_text() == said(capsys, "--page"), (
        "run: vit-dist recipes --page > docs/recipes.md"
    )


def test_every_recipe_says_where_it_is_from_and_what_it_costs(capsys: pytest.CaptureFixture[str]) -> None:
    records: list[dict[str, Any]] = json.loads(said(capsys, "--json"))
    assert [one["name"] for one in records] == list(shipped_paths())
    for one in records:
        assert one["source"], one["name"]
        assert one["device_hours"] > 0, one["name"]
        assert all(0 < reported["value"] <= 100 for reported in one["reported"])


# Table 6, of the paper's rule for FLOPs: reference numbers that this arithmetic does not come from.
@pytest.mark.parametrize(
    ("name", "exaflops"), [("vit-l16-jft300m", 783), ("vit-l16-jft300m-14ep", 1567), ("vit-h14-jft300m", 4262)]
)
def test_compute_is_that_of_the_papers_table_6(name: str, exaflops: float) -> None:
    one = shipped_recipe(shipped_paths()[name], find_device("h100"), 0.5)
    assert one.flops == pytest.approx(exaflops * 1e18, rel=2e-3)
    assert one.device_hours == pytest.approx(exaflops * 1e18 / (0.5 * 989e12) / 3600, rel=2e-3)


def test_rows_of_table_3_are_all_there_with_its_numbers() -> None:
    # models; dataset; epochs; rate; schedule; weight decay; dropout: arXiv 2010.11929, Table 3.
    rows = """
    ViT-B/16 ViT-B/32; jft300m; 7; 8e-4; linear; 0.1; 0
    ViT-L/32; jft300m; 7; 6e-4; linear; 0.1; 0
    ViT-L/16; jft300m; 7 14; 4e-4; linear; 0.1; 0
    ViT-H/14; jft300m; 14; 3e-4; linear; 0.1; 0
    R50x1 R50x2; jft300m; 7; 1e-3; linear; 0.1; 0
    R101x1; jft300m; 7; 8e-4; linear; 0.1; 0
    R152x1 R152x2; jft300m; 7; 6e-4; linear; 0.1; 0
    R50+ViT-B/16 R50+ViT-B/32; jft300m; 7; 8e-4; linear; 0.1; 0
    R50+ViT-L/32; jft300m; 7; 2e-4; linear; 0.1; 0
    R50+ViT-L/16; jft300m; 7 14; 4e-4; linear; 0.1; 0
    ViT-B/16 ViT-B/32; imagenet21k; 90; 1e-3; linear; 0.03; 0.1
    ViT-L/16 ViT-L/32; imagenet21k; 30 90; 1e-3; linear; 0.03; 0.1
    ViT-B/16 ViT-B/32 ViT-L/16 ViT-L/32; imagenet; 300; 3e-3; cosine; 0.3; 0.1
    """
    wanted = set()
    for models, dataset, epochs, *rest in ([c.strip() for c in r.split(";")] for r in rows.strip().splitlines()):
        lr, schedule, decay, dropout = float(rest[0]), rest[1], float(rest[2]), float(rest[3])
        wanted |= {
            (m, dataset, f"{e} epochs", lr, schedule, decay, dropout) for m in models.split() for e in epochs.split()
        }
    found = set()
    for name in shipped_paths():
        r: Any = load_recipe(name)
        if r.about.source.startswith("arXiv 2010.11929, Table 3"):
            assert (r.global_batch, r.data.image_size, r.schedule.warmup.value) == (4096, 224, 10_000)
            dropout = getattr(r.model, "dropout", 0.0)
            found.add(
                (
                    r.model.name,
                    r.data.dataset,
                    str(r.horizon),
                    r.optim.lr,
                    r.schedule.name,
                    r.optim.weight_decay,
                    dropout,
                )
            )
    assert found == wanted


def test_a_recipe_does_not_say_of_itself_what_its_base_does(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("base: vit-b16-imagenet\nname: mine\noptim: {lr: 1e-3}\n")
    assert load_recipe("vit-b16-imagenet").about is not None
    assert load_recipe(str(mine)).about is None


def test_what_is_said_of_a_recipe_is_not_part_of_its_identity() -> None:
    with_facts = load_recipe("vit-b16-imagenet")
    assert recipe_hash(with_facts.model_copy(update={"about": None})) == recipe_hash(with_facts)


def test_a_name_is_shown_in_full_with_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "deit3-b16-imagenet")
    for part in ("192 pixels", "lamb, lr 0.003", "83.8: ImageNet top-1", "Repeated augmentation", "exaFLOPs"):
        assert part in text


def test_hours_follow_the_device_and_its_utilisation(capsys: pytest.CaptureFixture[str]) -> None:
    (a,) = json.loads(said(capsys, "vit-h14-jft300m", "--json"))
    (b,) = json.loads(said(capsys, "vit-h14-jft300m", "--json", "--device", "a100", "--utilisation", "20%"))
    assert b["device_hours"] == pytest.approx(a["device_hours"] * 2 * 989 / 312)


def test_csv_has_a_line_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(said(capsys, "--csv", "vit-*-jft300m"))))
    assert [row["name"] for row in rows] == [n for n in shipped_paths() if re.fullmatch(r"vit-.*-jft300m", n)]
    assert all(float(row["flops"]) > 0 for row in rows)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["vit-b16-imagnet"], "no shipped recipe is called 'vit-b16-imagnet'; did you mean 'vit-b16-imagenet'"),
        (["zz*"], "no shipped recipe is called 'zz*'"),
        (["--utilisation", "3"], "--utilisation 3: expected a fraction above 0 and up to 1"),
        (["--device", "h10"], "--device 'h10' is not known"),
        (["demo", "--page"], "--page is of all recipes; leave demo out"),
    ],
)
def test_what_cannot_be_is_named(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", *words]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


def test_recipes_are_listed_without_torch() -> None:
    code = "import sys; from vit_dist.cli.main import main; main(['recipes', 'demo']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "False"
