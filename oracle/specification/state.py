"""The specification: what a process may see, page by page, without VMAs, anon_vmas or page tables.

A ``Page`` has flags (its protection, and what else a process can ask of a mapping and see), a backing (None:
anonymous; else which page of which file, shared or private) and contents: its own, or the file's. fork copies
contents, a move carries them, DONTNEED drops them. A page that is pinned for writing keeps its contents in a *cell*,
which the pin shares, for as long as it stays mapped; so the parent of a fork keeps the cell and the child gets a
copy. References without FOLL_PIN promise nothing, and what is written through one is taken from the machine
(``wild``). Whether anything is there at all shows to who uses userfaultfd only, and is followed apart (``userfaults``).

Where the kernel may choose (an address, which of several errors, one VMA or two) every consistent outcome is
allowed, and the state follows the outcome. After a failed allocation a call may have been done in part:
``failure.py`` says what may be left.

Page numbers are arena pages; contents are packed (``oracle.contents.pack``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.errors import InternalError
from emulator.mm_types import (
    VM_DROPPABLE,
)
from emulator.uapi import ESRCH, MADV_COLLAPSE
from emulator.workload import FOLL_LONGTERM, FOLL_WRITE, file_token, is_memory
from oracle.specification import (
    accesses,
    attributes,
    limits,
    lock,
    madvise,
    mappings,
    mremap,
    pins,
    process_madvise,
    processes,
    stack,
    uffd_calls,
    uffd_memory,
)
from oracle.specification.page import (
    Limits,
    Page,
    Pages,
    PinState,
    Refusal,
    Settings,
    beyond_file,
    wrong_result,
)
from oracle.specification.uffd import Userfaults

if TYPE_CHECKING:
    from emulator.workload import Op, Outcome

NO_SETTINGS: Final = Settings()


class Specification:
    """The state of all processes, files and pins. Cheap to copy: pages are immutable and shared by copies."""

    __slots__ = (
        "cells",
        "choices",
        "contested",
        "files",
        "forked",
        "frees",
        "limits",
        "merged",
        "next_cell",
        "overcommit",
        "overhangs",
        "pins",
        "procs",
        "resident",
        "settings",
        "stack_moved",
        "stacks",
        "unsettled",
        "userfaults",
        "wild",
    )

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.procs: dict[int, Pages] = {0: {}}
        self.settings: dict[int, Settings] = {}  # of processes that have any
        self.resident: dict[tuple[int, int], int] = {}  # pages of files of memory that there are (``uffd_memory``)
        self.contested: frozenset[tuple[int, int]] = frozenset()  # of those, what operations at the same time are about
        self.userfaults = {0: Userfaults()}  # of each process; empty: nobody uses userfaultfd
        self.forked = False  # there has been a child: pages may be shared, or have been
        self.files: dict[tuple[int, int], int] = {}  # contents of file pages that were written
        self.overhangs: frozenset[int] = frozenset()  # files of memory with pages, perhaps, behind their end
        self.cells: dict[int, int] = {}
        self.pins: dict[int, PinState] = {}
        self.next_cell = 1
        self.overcommit = limits.profile.overcommit_memory  # OVERCOMMIT_*
        self.stacks = False  # there may be memory that grows down
        self.stack_moved = False  # and some of it may have been moved
        self.merged = False  # equal pages may have been made one (ksm_scan)
        self.frees = False  # something may be, or have been, thrown away (MADV_FREE)
        self.choices = 0  # how often it turned out that the kernel had thrown something away
        self.unsettled: list[tuple[int, int]] = []  # (process, page) that the machine may show in one of two ways
        self.wild: list[int] = []  # pins without a promise that were written through since it was emptied

    def copy(self) -> Specification:
        other = Specification.__new__(Specification)
        other.limits = self.limits
        other.procs = {label: dict(pages) for label, pages in self.procs.items()}
        other.settings = dict(self.settings)
        other.resident = dict(self.resident)
        other.contested = self.contested
        other.userfaults = {label: known.copy() for label, known in self.userfaults.items()}
        other.forked = self.forked
        other.files = dict(self.files)
        other.overhangs = self.overhangs
        other.cells = dict(self.cells)
        other.pins = dict(self.pins)
        other.next_cell = self.next_cell
        other.overcommit = self.overcommit
        other.stacks = self.stacks
        other.stack_moved = self.stack_moved
        other.merged = self.merged
        other.frees = self.frees
        other.choices = self.choices
        other.unsettled = list(self.unsettled)
        other.wild = list(self.wild)
        return other

    def settings_of(self, label: int) -> Settings:
        return self.settings.get(label, NO_SETTINGS)

    # ---- contents

    def content(self, page: Page) -> int:
        """What a load from the page gives."""
        own = page.content
        if own is None:
            backing = page.backing
            assert backing is not None
            return self.file_content(backing.file, backing.page)
        return self.cells[-own] if own < 0 else own

    def file_content(self, file: int, page: int) -> int:
        """What a page of a file holds; before it is written, the token of file and page, of memory zeros."""
        written = self.files.get((file, page))
        if written is not None:
            return written
        return 0 if is_memory(file) else file_token(file, page)

    def punch(self, file: int, page: int) -> None:
        """Let the file have a hole there. A pin on what was there shares it with nobody any more."""
        self.files[file, page] = 0
        if self.userfaults:
            uffd_memory.punched(self, file, page)
        for label, pin in self.pins.items():
            if pin.file == (file, page):
                self.pins[label] = pin._replace(file=None)

    def note_collapse(self, op: Op) -> None:
        """A collapse of a file of memory may make a huge page that reaches behind the end of the file.

        What such a page holds there can be read and written by whoever has it mapped as a whole. It goes when the huge
        page is split, which may be at any time.
        """
        for call in process_madvise.ranges(op) if op.kind == "process_madvise" else [op]:
            if call.kind == "madvise" and call.args[2] == MADV_COLLAPSE:
                pages = self.procs.get(call.proc, {})
                backings = [page.backing for n in range(*_bounds(call)) if (page := pages.get(n)) is not None]
                self.overhangs |= {backing.file for backing in backings if backing and is_memory(backing.file)}

    def meets_end(self, page: Page, refused: bool) -> bool:
        """Does an access meet the end of the page's file? Where it may or not, whether it was ``refused`` says so."""
        if not beyond_file(page):
            return False
        assert page.backing is not None
        return refused or page.backing.file not in self.overhangs

    def settle_overhang(self, page: Page, shown: int) -> None:
        """What was written behind the end of a file may be gone."""
        if not shown and self.overhangs and beyond_file(page):
            assert page.backing is not None
            self.files[page.backing.file, page.backing.page] = 0

    def set_content(self, pages: Pages, number: int, page: Page, content: int) -> None:
        """Give the page these contents, wherever they are kept."""
        backing = page.backing
        if backing is not None and backing.shared:
            self.files[backing.file, backing.page] = content
        elif page.content is not None and page.content < 0:
            self.cells[-page.content] = content
        else:
            pages[number] = Page(page.flags, backing, content, page.dropped)

    def settle_dropped(self, pages: Pages, number: int, page: Page, shown: int) -> Page:
        """A page that the kernel may have emptied holds ``shown``: the page as it is known now.

        Where ``shown`` is neither of the two, or both, nothing is learnt.
        """
        kept, other = self.content(page), page.other()
        if page.flags & VM_DROPPABLE and not shown:
            other = 0  # whatever was written
        if shown == other != kept:
            assert other is not None
            self.choices += 1
            if page.content is not None and page.content < 0 and self._thrown_away_before(-page.content):
                self.cells[-page.content] = other
            elif page.content is None and page.backing is not None:
                self.files[page.backing.file, page.backing.page] = other
            else:
                page = Page(page.flags, page.backing, other, page.dropped)
        elif shown != kept:
            return page
        elif page.dropped == 0:
            return page  # kept until now
        droppable = page.flags & VM_DROPPABLE
        page = pages[number] = Page(page.flags, page.backing, page.content, 0 if droppable else None)
        return page

    def _thrown_away_before(self, cell: int) -> bool:
        """A pinned page is not thrown away, so it was before the pins came. Has one of them then a page of its own?

        Short pins for reading got the page of zeros, and promise nothing.
        """
        holders = [label for label, pin in self.pins.items() if pin.cell == cell]
        if any(self.pins[label].flags & (FOLL_WRITE | FOLL_LONGTERM) for label in holders):
            return True
        for label in holders:
            self.pins[label] = self.pins[label]._replace(cell=0)
        return False

    # ---- one operation

    def apply(self, op: Op, outcome: Outcome, token: int) -> Refusal | None:
        """Do ``op`` with this outcome, which must not come from an injected failure. None: allowed.

        ``token`` is what the op writes, if it writes. After a refusal the state is undefined.
        """
        self.note_collapse(op)
        pages = self.procs.get(op.proc)
        if pages is None:
            return None if outcome.ret == -ESRCH else wrong_result(op, outcome.ret, "-ESRCH")
        if op.kind == "process_madvise":
            return process_madvise.process_madvise(self, op, outcome.ret, lambda spec, *call: spec.apply(*call, token))
        if self.userfaults:
            return uffd_calls.apply(self, pages, op, outcome, token)
        return self.ordinary(pages, op, outcome, token)

    def ordinary(self, pages: Pages, op: Op, outcome: Outcome, token: int) -> Refusal | None:
        """``apply`` where there is no userfaultfd."""
        kind = op.kind
        ret = outcome.ret
        if kind == "write":
            return accesses.write(self, pages, op, ret, token)
        if kind == "read":
            return accesses.read(self, pages, op, outcome)
        if kind == "mmap":
            return mappings.mmap(self, pages, op, ret, token)
        if kind == "pin_write":
            return pins.pin_write(self, op, ret, token)
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise InternalError(f"the specification does not know the operation {kind!r}")
        return handler(self, pages, op, ret)


def _bounds(op: Op) -> tuple[int, int]:
    return op.args[0], op.args[0] + op.args[1]


def _kernel_activity(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    spec.merged = spec.merged or op.kind == "ksm_scan"
    return None  # it may do something or not; nobody may see it


_HANDLERS = {
    "munmap": mappings.munmap,
    "mprotect": attributes.mprotect,
    "madvise": madvise.madvise,
    "fork": processes.fork,
    "exit": processes.exit,
    "exec": accesses.fetch,
    "fill": accesses.fill,
    "mremap": mremap.mremap,
    "gup_fast": pins.gup,
    "gup_slow": pins.gup,
    "unpin": pins.unpin,
    "mlock": lock.mlock,
    "mlock2": lock.mlock,
    "munlock": lock.mlock,
    "mlockall": lock.mlockall,
    "munlockall": lock.mlockall,
    "brk": stack.brk,
    "mseal": attributes.mseal,
    "set_vma_name": attributes.set_vma_name,
    "memory_merge": attributes.memory_merge,
    "setrlimit": limits.setrlimit,
    "max_map_count": limits.max_map_count,
    "overcommit_memory": limits.overcommit_memory,
    "mbind": attributes.mbind,
    "pkey_mprotect": attributes.mprotect,
    "remap_file_pages": attributes.remap_file_pages,
    "reclaim": _kernel_activity,
    "swap_readahead": _kernel_activity,
    "migrate": _kernel_activity,
    "ksm_scan": _kernel_activity,
    "thp_sizes": _kernel_activity,
}
