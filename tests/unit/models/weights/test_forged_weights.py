"""Files of weights that were forged: refused by what they say of themselves, before a value takes memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib import format as npy

from tests.plugins import model_config
from vit_dist.core.errors import DataError, VitDistError
from vit_dist.core.npz import open_arrays
from vit_dist.core.small_files import DamagedError
from vit_dist.models.weights.adapt import shapes_of
from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, write_weights

VIT = model_config("vit-test", patch_size=8, width=8, depth=1)
STATE = {name: torch.ones(shape) for name, shape in shapes_of(VIT, 3, 32).items()}
GIB = 1 << 30


@pytest.fixture(autouse=True)
def _little_memory() -> Any:
    """Nothing here may take 100 MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def hole(path: Path, content: bytes, size: int) -> Path:
    """A file of this size, of which the end takes no place on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.truncate(size)
    return path


def safetensors(path: Path, change: Callable[[dict[str, Any]], Any], size: int | None = None) -> Path:
    """A whole file whose header is changed, padded with a hole to `size`."""
    write_weights(Weights(STATE, VIT, 3, 32), path)
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    return hole(
        path, len(text).to_bytes(8, "little") + text + content[end:], size or len(text) + 8 + len(content) - end
    )


def _entry(name: str = "norm.bias", **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda header: header[name].update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_entry(shape=[768]), r"norm\.bias: its shape \[768\] of F32 takes 3,072 bytes, it has 32"),
        (_entry(shape=[2**50]), r"norm\.bias: its shape .* takes 4,503,599,627,370,496 bytes, it has 32"),
        (_entry(shape=[-8]), r"norm\.bias: has the shape \[-8\], which is none"),
        (_entry(shape=[True] * 8), "has the shape"),
        (_entry(shape=[1] * 40), "has the shape"),
        (_entry(dtype="F16"), "takes 16 bytes, it has 32"),
        (_entry(dtype="O"), r'norm\.bias: dtype="O"; known: F64'),
        (_entry(dtype=["F32"]), r'norm\.bias: dtype=\["F32"\]'),
        (_entry(data_offsets=[-32, 0]), r"norm\.bias: data_offsets=\[-32, 0\]; expected two whole numbers"),
        (_entry(data_offsets=[0, 32]), "tensors lie one behind the other"),
        (_entry(data_offsets=[2**52, 2**52 + 32]), "tensors lie one behind the other"),
        (_entry(data_offsets=[0.0, 32.0]), "data_offsets"),
        (_entry(data_offsets="0"), "data_offsets"),
        (_entry(extra=1), r"norm\.bias: .*; expected dtype, shape and data_offsets"),
        (lambda header: header.pop("norm.bias"), "tensors lie one behind the other|its tensors take"),
        (lambda header: header.update({"norm.bias": [1]}), "expected dtype, shape and data_offsets"),
        (lambda header: header.update(__metadata__={"a": 1}), "__metadata__: .*; expected texts"),
        (lambda _: "[" * 100_000, "nested too deeply|nested more than"),
        (lambda _: '{"a": NaN}', "NaN is no number"),
        (lambda _: '{"a": ' + "9" * 5000 + "}", "a number of 5,000 digits"),
        (lambda header: json.dumps(header)[:-1] + ', "norm.bias": {}}', '"norm.bias" stands twice'),
        (lambda _: "7", "its header is no JSON object"),
    ],
)
def test_a_header_is_held_against_the_bytes_that_are_there(change: Any, says: str, tmp_path: Path) -> None:
    path = safetensors(tmp_path / "w.safetensors", change)
    with pytest.raises(DataError, match=rf"w\.safetensors: not a whole safetensors file: .*({says})") as caught:
        read_weights(path, LoadOptions(VIT))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("claimed", [2**63, 2**40, 100 << 20, 0])
def test_a_header_of_any_length_takes_no_memory(claimed: int, tmp_path: Path) -> None:
    path = hole(tmp_path / "w.safetensors", struct.pack("<Q", claimed), 1 << 30)
    with pytest.raises(DataError, match="not a whole safetensors file"):
        read_weights(path, LoadOptions(VIT))


@pytest.mark.parametrize("name", ["norm.bias", "head.bias", "head.weight", "pos_embed", "blocks.0.mlp.fc1.weight"])
@pytest.mark.parametrize("head", ["keep", "new"])
def test_a_tensor_far_larger_than_the_model_wants_is_refused_or_left_where_it_is(
    name: str, head: Any, tmp_path: Path
) -> None:
    # Truly that large, though a hole takes no place on the disk.
    many = 25 * GIB
    ends = []

    def swell(header: dict[str, Any]) -> None:
        metadata, moved = header.pop("__metadata__"), 0
        for key, one in header.items():
            begin, end = one["data_offsets"]
            if key == name:
                one["shape"] = (
                    [*one["shape"][:-2], many // one["shape"][-1], one["shape"][-1]] if "w" in key else [many]
                )
                one["shape"] = [1, many // 8, 8] if key == "pos_embed" else one["shape"]
            size = 4 * int(np.prod(one["shape"])) if key == name else end - begin
            one["data_offsets"] = [begin + moved, begin + moved + size]
            moved += size - (end - begin)
        ends.append(max(one["data_offsets"][1] for one in header.values()))
        header["__metadata__"] = metadata
        ends.append(8 + len(json.dumps(header)))

    safetensors(tmp_path / "w.safetensors", swell)
    path = safetensors(tmp_path / "w.safetensors", swell, ends[0] + ends[1])
    assert path.stat().st_size > 100 * GIB
    options = LoadOptions(VIT, num_classes=2 if head == "new" else None, head=head)
    if head == "new" and name.startswith("head"):
        assert read_weights(path, options).state["head.bias"].shape == (2,)
    else:
        with pytest.raises(
            DataError,
            match=r"w\.safetensors: (not the weights of|has 26,843,545,600|.*too many|.*its positions are for)",
        ):
            read_weights(path, options)


def _npz(path: Path, **members: tuple[bytes, int]) -> Path:
    """A whole .npz, some of whose members are replaced by (bytes, method)."""
    write_weights(Weights(STATE, VIT, 3, 32), path)
    with zipfile.ZipFile(path) as archive:
        whole = {name.removesuffix(".npy"): (archive.read(name), zipfile.ZIP_STORED) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, (content, method) in {**whole, **{k.replace("__", "/"): v for k, v in members.items()}}.items():
            archive.writestr(f"{name}.npy", content, method)
    return path


def _header(shape: tuple[int, ...], dtype: str = "<f4") -> bytes:
    buffer = io.BytesIO()
    npy.write_array_header_2_0(buffer, {"descr": dtype, "fortran_order": False, "shape": shape})
    return buffer.getvalue()


def _zeros(shape: tuple[int, ...]) -> tuple[bytes, int]:
    return _header(shape) + bytes(4 * int(np.prod(shape))), zipfile.ZIP_DEFLATED


@pytest.mark.parametrize(
    ("member", "says"),
    [
        ((_header((25 * GIB,)), 0), "takes 107,374,182,400 bytes, it has 0"),
        ((_header((-1,)), 0), "has the shape"),
        ((_header((2**40, 0)), 0), "has the shape .* which no weight has"),
        (_zeros((3, 3)), "head/bias has the shape 3x3|head.bias is 3x3, not 3"),
        (_zeros((4000,)), "4,000 classes|head.bias is 4000|head.weight is 3x8, not 4000x8"),
        (_zeros(()), "head.bias is a number"),
        ((b"\x93NUMPY\x02\x00\xff\xff\xff\xff", 0), "no array of numpy"),
        ((b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 20_000_000, zipfile.ZIP_DEFLATED), "no array of numpy"),
        ((_header((3,), "|O") + pickle.dumps([1, 2, 3]), 0), "holds Python objects, which are never read"),
        ((_header((3,), "<c8") + bytes(24), 0), "holds values of type complex64"),
        ((_header((3,)) + bytes(12), zipfile.ZIP_BZIP2), "packed in a way that numpy does not write"),
    ],
)
def test_an_archive_is_held_against_its_bytes_and_the_model(
    member: tuple[bytes, int], says: str, tmp_path: Path
) -> None:
    path = _npz(tmp_path / "w.npz", head__bias=member)
    with pytest.raises(DataError, match=rf"w\.npz: .*({says})") as caught:
        read_weights(path, LoadOptions(VIT))
    assert "pickle" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["Transformer/encoderblock_0/x", "Transformer/encoderblock/x", "Transformer/encoderblock_9", "x" * 900, "a\nb"],
)
def test_an_array_of_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    path = _npz(tmp_path / "w.npz", **{name: (_header((2,)) + bytes(8), 0)})
    with pytest.raises(DataError, match=r"w\.npz: .*(too many|no weight has)") as caught:
        read_weights(path, LoadOptions(VIT))
    assert len(str(caught.value)) < 600


def test_an_array_that_would_unfold_to_a_thousand_times_its_size_is_not_unfolded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", _header((1 << 20,)) + bytes(4 << 20))
    with open_arrays(buffer) as arrays:
        assert not arrays.read("a").any()
    # What is smaller than this is unfolded whatever it shrank to.
    monkeypatch.setattr("vit_dist.core.npz._ALWAYS_UNFOLDED_BYTES", 4 << 20)
    with pytest.raises(DamagedError, match=r"a: would unfold from [\d,]+ bytes to 4,194,\d+"), open_arrays(buffer):
        pass


def test_a_list_of_members_that_says_it_is_large_is_not_read() -> None:
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 65_535, 65_535, 1 << 30, 0, 0)
    with pytest.raises(DamagedError, match=r"list of members|no archive"), open_arrays(_Endless(end)):
        pass


class _Endless(io.BytesIO):
    """A file whose beginning is a GiB of zeros that nobody may read at once."""

    def seek(self, to: int, whence: int = 0) -> int:
        return super().seek(to if whence else max(0, to - GIB), whence) + GIB

    def tell(self) -> int:
        return super().tell() + GIB

    def read(self, size: int | None = -1) -> bytes:
        assert size is not None
        assert size <= 8 << 20
        return super().read(size)


def test_a_flipped_byte_of_a_tensor_is_noticed(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "w.pth")
    write_weights(Weights(STATE, VIT, 3, 32), tmp_path / "w.npz")
    for path in (tmp_path / "w.pth", tmp_path / "w.npz"):
        content = bytearray(path.read_bytes())
        content[content.rindex(struct.pack("<f", 1.0) * 4)] ^= 64
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"not a whole .*CRC"):
            read_weights(path, LoadOptions(VIT))


@pytest.mark.parametrize("name", ["w.npz", "w.safetensors", "w.pth"])
def test_a_pipe_or_a_folder_is_not_waited_for(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(VitDistError, match=r"w\.\w+: (no such file|not a regular file)"):
        read_weights(tmp_path / name, LoadOptions(VIT))
    write_weights(Weights(STATE, VIT, 3, 32), tmp_path / "hf")
    (tmp_path / "hf/config.json").rename(tmp_path / "config.json")
    os.mkfifo(tmp_path / "hf/config.json")
    with pytest.raises(DataError, match=r"hf: no folder of Hugging Face: config\.json: not a regular file"):
        read_weights(tmp_path / "hf")
    (tmp_path / "hf/config.json").unlink()
    (tmp_path / "config.json").rename(tmp_path / "hf/config.json")
    os.mkfifo(tmp_path / "hf/more.safetensors")
    with pytest.raises(DataError, match=r"more\.safetensors: not a regular file"):
        read_weights(tmp_path / "hf")
