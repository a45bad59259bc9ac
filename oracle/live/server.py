"""The server of the live oracle: ``python -m oracle.live.server FOLDER DEPTH``.

A small process whose address space outside the arena is filled (``surroundings``). For each workload that it reads from
its input it forks process 0, lets the processes run step after step, and answers with what was seen. One message
each way for a whole workload: four bytes of length, then marshal. Ends at the end of its input.

Answers are ``("done", fate, steps)``, a step being ``(result, contents, {label: (mappings, counts)}, pages)`` with the
processes that the step can have changed (None: ended), ``("outgrown", text)``: another server is needed, or
``("error", text)``: something of ours is wrong. ``pages`` is None above the depth of pages, else
``({label: entries}, frames)`` of all processes, as ``PageReader`` gives them, or empty: as after the step before.

At the depth of the reverse map the server says ``("look", step, {label: pid}, frame numbers)`` after each step, and the
processes stand still until anything comes back. The kernel does not: it collapses, reclaims and migrates pages when it
likes. If pages are elsewhere afterwards, the server says it again with the new ones, and that look counts.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import marshal
import os
import resource
import signal
import sys
import time
from typing import Any, Final

from emulator.uapi import EBUSY, ESRCH
from emulator.workload import token
from oracle.live import ksm
from oracle.live.calls import Context, Data
from oracle.live.files import Files
from oracle.live.limits import Before
from oracle.live.pages import Frames, PageReader, frame_numbers
from oracle.live.proc import Counts, ProcFiles
from oracle.live.processes import Channels, Ended, Process, execute
from oracle.live.processor import Processor
from oracle.live.surroundings import ARENA_START, fill, mappings
from oracle.live.userfault import Userfault
from oracle.live.view import Depth

Order = tuple[int, str, tuple[int, ...]]
"""A step: process, kind, arguments."""

Pages = tuple[dict[int, list[tuple[int, int]]], Frames]
"""Pages by label, as ``PageReader.entries`` gives them, and their frames."""

SYS_GETCPU: Final = 309
_LENGTH: Final = 4  # bytes before each message


class NotEmptyError(Exception):
    """The last workload had so many pages that the heap did not do, and memory of ours lies in the arena."""


class Server:
    """The processor, the files and what an empty arena looks like."""

    def __init__(self, folder: str, depth: int) -> None:
        self.files = Files(processor := Processor(), folder)
        self.context = Context(processor, self.files.handles, Userfault(processor))
        self.pid = os.getpid()
        self.cpus = os.sched_getaffinity(0)
        self.pauses = depth >= Depth.RMAP
        self.below = sum(
            mapping.end <= ARENA_START for mapping in mappings()
        )  # VMAs that are none of the arena's
        own = ProcFiles(self.pid)
        self.pages = PageReader(processor) if depth >= Depth.PAGES else None
        filling = fill(processor)
        self.empty: Counts = own.counts()
        size, _, data, _ = self.empty
        self.context = self.context._replace(before=Before(size >> 2, data >> 2), filling=filling)  # kB to pages
        if self.pages is not None:
            self.pages.check(own.pagemap)
        own.close()

    def run(self, orders: list[Order], seconds: float) -> tuple[str, list[Any]]:
        """Run a workload: what became of it, and what each step showed."""
        if any(kind == "mmap" and args[4] for _, kind, args in orders):
            self.files.reset()
        self.settle()
        run = Run(self, time.monotonic() + seconds)
        fate = ""
        try:
            for number, order in enumerate(orders):
                run.step(order, token(number, 0))
        except Ended as end:
            proc, kind, _ = order
            fate = f"step {number} ({kind} of process {proc}): {end}"
        finally:
            left = run.close()
        return ", ".join(filter(None, (fate, left))), run.steps

    def settle(self) -> None:
        """Stay on one CPU, with all processes of the workload that comes, whichever is given to us now.

        A new page waits in a batch of the CPU where it was made before it is in a list; madvise pageout passes over
        it until then, and looks at the batches of its own CPU only.
        """
        os.sched_setaffinity(0, self.cpus)
        cpu = ctypes.c_uint()
        self.context.processor.call(SYS_GETCPU, ctypes.addressof(cpu), 0, 0)
        os.sched_setaffinity(0, {cpu.value})


class Run:
    """One workload that runs."""

    def __init__(self, server: Server, deadline: float) -> None:
        self.server = server
        self.deadline = deadline
        self.channels = Channels()
        self.processes: dict[int, Process] = {}
        self.proc_files: dict[int, ProcFiles] = {}
        self.steps: list[Any] = []
        self.pages: Pages | None = None  # of all processes after the last step
        pid = server.context.processor.fork()
        if pid == 0:
            execute(server.context, self.channels, server.pid)
        self._add(0, pid)
        if self._look(0) != ([], server.empty):
            raise NotEmptyError(
                f"the arena is not empty before the first step: {self._look(0)}, not {server.empty}"
            )

    def _add(self, label: int, pid: int) -> None:
        if pid < 0:
            raise OSError(-pid, "no process could be made")
        self.processes[label] = Process(label, pid, self.channels)
        self.proc_files[label] = ProcFiles(pid)

    def _look(self, label: int) -> tuple[list[bytes], Counts]:
        files = self.proc_files[label]
        return files.mappings(self.server.below), files.counts()

    def step(self, order: Order, token: int) -> None:
        """Run one step and look at what it can have changed. Raises ``Ended``."""
        label, kind, args = order
        process = self.processes.get(label)
        if process is None or (kind == "fork" and args[0] in self.processes):
            self._show(-ESRCH if process is None else -EBUSY, None, {})
            return
        if kind == "ksm_scan":
            ksm.scan(*args)
            if self.server.pages is not None:
                self.server.pages.settle_everywhere()
            self._show(0, None, {})
            return
        changed = [label]
        if kind == "process_madvise":
            target = self.processes.get(args[0])
            if target is None:
                self._show(-ESRCH, None, {})
                return
            changed = sorted({label, args[0]})
            args = (target.pid, *args[1:])
        process.send(kind, args, token)
        if kind == "exit":
            self._end(process)
            self._show(0, None, {label: None})
            return
        answer = process.receive(self.deadline - time.monotonic())
        if isinstance(answer, str):
            raise RuntimeError(answer)
        result, data = answer
        if kind == "fork" and result > 0:
            self._add(args[0], result)
            ready = self.processes[args[0]].receive(self.deadline - time.monotonic())
            if isinstance(ready, str):
                raise RuntimeError(ready)
            changed.append(args[0])
            result = 0
        self._show(result, data, {label: self._look(label) for label in changed})

    def _show(self, result: int, data: Data, seen: dict[int, Any]) -> None:
        reader = self.server.pages
        if reader is None:
            self.steps.append((result, data, seen, None))
            return
        pages = self._read_pages(reader)
        while self.server.pauses:
            pids = {label: process.pid for label, process in self.processes.items()}
            write_message(1, ("look", len(self.steps), pids, list(pages[1])))
            if read_message(0) is None:
                raise BrokenPipeError
            before, pages = pages, self._read_pages(reader)
            if pages[0] == before[0] or time.monotonic() > self.deadline:
                break
        self.steps.append((result, data, seen, () if pages == self.pages else pages))
        self.pages = pages

    def _read_pages(self, reader: PageReader) -> Pages:
        """Entries by label, and what is known of the frames in them."""
        reader.settle()
        entries = {label: reader.entries(files.pagemap) for label, files in sorted(self.proc_files.items())}
        return entries, reader.frames(set().union(*map(frame_numbers, entries.values())))

    def _end(self, process: Process) -> None:
        how = process.reap(self.deadline - time.monotonic())
        if how:
            raise Ended(how)
        self._forget(process.label)

    def _forget(self, label: int) -> None:
        self.processes.pop(label).close()
        self.proc_files.pop(label).close()

    def close(self) -> str:
        """Kill whoever is left; empty, or who cannot be killed."""
        left = [process.kill() for process in self.processes.values()]
        for label in list(self.processes):
            self._forget(label)
        self.channels.close()
        return ", ".join(filter(None, left))


def read_message(handle: int) -> Any:
    """The next message, None at the end of the input."""
    head = _read_exactly(handle, _LENGTH)
    return marshal.loads(_read_exactly(handle, int.from_bytes(head, "little"))) if head else None


def _read_exactly(handle: int, size: int) -> bytes:
    data = b""
    while len(data) < size:
        chunk = os.read(handle, size - len(data))
        if not chunk:
            return b""
        data += chunk
    return data


def write_message(handle: int, message: Any) -> None:
    body = marshal.dumps(message)
    data = memoryview(len(body).to_bytes(_LENGTH, "little") + body)
    while data:
        data = data[os.write(handle, data) :]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's; the client decides
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")  # if memory runs out, it is this process and its children that go
    gc.disable()
    try:
        server = Server(sys.argv[1], int(sys.argv[2]))
    except OSError as error:
        write_message(1, ("error", f"no live kernel to compare with: {error}"))
        return
    write_message(1, ("ready", server.files.inodes, server.empty))
    with contextlib.suppress(BrokenPipeError):  # the client is gone
        while (request := read_message(0)) is not None:
            try:
                fate, steps = server.run(*request)
                answer: tuple[Any, ...] = ("done", fate, steps)
            except NotEmptyError as error:
                answer = ("outgrown", str(error))
            except (OSError, RuntimeError, ValueError) as error:
                answer = ("error", f"{type(error).__name__}: {error}")
            write_message(1, answer)


if __name__ == "__main__":
    main()
