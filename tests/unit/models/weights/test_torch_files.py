"""Files of torch: read as torch reads them, but as data; forged ones are refused before a value takes memory."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import resource
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.plugins import model_config
from vit_dist.core.errors import DataError
from vit_dist.core.small_files import DamagedError
from vit_dist.models.weights.adapt import shapes_of
from vit_dist.models.weights.files import LoadOptions, read_weights
from vit_dist.models.weights.pickles import read_pickle
from vit_dist.models.weights.torch_file import open_torch

VIT = model_config("vit-test", patch_size=8, width=8, depth=1)
STATE = {name: torch.ones(shape) for name, shape in shapes_of(VIT, 3, 32).items()}
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _little_memory() -> Any:
    """Nothing here may take 100 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


class _Storage:
    def __init__(self, key: str, count: Any, kind: Any = torch.FloatStorage) -> None:
        self.stated = ("storage", kind, key, "cpu", count)


class _Tensor:
    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> Any:
        return torch._utils._rebuild_tensor_v2, (*self.arguments, False, {})


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        """Storages by reference, as torch writes them."""
        return value.stated if isinstance(value, _Storage) else None


def torch_file(path: Path, content: Any, members: dict[str, bytes] | None = None, method: int = 0) -> Path:
    """An archive as torch writes it; `content` is an object, or the bytes of a pickle."""
    buffer = io.BytesIO()
    if not isinstance(content, bytes):
        _Pickler(buffer, 2).dump(content)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("w/data.pkl", content if isinstance(content, bytes) else buffer.getvalue())
        for name, value in {"data/0": bytes(32), **(members or {})}.items():
            archive.writestr(f"w/{name}", value)
    return path


def _of(*view: Any, count: Any = 8, kind: Any = torch.FloatStorage) -> dict[str, Any]:
    return {"norm.bias": _Tensor(_Storage("0", count, kind), *view)}


def _nested(levels: int) -> Any:
    value: Any = ()
    for _ in range(levels):
        value = (value, value)
    return value


CYCLE: dict[str, Any] = {}
CYCLE["model"] = CYCLE
MANY = b"\x80\x02}(" + pickle.dumps("a", 2)[2:-1] + b"r\xff\xff\xff\x7f" + b"K\x01u."


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (_of(0, (8,), (1,), count=25 * GIB), "107,374,182,400 bytes for tensors that take 32"),
        (_of(0, (25 * GIB,), (1,)), "with more numbers than the 8 that it is part of"),
        (_of(4, (8,), (1,)), "with more numbers than the 8"),
        (_of(0, (3, 3), (4, 1)), "with more numbers than the 8"),
        (_of(-1, (8,), (1,)), "no whole numbers that fit together"),
        (_of(0, (8,), (-1,)), "no whole numbers that fit together"),
        (_of(0, (8,), (1, 1)), "no whole numbers that fit together"),
        (_of(0, (1,) * 40, (1,) * 40), "no whole numbers that fit together"),
        (_of(0, (_nested(60),), (1,)), "no whole numbers that fit together"),
        (_of(0, (10**15,), (0,)), "which no weight has|not the weights of"),
        (_of(0, (8,), (1,), count="8"), "numbers of no kind, name or count"),
        (_of(0, (8,), (1,), kind="float"), "numbers of no kind, name or count"),
        # A key that would take for ever to be hashed.
        (b"\x80\x02})" + b"q\x00h\x00\x86" * 60 + b"K\x01s.", r"but object \(int\)"),
        ({"x": _nested(60)}, r"but x \(tuple\)"),
        (CYCLE, r"no dictionary of tensors alone, but model \(dict\)"),
        ({"x": os.system}, r"more than plain tensors \(\w+\.system\); nothing in it was run"),
        ({"x": bytearray(8)}, r"more than plain tensors \(\w+\.bytearray\)"),
        (b"\x80\x02", "no whole pickle"),
        (b"", "no whole pickle"),
        (b"\x80\x02" + b"(" * 100 + b"t" * 101 + b".", "without the mark that it needs"),
        (b"\x80\x02h\x07.", "no whole pickle"),
        (b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.", "no whole pickle"),
        (b"\x80\x02" + b"(" * 20_000 + b"t" * 20_000 + b"\x85.", "holds no dictionary of tensors but tuple"),
        (b"\x80\x02" + b"\x93.", "takes what it has not put"),
        (b"\x80\x02Nccopyreg\n_reconstructor\n.", r"copyreg\._reconstructor"),
        (MANY, "holds no dictionary of tensors alone"),
    ],
)
def test_a_pickle_is_read_as_data_and_held_against_its_file(content: Any, says: str, tmp_path: Path) -> None:
    path = torch_file(tmp_path / "w.pth", content)
    with pytest.raises(DataError, match=rf"w\.pth: .*({says})") as caught:
        read_weights(path, LoadOptions(VIT))
    assert "weights_only" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_pickle_without_an_end_is_not_read_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vit_dist.core.pickles._MAX_INSTRUCTIONS", 1000)
    with pytest.raises(DamagedError, match="more than 1,000 instructions"):
        read_pickle(io.BytesIO(b"\x80\x02" + b"N0" * 500 + b"N."))


@pytest.mark.parametrize(("there", "count"), [(32, 10), (0, 8), (64, 8)])
def test_a_storage_of_another_size_than_its_tensor_speaks_of_is_refused(there: int, count: int, tmp_path: Path) -> None:
    path = torch_file(tmp_path / "w.pth", _of(0, (8,), (1,), count=count), {"data/0": bytes(there)})
    with path.open("rb") as file:
        tensor = open_torch(file, "w.pth")["norm.bias"]
        with pytest.raises(DataError, match=rf"w\.pth: .*data/0: {4 * count} bytes are wanted, there are {there}"):
            tensor.read()


@pytest.mark.parametrize(
    ("members", "method", "says"),
    [
        ({"byteorder": b"big"}, 0, "another byte order"),
        ({"other/data.pkl": b"."}, 0, "without one data.pkl"),
        ({"x": b"1"}, zipfile.ZIP_DEFLATED, "packed in a way that torch does not write"),
    ],
)
def test_an_archive_of_torch_is_held_against_what_torch_writes(
    members: dict[str, bytes], method: int, says: str, tmp_path: Path
) -> None:
    path = torch_file(tmp_path / "w.pth", _of(0, (8,), (1,)), members, method)
    with pytest.raises(DataError, match=rf"w\.pth: .*({says})"):
        read_weights(path, LoadOptions(VIT))


@pytest.mark.parametrize(
    "views",
    [
        {"norm.bias": torch.arange(40.0)[8:16]},
        {"norm.bias": torch.arange(8.0).flip(0)},
        {"head.weight": torch.rand(8, 3).T},
        {"norm.bias": torch.ones(1).expand(8)},
        {"norm.bias": torch.nn.Parameter(torch.arange(8.0))},
        {"norm.weight": torch.arange(8), "norm.bias": torch.arange(8).half()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saves_is_read_as_torch_reads_it(views: dict[str, Any], zipped: bool, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": STATE | views, "args": {"lr": 0.1}}, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped
    )
    theirs = torch.load(tmp_path / "w.pt", weights_only=True)["state_dict"]
    ours = read_weights(tmp_path / "w.pt", LoadOptions(VIT)).state
    assert all(torch.equal(ours[name], tensor.float()) for name, tensor in theirs.items())


def test_every_instruction_of_pickles_is_known_or_refused_by_name() -> None:
    from vit_dist.core.pickles import _STEPS, _VALUES

    left = {one.name for one in pickletools.opcodes} - {*_STEPS, *_VALUES}
    assert left == {
        *("EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "PERSID", "DUP", "NEXT_BUFFER", "READONLY_BUFFER")
    }
