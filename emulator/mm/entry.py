"""The system call table: from an op of a workload to the kernel function (arch/x86/entry).

Not a file of the kernel's mm/, but part of the image. Ops carry arena pages; everything below takes bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from emulator.errors import KernelBug
from emulator.geometry import PAGE_SHIFT
from emulator.mm import (
    brk,
    fault,
    fork,
    fs_userfaultfd,
    gup,
    huge_memory,
    ksm,
    ksm_scan,
    madvise,
    memory,
    mempolicy,
    migrate,
    mlock,
    mmap,
    mprotect,
    mremap,
    mseal,
    munmap,
    process_madvise,
    remap_file_pages,
    swap_state,
    sys,
    util,
    vmscan,
)
from emulator.mm_types import MmStruct, Pin
from emulator.uapi import EBUSY, EINVAL, ESRCH, MAP_ANONYMOUS
from emulator.workload import FOLL_WRITE, VMA_NAMES, Op, pattern_token, token

if TYPE_CHECKING:
    from emulator.machine import Machine
    from emulator.sched.scheduler import Task

Data = tuple[tuple[int, int], ...] | None
"""A page's contents: sorted (offset, token) pairs."""


def run_op(m: Machine, op: Op, task: Task) -> tuple[int, Data]:
    """Run one op as its process. (result, contents for a read); -ESRCH when there is no such process."""
    mm = m.procs.get(op.proc)
    if mm is None:
        return -ESRCH, None
    kind = op.kind
    if kind == "read":
        done = read(mm, op)
    elif kind == "write":
        done = write(mm, op, task), None
    else:
        done = HANDLERS[kind](mm, op.args), None
    m.call_ended()
    return done


def address(mm: MmStruct, page: int) -> int:
    """Arena page to virtual address."""
    return mm.machine.geometry.arena_start + (page << PAGE_SHIFT)


def to_page(mm: MmStruct, result: int) -> int:
    """An address that a system call returned, as arena page; errors as they are."""
    return result if result < 0 else (result - mm.machine.geometry.arena_start) >> PAGE_SHIFT


def read(mm: MmStruct, op: Op) -> tuple[int, Data]:
    got = fault.access(mm, address(mm, op.args[0]), 0)
    if isinstance(got, int):
        return got, None
    folio, page = got
    return 0, tuple(sorted(folio.content[page].items()))


def write(mm: MmStruct, op: Op, task: Task) -> int:
    got = fault.access(mm, address(mm, op.args[0]), memory.FAULT_FLAG_WRITE)
    if isinstance(got, int):
        return got
    folio, page = got
    folio.content[page][op.args[1]] = token(mm.machine.step_index, task.index)
    return 0


def fill(mm: MmStruct, args: tuple[int, ...]) -> int:
    got = fault.access(mm, address(mm, args[0]), memory.FAULT_FLAG_WRITE)
    if isinstance(got, int):
        return got
    folio, page = got
    mark = pattern_token(args[1])
    folio.content[page] = {0: mark} if mark else {}
    return 0


def execute(mm: MmStruct, args: tuple[int, ...]) -> int:
    got = fault.access(mm, address(mm, args[0]), memory.FAULT_FLAG_INSTRUCTION)
    return got if isinstance(got, int) else 0


def do_mmap(mm: MmStruct, args: tuple[int, ...]) -> int:
    addr, length, prot, flags, file, offset = args
    handle = mm.machine.files[file - 1] if file else None
    if handle is None:
        flags |= MAP_ANONYMOUS
    result = mmap.sys_mmap(
        mm, address(mm, addr), length << PAGE_SHIFT, prot, flags, handle, offset << PAGE_SHIFT
    )
    return to_page(mm, result)


def do_munmap(mm: MmStruct, args: tuple[int, ...]) -> int:
    return munmap.sys_munmap(mm, address(mm, args[0]), args[1] << PAGE_SHIFT)


def do_mremap(mm: MmStruct, args: tuple[int, ...]) -> int:
    addr, old_len, new_len, flags, new_addr = args
    result = mremap.sys_mremap(
        mm, address(mm, addr), old_len << PAGE_SHIFT, new_len << PAGE_SHIFT, flags, address(mm, new_addr)
    )
    return to_page(mm, result)


def do_mprotect(mm: MmStruct, args: tuple[int, ...]) -> int:
    return mprotect.sys_mprotect(mm, address(mm, args[0]), args[1] << PAGE_SHIFT, args[2])


def do_madvise(mm: MmStruct, args: tuple[int, ...]) -> int:
    return madvise.do_madvise(mm, address(mm, args[0]), args[1] << PAGE_SHIFT, args[2])


def do_process_madvise(mm: MmStruct, args: tuple[int, ...]) -> int:
    target, *places, advice = args
    other = mm.machine.procs.get(target)
    if other is None:
        return -ESRCH
    pairs = zip(places[::2], places[1::2], strict=True)
    ranges = [(address(mm, start), length << PAGE_SHIFT) for start, length in pairs]
    return to_pages(process_madvise.sys_process_madvise(mm, other, ranges, advice))


def do_mlock(mm: MmStruct, args: tuple[int, ...]) -> int:
    return mlock.sys_mlock(mm, address(mm, args[0]), args[1] << PAGE_SHIFT)


def do_mlock2(mm: MmStruct, args: tuple[int, ...]) -> int:
    return mlock.sys_mlock2(mm, address(mm, args[0]), args[1] << PAGE_SHIFT, args[2])


def do_munlock(mm: MmStruct, args: tuple[int, ...]) -> int:
    return mlock.sys_munlock(mm, address(mm, args[0]), args[1] << PAGE_SHIFT)


def do_mlockall(mm: MmStruct, args: tuple[int, ...]) -> int:
    return mlock.sys_mlockall(mm, args[0])


def do_munlockall(mm: MmStruct, args: tuple[int, ...]) -> int:
    return mlock.sys_munlockall(mm)


def do_mseal(mm: MmStruct, args: tuple[int, ...]) -> int:
    return mseal.sys_mseal(mm, address(mm, args[0]), args[1] << PAGE_SHIFT, 0)


def do_set_vma_name(mm: MmStruct, args: tuple[int, ...]) -> int:
    name = VMA_NAMES[args[2] - 1] if args[2] else None
    return madvise.madvise_set_anon_name(mm, address(mm, args[0]), args[1] << PAGE_SHIFT, name)


def do_memory_merge(mm: MmStruct, args: tuple[int, ...]) -> int:
    return ksm.prctl_memory_merge(mm, args[0], (0, 0, 0))


def do_mbind(mm: MmStruct, args: tuple[int, ...]) -> int:
    return mempolicy.do_mbind(mm, address(mm, args[0]), args[1] << PAGE_SHIFT, args[2] or None)


def do_pkey_mprotect(mm: MmStruct, args: tuple[int, ...]) -> int:
    return mprotect.sys_pkey_mprotect(mm, address(mm, args[0]), args[1] << PAGE_SHIFT, args[2], args[3] - 1)


def do_remap_file_pages(mm: MmStruct, args: tuple[int, ...]) -> int:
    return remap_file_pages.sys_remap_file_pages(mm, address(mm, args[0]), args[1] << PAGE_SHIFT, 0, args[2])


def do_brk(mm: MmStruct, args: tuple[int, ...]) -> int:
    return to_page(mm, brk.sys_brk(mm, address(mm, args[0])))


def do_fork(mm: MmStruct, args: tuple[int, ...]) -> int:
    return fork.sys_fork(mm, args[0])


def do_exit(mm: MmStruct, args: tuple[int, ...]) -> int:
    return fork.sys_exit(mm)


def take_page(mm: MmStruct, args: tuple[int, ...], take: Callable[[MmStruct, int, int], Pin | int]) -> int:
    """GUP by ``take``; the pin is kept under its label. -EBUSY: the label is in use."""
    addr, flags, label = args
    m = mm.machine
    if label in m.pins:
        return -EBUSY
    got = take(mm, address(mm, addr), flags)
    if isinstance(got, int):
        return got
    if label in m.pins:  # taken meanwhile, by another op of the same collision
        gup.unpin(m, got)
        return -EBUSY
    m.pins[label] = got
    return 0


def do_gup_fast(mm: MmStruct, args: tuple[int, ...]) -> int:
    return take_page(mm, args, gup.gup_fast)


def do_gup_slow(mm: MmStruct, args: tuple[int, ...]) -> int:
    return take_page(mm, args, gup.gup_slow)


def do_unpin(mm: MmStruct, args: tuple[int, ...]) -> int:
    m = mm.machine
    pin = m.pins.pop(args[0], None)
    if pin is None:
        return -EINVAL
    gup.unpin(m, pin)
    return 0


def do_pin_write(mm: MmStruct, args: tuple[int, ...]) -> int:
    """A device writes to the page that it was given; it needs a pin taken for writing."""
    m = mm.machine
    pin = m.pins.get(args[0])
    if pin is None or not pin.flags & FOLL_WRITE:
        return -EINVAL
    if pin.folio.freed:
        raise KernelBug("use-after-free", "a pinned page has been freed", pin.folio)
    pin.folio.content[pin.page][args[1]] = token(m.step_index, m.sched.current.index)
    return 0


def do_reclaim(mm: MmStruct, args: tuple[int, ...]) -> int:
    return vmscan.reclaim_folio(mm, address(mm, args[0]))


def do_swap_readahead(mm: MmStruct, args: tuple[int, ...]) -> int:
    return swap_state.swap_readahead(mm, address(mm, args[0]))


def do_migrate(mm: MmStruct, args: tuple[int, ...]) -> int:
    return migrate.migrate_folio_at(mm, address(mm, args[0]))


def do_userfaultfd(mm: MmStruct, args: tuple[int, ...]) -> int:
    return fs_userfaultfd.new_userfaultfd(mm, args[0])


def do_uffd_close(mm: MmStruct, args: tuple[int, ...]) -> int:
    return fs_userfaultfd.close(mm)


def do_uffd_register(mm: MmStruct, args: tuple[int, ...]) -> int:
    addr, length, mode = args
    call = fs_userfaultfd.userfaultfd_register
    return fs_userfaultfd.userfaultfd_ioctl(mm, call, address(mm, addr), length << PAGE_SHIFT, mode)


def do_uffd_unregister(mm: MmStruct, args: tuple[int, ...]) -> int:
    addr, length = args
    call = fs_userfaultfd.userfaultfd_unregister
    return fs_userfaultfd.userfaultfd_ioctl(mm, call, address(mm, addr), length << PAGE_SHIFT)


def do_uffd_wp(mm: MmStruct, args: tuple[int, ...]) -> int:
    addr, length, mode = args
    call = fs_userfaultfd.userfaultfd_writeprotect
    return fs_userfaultfd.userfaultfd_ioctl(mm, call, address(mm, addr), length << PAGE_SHIFT, mode)


def to_pages(result: int) -> int:
    """A number of bytes that a system call returned, as pages; errors as they are."""
    return result if result < 0 else result >> PAGE_SHIFT


def do_uffd_copy(mm: MmStruct, args: tuple[int, ...]) -> int:
    dst, src, length, mode = args
    call = fs_userfaultfd.userfaultfd_copy
    where = address(mm, dst), address(mm, src), length << PAGE_SHIFT
    return to_pages(fs_userfaultfd.userfaultfd_ioctl(mm, call, *where, mode))


def do_uffd_zeropage(mm: MmStruct, args: tuple[int, ...]) -> int:
    addr, length = args
    call = fs_userfaultfd.userfaultfd_zeropage
    return to_pages(fs_userfaultfd.userfaultfd_ioctl(mm, call, address(mm, addr), length << PAGE_SHIFT))


def do_uffd_move(mm: MmStruct, args: tuple[int, ...]) -> int:
    dst, src, length, mode = args
    call = fs_userfaultfd.userfaultfd_move
    where = address(mm, dst), address(mm, src), length << PAGE_SHIFT
    return to_pages(fs_userfaultfd.userfaultfd_ioctl(mm, call, *where, mode))


def do_uffd_continue(mm: MmStruct, args: tuple[int, ...]) -> int:
    addr, length, mode = args
    call = fs_userfaultfd.userfaultfd_continue
    return to_pages(fs_userfaultfd.userfaultfd_ioctl(mm, call, address(mm, addr), length << PAGE_SHIFT, mode))


def do_uffd_poison(mm: MmStruct, args: tuple[int, ...]) -> int:
    addr, length = args
    call = fs_userfaultfd.userfaultfd_poison
    return to_pages(fs_userfaultfd.userfaultfd_ioctl(mm, call, address(mm, addr), length << PAGE_SHIFT))


def do_ksm_scan(mm: MmStruct, args: tuple[int, ...]) -> int:
    return ksm_scan.ksm_do_scan(mm.machine, args[0])


def do_setrlimit(mm: MmStruct, args: tuple[int, ...]) -> int:
    return sys.do_prlimit(mm, *args)


def do_max_map_count(mm: MmStruct, args: tuple[int, ...]) -> int:
    return sys.max_map_count_store(mm, args[0])


def do_overcommit_memory(mm: MmStruct, args: tuple[int, ...]) -> int:
    return util.overcommit_policy_store(mm.machine, args[0])


def do_thp_sizes(mm: MmStruct, args: tuple[int, ...]) -> int:
    return huge_memory.anon_enabled_store(mm.machine, args[0])


HANDLERS = {
    "mmap": do_mmap,
    "munmap": do_munmap,
    "mremap": do_mremap,
    "mprotect": do_mprotect,
    "madvise": do_madvise,
    "fork": do_fork,
    "exit": do_exit,
    "exec": execute,
    "fill": fill,
    "gup_fast": do_gup_fast,
    "gup_slow": do_gup_slow,
    "unpin": do_unpin,
    "pin_write": do_pin_write,
    "reclaim": do_reclaim,
    "swap_readahead": do_swap_readahead,
    "migrate": do_migrate,
    "process_madvise": do_process_madvise,
    "mlock": do_mlock,
    "mlock2": do_mlock2,
    "munlock": do_munlock,
    "mlockall": do_mlockall,
    "munlockall": do_munlockall,
    "brk": do_brk,
    "mseal": do_mseal,
    "set_vma_name": do_set_vma_name,
    "memory_merge": do_memory_merge,
    "mbind": do_mbind,
    "pkey_mprotect": do_pkey_mprotect,
    "remap_file_pages": do_remap_file_pages,
    "userfaultfd": do_userfaultfd,
    "uffd_close": do_uffd_close,
    "uffd_register": do_uffd_register,
    "uffd_unregister": do_uffd_unregister,
    "uffd_copy": do_uffd_copy,
    "uffd_zeropage": do_uffd_zeropage,
    "uffd_wp": do_uffd_wp,
    "uffd_move": do_uffd_move,
    "uffd_poison": do_uffd_poison,
    "uffd_continue": do_uffd_continue,
    "ksm_scan": do_ksm_scan,
    "setrlimit": do_setrlimit,
    "thp_sizes": do_thp_sizes,
    "max_map_count": do_max_map_count,
    "overcommit_memory": do_overcommit_memory,
}
