"""mmap and munmap: errors in their order, where memory goes, what is charged, what merges."""

from __future__ import annotations

import pytest

from emulator.fs_types import VmOps
from emulator.geometry import PAGE_SHIFT, PAGE_SIZE
from emulator.mm_types import (
    VM_ACCOUNT,
    VM_LOCKED,
    VM_MAYWRITE,
    VM_NOHUGEPAGE,
    VM_NORESERVE,
    VM_SEALED,
    VM_SHARED,
)
from emulator.uapi import (
    EACCES,
    EEXIST,
    EINVAL,
    ENOMEM,
    EOPNOTSUPP,
    EOVERFLOW,
    EPERM,
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_FIXED_NOREPLACE,
    MAP_GROWSDOWN,
    MAP_LOCKED,
    MAP_NORESERVE,
    MAP_POPULATE,
    MAP_PRIVATE,
    MAP_SHARED,
    MAP_SHARED_VALIDATE,
    MAP_STACK,
    PROT_EXEC,
    PROT_NONE,
    PROT_READ,
    PROT_WRITE,
)
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World, committing, profile_with

pytestmark = pytest.mark.live

ANON = MAP_PRIVATE | MAP_ANONYMOUS
FIXED = ANON | MAP_FIXED
NOREPLACE = ANON | MAP_FIXED_NOREPLACE
TASK = 4095 * PAGE_SIZE  # of small8


def mmap(
    world: World, addr: int, length: int, flags: int, *, prot: int = RW, offset: int = 0, file: int = -1
) -> int:
    """mmap(2) in bytes; ``addr`` is absolute."""
    handle = world.machine.files[file] if file >= 0 else None
    result: int = world.image.mmap.sys_mmap(world.mm(), addr, length, prot, flags, handle, offset)
    return result


BASE = 64 * PAGE_SIZE  # arena page 0 of small8
LAST = (1 << 63) - PAGE_SIZE  # where no page of a file can be

# name, address, length, flags, keyword arguments, errno
ERRORS = [
    ("offset_unaligned", BASE, 0, FIXED, {"offset": 1}, EINVAL),
    ("no_length", BASE, 0, FIXED, {}, EINVAL),
    ("offset_beyond_every_file", BASE, 4096, MAP_PRIVATE | MAP_FIXED, {"file": 0, "offset": LAST}, EOVERFLOW),
    ("offset_after_place", TASK, 8192, MAP_PRIVATE | MAP_FIXED, {"file": 0, "offset": LAST}, ENOMEM),
    ("offset_before_type", BASE, 4096, MAP_FIXED, {"file": 0, "offset": LAST}, EOVERFLOW),
    ("longer_than_everything", 0, TASK + 1, ANON, {}, ENOMEM),
    ("fixed_beyond_the_end", TASK, 4096, FIXED, {}, ENOMEM),
    ("fixed_unaligned", BASE + 1, 4096, FIXED, {}, EINVAL),
    ("noreplace_unaligned", BASE + 1, 4096, NOREPLACE, {}, EINVAL),
    ("noreplace_overlap", BASE + 8192, 4096, NOREPLACE, {}, EEXIST),
    ("noreplace_partial_overlap", BASE + 4096, 8192, NOREPLACE, {}, EEXIST),
    ("noreplace_before_type", BASE + 8192, 4096, NOREPLACE & ~MAP_PRIVATE, {}, EEXIST),
    ("neither_private_nor_shared", BASE, 4096, MAP_ANONYMOUS | MAP_FIXED, {}, EINVAL),
    ("neither_with_a_file", BASE, 4096, MAP_FIXED, {"file": 0}, EINVAL),
    ("file_that_grows", BASE, 4096, MAP_PRIVATE | MAP_FIXED | MAP_GROWSDOWN, {"file": 0}, EINVAL),
    ("unreadable_file", BASE, 4096, MAP_PRIVATE | MAP_FIXED, {"file": 1}, EACCES),
    ("unwritable_shared", BASE, 4096, MAP_SHARED | MAP_FIXED, {"file": 1}, EACCES),
    ("unwritable_shared_validate", BASE, 4096, MAP_SHARED_VALIDATE | MAP_FIXED, {"file": 1}, EACCES),
    ("validate_of_a_newer_flag", BASE, 4096, MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE, {"file": 0}, EOPNOTSUPP),
    ("overlap_before_validate", BASE + 8192, 4096, MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE, {"file": 0}, EEXIST),
    ("validate_before_access", BASE, 4096, MAP_SHARED_VALIDATE | MAP_FIXED_NOREPLACE, {"file": 1}, EOPNOTSUPP),
    ("sealed", BASE + 8192, 4096, FIXED, {}, EPERM),
]


@pytest.mark.parametrize(
    ("addr", "length", "flags", "keywords", "errno"), [pytest.param(*row[1:], id=row[0]) for row in ERRORS]
)
def test_error(addr: int, length: int, flags: int, keywords: dict[str, int], errno: int) -> None:
    """Each is refused and changes nothing. Page 2 holds a sealed mapping; file 1 can be neither read nor written."""
    world = World()
    world.mmap(2, 1)
    world.vma(2).vm_flags |= VM_SEALED
    world.machine.files[1].readable = world.machine.files[1].writable = False
    assert mmap(world, addr, length, flags, **keywords) == -errno
    assert world.layout() == [(2, 1)]
    world.check()


def test_low_addresses() -> None:
    """Below mmap_min_addr: EPERM when fixed; a hint is raised to it."""
    world = World("x86-64")
    assert mmap(world, 4096, 4096, FIXED) == -EPERM
    assert mmap(world, 4096, 4096, ANON) == 65536


@pytest.mark.parametrize(("limit", "ret"), [(1, -ENOMEM), (2, 4)])
def test_map_count(limit: int, ret: int) -> None:
    """More maps than allowed: ENOMEM; just as many may exist, and then one more."""
    world = World(profile=profile_with(max_map_count=limit))
    world.mmap(0, 1)
    world.mmap(2, 1)
    assert world.do("mmap", 4, 1, RW, PRIVATE_FIXED, 0, 0) == ret


# ---- flags and page offset


# name, prot, flags, file, flags that must be set, flags that must be clear
FLAGS = [
    ("private", RW, MAP_PRIVATE, 0, VM_ACCOUNT | VM_MAYWRITE, VM_SHARED | VM_NORESERVE),
    ("read_only", PROT_READ, MAP_PRIVATE, 0, VM_MAYWRITE, VM_ACCOUNT),
    ("none", PROT_NONE, MAP_PRIVATE, 0, VM_MAYWRITE, VM_ACCOUNT | 7),
    ("noreserve", RW, MAP_PRIVATE | MAP_NORESERVE, 0, VM_NORESERVE, VM_ACCOUNT),
    ("private_file", RW, MAP_PRIVATE, 1, VM_ACCOUNT | VM_MAYWRITE, VM_SHARED),
    ("private_file_read_only", PROT_READ, MAP_PRIVATE, 1, VM_MAYWRITE, VM_ACCOUNT),
    ("shared_file", RW, MAP_SHARED, 1, VM_SHARED | VM_MAYWRITE, VM_ACCOUNT),
]


@pytest.mark.parametrize(
    ("prot", "flags", "file", "present", "absent"), [pytest.param(*row[1:], id=row[0]) for row in FLAGS]
)
def test_vm_flags(prot: int, flags: int, file: int, present: int, absent: int) -> None:
    """VM_ACCOUNT is for private writable memory without NORESERVE, and it is charged."""
    world = World()
    world.mmap(3, 2, prot, flags | MAP_FIXED, file)
    vm_flags = world.vma(3).vm_flags
    assert vm_flags & present == present
    assert not vm_flags & absent
    assert world.machine.committed == (2 if present & VM_ACCOUNT else 0)
    world.check()


def test_shared_of_a_read_only_file() -> None:
    """It can never become writable."""
    world = World()
    world.machine.files[0].writable = False
    world.mmap(0, 1, PROT_READ, MAP_SHARED | MAP_FIXED, file=1)
    assert not world.vma(0).vm_flags & (VM_MAYWRITE | VM_SHARED)
    assert world.do("mprotect", 0, 1, RW) == -EACCES


def test_offset_of_anonymous_memory_is_ignored() -> None:
    """However large."""
    world = World()
    assert mmap(world, BASE, PAGE_SIZE, FIXED, offset=LAST) == BASE
    assert world.vma(0).vm_pgoff == BASE >> PAGE_SHIFT


def test_page_offset() -> None:
    """Of private anonymous memory it is the place, of a file the place in the file."""
    world = World()
    world.mmap(3, 2)
    assert world.vma(3).vm_pgoff == world.address(3) >> PAGE_SHIFT
    assert world.do("mmap", 8, 2, RW, PRIVATE_FIXED, 1, 5) == 8
    assert world.vma(8).vm_pgoff == 5


# ---- merging


# name, mappings in order (page, pages, prot, flags, file, offset), layout
R, X = PROT_READ, PROT_EXEC
MERGES = [
    ("after", [(0, 3, RW, 2, 0, 0), (3, 3, RW, 2, 0, 0)], [(0, 6)]),
    ("before", [(3, 3, RW, 2, 0, 0), (0, 3, RW, 2, 0, 0)], [(0, 6)]),
    ("between", [(0, 2, RW, 2, 0, 0), (4, 2, RW, 2, 0, 0), (2, 2, RW, 2, 0, 0)], [(0, 6)]),
    ("apart", [(0, 3, RW, 2, 0, 0), (4, 3, RW, 2, 0, 0)], [(0, 3), (4, 3)]),
    ("over_the_middle", [(0, 9, RW, 2, 0, 0), (3, 3, RW, 2, 0, 0)], [(0, 9)]),
    ("over_other_protection", [(0, 9, R, 2, 0, 0), (3, 3, RW, 2, 0, 0)], [(0, 3), (3, 3), (6, 3)]),
    ("other_protection", [(0, 3, RW, 2, 0, 0), (3, 3, RW | X, 2, 0, 0)], [(0, 3), (3, 3)]),
    ("noreserve", [(0, 3, RW, 2, 0, 0), (3, 3, RW, 2 | MAP_NORESERVE, 0, 0)], [(0, 3), (3, 3)]),
    ("file_in_order", [(0, 3, RW, 2, 1, 0), (3, 3, RW, 2, 1, 3)], [(0, 6)]),
    ("file_out_of_order", [(0, 3, RW, 2, 1, 0), (3, 3, RW, 2, 1, 4)], [(0, 3), (3, 3)]),
    ("two_files", [(0, 3, RW, 2, 1, 0), (3, 3, RW, 2, 2, 3)], [(0, 3), (3, 3)]),
    ("shared_and_private", [(0, 3, RW, 1, 1, 0), (3, 3, RW, 2, 1, 3)], [(0, 3), (3, 3)]),
    ("mmap_region_basic", [(48, 3, RW, 2, 0, 0), (5, 3, RW, 2, 0, 0), (51, 3, RW, 2, 0, 0), (2, 3, RW, 2, 0, 0)],
     [(2, 6), (48, 6)]),
]  # fmt: skip


@pytest.mark.parametrize(("mappings", "layout"), [pytest.param(*row[1:], id=row[0]) for row in MERGES])
def test_merge(mappings: list[tuple[int, ...]], layout: list[tuple[int, int]]) -> None:
    """Neighbours of equal attributes and fitting page offset become one VMA."""
    world = World()
    for page, pages, prot, flags, file, offset in mappings:
        assert world.do("mmap", page, pages, prot, flags | MAP_FIXED, file, offset) == page
    assert world.layout() == layout
    world.check()


def test_close_hook_of_overmapped_neighbour() -> None:
    """A following VMA with a close() hook is not swallowed when a hole before it is filled."""
    world = World()
    world.mmap(0, 2)
    world.mmap(4, 2)
    world.vma(4).vm_ops = VmOps("closing", close=True)
    world.mmap(2, 2)
    assert world.layout() == [(0, 4), (4, 2)]
    world.check()


def test_faulted_remnants_swallow_what_is_mapped_between() -> None:
    """MAP_FIXED over the middle of a written VMA: the remnants share an anon_vma, so all is one VMA again."""
    world = World()
    world.mmap(0, 9)
    tokens = [world.write(page) for page in range(9)]
    world.mmap(3, 3)
    assert world.layout() == [(0, 9)]
    assert [world.content(page) for page in range(9)] == [
        {} if 3 <= page < 6 else {0: tokens[page]} for page in range(9)
    ]
    world.check()


# ---- limits, charges, populating


@pytest.mark.parametrize(("limit", "errno"), [(5, 0), (4, ENOMEM)])
def test_commit_limit_counts_what_is_replaced(limit: int, errno: int) -> None:
    """Mapping over charged memory charges the difference only; a refusal leaves the old mapping as it was."""
    world = World(profile=committing(limit))
    world.mmap(0, 4)
    token = world.write(1)
    ret = world.do("mmap", 1, 4, RW, PRIVATE_FIXED, 0, 0)
    assert ret == (-errno if errno else 1)
    assert world.content(1) == ({0: token} if errno else {})
    world.check()


def test_replacing_by_uncharged_memory_uncharges() -> None:
    """PROT_NONE over charged memory gives the charge back."""
    world = World()
    world.mmap(0, 4)
    world.mmap(1, 2, PROT_NONE)
    assert world.machine.committed == 2
    world.check()


def test_failed_mmap_over_charged_memory() -> None:
    """A bug of Linux 6.18, kept: when no VMA can be had the charge of what was unmapped already is not given back."""
    world = World()
    world.mmap(0, 4)
    assert world.do("mmap", 0, 4, RW, PRIVATE_FIXED | MAP_NORESERVE, 0, 0, fail_nth=1) == -ENOMEM
    assert world.machine.committed == 0
    world = World()
    world.mmap(0, 4)
    assert world.do("mmap", 0, 4, RW, PRIVATE_FIXED, 0, 0, fail_nth=1) == -ENOMEM
    assert world.layout() == []
    assert world.machine.committed == 4


def test_address_space_limit() -> None:
    """More than the address space holds: ENOMEM before anything is unmapped."""
    world = World()
    world.mmap(0, 4)
    token = world.write(0)
    world.mmap(100, 3000, PROT_NONE)
    assert mmap(world, 0, 3000 * PAGE_SIZE, ANON) == -ENOMEM
    assert world.content(0) == {0: token}


@pytest.mark.parametrize("flag", [MAP_POPULATE, MAP_LOCKED], ids=["populate", "locked"])
def test_populate(flag: int) -> None:
    """The pages are there at once; locked memory is counted."""
    world = World()
    assert mmap(world, BASE, 3 * PAGE_SIZE, FIXED | flag) == BASE
    assert len({world.folio(page).pfn for page in range(3)}) == 3
    assert world.mm().locked_vm == (3 if flag == MAP_LOCKED else 0)
    assert bool(world.vma(0).vm_flags & VM_LOCKED) == (flag == MAP_LOCKED)
    assert world.do("munmap", 0, 2) == 0
    assert world.mm().locked_vm == (1 if flag == MAP_LOCKED else 0)


def test_populate_of_forbidden_memory() -> None:
    """PROT_NONE is passed over."""
    world = World()
    assert mmap(world, BASE, PAGE_SIZE, FIXED | MAP_POPULATE, prot=PROT_NONE) == BASE
    assert world.pte(0) == 0


@pytest.mark.parametrize(
    ("prot", "grows", "counter"),
    [(PROT_EXEC | PROT_READ, 0, "exec_vm"), (RW, 0, "data_vm"), (RW, MAP_GROWSDOWN, "stack_vm")],
)
def test_counters(prot: int, grows: int, counter: str) -> None:
    """total_vm and one of exec_vm, data_vm, stack_vm."""
    world = World()
    assert mmap(world, BASE, 3 * PAGE_SIZE, FIXED | grows, prot=prot) == BASE
    mm = world.mm()
    assert mm.total_vm == 3
    assert {n: getattr(mm, n) for n in ("exec_vm", "data_vm", "stack_vm")} == {
        n: 3 if n == counter else 0 for n in ("exec_vm", "data_vm", "stack_vm")
    }
    assert world.do("munmap", 0, 3) == 0
    assert mm.total_vm == mm.exec_vm == mm.data_vm == mm.stack_vm == 0


def test_write_only_exec() -> None:
    """PROT_WRITE alone is data too."""
    world = World()
    world.mmap(0, 1, PROT_WRITE)
    assert world.mm().data_vm == 1


def test_thread_stacks_do_not_merge_with_heaps() -> None:
    """MAP_STACK asks for small pages, by a flag that neighbours do not share."""
    world = World()
    world.mmap(0, 2)
    assert mmap(world, world.address(2), 2 * PAGE_SIZE, FIXED | MAP_STACK) == world.address(2)
    assert world.layout() == [(0, 2), (2, 2)]
    assert world.vma(2).vm_flags & VM_NOHUGEPAGE
