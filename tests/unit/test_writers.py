"""Files are written one way, by core/files.py: who writes otherwise is listed here, with the reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from tests.places import ROOT
from tests.unit.test_contracts import sources

HOME = "vit_dist/core/files.py"
OTHERS = {
    "vit_dist/core/events/cache.py": "within `replacing`",
    "vit_dist/core/events/writer.py": "a log grows, event by event, and ends with a whole one",
    "vit_dist/core/locks.py": "a lock is no content",
    "vit_dist/core/run/copies.py": "a copy of a whole file, renamed when it is there",
    "vit_dist/core/run/history/requests.py": "a request that is set aside",
    "vit_dist/core/terminal.py": "/dev/null, and the streams of this process",
    "vit_dist/compare/figure.py": "into memory",
    "vit_dist/data/cache_files.py": "cells of a chunk, each of which counts once its checksum is there",
    "vit_dist/data/cache_ledger.py": "a number that is too high at worst, and counted anew",
    "vit_dist/data/index.py": "into memory",
    "vit_dist/models/weights/files.py": "within `replacing`",
    "vit_dist/scaling/report/figure_style.py": "into memory",
    "vit_dist/cli/main.py": "an empty file among scratch, by which ranks agree",
    "vit_dist/data/regions.py": "a link among scratch, gone at once",
    "vit_dist/data/pack/items.py": "scratch, gone with the packing",
    "vit_dist/data/pack/published/cifar.py": "scratch, gone with the packing",
    "vit_dist/data/pack/published/files.py": "scratch, gone with the packing",
    "vit_dist/data/pack/shards.py": "a tar, which is renamed when it is whole",
    "vit_dist/data/pack/idx.py": "scratch, gone with the packing",
    "vit_dist/data/pack/parquet.py": "scratch, gone with the packing",
    "vit_dist/train/branch.py": "a checkpoint's directory, which is renamed when it is whole",
    "vit_dist/train/checkpoint/format.py": "a part in a checkpoint's directory, which is renamed when all is whole",
    "vit_dist/train/checkpoint/remote.py": "a checkpoint's directory, which is renamed",
    "vit_dist/train/checkpoint/saver.py": "the commit: a checkpoint's directory is renamed",
    "vit_dist/train/checkpoint/store.py": "removals begin with a rename",
    "vit_dist/train/health/monitor.py": "stacks: what a dying process gets out counts, whole or not",
    "vit_dist/train/health/node_probe.py": "a probe of /dev/shm, removed at once",
    "launcher/doctor/files.py": "what a file system does is tried out there",
    "launcher/submit/snapshot.py": "within `replacing_folder`",
}

_METHODS = {
    "write_text",
    "write_bytes",
    "touch",
    "symlink_to",
    "hardlink_to",
    "savefig",
    "to_csv",
    "to_parquet",
    "tofile",
}
_FUNCTIONS = {
    *("json.dump", "pickle.dump", "torch.save", "np.save", "np.savez", "np.savez_compressed", "np.savetxt"),
    *("shutil.copy", "shutil.copy2", "shutil.copyfile", "shutil.copytree", "shutil.move", "os.replace", "os.rename"),
    *("safetensors.torch.save_file", "save_file", "tempfile.NamedTemporaryFile", "tempfile.mkstemp", "open_append"),
}
_APPENDS = {"launcher/processes/side_by_side.py": "what a child process prints"}


def writes(path: str, text: str) -> Iterator[str]:
    """Each place at which a file is written without core/files.py."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        method = name.rpartition(".")[2] if "." in name else ""
        modes = [a.value for a in (*node.args, *(k.value for k in node.keywords)) if isinstance(a, ast.Constant)]
        opens = name == "open" or method == "open"
        for_writing = any(isinstance(m, str) and len(m) < 5 and set(m) & set("wax+") and m[0] in "rwax" for m in modes)
        flags = name == "os.open" and any(flag in ast.unparse(node) for flag in ("O_WRONLY", "O_RDWR", "O_CREAT"))
        renames = method in {"replace", "rename"} and len(node.args) == 1 and not node.keywords
        if (opens and for_writing) or flags or method in _METHODS or name in _FUNCTIONS or renames:
            yield f"{path}:{node.lineno}: {name}"


def found(path: str) -> list[str]:
    return list(writes(path, (ROOT / path).read_text()))


def test_files_are_written_whole_or_not_at_all_by_one_module() -> None:
    allowed = {HOME, *OTHERS, *_APPENDS}
    assert [place for path in sources() if path not in allowed for place in found(path)] == []


def test_who_is_listed_still_writes() -> None:
    assert [path for path in {**OTHERS, **_APPENDS} if not found(path)] == []


@pytest.mark.parametrize(
    "line",
    [
        'with path.open("w") as file: pass',
        'with open(path, mode="ab") as file: pass',
        'path.open("xb", buffering=0)',
        "path.write_text(text)",
        "figure.savefig(path)",
        "json.dump(value, file)",
        "np.savez(path, a=a)",
        "torch.save(state, path)",
        "shutil.copyfile(a, b)",
        "os.open(path, os.O_RDWR | os.O_CREAT)",
        "temporary.replace(path)",
        "os.replace(a, b)",
    ],
)
def test_another_way_is_found(line: str) -> None:
    assert len(list(writes("x.py", line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        'path.open("rb")',
        "open(path)",
        'text.replace("a", "b")',
        'write_bytes(str(path), b"x")',
        "os.open(p, os.O_RDONLY)",
    ],
)
def test_what_reads_or_goes_by_core_files_is_none(line: str) -> None:
    assert list(writes("x.py", line)) == []
