"""The values that the specification is made of: pages, pins, refusals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from emulator.mm_types import (
    VM_ACCESS_FLAGS,
    VM_DONTCOPY,
    VM_DONTDUMP,
    VM_DROPPABLE,
    VM_GROWSDOWN,
    VM_HUGEPAGE,
    VM_LOCKED,
    VM_LOCKED_MASK,
    VM_LOCKONFAULT,
    VM_MERGEABLE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_RAND_READ,
    VM_SEALED,
    VM_SEQ_READ,
    VM_UFFD_FLAGS,
    VM_WIPEONFORK,
)
from emulator.profile import PROFILES, Profile
from emulator.uapi import EAGAIN, ENOMEM, OOM_KILLED, result_name
from emulator.workload import FILE_PAGES, RESOURCES

if TYPE_CHECKING:
    from emulator.workload import Op


# What a mapping shows of its flags (rwx in /proc/PID/maps, the rest as VmFlags in smaps) and calls decide page by
# page. Not VM_ACCOUNT, which hangs on whether a VMA was written to, and not what a VMA has as a whole.
SHOWN: Final = (
    VM_ACCESS_FLAGS | VM_GROWSDOWN | VM_LOCKED | VM_LOCKONFAULT | VM_SEQ_READ | VM_RAND_READ | VM_DONTCOPY
    | VM_NORESERVE | VM_WIPEONFORK | VM_DONTDUMP | VM_HUGEPAGE | VM_NOHUGEPAGE | VM_MERGEABLE | VM_DROPPABLE
    | VM_SEALED | VM_UFFD_FLAGS
)  # fmt: skip

# Private to the specification, above all flags of the kernel: the VMA may have lost VM_LOCKED_MASK, as one of which
# a part was moved with DONTUNMAP has. The machine shows whether the page stands in such a VMA.
MAYBE_UNLOCKED: Final = 1 << 64
MAYBE_UNMAPPED: Final = 1 << 65  # likewise: a stack that may not have grown down to here
GUARDED: Final = 1 << 66  # likewise private: a guard region (MADV_GUARD_INSTALL), where every access traps

# What else a mapping has that calls give it page by page: its name (0: none, n: the nth of VMA_NAMES), and its memory
# policy (the number of one of POLICIES).
NAME_SHIFT: Final = 70
NAME: Final = 3 << NAME_SHIFT
POLICY_SHIFT: Final = 72
POLICY: Final = 3 << POLICY_SHIFT
KIND: Final = SHOWN | NAME | POLICY  # pages that differ in these stand in different VMAs


class Backing(NamedTuple):
    """Which page of which file stands behind a page."""

    shared: bool
    file: int
    page: int
    length: int = FILE_PAGES  # pages that the file has


class Page(NamedTuple):
    """One mapped page. ``flags``: VM_* bits of SHOWN, of which the lowest three are PROT_*.

    ``content``: None is the file's, >= 0 its own (packed), < 0 that of cell ``-content``. ``dropped``: what it holds
    if the kernel has thrown away what MADV_FREE let it throw away. None: it may not; >= 0: it may do so at any time;
    < 0 (``~`` of the contents): it cannot any more, and the machine shows whether it has.
    """

    flags: int
    backing: Backing | None
    content: int | None
    dropped: int | None = None

    def other(self) -> int | None:
        """The contents that the page may have instead of ``content``."""
        dropped = self.dropped
        return dropped if dropped is None or dropped >= 0 else ~dropped


class PinState(NamedTuple):
    """What get_user_pages gave out: the cell or file page that it must stay coherent with, if it must."""

    flags: int
    cell: int  # 0: none
    file: tuple[int, int] | None


class Refusal(NamedTuple):
    """Why an outcome is not allowed: (rule, cause for the signature, sentence for people)."""

    rule: str
    cause: str
    detail: str


Pages = dict[int, Page]
Group = list[dict[int, Page | None]]
"""Alternatives for a few pages that hang together: page number to what it is then, None for unmapped."""

FAILURES: Final = frozenset((-ENOMEM, -EAGAIN, OOM_KILLED))


class Limits(NamedTuple):
    """What bounds a process: pages of address space above the arena's start, and mappable pages in total."""

    top: int
    total: int
    mremap_flags: int  # MREMAP_* bits that the design under test knows
    profile: Profile = PROFILES["6.18"]
    stack_guard_gap: int = 256  # pages
    heap: int = 0  # arena page where the heap of the first process begins
    huge: int = 512  # pages of a huge page

    @property
    def memlock(self) -> int | None:
        """RLIMIT_MEMLOCK in pages; None where it does not bind."""
        return self.profile.memlock_pages


class Settings(NamedTuple):
    """What a process has beside its pages."""

    lock: int = 0  # VM_LOCKED_MASK bits of what it will map (mlockall MCL_FUTURE); a child does not inherit them
    merge: bool = False  # all memory is offered to the same-page scanner (PR_SET_MEMORY_MERGE)
    rlim: tuple[int | None, ...] = (None,) * len(RESOURCES)  # limits that were set, in pages
    maps: bool = False  # how many mappings it may have was limited, so any call that makes one may fail
    brk: int = -1  # arena page where its heap ends; -1: where it begins


def wrong_result(op: Op, ret: int, allowed: str) -> Refusal:
    return Refusal(
        "result",
        f"{op.kind} gave {result_name(ret) if ret < 0 else 'success'}, allowed {allowed}",
        f"{op.kind} of process {op.proc} gave {result_name(ret)}, allowed: {allowed}",
    )


def erased(page: Page) -> Page:
    """The page after its own contents were dropped."""
    if page.content is None:
        return page
    return Page(page.flags, page.backing, 0 if page.backing is None else None)


def fresh(page: Page) -> Page:
    """The page after all that its page table said of it is gone: its own contents, a guard."""
    return with_flags(erased(page), GUARDED, 0)


def with_flags(page: Page, cleared: int, added: int) -> Page:
    """The page in a mapping with other flags."""
    return Page(page.flags & ~cleared | added, page.backing, page.content, page.dropped)


def protected(page: Page, prot: int) -> Page:
    """The page with another protection (PROT_*)."""
    return with_flags(page, VM_ACCESS_FLAGS, prot)


def unlocked(page: Page) -> Page:
    """The page in a VMA that is not locked any more."""
    return with_flags(page, VM_LOCKED_MASK | MAYBE_UNLOCKED, 0)


def beyond_file(page: Page) -> bool:
    """Does an access meet the end of the file?"""
    return page.content is None and page.backing is not None and page.backing.page >= page.backing.length


def follows_file(page: Page) -> bool:
    """Is it a page of a private mapping that shows the file's page still?"""
    return page.content is None and page.backing is not None and not page.backing.shared


def content_difference(want: int, got: int) -> str:
    """How contents differ, for a signature."""
    if not got:
        return "contents lost"
    if not want:
        return "contents out of nowhere"
    return "other contents"


def names(results: set[int]) -> str:
    return " or ".join("success" if not r else result_name(r) for r in sorted(results))


def sealed(pages: Pages, first: int, end: int) -> bool:
    """Is something in [first, end) sealed?"""
    return any(number in pages and pages[number].flags & VM_SEALED for number in range(first, end))
