"""Locking memory: mlock, mlock2, munlock, mlockall, munlockall, and the populating that comes with it."""

from __future__ import annotations

import pytest

from emulator.hw.pte import PRESENT, is_migration
from emulator.mm_types import VM_LOCKED, VM_LOCKED_MASK, VM_LOCKONFAULT, VM_PFNMAP
from emulator.uapi import (
    EAGAIN,
    EINVAL,
    ENOMEM,
    EPERM,
    MADV_GUARD_INSTALL,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_LOCKED,
    MAP_POPULATE,
    MAP_PRIVATE,
    MREMAP_DONTUNMAP,
    MREMAP_MAYMOVE,
    PROT_NONE,
    PROT_READ,
)
from emulator.workload import FILE_PAGES, Op, Switch
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, profile_with

ONFAULT = VM_LOCKED | VM_LOCKONFAULT

pytestmark = pytest.mark.live


class Locks(World):
    """Calls in arena pages."""

    def mlock(self, page: int, pages: int) -> int:
        return self.do("mlock", page, pages)

    def mlock2(self, page: int, pages: int, flags: int) -> int:
        return self.do("mlock2", page, pages, flags)

    def munlock(self, page: int, pages: int) -> int:
        return self.do("munlock", page, pages)

    def mlockall(self, flags: int) -> int:
        return self.do("mlockall", flags)

    def locked(self, page: int) -> int:
        """The lock flags of the VMA there."""
        return self.vma(page).vm_flags & VM_LOCKED_MASK

    def present(self, *pages: int) -> list[bool]:
        return [bool(self.pte(page) & PRESENT) for page in pages]


def test_locking_a_part_splits_and_unlocking_merges_again() -> None:
    """The flag is part of what VMAs must agree on; the locked pages are counted, and faulted in."""
    world = Locks()
    world.mmap(0, 6)
    assert world.mlock(2, 2) == 0
    assert world.layout() == [(0, 2), (2, 2), (4, 2)]
    assert [world.locked(page) for page in (0, 2, 4)] == [0, VM_LOCKED, 0]
    assert world.present(1, 2, 3, 4) == [False, True, True, False]
    assert world.mm().locked_vm == 2
    world.check()
    assert world.munlock(0, 6) == 0
    assert world.mm().locked_vm == 0
    # the locked part became faulted, and so may not give its anon_vma to both sides at once
    assert world.layout() == [(0, 6)]
    world.check()


def test_pages_that_are_touched_are_locked_whole() -> None:
    """The start is rounded down and the end up."""
    world = Locks()
    world.mmap(0, 4)
    assert world.image.mlock.sys_mlock(world.mm(), world.address(1) + 100, 1 << 12) == 0
    assert world.layout() == [(0, 1), (1, 2), (3, 1)]


def test_a_hole_is_found_on_the_way() -> None:
    """ENOMEM; what stands before the hole stays locked. Nothing at all at the start changes nothing."""
    world = Locks()
    world.mmap(0, 2)
    world.mmap(4, 2)
    assert world.mlock(0, 6) == -ENOMEM
    assert [world.locked(page) for page in (0, 4)] == [VM_LOCKED, 0]
    assert world.mlock(2, 1) == -ENOMEM
    assert world.munlock(2, 4) == -ENOMEM
    assert world.mlock(3, 0) == 0


def test_locking_twice_counts_once() -> None:
    """locked_vm counts pages, not calls."""
    world = Locks()
    world.mmap(0, 2)
    assert [world.mlock(0, 2), world.mlock(0, 2), world.mlock2(0, 2, 1), world.mlock(0, 2)] == [0] * 4
    assert world.mm().locked_vm == 2
    assert world.locked(0) == VM_LOCKED


def test_locking_on_fault_populates_nothing() -> None:
    """MLOCK_ONFAULT: pages are locked as they come. Unknown flags are refused."""
    world = Locks()
    world.mmap(0, 2)
    assert world.mlock2(0, 2, 1) == 0
    assert world.locked(0) == ONFAULT
    assert world.present(0, 1) == [False, False]
    assert world.mlock2(0, 2, 2) == -EINVAL


@pytest.mark.parametrize("prot", [PROT_NONE, PROT_READ])
def test_what_cannot_be_populated_is_an_error_but_stays_locked(prot: int) -> None:
    """Memory without access is ENOMEM; readable memory gets the zero page and stays unfaulted."""
    world = Locks()
    world.mmap(0, 2, prot)
    assert world.mlock(0, 2) == (-ENOMEM if prot == PROT_NONE else 0)
    assert world.locked(0) == VM_LOCKED
    assert world.vma(0).anon_vma is None


def test_guards_and_ends_of_files_are_errors() -> None:
    """GUP says EFAULT there; mlock calls it ENOMEM."""
    world = Locks()
    world.mmap(0, 2)
    assert world.do("madvise", 1, 1, MADV_GUARD_INSTALL) == 0
    assert world.mlock(0, 2) == -ENOMEM
    assert world.do("mmap", 4, 2, PROT_READ, PRIVATE_FIXED, 1, FILE_PAGES - 1) == 4
    assert world.mlock(4, 2) == -ENOMEM
    assert world.present(0, 4) == [True, True]


def test_out_of_memory_while_populating() -> None:
    """ENOMEM of GUP becomes EAGAIN of mlock."""
    world = Locks()
    world.mmap(0, 1)
    failures = set()
    for nth in range(1, 8):
        failures.add(world.do("mlock", 0, 1, fail_nth=nth))
        assert world.munlock(0, 1) == 0
    assert failures == {0, -EAGAIN}


def test_a_vma_that_cannot_be_split() -> None:
    """At the limit of maps a split fails: ENOMEM, nothing locked."""
    world = Locks(profile=profile_with(max_map_count=1))
    world.mmap(0, 3)
    assert world.mlock(1, 1) == -ENOMEM
    assert world.locked(1) == 0
    assert world.mm().locked_vm == 0


def test_special_mappings_are_passed_over() -> None:
    """mlock says yes to them and does nothing."""
    world = Locks()
    world.mmap(0, 2)
    world.vma(0).vm_flags |= VM_PFNMAP
    assert world.mlock(0, 2) == 0
    assert world.locked(0) == 0
    assert world.present(0) == [False]


@pytest.mark.parametrize(
    ("flags", "now", "future"),
    [
        (1, VM_LOCKED, 0),
        (2, 0, VM_LOCKED),
        (3, VM_LOCKED, VM_LOCKED),
        (5, ONFAULT, 0),
        (6, 0, ONFAULT),
        (7, ONFAULT, ONFAULT),
    ],
)
def test_mlockall(flags: int, now: int, future: int) -> None:
    """MCL_CURRENT, MCL_FUTURE and MCL_ONFAULT, and that munlockall takes all of it back."""
    world = Locks()
    world.mmap(0, 2)
    world.mmap(4, 2, PROT_NONE)
    assert world.mlockall(flags) == 0
    assert [world.locked(page) for page in (0, 4)] == [now, now]
    assert world.present(0) == [now == VM_LOCKED]
    world.mmap(8, 2)
    assert world.locked(8) == future
    assert world.present(8) == [future == VM_LOCKED]
    assert world.do("munlockall") == 0
    assert [world.locked(page) for page in (0, 4, 8)] == [0, 0, 0]
    assert world.mm().locked_vm == 0
    world.mmap(12, 1)
    assert world.locked(12) == 0


@pytest.mark.parametrize("flags", [0, 4, 8])
def test_mlockall_refuses_what_makes_no_sense(flags: int) -> None:
    """Nothing, ONFAULT alone, unknown bits."""
    assert Locks().mlockall(flags) == -EINVAL


def test_mlockall_passes_over_what_fails() -> None:
    """Its errors are not told, and one VMA's failure does not stop the rest."""
    world = Locks()
    world.mmap(0, 4)
    world.mmap(6, 2)
    assert world.mlock(0, 2) == 0
    assert world.do("mlockall", 1, fail_nth=1) == 0  # the merge of the second VMA with the first
    assert [world.locked(page) for page in (0, 2, 6)] == [VM_LOCKED, 0, VM_LOCKED]
    world.check()


def test_the_heap_is_populated_when_the_future_is_locked() -> None:
    """brk faults the new part in at once."""
    world = Locks()
    world.mm().start_brk = world.mm().brk = world.address(20)
    assert world.mlockall(2) == 0
    world.image.brk.sys_brk(world.mm(), world.address(22))
    assert world.present(20, 21) == [True, True]
    assert world.mm().locked_vm == 2


@pytest.mark.parametrize("flag", [MAP_LOCKED, MAP_POPULATE])
def test_mmap_populates(flag: int) -> None:
    """MAP_LOCKED and MAP_POPULATE fault in what they map, and do not fail if that fails."""
    world = Locks()
    flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | flag
    world.image.mmap.sys_mmap(world.mm(), world.address(0), 2 << 12, RW, flags, None, 0)
    assert world.present(0, 1) == [True, True]
    assert world.locked(0) == (VM_LOCKED if flag == MAP_LOCKED else 0)
    world.image.mmap.sys_mmap(world.mm(), world.address(4), 2 << 12, PROT_NONE, flags, None, 0)
    assert world.present(4) == [False]


def test_a_locked_vma_that_grows_is_populated() -> None:
    """mremap of locked memory faults in what is new."""
    world = Locks()
    world.mmap(0, 2)
    assert world.mlock(0, 2) == 0
    assert world.do("mremap", 0, 2, 4, MREMAP_MAYMOVE, 0) == 0
    assert world.present(2, 3) == [True, True]
    assert world.mm().locked_vm == 4


@pytest.mark.parametrize(("onfault", "present"), [(0, True), (1, False)])
def test_locked_memory_that_becomes_writable_is_populated(onfault: int, present: bool) -> None:
    """mprotect breaks COW ahead for locked memory, but not where locking waits for faults."""
    world = Locks()
    world.mmap(0, 1, PROT_READ)
    assert world.mlock2(0, 1, onfault) == 0
    assert world.do("mprotect", 0, 1, RW) == 0
    assert (world.vma(0).anon_vma is not None) == present


LIMIT = 4  # pages


class Limited(Locks):
    """A process without CAP_IPC_LOCK that may lock four pages, and has ten."""

    def __init__(self, limit: int = LIMIT) -> None:
        super().__init__(profile=profile_with(cap_ipc_lock=False, rlimit_memlock=limit << 12))
        self.mmap(0, 10)

    def map_locked(self, page: int, pages: int) -> int:
        flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_LOCKED
        got: int = self.image.mmap.sys_mmap(self.mm(), self.address(page), pages << 12, RW, flags, None, 0)
        return got if got < 0 else self.page(got)


def test_the_limit_counts_each_page_once() -> None:
    """RLIMIT_MEMLOCK: what is locked already is not counted again, and ONFAULT counts as well."""
    world = Limited()
    assert world.mlock(0, LIMIT + 1) == -ENOMEM
    assert world.locked(0) == 0
    assert world.mlock2(0, LIMIT, 1) == 0
    assert world.mlock(0, LIMIT) == 0
    assert world.mlock(2, LIMIT) == -ENOMEM
    assert world.mlock(LIMIT, 1) == -ENOMEM
    assert world.munlock(0, 1) == 0
    assert world.mlock(LIMIT, 1) == 0


def test_what_else_the_limit_refuses() -> None:
    """mmap and growing by mremap: EAGAIN; mlockall of more than may be: ENOMEM, nothing changed."""
    world = Limited()
    assert world.mlockall(1) == -ENOMEM
    assert world.locked(0) == 0
    assert world.map_locked(20, LIMIT) == 20
    assert world.map_locked(30, 1) == -EAGAIN
    assert world.do("mremap", 20, LIMIT, LIMIT + 1, MREMAP_MAYMOVE, 0) == -EAGAIN
    assert world.do("mremap", 20, LIMIT, LIMIT - 1, 0, 0) == 20
    assert world.mlockall(2) == 0
    assert world.do("mmap", 40, 1, RW, PRIVATE_FIXED, 0, 0) == 40
    assert world.do("mmap", 50, 1, RW, PRIVATE_FIXED, 0, 0) == -EAGAIN


def test_without_any_right_to_lock() -> None:
    """A limit of 0: EPERM, whatever is asked for; unlocking is free."""
    world = Limited(0)
    assert [world.mlock(0, 1), world.mlock(0, 0), world.mlockall(2), world.mlock2(0, 1, 1)] == [-EPERM] * 4
    assert world.mlock2(0, 1, 2) == -EINVAL
    assert world.munlock(0, 1) == 0


def test_populating_waits_for_a_migration() -> None:
    """The page that mlock meets is on its way to another folio: no error, mlock goes on when it is there."""
    world = Locks()
    world.mmap(0, 2)
    world.write(0)
    world.write(1)
    ops = (Op("migrate", 0, (1,)), Op("mlock", 0, (0, 2)))
    outcomes = world.collide(ops, (Switch(0, "migrate.unmapped", 1), Switch(1, "populate.page", 2)))
    assert [outcome.ret for outcome in outcomes] == [1, 0]
    assert not is_migration(world.pte(1))
    assert world.mm().locked_vm == 2
    world.check()


def test_a_move_that_keeps_the_old_place_unlocks_the_whole_vma() -> None:
    """DONTUNMAP of a part: the rest of the VMA is unlocked too, and locked_vm does not hear of it (as in Linux)."""
    world = Locks()
    world.mmap(0, 3)
    assert world.mlock(0, 3) == 0
    assert world.do("mremap", 1, 1, 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 10) == 10
    assert [world.locked(page) for page in (0, 1, 2, 10)] == [0, 0, 0, VM_LOCKED]
    assert world.mm().locked_vm == 4


def test_a_move_beside_its_old_place_unlocks_itself() -> None:
    """DONTUNMAP of unfaulted memory may merge with where it came from; then the new place is unlocked as well."""
    world = Locks()
    world.mmap(0, 1)
    assert world.mlock2(0, 1, 1) == 0
    assert world.do("mremap", 0, 1, 1, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 1) == 1
    assert world.layout() == [(0, 2)]
    assert world.locked(0) == 0
