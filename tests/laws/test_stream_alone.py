"""`vit_dist.open_stream`: the trainer's order without the trainer, resumed anywhere and on any number of ranks."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import Identity

import vit_dist
from tests.places import ROOT
from tests.shards import write_set
from tests.streams import global_batches, recipe
from vit_dist.core.errors import ConfigError, DataError
from vit_dist.core.world import World
from vit_dist.data.manifest import read_manifest
from vit_dist.data.stream import EvalBatches

SIZE = {"image_size": 28}


def ranks(manifest: Any, size: int, count: int | None = None, **given: Any) -> list[list[Any]]:
    """Batches of each rank of a world, one rank after the other."""
    found = []
    for rank in range(size):
        with vit_dist.open_stream(manifest, rank=rank, world_size=size, **{"batch": 12, **SIZE, **given}) as stream:
            found.append(list(itertools.islice(stream, count)))
    return found


def examples(manifest: Any, size: int, count: int | None = None, **given: Any) -> list[tuple[Any, ...]]:
    """What a world gives, by position: position, epoch, set, key, ordinal, label, digest of the pixels."""
    rows = []
    for batches in ranks(manifest, size, count, **given):
        for batch, _ in batches:
            for i, s in enumerate(batch.samples):
                pixels = hashlib.sha256(batch.images[i].numpy().tobytes()).hexdigest()[:12]
                rows.append((s.position, s.epoch, s.set, s.key, s.ordinal, int(batch.labels[i, 0]), pixels))
    return sorted(rows)


def test_it_is_the_order_and_the_pixels_of_the_trainer(small_set: str) -> None:
    trained = global_batches(recipe(small_set), 1, 0, 20)
    with vit_dist.open_stream(small_set, batch=12, seed=3, **SIZE) as stream:
        for (ordinals, labels, images), (batch, _) in zip(trained, stream, strict=False):
            assert [s.ordinal for s in batch.samples] == ordinals.tolist()
            assert torch.equal(batch.labels[:, 0], labels)
            assert torch.equal(batch.images, images)
            assert batch.images.dtype == torch.uint8
            assert batch.global_size == len(batch) == 12


@pytest.mark.parametrize("shuffle", [True, False])
def test_resumed_at_every_position_it_gives_exactly_the_rest(tmp_path: Path, shuffle: bool) -> None:
    manifest = write_set(tmp_path, num_samples=30, samples_per_shard=11, num_classes=4)
    whole = examples(manifest, 1, epochs=2, batch=4, shuffle=shuffle)
    assert [row[0] for row in whole] == list(range(60))
    for epoch in range(2):
        assert sorted(row[4] for row in whole[epoch * 30 : epoch * 30 + 30]) == list(range(30))
    ((*batches,),) = ranks(manifest, 1, epochs=2, batch=4, shuffle=shuffle)
    states = [None, *(json.loads(json.dumps(state)) for _, state in batches)]
    assert len(states) == 16
    for step, state in enumerate(states):
        tail = examples(manifest, 1, epochs=2, batch=4, shuffle=shuffle, position=state)
        assert tail == whole[step * 4 :]


def test_another_number_of_ranks_goes_on_with_exactly_the_rest(small_set: str) -> None:
    whole = examples(small_set, 1, epochs=1)
    given = examples(small_set, 4, 5, epochs=1)
    assert given == whole[:60]
    states = [batches[-1][1] for batches in ranks(small_set, 4, 5, epochs=1)]
    assert states[1:] == states[:-1]
    for size in (1, 2, 3, 5, 7):  # 5 and 7 do not divide 12
        assert examples(small_set, size, epochs=1, position=states[0]) == whole[60:]


def test_ranks_that_do_not_divide_the_batch_share_it_and_the_mean_is_that_of_the_batch(small_set: str) -> None:
    per_rank = ranks(small_set, 5, epochs=1, batch=12)
    assert {len(batches) for batches in per_rank} == {17}
    for step, batches in enumerate(zip(*per_rank, strict=True)):
        total = sum(len(batch) for batch, _ in batches)
        assert total == (12 if step < 16 else 8) == batches[0][0].global_size
        # As DDP averages: the mean over ranks of each rank's scaled sum.
        values = [batch.labels[:, 0].double().sum() * batch.loss_scale for batch, _ in batches]
        everyone = torch.cat([batch.labels[:, 0] for batch, _ in batches]).double()
        assert float(sum(values)) / 5 == pytest.approx(float(everyone.mean()))


def test_the_last_batch_is_what_is_left_or_left_out(small_set: str) -> None:
    # 200 = 3 * 66 + 2: of the last batch there is nothing for rank 2.
    last = [batches[-1][0] for batches in ranks(small_set, 3, epochs=1, batch=66)]
    assert [len(batch) for batch in last] == [1, 1, 0]
    assert last[2].images.shape == (0, 3, 28, 28)
    whole = [len(batches) for batches in ranks(small_set, 3, epochs=1, batch=66, drop_last=True)]
    assert whole == [3, 3, 3]
    with vit_dist.open_stream(small_set, batch=66, epochs=1, **SIZE) as stream:
        assert len(stream) == 4
        _, state = next(stream)
    with vit_dist.open_stream(small_set, batch=66, epochs=2, position=state, **SIZE) as stream:
        assert len(stream) == 6
        assert stream.state == state
    with vit_dist.open_stream(small_set, batch=66, **SIZE) as stream, pytest.raises(TypeError, match="no length"):
        len(stream)
    assert ranks(small_set, 1, epochs=1, position={**state, "position": 200, "batch": 12}) == [[]]


def test_a_mixture_is_that_of_a_recipe(tmp_path: Path) -> None:
    one = write_set(tmp_path / "one", num_samples=40, samples_per_shard=10, num_classes=4)
    two = write_set(tmp_path / "two", num_samples=20, samples_per_shard=10, num_classes=4, first=500)
    sets = {"one": {"train": one, "weight": 2}, "two": two}
    whole = examples(sets, 1, 10)
    assert {row[2] for row in whole} == {"one", "two"}
    assert sorted(row[4] for row in whole if row[2] == "one" and row[1] == 0) == list(range(40))
    state = ranks(sets, 1, 4)[0][-1][1]
    assert examples(sets, 3, 6, position=state) == whole[48:]
    with pytest.raises(ConfigError, match=r"order of examples \(components\.two\.num_samples"):
        vit_dist.open_stream({**sets, "two": {"train": two, "subset": 19}}, batch=12, position=state, **SIZE)
    with pytest.raises(ConfigError, match="epochs=1: the sets of a mixture have epochs of their own"):
        vit_dist.open_stream(sets, batch=12, epochs=1)


def test_a_transform_is_given_the_sample_and_repeats_itself(small_set: str) -> None:
    def crop(image: Image.Image, sample: vit_dist.Sample) -> torch.Tensor:
        left = int(np.random.default_rng((1, sample.epoch, sample.ordinal)).integers(8))
        return torch.from_numpy(np.array(image)[left : left + 20])

    whole = examples(small_set, 1, 6, decode="pil", transform=crop)
    state = ranks(small_set, 1, 3)[0][-1][1]
    assert examples(small_set, 2, 3, decode="pil", transform=crop, position=state, workers=5) == whole[36:]
    ((batch, _), *_) = ranks(small_set, 1, 1, decode="bytes")[0]
    assert all(isinstance(item, bytes) and item.startswith(b"\x89PNG") for item in batch.items)
    with pytest.raises(ConfigError, match=r"items of type bytes are not tensors of one shape; take batch\.items"):
        _ = batch.images
    ((batch, _), *_) = ranks(small_set, 1, 1, transform=lambda image, sample: (sample.key, image.shape))[0]
    assert batch.items == [(key, (3, 28, 28)) for key in batch.keys]

    def fails(content: bytes, sample: vit_dist.Sample) -> None:
        raise KeyError(sample.key)

    with pytest.raises(DataError, match=r"transform failed on sample 'k\d+' .*position \d+\): KeyError"):
        ranks(small_set, 1, 1, decode="bytes", transform=fails)


def test_broken_images_are_replaced_told_and_limited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_set(tmp_path, num_samples=40, samples_per_shard=20, num_classes=4, broken=frozenset({3, 30}))
    (batches,) = ranks(manifest, 1, epochs=1, max_bad=0.05)
    assert {r.key for batch, _ in batches for r in batch.replaced} == {"k000003", "k000030"}
    said = capsys.readouterr()
    assert "'k000003' of" in said.out + said.err
    with pytest.raises(DataError, match=r"2 examples cannot be decoded on rank 0 alone, over max_bad=0\.01 of 40"):
        ranks(manifest, 1, epochs=1, max_bad=0.01)

    def picky(content: bytes, sample: vit_dist.Sample) -> str:
        if sample.ordinal == 7:
            raise vit_dist.DecodeError("not this one")
        return sample.key

    ((*batches,),) = ranks(manifest, 1, epochs=1, decode="bytes", transform=picky)
    assert [r.reason for batch, _ in batches for r in batch.replaced] == ["not this one"]


def test_sets_without_labels_are_read(tmp_path: Path) -> None:
    manifest = write_set(tmp_path, num_samples=12, samples_per_shard=12, num_classes=4)
    from vit_dist.cli.data.index import main

    assert main([str(tmp_path / "shard-000000.tar"), "--labels", "none", "--out", str(tmp_path / "bare.json")]) == 0
    ((batch, _),) = ranks(str(tmp_path / "bare.json"), 1, epochs=1)[0]
    assert batch.labels.tolist() == [[-1]] * 12
    assert sorted(batch.keys) == sorted(ranks(manifest, 1, epochs=1)[0][0][0].keys)
    # Where labels are compared, none is an error as ever.
    bare = read_manifest(str(tmp_path / "bare.json"))
    with pytest.raises(DataError, match=r"sample 'k\d+' has no label"):
        list(EvalBatches(bare, recipe(manifest).data, World(), 4))


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"seed": 4}, r"position: .*another order of examples \(seed: 4 here, 0 there\)"),
    ({"shuffle": False}, r"shuffle: False here, True there"),
    ({"subset": 100}, r"num_samples: 100 here, 200 there"),
    ({"lanes": 4, "window": 3}, r"lanes: 4 here, 1 there"),
    ({"batch": 24}, r"batches of 12, and batch=24 .*all ranks together.*position=\{\*\*state, 'batch': 24\}"),
    ({"position": {"step": 3}}, r"not the state of a stream: it has the keys \['step'\]"),
    ({"position": 12}, r"expected the state that a stream gave with a batch \(a mapping\), or None; got 12"),
    ({"batch": 0}, r"batch=0: expected a whole number from 1"),
    ({"batch": True}, r"batch=True: expected a whole number"),
    ({"epochs": 1.5}, r"epochs=1\.5: expected a whole number"),
    ({"decode": "torch"}, r"decode='torch': expected 'crop', 'pil' or 'bytes'; a callable is given as transform="),
    ({"transform": "flip"}, r"transform='flip': expected a callable of \(image, sample\)"),
    ({"rank": 1}, r"rank=1, world_size=None: give both"),
    ({"rank": 3, "world_size": 3}, r"rank=3, world_size=3: give both, rank from 0 to world_size - 1"),
    ({"drop_last": True}, r"drop_last=True: without `epochs` the stream has no last batch"),
    ({"drop_last": True, "epochs": 1, "batch": 201}, r"drop_last=True: 1 epoch of 200 examples is less than one"),
    ({"widow": 3}, r"open_stream: widow: unknown key; did you mean 'window'"),
    ({"mixup": {"alpha": 0.2}}, r"open_stream: mixup: unknown key"),
    ({"crop_area": (0.5, 0.1)}, r"open_stream: crop_area: expected two numbers"),
    ({"augment": "inceptoin"}, r"open_stream: augment\.crop: must be .*did you mean 'inception'"),
    ({"augment": {"augreg": "medium1"}}, r"open_stream: augment\.augreg=medium1, .*batches are not mixed here"),
    ({"shuffle": False, "window": 3}, r"window=3 beside shuffle=False"),
    ({"memory_limit": "1000 B"}, r"over data\.memory_limit"),
    ({"seed": "a"}, r"seed='a': expected a whole number"),
    ({"seed": 1.5}, r"seed=1\.5: expected a whole number"),
    ({"shuffle": 1000}, r"shuffle=1000: expected True or False; there is no buffer"),
    ({"rank": "0", "world_size": "2"}, r"rank='0', world_size='2': give both"),
    ({"num_workers": 4}, r"num_workers: unknown key; workers=N are threads"),
    ({"workers": 0}, r"open_stream: workers: must be greater"),
    ({"device": "gpu"}, r"device='gpu': expected a device of torch's"),
    ({"decode": "pil", "transform": str.upper}, r"transform=str.upper: is called with an image and its sample"),
    ({"transform": Identity()}, r"transform=Identity: .*lambda image, sample: TRANSFORM"),
]


@pytest.mark.parametrize(("given", "says"), REFUSED, ids=[str(given) for given, _ in REFUSED])
def test_what_cannot_be_meant_is_refused_in_words(small_set: str, given: dict[str, Any], says: str) -> None:
    with vit_dist.open_stream(small_set, batch=12, **SIZE) as stream:
        _, state = next(stream)
    with pytest.raises(ConfigError, match=says):
        vit_dist.open_stream(small_set, **{"batch": 12, "position": state, **SIZE, **given})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": 2}, "of version 2, this vit_dist reads up to 1"),
        ({"position": -1}, "position is -1, expected a whole number from 0"),
        ({"position": "12"}, "position is '12'"),
        ({"batch": 0}, "batch is 0, expected a whole number from 1"),
        ({"shuffle": None}, "shuffle is None"),
        ({"order": []}, r"order is \[\], expected a mapping"),
        ({"order": {}}, "fingerprint: '[0-9a-f]{16}' here, none there"),
        ({"kind": "another"}, "not the state of a stream"),
    ],
)
def test_a_damaged_state_is_refused_with_what_is_wrong(small_set: str, change: dict[str, Any], says: str) -> None:
    with vit_dist.open_stream(small_set, batch=12, **SIZE) as stream:
        state = {**stream.state, **change}
    with pytest.raises(ConfigError, match=says):
        vit_dist.open_stream(small_set, batch=12, position=state, **SIZE)
    with pytest.raises(ConfigError, match="damaged: it has no 'batch'"):
        vit_dist.open_stream(small_set, batch=12, position={k: v for k, v in stream.state.items() if k != "batch"})


def test_another_set_is_refused_and_a_moved_one_is_not(small_set: str, tmp_path: Path) -> None:
    one = write_set(tmp_path / "a", num_samples=20, samples_per_shard=10, num_classes=4)
    other = write_set(tmp_path / "b", num_samples=20, samples_per_shard=10, num_classes=4, first=900)
    state = ranks(one, 1, 1)[0][0][1]
    (tmp_path / "a").rename(tmp_path / "c")
    assert examples(str(tmp_path / "c"), 1, 1, position=state)
    with pytest.raises(ConfigError, match=r"another order of examples \(fingerprint: "):
        vit_dist.open_stream(other, batch=12, position=state)


def test_it_is_closed_by_hand_by_the_end_and_with_the_object(small_set: str) -> None:
    import threading

    def own() -> list[str]:
        return [t.name for t in threading.enumerate() if t.name.startswith(("plan", "read", "decode"))]

    before = own()
    with vit_dist.open_stream(small_set, batch=12, **SIZE) as stream:
        next(stream)
        assert own() != before
    assert own() == before
    assert next(stream, None) is None
    with pytest.raises(ConfigError, match="or closed, and gives no more batches"):
        list(stream)
    stream = vit_dist.open_stream(small_set, batch=100, epochs=1, **SIZE)
    assert sum(1 for _ in stream) == 2
    assert own() == before
    for _ in vit_dist.open_stream(small_set, batch=12, **SIZE):
        break
    assert own() == before


def test_what_interrupts_a_batch_costs_no_example(small_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [key for batch, _ in vit_dist.open_stream(small_set, batch=12, epochs=1, **SIZE) for key in batch.keys]
    stream = vit_dist.open_stream(small_set, batch=12, epochs=1, **SIZE)
    keys = list(next(stream)[0].keys)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    # As a Ctrl-C would after the reader has given the batch away.
    with monkeypatch.context() as patch:
        patch.setattr(stream, "_batch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            next(stream)
    assert stream.state["position"] == 12
    keys += [key for batch, _ in stream for key in batch.keys]
    assert keys == whole


def test_a_second_loop_is_refused_in_place_of_being_empty(small_set: str) -> None:
    stream = vit_dist.open_stream(small_set, batch=100, epochs=1, **SIZE)
    assert len(list(stream)) == 2
    with pytest.raises(ConfigError, match=r"gone through to its end.*epochs=N"):
        list(stream)
    assert "at position 200>" in repr(stream)
    with pytest.raises(ConfigError, match="no DataLoader is to be wrapped around it"):
        stream[0]


def test_a_forked_process_is_told_that_the_stream_is_not_its_own(
    small_set: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with vit_dist.open_stream(small_set, batch=12, **SIZE) as stream:
        next(stream)
        with monkeypatch.context() as patch:
            # As in a child: to fork a process that has threads is warned of by newer Pythons.
            patch.setattr(os, "getpid", lambda: 1)
            with pytest.raises(ConfigError, match="opened by the process that this one was forked from"):
                next(stream)
        assert len(next(stream)[0]) == 12


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_told_before_anything_is_read() -> None:
    with pytest.raises(ConfigError, match=r"device='cuda': torch finds no GPU here"):
        vit_dist.open_stream("nowhere", batch=12, device="cuda")


def test_ranks_are_those_of_the_launcher(small_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with vit_dist.open_stream(small_set, batch=12, **SIZE) as stream:
        batch, _ = next(stream)
    assert [s.position for s in batch.samples] == [1, 4, 7, 10]
    with vit_dist.open_stream(small_set, batch=12, rank=0, world_size=1, device="cpu", **SIZE) as stream:
        assert len(next(stream)[0]) == 12


class InWorker(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __init__(self, manifest: str) -> None:
        self.manifest = manifest

    def __iter__(self) -> Any:
        return vit_dist.open_stream(self.manifest, batch=12)


def test_workers_of_a_dataloader_are_refused(small_set: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As inside a worker process: starting one costs seconds.
    monkeypatch.setattr(torch.utils.data, "get_worker_info", lambda: World())
    with pytest.raises(ConfigError, match="each worker would give all examples of the rank"):
        iter(InWorker(small_set))


# The page's own text.

LOOP = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "stream.md").read_text(), re.S)[0]
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}


def port() -> str:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run_here(script: Path, manifest: str, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for name, value in {**ALONE, "MASTER_PORT": port()}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [str(script), manifest, str(checkpoint)])
    runpy.run_path(str(script), run_name="__main__")
    saved: dict[str, Any] = torch.load(checkpoint)
    return saved


def test_the_loop_of_the_page_killed_and_resumed_ends_with_the_same_bits(
    small_set: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "train.py"
    script.write_text(LOOP)
    undisturbed = run_here(script, small_set, tmp_path / "whole.pt", monkeypatch)
    assert undisturbed["stream"]["position"] == 400
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "200 examples, 4 classes; from example 0 on:"
    assert [line.partition(":")[0] for line in said[1:-1]] == [f"step {n} of 17" for n in (5, 10, 15, 17)]
    assert said[-1] == f"done; {tmp_path / 'whole.pt'} has the model"

    # Each batch waits a little, so that the kill comes amid the run.
    slow = tmp_path / "slow.py"
    slow.write_text(LOOP.replace("        loss.backward()", "        loss.backward(); __import__('time').sleep(0.2)"))
    killed = tmp_path / "killed.pt"
    environ = {**os.environ, **ALONE, "MASTER_PORT": port()}
    with subprocess.Popen([sys.executable, str(slow), small_set, str(killed)], env=environ) as process:
        while not killed.exists():
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    place = torch.load(killed)["stream"]["position"]
    assert 0 < place < 400
    capsys.readouterr()
    resumed = run_here(script, small_set, killed, monkeypatch)
    assert f"from example {place} on" in capsys.readouterr().out
    assert resumed["stream"] == undisturbed["stream"]
    for name, tensor in undisturbed["model"].items():
        assert torch.equal(resumed["model"][name], tensor), name
    for number, moments in undisturbed["optimizer"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(resumed["optimizer"]["state"][number][name], tensor), name


@pytest.mark.parametrize(
    ("words", "environ"),
    [(["set.json", "run.pt"], {}), (["set.json"], ALONE), ([], {}), (["a", "b", "c"], ALONE)],
)
def test_the_loop_of_the_page_says_how_it_is_started(
    words: list[str], environ: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "train.py"
    script.write_text(LOOP)
    for name in ALONE:
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit, match=r"torchrun --nproc-per-node 2 train\.py MANIFEST CHECKPOINT$"):
        runpy.run_path(str(script), run_name="__main__")


@pytest.mark.parametrize(
    ("manifest", "told"),
    [
        (None, "manifest=None: expected the path or URL of a manifest, or a mapping"),
        (5, "manifest=5: expected the path or URL"),
        (["a", "b"], "manifest=\\['a', 'b'\\]: expected the path or URL"),
        (b"set.json", "manifest=b'set.json': expected the path or URL"),
        ({"a": 3}, "manifest: a=3: expected the path or URL of a manifest, or a mapping with train"),
        ({"a": None}, "manifest: a=None: expected"),
        ({"a": ["x"]}, "manifest: a=\\['x'\\]: expected"),
        ({}, "manifest is empty"),
        ("", "manifest is empty"),
        ("s3:/b/c", "open_stream: manifest: s3:/b/c: a URL is written s3://b/c"),
    ],
)
def test_what_names_no_set_is_refused_with_what_does(manifest: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        vit_dist.open_stream(manifest, batch=4)


def test_importing_vit_dist_loads_no_torch() -> None:
    code = "import vit_dist, sys; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules; print(1)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "1\n"
    with pytest.raises(AttributeError, match="no attribute 'open_steam'"):
        _ = vit_dist.open_steam  # type: ignore[attr-defined]
