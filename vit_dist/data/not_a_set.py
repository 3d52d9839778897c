"""What lies where a manifest was looked for in vain, and what to do: pack it, index it, or name what lies inside."""

from __future__ import annotations

from vit_dist.core.errors import DataError
from vit_dist.core.files import exists, is_remote, is_web, join_url, local_path, parent_url, redact, url_name
from vit_dist.data.members import IMAGE_EXTENSIONS
from vit_dist.data.names import is_directory, names_in
from vit_dist.data.splits import split_of_folder

MANIFEST = "manifest.json"
_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".arrow")
_ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".7z", ".rar")
_LOOKED_AT = 1000


class NotASetError(DataError):
    """Something is there, but no set with a manifest."""


def refuse_other_files(url: str) -> None:
    """Refuse what by its name, or as a local file, is neither a manifest nor a folder that could hold one.

    Raises:
        NotASetError: it is something else; the message says how a set is made of it.
    """
    name, shown = url_name(url).lower(), redact(url)
    if name.endswith(".json"):
        return
    kind = _kind_of_file(name)
    if not kind and not is_remote(url) and local_path(url).is_file():
        kind = f"a file; give the folder that holds {MANIFEST}, or that file"
    if kind:
        raise NotASetError(f"{shown}: a set is given by its {MANIFEST} or the folder that holds it; this is {kind}")


def _kind_of_file(name: str) -> str:
    if name.endswith(".tar"):
        return "a tar: make a manifest by `vit-dist data index TARS --out MANIFEST`, which copies nothing"
    if name.endswith(_TABLES):
        return "a table: make a set of what it lists by `vit-dist data pack TABLE DEST`"
    if name.endswith(_ARCHIVES):
        return "an archive: unpack it, then `vit-dist data pack FOLDER DEST`"
    return "an image: `vit-dist data pack FOLDER DEST` makes a set of a folder of them" if _is_image(name) else ""


def what_is_there(folder: str) -> str:
    """What lies in a folder without a manifest, and what to do with it; '' where there is nothing to say."""
    if is_web(folder):
        return ""
    try:
        names = names_in(folder)
        inside = [name for name in names if split_of_folder(name) and MANIFEST in names_in(join_url(folder, name))]
        if inside:
            named = ", ".join(join_url(redact(folder), name) for name in inside[:4])
            return f"the sets lie in folders of it, each with a manifest of its own: give {named}"
        manifests = [name for name in names if name.endswith(".json") and not name.startswith("_")]
        if any(name.lower().endswith(".tar") for name in names):
            return f"there are tars in it: index them by `vit-dist data index {redact(folder)} --out MANIFEST`"
        if any(name.lower().endswith(_TABLES) for name in names):
            return f"there are tables in it: make a set of them by `vit-dist data pack {redact(folder)} DEST`"
        if _has_images(folder, names):
            return f"there are images in it: make a set of them by `vit-dist data pack {redact(folder)} DEST`"
        if manifests:
            return f"there is {manifests[0]} in it, if that is what was meant"
        return f"what lies in it: {', '.join(names[:5])}" if names else "the folder is empty"
    except DataError:
        # It cannot be listed, or is not there: then what was said first says more.
        return ""


def one_level_up(folder: str) -> str:
    """The folder above one without a manifest, where that has one; '' where it has not, or cannot be asked."""
    above = parent_url(folder.rstrip("/"))
    if is_web(folder) or above == folder.rstrip("/") or url_name(folder.rstrip("/")) in {"", ".", ".."}:
        return ""
    try:
        return (above or ".") if exists(join_url(above, MANIFEST) if above else MANIFEST) else ""
    except DataError:
        return ""


def _has_images(folder: str, names: list[str], depth: int = 3) -> bool:
    if any(_is_image(name) for name in names[:_LOOKED_AT]):
        return True
    if not depth:
        return False
    for name in names[:4]:
        below = join_url(folder, name)
        if is_directory(below) and _has_images(below, names_in(below), depth - 1):
            return True
    return False


def _is_image(name: str) -> bool:
    return "." in name and name.lower().rpartition(".")[2] in IMAGE_EXTENSIONS
