"""What differs between kernels: each rule of a profile, on the same steps with each of its values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import pytest

from emulator.geometry import LEVEL_PTE, PAGE_SIZE
from emulator.hw.pte import SPECIAL, is_guard
from emulator.mm_types import VM_IO, VM_LOCKED, VM_MAYBE_GUARD, VM_SPECIAL
from emulator.profile import PROFILES, Profile
from emulator.uapi import (
    EBADF,
    EEXIST,
    EFAULT,
    EINVAL,
    ENOMEM,
    ENOSYS,
    MADV_COLLAPSE,
    MADV_DOFORK,
    MADV_DONTNEED,
    MADV_DONTNEED_LOCKED,
    MADV_GUARD_INSTALL,
    MADV_GUARD_REMOVE,
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MADV_POPULATE_WRITE,
    MAP_DROPPABLE,
    MAP_FIXED,
    MAP_GROWSDOWN,
    MAP_NORESERVE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_STACK,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    OVERCOMMIT_NEVER,
    PROT_READ,
    UFFDIO_REGISTER_MODE_MISSING,
)
from emulator.workload import FOLL_WRITE, Op, Switch
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, profile_with
from tests.emulator.mm.vma_bench import Bench

FIXED: Final = MREMAP_MAYMOVE | MREMAP_FIXED
SETTINGS: Final = {
    "name", "max_map_count", "stack_guard_gap", "mmap_min_addr", "rlimit_stack", "rlimit_memlock", "cap_ipc_lock",
    "cap_sys_admin", "overcommit_memory", "ram_and_swap", "commit_limit", "user_reserve", "admin_reserve",
    "anon_vma_name", "thp_always", "use_zero_page", "swap_synchronous",
}  # fmt: skip


class Rule(NamedTuple):
    """``show`` runs the steps under a profile; ``shown`` is what it must give for each value of the field."""

    show: Callable[[Profile], object]
    shown: dict[object, object]


# ---- mm/vma.c


def guard_flag(profile: Profile) -> object:
    """A guard region in anonymous memory, and one in a private file mapping: flagged, faulted? The layout at last."""
    world = World(profile=profile)
    world.mmap(0, 2)
    world.mmap(8, 2, PROT_READ, file=1)
    for page in (0, 8):
        assert world.do("madvise", page, 1, MADV_GUARD_INSTALL) == 0
    world.mmap(2, 2)
    flagged = [bool(world.vma(page).vm_flags & VM_MAYBE_GUARD) for page in (0, 8)]
    return flagged, world.vma(8).anon_vma is not None, world.layout()


def merge_with_unfaulted(profile: Profile) -> object:
    """A faulted range beside an unfaulted VMA; an unfaulted one beside a faulted VMA; between one of each."""
    faulted, unfaulted = Bench("0-2 2-4@1", profile), Bench("0-2@1 2-4", profile)
    between = Bench("0-2 2-4@1 4-6@1", profile)
    for bench in (faulted, unfaulted, between):
        bench.modify(2, 4)
    return faulted.layout(), unfaulted.layout(), between.layout()


def merge_beside_close(profile: Profile) -> object:
    """A new range after a VMA with close(), one before such a VMA, one between two of them."""
    benches = [Bench(layout, profile) for layout in ("0-2C", "4-6C", "0-2C 4-6C")]
    for bench in benches:
        bench.new(2, 4)
    return [bench.layout() for bench in benches]


def fail_a_merge(profile: Profile) -> object:
    """mprotect that would merge, and finds no room in the tree (nor memory for a chain): result, layout."""
    shown = []
    for fail_nth in (1, 2):
        world = World(profile=profile)
        world.mmap(0, 4, RW, PRIVATE_FIXED | MAP_NORESERVE)
        assert world.do("mprotect", 0, 2, PROT_READ) == 0
        world.write(2)
        result = world.do("mprotect", 2, 2, PROT_READ, fail_nth=fail_nth)
        shown.append((result, world.last.injected, world.layout()))
    return shown


def name_shared_memory(profile: Profile) -> object:
    """A name for half of a shared anonymous mapping: result, layout."""
    world = World(profile=profile)
    world.mmap(0, 4, RW, MAP_SHARED | MAP_FIXED)
    return world.do("set_vma_name", 0, 2, 1), world.layout()


def fail_the_tree(profile: Profile) -> object:
    """A fork, an unmap and a map in which the first allocation fails: what failed?"""
    world = World(profile=profile)
    world.mmap(0, 4)
    asked = []
    for kind, *args in (("fork", 1), ("munmap", 0, 4), ("mmap", 8, 2, PROT_READ, PRIVATE_FIXED, 0, 0)):
        world.do(kind, *args, fail_nth=1)
        asked.append(world.machine.sched.current.failed)
    return asked


def grow_between(profile: Profile) -> object:
    """mremap fills the hole behind a mapping up to the next one."""
    world = World(profile=profile)
    world.mmap(0, 2)
    world.mmap(4, 2)
    assert world.do("mremap", 0, 2, 4, 0, 0) == 0
    return world.layout()


def heap(profile: Profile, start: int) -> World:
    """A world with the break at page ``start``."""
    world = World(profile=profile)
    world.mm().start_brk = world.mm().brk = world.address(start)
    return world


def heap_behind_bss(profile: Profile) -> object:
    """The first growth of a heap that begins where other memory ends."""
    world = heap(profile, 2)
    world.mmap(0, 2)
    world.image.brk.sys_brk(world.mm(), world.address(4))
    return world.layout()


def shrink_what_is_gone(profile: Profile) -> object:
    """The break goes down over a heap that was unmapped by hand: where is it then?"""
    world = heap(profile, 2)
    world.image.brk.sys_brk(world.mm(), world.address(4))
    assert world.do("munmap", 2, 2) == 0
    return world.page(world.image.brk.sys_brk(world.mm(), world.address(3)))


def map_over_without_memory(profile: Profile) -> object:
    """MAP_FIXED over two pages of a mapping when nothing more can be charged: the layout afterwards."""
    world = World(profile=profile._replace(overcommit_memory=OVERCOMMIT_NEVER, commit_limit=5))
    world.mmap(0, 4, PROT_READ)
    world.mmap(8, 4)
    assert world.do("mmap", 1, 2, RW, PRIVATE_FIXED, 0, 0) == -ENOMEM
    return world.layout()


def map_over_and_fail(profile: Profile) -> object:
    """MAP_FIXED over a whole mapping, and there is no memory for the new VMA: what stays charged, in pages."""
    for nth in range(1, 9):
        world = World(profile=profile)
        world.mmap(0, 4)
        result = world.do("mmap", 0, 4, RW, PRIVATE_FIXED, 0, 0, fail_nth=nth)
        if world.machine.sched.current.failed == "vm_area_alloc":
            assert (result, world.layout()) == (-ENOMEM, [])
            return world.machine.committed
    return None


def map_a_stack(profile: Profile) -> object:
    """A mapping with MAP_STACK beside one without."""
    world = World(profile=profile)
    world.mmap(0, 2)
    world.mmap(2, 2, RW, PRIVATE_FIXED | MAP_STACK)
    return world.layout()


def map_droppable_memory(profile: Profile) -> object:
    """A mapping of the type that 6.11 brought."""
    return World(profile=profile).do("mmap", 0, 2, RW, MAP_DROPPABLE | MAP_FIXED, 0, 0)


def write_where_large_folios_are_wanted(profile: Profile) -> int:
    """Pages of the folio that a first write brings."""
    world = World(profile=profile)
    world.do("thp_sizes", 4)
    world.mmap(0, 4)
    world.do("madvise", 0, 4, MADV_HUGEPAGE)
    world.write(1)
    return world.folio(1).nr_pages


def chosen_place(profile: Profile, pages: int, file: int) -> int:
    """Where the kernel maps so many pages, when just below the top of the arena one page is taken: pages below it."""
    world = World(profile=profile)
    top = world.page(world.machine.geometry.arena_end)
    world.mmap(top - 1, 1, PROT_READ)
    handle = world.machine.files[file - 1] if file else None
    address = world.image.mmap.sys_mmap(world.mm(), 0, pages * PAGE_SIZE, RW, MAP_PRIVATE, handle, 0)
    return top - world.page(address)


def protect_what_nobody_touched(profile: Profile) -> object:
    """A mapping is made read-only, half of it after a write to it: what is charged, and does it merge again?"""
    world = World(profile=profile)
    world.mmap(0, 4)
    assert world.do("mprotect", 0, 2, PROT_READ) == 0
    charged = world.machine.committed
    world.write(2)
    assert world.do("mprotect", 2, 2, PROT_READ) == 0
    return charged, world.layout()


def collapse_what_was_dropped(profile: Profile) -> object:
    """MADV_COLLAPSE of a range after MADV_DONTNEED of all of it: it needs page tables to begin with."""
    world = World(profile=profile)
    world.mmap(0, 8)
    world.write(0)
    world.do("madvise", 0, 8, MADV_DONTNEED)
    return world.do("madvise", 0, 8, MADV_COLLAPSE)


def advise_what_is_new(profile: Profile) -> object:
    """MADV_GUARD_INSTALL, _REMOVE, MADV_COLLAPSE and MADV_DONTNEED_LOCKED on ordinary memory."""
    world = World(profile=profile)
    world.mmap(0, 8)
    world.write(1)
    new = (MADV_GUARD_INSTALL, MADV_GUARD_REMOVE, MADV_COLLAPSE, MADV_DONTNEED_LOCKED)
    return [world.do("madvise", 0, 8, advice) for advice in new]


def advise_itself(profile: Profile) -> object:
    """process_madvise of two ranges of the process itself: a hint, and what is more."""
    world = World(profile=profile)
    world.mmap(0, 4)
    return [world.do("process_madvise", 0, 0, 2, 2, 2, advice) for advice in (MADV_PAGEOUT, MADV_DONTNEED)]


def let_special_mappings_fork(profile: Profile) -> object:
    """MADV_DOFORK on a special mapping (VM_DONTEXPAND), and on one that is VM_IO as well."""
    world = World(profile=profile)
    results = []
    for page, flag in ((0, 0), (4, VM_IO)):
        area = world.image.vma_exec.install_special_mapping(world.mm(), world.address(page), PAGE_SIZE, flag)
        assert area is not None
        results.append(world.do("madvise", page, 1, MADV_DOFORK))
    return results


def merge_for_the_process(profile: Profile) -> object:
    """prctl(PR_SET_MEMORY_MERGE, 1)."""
    world = World(profile=profile)
    return world.image.ksm.prctl_memory_merge(world.mm(), 1, (0, 0, 0)), world.mm().merge_any


def map_a_growing_stack(profile: Profile) -> World:
    """A world with a stack of two pages at page 20 that grows downwards, and with other memory at page 30."""
    world = World(profile=profile)
    flags = PRIVATE_FIXED | MAP_GROWSDOWN
    world.image.mmap.sys_mmap(world.mm(), world.address(20), 2 * PAGE_SIZE, RW, flags, None, 0)
    world.mmap(30, 2)
    return world


def grow_beside_a_fault(profile: Profile) -> object:
    """The stack is to grow while a fault elsewhere holds mmap_lock for reading: who is ready first?"""
    world = map_a_growing_stack(profile)
    ops = (Op("write", 0, (18, 0)), Op("write", 0, (30, 0)))
    outcomes = world.collide(ops, [Switch(1, "anon_vma.found", 1)])
    assert [outcome.ret for outcome in outcomes] == [0, 0]
    world.check()
    return world.machine.completed


def take_a_page_below_the_stack(profile: Profile) -> object:
    """get_user_pages there: the result, and the stack afterwards."""
    world = map_a_growing_stack(profile)
    return world.do("gup_slow", 19, FOLL_WRITE, 0), world.span(20)


def fill_guard_regions(profile: Profile) -> object:
    """UFFDIO_COPY, ZEROPAGE and POISON, each onto a page of a guard region."""
    world = World(profile=profile)
    world.mmap(0, 8)
    assert world.do("uffd_register", 0, 4, UFFDIO_REGISTER_MODE_MISSING) == 0
    assert world.do("madvise", 0, 4, MADV_GUARD_INSTALL) == 0
    calls = (("uffd_copy", 0, 5, 1, 0), ("uffd_zeropage", 1, 1), ("uffd_poison", 2, 1))
    return [world.do(kind, *args) for kind, *args in calls], [is_guard(world.pte(page)) for page in range(3)]


def reuse_twice(profile: Profile) -> object:
    """Two forks of a process whose chain holds an anon_vma without VMA or child: do the children share it?"""
    world = World(profile=profile)
    world.mmap(0, 1)
    world.write(0)
    for parent, child in ((0, 1), (1, 2)):
        world.fork(child, parent)
    world.do("exit", proc=1)
    world.fork(3, 2)  # uses the anon_vma of the one that has gone
    world.do("exit", proc=2)
    world.fork(1, 3)
    world.fork(2, 3)
    world.check()
    return world.vma(0, 1).anon_vma is world.vma(0, 2).anon_vma


def chain_of_a_line(profile: Profile) -> object:
    """Five generations, of which the last is left, and forks: its chain and the child's anon_vma, by generation."""
    world = World(profile=profile)
    world.mmap(0, 1)
    world.write(0)
    line = [world.vma(0, 0).anon_vma]
    for parent, child in ((0, 1), (1, 2), (2, 3)):
        world.fork(child, parent)
        line.append(world.vma(0, child).anon_vma)
    world.do("exit", proc=0)
    world.fork(0, 3)
    line.append(world.vma(0, 0).anon_vma)
    for proc in (1, 2, 3):
        world.do("exit", proc=proc)
    world.fork(1, 0)
    world.check()
    return [line.index(avc.anon_vma) for avc in world.vma(0, 0).anon_vma_chain], line.index(world.vma(0, 1).anon_vma)


def what_fork_allocates(profile: Profile) -> object:
    """The allocations that fork makes for one faulted page, in order; each fails once, and nothing is left."""
    asked = []
    for nth in range(1, 20):
        world = World(profile=profile)
        world.mmap(0, 1)
        world.write(0)
        result = world.do("fork", 1, fail_nth=nth)
        world.check()
        if not result:
            break
        asked.append(world.machine.sched.current.failed)
    return asked[2:6]


# ---- mm/huge_memory.c, mm/memory.c


def split_a_huge_page(profile: Profile) -> object:
    """A huge page with one written page is swapped out in part, which splits it: its other pages are the zero page?"""
    world = World(profile=profile)
    world.mmap(0, 8)
    assert world.do("madvise", 0, 8, MADV_HUGEPAGE) == 0
    world.write(3)
    assert world.do("madvise", 3, 1, MADV_PAGEOUT) == 0
    return [bool(world.pte(page) & SPECIAL) for page in (2, 4)]


def split_what_does_not_fit(profile: Profile) -> object:
    """A huge page with a wrong index is mapped by PTEs from now on: what the kernel complains of."""
    world = World(profile=profile)
    world.mmap(0, 8)
    assert world.do("madvise", 0, 8, MADV_HUGEPAGE) == 0
    world.write(3)
    world.folio(3).index += 1
    assert world.do("mprotect", 0, 4, PROT_READ) == 0
    return [rule for rule, *_ in world.machine.sched.warnings]


def swap_in_for_a_write(profile: Profile) -> object:
    """A page that one process has, swapped out and written again: is it still in the swap cache?"""
    world = World(profile=profile)
    world.mmap(0, 2)
    world.write(0)
    assert world.do("madvise", 0, 1, MADV_PAGEOUT) == 0
    world.write(0, 1)
    return world.folio(0).swapcache


# ---- mm/mremap.c


def move_nothing_onto_itself(profile: Profile) -> object:
    """A move of what is not mapped to an overlapping place."""
    return World(profile=profile).do("mremap", 0, 2, 2, FIXED, 1)


def move_beyond_the_end(profile: Profile) -> object:
    """A move that grows, of more than the source VMA has, to where something is: the result, and what is left."""
    world = World(profile=profile)
    world.mmap(0, 2)
    world.mmap(20, 2)
    return world.do("mremap", 0, 3, 4, FIXED, 20), world.layout()


def charge_of_a_shrinking_move(profile: Profile) -> object:
    """Four pages become one, elsewhere: what is charged?"""
    world = World(profile=profile)
    world.mmap(0, 4)
    assert world.do("mremap", 0, 4, 1, FIXED, 20) == 20
    return world.machine.committed


def move_two_mappings(profile: Profile) -> object:
    """Two VMAs and the hole between them in one call."""
    world = World(profile=profile)
    world.mmap(0, 1)
    world.mmap(2, 1)
    return world.do("mremap", 0, 3, 3, FIXED, 20), world.layout()


def move_from_within_a_table(profile: Profile) -> object:
    """A mapping that begins within a page table and reaches beyond it: does that table move as a whole?"""
    world = World(profile=profile)
    world.mmap(2, 14)
    for page in range(2, 16):
        world.write(page)
    find_table = world.image.pgtable_generic.find_table
    table = find_table(world.mm(), world.address(2), LEVEL_PTE)
    assert world.do("mremap", 2, 14, 14, FIXED, 66) == 66
    return find_table(world.mm(), world.address(66), LEVEL_PTE) is table


def move_locked_memory(profile: Profile) -> object:
    """mlock, then a move with DONTUNMAP: locked_vm, and which VMAs are locked."""
    world = World(profile=profile)
    world.mmap(0, 2)
    assert world.image.mlock.sys_mlock(world.mm(), world.address(0), 2 * PAGE_SIZE) == 0
    assert world.do("mremap", 0, 2, 2, FIXED | MREMAP_DONTUNMAP, 20) == 20
    return world.mm().locked_vm, [bool(world.vma(page).vm_flags & VM_LOCKED) for page in (0, 20)]


def populate_across_a_hole(profile: Profile) -> object:
    """MADV_POPULATE_WRITE over a mapping, a hole and a mapping: the result, and which of the two is faulted."""
    world = World(profile=profile)
    world.mmap(0, 1)
    world.mmap(2, 1)
    result = world.do("madvise", 0, 3, MADV_POPULATE_WRITE)
    return result, [world.vma(page).anon_vma is not None for page in (0, 2)]


RULES: Final = {
    "vm_ignore_merge": Rule(
        guard_flag,
        {
            0: ([False, False], True, [(0, 4), (8, 2)]),
            VM_MAYBE_GUARD: ([True, True], False, [(0, 4), (8, 2)]),
        },
    ),
    "merges_with_unfaulted": Rule(
        merge_with_unfaulted,
        {
            True: ("0-4@1", "0-4@1", "0-6@1"),
            False: ("0-2 2-4@1", "0-4@1", "0-2 2-6@1"),
        },
    ),
    "close_forbids_merge": Rule(
        merge_beside_close,
        {
            False: ["0-4C", "2-6C", "0-4C 4-6C"],
            True: ["0-2C", "4-6C", "0-2C 4-6C"],
        },
    ),
    "failed_merge_is_error": Rule(
        fail_a_merge,
        {
            True: [(-ENOMEM, True, [(0, 2), (2, 2)]), (-ENOMEM, True, [(0, 2), (2, 2)])],
            False: [(0, True, [(0, 2), (2, 2)]), (0, True, [(0, 2), (2, 2)])],
        },
    ),
    "maple_tree": Rule(
        fail_the_tree,
        {
            True: ["vma_tree_dup", "vma_tree_store", "vm_area_alloc"],
            False: ["vm_enough_memory", "", "vm_area_alloc"],
        },
    ),
    "growth_merges": Rule(grow_between, {True: [(0, 6)], False: [(0, 4), (4, 2)]}),
    "heap_joins_bss": Rule(heap_behind_bss, {False: [(0, 2), (2, 2)], True: [(0, 4)]}),
    "heap_must_be_there": Rule(shrink_what_is_gone, {True: 4, False: 3}),
    "mmap_takes_over_charge": Rule(
        lambda profile: (map_over_without_memory(profile), map_over_and_fail(profile)),
        {
            True: ([(0, 1), (1, 2), (3, 1), (8, 4)], 4),
            False: ([(0, 1), (3, 1), (8, 4)], 0),
        },
    ),
    "map_droppable": Rule(map_droppable_memory, {True: 0, False: -EINVAL}),
    "anon_folio_sizes": Rule(write_where_large_folios_are_wanted, {True: 4, False: 1}),
    "map_stack_nohugepage": Rule(map_a_stack, {True: [(0, 2), (2, 2)], False: [(0, 4)]}),
    "thp_aligned_files": Rule(lambda profile: chosen_place(profile, 10, 1), {True: 16, False: 11}),
    "thp_aligned_anon": Rule(lambda profile: chosen_place(profile, 8, 0), {True: 16, False: 9}),
    "mprotect_uncharges": Rule(
        protect_what_nobody_touched, {True: (2, [(0, 2), (2, 2)]), False: (4, [(0, 4)])}
    ),
    "split_maps_zero_page": Rule(split_a_huge_page, {True: [True, True], False: [False, False]}),
    "split_checks_rmap": Rule(split_what_does_not_fit, {True: ["page-check-anon-rmap"], False: []}),
    "swap_freed_before_mapping": Rule(swap_in_for_a_write, {True: False, False: True}),
    "pt_reclaim": Rule(collapse_what_was_dropped, {True: -EINVAL, False: 0}),
    "advice_unknown": Rule(
        advise_what_is_new,
        {(): [0, 0, 0, 0], PROFILES["5.17"].advice_unknown: [-EINVAL] * 4},
    ),
    "process_madvise_self": Rule(advise_itself, {True: [4, 4], False: [4, -EINVAL]}),
    "dofork_refused": Rule(let_special_mappings_fork, {VM_IO: [0, -EINVAL], VM_SPECIAL: [-EINVAL, -EINVAL]}),
    "anon_shmem_name": Rule(name_shared_memory, {True: (0, [(0, 2), (2, 2)]), False: (-EBADF, [(0, 4)])}),
    "ksm_per_process": Rule(merge_for_the_process, {True: (0, True), False: (-EINVAL, False)}),
    "stack_grows_under_read_lock": Rule(grow_beside_a_fault, {False: [1, 0], True: [0, 1]}),
    "gup_grows_stack": Rule(
        take_a_page_below_the_stack, {False: (-EFAULT, (20, 2)), True: (0, (19, 3))}
    ),
    "uffd_copy_fills_guards": Rule(
        fill_guard_regions,
        {
            True: ([1, -EEXIST, -EEXIST], [False, True, True]),
            False: ([-EEXIST] * 3, [True, True, True]),
        },
    ),
    "reuse_by_degree": Rule(reuse_twice, {False: False, True: True}),
    "clone_reverses_chain": Rule(
        chain_of_a_line, {False: ([4, 3, 2, 1, 0], 1), True: ([4, 2, 0, 1, 3], 2)}
    ),
    "fork_allocates_first": Rule(
        what_fork_allocates,
        {
            False: ["vm_area_alloc", "anon_vma_chain_alloc", "anon_vma_alloc", "anon_vma_chain_alloc"],
            True: ["vm_area_alloc", "anon_vma_alloc", "anon_vma_chain_alloc", "anon_vma_chain_alloc"],
        },
    ),
    "mseal": Rule(lambda profile: World(profile=profile).do("mseal", 0, 1), {True: -ENOMEM, False: -ENOSYS}),
    "mremap_checks_first": Rule(
        lambda profile: (
            move_nothing_onto_itself(profile),
            move_beyond_the_end(profile),
            charge_of_a_shrinking_move(profile),
        ),
        {
            True: (-EINVAL, (-EFAULT, [(0, 2), (20, 2)]), 4),
            False: (-EFAULT, (-EFAULT, [(0, 2)]), 1),
        },
    ),
    "mremap_moves_several": Rule(
        move_two_mappings,
        {True: (20, [(20, 1), (22, 1)]), False: (-EFAULT, [(0, 1), (2, 1)])},
    ),
    "mremap_realigns": Rule(move_from_within_a_table, {True: True, False: False}),
    "dontunmap_counts_locked": Rule(
        move_locked_memory, {True: (4, [False, True]), False: (2, [False, True])}
    ),
    "populate_ends_at_hole": Rule(
        populate_across_a_hole, {True: (-ENOMEM, [True, False]), False: (-ENOMEM, [True, True])}
    ),
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, rule in RULES.items() for value in rule.shown]
)
def test_rule(field: str, value: object) -> None:
    """The steps end as this value has it, whatever else the kernel does."""
    rule = RULES[field]
    assert rule.show(profile_with(**{field: value})) == rule.shown[value]


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("field", RULES)
def test_profile(field: str, name: str) -> None:
    """Every kernel has the rule in a form that was tried above."""
    rule = RULES[field]
    assert len({repr(shown) for shown in rule.shown.values()}) == len(rule.shown) > 1
    assert getattr(PROFILES[name], field) in rule.shown


def test_every_rule_is_tried() -> None:
    """A field that nobody asks about would be no rule."""
    assert set(Profile._fields) - SETTINGS == set(RULES)
