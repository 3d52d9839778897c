"""All views of a model together: what is left out and why, memory, and the files that are written."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.inspect.test_attention import WITH_REGISTERS, vit
from tests.unit.inspect.test_weights_and_fields import bit
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.inspect import Look, look_inside, write_look
from vit_dist.inspect.look import images_at_once
from vit_dist.inspect.views import VIEWS

PIXELS = torch.randint(0, 256, (5, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def look() -> Look:
    return look_inside(vit(), PIXELS, image_size=28, labels=["a <b>", "=SUM(A1)", *"cde"], name="small-vit")


@pytest.fixture(scope="module")
def written(look: Look, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_look(look, tmp_path_factory.mktemp("look") / "out", {"weights": "<script>alert(1)</script>"})


def test_a_vit_has_every_view(look: Look) -> None:
    assert look.views == tuple(VIEWS)
    assert not look.left_out
    assert look.num_images == 5
    assert look.attended is not None
    assert look.attended.distance.shape == (3, 2)
    assert look.similarity is not None
    torch.testing.assert_close(look.similarity.diagonal(), torch.ones(16))


def test_a_resnet_has_two_and_says_of_the_others_why(look: Look) -> None:
    seen = look_inside(bit(), torch.zeros(2, 3, 32, 32, dtype=torch.uint8), image_size=32, name="R")
    assert seen.views == ("filters", "field")
    assert set(seen.left_out) == {"rollout", "distance", "layers", "positions"}
    assert all(why.startswith("R has no patches on a grid") for why in seen.left_out.values())


def test_what_is_asked_for_and_cannot_be_is_an_error(look: Look) -> None:
    with pytest.raises(ConfigError, match=r"^rollout: R has no patches"):
        look_inside(bit(), PIXELS, image_size=28, views=["rollout"], name="R")
    with pytest.raises(ConfigError, match=r"^distance: needs images"):
        look_inside(vit(), None, image_size=28, views=["distance"])
    with pytest.raises(ConfigError, match="did you mean 'rollout'"):
        look_inside(vit(), PIXELS, image_size=28, views=["roll-out"])
    assert look_inside(vit(), None, image_size=28).views == ("positions", "filters")


def test_as_many_images_at_once_as_memory_has_room_for() -> None:
    each = 5 * 4 * 2 * WITH_REGISTERS.count**2
    assert images_at_once(WITH_REGISTERS, 2, None) == 64
    assert images_at_once(WITH_REGISTERS, 2, 6 * each) == 3
    assert images_at_once(WITH_REGISTERS, 2, each) == 1
    with pytest.raises(ConfigError, match=r"among 18 tokens in 2 heads takes .* for one image, .* are free"):
        images_at_once(WITH_REGISTERS, 2, each - 1)


def test_want_of_memory_is_told_and_other_failures_are_not_renamed() -> None:
    class Fails(nn.Module):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text, self.stages = text, nn.ModuleList([nn.Identity()])

        def forward(self, _: object) -> None:
            raise RuntimeError(self.text)

    wants = Fails("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
    with pytest.raises(DataError, match=r"28 pixels: there is not enough memory: .* fewer views"):
        look_inside(wants, PIXELS, image_size=28, views=["field"])
    with pytest.raises(RuntimeError, match=r"^shapes$"):
        look_inside(Fails("shapes"), PIXELS, image_size=28, views=["field"])


def test_a_page_needs_nothing_beside_it_and_steers_no_reader(written: list[Path]) -> None:
    files = written
    assert files[0].name == "inspect.html"
    assert {path.name for path in files} == {path.name for path in files[0].parent.iterdir()}
    page = files[0].read_text()
    assert page.count("<svg") == 6
    assert "<script" not in page
    assert "a <b>" not in page
    assert not re.search(r'(?:src|href)="(?!#|data:|[a-z]+\.(?:png|svg|csv)")', page)
    # Ids are those of one figure each, or a browser would draw one with the parts of another.
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_tables_hold_what_was_seen(look: Look, written: list[Path]) -> None:
    folder = written[0].parent
    assert look.attended is not None
    assert look.similarity is not None
    distance = rows_of(folder / "distance.csv")
    assert [(row["layer"], row["head"]) for row in distance] == [(str(i), str(j)) for i in (1, 2, 3) for j in (1, 2)]
    assert float(distance[3]["distance_px"]) == pytest.approx(float(look.attended.distance[1, 1]))
    rollout = rows_of(folder / "rollout.csv")
    assert len(rollout) == 5 * 16
    assert float(rollout[16 + 7]["share"]) == pytest.approx(float(look.attended.rollout[1, 7]), rel=1e-5)
    assert (rollout[23]["row"], rollout[23]["column"], rollout[23]["label"]) == ("2", "4", "'=SUM(A1)")
    positions = rows_of(folder / "positions.csv")
    assert float(positions[16 * 5 + 2]["cosine"]) == pytest.approx(float(look.similarity[5, 2]), rel=1e-5, abs=1e-6)
    assert json.loads((folder / "inspect.json").read_text())["views"] == list(VIEWS)


def test_a_later_look_takes_the_place_of_an_earlier_one_and_of_nothing_else(tmp_path: Path) -> None:
    filters, positions = (look_inside(vit(), None, image_size=28, views=[view]) for view in ("filters", "positions"))
    write_look(filters, tmp_path / "a")
    write_look(positions, tmp_path / "a")
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "inspect.html", "inspect.json", "positions.png", "positions.svg", "positions.csv",
    }  # fmt: skip
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds something else than a look .*thesis\.txt"):
        write_look(filters, tmp_path / "b")
