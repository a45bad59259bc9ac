"""The specification: what a process may see, page by page, without VMAs, anon_vmas or page tables.

A ``Page`` has flags (its protection, and what else a process can ask of a mapping and see), a backing (None:
anonymous; else which page of which file, shared or private) and contents: its own, or the file's. fork copies
contents, a move carries them, DONTNEED drops them. A page that is pinned for writing keeps its contents in a *cell*,
which the pin shares, for as long as it stays mapped; so the parent of a fork keeps the cell and the child gets a
copy. References without FOLL_PIN promise nothing, and what is written through one is taken from the machine
(``wild``). Whether anything is there at all shows to who uses userfaultfd only, and is followed apart (``userfaults``).

Where the kernel may choose (an address, which of several errors, one VMA or two) every consistent outcome is
allowed, and the state follows the outcome. After a failed allocation a call may have been done in part:
``after_failure`` says what may be left.

Page numbers are arena pages; contents are packed (``oracle.observation.pack``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.errors import InternalError
from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_GROWSDOWN,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_WIPEONFORK,
)
from emulator.uapi import (
    EAGAIN,
    EBUSY,
    EEXIST,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    EPERM,
    ESRCH,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    MAP_TYPE,
    PROT_EXEC,
    PROT_WRITE,
    SIGBUS,
    SIGSEGV,
)
from emulator.workload import file_token, pattern_token
from oracle import (
    specification_attributes,
    specification_lock,
    specification_madvise,
    specification_mremap,
    specification_pins,
    specification_stack,
    specification_uffd_calls,
)
from oracle.contents import LANE, pack_data, unpack
from oracle.specification_page import (
    GUARDED,
    Backing,
    Limits,
    Page,
    Pages,
    PinState,
    Refusal,
    Settings,
    beyond_file,
    content_difference,
    fresh,
    names,
    unlocked,
    wrong_result,
)
from oracle.specification_uffd import Userfaults

if TYPE_CHECKING:
    from emulator.workload import Op, Outcome

NO_SETTINGS: Final = Settings()
_MAPPING_FLAGS: Final = ((MAP_NORESERVE, VM_NORESERVE), (MAP_LOCKED, VM_LOCKED), (MAP_GROWSDOWN, VM_GROWSDOWN))
_CHANGED_BY_FORK: Final = VM_LOCKED | VM_DONTCOPY | VM_WIPEONFORK


class Specification:
    """The state of all processes, files and pins. Cheap to copy: pages are immutable and shared by copies."""

    __slots__ = (
        "cells",
        "choices",
        "files",
        "forked",
        "frees",
        "limits",
        "next_cell",
        "pins",
        "procs",
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
        self.userfaults = {0: Userfaults()}  # of each process; empty: nobody uses userfaultfd
        self.forked = False  # there has been a child: pages may be shared, or have been
        self.files: dict[tuple[int, int], int] = {}  # contents of file pages that were written
        self.cells: dict[int, int] = {}
        self.pins: dict[int, PinState] = {}
        self.next_cell = 1
        self.stacks = False  # there may be memory that grows down
        self.stack_moved = False  # and some of it may have been moved
        self.frees = False  # something may be, or have been, thrown away (MADV_FREE)
        self.choices = 0  # how often it turned out that the kernel had thrown something away
        self.unsettled: list[tuple[int, int]] = []  # (process, page) that the machine may show in one of two ways
        self.wild: list[int] = []  # pins without a promise that were written through since it was emptied

    def copy(self) -> Specification:
        other = Specification.__new__(Specification)
        other.limits = self.limits
        other.procs = {label: dict(pages) for label, pages in self.procs.items()}
        other.settings = dict(self.settings)
        other.userfaults = {label: known.copy() for label, known in self.userfaults.items()}
        other.forked = self.forked
        other.files = dict(self.files)
        other.cells = dict(self.cells)
        other.pins = dict(self.pins)
        other.next_cell = self.next_cell
        other.stacks = self.stacks
        other.stack_moved = self.stack_moved
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
        """What a page of a file holds; before it is written, the token of file and page."""
        written = self.files.get((file, page))
        return file_token(file, page) if written is None else written

    def _store(self, label: int, pages: Pages, number: int, page: Page, at: int, token: int) -> None:
        lane = at * LANE
        mask = ~(((1 << LANE) - 1) << lane)
        other = 0 if page.flags & VM_DROPPABLE else page.other()
        if other is not None:  # no more to be thrown away, from now on
            page = pages[number] = Page(page.flags, page.backing, page.content, ~(other & mask | token << lane))
            self.unsettled.append((label, number))
        self.set_content(pages, number, page, self.content(page) & mask | token << lane)

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
            if page.content is not None and page.content < 0:
                self.cells[-page.content] = other
            else:
                page = Page(page.flags, page.backing, other, page.dropped)
        elif shown != kept:
            return page
        elif page.dropped == 0:
            return page  # kept until now
        droppable = page.flags & VM_DROPPABLE
        page = pages[number] = Page(page.flags, page.backing, page.content, 0 if droppable else None)
        return page

    # ---- one operation

    def apply(self, op: Op, outcome: Outcome, token: int) -> Refusal | None:
        """Do ``op`` with this outcome, which must not come from an injected failure. None: allowed.

        ``token`` is what the op writes, if it writes. After a refusal the state is undefined.
        """
        pages = self.procs.get(op.proc)
        if pages is None:
            return None if outcome.ret == -ESRCH else wrong_result(op, outcome.ret, "-ESRCH")
        if self.userfaults:
            return specification_uffd_calls.apply(self, pages, op, outcome, token)
        return self.ordinary(pages, op, outcome, token)

    def ordinary(self, pages: Pages, op: Op, outcome: Outcome, token: int) -> Refusal | None:
        """``apply`` where there is no userfaultfd."""
        kind = op.kind
        ret = outcome.ret
        if kind == "write":
            return self._write(pages, op, ret, token)
        if kind == "read":
            return self._read(pages, op, outcome)
        if kind == "pin_write":
            return specification_pins.pin_write(self, op, ret, token)
        handler = _HANDLERS.get(kind)
        if handler is None:
            raise InternalError(f"the specification does not know the operation {kind!r}")
        return handler(self, pages, op, ret)

    # ---- accesses

    def _read(self, pages: Pages, op: Op, outcome: Outcome) -> Refusal | None:
        page = pages.get(op.args[0])
        ret = outcome.ret
        if page is None and self.stacks:
            page = specification_stack.grow(self, pages, op, ret)
        if page is None or not page.flags & VM_ACCESS_FLAGS or page.flags & GUARDED:
            return None if ret == SIGSEGV else wrong_result(op, ret, "SIGSEGV")
        if beyond_file(page):
            return None if ret == SIGBUS else wrong_result(op, ret, "SIGBUS")
        if ret or outcome.data is None:
            return wrong_result(op, ret, "success")
        got = pack_data(outcome.data)
        if page.dropped is not None:
            page = self.settle_dropped(pages, op.args[0], page, got)
        want = self.content(page)
        if want == got:
            return None
        return Refusal(
            "read",
            content_difference(want, got),
            f"process {op.proc} read {unpack(got)} at page {op.args[0]}, where {unpack(want)} was written",
        )

    def _store_refused(self, pages: Pages, op: Op, ret: int) -> Refusal | None:
        """What is wrong with the result of a store; None also where the store was rightly refused."""
        page = pages.get(op.args[0])
        if page is None and self.stacks:
            page = specification_stack.grow(self, pages, op, ret)
        if page is None or not page.flags & PROT_WRITE or page.flags & GUARDED:
            return None if ret == SIGSEGV else wrong_result(op, ret, "SIGSEGV")
        if beyond_file(page):
            return None if ret == SIGBUS else wrong_result(op, ret, "SIGBUS")
        return wrong_result(op, ret, "success") if ret else None

    def _write(self, pages: Pages, op: Op, ret: int, token: int) -> Refusal | None:
        number, at = op.args
        refusal = self._store_refused(pages, op, ret)
        if not ret and refusal is None:
            self._store(op.proc, pages, number, pages[number], at, token)
        return refusal

    def _fill(self, pages: Pages, op: Op, ret: int) -> Refusal | None:
        number, pattern = op.args
        refusal = self._store_refused(pages, op, ret)
        if not ret and refusal is None:
            page = pages[number]
            if page.other() is not None or page.flags & VM_DROPPABLE:  # what was thrown away before is nothing now
                page = Page(page.flags, page.backing, page.content, 0 if page.flags & VM_DROPPABLE else None)
                pages[number] = page
            self.set_content(pages, number, page, pattern_token(pattern))
        return refusal

    def _exec(self, pages: Pages, op: Op, ret: int) -> Refusal | None:
        page = pages.get(op.args[0])
        if page is None and self.stacks:
            page = specification_stack.grow(self, pages, op, ret)
        if page is None or not page.flags & PROT_EXEC or page.flags & GUARDED:
            if ret == SIGBUS and page is not None and page.flags & VM_ACCESS_FLAGS and beyond_file(page):
                return None  # which of the two errors comes first is the kernel's choice
            return None if ret == SIGSEGV else wrong_result(op, ret, "SIGSEGV")
        if beyond_file(page):
            return None if ret == SIGBUS else wrong_result(op, ret, "SIGBUS")
        return wrong_result(op, ret, "success") if ret else None

    # ---- mappings

    def _mmap(self, pages: Pages, op: Op, ret: int) -> Refusal | None:
        addr, length, prot, flags, file, offset = op.args
        fixed = bool(flags & (MAP_FIXED | MAP_FIXED_NOREPLACE))
        errors = self._mmap_errors(pages, op, fixed)
        if ret in errors or (ret == -ENOMEM and self.may_lack_space(pages, length, anywhere=not fixed)):
            return None
        if errors or ret < 0:
            return wrong_result(op, ret, names(errors or {0}))
        refusal = self.check_place(pages, op, ret, length, addr if fixed else None, replace=fixed)
        if refusal is not None:
            return refusal
        shown = prot & VM_ACCESS_FLAGS | self.settings_of(op.proc).lock
        for flag, added in _MAPPING_FLAGS:
            if flags & flag:
                shown |= added
        if flags & MAP_STACK and self.limits.profile.map_stack_nohugepage:
            shown |= VM_NOHUGEPAGE
        if flags & MAP_TYPE == MAP_DROPPABLE:
            shown = shown & ~VM_LOCKED_MASK | VM_DROPPABLE | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP
            self.frees = True
        if flags & MAP_GROWSDOWN:
            self.stacks = True
        shared = bool(file) and flags & MAP_TYPE != MAP_PRIVATE
        if self.settings_of(op.proc).merge and not shared and not shown & VM_DROPPABLE:
            shown |= VM_MERGEABLE
        if file == 0:
            pages.update(dict.fromkeys(range(ret, ret + length), Page(shown, None, 0)))
        else:
            for i in range(length):
                pages[ret + i] = Page(shown, Backing(shared, file - 1, offset + i), None)
        return None

    def _mmap_errors(self, pages: Pages, op: Op, fixed: bool) -> set[int]:
        """The errors of which one must come; empty when the call must succeed."""
        addr, length, _, flags, file, _ = op.args
        errors = set()
        if not length:
            errors.add(-EINVAL)
        kind = flags & MAP_TYPE
        if file == 0:
            droppable = kind == MAP_DROPPABLE and self.limits.profile.map_droppable
            if kind != MAP_PRIVATE and (not droppable or flags & (MAP_LOCKED | MAP_GROWSDOWN)):
                errors.add(-EINVAL)  # shared anonymous memory is not modelled
        elif kind not in (MAP_SHARED, MAP_PRIVATE, MAP_SHARED_VALIDATE) or flags & MAP_GROWSDOWN:
            errors.add(-EINVAL)
        if file and kind == MAP_SHARED_VALIDATE and flags & MAP_FIXED_NOREPLACE:
            errors.add(-EOPNOTSUPP)  # it is newer than VALIDATE's list of flags
        if flags & MAP_FIXED_NOREPLACE and any(n in pages for n in range(addr, addr + length)):
            errors.add(-EEXIST)
        if fixed and addr + length > self.limits.top:
            errors.add(-ENOMEM)
        if fixed and specification_mremap.sealed(pages, addr, addr + length):
            errors.add(-EPERM)
        if flags & MAP_LOCKED and self.limits.memlock == 0:
            errors.add(-EPERM)
        if flags & MAP_LOCKED or self.settings_of(op.proc).lock:
            if not specification_lock.may_lock(self, pages, length):
                errors.add(-EAGAIN)
        return errors

    def may_lack_space(self, pages: Pages, more: int, *, anywhere: bool) -> bool:
        """May -ENOMEM come without a failure: too much mapped, or no gap of that size?"""
        if len(pages) + more > self.limits.total:
            return True
        if not anywhere:
            return False
        floor = 0
        for number in sorted(pages):
            gap = self.limits.stack_guard_gap if pages[number].flags & VM_GROWSDOWN else 0
            if number - gap - floor >= more:
                return False
            floor = number + 1
        return self.limits.top - floor < more

    def check_place(
        self, pages: Pages, op: Op, ret: int, length: int, asked: int | None, *, replace: bool
    ) -> Refusal | None:
        """Is the address that the call returned one that it may return?"""
        if asked is not None and ret != asked:
            return wrong_result(op, ret, "the address asked for")
        if ret + length > self.limits.top:
            return Refusal("placement", f"{op.kind} beyond user space", f"{op.kind} placed pages beyond user space")
        if not replace and any(number in pages for number in range(ret, ret + length)):
            detail = f"{op.kind} of process {op.proc} chose page {ret}, where something is mapped"
            return Refusal("placement", f"{op.kind} over a mapping", detail)
        return None

    def _munmap(self, pages: Pages, op: Op, ret: int) -> Refusal | None:
        addr, length = op.args
        if not length:
            return None if ret == -EINVAL else wrong_result(op, ret, "-EINVAL")
        if specification_mremap.sealed(pages, addr, addr + length):
            return None if ret == -EPERM else wrong_result(op, ret, "-EPERM")
        if ret:
            return wrong_result(op, ret, "success")
        for number in range(addr, addr + length):
            pages.pop(number, None)
        return None

    # ---- processes

    def _fork(self, pages: Pages, op: Op, ret: int) -> Refusal | None:
        label = op.args[0]
        if label in self.procs:
            return None if ret == -EBUSY else wrong_result(op, ret, "-EBUSY")
        if ret:
            return wrong_result(op, ret, "success")
        child = dict(pages)
        for number, page in pages.items():
            if page.content is not None and page.content < 0:
                child[number] = page = Page(page.flags, page.backing, self.cells[-page.content], page.dropped)
            if page.flags & _CHANGED_BY_FORK:
                if page.flags & VM_DONTCOPY:
                    del child[number]
                    continue
                child[number] = unlocked(fresh(page) if page.flags & VM_WIPEONFORK else page)
        self.procs[label] = child
        if op.proc in self.settings:
            self.settings[label] = self.settings[op.proc]._replace(lock=0)
        return None

    def _exit(self, pages: Pages, op: Op, ret: int) -> Refusal | None:
        del self.procs[op.proc]
        self.settings.pop(op.proc, None)
        return wrong_result(op, ret, "success") if ret else None

    def _kernel_activity(self, pages: Pages, op: Op, ret: int) -> Refusal | None:
        return None  # it may do something or not; nobody may see it


_HANDLERS = {
    "mmap": Specification._mmap,
    "munmap": Specification._munmap,
    "mprotect": specification_attributes.mprotect,
    "madvise": specification_madvise.madvise,
    "fork": Specification._fork,
    "exit": Specification._exit,
    "exec": Specification._exec,
    "fill": Specification._fill,
    "mremap": specification_mremap.mremap,
    "gup_fast": specification_pins.gup,
    "gup_slow": specification_pins.gup,
    "unpin": specification_pins.unpin,
    "mlock": specification_lock.mlock,
    "mlock2": specification_lock.mlock,
    "munlock": specification_lock.mlock,
    "mlockall": specification_lock.mlockall,
    "munlockall": specification_lock.mlockall,
    "brk": specification_stack.brk,
    "mseal": specification_attributes.mseal,
    "set_vma_name": specification_attributes.set_vma_name,
    "memory_merge": specification_attributes.memory_merge,
    "mbind": specification_attributes.mbind,
    "pkey_mprotect": specification_attributes.mprotect,
    "remap_file_pages": specification_attributes.remap_file_pages,
    "reclaim": Specification._kernel_activity,
    "swap_readahead": Specification._kernel_activity,
    "migrate": Specification._kernel_activity,
    "ksm_scan": Specification._kernel_activity,
}
