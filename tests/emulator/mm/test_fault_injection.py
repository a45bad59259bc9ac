"""Every allocation of every system call made to fail in turn, as fail_nth does: the machine stays sound."""

from __future__ import annotations

import pytest

from emulator.designs.base import Design
from emulator.designs.mainline import Mainline
from emulator.designs.relocate_anon import RelocateAnon
from emulator.uapi import (
    MADV_HUGEPAGE,
    MADV_PAGEOUT,
    MREMAP_DONTUNMAP,
    MREMAP_FIXED,
    MREMAP_MAYMOVE,
    MREMAP_RELOCATE_ANON,
    OOM_KILLED,
    PROT_NONE,
    PROT_READ,
)
from tests.emulator.kernel_world import PRIVATE_FIXED, RW, World
from tests.emulator.map_script import Pages, ScriptRunner

FIXED = MREMAP_MAYMOVE | MREMAP_FIXED
RELOCATE = FIXED | MREMAP_RELOCATE_ANON
ANYWHERE = MREMAP_MAYMOVE
FAULT_POINTS_MAX = 64

# name, what is there before (in map_script), op
Row = tuple[str, str, tuple[str, tuple[int, ...]]]
ROWS: list[Row] = [
    ("mmap", "", ("mmap", (40, 3, RW, PRIVATE_FIXED, 0, 0))),
    ("mmap_file", "", ("mmap", (40, 3, RW, PRIVATE_FIXED, 1, 0))),
    ("mmap_over_written", "A = C1+9; W A", ("mmap", (4, 3, PROT_READ, PRIVATE_FIXED, 0, 0))),
    ("mmap_between", "A = C1+3; B = C7+3; W B", ("mmap", (4, 3, RW, PRIVATE_FIXED, 0, 0))),
    ("munmap_hole", "A = C1+9; W A", ("munmap", (4, 3))),
    ("munmap_across", "A = C1+5; W A; B = C6+5 RO", ("munmap", (3, 5))),
    ("munmap_all", "A = C1+5; W A; fork", ("munmap", (0, 30))),
    ("mremap_grow", "A = C1+3; W A; unmap A[1:3]", ("mremap", (1, 1, 3, 0, 0))),
    ("mremap_grow_to_next", "A = C1+5; F A[4]; unmap A[1:3]", ("mremap", (1, 1, 3, 0, 0))),
    ("mremap_grow_elsewhere", "A = C1+3; W A", ("mremap", (1, 3, 5, ANYWHERE, 0))),
    ("mremap_shrink", "A = C1+9; W A", ("mremap", (1, 9, 4, 0, 0))),
    ("mremap_shrink_over_hole", "A = C1+9; W A; unmap A[5]", ("mremap", (1, 9, 4, 0, 0))),
    ("mremap_shrink_to", "A = C1+9; W A", ("mremap", (1, 9, 4, FIXED, 64))),
    ("mremap_move", "A = C1+9; W A", ("mremap", (1, 9, 9, FIXED, 129))),
    ("mremap_move_misaligned", "A = C1+9; W A", ("mremap", (1, 9, 9, FIXED, 131))),
    ("mremap_move_part", "A = C1+9; W A", ("mremap", (4, 3, 3, FIXED, 128))),
    ("mremap_move_table", "A = C8+16; W A", ("mremap", (8, 16, 16, FIXED, 128))),
    ("mremap_move_over", "A = C1+3; W A; B = C9+9; W B", ("mremap", (1, 3, 3, FIXED, 12))),
    ("mremap_move_back", "A = C1+9; W A; P = A[3:6]; mv P -> +1", ("mremap", (68, 3, 3, FIXED, 4))),
    ("mremap_move_to_unfaulted", "A = C1+3; F A; mv A -> C20; B = C4+3", ("mremap", (20, 3, 3, FIXED, 1))),
    ("mremap_move_several", "A = C1+9; W A; unmap A[3]; ro A[6:8]", ("mremap", (1, 9, 9, FIXED, 126))),
    ("mremap_dontunmap", "A = C1+9; W A", ("mremap", (1, 9, 9, FIXED | MREMAP_DONTUNMAP, 126))),
    ("mremap_dontunmap_part", "A = C1+9; W A", ("mremap", (3, 3, 3, FIXED | MREMAP_DONTUNMAP, 126))),
    ("mremap_dontunmap_unfaulted", "A = C4+3", ("mremap", (4, 3, 3, FIXED | MREMAP_DONTUNMAP, 1))),
    ("mremap_in_child", "A = C1+9; W A; fork; child; W A", ("mremap", (1, 9, 9, FIXED, 126))),
    ("mprotect", "A = C1+9; W A", ("mprotect", (4, 3, PROT_READ))),
    ("mprotect_of_three", "A = C1+3 RO; B = C4+3; F B; D = C7+3 RO; F B", ("mprotect", (2, 7, PROT_NONE))),
    ("mprotect_merge", "A = C1+9 NR; ro A[0:3]; ro A[6:9]; F A[3]", ("mprotect", (4, 3, PROT_READ))),
    ("mprotect_merge_part", "A = C1+9 NR; ro A[0:3]; W A[3:9]", ("mprotect", (4, 2, PROT_READ))),
    ("mprotect_merge_right", "A = C1+9 NR; ro A[6:9]; W A[0:6]", ("mprotect", (5, 2, PROT_READ))),
    ("mprotect_charge", "A = C1+9 RO", ("mprotect", (4, 3, RW))),
    ("fork", "A = C1+9; W A; B = C12+3 FILE; W B; R A", ("fork", (2,))),
    ("fork_again", "A = C1+9; W A; fork; child; W A", ("fork", (2,))),
    ("first_write", "A = C1+3", ("write", (2, 0))),
    ("write_after_read", "A = C1+3; R A", ("write", (2, 0))),
    ("write_to_file", "A = C1+3 FILE; R A", ("write", (2, 0))),
    ("write_after_fork", "A = C1+3; W A; fork", ("write", (2, 1))),
    ("first_read", "A = C1+3", ("read", (2,))),
    ("read_of_file", "A = C1+3 FILE", ("read", (2,))),
    ("huge", "A = C1+24", ("madvise", (4, 8, MADV_HUGEPAGE))),
    ("pageout", "A = C1+3; W A", ("madvise", (1, 3, MADV_PAGEOUT))),
    ("reclaim", "A = C1+3; W A; fork", ("reclaim", (2,))),
    ("migrate", "A = C1+3; W A; fork", ("migrate", (2,))),
    ("pin", "A = C1+3; W A; fork", ("gup_slow", (2, 3, 0))),
    ("exit", "A = C1+3; W A; fork", ("exit", ())),
]

# Into one page table each: a move that fails after a part is a known flaw of the design, and tested with it.
RELOCATIONS: list[Row] = [
    ("relocate", "A = C1+5; W A", ("mremap", (1, 5, 5, RELOCATE, 129))),
    ("relocate_table", "A = C8+16; W A", ("mremap", (8, 16, 16, RELOCATE, 128))),
    ("relocate_and_merge", "A = C1+3; F A; B = C9+3; F B", ("mremap", (9, 3, 3, RELOCATE, 4))),
    (
        "relocate_and_merge_both",
        "A = C1+3; F A; D = C7+3; F D; B = C15+3; F B",
        ("mremap", (15, 3, 3, RELOCATE, 4)),
    ),
    ("relocate_part", "A = C1+9; W A", ("mremap", (3, 3, 3, RELOCATE, 129))),
    ("relocate_dontunmap", "A = C1+5; W A", ("mremap", (1, 5, 5, RELOCATE | MREMAP_DONTUNMAP, 129))),
    ("relocate_of_parent", "A = C1+9; W A; fork", ("mremap", (1, 9, 9, RELOCATE, 126))),
]


def prepared(setup: str, design: type[Design]) -> ScriptRunner:
    runner = ScriptRunner(World("small8", design), far=64)
    runner.run(setup)
    return runner


def contents(world: World) -> dict[int, Pages]:
    return {proc: world.contents(proc) for proc in world.machine.procs}


def flat(found: dict[int, Pages]) -> dict[tuple[int, int], dict[int, int]]:
    return {(proc, page): content for proc, pages in found.items() for page, content in pages.items()}


def tokens(found: dict[int, Pages]) -> set[tuple[int, int]]:
    """Every (process, token) that can be read somewhere."""
    return {(proc, token) for (proc, _), content in flat(found).items() for token in content.values()}


@pytest.mark.parametrize(
    ("setup", "op", "design"),
    [pytest.param(row[1], row[2], Mainline, id=row[0]) for row in ROWS]
    + [pytest.param(row[1], row[2], RelocateAnon, id=row[0]) for row in RELOCATIONS],
)
def test_every_fault_point(setup: str, op: tuple[str, tuple[int, ...]], design: type[Design]) -> None:
    """Whichever allocation fails: an error or success, sound structures, and every page as before or as after the op.

    Linux leaks charge when some mremaps fail (and so does the machine), hence Committed_AS is not looked at there.
    """
    kind, args = op
    runner = prepared(setup, design)
    before = contents(runner.world)
    assert runner.world.do(kind, *args, proc=runner.proc) >= 0
    after = contents(runner.world)
    old, new = flat(before), flat(after)
    for nth in range(1, FAULT_POINTS_MAX):
        runner = prepared(setup, design)
        world = runner.world
        assert contents(world) == before
        ret = world.do(kind, *args, proc=runner.proc, fail_nth=nth)
        # the posted relocation counts down what it had not counted when its anon_vma cannot be had
        world.check(committed=kind != "mremap", counters=design is Mainline)
        now = contents(world)
        if not world.last.injected:
            assert now == after
            break
        assert ret > -200 or ret == OOM_KILLED
        for key, content in flat(now).items():
            if kind == "mremap" and content == {}:
                continue  # an emptied source that could not be unmapped, or the head of the destination
            assert content in (old.get(key), new.get(key)), (nth, key)
        assert tokens(before) & tokens(after) <= tokens(now), nth
        finish(world)
    else:
        raise AssertionError("more fault points than expected")


def finish(world: World) -> None:
    """End every process: nothing may be left."""
    machine = world.machine
    for pin in list(machine.pins):
        assert world.do("unpin", pin) == 0
    for proc in list(machine.procs):
        assert world.do("exit", proc=proc) == 0
    kept = {folio for file in machine.files for folio in file.f_mapping.pages.values()}
    assert [f for f in machine.phys.live.values() if f not in kept] == [machine.phys.zero_folio]
    assert not machine.anon_vmas_live
    assert not machine.swap.count
