"""The writers that are killed at each write (killed_writers.py), by group: a worker of a test.

python -m tests.writers GROUP FOLDER LOOKS SIZES

GROUP is run (no torch) or sets. Prints how often each was killed, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher import bad_nodes
from tests.killed_writers import Writer, tried
from vit_dist.core.events.cache import load_entry, store_entry
from vit_dist.core.events.reader import read_run
from vit_dist.core.events.writer import EventWriter
from vit_dist.core.files import explained, replacing_folder, write_bytes
from vit_dist.core.lines import Lines
from vit_dist.core.run import history
from vit_dist.core.run.history import Progress
from vit_dist.core.small_files import read_records


def _attempts(folder: Path) -> list[tuple[Any, ...]]:
    return [
        (one.attempt, one.opened, one.trained, one.told, one.saved, one.cause) for one in history.read(folder).attempts
    ]


def _begin(folder: Path) -> None:
    history.begin(folder, launcher="local", devices=2, step=0)


def _take(folder: Path) -> None:
    history.take(folder, ranks=2, saved=0)


def _close(folder: Path) -> None:
    begun = history.read(folder).last
    assert begun is not None
    history.close(folder, begun, cause="done", action="none", code=0, reached=5, saved=5, at=9.0)


def _submit(job: str) -> Callable[[Path], None]:
    return lambda folder: history.submitted(folder, job, history.submitting(folder, {"script": job * 50}))


def _progress(step: int) -> Progress:
    return Progress(1, 5.0, step, 10 * step, 100, 2.5, {"train": 1.0}, {"loss": 1.5})


def _taken(folder: Path) -> list[int]:
    # The fence is whole, whenever it is looked at.
    assert "has superseded" in history.superseded_by(folder, "another")
    return [one.attempt for one in history.read(folder).attempts if one.opened]


def _logged(steps: int, *, patient: bool = False) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        writer = EventWriter(folder / "tb", purge_step=steps, patient=patient)
        for step in range(steps, 3 * steps):
            writer.scalars(step, {"loss": float(step)})
        writer.close()

    return write


def _log(folder: Path) -> Any:
    log = read_run(str(folder / "tb"))
    assert not log.problems or "cut" in str(log.problems), log.problems
    return log.scalars["loss"].steps.tolist() if "loss" in log.scalars else []


def _two_files(content: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        with explained(str(folder / "out"), "written"), replacing_folder(folder / "out") as fresh:
            for name in "ab":
                write_bytes(str(fresh / name), (content + name).encode() * 20)

    return write


def _folder_of_two(folder: Path) -> Any:
    out = folder / "out"
    return sorted((path.name, path.read_text()) for path in out.iterdir()) if out.exists() else None


def _in_cache(content: bytes) -> Callable[[Path], Any]:
    def write(folder: Path) -> None:
        os.environ["VIT_DIST_CACHE"] = str(folder)
        store_entry("reports", "key", content)

    return write


def _line(*numbers: int) -> Callable[[Path], Any]:
    return lambda folder: Lines(folder / "order" / "rank.jsonl").add(*({"step": n, "keys": [n] * 20} for n in numbers))


RUN = {
    "heartbeat": Writer(
        lambda folder: history.beat(folder, _progress(1)),
        lambda folder: history.beat(folder, _progress(2)),
        lambda folder: history.read(folder).progress.step,
    ),
    "an attempt's ranks": Writer(
        lambda folder: (_begin(folder), _take(folder)),
        lambda folder: history.training(folder, 1, 0),
        _attempts,
        appends=True,
    ),
    "ranks' end": Writer(
        lambda folder: (_begin(folder), _take(folder), history.training(folder, 1, 0)),
        lambda folder: history.end(folder, "stopped", _progress(7), reason="SIGTERM", saved=7),
        _attempts,
        appends=True,
    ),
    "a beginning": Writer(_begin, _begin, _attempts, appends=True),
    "a closing": Writer(_begin, _close, _attempts, appends=True),
    "a submission's number": Writer(
        lambda folder: history.submitting(folder, {}),
        lambda folder: history.submitted(folder, "7", 0),
        lambda folder: history.read(folder).job_id,
        appends=True,
    ),
    "a requeue": Writer(
        lambda folder: (_submit("7")(folder), _begin(folder)),
        lambda folder: history.requeue(folder, "7"),
        lambda folder: history.read(folder).requeues,
        appends=True,
    ),
    "a cancel": Writer(
        lambda folder: history.ask_cancel(folder, "7"),
        lambda folder: history.ask_cancel(folder, "8"),
        lambda folder: history.read(folder).cancel,
    ),
    "a directory that is taken": Writer(_take, _take, _taken, appends=True),
    "evaluation": Writer(
        lambda folder: history.evaluated(folder, [{"name": "c"}], 1, {"top1": 0.1}),
        lambda folder: history.evaluated(folder, [{"name": "c"}], 2, {"top1": 0.2}),
        lambda folder: [history.evaluation(folder, [{"name": "c"}], n) for n in (1, 2)],
        appends=True,
    ),
    "bad nodes": Writer(
        lambda folder: bad_nodes.add(folder, "n1", "it is slow", now=1.0),
        lambda folder: bad_nodes.add(folder, "n2", "it is gone", now=1.0),
        lambda folder: sorted(bad_nodes.active(folder, now=2.0)),
        appends=True,
    ),
    "any file": Writer(
        lambda folder: write_bytes(str(folder / "manifest.json"), b"old" * 50),
        lambda folder: write_bytes(str(folder / "manifest.json"), b"new" * 60),
        lambda folder: (folder / "manifest.json").read_bytes(),
    ),
    "a new file": Writer(
        lambda folder: None,
        lambda folder: write_bytes(str(folder / "deep" / "manifest.json"), b"new" * 60),
        lambda folder: (
            (folder / "deep" / "manifest.json").exists() and (folder / "deep" / "manifest.json").read_bytes()
        ),
    ),
    "a folder": Writer(_two_files("old"), _two_files("new"), _folder_of_two, also=(None,)),
    "an entry of the cache": Writer(
        _in_cache(b"old" * 50), _in_cache(b"new" * 60), lambda folder: load_entry("reports", "key"), silent=True
    ),
    "lines beside a run": Writer(
        _line(1),
        _line(2),
        lambda folder: [line["step"] for line in read_records(folder / "order" / "rank.jsonl")],
        appends=True,
        silent=True,
    ),
}


def _images(folder: Path, count: int, first: int) -> Path:
    from tests.shards import image_bytes

    for i in range(first, first + count):
        (folder / f"class{i % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"class{i % 2}" / f"{i:03d}.png").write_bytes(image_bytes(i, i % 2))
    return folder


def _packed(source: Path, *, force: bool = False) -> Callable[[Path], Any]:
    from vit_dist.data.pack.choose import open_source
    from vit_dist.data.pack.run import PackOptions, pack
    from vit_dist.data.pack.sources import SourceOptions

    def write(folder: Path) -> None:
        options = PackOptions(samples_per_shard=2, val=None)
        dest = str(folder / "set")
        pack(lambda work: open_source(str(source), work, SourceOptions()), dest, options, force=force, quiet=True)

    return write


def _set(where: str) -> Callable[[Path], Any]:
    """The keys of a set whose manifest is there, all of whose tars and indexes fit it; None where it is not."""
    from vit_dist.data.manifest import read_manifest
    from vit_dist.data.verify import verify_shard

    def read(folder: Path) -> Any:
        url = folder / where
        if not url.exists():
            return None
        manifest = read_manifest(str(url))
        problems = [problem for i in range(len(manifest.shards)) for problem in verify_shard(manifest, i)]
        assert not problems, problems
        return [str(manifest.read_index(i).key(j)) for i, n in enumerate(manifest.counts) for j in range(int(n))]

    return read


def sets(scratch: Path) -> dict[str, Writer]:
    """Writers of sets and of weights."""
    import torch

    from tests.plugins import model_config
    from vit_dist.data.derive import write_exclusion
    from vit_dist.data.indexing import index_tars
    from vit_dist.data.manifest import read_manifest
    from vit_dist.models.weights.adapt import shapes_of
    from vit_dist.models.weights.files import LoadOptions, Weights, read_weights, write_weights

    small, other = _images(scratch / "small", 3, 0), _images(scratch / "other", 4, 10)
    _packed(small)(scratch)
    packed, manifest = _set("set/manifest.json"), str(scratch / "set" / "manifest.json")

    def indexed(*shards: int) -> Callable[[Path], Any]:
        urls = [str(scratch / "set" / f"shard-{i:06d}.tar") for i in shards]
        return lambda folder: index_tars(urls, str(folder / "found.json"), quiet=True)

    def without(ordinal: int) -> Callable[[Path], Any]:
        return lambda folder: write_exclusion(
            read_manifest(manifest), {0: [ordinal]}, str(folder / "some.json"), reason="test"
        )

    config = model_config("vit-test", patch_size=14, width=4, depth=1, num_heads=1, mlp_dim=4)

    def weights(value: float, name: str) -> Callable[[Path], Any]:
        state = {key: torch.full(shape, value) for key, shape in shapes_of(config, 2, 28).items()}
        return lambda folder: write_weights(Weights(state, config, 2, 28), str(folder / name))

    def values(name: str) -> Callable[[Path], Any]:
        def read(folder: Path) -> Any:
            if not (folder / name).exists():
                return None
            state = read_weights(folder / name, LoadOptions(config)).state
            return sorted({float(tensor.flatten()[0]) for tensor in state.values()})

        return read

    made = {
        "packing": Writer(lambda folder: None, _packed(small), packed),
        "packing anew": Writer(_packed(small), _packed(other, force=True), packed, also=(None,)),
        "index of tars": Writer(indexed(0), indexed(0, 1), _set("found.json")),
        "selection": Writer(without(0), without(1), _set("some.json")),
    }
    for name in ("w.npz", "w.safetensors", "w.timm.safetensors"):
        made[name] = Writer(weights(1.0, name), weights(2.0, name), values(name))
    made["a folder of Hugging Face"] = Writer(weights(1.0, "hf/"), weights(2.0, "hf/"), values("hf"), also=(None,))
    return made


def main() -> None:
    """Entry."""
    group, top, looks, sizes = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    (top / "scratch").mkdir()
    writers = RUN if group == "run" else sets(top / "scratch")
    print(json.dumps({name: asdict(tried(one, top, looks=looks, sizes=sizes)) for name, one in writers.items()}))


if __name__ == "__main__":
    main()
