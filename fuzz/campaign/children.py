"""The processes that a supervisor starts: workers, which live on, and minimisers, which end."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import asdict
from typing import Final

from fuzz.campaign.worker import Config

LINES_KEPT: Final = 40
SHORT_LIFE: Final = 10.0  # seconds; a worker that dies younger did not do any work
SHORT_LIVES_MAX: Final = 5  # in a row


class Child:
    """A process whose last lines on stderr are known."""

    def __init__(self, arguments: list[str]) -> None:
        self.lines: deque[str] = deque(maxlen=LINES_KEPT)
        self.started = time.monotonic()
        self._rest = b""
        self._closed = False
        # A session of its own: the Ctrl-C of the terminal reaches the supervisor alone.
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        assert self.process.stderr is not None
        self.descriptor = self.process.stderr.fileno()
        flags = fcntl.fcntl(self.descriptor, fcntl.F_GETFL)
        fcntl.fcntl(self.descriptor, fcntl.F_SETFL, flags | os.O_NONBLOCK)

    def read(self) -> None:
        """Take what stands in the pipe, so that the process never blocks on it."""
        if self._closed:
            return
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self.descriptor, 65536):
                *lines, self._rest = (self._rest + data).split(b"\n")
                self.lines.extend(line.decode("utf-8", "replace") for line in lines if line.strip())

    def poll(self) -> int | None:
        """Exit status, None while it runs."""
        self.read()
        return self.process.poll()

    def age(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self.started

    def last_line(self) -> str:
        """What it said last."""
        return self.lines[-1] if self.lines else ""

    def close(self) -> None:
        """Give back the pipe of a process that has ended."""
        self.read()
        self._closed = True
        if self.process.stderr is not None:
            self.process.stderr.close()


class WorkerChild:
    """Worker number N, through its lives."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.lives = 0
        self.short_lives = 0
        self.child = self._start()

    def _start(self) -> Child:
        raw = asdict(self.config)
        raw["seed"] = self.config.seed + 1_000_003 * self.lives  # a new life tries other things
        raw["supervisor"] = os.getpid()
        return Child(["fuzz.campaign.worker", json.dumps(raw)])

    def restart(self) -> None:
        """Begin a new life after a death."""
        self.short_lives = self.short_lives + 1 if self.child.age() < SHORT_LIFE else 0
        self.child.close()
        self.lives += 1
        self.child = self._start()


def stop(children: list[Child], grace: float) -> None:
    """End these processes: politely, and after ``grace`` seconds not."""
    for child in children:
        if child.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                child.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and any(child.poll() is None for child in children):
        time.sleep(0.01)
    for child in children:
        if child.poll() is None:
            child.process.kill()
            child.process.wait()
        child.close()
