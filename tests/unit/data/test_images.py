"""What counts as an image, and how its bytes become 8-bit pixels: the rules of docs/data.md, one by one."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms.v2 import functional as tv

from vit_dist.config.augment import AugmentConfig
from vit_dist.data.augment import Augment
from vit_dist.data.decode import centre, decode, squash
from vit_dist.data.describe import size_of
from vit_dist.data.images import FORMATS, MAX_SCANS, MAX_SIDE, DecodeError, load
from vit_dist.data.members import IMAGE_EXTENSIONS
from vit_dist.data.pack.shards import BadImageError, ImageOptions, check_image

PIXELS: NDArray[np.uint8] = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
RAMP: NDArray[np.uint16] = np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16)


def encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def photo(**options: object) -> bytes:
    return encode(Image.fromarray(PIXELS), "JPEG", **options)


def with_preview(jpeg: bytes) -> bytes:
    """With a small JPEG, its end marker included, in an APP1 segment, as cameras put it there."""
    preview = b"Exif\0\0" + photo(quality=5)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(preview) + 2) + preview + jpeg[2:]


JPEGS = {
    "baseline": photo(),
    "progressive": photo(progressive=True),
    "restarts": photo(restart_marker_blocks=2),
    "grey": encode(Image.fromarray(PIXELS).convert("L"), "JPEG"),
    "one colour": encode(Image.new("RGB", (30, 40), "blue"), "JPEG", optimize=True),
    "preview": with_preview(photo()),
}
VIDEO = b"\0\0\0\x18ftypmp42" + bytes(np.random.default_rng(1).integers(0, 256, 4000, dtype=np.uint8))
TAILS = {
    "padding": bytes(512),
    "one byte": b"\0",
    "text": b"vendor trailer " * 10,
    "video": VIDEO,
    "video with an end marker": VIDEO[:300] + b"\xff\xd9" + VIDEO[300:],
    "another picture": photo(quality=20),
    "another picture, padded": photo(quality=20) + bytes(64),
    "many marks": b"\xff" * 100,
}


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("kind", JPEGS)
def test_what_follows_a_jpeg_is_no_part_of_it(kind: str, tail: str) -> None:
    content = JPEGS[kind] + TAILS[tail]
    assert torch.equal(decode(content), decode(JPEGS[kind]))
    assert check_image(content, ImageOptions()) == (content, "jpg")


def test_a_jpeg_with_more_pictures_is_its_first() -> None:
    first = Image.fromarray(PIXELS)
    content = encode(first, "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert Image.open(io.BytesIO(content)).format == "MPO"
    assert decode(content).shape == (3, 40, 30)
    assert size_of(content) == (30, 40, "JPEG")


CUT_TAILS = {
    "": b"",
    "padding": bytes(700),
    "text with an end marker": b"text\xff\xd9text",
    "another": photo(quality=20),
}


@pytest.mark.parametrize("tail", CUT_TAILS)
@pytest.mark.parametrize("part", [0.2, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts", "grey", "preview"])
def test_a_jpeg_that_was_cut_off_is_bad_whatever_came_to_lie_behind_it(kind: str, part: float, tail: str) -> None:
    begin = JPEGS[kind].rindex(b"\xff\xda") + 14 if kind != "progressive" else 200
    cut = begin + int(part * (len(JPEGS[kind]) - 2 - begin))
    content = JPEGS[kind][:cut] + CUT_TAILS[tail]
    with pytest.raises(DecodeError):
        decode(content)
    with pytest.raises(BadImageError):
        check_image(content, ImageOptions())


def test_a_jpeg_cut_off_inside_its_preview_is_bad() -> None:
    content = JPEGS["preview"]
    cut = content.index(b"\xff\xd9") + 2
    for tail in (b"", bytes(99)):
        with pytest.raises(DecodeError, match="truncated"):
            decode(content[:cut] + tail)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "restarts", "grey", "one colour", "preview"])
def test_the_pixels_of_a_jpeg_are_those_of_torchvision(kind: str) -> None:
    data = torch.frombuffer(bytearray(JPEGS[kind]), dtype=torch.uint8)
    assert torch.equal(decode(JPEGS[kind]), decode_jpeg(data, mode=ImageReadMode.RGB))


@pytest.mark.parametrize("marker", [0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE])
def test_damage_in_the_metadata_of_a_jpeg_does_not_matter(marker: int) -> None:
    for junk in (
        b"",
        b"\0",
        b"Adobe",
        b"JFIF",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"MPF\0junk",
        b"ICC_PROFILE\0",
        b"Photoshop 3.0\0",
    ):
        content = JPEGS["baseline"][:2] + bytes([0xFF, marker]) + struct.pack(">H", len(junk) + 2) + junk
        content += JPEGS["baseline"][2:]
        assert torch.equal(decode(content), decode(JPEGS["baseline"]))
        for options in (ImageOptions(), ImageOptions(upright=True)):
            assert check_image(content, options) == (content, "jpg")


def png(width: int, height: int, bits: int, colour: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def tiff(pixels: bytes, size: tuple[int, int], order: str, **tags: int | list[int]) -> bytes:
    """A TIFF of one strip. Tags by name: bits, photometric, samples, signed_or_float."""
    numbers = {"bits": 258, "photometric": 262, "samples": 277, "signed_or_float": 339}
    values = {256: size[0], 257: size[1], 259: 1, 273: 8, 278: size[1], 279: len(pixels)}
    entries = {**values, **{numbers[name]: value for name, value in tags.items()}}
    table, rest = b"", b""
    after = 8 + len(pixels) + 2 + 12 * len(entries) + 4
    for tag, value in sorted(entries.items()):
        if isinstance(value, list):
            table += struct.pack(order + "HHII", tag, 3, len(value), after + len(rest))
            rest += struct.pack(f"{order}{len(value)}H", *value)
        else:
            table += struct.pack(order + "HHII", tag, 4, 1, value)
    begins = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(pixels))
    return begins + pixels + struct.pack(order + "H", len(entries)) + table + bytes(4) + rest


def rgb_rows(order: str) -> bytes:
    return np.repeat(RAMP[:, :, None], 3, axis=2).astype(order + "u2").tobytes()


def packed_twelve_bits() -> bytes:
    pairs = (RAMP >> 4).astype(np.uint32).reshape(-1, 2)
    return b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs)


DEEP = {
    "PNG": encode(Image.fromarray(RAMP), "PNG"),
    "PNG, RGB": png(64, 48, 16, 2, b"".join(b"\0" + row.tobytes() for row in np.repeat(RAMP, 3, axis=1).astype(">u2"))),
    "PNG, grey with alpha": png(
        64, 48, 16, 4, b"".join(b"\0" + row.tobytes() for row in np.repeat(RAMP, 2, axis=1).astype(">u2"))
    ),
    "TIFF": encode(Image.fromarray(RAMP), "TIFF"),
    "TIFF, deflate": encode(Image.fromarray(RAMP), "TIFF", compression="tiff_deflate"),
    "TIFF, big-endian": tiff(RAMP.astype(">u2").tobytes(), (64, 48), ">", bits=16, photometric=1),
    "TIFF, RGB": tiff(rgb_rows("<"), (64, 48), "<", bits=[16] * 3, photometric=2, samples=3),
    "TIFF, RGB, big-endian": tiff(rgb_rows(">"), (64, 48), ">", bits=[16] * 3, photometric=2, samples=3),
    "TIFF, white is zero": tiff((~RAMP).astype("<u2").tobytes(), (64, 48), "<", bits=16, photometric=0),
    "TIFF, 12 bits": tiff(packed_twelve_bits(), (64, 48), "<", bits=12, photometric=1),
    "PGM": b"P5 64 48 65535\n" + RAMP.astype(">u2").tobytes(),
    "PGM, 10 bits": b"P5 64 48 1023\n" + (RAMP >> 6).astype(">u2").tobytes(),
    "PGM, text": b"P2 64 48 65535\n" + b" ".join(b"%d" % n for n in RAMP.ravel()),
    "PPM": b"P6 64 48 65535\n" + rgb_rows(">"),
}


@pytest.mark.parametrize("form", DEEP)
def test_a_ramp_of_more_than_8_bits_keeps_its_greys_in_training_and_when_packed_anew(form: str) -> None:
    trained = decode(DEEP[form]).numpy()
    assert trained.shape == (3, 48, 64)
    assert np.abs(trained.astype(int) - (RAMP >> 8)).max() <= 1
    for options in (ImageOptions(quality=95), ImageOptions(resize_shorter=24), ImageOptions(resize_longer=32)):
        content, extension = check_image(DEEP[form], options)
        assert extension == "jpg"
        grey = np.asarray(Image.open(io.BytesIO(content)).convert("L"), float)
        assert abs(grey.mean() - 127.5) < 2
        assert (grey[0].mean(), grey[-1].mean()) == pytest.approx((1.3, 253.7), abs=4)


NO_BLACK_AND_WHITE = {
    "TIFF, 32-bit": tiff((RAMP.astype("<u4") * 65536).tobytes(), (64, 48), "<", bits=32, photometric=1),
    "TIFF, small 32-bit": encode(Image.fromarray(RAMP.astype(np.int32) >> 8), "TIFF"),
    "TIFF, signed 16-bit": tiff(RAMP.tobytes(), (64, 48), "<", bits=16, photometric=1, signed_or_float=2),
    "TIFF, signed 16-bit, big-endian": tiff(RAMP.tobytes(), (64, 48), ">", bits=16, photometric=1, signed_or_float=2),
    "TIFF, float": encode(Image.fromarray((RAMP / 65535).astype(np.float32)), "TIFF"),
    "TIFF, float of 0 to 255": encode(Image.fromarray((RAMP / 257).astype(np.float32)), "TIFF"),
    "PFM": b"Pf\n64 48\n-1.0\n" + (RAMP / 65535).astype("<f4").tobytes(),
}


@pytest.mark.parametrize("form", NO_BLACK_AND_WHITE)
def test_pixels_without_a_known_black_and_white_are_refused_and_named(form: str) -> None:
    with pytest.raises(DecodeError, match=r"(floating-point numbers|signed or 32-bit integers).*write it with 8 or 16"):
        decode(NO_BLACK_AND_WHITE[form])
    for options in (ImageOptions(), ImageOptions(quality=90), ImageOptions(resize_shorter=24)):
        with pytest.raises(BadImageError, match="no known black and white"):
            check_image(NO_BLACK_AND_WHITE[form], options)


def transparent(mode: str, form: str, **options: object) -> bytes:
    alpha = np.random.default_rng(1).integers(0, 256, (40, 30, 1), dtype=np.uint8)
    return encode(Image.fromarray(np.concatenate([PIXELS, alpha], axis=2)).convert(mode), form, **options)


PALETTE = Image.fromarray(PIXELS).quantize(16)
SEE_THROUGH = {
    "PNG, RGBA": transparent("RGBA", "PNG"),
    "PNG, LA": transparent("LA", "PNG"),
    "PNG, palette, one colour": encode(PALETTE, "PNG", transparency=3),
    "PNG, palette, alphas": encode(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "PNG, RGB, one colour": encode(Image.fromarray(PIXELS), "PNG", transparency=(1, 2, 3)),
    "GIF": encode(PALETTE, "GIF", transparency=2),
    "WEBP": transparent("RGBA", "WEBP", lossless=True, exact=True),
    "TIFF": transparent("RGBA", "TIFF"),
    "BMP": transparent("RGBA", "BMP"),
}


@pytest.mark.parametrize("form", SEE_THROUGH)
def test_the_colours_beneath_transparency_are_taken_as_they_are_stored(form: str) -> None:
    image = Image.open(io.BytesIO(SEE_THROUGH[form])).convert("RGBA")
    expected = np.asarray(image)[:, :, :3].transpose(2, 0, 1)
    assert np.array_equal(decode(SEE_THROUGH[form]).numpy(), expected)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(form: str) -> None:
    frames = [Image.new("RGB", (9, 7), colour) for colour in ("red", "lime", "blue")]
    content = encode(frames[0], form, save_all=True, append_images=frames[1:])
    assert np.abs(decode(content).numpy().reshape(3, -1).mean(1) - [255, 0, 0]).max() < 3


def test_adobe_s_inverted_inks_are_the_colours_that_they_mean() -> None:
    for colour in ("red", "lime", "blue", "white", "black", "gray"):
        content = encode(Image.new("RGB", (16, 16), colour).convert("CMYK"), "JPEG", quality=95)
        expected = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        assert np.abs(decode(content).numpy().reshape(3, -1).mean(1) - expected).max() < 4
        assert np.abs(np.asarray(load(content).image).reshape(-1, 3).mean(0) - expected).max() < 4


OTHERS = {form: encode(Image.fromarray(PIXELS), form) for form in ("ICO", "TGA", "PCX", "DDS", "SGI", "JPEG2000")}
OTHERS["EPS"] = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
OTHERS["PSD"] = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 8, 8, 8, 3) + bytes(14 + 3 * 64)
OTHERS["XPM"] = b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #ff0000", "a"};'


@pytest.mark.parametrize("form", OTHERS)
def test_no_format_outside_the_list_is_opened(form: str) -> None:
    with pytest.raises(DecodeError, match=r"^not an image of a known format$"):
        decode(OTHERS[form])
    with pytest.raises(BadImageError, match=r"^not an image of a known format$"):
        check_image(OTHERS[form], ImageOptions())
    assert size_of(OTHERS[form]) is None


def test_the_extensions_of_members_are_those_of_the_formats() -> None:
    assert {e for names in FORMATS.values() for e in names} == IMAGE_EXTENSIONS


def resized_header(jpeg: bytes, width: int, height: int) -> bytes:
    frame = jpeg.index(b"\xff\xc0") if b"\xff\xc0" in jpeg else jpeg.index(b"\xff\xc2")
    return jpeg[: frame + 5] + struct.pack(">HH", height, width) + jpeg[frame + 9 :]


HUGE = {
    "JPEG": resized_header(JPEGS["baseline"], 65500, 65500),
    "JPEG, progressive": resized_header(JPEGS["progressive"], 14000, 14000),
    "JPEG, padded": resized_header(JPEGS["grey"], 60000, 3000) + bytes(99),
    "PNG": png(65500, 65500, 8, 2, b""),
    "GIF": b"GIF89a"
    + struct.pack("<HH", 65535, 65535)
    + b"\0\0\0,"
    + struct.pack("<HHHHB", 0, 0, 9, 9, 0)
    + b"\2\1\0\0;",
    "BMP": b"BM" + struct.pack("<IHHIIiiHHIIiiII", 60, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
    "TIFF": tiff(b"\0\0", (60000, 60000), "<", bits=8, photometric=1),
    "PPM": b"P6 20000 20000 255\n",
}


@pytest.mark.parametrize("form", HUGE)
def test_too_many_pixels_are_refused_by_the_header_whatever_decodes_them(form: str) -> None:
    for use in (decode, load):
        with pytest.raises(DecodeError, match="178,956,970"):
            use(HUGE[form])
    with pytest.raises(BadImageError, match="178,956,970"):
        check_image(HUGE[form], ImageOptions())


@pytest.mark.parametrize("size", [(MAX_SIDE + 1, 1), (1, MAX_SIDE + 1), (100_000_000, 1)])
def test_a_side_of_more_than_a_million_pixels_is_refused_though_it_is_thin(size: tuple[int, int]) -> None:
    for content in (png(*size, 1, 0, b""), b"P4 %d %d\n" % size, tiff(b"", size, "<", bits=8, photometric=1)):
        for use in (decode, load):
            with pytest.raises(DecodeError, match="1,048,576"):
                use(content)


@pytest.mark.parametrize("tail", [b"", bytes(512)], ids=["its end", "padding"])
def test_a_jpeg_of_more_scans_than_any_needs_is_refused_whatever_decodes_it(tail: bytes) -> None:
    """14 bytes are a scan here, and time enough to decode the picture once more."""
    whole = encode(Image.new("RGB", (64, 64), "blue"), "JPEG", progressive=True)
    scans = whole.count(b"\xff\xda")
    last = whole[whole.rindex(b"\xff\xda") : -2]
    for more, is_read in ((MAX_SCANS - scans, True), (MAX_SCANS - scans + 1, False)):
        content = whole[:-2] + more * last + whole[-2:] + tail
        if is_read:
            assert torch.equal(decode(content), decode(whole))
            assert load(content).image.size == (64, 64)
            continue
        for use in (decode, load):
            with pytest.raises(DecodeError, match="a JPEG of 101 scans: more than the 100 that it may have"):
                use(content)


@pytest.mark.parametrize("shape", [(1, 8000), (8000, 1), (3, 30_000), (30_000, 2), (1, 1_000_000), (1_000_000, 1)])
def test_views_of_long_images_take_memory_by_what_goes_in_and_comes_out(shape: tuple[int, int]) -> None:
    image = torch.full((3, *shape), 7, dtype=torch.uint8)
    for config in (AugmentConfig(crop="none"), AugmentConfig(crop="flip"), AugmentConfig()):
        view = Augment(config, 224, (0.05, 1.0), (0.75, 1.33), 0).apply(image, epoch=0, ordinal=0)
        assert view.shape == (3, 224, 224)
        assert torch.all(view == 7)
    for look in (centre, squash):
        assert torch.all(look(image, 224, 0.875) == 7)
        assert look(image, 224, 0.875).shape == (3, 224, 224)


@pytest.mark.parametrize("shape", [(40, 30), (1, 1), (300, 301), (20, 320), (224, 3000)])
def test_the_middle_of_an_ordinary_image_is_that_of_the_whole_resized_image(shape: tuple[int, int]) -> None:
    image = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, *shape), dtype=np.uint8))
    assert torch.equal(centre(image, 64, 0.875), whole_resized(image))


@pytest.mark.parametrize("shape", [(20, 400), (3, 77), (77, 3), (500, 9), (1, 18), (200, 4001)])
def test_the_middle_of_a_long_image_looks_as_if_the_whole_had_been_resized(shape: tuple[int, int]) -> None:
    image = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, *shape), dtype=np.uint8))
    difference = centre(image, 64, 0.875).int() - whole_resized(image).int()
    assert difference.abs().float().mean() < 3


def whole_resized(image: torch.Tensor) -> torch.Tensor:
    """Evaluation's view by its definition, at 64 pixels."""
    scale = 73 / min(image.shape[1:])
    tall, wide = (max(64, round(n * scale)) for n in image.shape[1:])
    whole = tv.resize(image, [tall, wide], interpolation=tv.InterpolationMode.BILINEAR, antialias=True)
    return whole[:, (tall - 64) // 2 : (tall - 64) // 2 + 64, (wide - 64) // 2 : (wide - 64) // 2 + 64]
