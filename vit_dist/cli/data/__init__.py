"""`vit-dist data`: pack, index, look at and order datasets. Dispatches to a module a verb; no torch."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable

from vit_dist.core.errors import ConfigError, did_you_mean

SUMMARY = "pack images into shards, index tars, look at datasets and their order"

# verb: (module, function, what it does)
VERBS: dict[str, tuple[str, str, str]] = {
    "pack": ("pack", "main", "images -> shuffled WebDataset tars, a manifest and sample indexes"),
    "merge": ("pack", "merge_main", "join what `pack --part i/n` packed"),
    "index": ("index", "main", "manifest and sample indexes of tars that somebody else wrote"),
    "info": ("look", "info_main", "counts, classes, bytes, resolutions, a grid of random images"),
    "verify": ("look", "verify_main", "tars against manifest and indexes"),
    "subset": ("look", "subset_main", "a nested subset, as keys or as a manifest"),
    "dedup": ("look", "dedup_main", "a manifest without near-duplicates of evaluation sets"),
    "order": ("order", "main", "print the keys of examples in the order they are trained on"),
}


def main(argv: list[str]) -> int:
    """Run one verb; the exit code.

    Raises:
        ConfigError: no such verb.
        VitDistError: whatever the verb finds wrong.
    """
    if not argv or argv[0] in {"-h", "--help"}:
        lines = [f"  {verb:<8} {summary}" for verb, (_, _, summary) in VERBS.items()]
        sys.stdout.write(
            f"usage: vit-dist data VERB ...\n\n{SUMMARY}\n\nverbs:\n"
            + "\n".join(lines)
            + "\n\n`vit-dist data VERB --help` explains a verb and gives examples.\n"
        )
        return 0 if argv else 2
    verb, *rest = argv
    if verb not in VERBS:
        raise ConfigError(f"vit-dist data: unknown verb {verb!r}{did_you_mean(verb, VERBS)}")
    module, function, _ = VERBS[verb]
    run: Callable[[list[str]], int] = getattr(importlib.import_module(f"{__name__}.{module}"), function)
    code = run(rest)
    sys.stdout.flush()  # where the reader, such as `head`, has gone: tell it here, not at exit
    return code
