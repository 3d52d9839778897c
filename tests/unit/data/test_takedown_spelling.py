"""Lines that name an image by its file's name, not by its key: led to the key, and never taken for keys of nothing."""

from __future__ import annotations

import unicodedata

import pytest

from tests.shards import image_bytes
from tests.streams import recipe
from vit_dist.cli.data import main as data_verb
from vit_dist.core.errors import ConfigError
from vit_dist.data.sets import Parts, open_training_set
from vit_dist.data.takedown import extended, find, hold, spelt

CUT = "x" * 120
FILES = (
    "IMG 001.png",
    "plain.png",
    "a.b.png",
    "50%.png",
    "tab\there.png",
    "\u00fc.png",
    f"{CUT}.png",
    "p.jpg",
    "p.png",
)


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A set of nine images that was packed from a folder whose names are not plain."""
    folder = tmp_path_factory.mktemp("named")
    for label in ("circle", "my square"):
        (folder / "src" / label).mkdir(parents=True)
    for number, name in enumerate(FILES):
        (folder / "src" / "circle" / name).write_bytes(image_bytes(number, 0))
    (folder / "src" / "my square" / "IMG 001.png").write_bytes(image_bytes(90, 1))
    assert data_verb(["pack", str(folder / "src"), str(folder / "out"), "--workers", "1"]) == 0
    return open_training_set(recipe(str(folder / "out" / "manifest.json"), "data.num_classes=2")).parts


@pytest.mark.parametrize(
    ("line", "key"),
    [
        ("circle/IMG 001", "circle/IMG%20001"),
        ("circle/IMG 001.png", "circle/IMG%20001"),
        ("./circle/IMG 001.png", "circle/IMG%20001"),
        ("circle/IMG%20001 ", "circle/IMG%20001"),
        ("my square/IMG 001", "my%20square/IMG%20001"),
        ("circle/plain.png", "circle/plain"),
        ("circle/plain ", "circle/plain"),
        ("circle/a.b", "circle/a%2Eb"),
        ("circle/a.b.png", "circle/a%2Eb"),
        ("circle/50%", "circle/50%25"),
        ("circle/tab\there", "circle/tab%09here"),
        ("circle/\u00fc", "circle/%C3%BC"),
        (unicodedata.normalize("NFD", "circle/\u00fc.png"), "circle/%C3%BC"),
        ("circle/p.jpg", "circle/p%2Ejpg"),
    ],
)
def test_a_file_s_own_name_is_led_to_its_key(parts: Parts, line: str, key: str) -> None:
    assert find((line,), parts) == {line: ()}
    assert find((key,), parts)[key]
    assert spelt([line], parts) == {line: key}
    hold("list", ("circle/plain", line))
    with pytest.raises(ConfigError) as refused:
        extended((), "list", parts, 0)
    assert f"1 of 2 new keys name images of this run in another spelling: {line!r}, did you mean {key!r}?" in str(
        refused.value
    )
    # In the set that is evaluated on it is an image of the run as well.
    with pytest.raises(ConfigError, match="in another spelling"):
        extended((), "list", Parts(), 0, beside=parts)
    hold("list", ("circle/plain", key))
    assert all(one.ordinals for one in extended((), "list", parts, 0))


def test_a_long_name_is_led_to_its_cut_key(parts: Parts) -> None:
    (cut,) = (k for i in range(len(FILES) + 1) if "~" in (k := parts[0].manifest.read_index(0).key(i)))
    assert spelt([f"circle/{CUT}", f"circle/{CUT}.png"], parts) == dict.fromkeys(
        (f"circle/{CUT}", f"circle/{CUT}.png"), cut
    )


@pytest.mark.parametrize("line", ["circle/IMG 002", "Circle/plain", "plain", "circle/plain.txt", "other\tIMG 001", " "])
def test_what_is_no_image_s_name_is_kept_as_it_was(parts: Parts, line: str) -> None:
    assert spelt([line], parts) == {}
    hold("list", (line,))
    assert [(one.line, one.ordinals) for one in extended((), "list", parts, 0)] == [(line, ())]


def test_of_many_a_few_are_shown(parts: Parts) -> None:
    hold("list", tuple(f"circle/{name}" for name in FILES))
    with pytest.raises(ConfigError, match=r"9 of 9 new keys .*\? \.\.\. Keys are names of files"):
        extended((), "list", parts, 0)
