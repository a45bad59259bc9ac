"""The live side of the live oracle: runs whole workloads on the running kernel."""

from __future__ import annotations

import os
import platform
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from emulator.errors import InternalError, UsageError
from emulator.workload import Outcome, Workload
from oracle.live import alone, overcommit
from oracle.live.calls import GEOMETRY
from oracle.live.expressible import expressible, has_prompt_swap
from oracle.live.parse import Entries, VmaParser, counters, parse_pages, present_frames
from oracle.live.rmap_probe import RmapProbe
from oracle.live.rmap_view import RawFolio, RawVma, live_rmap
from oracle.live.server import read_message, write_message
from oracle.live.surroundings import ARENA_END, ARENA_START, ENVIRONMENT
from oracle.live.view import Counters, Depth, PageView, ProcessView, StepView

_GRACE: Final = 15.0  # seconds that the server gets to kill and to answer, once the workload's time is over
_ROOT: Final = Path(__file__).parents[2]  # the folder that holds the packages
SERVER = "oracle.live.server"
Look = tuple[dict[int, list[RawVma]], dict[int, RawFolio]]
"""What the probe told after a step: VMAs by label, anonymous pages by frame."""

EMPTY: Final = ProcessView((), Counters(0, 0, 0, 0))  # process 0 before the first step


class LiveRun(NamedTuple):
    """What a workload showed. ``fate`` is empty, or says which step hung, or died and of what: steps end before it."""

    steps: tuple[StepView, ...]
    fate: str


class LiveSystem:
    """The running kernel. Workloads run one after the other; a server that dies is started again."""

    def __init__(self, depth: Depth = Depth.MAPS, *, timeout: float = 10.0) -> None:
        """``timeout``: seconds that a workload gets. Raises ``UsageError`` where there is no kernel to compare with."""
        self.depth = depth
        self.timeout = timeout
        self._server: subprocess.Popen[bytes] | None = None
        self._probe: RmapProbe | None = None
        self._start()
        self.swap = has_prompt_swap()
        with alone.undisturbed(Workload(GEOMETRY, ())):
            self.overcommit_memory = overcommit.mode()
        if depth >= Depth.RMAP:
            try:
                self._probe = RmapProbe()
            except UsageError:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if not (sys.platform == "linux" and platform.machine() == "x86_64"):
            raise UsageError("the live oracle needs Linux on x86-64")
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(_ROOT), "PYTHONHASHSEED": "0"}
        self._server = subprocess.Popen(
            [sys.executable, "-S", "-m", SERVER, _folder(), str(int(self.depth))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        answer = self._receive(_GRACE)
        if answer is None or answer[0] != "ready":
            self._end_server()
            raise UsageError(answer[1] if answer else "the server of the live oracle does not start")
        _, inodes, self._empty = answer
        self._vma = VmaParser(inodes)

    def close(self) -> None:
        """End the server, and with it every process that it made."""
        self._end_server()
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _end_server(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.close()
        try:
            server.wait(1.0)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        server.stdout.close()

    def _receive(self, seconds: float) -> Any:
        """The server's answer; None: it died, or gave none in time."""
        assert self._server is not None
        assert self._server.stdout is not None
        handle = self._server.stdout.fileno()
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        return read_message(handle) if poll.poll(seconds * 1000) else None

    def run(self, workload: Workload) -> LiveRun:
        """Run it. Raises ``UsageError`` when a live kernel cannot run it, ``InternalError`` when we cannot."""
        reason = expressible(workload, self.depth, swap=self.swap)
        if reason:
            raise UsageError(f"cannot run on the live kernel: {reason}")
        with alone.undisturbed(workload):
            return self._run(workload)

    def _run(self, workload: Workload, *, again: bool = False) -> LiveRun:
        if self._server is None:
            self._start()
        assert self._server is not None
        assert self._server.stdin is not None
        orders = [(op.proc, op.kind, op.args) for step in workload.steps for op in step.ops]
        looks: dict[int, Look] = {}
        try:
            write_message(self._server.stdin.fileno(), (orders, self.timeout))
            answer = self._receive(self.timeout + _GRACE)
            while answer is not None and answer[0] == "look":
                looks[answer[1]] = self._look(*answer[2:])
                write_message(self._server.stdin.fileno(), ())
                answer = self._receive(self.timeout + _GRACE)
        except BrokenPipeError:
            answer = None
        if answer is None:
            return LiveRun((), self._fate_of_server())
        if answer[0] == "outgrown" and not again:
            self._end_server()
            return self._run(workload, again=True)
        if answer[0] in ("error", "outgrown"):
            self._end_server()
            raise InternalError(f"live oracle: {answer[1]}")
        _, fate, steps = answer
        return LiveRun(self._views(steps, looks), fate)

    def _look(self, pids: dict[int, int], frames: list[int]) -> Look:
        """What the reverse map of the processes, which stand still, is like."""
        assert self._probe is not None
        vmas = self._probe.read(list(pids.values()), ARENA_START, ARENA_END)
        return {label: vmas[pid] for label, pid in pids.items()}, self._probe.folios(frames)

    def _fate_of_server(self) -> str:
        """Why it gave no answer; the next workload gets a new one."""
        assert self._server is not None
        try:
            return f"the server ended with status {self._server.wait(1.0)}"
        except subprocess.TimeoutExpired:
            return "the server did not answer"
        finally:
            self._end_server()

    def _views(self, steps: list[Any], looks: Mapping[int, Look]) -> tuple[StepView, ...]:
        """Step views from what the server sent: a process that a step did not show is as it was."""
        found = []
        processes = {0: EMPTY}
        page_views: dict[int, tuple[PageView, ...]] = {}
        entries: Entries = {}
        self._vma.forget_shared()
        for number, (result, data, seen, pages) in enumerate(steps):
            processes = dict(processes)
            for label, shown in seen.items():
                if shown is None:
                    del processes[label]
                    continue
                records, counts = shown
                processes[label] = ProcessView(
                    tuple(self._vma(record, number) for record in records), counters(counts, self._empty)
                )
            if pages:
                entries = pages[0]
                page_views = parse_pages(*pages)
            for label, shown_pages in page_views.items():
                processes[label] = processes[label]._replace(pages=shown_pages)
            if looks:
                vmas, folios = looks[number]
                views = live_rmap(vmas, present_frames(entries), folios, ARENA_START)
                for label, (anon_vmas, of_pages) in views.items():
                    processes[label] = processes[label]._replace(anon_vmas=anon_vmas, folios=of_pages)
            found.append(StepView((Outcome(result, data),), processes))
        return tuple(found)


def _folder() -> str:
    """Where files live that are no memory: the usual place for temporary files may be in memory."""
    return "/var/tmp" if os.access("/var/tmp", os.W_OK) else tempfile.gettempdir()
