"""`vit-dist config --explain`: what a key means, from the schema, for a terminal and as the page docs/recipe.md."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterable, Sequence

from vit_dist.config.keys import KINDS, Key, keys_of, of_name, plugin_keys, recipe_keys, search, together
from vit_dist.config.schema import Recipe
from vit_dist.core.errors import ConfigError, did_you_mean

WIDTH = 80
_NAMED = 6
"""So many keys are named where a word is near the end of several."""

FILES = {
    "clusters": ("launcher.slurm.cluster", "Cluster", "Cluster files"),
    "studies": ("vit_dist.study.grid", "StudyConfig", "Study files"),
}
"""Files beside recipes: the section that `--explain` knows them by -> where the schema is, and a title."""


def explain(query: str) -> str:
    """The keys of a path or section, for a terminal.

    Args:
        query: '' for all of a recipe's; a key, a section, a plug-in ('model.vit'), a key of one ('model.vit.depth'), or
            a section of FILES.

    Raises:
        ConfigError: there is no such key; the nearest are named.
    """
    head, _, rest = query.replace("[]", "").strip().strip(".").partition(".")
    if head in FILES:
        keys = search(rest, file_keys(head)) if rest else file_keys(head)
        if not keys:
            raise ConfigError(f"no key {query!r} in {FILES[head][2].lower()}{_nearest(rest, file_keys(head))}")
        return _text(keys, identity=False)
    if head in KINDS and rest:
        named = _of_a_name(head, rest)
        if named:
            return _text(named)
    # Of one section the plug-ins of the others need not be imported.
    keys = all_keys([head] if head in Recipe.model_fields else KINDS)
    found = search(query, keys) if query else keys
    if not found:
        raise ConfigError(f"no key {query!r} in recipes{_nearest(query, all_keys())}")
    return _text(found, _names(head) if query == head and head in KINDS else "")


def all_keys(kinds: Collection[str] = tuple(KINDS)) -> list[Key]:
    """Those of a recipe, those of plug-ins behind the section that they are in.

    Args:
        kinds: of plug-ins whose keys are wanted.
    """
    found: list[Key] = []
    for key in recipe_keys():
        found.append(key)
        if key.path in KINDS and key.path in kinds:
            found += together(plugin_keys(key.path))
    return found


def file_keys(which: str) -> list[Key]:
    """Those of cluster or study files; every key stands at the top of its file."""
    import importlib

    module, name, _ = FILES[which]
    base = Key("base", "text", "", "left out", "another cluster file, which this one changes", False, False)
    keys = keys_of(getattr(importlib.import_module(module), name), identity=False)
    return [base, *keys] if which == "clusters" else keys


def _of_a_name(kind: str, rest: str) -> list[Key]:
    """The keys of a plug-in by one of its names, or one of them: 'ViT-B/16', 'vit.depth'; [] where it is no name."""
    # A name may hold dots: the longest that is one counts.
    words = rest.split(".")
    for n in range(len(words), 0, -1):
        try:
            keys = of_name(kind, ".".join(words[:n]))
        except ConfigError:
            continue
        last = ".".join(words[n:])
        return [key for key in keys if not last or key.path.rpartition(".")[2] == last]
    return []


def _nearest(query: str, keys: Iterable[Key]) -> str:
    paths = list(dict.fromkeys(key.path for key in keys))
    last = query.lower().rpartition(".")[2]
    same = [path for path in paths if path.rpartition(".")[2] == last]
    if same:
        return f"; there is {', '.join(same)}"
    # Of a path the whole first: `optim.lrr` is near `optim.lr`. A word alone is held to words alone, which are the ends
    # of paths: `vall` is near the `val` of `data.val`, and less so to `eval`.
    near = did_you_mean(query, paths) if "." in query else ""
    if near.startswith("; did you mean"):
        return near
    ends = did_you_mean(last, {path.rpartition(".")[2] for path in paths})
    if not ends.startswith("; did you mean"):
        return f"; sections: {', '.join(dict.fromkeys(path.partition('.')[0] for path in paths if '.' in path))}"
    word = ends.split("'")[1]
    found = [path for path in paths if path.rpartition(".")[2].lower() == word.lower()]
    more = f", or another of {len(found)}" if len(found) > _NAMED else ""
    return f"; did you mean {' or '.join(map(repr, found[:_NAMED]))}{more}?"


def _names(kind: str) -> str:
    names = [name for plugin in plugin_keys(kind) for name in plugin.names]
    return f"names: {', '.join(names)}"


def _text(keys: Sequence[Key], footer: str = "", *, identity: bool = True) -> str:
    """Keys as a table of 80 columns: path, value and default on a line, the meaning and what is too long below it."""
    wide = min(33, max(len(key.path) for key in keys))
    room = max(20, WIDTH - wide - 4 - min(16, max(len(key.default) for key in keys)))
    column = min(room, max(5, *(len(key.value) for key in keys)))
    lines = [f"{'KEY':<{wide}}  {'VALUE':<{column}}  DEFAULT"]
    for key in keys:
        fits = len(key.value) <= column
        line = f"{key.path:<{wide}}  {key.value if fits else 'see below':<{column}}  {key.default}".rstrip()
        below = [] if fits else [key.value]
        if len(line) > WIDTH:
            line, below = line.removesuffix(key.default).rstrip(), [*below, f"default {key.default}"]
        lines.append(line)
        lines += [
            part for text in (*below, f"{key.meaning}{_marks(key, identity=identity)}") for part in _indented(text)
        ]
    if footer:
        lines += ["", *textwrap.wrap(footer, WIDTH, subsequent_indent="  ")]
    return "\n".join(lines) + "\n"


def _marks(key: Key, *, identity: bool) -> str:
    marks = [f"unit: {key.unit}"] if key.unit else []
    marks += [f"of {', '.join(key.plugins)}"] if key.plugins else []
    marks += (["identity" if key.identity else "not identity"]) if identity else []
    marks += ["layout"] if key.layout else []
    return f" ({'; '.join(marks)})" if marks else ""


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)


def page() -> str:
    """docs/recipe.md."""
    parts = [_BEGIN]
    recipe = recipe_keys()
    tops = [key for key in recipe if "." not in key.path]
    plain = [
        key for key in tops if not any(k.path.startswith(f"{key.path}.") for k in recipe) and key.path not in KINDS
    ]
    parts += ["## Keys at the top\n", _table(plain)]
    for top in tops:
        below = [key for key in recipe if key.path.startswith((f"{top.path}.", f"{top.path}[]."))]
        if top.path in KINDS:
            parts += [f"## `{top.path}`\n", f"{_sentence(top)}\n", *_plugins(top.path)]
        elif below:
            parts += [f"## `{top.path}`\n", f"{_sentence(top)}\n", _table(below)]
    for which, (_, _, title) in FILES.items():
        keys = file_keys(which)
        parts += [f"## {title}\n", f"{_ABOUT[which]}\n", _table(keys, identity=False)]
    return "\n".join(parts).rstrip() + "\n"


def _plugins(kind: str) -> list[str]:
    plugins = plugin_keys(kind, outside=False)
    parts = [_wrapped(f"- `{plugin.names[0]}`: {plugin.summary}{_others(plugin.names)}", "  ") for plugin in plugins]
    return ["\n".join(parts) + "\n", _table(together(plugins), of=True)]


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 118, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False)


def _others(names: Sequence[str]) -> str:
    return f" Names: {', '.join(f'`{name}`' for name in names)}." if len(names) > 1 else ""


def _sentence(key: Key) -> str:
    default = "" if key.default == "required" else f" Default: {_cell(key.default)}."
    part = "Part" if key.identity else "Not part"
    return _wrapped(f"{key.meaning[:1].upper()}{key.meaning[1:]}. {part} of the identity.{default}")


def _table(keys: Iterable[Key], *, identity: bool = True, of: bool = False) -> str:
    keys = list(keys)
    heads = ["key", *(["of"] if of else []), "value", "unit", "default", *(["counts"] if identity else []), "meaning"]
    rows = [heads, ["---"] * len(heads)]
    for key in keys:
        counts = [", ".join(w for w, yes in (("identity", key.identity), ("layout", key.layout)) if yes)]
        names = [", ".join(f"`{name}`" for name in key.plugins)]
        cells = [f"`{key.path}`", *(names if of else []), _cell(key.value, code=False), key.unit, _cell(key.default)]
        rows.append([*cells, *(counts if identity else []), _cell(key.meaning, code=False)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _cell(text: str, *, code: bool = True) -> str:
    escaped = text.replace("|", "\\|").replace("<", "&lt;") if not code else text.replace("|", "\\|")
    return f"`{escaped}`" if code and text not in {"required", "left out", "its defaults"} else escaped


_ABOUT = {
    "clusters": "What `--cluster` names ([Slurm](slurm.md#cluster-files)); `vit-dist config --explain clusters`.",
    "studies": "What `vit-dist study` takes ([Studies](study.md#the-file)); `vit-dist config --explain studies`.",
}

_BEGIN = """# Keys of recipes, clusters and studies

<!-- Written by `vit-dist config --page`, from the schema; a test compares. -->

`vit-dist config --explain KEY` prints any part of this page: a key (`optim.lr`), a section (`optim`), a plug-in by any
of its names (`model.vit`; `model.ViT-B/16`, with that name's defaults) or a key of one (`model.vit.depth`). Plug-ins of
installed packages are among them, and those of a recipe's files: `vit-dist config RECIPE --explain model.NAME`.

- **counts**: *identity* where a run with another value is another run ([Architecture](architecture.md#identity));
  *layout* where a checkpoint says the value, since it decides how results are rounded: a resume under another says so.
- **unit**: a number without one is refused wherever it can be read in two ways. Counts may have a suffix: `30M`.
- `NAME` in a key is a name of yours, `[]` each entry of a list. *Left out* is the same as `null`.
- **Input**: models get RGB in [-1, 1], which is uint8 / 127.5 - 1, whatever the model and the set
  ([Models](models.md#weights-in-and-out)). There is no key for it, and no mean or deviation of a set is taken off.
  Google's published ViT and BiT weights want it so; others, such as those trained with ImageNet's mean, fit it less.

A recipe is YAML; `base: NAME` names another whose keys it changes, a file beside it or one of `configs/recipes`.
Sections are merged key by key, and later wins: the base, the file, then `key=value` on the command line, read as
YAML. For `model`, `optim`, `schedule` and `engine` a name alone is short for `{name: NAME}`.

**Another plug-in keeps nothing.** `optim.name=sgd` over a recipe with AdamW takes the place of the whole section: a
rate of the one means something else to the other. Where a key is then missing, the error has the overrides that
keep what both have, to copy; `vit-dist config` says what else is gone.
"""
