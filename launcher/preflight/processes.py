"""The processes of a preflight: one srun, or one a probe. Lines of all probes come in, orders go out to all."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from vit_dist.core.errors import RunError

_MARK = "vit-dist-preflight "


class Probes:
    """The processes that run the probes (one srun, or one a probe): their lines in, orders out."""

    def __init__(self, commands: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> None:
        self.lines: queue.SimpleQueue[tuple[float, dict[str, Any]] | None] = queue.SimpleQueue()
        self.complaints: list[str] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self._threads: list[threading.Thread] = []
        self._open = len(commands)
        try:
            for command, environment in commands:
                pipe = subprocess.PIPE
                self._processes.append(
                    subprocess.Popen(list(command), env=dict(environment), stdin=pipe, stdout=pipe, stderr=pipe)
                )
        except OSError as error:
            self.close()
            raise RunError(f"{command[0]}: cannot be started: {error.strerror}") from None
        for process in self._processes:
            for work in (self._listen, self._hear):
                self._threads.append(threading.Thread(target=work, args=(process,), daemon=True))
                self._threads[-1].start()

    def order(self, **words: Any) -> None:
        """Tell every probe."""
        line = (json.dumps(words) + "\n").encode()
        for process in self._processes:
            assert process.stdin is not None
            with contextlib.suppress(OSError):  # one that is gone is found by its silence
                process.stdin.write(line)
                process.stdin.flush()

    def close(self) -> None:
        """End them all."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + 5
            while any(p.poll() is None for p in self._processes) and time.monotonic() < deadline:
                for process in self._processes:
                    if process.poll() is None:
                        process.send_signal(number)
                time.sleep(0.1)
        for thread in self._threads:
            thread.join(2)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                with contextlib.suppress(OSError):
                    if pipe is not None:
                        pipe.close()

    def wait(self, seconds: float) -> None:
        """Let them end by themselves."""
        deadline = time.monotonic() + seconds
        while any(p.poll() is None for p in self._processes) and time.monotonic() < deadline:
            time.sleep(0.02)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            for line in iter(process.stdout.readline, b""):
                _, mark, told = line.decode("utf-8", "replace").partition(_MARK)
                with contextlib.suppress(ValueError):
                    if mark:
                        self.lines.put((time.time(), json.loads(told)))
        self._open -= 1
        if self._open == 0:
            self.lines.put(None)

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with contextlib.suppress(OSError):
            for line in iter(process.stderr.readline, b""):
                text = line.decode("utf-8", "replace").strip()
                if text and len(self.complaints) < 20:
                    self.complaints.append(text)
