"""Page faults: what a missing page becomes, entries that are not pages, races between faults."""

from __future__ import annotations

import pytest

from emulator.errors import KernelBug
from emulator.hw.pte import (
    ACCESSED,
    DIRTY,
    MARKER_GUARD,
    MARKER_POISON,
    MARKER_UFFD_WP,
    PRESENT,
    SOFTLEAF_MARKER,
    SPECIAL,
    mk_softleaf,
)
from emulator.hw.pte import RW as PTE_RW
from emulator.mm_types import VM_MAYWRITE, VM_SHARED, VM_WRITE
from emulator.uapi import (
    MAP_FIXED,
    MAP_SHARED,
    OOM_KILLED,
    PROT_READ,
    SIGBUS,
    SIGSEGV,
)
from emulator.workload import Op, file_token
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.mm.world import anon_vma_of, fail_next, fault, faulted, isolated, warnings
from tests.emulator.references import check_all, every_cut

SHARED_FIXED = MAP_SHARED | MAP_FIXED


# ---- anonymous memory


def test_a_new_page_is_exclusive_and_dirty() -> None:
    """A write fault maps a page of its own, writable at once, linear in its VMA."""
    world = World()
    world.mmap(4, 4)
    world.write(6)
    entry, folio = world.pte(6), world.folio(6)
    assert entry & (PRESENT | PTE_RW | DIRTY | ACCESSED) == PRESENT | PTE_RW | DIRTY | ACCESSED
    assert (folio.refcount, folio.mapcounts, folio.anon_exclusive) == (1, [1], 1)
    assert folio.mapping is anon_vma_of(world, 6)
    assert folio.index == world.address(6) >> 12
    check_all(world)


def test_the_zero_page_is_not_counted() -> None:
    """However often it is mapped: no reference, no mapcount, no anon_vma."""
    world = World()
    world.mmap(0, 4)
    for page in range(4):
        assert world.do("read", page) == 0
    zero = world.machine.phys.zero_folio
    assert (zero.refcount, zero.mapcounts) == (1, [0])
    assert all(world.pte(page) & SPECIAL for page in range(4))
    assert world.vma(0).anon_vma is None
    check_all(world)


def test_a_shared_mapping_without_a_file() -> None:
    """There is nothing to fault in: a bus error, as for a file mapping without operations."""
    world = World()
    world.mmap(0, 1)
    world.vma(0).vm_flags |= VM_SHARED
    assert fault(world, 0) == world.image.memory.VM_FAULT_SIGBUS


@pytest.mark.parametrize("nth", range(1, 8))
def test_no_memory_for_a_fault(nth: int) -> None:
    """Each allocation of a first write fault fails once: the process is killed, nothing leaks, the next try works."""
    world = World()
    world.mmap(0, 2)
    ret = world.do("write", 0, 0, fail_nth=nth)
    assert ret == (OOM_KILLED if world.last.injected else 0)
    assert world.last.injected == (nth <= 6)  # three tables, AVC, anon_vma, page
    check_all(world)
    world.write(0)
    check_all(world)


# ---- files


def test_every_file_page_is_distinct() -> None:
    """A page in the wrong place shows, before anybody has written to it."""
    world = World()
    world.mmap(0, 4, PROT_READ, SHARED_FIXED, 1)
    world.mmap(4, 4, PROT_READ, PRIVATE_FIXED, 2)
    seen = []
    for page in range(8):
        assert world.do("read", page) == 0
        seen.append(world.last.data)
    assert seen == [((0, file_token(page // 4, page % 4)),) for page in range(8)]
    check_all(world)


def test_a_shared_write_is_seen_by_all() -> None:
    """One page-cache folio behind shared and private readers alike; writing makes it dirty."""
    world = World()
    world.mmap(0, 2, RW, SHARED_FIXED, 1)
    world.mmap(4, 2, PROT_READ, PRIVATE_FIXED, 1)
    assert world.do("read", 4) == 0
    token = world.write(0, 2)
    assert world.folio(0) is world.folio(4)
    assert world.content(4) == {0: file_token(0, 0), 2: token}
    folio = world.folio(0)
    assert folio.dirty
    assert not folio.anon
    assert (folio.refcount, folio.mapcounts) == (3, [2])  # two entries and the page cache
    assert world.vma(0).anon_vma is None
    check_all(world)


@pytest.mark.parametrize("read_first", [False, True], ids=["missing", "present"])
def test_a_private_write_copies(read_first: bool) -> None:
    """Whether the file's page was mapped before or not, a private write gets its own copy, with the file's contents."""
    world = World()
    world.mmap(0, 2, RW, PRIVATE_FIXED, 1)
    if read_first:
        assert world.do("read", 1) == 0
        assert not world.pte(1) & PTE_RW
    token = world.write(1, 2)
    assert world.content(1) == {0: file_token(0, 1), 2: token}
    folio = world.folio(1)
    assert folio.anon
    assert folio.anon_exclusive == 1
    assert folio.index == 1  # page offsets of a file mapping are the file's
    cached = world.machine.files[0].f_mapping.pages[1]
    assert cached.content == [{0: file_token(0, 1)}]
    assert (cached.refcount, cached.mapcounts) == (1, [0])
    check_all(world)


@pytest.mark.parametrize(("flags", "kind"), [(SHARED_FIXED, "read"), (PRIVATE_FIXED, "write")])
def test_no_memory_for_a_file_fault(flags: int, kind: str) -> None:
    """Every allocation fails once: killed, nothing leaks, the cache is whole."""
    for nth in range(1, 12):
        world = World()
        world.mmap(0, 2, RW, flags, 1)
        args = (0, 0) if kind == "write" else (0,)
        ret = world.do(kind, *args, fail_nth=nth)
        assert ret == (OOM_KILLED if world.last.injected else 0)
        check_all(world)
        if not world.last.injected:
            assert nth > 4
            break


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_bus_error_leaks_nothing(kind: str) -> None:
    """Beyond the file's end, in a private mapping: the page for the copy is given back."""
    world = World()
    assert world.do("mmap", 0, 2, RW, PRIVATE_FIXED, 1, 15) == 0
    assert world.do(kind, *((1, 0) if kind == "write" else (1,))) == SIGBUS
    check_all(world)


def test_a_file_folio_that_was_migrated_is_looked_up_again() -> None:
    """Who waited for the lock of a folio that has left the cache finds its successor."""

    def make() -> World:
        world = World()
        world.mmap(0, 2, RW, SHARED_FIXED, 1)
        world.mmap(4, 2, RW, SHARED_FIXED, 1)
        world.write(0)
        return world

    successors = 0
    for after, outcomes, where in every_cut(make, (Op("read", 0, (4,)), Op("migrate", 0, (0,)))):
        assert outcomes[0].ret == 0, where
        assert outcomes[0].data == tuple(sorted((after.content(0) or {}).items())), where
        assert after.folio(0) is after.folio(4), where
        check_all(after)
        successors += outcomes[1].ret
    assert successors  # the migration went through in some order


# ---- what no fault should ask for


def test_impossible_faults() -> None:
    """Writing where that can never be allowed, or UNSHARE with WRITE: the kernel complains and kills."""
    world = faulted()
    memory = world.image.memory
    assert fault(world, 0, memory.FAULT_FLAG_WRITE | memory.FAULT_FLAG_UNSHARE) == memory.VM_FAULT_SIGSEGV
    world.vma(0).vm_flags &= ~(VM_MAYWRITE | VM_WRITE)
    assert fault(world, 0, memory.FAULT_FLAG_WRITE) == memory.VM_FAULT_SIGSEGV
    assert warnings(world) == ["fault-flags", "fault-flags"]


def test_entry_of_a_freed_frame() -> None:
    """A page table that leads to freed memory ends the machine."""
    world = faulted()
    world.folio(0).freed = True
    with pytest.raises(KernelBug, match="use-after-free"):
        world.image.memory.vm_normal_folio(world.vma(0), world.address(0), world.pte(0))


# ---- faults that find the page in order


def test_a_spurious_write_fault_drops_the_stale_translation() -> None:
    """The page table allows the write, this CPU's TLB does not know: one flush of one page, on this CPU only."""
    world = faulted()
    world.do("read", 0)
    key = (world.mm().asid, world.address(0) >> 12)
    for tlb in world.machine.tlbs:
        tlb.entries[key] = world.pte(0) & ~PTE_RW
    before = world.pte(0)
    assert fault(world, 0, 1) == 0
    assert world.pte(0) == before
    assert [key in tlb.entries for tlb in world.machine.tlbs] == [False, True, True]


def test_a_fault_marks_the_entry() -> None:
    """Accessed, and dirty for a write."""
    world = faulted()
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(0), 0)
    table.set(0, world.pte(0) & ~(ACCESSED | DIRTY))
    assert fault(world, 0) == 0
    assert world.pte(0) & (ACCESSED | DIRTY) == ACCESSED
    assert fault(world, 0, 1) == 0
    assert world.pte(0) & (ACCESSED | DIRTY) == ACCESSED | DIRTY


# ---- markers and migration entries


@pytest.mark.parametrize(
    ("marker", "result"), [(MARKER_GUARD, SIGSEGV), (MARKER_POISON, SIGBUS), (MARKER_UFFD_WP, 0)]
)
def test_markers(marker: int, result: int) -> None:
    """Guards and poison are fatal; a marker left by userfaultfd is cleared, and the page faulted in."""
    world = faulted()
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(1), 0)
    table.set(1, mk_softleaf(SOFTLEAF_MARKER, marker))
    assert world.do("read", 1) == result
    assert bool(world.pte(1) & PRESENT) == (result == 0)


def test_an_entry_of_no_known_kind() -> None:
    """Garbage in a page table ends the machine."""
    world = faulted()
    table = world.image.pgtable_generic.find_table(world.mm(), world.address(1), 0)
    table.set(1, mk_softleaf(7, 1))
    with pytest.raises(KernelBug, match="bad-entry"):
        fault(world, 1)


def test_a_migration_entry_that_nobody_ends() -> None:
    """The fault says RETRY, and the wait after it is a deadlock when nothing runs beside."""
    world = faulted()
    world.image.rmap_unmap.try_to_migrate(isolated(world, 0))
    assert fault(world, 0) == world.image.memory.VM_FAULT_RETRY
    with pytest.raises(KernelBug, match="deadlock"):
        world.do("read", 0)


def test_an_unmapped_entry_ends_the_wait() -> None:
    """Whatever takes the migration entry away lets the waiting fault go on."""
    world = faulted()
    world.image.rmap_unmap.try_to_migrate(isolated(world, 0))
    outcomes = world.collide((Op("read", 0, (0,)), Op("madvise", 0, (0, 4, 4))))
    assert [o.ret for o in outcomes] == [0, 0]
    assert outcomes[0].data == ()


# ---- two faults at once

RACES = {
    "write_write": (Op("write", 0, (0, 0)), Op("write", 0, (0, 1))),
    "read_write": (Op("read", 0, (0,)), Op("write", 0, (0, 1))),
    "neighbours": (Op("write", 0, (0, 0)), Op("write", 0, (1, 1))),
    "write_dontneed": (Op("write", 0, (0, 0)), Op("madvise", 0, (0, 2, 4))),
    "write_munmap": (Op("write", 0, (0, 0)), Op("munmap", 0, (0, 2))),
    "write_mprotect": (Op("write", 0, (0, 0)), Op("mprotect", 0, (0, 2, PROT_READ))),
    "write_mremap": (Op("write", 0, (0, 0)), Op("mremap", 0, (0, 2, 2, 3, 8))),
    "write_fork": (Op("write", 0, (0, 0)), Op("fork", 0, (2,))),
}


def empty() -> World:
    world = World()
    world.mmap(0, 2)
    return world


def zero() -> World:
    world = empty()
    world.do("read", 0)
    return world


def shared() -> World:
    world = faulted(2)
    world.fork()
    return world


def private_file() -> World:
    world = World()
    world.mmap(0, 2, RW, PRIVATE_FIXED, 1)
    return world


@pytest.mark.parametrize("race", RACES)
@pytest.mark.parametrize("make", [empty, zero, shared, private_file])
def test_faults_beside(make: object, race: str) -> None:
    """A fault interrupted anywhere by another fault or a change of the mapping: sound, and nothing lost or doubled."""
    assert callable(make)
    for world, outcomes, where in every_cut(make, RACES[race]):
        check_all(world)
        if race in ("write_write", "neighbours"):
            assert [o.ret for o in outcomes] == [0, 0], where
            held = [world.content(0), world.content(0 if race == "write_write" else 1)]
            assert all(at in (content or {}) for at, content in enumerate(held)), where


def test_two_parents_copy_at_once() -> None:
    """Both sides of a fork write to the shared page at once: each ends with its own, the other's untouched."""
    for world, outcomes, where in every_cut(shared, (Op("write", 0, (0, 1)), Op("write", 1, (0, 2)))):
        assert [o.ret for o in outcomes] == [0, 0], where
        assert set(world.content(0) or {}) == {0, 1}, where
        assert set(world.content(0, 1) or {}) == {0, 2}, where
        assert world.folio(0) is not world.folio(0, 1), where
        check_all(world)


def test_fault_points_are_counted_where_the_kernel_allocates() -> None:
    """A fault on a present page allocates nothing."""
    world = faulted()
    fail_next(world, 1)
    assert fault(world, 0, 1) == 0
    assert world.machine.sched.current.fail_count == 0
