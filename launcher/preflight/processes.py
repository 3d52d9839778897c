"""The processes of a preflight: one srun, or one a probe. Messages of all probes come in, commands go out to all."""

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
from vit_dist.core.process import wait_until

_MARK = "vit-dist-preflight "


class ProbeProcesses:
    """The processes that run the probes: messages in through `lines`, commands out through `send`.

    Attributes:
        lines: (when it came, message) of every probe; None once all have closed their output.
        stderr_lines: the first that they wrote to stderr, srun's own among them.
    """

    def __init__(self, commands: Sequence[tuple[Sequence[str], Mapping[str, str]]]) -> None:
        self.lines: queue.SimpleQueue[tuple[float, dict[str, Any]] | None] = queue.SimpleQueue()
        self.stderr_lines: list[str] = []
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
            for work in (self._read_stdout, self._read_stderr):
                self._threads.append(threading.Thread(target=work, args=(process,), daemon=True))
                self._threads[-1].start()

    def send(self, **words: Any) -> None:
        """Send a command to every probe."""
        line = (json.dumps(words) + "\n").encode()
        for process in self._processes:
            assert process.stdin is not None
            # One that is gone is found by its missing heartbeat, not by the pipe: srun keeps that open.
            with contextlib.suppress(OSError):
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
        wait_until(lambda: all(p.poll() is not None for p in self._processes), seconds, 0.02)

    def _read_stdout(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with contextlib.suppress(OSError):
            for line in iter(process.stdout.readline, b""):
                # What a site's prolog or a library prints there bears no mark.
                _, mark, payload = line.decode("utf-8", "replace").partition(_MARK)
                with contextlib.suppress(ValueError):
                    if mark:
                        self.lines.put((time.time(), json.loads(payload)))
        self._open -= 1
        if self._open == 0:
            self.lines.put(None)

    def _read_stderr(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        with contextlib.suppress(OSError):
            for line in iter(process.stderr.readline, b""):
                text = line.decode("utf-8", "replace").strip()
                if text and len(self.stderr_lines) < 20:
                    self.stderr_lines.append(text)
