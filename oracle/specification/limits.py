"""What limits of a process refuse (rules: mm/mmap.c may_expand_vm, kernel/sys.c). Pages.

How many mappings a process has is nothing that the specification knows: where they are limited, a call that may have
to cut one may fail.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from emulator.geometry import PAGE_SHIFT
from emulator.mm_types import VM_GROWSDOWN, VM_WRITE
from emulator.uapi import (
    ENOMEM,
    MADV_COLD,
    MADV_COLLAPSE,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_FREE,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_PAGEOUT,
    MADV_POPULATE_READ,
    MADV_POPULATE_WRITE,
    MADV_REMOVE,
    MADV_WILLNEED,
)
from emulator.workload import RLIMIT_AS, RLIMIT_DATA, RLIMIT_MEMLOCK, RLIMIT_STACK
from oracle.specification.page import FAILURES, Page, Pages, Refusal, wrong_result

if TYPE_CHECKING:
    from emulator.workload import Op
    from oracle.specification.state import Specification

_STOPPED: Final = frozenset(("mremap", "mprotect", "pkey_mprotect", "remap_file_pages"))
_CUTS: Final = _STOPPED | {
    "mmap", "munmap", "madvise", "mlock", "mlock2", "munlock", "mseal", "set_vma_name", "mbind", "uffd_register",
    "uffd_unregister",
}  # fmt: skip
# Advice about pages, which leaves mappings as they are.
_OF_PAGES: Final = frozenset(
    (
        MADV_WILLNEED, MADV_DONTNEED, MADV_DONTNEED_LOCKED, MADV_FREE, MADV_REMOVE, MADV_COLD, MADV_PAGEOUT,
        MADV_POPULATE_READ, MADV_POPULATE_WRITE, MADV_COLLAPSE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE,
    )
)  # fmt: skip


def setrlimit(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    resource, limit = op.args
    settings = spec.settings_of(op.proc)
    rlim = list(settings.rlim)
    rlim[resource] = limit
    spec.settings[op.proc] = settings._replace(rlim=tuple(rlim))
    return wrong_result(op, ret, "success") if ret else None


def max_map_count(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    spec.settings[op.proc] = spec.settings_of(op.proc)._replace(maps=True)
    return wrong_result(op, ret, "success") if ret else None


def overcommit_memory(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    spec.overcommit = op.args[0]
    return wrong_result(op, ret, "success") if ret else None


def limit_of(spec: Specification, pages: Pages, resource: int) -> int | None:
    """The limit of the process that has these ``pages``; None: there is none, or it does not bind."""
    label = next(label for label, held in spec.procs.items() if held is pages)
    limit = spec.settings_of(label).rlim[resource]
    if limit is None and resource == RLIMIT_STACK:
        return spec.limits.profile.rlimit_stack >> PAGE_SHIFT
    return spec.limits.memlock if limit is None and resource == RLIMIT_MEMLOCK else limit


def is_data(page: Page) -> bool:
    """Private memory that can be written, and is no stack."""
    shared = page.backing is not None and page.backing.shared
    return page.flags & (VM_WRITE | VM_GROWSDOWN) == VM_WRITE and not shared


def may_expand(spec: Specification, pages: Pages, more: int, *, data: bool) -> bool:
    """Is there room for ``more`` pages (may be negative), which are ``data`` or not?"""
    limit = limit_of(spec, pages, RLIMIT_AS)
    if limit is not None and len(pages) + more > limit:
        return False
    limit = limit_of(spec, pages, RLIMIT_DATA) if data else None
    return limit is None or sum(map(is_data, pages.values())) + more <= limit


def stopped_by_limit(spec: Specification, op: Op, ret: int) -> bool:
    """May this error come of a limit that the call met half-way: of mappings it does one after another?

    Which of them it had done is seen, not foretold.
    """
    settings = spec.settings_of(op.proc)
    rlim = settings.rlim
    limited = rlim[RLIMIT_AS] is not None or rlim[RLIMIT_DATA] is not None
    return (limited and ret == -ENOMEM and op.kind in _STOPPED) or stopped_by_maps(spec, op, ret)


def stopped_by_maps(spec: Specification, op: Op, ret: int) -> bool:
    """May the call have ended like this as the process must not have more mappings?"""
    if not spec.settings_of(op.proc).maps:
        return False
    if op.kind == "brk":
        return ret != op.args[0]
    if op.kind == "madvise" and op.args[2] in _OF_PAGES:
        return False
    return ret in FAILURES and op.kind in _CUTS

