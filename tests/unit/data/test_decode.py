"""Decoding: every usual format as Pillow reads it; what is not a whole image is a DecodeError and nothing else."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from vit_dist.data.decode import DecodeError, decode, resize

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("form", "mode"),
    [
        (form, mode)
        for form in ("PNG", "BMP", "TIFF", "WEBP", "GIF")
        for mode in ("RGB", "L", "P", "LA", "RGBA", "1")
        # Pillow does not write it.
        if (form, mode) != ("BMP", "LA")
    ],
)
def test_lossless_formats_and_modes_give_the_pixels_of_pillow(form: str, mode: str) -> None:
    image = Image.fromarray(PIXELS).convert(mode)
    options = {"lossless": True} if form == "WEBP" else {}
    content = encode(image, form, **options)
    found = decode(content)
    assert found.dtype == torch.uint8
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
    if mode in {"LA", "RGBA"}:
        assert found.shape == expected.shape  # decoders differ on the colour under transparency
    else:
        assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_of_every_kind_are_near_to_pillow(mode: str, progressive: bool) -> None:
    smooth = Image.fromarray(PIXELS).resize((6, 5)).resize((61, 47)).convert(mode)
    content = encode(smooth, "JPEG", quality=95, progressive=progressive)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)
    found = decode(content)
    assert found.dtype == torch.uint8
    assert np.abs(found.numpy().astype(int) - expected).mean() < 3


def test_sixteen_bits_a_channel_become_eight() -> None:
    deep = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    found = decode(encode(Image.fromarray(deep), "PNG"))
    assert found.dtype == torch.uint8
    assert found.shape == (3, 20, 30)
    assert np.abs(found[0].numpy().astype(int) - deep // 257).max() <= 1


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_photos_are_not_turned_as_their_exif_says_whatever_decodes_them(form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned, plain = (encode(Image.fromarray(PIXELS), form, **options) for options in ({"exif": exif}, {}))
    assert turned != plain
    assert torch.equal(decode(turned), decode(plain))


@pytest.mark.parametrize(
    "content", [b"", b"x", b"not an image", b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", bytes(999)]
)
def test_what_is_no_image_is_a_decode_error_that_always_says_the_same(content: bytes) -> None:
    with pytest.raises(DecodeError) as error:
        decode(content)
    assert " at 0x" not in str(error.value)


FILES = {form: encode(Image.fromarray(PIXELS), form) for form in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")}


@given(st.sampled_from(sorted(FILES)), st.data())
@settings(max_examples=300)
def test_a_damaged_file_is_an_image_or_a_decode_error(form: str, data: st.DataObject) -> None:
    content = bytearray(FILES[form])
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=4)):
        content[place] ^= data.draw(st.integers(1, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    try:
        found = decode(bytes(content))
    except DecodeError:
        return
    assert found.dtype == torch.uint8
    assert found.ndim == 3
    assert found.shape[0] == 3


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (40, 30), (64, 64), (65, 64), (333, 290)])
@pytest.mark.parametrize("lie", ["pixels", "a crop of pixels", "planes"])
def test_a_resize_has_the_bits_of_torchvision(shape: tuple[int, int], lie: str) -> None:
    height, width = shape
    pixels = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (height + 5, width + 7, 3), dtype=np.uint8))
    image = pixels[3 : 3 + height, 2 : 2 + width]
    image = {
        "pixels": image.contiguous().permute(2, 0, 1),
        "a crop of pixels": image.permute(2, 0, 1),
        "planes": image.permute(2, 0, 1).contiguous(),
    }[lie]
    for size in ([64, 64], [50, 131]):
        expected = tv.resize(image.contiguous(), size, interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
        assert torch.equal(resize(image, *size), expected)


def test_what_stands_between_segments_of_a_jpeg_is_passed_over_in_a_view_of_memory_too() -> None:
    content = encode(Image.fromarray(PIXELS), "JPEG")
    behind_jfif = 20
    odd = content[:behind_jfif] + b"\0\1\2" + content[behind_jfif:]
    for form in (odd, memoryview(odd), memoryview(bytearray(odd))):
        assert torch.equal(decode(form), decode(content))
    with pytest.raises(DecodeError, match="truncated"):
        decode(memoryview(odd[: behind_jfif + 2]))
