"""Which members of a tar make up a sample, and which of them is its image: the one rule of all who ask. No torch.

webdataset's: consecutive files whose paths agree up to the first dot of the file name. No part of a sample are names
without a dot, names such as `__meta__`, hidden files (`._a.jpg`, `.DS_Store`), and all that is no file; they may stand
anywhere, also inside a sample.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from vit_dist.data.images import FORMATS
from vit_dist.data.tarheader import Member

IMAGE_EXTENSIONS = frozenset(extension for extensions in FORMATS.values() for extension in extensions)
# What webdataset passes over.
_META_NAME = re.compile(r"__[^/]*__($|/)")
# A file that is nothing but its extension, `dir/.jpg`, has the key `dir/`, as in webdataset; any other is hidden.
_NAMELESS = IMAGE_EXTENSIONS | {"cls", "json", "txt"}


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension (in lower case, with all its dots) of a file; None where it is no part of a sample."""
    dot = name.find(".", name.rfind("/") + 1)
    if dot < 0 or not _is_key(name[:dot]) or (name.startswith("__") and _META_NAME.match(name)):
        return None
    key, extension = name[:dot], name[dot + 1 :].lower()
    return None if key.endswith("/") and extension not in _NAMELESS else (key, extension)


def _is_key(key: str) -> bool:
    """Whether what stands before the first dot of a file's name ends a match of `(?:.*/|)[^.]+`, webdataset's pattern.

    The pattern itself takes the square of a name's length, and a tar's header may give a member a MiB of name.
    """
    before = key.rfind(".")
    if before < 0:
        return bool(key)
    slash = key.find("/", before)
    return slash < len(key) - 1 and "\n" not in key[:slash]


def part_of_sample(member: Member) -> tuple[str, str] | None:
    """Key and extension of a tar's member; None where it is no part of a sample."""
    return split_name(member.name) if member.is_file else None


def named_extension(text: str) -> str:
    """An extension as it is compared, from how people write it: `Left.JPG` and `.left.jpg` are `left.jpg`."""
    return text.lower().lstrip(".")


def is_image(extension: str, wanted: str) -> bool:
    """Whether a member of this extension is an image of its sample: the wanted one, or, with '', any plain one."""
    return extension == wanted if wanted else extension in IMAGE_EXTENSIONS


def image_of(extensions: Collection[str], wanted: str) -> str:
    """The extension of a sample's image.

    Args:
        extensions: of all its members.
        wanted: the extension to take; '' where there is only one image.

    Raises:
        ValueError: none, or several.
    """
    images = [extension for extension in extensions if is_image(extension, wanted)]
    if len(images) == 1:
        return images[0]
    there = f"its members are {', '.join(sorted(extensions))}"
    if images:
        raise ValueError(f"has several images; name one with --image (data pack: --image-field): {there}")
    if wanted:
        raise ValueError(f"has no image, which is to be its member {wanted!r}: {there}")
    # `left.jpg` is an image too, but which of a sample's members is meant only its owner knows.
    dotted = [e for e in sorted(extensions) if e.rpartition(".")[2] in IMAGE_EXTENSIONS]
    hint = f"; name one with --image {dotted[0]} (data pack: --image-field)" if dotted else ""
    raise ValueError(f"has no image: {there}{hint}")
