"""Models side by side: what is counted is what the arithmetic says, and matches are the nearest there are."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from vit_dist.cli.compare.table import table
from vit_dist.cli.models.options import model_config
from vit_dist.compare.figure import draw
from vit_dist.compare.measure import groups
from vit_dist.compare.memory import Counted, count
from vit_dist.compare.rows import Row, match, ordered, to_csv
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.models.costs import model_cost

A = Row("ViT-a", "vit", 224, 100, 10, 60, 1600, 1000, 100, 7, 1.0, 2.0)
ROWS = [
    A,
    replace(A, model="R-small", family="bit", params=20, train_flops=50),
    replace(A, model="R-large", family="bit", params=90, train_flops=300),
    replace(A, model="H", family="hybrid", params=130, train_flops=90),
]


@pytest.mark.parametrize(
    ("name", "settings"), [("ViT-b/32", []), ("ViT-b/32", ["pool=map"]), ("R50x1", []), ("R50+ViT-B/32", [])]
)
def test_what_torch_counts_is_what_the_arithmetic_says(name: str, settings: list[str]) -> None:
    config = model_config(name, settings)
    found, expected = count(config, num_classes=10, image_size=64), model_cost(config, num_classes=10, image_size=64)
    assert expected is not None
    assert (found.params, found.macs) == (expected.params, expected.macs)
    assert 0 < found.checkpointed < found.activations


def test_activations_are_those_of_fused_attention_and_of_each_blocks_input() -> None:
    # Of one block: norm, qkv's input, q, k and v, attention's output twice, norm, 4 + 4 of the MLP; 65 tokens of 32.
    one, two = (
        count(model_config("vit-test", [f"depth={d}", "patch_size=4"]), num_classes=2, image_size=32) for d in (4, 5)
    )
    token_bytes = 65 * 32 * 2
    assert 14 * token_bytes < two.activations - one.activations < 19 * token_bytes
    assert two.checkpointed - one.checkpointed == token_bytes
    wider = count(model_config("vit-test", ["depth=4", "patch_size=4"]), num_classes=2, image_size=32, precision="fp32")
    # In bf16 the head keeps a copy of the class token in fp32; in fp32 what it is given.
    assert wider.checkpointed == 2 * one.checkpointed - 32 * 4


def test_the_nearest_of_each_family_is_found_by_ratio() -> None:
    by_flops = {(m.family, m.nearest): m.ratio for m in match(ROWS, "flops")}
    assert by_flops == {("bit", "R-small"): 50 / 60, ("hybrid", "H"): 1.5}
    assert [m.nearest for m in match(ROWS, "params")] == ["R-large", "H"]
    with pytest.raises(ConfigError, match="needs a measurement; leave --no-measure out"):
        match(ROWS, "throughput")
    measured = [replace(row, train_images_s=speed) for row, speed in zip(ROWS, (10, 4, 11, 9), strict=True)]
    assert [m.nearest for m in match(measured, "throughput")] == ["R-large", "H"]
    with pytest.raises(ConfigError, match="of family 'vit' and of another"):
        match(ROWS[:1], "flops")


def test_rows_are_ordered_by_cost_or_name_and_what_was_not_measured_comes_last() -> None:
    measured = [replace(row, train_images_s=speed) for row, speed in zip(ROWS, (10, None, 11, 9), strict=True)]
    assert [row.model for row in ordered(measured, "throughput")] == ["R-large", "ViT-a", "H", "R-small"]
    assert [row.model for row in ordered(ROWS, "params")] == ["R-small", "R-large", "ViT-a", "H"]
    assert [row.model for row in ordered(ROWS, "model")] == ["H", "R-large", "R-small", "ViT-a"]
    assert [m.nearest for m in match(measured, "throughput")] == ["R-large", "H"]


def test_models_are_measured_in_turns_if_memory_holds_all_and_else_alone_or_not_at_all() -> None:
    found = {"small": Counted(10, 0, 0, 100, 0), "large": Counted(1000, 0, 0, 100, 0)}  # state 180 and 18000, steps 250
    assert groups(found, 2, None) == ([["small", "large"]], {})
    assert groups(found, 2, 18430) == ([["small", "large"]], {})
    assert groups(found, 2, 18429) == ([["small"], ["large"]], {})
    assert groups(found, 2, 18249) == ([["small"]], {"large": 18250})


def test_the_table_of_the_papers_models_fits_into_80_columns_and_is_folded_where_it_does_not() -> None:
    rows = [
        replace(A, model=name, family="hybrid", params=632_045_800, macs=167_295_000_000, train_flops=1_003_770_000_000)
        for name in ("R50+ViT-L/16", "ViT-H/14")
    ]
    sizes = {"state_bytes": 9 << 30, "activation_bytes": 323 << 20, "checkpointed_bytes": 22 << 10}
    rows = [replace(row, exaflops=4258.6, **sizes) for row in rows]
    plain = table(rows, measured=False, width=80).splitlines()
    assert max(map(len, plain)) < 80
    assert [len(line.split()) for line in plain] == [4, 10, 10, 10]
    assert plain[2].split()[1:] == ["hybrid", "632M", "167", "1,004", "9.00G", "323M", "22.0K", "4,259", "2.00"]
    measured = [replace(rows[0], forward_images_s=1.234, train_images_s=12_345.6), rows[1]]
    assert len(table(measured, measured=True, width=None).splitlines()) == 4
    folded = table(measured, measured=True, width=80).splitlines()
    assert folded[:4] == plain
    assert folded[4:7] == ["", "                  images/s", "model          fwd   train"]
    assert folded[7:] == ["R50+ViT-L/16  1.23  12,346", "ViT-H/14         -       -"]


def test_every_number_is_in_the_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(ROWS))))
    assert [row["model"] for row in rows] == ["ViT-a", "R-small", "R-large", "H"]
    assert rows[0]["train_flops"] == "60"
    assert rows[0]["train_images_s"] == ""


def test_a_figure_is_drawn_or_refused(tmp_path: Path) -> None:
    draw(ROWS, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
    with pytest.raises(DataError, match=r"a\.xyz: the figure cannot be drawn"):
        draw(ROWS, tmp_path / "a.xyz")
