"""The reverse map of the running kernel: anon_vmas of VMAs, mapping and index of folios, read by BPF programs.

The programs are ``programs/rmap_probe.bpf.c``. One iterates over the VMAs of a task, under the mmap lock taken for
reading; a frame's ``struct page`` is found in the array of all of them, whose address follows from one page whose
address is known: the only page of a memfd of our own. Only the processes that are asked for are looked at, and
nothing is changed.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import platform
import shutil
import subprocess
from collections.abc import Collection, Iterator, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final

from emulator.errors import InternalError, UsageError
from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.profile import release_number
from oracle.live import bpf
from oracle.live.rmap_view import RawFolio, RawVma, decode_folio

BTF: Final = Path("/sys/kernel/btf/vmlinux")
LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
KERNEL_MIN: Final = (6, 1)  # iterators over one process, num_children

_SOURCE: Final = "rmap_probe.bpf.c"

# struct exchange of the programs, in words of eight bytes
_LOW, _HIGH, _VMEMMAP, _FRAMES, _PFN = range(5)
_FRAMES_MAX: Final = 4096
_READABLE: Final = _PFN + _FRAMES_MAX
_MAPPING: Final = _READABLE + _FRAMES_MAX
_INDEX: Final = _MAPPING + _FRAMES_MAX
_WORDS: Final = _INDEX + _FRAMES_MAX

_RECORD: Final = 9  # words of a record of a VMA before its chain
_CHAIN_ENDS: Final = 0
_CHAIN_GOES_ON: Final = 1

_PAGEMAP_PRESENT: Final = 1 << 63
_PAGEMAP_FRAME: Final = (1 << 55) - 1
_TRIES: Final = 3  # a page of ours may be moved while we look at it


class Unavailable(UsageError):
    """The reverse map cannot be seen on this machine; the message says what is missing and what to do."""


def missing() -> list[str]:
    """What is missing here to see the reverse map, each a sentence that says what to do. Empty: nothing."""
    if platform.system() != "Linux":
        return ["this is not Linux"]
    sentences = []
    if release_number(platform.release()) < KERNEL_MIN:
        sentences.append(f"Linux {platform.release()} is older than 6.1: boot a newer kernel")
    if refused := bpf.allowed():
        sentences.append(f"bpf(2) is refused ({refused}): run as root, outside of a container")
    if not BTF.exists():
        sentences.append(f"there is no {BTF}: boot a kernel with CONFIG_DEBUG_INFO_BTF")
    if _locked_down():
        sentences.append("lockdown forbids to read kernel memory: boot with lockdown=integrity")
    if shutil.which("clang") is None:
        sentences.append("there is no clang: apt install clang")
    if not _loads(bpf.LIBBPF):
        sentences.append(f"there is no {bpf.LIBBPF}: apt install libbpf1")
    return sentences


def _locked_down() -> bool:
    try:
        return "[confidentiality]" in LOCKDOWN.read_text()
    except OSError:  # not configured
        return False


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


class RmapProbe:
    """Reads the reverse map for as long as it is open; a context manager. Raises Unavailable."""

    def __init__(self) -> None:
        if lacks := missing():
            raise Unavailable(f"the reverse map of this kernel cannot be read: {'; '.join(lacks)}")
        with contextlib.ExitStack() as stack:
            try:
                self._object = _load()
                stack.callback(self._object.close)
                memory = mmap.mmap(self._object.map("exchange"), _WORDS * 8)
                stack.callback(memory.close)
                self._words = memoryview(memory).cast("Q")
                stack.callback(self._words.release)
                self._words[_VMEMMAP] = self._find_vmemmap()
            except (bpf.BpfError, OSError) as error:
                raise Unavailable(f"the reverse map of this kernel cannot be read: {error}") from error
            self._stack = stack.pop_all()

    def __enter__(self) -> RmapProbe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unload the programs; the probe is of no use afterwards."""
        self._stack.close()

    def read(self, pids: Collection[int], low: int, high: int) -> dict[int, list[RawVma]]:
        """The VMAs of each process that meet [low, high) (bytes), in address order.

        A process without memory (ended, or not there) has none. They have to stand still meanwhile.
        """
        self._words[_LOW], self._words[_HIGH] = low, high
        program = self._object.program("vmas")
        return {pid: list(decode_vmas(_iterate(program, pid))) for pid in pids}

    def folios(self, pfns: Collection[int]) -> dict[int, RawFolio]:
        """What the pages in these frames say; frames whose page is not anonymous are left out."""
        found = {}
        words = self._words
        program = self._object.program("folios")
        remaining = iter(pfns)
        while chunk := list(islice(remaining, _FRAMES_MAX)):
            count = words[_FRAMES] = len(chunk)
            for i, pfn in enumerate(chunk, _PFN):
                words[i] = pfn
            bpf.run(program)
            fields = (words[first : first + count].tolist() for first in (_READABLE, _MAPPING, _INDEX))
            for pfn, readable, mapping, index in zip(chunk, *fields, strict=True):
                folio = decode_folio(mapping, index) if readable else None
                if folio is not None:
                    found[pfn] = folio
        return found

    def _find_vmemmap(self) -> int:
        """Where the array of struct pages begins; looks at two pages, which must agree. Raises BpfError."""
        for _ in range(_TRIES):
            with _page_of_memfd() as one, _page_of_memfd() as other:
                places = {self._vmemmap_by(one), self._vmemmap_by(other)}
            if len(places) == 1 and None not in places:
                (place,) = places
                assert place is not None
                return place
        raise bpf.BpfError("where this kernel keeps its struct pages does not show")

    def _vmemmap_by(self, address: int) -> int | None:
        """Where the array begins, judged by the lone page of a memfd that is mapped at ``address``."""
        pid = os.getpid()
        frame = _frame(address)
        self._words[_LOW] = address
        record = memoryview(_iterate(self._object.program("page_cache"), pid)).cast("Q").tolist()
        if frame is None or len(record) != 2 or record[0] & 3 or _frame(address) != frame:
            return None
        page, size = record
        return page - frame * size


def _load() -> bpf.BpfObject:
    """Compile the programs (a twentieth of a second) and load them. Raises BpfError."""
    source = resources.files("oracle.live").joinpath("programs", _SOURCE).read_bytes()
    command = ["clang", "-target", "bpf", "-O2", "-g", "-x", "c", "-c", "-", "-o", "-"]
    done = subprocess.run(command, input=source, capture_output=True, check=False)
    if done.returncode:
        first = next(iter(done.stderr.decode(errors="replace").splitlines()), "no message")
        raise bpf.BpfError(f"clang cannot compile {_SOURCE}: {first}")
    return bpf.BpfObject(done.stdout)


def _iterate(program: int, pid: int) -> bytes:
    link = bpf.iterator_of_process(program, pid)
    try:
        return bpf.read_iterator(link)
    finally:
        os.close(link)


def decode_vmas(data: bytes) -> Iterator[RawVma]:
    """The records of the program ``vmas``. Raises InternalError where a chain is longer than it reads."""
    words: Sequence[int] = memoryview(data).cast("Q").tolist()
    at = 0
    while at < len(words):
        start, end, pgoff, file, *of_anon_vma = words[at : at + _RECORD]
        at = first = at + _RECORD
        while words[at] > _CHAIN_GOES_ON:
            at += 1
        if words[at] != _CHAIN_ENDS:
            raise InternalError(
                f"the chain of the VMA at {start:#x} has more AVCs than the probe reads: {at - first}"
            )
        anon_vma, root, parent, num_children, num_active_vmas = of_anon_vma
        chain = tuple(words[first:at])
        yield RawVma(
            start, end, pgoff, bool(file), anon_vma, root, parent, num_children, num_active_vmas, chain
        )
        at += 1


@contextlib.contextmanager
def _page_of_memfd() -> Iterator[int]:
    """The address where a file in memory of one page is mapped; its page is there."""
    descriptor = os.memfd_create("vmafuzz")
    try:
        os.ftruncate(descriptor, PAGE_SIZE)
        with mmap.mmap(descriptor, PAGE_SIZE) as memory:
            memory[0] = 1
            place = ctypes.c_char.from_buffer(memory)
            try:
                yield ctypes.addressof(place)
            finally:
                del place
    finally:
        os.close(descriptor)


def _frame(address: int) -> int | None:
    """The frame number of the page at ``address`` of this process; None where there is no page."""
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:
        pagemap.seek(address >> PAGE_SHIFT << 3)
        entry = int.from_bytes(pagemap.read(8), "little")
    return entry & _PAGEMAP_FRAME if entry & _PAGEMAP_PRESENT and entry & _PAGEMAP_FRAME else None
