"""What counts as an image, and how its bytes become 8-bit pixels: packing, checks and training all ask here. No torch.

One list of formats, one bound on pixels, one rule of conversion, so that an image which was packed is one that is
trained on, and one that is left out here is left out everywhere. Only the pixels of a JPEG are made twice: by Pillow
here, by torchvision, which is faster, in `decode.py`; both after `check_jpeg`, and both by libjpeg-turbo.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

FORMATS = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png",),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm"),
}
"""Pillow's name of each format that is read, and the file extensions it goes by; the first is that of its members."""

MAX_PIXELS = 178_956_970
"""The largest image, width times height: where Pillow itself speaks of a decompression bomb. 537 MB of 8-bit RGB."""

MAX_SIDE = 1 << 20
"""The longest side: what resizing needs grows with it, by some 50 bytes a pixel."""

MAX_SCANS = 100
"""Of a JPEG: each takes as long as its whole picture does, and 14 bytes. As many as cjpeg writes, and libtiff reads."""

JPEG_BEGINS = b"\xff\xd8\xff"
_JPEG_END, _SCAN_BEGINS = b"\xff\xd9", b"\xff\xda"
_ORIENTATION = 0x0112
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262

# Markers of JPEG (ITU-T T.81, table B.1). Frames that libjpeg-turbo decodes: baseline, extended, progressive, and the
# latter two with arithmetic coding.
_FRAMES = frozenset([0xC0, 0xC1, 0xC2, 0xC9, 0xCA])
_SCAN, _RESTARTS, _JFIF, _ADOBE, _COMMENT = 0xDA, 0xDD, 0xE0, 0xEE, 0xFE
_APPLICATION = range(0xE0, 0xF0)
# Shorter ones libjpeg does not look at.
_COLOUR_BYTES = 16
# Without a length: TEM, and restarts. 0 is no marker but a byte 0xFF that stands for itself.
_ALONE = frozenset([0x00, 0x01, *range(0xD0, 0xD8)])
# Huffman, arithmetic and quantization tables, scan, number of lines, restart interval, APPn, comment.
_SEGMENTS = _FRAMES | {0xC4, 0xCC, 0xDB, _SCAN, 0xDC, _RESTARTS, *_APPLICATION, _COMMENT}
# Inside a scan 0xFF is followed by 0, by the number of a restart, or by the 0xFF of a marker that it fills.
_PROGRESSIVE = frozenset([0xC2, 0xCA])
_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# No marker among them, whatever stands before.
_FILLING = b"\0" + bytes((89 + 167 * i) % 255 for i in range(64))
# Some encoders leave a few bytes before the end marker.
_SLACK, _LARGE_SLACK = 32, 1024
_LARGE_SCAN = 1 << 16

_NO_BYTES = "the image has no bytes"
_DAMAGED = "the JPEG is damaged: {}"
_TRUNCATED = "the JPEG is truncated: it has no end marker"


class DecodeError(Exception):
    """The bytes are not a whole image, or not one that is read. Where training meets it, it replaces the sample."""


@dataclass(frozen=True)
class Loaded:
    """An image whose pixels are all there.

    Attributes:
        image: of Pillow, in mode L or RGB.
        form: of its file, a key of FORMATS.
        turned: it lay on its side, and was turned.
    """

    image: Any
    form: str
    turned: bool


@dataclass(frozen=True)
class _Segment:
    """A marker of a JPEG's header with what belongs to it: bytes [begin, end) of the file."""

    marker: int
    begin: int
    end: int


def check_jpeg(content: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Refuse what decoders make an image of without a word: a JPEG without its end, or of any size.

    What follows the end is no part of it: cameras and phones put padding, more pictures or whole videos there.

    Returns:
        Height and width in pixels, as it is stored.

    Raises:
        DecodeError: damaged, cut off, too large, or of a kind that is not read.
    """
    height, width, has_more_scans = _jpeg_header(content)
    # Mostly it is the file's end. All between is looked at by the decoder.
    if content[-2:] != _JPEG_END or (has_more_scans and bytes(content).count(_SCAN_BEGINS) > MAX_SCANS):
        _plain_jpeg(bytes(content))
    return height, width


def _plain_jpeg(content: bytes) -> tuple[bytes, list[_Segment]]:
    """A JPEG without what Pillow need not see, before and after its picture; and the segments of its header."""
    header: list[_Segment] = []
    _jpeg_header(content, header)
    scans, end = _scans(content, header)
    if len(scans) > MAX_SCANS:
        raise DecodeError(f"a JPEG of {len(scans):,} scans: more than the {MAX_SCANS} that it may have")
    jpeg = b"".join([content[:2], *(content[s.begin : s.end] for s in header if _is_shown(s))])
    jpeg += content[header[-1].end : end]
    if content[-2:] != _JPEG_END:
        frame = next(s for s in header if s.marker in _FRAMES)
        is_progressive = frame.marker in _PROGRESSIVE
        if is_progressive and not _is_refined(content, frame, scans):
            raise DecodeError(_TRUNCATED)
        _check_scan(jpeg, len(jpeg) - (end - scans[-1].end), progressive=is_progressive)
    return jpeg, header


def _is_refined(content: bytes, frame: _Segment, scans: list[_Segment]) -> bool:
    """The scans of a progressive JPEG bring every bit of every coefficient."""
    whole = dict.fromkeys(content[frame.begin + 10 : frame.end : 3], 0)
    for scan in scans:
        *components, first, last, bits = content[scan.begin + 5 : scan.end].rjust(3, b"\0")
        # The low half: how many bits are left for later scans.
        if bits & 0xF == 0 and first <= last < 64:
            for component in components[::2]:
                whole[component] = whole.get(component, 0) | (1 << last + 1) - (1 << first)
    return all(coefficients == (1 << 64) - 1 for coefficients in whole.values())


def _check_scan(jpeg: bytes, scan: int, *, progressive: bool) -> None:
    """Refuse a scan that was cut off and met an end marker among the bytes that came to lie behind it.

    Decoders make grey of what is missing, and say nothing. But they would take what is put there for it, where a whole
    scan needs nothing more, and needs what it has.

    Args:
        jpeg: the picture.
        scan: where the data of its last scan begin.
        progressive: the last scan is a refinement; that it changes no pixel tells nothing.
    """

    data = jpeg[scan : -len(_JPEG_END)]
    # Of a large one, and of more blocks at its end, an eighth of the size is enough.
    is_large = len(data) > _LARGE_SCAN and not progressive
    slack = _LARGE_SLACK if is_large else _SLACK

    def pixels(scan_data: bytes) -> bytes:
        image = _pillow().open(io.BytesIO(jpeg[:scan] + scan_data + _JPEG_END), formats=["JPEG"])
        if is_large:
            image.draft(None, (1, 1))
        try:
            return bytes(image.tobytes())
        except OSError:
            return b""

    found = pixels(data)
    is_short = pixels(data + _FILLING) != found
    # Of one flat colour the tables may know nothing else, whatever the data are.
    is_long = not progressive and pixels(data[:-slack] + _FILLING) == found and pixels(_FILLING) != found
    if is_short or is_long:
        raise DecodeError("the JPEG is truncated: its end marker is not where its picture ends")


def _scans(content: bytes, header: list[_Segment]) -> tuple[list[_Segment], int]:
    """The headers of a JPEG's scans, and where the JPEG ends: not at an end marker inside a preview.

    Markers in its scans count as they do for libjpeg.
    """
    # With restarts it goes on at the next one after a marker that means nothing.
    resumes = any(s.marker == _RESTARTS and any(content[s.begin + 4 : s.end]) for s in header)
    scans, at = [header[-1]], header[-1].end
    while (found := _IN_SCAN.search(content, at)) is not None:
        marker, at = found[0][1], found.end()
        if marker == _JPEG_END[1]:
            return scans, at
        if marker in _SEGMENTS and marker not in _FRAMES:
            begin, at = at - 2, at + max(2, int.from_bytes(content[at : at + 2], "big"))
            if marker == _SCAN:
                scans.append(_Segment(marker, begin, at))
        elif marker not in _ALONE and not (resumes and marker < min(_FRAMES)):
            raise DecodeError(_DAMAGED.format(f"marker 0x{marker:02x} inside its scans"))
    raise DecodeError(_TRUNCATED)


def _jpeg_header(
    content: bytes | bytearray | memoryview, segments: list[_Segment] | None = None
) -> tuple[int, int, bool]:
    """Check the header, up to the data of the first scan; its segments are added to `segments`.

    -> height, width, and whether decoders look for further scans: the first one cannot have brought everything.
    """
    at, frame, size = 2, -1, (0, 0)
    try:
        while True:
            if content[at] != 0xFF:
                # libjpeg leaves out what stands between segments. A view cannot be searched.
                content = content if isinstance(content, bytes | bytearray) else bytes(content)
                at = content.index(0xFF, at)
            marker = content[at + 1]
            if marker in _SEGMENTS:
                end = at + 2 + max(2, content[at + 2] << 8 | content[at + 3])
                if marker in _FRAMES:
                    frame, size = at, _check_frame(content, at)
                if segments is not None:
                    segments.append(_Segment(marker, at, end))
                if marker == _SCAN:
                    if frame < 0:
                        raise DecodeError(_DAMAGED.format("a scan without a frame"))
                    return *size, content[frame + 1] in _PROGRESSIVE or content[at + 4] < content[frame + 9]
                at = end
            elif marker == 0xFF:
                at += 1
            elif marker in _ALONE:
                at += 2
            else:
                raise DecodeError(_DAMAGED.format(f"marker 0x{marker:02x} in its header is none that is read"))
    except (IndexError, ValueError):
        raise DecodeError(_TRUNCATED) from None


def _check_frame(content: bytes | bytearray | memoryview, at: int) -> tuple[int, int]:
    bits, components = content[at + 4], content[at + 9]
    if bits != 8:
        raise DecodeError(f"a JPEG of {bits} bits a sample; only 8 are read")
    if components not in (1, 3, 4):
        raise DecodeError(f"a JPEG of {components} components; only 1, 3 and 4 are read")
    height, width = content[at + 5] << 8 | content[at + 6], content[at + 7] << 8 | content[at + 8]
    _check_size(width, height)
    return height, width


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise DecodeError(f"{width} x {height} pixels are more than the {MAX_PIXELS:,} that an image may have")
    if max(width, height) > MAX_SIDE:
        raise DecodeError(f"{width} x {height} pixels: a side is longer than the {MAX_SIDE:,} that an image's may be")
    if not width or not height:
        raise DecodeError(f"an image of {width} x {height} pixels")


def load(content: bytes | memoryview, *, upright: bool = False, grey_from: int | None = None) -> Loaded:
    """The pixels of an image: of any mode and depth, as 8-bit grey or RGB. The first frame of an animation.

    Args:
        content: of its file.
        upright: turn it as its EXIF orientation says; else only TIFFs are turned, by Pillow.
        grey_from: for a look at it: a JPEG is decoded in grey, and reduced as far as both sides stay this long.

    Raises:
        DecodeError: not a whole image of a known format; too large; pixels without a known black and white.
    """
    if not content:
        raise DecodeError(_NO_BYTES)
    try:
        image, form = _opened(bytes(content))
        _check_size(*image.size)
        if grey_from is not None:
            image.draft("L", (grey_from, grey_from))
        image.load()
        # Some formats know their size only now.
        _check_size(*image.size)
        turn = _turn(image) if upright else None
        eight_bits = _eight_bits(image, form)
        return Loaded(eight_bits if turn is None else eight_bits.transpose(turn), form, turn is not None)
    except (DecodeError, MemoryError):
        # Want of memory is the machine's trouble, not the image's: it must not be counted as broken.
        raise
    except Exception as error:
        # Pillow's plug-ins raise whatever damaged bytes lead to.
        if type(error).__name__ == "UnidentifiedImageError":
            raise DecodeError("not an image of a known format") from None
        if type(error).__name__ == "DecompressionBombError":
            raise DecodeError(f"it has more than the {MAX_PIXELS:,} pixels that an image may have") from None
        reason = str(error).replace("<_io.BytesIO object at ", "<") or type(error).__name__
        raise DecodeError(f"not an image that can be decoded: {reason}") from None


def is_turned(content: bytes | memoryview) -> bool:
    """Whether an image's EXIF orientation says that it is stored on its side or mirrored. TIFFs are turned anyway."""
    return orientation(content) != 1


def orientation(content: bytes | memoryview) -> int:
    """How an image is stored, by its EXIF data: 1 upright, 2 to 8 mirrored or on its side. TIFFs are turned anyway."""
    try:
        image, form = _opened(bytes(content))
        return _orientation(image) if form != "TIFF" else 1
    except Exception:
        # No image: who decodes it says so.
        return 1


def _opened(content: bytes) -> tuple[Any, str]:
    """An image whose header is read, and its format."""
    pillow = _pillow()
    if not content.startswith(JPEG_BEGINS):
        image = pillow.open(io.BytesIO(content), formats=_OTHERS)
        return image, image.format
    jpeg, header = _plain_jpeg(content)
    image = pillow.open(io.BytesIO(jpeg), formats=["JPEG"])
    for segment in header:
        # As Pillow keeps them; they are parsed only where somebody asks.
        for name, begins in (("exif", b"Exif\0\0"), ("xmp", b"http://ns.adobe.com/xap/1.0/\0")):
            if segment.marker == 0xE1 and content.startswith(begins, segment.begin + 4):
                image.info.setdefault(name, content[segment.begin + 4 : segment.end])
    return image, "JPEG"


def _is_shown(segment: _Segment) -> bool:
    """Pillow sees what makes the picture, and of the metadata what says how colours are coded (JFIF, Adobe) or is
    carried along (comments): it refuses images for damage in the rest, which has nothing to do with their pixels."""
    if segment.marker in _APPLICATION:
        return segment.marker in (_JFIF, _ADOBE) and segment.end - segment.begin >= _COLOUR_BYTES
    return segment.marker != _COMMENT or segment.end - segment.begin > 4


_OTHERS = [name for name in FORMATS if name != "JPEG"]


@functools.cache
def _pillow() -> Any:
    # Imported here, the plug-ins are those of FORMATS alone.
    from PIL import (  # noqa: F401
        BmpImagePlugin,
        GifImagePlugin,
        Image,
        JpegImagePlugin,
        PngImagePlugin,
        PpmImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    # Remarks on odd metadata, once a process and in nobody's interest.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    return Image


def _turn(image: Any) -> Any:
    """How the image must be transposed to stand upright; None where it does, or where its EXIF data are damaged."""
    way = _pillow().Transpose
    ways = {
        2: way.FLIP_LEFT_RIGHT,
        3: way.ROTATE_180,
        4: way.FLIP_TOP_BOTTOM,
        5: way.TRANSPOSE,
        6: way.ROTATE_270,
        7: way.TRANSVERSE,
        8: way.ROTATE_90,
    }
    return ways.get(_orientation(image))


def _orientation(image: Any) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:
        # As above; the pixels are none the worse for it.
        return 1
    return found if found in range(2, 9) else 1


def _eight_bits(image: Any, form: str) -> Any:
    """A loaded image in mode L or RGB. Transparency is dropped: the colours beneath it are taken as they are stored."""
    if image.mode.startswith(("I", "F")):
        return _from_deep_grey(image, form)
    # Pillow would look for a place in the palette for it, or warn.
    image.info.pop("transparency", None)
    wanted = "L" if image.mode in {"1", "L"} else "RGB"
    return image if image.mode == wanted else image.convert(wanted)


def _from_deep_grey(image: Any, form: str) -> Any:
    """Grey of 9 to 16 bits -> mode L, by its high bits; Pillow's own conversion makes everything above 255 white."""
    tags = image.tag_v2 if form == "TIFF" else {}
    # Pillow's mode I is that of signed and of 32-bit integers in a TIFF; of a PGM it is 16 bits.
    if image.mode == "F" or (image.mode == "I" and form == "TIFF"):
        kind = "floating-point numbers" if image.mode == "F" else "signed or 32-bit integers"
        raise DecodeError(f"its pixels are {kind}, which have no known black and white; write it with 8 or 16 bits")
    deep = np.asarray(image).clip(0, 65535).astype(np.uint16)
    grey = (deep >> (tags.get(_BITS_PER_SAMPLE, (16,))[0] - 8)).astype(np.uint8)
    # 0: white is zero.
    return _pillow().fromarray(~grey if tags.get(_PHOTOMETRIC) == 0 else grey)
