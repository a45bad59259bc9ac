"""What else a process can ask of mappings: seals, names, memory policies, the same-page scanner, protection keys, and
other pages of the same file (rules: mm/mseal.c, mm/madvise.c, mm/mempolicy.c, mm/ksm.c, mm/mprotect.c, mm/mmap.c).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from emulator.mm_types import VM_ACCESS_FLAGS, VM_DROPPABLE, VM_LOCKED, VM_MERGEABLE, VM_SEALED
from emulator.uapi import EAGAIN, EBADF, EFAULT, EINVAL, ENOMEM, ENOSYS, EPERM, result_name
from emulator.workload import is_memory
from oracle.specification.lock import may_lock
from oracle.specification.page import (
    KIND,
    NAME,
    NAME_SHIFT,
    POLICY,
    POLICY_SHIFT,
    Page,
    Pages,
    Refusal,
    protected,
    with_flags,
    wrong_result,
)

if TYPE_CHECKING:
    from emulator.profile import Profile
    from emulator.workload import Op
    from oracle.specification.state import Specification


def _result(op: Op, ret: int, want: int) -> Refusal | None:
    return None if ret == want else wrong_result(op, ret, result_name(want) if want else "success")


def mseal(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """Nothing is sealed where there is a hole."""
    addr, length = op.args
    if not spec.limits.profile.mseal:
        return _result(op, ret, -ENOSYS)
    numbers = range(addr, addr + length)
    if any(number not in pages for number in numbers):
        return _result(op, ret, -ENOMEM)
    for number in numbers:
        pages[number] = with_flags(pages[number], 0, VM_SEALED)
    return _result(op, ret, 0)


def set_vma_name(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """Only anonymous memory has names, of newer kernels that which is shared too; a hole is an error at the end."""
    addr, length, name = op.args
    if not spec.limits.profile.anon_vma_name:
        return _result(op, ret, -EINVAL)
    want = 0
    for number in range(addr, addr + length):
        page = pages.get(number)
        if page is None:
            want = -ENOMEM
        elif not can_be_named(page, spec.limits.profile):
            return _result(op, ret, -EBADF)
        else:
            pages[number] = with_flags(page, NAME, name << NAME_SHIFT)
    return _result(op, ret, want)


def can_be_named(page: Page, profile: Profile) -> bool:
    """Is it anonymous memory that may have a name? So is a file of memory that is in no folder (shmem_mmap)."""
    return page.backing is None or (is_memory(page.backing.file) and profile.anon_shmem_name)


def mbind(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """A hole is an error before anything is done; the default policy minds only if there is nothing at all."""
    addr, length, policy = op.args
    mapped = [number for number in range(addr, addr + length) if number in pages]
    if length and (not mapped or (policy and len(mapped) < length)):
        return _result(op, ret, -EFAULT)
    for number in mapped:
        pages[number] = with_flags(pages[number], POLICY, policy << POLICY_SHIFT)
    return _result(op, ret, 0)


def memory_merge(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """All private memory is offered to the same-page scanner, what is there and what comes; or nothing is."""
    on = bool(op.args[0])
    if not spec.limits.profile.ksm_per_process:
        return _result(op, ret, -EINVAL)
    settings = spec.settings_of(op.proc)
    if settings.merge != on:
        spec.settings[op.proc] = settings._replace(merge=on)
        for number, page in pages.items():
            if not on or can_merge(page):
                pages[number] = with_flags(page, VM_MERGEABLE, VM_MERGEABLE if on else 0)
    return _result(op, ret, 0)


def can_merge(page: Page) -> bool:
    """May its mapping be offered to the same-page scanner? Not what others see, or what the kernel may throw away."""
    return not page.flags & VM_DROPPABLE and (page.backing is None or not page.backing.shared)


def mprotect(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """mprotect and pkey_mprotect: what stands before a hole or a seal is changed. No CPU here has protection keys."""
    addr, length, prot = op.args[:3]
    if op.kind == "pkey_mprotect" and op.args[3] and length:
        return _result(op, ret, -EINVAL)
    for number in range(addr, addr + length):
        page = pages.get(number)
        if page is None:
            return _result(op, ret, -ENOMEM)
        if page.flags & VM_SEALED:
            return _result(op, ret, -EPERM)
        pages[number] = protected(page, prot)
    return _result(op, ret, 0)


def remap_file_pages(spec: Specification, pages: Pages, op: Op, ret: int) -> Refusal | None:
    """A range of one shared file, all of one kind, shows other pages of the file; advice and names are forgotten."""
    addr, length, offset = op.args
    numbers = range(addr, addr + length)
    head = pages.get(addr)
    if head is None or head.backing is None or not head.backing.shared or not length:
        return _result(op, ret, -EINVAL)
    file = head.backing.file
    for number in numbers:
        page = pages.get(number)
        same = page is not None and page.backing is not None and page.backing.shared and page.backing.file == file
        if page is None or not same or (page.flags ^ head.flags) & KIND & ~(NAME | POLICY):
            return _result(op, ret, -EINVAL)
    if head.flags & VM_SEALED:
        return _result(op, ret, -EPERM)
    lock = spec.settings_of(op.proc).lock | head.flags & VM_LOCKED
    if lock and not may_lock(spec, pages, length):
        return _result(op, ret, -EAGAIN)
    shown = head.flags & VM_ACCESS_FLAGS | lock
    for i, number in enumerate(numbers):
        pages[number] = Page(shown, head.backing._replace(page=offset + i), None)
    return _result(op, ret, 0)
