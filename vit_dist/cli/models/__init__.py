"""`vit-dist models`: what models there are, what each costs, and weights in and out. A module for each two verbs."""

from __future__ import annotations

from vit_dist.cli.verbs import Verb, run_verb

SUMMARY = "list models and their costs, show one, read and write weights"

VERBS = {
    "list": Verb("look", "list_main", "every model by name: parameters and multiply-adds"),
    "show": Verb("look", "show_main", "the settings of one model, and its tensors"),
    "import": Verb("weights", "import_main", "weights of any known form -> a safetensors file that says its model"),
    "export": Verb("weights", "export_main", "a checkpoint, a run or fresh weights -> a file or folder of any form"),
}


def main(argv: list[str]) -> int:
    """Run one verb; the exit code.

    Raises:
        VitDistError: no such verb, or whatever the verb finds wrong.
    """
    return run_verb(__name__, SUMMARY, VERBS, argv)
