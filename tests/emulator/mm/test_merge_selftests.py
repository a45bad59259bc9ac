"""The kernel's own merge tests (tools/testing/selftests/mm/merge.c), sequence by sequence, on several page tables.

The notation is that of ``map_script``. The layouts are those of Linux 6.18.
"""

from __future__ import annotations

import pytest

from emulator.uapi import PROT_NONE
from tests.emulator.kernel_world import World
from tests.emulator.map_script import ScriptRunner

pytestmark = pytest.mark.live

# geometry, and how far away "+1" is: aligned to page tables like the carve-out, and not
WORLDS = [("x86-64", 1000), ("x86-64", 1024), ("small8", 64), ("small8", 67), ("small4", 32)]

MPROTECT = [
    ("unfaulted_left", "A = C1+10 NR; ro A[0:5]; F A[5]; ro A[5:10]; => A:10"),
    ("unfaulted_right", "A = C1+10 NR; ro A[5:10]; F A[0]; ro A[0:5]; => A:10"),
    ("unfaulted_both", "A = C2+9 NR; ro A[0:3]; ro A[6:9]; F A[3]; ro A[3:6]; => A:9"),
    ("faulted_left_unfaulted_right", "A = C2+9 NR; ro A[6:9]; F A[0]; ro A[0:3]; ro A[3:6]; => A:9"),
    ("unfaulted_left_faulted_right", "A = C2+9 NR; ro A[0:3]; F A[3]; ro A[6:9]; ro A[3:6]; => A:9"),
    # without NORESERVE an unfaulted VMA gives its charge back, and its flags differ then
    ("unfaulted_left_accounted", "A = C1+10; ro A[0:5]; F A[5]; ro A[5:10]; B = A[5:10]; => A:5 B:5"),
]

FORK = [
    ("forked_target_vma", "A = C1+5; F A; fork; child; W A; B = C6+5; => A:5 B:5"),
    ("forked_source_vma", "A = C1+5 NR; F A; fork; child; W A; B = C6+5 RWX NR; => B:5; rwx A; => A:5 B:5"),
    ("parent_of_living_child", "A = C1+5; F A; fork; B = C6+5; => A:10; child; => A:5"),
    ("parent_of_dead_child", "A = C1+5; F A; fork; exit; B = C6+5; => A:10"),
]

MREMAP = [
    ("unfaulted_to_faulted", "A = C1+5; B = C7+5; mv B -> +1; F A; mv B -> A+5; => A:10"),
    ("unfaulted_behind_faulted", "A = C6+5; B = C14+5; mv B -> +1; F A; mv B -> C1; => B:10"),
    (
        "unfaulted_between_faulted",
        """A = C1+5; B = C7+5; D = C14+5; mv D -> +2; mv B -> +1; F A; F D
           mv D -> A+10; mv B -> A+5; => A:10 D:5""",
    ),
    (
        "unfaulted_between_faulted_unfaulted",
        """A = C1+5; B = C7+5; D = C14+5; mv D -> +2; mv B -> +1; F A
           mv D -> A+10; mv B -> A+5; => A:15""",
    ),
    (
        "unfaulted_between_correctly_placed_faulted",
        "A = C1+15; F A; unmap A[5:10]; B = C20+5; mv B -> A+5; => A:15",
    ),
    (
        "correct_placed_faulted",
        """A = C1+15; F A; P1 = A[0:5]; P2 = A[5:10]; P3 = A[10:15]; mv P3 -> +2; mv P2 -> +1
           mv P2 -> A+5; => A:10
           mv P1 -> +1; mv P1 -> A; => A:10
           mv P1 -> +1; mv P3 -> P2+5; => P2:10
           mv P1 -> C1; => P1:15
           mv P2 -> +1; mv P2 -> A+5; => A:15
           mv P3 -> +1; mv P3 -> A+10; => A:15""",
    ),
    ("faulted_in_another_place", "A = C1+5; B = C14+5; F A; F B; mv B -> A+5; => A:5 B:5"),
    ("read_faulted", "A = C1+5; B = C14+5; F A; R B; mv B -> A+5; => A:10"),
    ("written_and_dropped", "A = C1+5; B = C14+5; F A; F B; drop B; mv B -> A+5; => A:5 B:5"),
]

# (name, before the fork, after it, expected when nobody forked, expected in the child); all moves keep the source
MREMAP_DONTUNMAP = [
    (
        "faulted_to_unfaulted_prev",
        "A = C4+3; F A",
        "mv A -> C20; B = C1+3; mvd A -> C4",
        "=> B:6",
        "=> B:3 A:3",
    ),
    (
        "faulted_to_unfaulted_next",
        "A = C1+3; F A",
        "mv A -> C20; B = C4+3; mvd A -> C1",
        "=> A:6",
        "=> A:3 B:3",
    ),
    (
        "faulted_to_unfaulted_prev_unfaulted_next",
        "B = C4+3; F B",
        "mv B -> C20; A = C1+3; D = C7+3; mvd B -> C4",
        "=> A:9",
        "=> A:3 B:3 D:3",
    ),
    (
        "faulted_to_unfaulted_prev_faulted_next",
        "BD = C4+6; F BD; B = BD[0:3]",
        "mv B -> C20; A = C1+3; mvd B -> C4",
        "=> A:9",
        "=> A:3 B:6",
    ),
]

# Observed on Linux 6.18.44. The selftests map a carve-out first; so does this table.
LIVE = [
    ("dontunmap_of_unfaulted_merges_with_itself", "A = C4+3; mvd A -> C1; => A:6"),
    ("dontunmap_of_faulted_stays_apart", "A = C1+3; F A; S = A[0:3]; mvd A -> C4; => S:3 A:3"),
    ("dontunmap_of_a_part", "A = C1+6; F A; P = A[2:4]; mvd P -> C20; => A:6 P:2"),
]


def scripts(*tables: list[tuple[str, str]]) -> list[object]:
    return [pytest.param(script, id=name) for table in tables for name, script in table]


@pytest.mark.parametrize("geometry", ["x86-64", "small8"])
def test_ksm_merge(geometry: str) -> None:
    """Memory that comes after MEMORY_MERGE is offered to the scanner as what was there before: they merge."""
    world = World(geometry)
    world.mmap(0, 30, PROT_NONE)
    world.mmap(1, 1)
    world.mmap(2, 1)
    assert world.span(1) == (1, 2)
    assert world.do("munmap", 2, 1) == 0
    assert world.do("memory_merge", 1) == 0
    world.mmap(2, 1)
    assert world.span(1) == (1, 2)
    assert world.do("munmap", 1, 2) == 0
    world.mmap(1, 1)
    world.mmap(2, 1)
    assert world.span(1) == (1, 2)


@pytest.mark.parametrize(("geometry", "far"), WORLDS)
@pytest.mark.parametrize("script", scripts(MPROTECT, FORK, MREMAP, LIVE))
def test_layout(script: str, geometry: str, far: int) -> None:
    """Each sequence ends with Linux's layout and with the contents that were written."""
    ScriptRunner(World(geometry), far).run(script)


@pytest.mark.parametrize(("geometry", "far"), WORLDS)
@pytest.mark.parametrize("forked", [False, True], ids=["unforked", "forked"])
@pytest.mark.parametrize(
    ("before", "after", "alone", "in_child"), [pytest.param(*row[1:], id=row[0]) for row in MREMAP_DONTUNMAP]
)
def test_faulted_move_next_to_unfaulted(
    before: str, after: str, alone: str, in_child: str, forked: bool, geometry: str, far: int
) -> None:
    """A faulted range merges with unfaulted neighbours and brings its anon_vma, but not in a fork child."""
    middle, expectation = ("fork; child", in_child) if forked else ("", alone)
    ScriptRunner(World(geometry), far).run("; ".join([before, middle, after, expectation]))
