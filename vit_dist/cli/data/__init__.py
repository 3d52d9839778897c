"""`vit-dist data`: pack, index, look at and order datasets. A module a verb or a few; torch for `show` and `bench`."""

from __future__ import annotations

from vit_dist.cli.verbs import Verb, run_verb

SUMMARY = "pack images into shards, index tars, look at datasets and their order"

VERBS = {
    "pack": Verb("pack", "main", "images -> shuffled WebDataset tars, a manifest and sample indexes"),
    "merge": Verb("pack", "merge_main", "join what `pack --part i/n` packed"),
    "index": Verb("index", "main", "manifest and sample indexes of tars that somebody else wrote"),
    "info": Verb("look", "info_main", "counts, classes, bytes, resolutions, a grid of random images"),
    "verify": Verb("look", "verify_main", "tars against manifest and indexes"),
    "subset": Verb("look", "subset_main", "a nested subset, as keys or as a manifest"),
    "dedup": Verb("look", "dedup_main", "a manifest without near-duplicates of evaluation sets"),
    "order": Verb("order", "main", "print the keys of examples in the order they are trained on"),
    "show": Verb("show", "main", "a picture of what training sees of some examples, augmentation and all"),
    "bench": Verb("bench", "main", "what this machine and this store deliver, and what a recipe needs"),
    "cache": Verb("cache", "main", "what this node's cache of shards holds; or empty it"),
    "seen": Verb("seen", "main", "at which steps a run was trained on images"),
}


def main(argv: list[str]) -> int:
    """Run one verb; the exit code.

    Raises:
        VitDistError: no such verb, or whatever the verb finds wrong.
    """
    return run_verb(__name__, SUMMARY, VERBS, argv)
