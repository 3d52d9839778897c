"""Names in files of others and in advice about them: prefixes of tensors, what belongs to a head, how to ask for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Wording:
    """How whoever reads weights asks for what is wanted, for advice in errors: options of a verb, keys of a recipe.

    Attributes:
        new_head: for a head of zeros.
        num_classes: for so many classes.
        model: for a model, of a file that does not say its own.
        headless: what to do where there is no head, and no other can be had; '': another can.
    """

    new_head: str
    num_classes: str
    model: str = "--model ViT-B/16 (`vit-dist models list` has the names)"
    headless: str = ""


OPTIONS = Wording("--head new", "--num-classes N")
KEYS = Wording("init.head=new", "data.num_classes=N", "model=ViT-B/16")
TEACHER = Wording(
    "never for a teacher",
    "data.num_classes=N",
    "loss.teacher.model=ViT-B/16",
    "a teacher needs the one that it was trained with",
)

PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "base_model.", "student.", "teacher.", "trunk.")
"""What DataParallel, torch.compile, Lightning and frameworks of self-supervised learning put before a model's names."""

_HEADS = ("head", "head_dist", "heads", "fc", "classifier", "pre_logits", "pooler", "projector", "projection_head")


def without_prefix(tensors: Mapping[str, T]) -> dict[str, T]:
    """Tensors without the known prefixes that all of their names share, also several, one inside the other."""
    found = dict(tensors)
    while found:
        prefix = next((p for p in PREFIXES if all(name.startswith(p) and name != p for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
    return found


def is_of_head(name: str) -> bool:
    """Whether a tensor belongs to what is put behind a trunk: a classifier, a representation layer, a projection."""
    return name.partition(".")[0] in _HEADS


def prefix_hint(names: Iterable[str], wanted: Iterable[str]) -> str:
    """What to say of names that would be those of the model without a prefix that only some of them have; or ''."""
    names, known = list(names), set(wanted)
    counted = Counter(
        name[: i + 1] for name in names for i, c in enumerate(name) if c == "." and name[i + 1 :] in known
    )
    if not counted:
        return ""
    prefix, count = counted.most_common(1)[0]
    return (
        f"; {count} of its {len(names)} names would be the model's without {prefix!r} before them: save what is under "
        f"{prefix.removesuffix('.')!r} alone"
    )
