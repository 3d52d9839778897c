"""Our reader of event files against TensorBoard's EventAccumulator: CPU time and memory for the same scalars.

Two logs of 100,000 steps with 20 scalars a step: one as we write them, many values in an event, and one as other
frameworks do, one value in an event. Every reading is a process of its own; importing is not counted. Prints ratios.

    python -m benchmarks.read_events [--steps 100000] [--scalars 20] [--keep DIR]
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

REPORT_TAGS = ("val/top1", "vit_dist/*")

_OURS = """
import json, resource, sys, time
from vit_dist.core.events.reader import read_run
directory, tags = sys.argv[1], json.loads(sys.argv[2])
began = time.process_time()
log = read_run(directory, tags)
spent = time.process_time() - began
count = sum(len(series.steps) for series in log.scalars.values())
"""
_THEIRS = """
import json, resource, sys, time
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
began = time.process_time()
loaded = EventAccumulator(sys.argv[1], size_guidance={"scalars": 0})
loaded.Reload()
count = sum(len(loaded.Scalars(tag)) for tag in loaded.Tags()["scalars"])
spent = time.process_time() - began
"""
_SAY = "print(json.dumps([spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, count]))"


def write_ours(directory: Path, steps: int, scalars: int) -> None:
    """As our trainer does: all values of a step in one event."""
    from vit_dist.core.events.writer import EventWriter

    writer = EventWriter(directory)
    for step in range(1, steps + 1):
        writer.scalars(step, {f"train/value_{i}": i / step for i in range(scalars)})
        if step % 1000 == 0:
            writer.scalars(step, {"val/top1": 1 - 1 / step})
    writer.close()


def write_theirs(directory: Path, steps: int, scalars: int) -> None:
    """As SummaryWriter.add_scalar does: an event for each value. Framed here, for SummaryWriter takes minutes."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    from vit_dist.core.events.crc import masked_crc

    directory.mkdir(parents=True)
    headers = {n: struct.pack("<QI", n, masked_crc(struct.pack("<Q", n))) for n in range(200)}
    with (directory / "events.out.tfevents.1700000000.host.1.0").open("wb") as file:
        for step in range(steps + 1):
            tags = [f"train/value_{i}" for i in range(scalars)] if step else []
            if step and step % 1000 == 0:
                tags.append("val/top1")
            events = [
                Event(
                    wall_time=1.7e9 + step,
                    step=step,
                    summary=Summary(value=[Summary.Value(tag=tag, simple_value=1 / step)]),
                )
                for tag in tags
            ]
            for event in events or [Event(wall_time=1.7e9, file_version="brain.Event:2")]:
                payload = event.SerializeToString()
                file.write(headers[len(payload)] + payload + struct.pack("<I", masked_crc(payload)))


def measure(code: str, directory: Path, tags: tuple[str, ...] | None = None) -> tuple[float, float, int]:
    """CPU seconds, peak megabytes and number of values of one reading in a new process."""
    command = [sys.executable, "-c", code + _SAY, str(directory), json.dumps(tags)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    spent, memory, count = json.loads(done.stdout.splitlines()[-1])
    return float(spent), float(memory), int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--scalars", type=int, default=20)
    parser.add_argument("--keep", metavar="DIR", help="write the logs here, and use them again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(args.keep or scratch)
        print(f"{args.steps:,} steps of {args.scalars} scalars; CPU seconds (peak MB) of one process")
        print(f"{'log':<24}{'EventAccumulator':>20}{'ours, all tags':>20}{'ratio':>8}{'report tags':>18}{'ratio':>8}")
        for name, write in (("many values an event", write_ours), ("one value an event", write_theirs)):
            directory = root / name.replace(" ", "-")
            if not directory.exists():
                write(directory, args.steps, args.scalars)
            theirs = measure(_THEIRS, directory)
            ours = min((measure(_OURS, directory) for _ in range(3)), key=lambda one: one[0])
            some = min((measure(_OURS, directory, REPORT_TAGS) for _ in range(3)), key=lambda one: one[0])
            assert ours[2] == theirs[2], f"{name}: {ours[2]} values, EventAccumulator found {theirs[2]}"
            cells = [f"{one[0]:.2f} ({one[1]:.0f})" for one in (theirs, ours, some)]
            print(
                f"{name:<24}{cells[0]:>20}{cells[1]:>20}{theirs[0] / ours[0]:>7.1f}x"
                f"{cells[2]:>18}{theirs[0] / some[0]:>7.1f}x"
            )


if __name__ == "__main__":
    main()
